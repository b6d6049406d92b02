from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile

from media import tone
from mmaction_mbcd.datasets import MissingModalityError
from mmaction_mbcd.datasets.transforms import LoadWaveform
from mmaction_mbcd.preparation import audio
from mmaction_mbcd.preparation.audio import AudioExtraction
from mmaction_mbcd.preparation.extraction import MediaError, NothingToWrite
from tests_support import load_tool

RATE = 16000


main = load_tool("data/extract_audio").main


def write_media(
    path,
    sound=None,
    rate=44100,
    codec="pcm_s16le",
    starts=((0, 0.0),),
    seconds=1.0,
    picture_start=0.0,
    fps=10,
):
    """A video with a sound track.

    ``sound`` is ``(samples, channels)`` in [-1, 1]. ``starts`` holds pairs (sample,
    second): from this sample on, the sound is stamped as beginning at this second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"bf": "0"})
        video.height, video.width, video.pix_fmt = 32, 32, "yuv420p"
        if sound is not None:
            layout = {1: "mono", 2: "stereo"}[sound.shape[1]]
            track = container.add_stream(codec, rate=rate, layout=layout)
        for i in range(round(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(
                np.full((32, 32), 8 * i % 256, "u1"), "gray"
            )
            frame.pts, frame.time_base = (
                i + round(picture_start * fps),
                Fraction(1, fps),
            )
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is None:
            return path
        pieces = []
        for (begin, second), (end, _) in zip(
            starts, [*starts[1:], (len(sound), 0)], strict=True
        ):
            size = track.codec_context.frame_size or 1024
            for first in range(begin, end, size):
                at = round(second * rate) + first - begin
                pieces.append((at, sound[first : min(first + size, end)]))
        name = track.codec_context.format.name
        for at, piece in pieces:
            if name == "s16":
                data = np.rint(np.clip(piece, -1, 1) * 32767).astype(np.int16)
                data = data.reshape(1, -1)
            elif name == "flt":
                data = piece.astype(np.float32).reshape(1, -1)
            else:
                data = np.ascontiguousarray(piece.astype(np.float32).T)
            frame = av.AudioFrame.from_ndarray(data, format=name, layout=layout)
            frame.sample_rate, frame.pts = rate, at
            frame.time_base = Fraction(1, rate)
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return path


def extracted(source, rate=RATE):
    """The samples in [-1, 1] that the extraction writes."""
    target = source.parent / "out.part"
    AudioExtraction(rate).write(source, (target,))
    info = soundfile.info(target)
    assert (info.channels, info.samplerate) == (1, rate)
    assert (info.format, info.subtype) == ("WAV", "PCM_16")
    return soundfile.read(target)[0]


def column(*channels):
    return np.stack(channels, axis=1)


def peak_hertz(samples, rate=RATE):
    window = np.hanning(len(samples))
    spectrum = np.abs(np.fft.rfft(samples * window, 8 * len(samples)))
    return spectrum.argmax() * rate / (8 * len(samples))


def first_above(samples, level, rate=RATE):
    """Second of the first sample that is louder."""
    return int(np.argmax(np.abs(samples) > level)) / rate


# ------------------------------------------------------------------ content


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("x.mp4", "aac"),
        ("x.mov", "pcm_s16le"),
        ("x.avi", "pcm_s16le"),
        ("x.mkv", "flac"),
        ("y.mkv", "libopus"),
    ],
)
def test_stereo_tone_becomes_mono_of_the_same_pitch_and_length(tmp_path, name, codec):
    rate = 48000 if codec == "libopus" else 44100
    left, right = (tone(2, rate, 440, a) for a in (0.6, 0.2))
    source = write_media(tmp_path / name, column(left, right), rate, codec, seconds=2)
    samples = extracted(source)
    # Lossy codecs fill their last packet.
    assert 0 <= len(samples) - 2 * RATE <= (1100 if codec in ("aac", "libopus") else 2)
    assert abs(peak_hertz(samples[RATE // 2 : -RATE // 2]) - 440) < 0.5
    expected = tone(2, RATE, 440, 0.4)
    if codec in ("pcm_s16le", "flac"):
        inside = slice(200, 2 * RATE - 200)  # away from the resampler's ends
        assert np.abs(samples[inside] - expected[inside]).max() < 2e-3
    middle = samples[RATE // 2 : 3 * RATE // 2]
    assert abs(np.sqrt(2 * np.mean(middle**2)) - 0.4) < 0.01


def test_opposite_channels_cancel_and_one_channel_is_halved(tmp_path):
    sound = tone(1, 44100, 300, 0.8)
    write_media(tmp_path / "a.mkv", column(sound, -sound))
    assert np.abs(extracted(tmp_path / "a.mkv")).max() < 1e-4
    write_media(tmp_path / "b.mkv", column(sound, 0 * sound))
    assert abs(np.abs(extracted(tmp_path / "b.mkv")).max() - 0.4) < 2e-3


def test_right_rate_and_channels_are_copied_to_the_bit(tmp_path):
    sound = np.random.default_rng(0).integers(-32768, 32768, RATE)
    write_media(tmp_path / "x.mkv", column(sound / 32767), RATE)
    samples = extracted(tmp_path / "x.mkv")
    expected = np.rint(np.clip(sound / 32767, -1, 1) * 32767)
    np.testing.assert_array_equal(samples * 32768, expected)


def test_too_loud_is_clipped_and_does_not_wrap(tmp_path):
    sound = tone(1, 44100, 100, 1.5)
    write_media(tmp_path / "x.mkv", column(sound, sound), codec="pcm_f32le")
    samples = extracted(tmp_path / "x.mkv")
    expected = np.clip(tone(1, RATE, 100, 1.5), -1, 1)
    assert samples.max() == 32767 / 32768 and samples.min() == -1
    assert np.abs(samples - expected)[200:-200].max() < 0.02


def test_rate_option(tmp_path):
    write_media(tmp_path / "in/x.mkv", column(tone(1, 44100, 440)))
    args = [str(tmp_path / "in"), str(tmp_path), "--workers", "1", "--rate", "8000"]
    assert main(args) == 0
    samples, rate = soundfile.read(tmp_path / "x.wav")
    assert rate == 8000 and abs(len(samples) - 8000) <= 1
    assert abs(peak_hertz(samples, 8000) - 440) < 0.5
    with pytest.raises(SystemExit) as stop:
        main([*args[:-1], "0"])
    assert stop.value.code == 2


# ------------------------------------------------------------------ time


@pytest.mark.parametrize(
    ("name", "codec", "tolerance"),
    [("x.mkv", "pcm_s16le", 0.0015), ("x.mp4", "aac", 0.01)],
)
def test_late_sound_begins_with_silence(tmp_path, name, codec, tolerance):
    sound = column(*2 * [tone(1, 44100, 1000, 0.5)])
    source = write_media(
        tmp_path / name, sound, codec=codec, starts=[(0, 0.4)], seconds=1.5
    )
    samples = extracted(source)
    assert abs(first_above(samples, 0.2) - 0.4) < tolerance
    assert (samples[: int(0.36 * RATE)] == 0).all()
    assert abs(len(samples) / RATE - 1.4) < 0.03


def test_sound_before_the_picture_is_left_out(tmp_path):
    # Loud until second 0.5, quiet then; the picture begins at 0.3.
    sound = np.concatenate([tone(0.5, 44100, 1000, 0.8), tone(1, 44100, 1000, 0.1)])
    source = write_media(tmp_path / "x.mkv", column(sound), picture_start=0.3)
    samples = extracted(source)
    loud = np.flatnonzero(np.abs(samples) > 0.3) / RATE
    assert loud[0] < 0.001 and abs(loud[-1] - 0.2) < 0.002
    assert abs(len(samples) / RATE - 1.2) < 0.002


def test_second_of_the_sound_is_second_of_the_picture_where_both_are_late(tmp_path):
    sound = column(tone(0.5, 44100, 1000, 0.5))
    source = write_media(
        tmp_path / "x.mkv", sound, starts=[(0, 0.7)], picture_start=0.5
    )
    assert abs(first_above(extracted(source), 0.2) - 0.2) < 0.002


def test_gap_in_the_time_stamps_becomes_silence(tmp_path):
    sound = column(tone(1, 44100, 1000, 0.5))
    starts = [(0, 0.0), (22050, 0.9)]
    source = write_media(tmp_path / "x.mkv", sound, starts=starts, seconds=1.5)
    samples = extracted(source)
    assert (np.abs(samples[int(0.51 * RATE) : int(0.89 * RATE)]) < 1e-3).all()
    assert np.abs(samples[int(0.901 * RATE) : int(0.91 * RATE)]).max() > 0.4
    assert abs(len(samples) / RATE - 1.4) < 0.002


def test_overlap_is_written_once_and_jitter_is_no_gap(tmp_path):
    # Values say where they belong: sample n of the wav should hold n.
    def frame(first, count, stamp):
        data = np.arange(first, first + count, dtype=np.int16)[None]
        made = av.AudioFrame.from_ndarray(data, format="s16", layout="mono")
        made.sample_rate, made.pts, made.time_base = 1000, stamp, Fraction(1, 1000)
        return made

    with audio.WavTimeline(tmp_path / "x.part", 1000, Fraction(5)) as wav:
        wav.add(frame(100, 200, 5100))
        wav.add(frame(300, 200, 5303))  # 3 ms off, as time stamps are in a file
        wav.add(frame(350, 250, 5350))  # 150 of them are there already
        last = frame(600, 100, 0)
        last.pts = None  # goes on where the one before ended
        wav.add(last)
        wav.add(frame(900, 100, 5900))
    samples = soundfile.read(tmp_path / "x.part", dtype="int16")[0]
    expected = np.arange(1000)
    expected[:100] = expected[700:900] = 0
    np.testing.assert_array_equal(samples, expected)


def test_a_time_stamp_far_behind_the_end_is_no_silence_of_hours(tmp_path):
    class Container:
        duration = 2_000_000

    class Frame:
        time = 95443.7

    with pytest.raises(MediaError, match="95443.7 s, in a file of 2.0 s"):
        audio._check_time(Frame, Container)


def test_written_a_packet_at_a_time(tmp_path, monkeypatch):
    sizes = []
    write = soundfile.SoundFile.write
    monkeypatch.setattr(
        soundfile.SoundFile,
        "write",
        lambda self, data: (sizes.append(len(data)), write(self, data))[1],
    )
    write_media(tmp_path / "x.mkv", column(tone(5, 44100)), seconds=5)
    assert abs(len(extracted(tmp_path / "x.mkv")) - 5 * RATE) <= 2
    assert sum(sizes) > 50 * max(sizes)
    monkeypatch.setattr(audio, "_BLOCK", 1000)
    assert [len(block) for block in audio._silence(2500)] == [1000, 1000, 500]


# ------------------------------------------------------------------ what is missing


def test_videos_without_sound_are_counted_and_get_no_file(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    write_media(folder / "mute.mp4")
    write_media(folder / "sub/sound.mp4", column(tone(1, 44100)), codec="aac")
    assert main([str(folder), str(out), "--workers", "1"]) == 0
    assert {p.name for p in out.rglob("*.*")} == {"sound.wav", "audio_settings.json"}
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("│"))
    # videos, made, already there, no sound track, failed
    assert [int(n) for n in row.strip("│").split("│")] == [2, 1, 0, 1, 0]
    assert lines[-1] == f"no sound track: {folder}/mute.mp4"
    # The dataset's transform reads the one and calls the other missing.
    load = LoadWaveform(sample_rate=RATE)
    results = load.transform(dict(filename=str(out / "sub/sound.wav")))
    assert abs(len(results["audios"]) - RATE) < 1100
    with pytest.raises(MissingModalityError):
        load.transform(dict(filename=str(out / "mute.wav")))


def test_track_without_samples_gives_no_file(tmp_path):
    # All of the sound lies before the picture.
    sound = column(tone(0.2, 44100))
    source = write_media(tmp_path / "x.mkv", sound, picture_start=0.5)
    with pytest.raises(NothingToWrite, match="empty"):
        extracted(source)
    assert {p.name for p in tmp_path.iterdir()} == {"x.mkv"}


def test_cut_off_video_is_reported_and_leaves_nothing(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * 44100, 2))
    whole = write_media(tmp_path / "whole.mkv", noise, codec="aac", seconds=3)
    folder.mkdir()
    (folder / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert main([str(folder), str(out), "--workers", "1"]) == 1
    assert "cut.mkv: it is cut off: its header promises" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"audio_settings.json"}
