import weakref

import av
import cv2
import mmcv
import numpy as np
import pytest
import soundfile
import torch
from mmaction.datasets.transforms import Flip, FormatShape, Resize, SampleFrames
from mmaction.registry import TRANSFORMS
from mmengine.model.utils import stack_batch
from scipy import signal
from scipy.signal.windows import tukey

from media import (
    frame_index,
    numbered_frames,
    smooth_frames,
    tone,
    write_video,
    write_wav,
)
from mmaction_mbcd.datasets import seeded
from mmaction_mbcd.datasets.transforms import (
    ClipFlip,
    DecodeFlowPair,
    DecodeVideo,
    FormatAudio,
    FormatClip,
    FrequencyMask,
    LoadWaveform,
    LogSpectrogram,
    MissingModalityError,
    OpenFlowPair,
    OpenVideo,
    ResizeClip,
    SampleClip,
    SpectrogramNoise,
    TileWaveform,
    UnreadableMediaError,
    mirror_flow,
)
from mmaction_mbcd.datasets.transforms.audio import power_spectrogram
from mmaction_mbcd.datasets.transforms.images import decode_image
from mmaction_mbcd.datasets.transforms.readers import read_frames


def results(filename, modality="RGB", key="video", **more):
    return dict(
        filename=filename,
        label=0,
        start_index=0,
        modality=modality,
        modality_key=key,
        sample_id="zoo/lion",
        others={},
        **more,
    )


def run(data, *transforms):
    for transform in transforms:
        data = transform(data)
    return data


# --- time ------------------------------------------------------------------


@pytest.mark.parametrize("clip_len, interval", [(32, 2), (8, 4), (8, 1), (1, 1)])
@pytest.mark.parametrize("num_clips", [1, 3])
def test_test_mode_equals_the_stock_transform(clip_len, interval, num_clips):
    arguments = dict(
        clip_len=clip_len, frame_interval=interval, num_clips=num_clips, test_mode=True
    )
    ours, stock = SampleClip(**arguments), SampleFrames(**arguments)
    for total in [*range(1, 80), 301]:
        data = dict(total_frames=total, start_index=5)
        got, expected = ours(dict(data)), stock(dict(data))
        assert got.keys() == expected.keys()
        np.testing.assert_array_equal(got["frame_inds"], expected["frame_inds"])


def test_centre_by_hand():
    centre = SampleClip(clip_len=4, frame_interval=2, test_mode=True)
    # The window is 7 frames. 10 frames leave 3, so it starts at 3 // 2 = 1.
    data = centre(dict(total_frames=10, start_index=0))
    assert data["frame_inds"].tolist() == [1, 3, 5, 7]
    # 7 frames: it fits exactly, with the last frame.
    data = centre(dict(total_frames=7, start_index=0))
    assert data["frame_inds"].tolist() == [0, 2, 4, 6]
    # 5 frames: it loops, 6 -> 1; a segment that starts at frame 100 loops in itself.
    data = centre(dict(total_frames=5, start_index=100))
    assert data["frame_inds"].tolist() == [100, 102, 104, 101]
    data = centre(dict(total_frames=1, start_index=3))
    assert data["frame_inds"].tolist() == [3, 3, 3, 3]


def starts(transform, total, count=4000):
    with seeded(0):
        return [
            transform(dict(total_frames=total, start_index=0))["frame_inds"][0]
            for _ in range(count)
        ]


def test_train_starts_are_uniform_over_the_stock_range():
    arguments = dict(clip_len=4, frame_interval=2)
    ours, stock = SampleClip(**arguments), SampleFrames(**arguments)
    # 12 frames, a window of 8: starts 0 to 4.
    counts = np.bincount(starts(ours, 12), minlength=5)
    assert len(counts) == 5 == len(np.bincount(starts(stock, 12)))
    # Binomial(4000, 0.2): 800, standard deviation 25.3.
    assert abs(counts - 800).max() < 5 * 25.3
    for total in (3, 7, 8):  # shorter than the window, or exactly as long
        assert set(starts(ours, total, 50)) == {0} == set(starts(stock, total, 50))


def test_train_start_is_the_same_fraction_for_any_length(monkeypatch):
    clip = SampleClip(clip_len=4, frame_interval=2)
    for u in (0.0, 0.3, 0.74, 1 - 2**-53):
        monkeypatch.setattr(np.random, "rand", lambda n, u=u: np.full(n, u))
        for total in (8, 9, 50, 51):
            data = clip(dict(total_frames=total, start_index=0))
            assert data["frame_inds"][0] == min(int(u * (total - 7)), total - 8)


def test_one_draw_whatever_the_length():
    clip = SampleClip(clip_len=4, frame_interval=2)
    after = set()
    for total in (1, 8, 9, 300):
        with seeded(1):
            clip(dict(total_frames=total, start_index=0))
            after.add(np.random.rand())
    assert len(after) == 1


def test_several_train_clips_stay_in_their_stretches():
    clip = SampleClip(clip_len=2, frame_interval=1, num_clips=3)
    for index in range(200):
        with seeded(index):
            data = clip(dict(total_frames=14, start_index=0))
            offsets = data["frame_inds"].reshape(3, 2)[:, 0]
            assert ((offsets >= [0, 4, 8]) & (offsets <= [3, 7, 11])).all()
            # Fewer starts (2) than clips.
            data = clip(dict(total_frames=3, start_index=0))
            assert set(data["frame_inds"].reshape(3, 2)[:, 0]) <= {0, 1}


# --- video -----------------------------------------------------------------


def test_decodes_the_sampled_frames(tmp_path):
    path = str(tmp_path / "a.mp4")
    write_video(path, numbered_frames(21), fps=10)
    clip = SampleClip(clip_len=4, frame_interval=3, test_mode=True)
    data = run(results(path), OpenVideo(), clip, DecodeVideo())
    assert data["total_frames"] == 21 and data["avg_fps"] == 10
    assert data["imgs"][0].shape == (24, 32, 3)
    # window 10, 11 left over, start 5
    assert [frame_index(f) for f in data["imgs"]] == [5, 8, 11, 14]


def test_short_video_loops(tmp_path):
    path = str(tmp_path / "a.mp4")
    write_video(path, numbered_frames(5))
    clip = SampleClip(clip_len=6, frame_interval=2, test_mode=True)
    data = run(results(path), OpenVideo(), clip, DecodeVideo())
    assert [frame_index(f) for f in data["imgs"]] == [0, 2, 4, 1, 3, 0]


@pytest.mark.parametrize("width", [16, 24, 48, 72])
def test_widths_at_which_decord_sees_four_channels(tmp_path, width):
    path = str(tmp_path / "a.mp4")
    shown = smooth_frames(9, height=32, width=width)
    write_video(path, shown)
    clip = SampleClip(clip_len=6, frame_interval=2, test_mode=True)
    data = run(results(path), OpenVideo(), clip, DecodeVideo())
    for index, frame in zip([0, 2, 4, 6, 8, 1], data["imgs"], strict=True):
        assert frame.shape == (32, width, 3)
        for channel in range(3):
            assert np.abs(frame[..., channel] - shown[index]).max() < 6


def test_segment_of_a_longer_video(tmp_path):
    path = str(tmp_path / "a.mp4")
    write_video(path, numbered_frames(21))
    segment = dict(start_index=12, total_frames=9)
    clip = SampleClip(clip_len=3, frame_interval=4, test_mode=True)
    data = run({**results(path), **segment}, OpenVideo(), clip, DecodeVideo())
    # The last frame of the segment is the last of the file.
    assert [frame_index(f) for f in data["imgs"]] == [12, 16, 20]
    with pytest.raises(UnreadableMediaError, match="frames 12 to 21 is not in the"):
        OpenVideo()({**results(path), **segment, "total_frames": 10})
    with pytest.raises(UnreadableMediaError, match="is not in the file's 21"):
        OpenVideo()({**results(path), **segment, "total_frames": 0})


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":  # the index is at the head, so it promises every frame
        data = data[: len(data) // 2]
    elif how == "no index":
        data = data[: data.index(b"moov")]
    elif how == "zeros":
        data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    elif how == "frame sizes":  # stsz, which makes decord crash unless checked first
        place = data.index(b"stsz") + 16
        data[place + 5] = 0x60
    elif how == "empty":
        data = b""
    elif how == "text":
        data = b"404: Not Found\n" * 50
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how", ["truncated", "no index", "zeros", "frame sizes", "empty", "text"]
)
def test_damaged_video_is_an_error_that_names_it(tmp_path, how):
    path = tmp_path / "a b.mp4"
    random = np.random.default_rng(0)
    write_video(path, random.integers(0, 255, (20, 48, 64, 3)))
    damage(path, how)
    clip = SampleClip(clip_len=8, frame_interval=2, test_mode=True)
    with pytest.raises(UnreadableMediaError) as error:
        run(results(str(path)), OpenVideo(), clip, DecodeVideo())
    text = str(error.value)
    assert text.startswith(f"cannot read video of sample 'zoo/lion' from {path}: ")
    assert "ffmpeg -i" in text and "delete its line" in text
    if how == "empty":
        assert "0 bytes" in text
    if how in ("truncated", "frame sizes"):
        assert "cut off, or its index is damaged" in text


@pytest.fixture
def av1(tmp_path):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV cannot write AV1")
    path = str(tmp_path / "a.mp4")
    write_video(path, numbered_frames(9, 64, 64), codec="libsvtav1", options={})
    return path


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_av1_is_read_whatever_the_reader(av1, reader):
    clip = SampleClip(clip_len=4, frame_interval=2, test_mode=True)
    out = run(results(av1), OpenVideo(reader=reader), clip, DecodeVideo())
    assert [frame_index(f) for f in out["imgs"]] == out["frame_inds"].tolist()
    assert out["frame_inds"].tolist() == [1, 3, 5, 7] and out["total_frames"] == 9


@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "3", "g": "7"}])
def test_the_two_readers_agree(tmp_path, options):
    """With and without reordered frames; any order of indices, repeated too."""
    path = str(tmp_path / "a.mp4")
    write_video(path, smooth_frames(30), fps=25, options=options | {"crf": "5"})
    made = {}
    for reader in ("decord", "pyav"):
        opened = OpenVideo(reader=reader)(results(path))
        assert (opened["total_frames"], opened["avg_fps"]) == (30, 25)
        made[reader] = np.stack(
            read_frames(opened["video_reader"], np.array([17, 3, 3, 29, 0, 16]))
        ).astype(int)
    # Two versions of FFmpeg round the conversion to RGB differently.
    assert np.abs(made["decord"] - made["pyav"]).max() <= 2
    neighbours = np.abs(made["pyav"][0] - made["pyav"][5]).max()
    assert neighbours > 10  # frames 17 and 16: a slip by one would show


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_the_two_readers_turn_a_video_alike(tmp_path, angle):
    """A video that is stored lying or upside down, with a tag that says so."""
    path = str(tmp_path / "a.mp4")
    shown = np.stack(smooth_frames(6, height=32, width=48)).astype(np.uint8)
    stored = np.rot90(shown, -angle // 90, axes=(1, 2))
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5"})
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation (18.0 can)")
        stream.height, stream.width = stored.shape[1:]
        stream.set_display_rotation(angle)
        for frame in stored:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "gray")
            container.mux(stream.encode(picture.reformat(format="yuv420p")))
        container.mux(stream.encode())
    made = {}
    for reader in ("decord", "pyav"):
        opened = OpenVideo(reader=reader)(results(path))
        frames = read_frames(opened["video_reader"], np.array([4, 0, 5]))
        made[reader] = np.stack(frames).astype(int)
    assert made["pyav"].shape == (3, 32, 48, 3)
    assert np.abs(made["decord"] - made["pyav"]).max() <= 2
    # No half turn more: the picture is the one that was turned for storing.
    assert np.abs(made["pyav"][..., 0] - shown[[4, 0, 5]]).max() < 16


@pytest.mark.parametrize("how", ["truncated", "no index", "zeros", "empty", "text"])
def test_damaged_video_with_pyav(tmp_path, how):
    path = tmp_path / "a.mp4"
    random = np.random.default_rng(0)
    write_video(path, random.integers(0, 255, (20, 48, 64, 3)))
    damage(path, how)
    clip = SampleClip(clip_len=8, frame_interval=2, test_mode=True)
    with pytest.raises(UnreadableMediaError, match="cannot read video of sample"):
        run(results(str(path)), OpenVideo(reader="pyav"), clip, DecodeVideo())


def test_flow_pair_with_pyav(tmp_path):
    for axis, first in zip("xy", (20, 60), strict=True):
        frames = numbered_frames(8, first=first)
        write_video(tmp_path / f"{axis}.mp4", frames)
    given = results(tuple(str(tmp_path / f"{a}.mp4") for a in "xy"), modality="Flow")
    clip = SampleClip(clip_len=2, frame_interval=3, test_mode=True)
    out = run(given, OpenFlowPair(reader="pyav"), clip, DecodeFlowPair())
    for frame, index in zip(out["imgs"], out["frame_inds"], strict=True):
        assert frame_index(frame[..., 0]) == frame_index(frame[..., 1], 60) == index


def test_unknown_reader():
    with pytest.raises(ValueError, match=r"one of \['decord', 'pyav'\], got 'cv2'"):
        OpenVideo(reader="cv2")


def test_sound_only_container(tmp_path):
    path = tmp_path / "a.wav"
    write_wav(path, tone(1))
    with pytest.raises(UnreadableMediaError, match="no video stream"):
        OpenVideo()(results(str(path)))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"):
        OpenVideo()(results(str(tmp_path / "nowhere.mp4")))


# --- flow ------------------------------------------------------------------


def write_pair(folder, x, y):
    names = str(folder / "c_flow_x.mp4"), str(folder / "c_flow_y.mp4")
    write_video(names[0], x), write_video(names[1], y)
    return names


def test_flow_pair_is_decoded_in_step(tmp_path):
    x, y = numbered_frames(11), numbered_frames(10, first=200, step=-5)
    names = write_pair(tmp_path, x, y)
    clip = SampleClip(clip_len=4, frame_interval=2, test_mode=True)
    data = run(results(names, "Flow", "flow"), OpenFlowPair(), clip, DecodeFlowPair())
    # The surplus of x is left out: 10 frames, window 7, start 1.
    assert data["total_frames"] == 10 and data["avg_fps"] == 10
    assert data["imgs"][0].shape == (24, 32, 2) and data["img_shape"] == (24, 32)
    assert [frame_index(f[..., 0]) for f in data["imgs"]] == [1, 3, 5, 7]
    assert [frame_index(f[..., 1], 200, -5) for f in data["imgs"]] == [1, 3, 5, 7]


def test_one_reader_of_a_flow_pair_is_gone_before_the_next_decodes():
    """While it lives, decord decodes ahead in a thread of its own."""
    alive = []

    class Component:
        def get_batch(self, indices):
            alive.append(sum(ref() is not None for ref in refs))
            return np.zeros((len(indices), 4, 6, 3), np.uint8)

    pair = Component(), Component()
    refs = [weakref.ref(reader) for reader in pair]
    given = dict(video_reader=pair, filename=("x", "y"), frame_inds=np.arange(2))
    del pair
    assert DecodeFlowPair()(given)["img_shape"] == (4, 6)
    assert alive == [2, 1]


def test_flow_faults_name_the_component(tmp_path):
    names = write_pair(tmp_path, numbered_frames(9), numbered_frames(9, width=48))
    clip = SampleClip(clip_len=4, test_mode=True)
    chain = OpenFlowPair(), clip, DecodeFlowPair()
    with pytest.raises(UnreadableMediaError, match=r"\(24, 32\).*its y.*\(24, 48\)"):
        run(results(names, "Flow", "flow"), *chain)
    names = write_pair(tmp_path, numbered_frames(9), numbered_frames(11))
    with pytest.raises(UnreadableMediaError, match="components have 9 and 11 frames"):
        run(results(names, "Flow", "flow"), *chain)
    (tmp_path / "c_flow_y.mp4").write_bytes(b"")
    with pytest.raises(UnreadableMediaError, match="read flow .*c_flow_y.mp4: the fi"):
        run(results(names, "Flow", "flow"), *chain)


def test_mirror_flow_by_hand():
    x = np.array([[0, 1, 127, 128, 129, 255]], dtype=np.uint8)
    y = np.array([[10, 20, 30, 40, 50, 60]], dtype=np.uint8)
    frame = np.stack([x, y], axis=-1)
    kept = frame.copy()
    got = mirror_flow(frame)
    # Order reversed; x -> 256 - x, where 128 (no motion) stays and 0 is clipped.
    assert got[..., 0].tolist() == [[1, 127, 128, 129, 255, 255]]
    assert got[..., 1].tolist() == [[60, 50, 40, 30, 20, 10]]
    np.testing.assert_array_equal(frame, kept)


def test_mirror_flow_twice_is_nothing():
    random = np.random.default_rng(0)
    frame = random.integers(1, 256, (5, 7, 2), dtype=np.uint8)
    np.testing.assert_array_equal(mirror_flow(mirror_flow(frame)), frame)


def test_mirrored_motion_is_the_motion_of_the_mirrored_video():
    import cv2

    first, second = (np.uint8(f) for f in smooth_frames(2, seed=1, height=64, width=64))

    def flow(a, b):
        return cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)

    def stored(field):
        return np.clip(np.round(128 + field * 127 / 8), 0, 255).astype(np.uint8)

    straight = stored(flow(first, second))
    mirrored = stored(flow(first[:, ::-1].copy(), second[:, ::-1].copy()))
    error = np.abs(mirror_flow(straight).astype(int) - mirrored)[8:-8, 8:-8]
    assert error.max() <= 2
    # Sanity: there is motion, and leaving x as it is would be wrong.
    assert (
        np.abs(straight[8:-8, ::-1][:, 8:-8].astype(int) - mirrored[8:-8, 8:-8])[
            ..., 0
        ].max()
        > 4
    )


def clip_results(modality, channels):
    random = np.random.default_rng(3)
    imgs = [random.integers(0, 256, (4, 6, channels), dtype=np.uint8) for _ in "abc"]
    return dict(imgs=imgs, img_shape=(4, 6), modality=modality)


def test_clip_flip_of_video_equals_the_stock_flip_and_shares_its_coin():
    flipped = 0
    for index in range(40):
        with seeded(index):
            ours = ClipFlip()(clip_results("RGB", 3))
        with seeded(index):
            stock = Flip()(clip_results("RGB", 3))
        with seeded(index):
            flow = ClipFlip()(clip_results("Flow", 2))
        assert ours["flip"] == stock["flip"] == flow["flip"]
        flipped += ours["flip"]
        np.testing.assert_array_equal(ours["imgs"], stock["imgs"])
        kept = clip_results("Flow", 2)["imgs"]
        for before, after in zip(kept, flow["imgs"], strict=True):
            expected = mirror_flow(before) if flow["flip"] else before
            np.testing.assert_array_equal(after, expected)
    assert 0 < flipped < 40


def test_clip_flip_leaves_its_input_alone():
    data = clip_results("RGB", 3)
    frames = list(data["imgs"])
    ClipFlip(flip_ratio=1.0)(data)
    for got, expected in zip(frames, clip_results("RGB", 3)["imgs"], strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("modality, channels", [("RGB", 3), ("Flow", 2)])
def test_clip_flip_of_an_array_is_in_place(modality, channels):
    """:class:`ResizeClip` has made a copy already."""
    given = clip_results(modality, channels)
    listed = ClipFlip(flip_ratio=1.0)(dict(given))["imgs"]
    array = np.stack(given["imgs"])
    assert ClipFlip(flip_ratio=1.0)(dict(given, imgs=array))["imgs"] is array
    np.testing.assert_array_equal(array, np.stack(listed))
    whole = np.stack(given["imgs"])
    kept = whole.copy()
    view = ClipFlip(flip_ratio=1.0)(dict(given, imgs=whole[:]))["imgs"]  # not its own
    np.testing.assert_array_equal(np.stack(view), np.stack(listed))
    np.testing.assert_array_equal(whole, kept)


def test_clip_flip_refuses_what_it_would_get_wrong():
    with pytest.raises(ValueError, match="cannot be lazy"):
        ClipFlip(lazy=True)
    stacked = dict(
        imgs=[np.zeros((4, 6), np.uint8)] * 2, img_shape=(4, 6), modality="Flow"
    )
    with pytest.raises(ValueError, match=r"\(H, W, 2\).* got \(4, 6\)"):
        ClipFlip(flip_ratio=1.0)(stacked)


def test_stock_spatial_transforms_treat_flow_as_two_images():
    frame = np.stack([np.uint8(f) for f in smooth_frames(2)], axis=-1)
    chains = [
        [dict(type="Resize", scale=(-1, 40))],
        [dict(type="CenterCrop", crop_size=16)],
        [
            dict(type="RandomResizedCrop"),
            dict(type="Resize", scale=(16, 16), keep_ratio=False),
        ],
    ]
    for chain in chains:
        built = [TRANSFORMS.build(t) for t in chain]

        def apply(image, built=built):
            with seeded(4):
                data = dict(imgs=[image], img_shape=(24, 32), modality="Flow")
                return run(data, *built)["imgs"][0]

        both = apply(frame)
        assert both.shape[-1] == 2
        for channel in (0, 1):
            np.testing.assert_array_equal(
                both[..., channel], apply(frame[..., channel].copy())
            )


# --- sound -----------------------------------------------------------------


def sound(path, **more):
    return results(str(path), "Audio", "audio", **more)


def test_whole_file_as_mono_mean(tmp_path):
    left, right = tone(0.5), 0.2 * tone(0.5, hertz=100)
    write_wav(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT")
    data = LoadWaveform()(sound(tmp_path / "a.wav"))
    assert data["audios"].shape == (8000,) and data["audios"].dtype == np.float32
    np.testing.assert_allclose(data["audios"], (left + right) / 2, atol=1e-7)
    assert data["sample_rate"] == 16000 and data["audio_span"] == (0, 0.5)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_the_tone(tmp_path, rate):
    write_wav(tmp_path / "a.wav", tone(1, rate), rate, subtype="FLOAT")
    got = LoadWaveform()(sound(tmp_path / "a.wav"))["audios"]
    assert len(got) == 16000
    expected = tone(1)
    np.testing.assert_allclose(got[500:-500], expected[500:-500], atol=5e-3)


def ramp_file(path, seconds=4, rate=1000):
    """A sample of value n / 10000 at time n / rate."""
    write_wav(path, np.arange(seconds * rate) / 10000, rate, subtype="FLOAT")
    return path


def ramp(waveform):
    values = np.round(np.asarray(waveform) * 10000).astype(int)
    assert (np.diff(values) == 1).all()
    return values[0], values[-1] + 1


def test_span_of_the_sampled_frames(tmp_path):
    path = ramp_file(tmp_path / "a.wav")
    video = dict(frame_inds=np.array([10, 12, 14, 16]), avg_fps=10.0)
    flow = dict(frame_inds=np.array([2, 4]), avg_fps=5.0)
    load = LoadWaveform(sample_rate=1000, span="frames")

    def heard(load, **others):
        return ramp(load({**sound(path), "others": others})["audios"])

    # From the start of frame 10 (1 s) to the end of frame 16 (1.7 s).
    assert heard(load, video=video, flow=flow) == (1000, 1700)
    assert heard(load, flow=flow) == (400, 1000)
    assert heard(load) == (0, 4000)  # audio alone: the whole file
    fixed = LoadWaveform(sample_rate=1000, span="frames", span_fps=20)
    assert heard(fixed, video=video) == (500, 850)
    only = LoadWaveform(sample_rate=1000, span="frames", span_from="flow")
    assert heard(only, video=video, flow=flow) == (400, 1000)
    # A looping clip ends on an early frame; it covers the whole short video.
    looped = dict(frame_inds=np.array([0, 2, 4, 1, 3]), avg_fps=10.0)
    assert heard(load, video=looped) == (0, 500)
    short = LoadWaveform(sample_rate=1000, span="frames", max_seconds=0.25)
    assert heard(short, video=video) == (1000, 1250)
    # The sound ends before the frames do: what there is of it.
    late = dict(frame_inds=np.array([30, 60]), avg_fps=10.0)
    assert heard(load, video=late) == (3000, 4000)


def test_span_of_a_segment(tmp_path):
    path = ramp_file(tmp_path / "a.wav")
    load = LoadWaveform(sample_rate=1000, span="segment", max_seconds=2)
    data = load(sound(path, start=0.5, stop=1.25))
    assert ramp(data["audios"]) == (500, 1250) and data["audio_span"] == (0.5, 1.25)
    assert ramp(load(sound(path, start=0.5, stop=3.9))["audios"]) == (500, 2500)


def test_what_counts_as_missing(tmp_path):
    load = LoadWaveform()
    with pytest.raises(MissingModalityError, match="a.wav does not exist"):
        load(sound(tmp_path / "a.wav"))
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(UnreadableMediaError, match=r"a.wav: the file is empty \(0 by"):
        load(sound(tmp_path / "a.wav"))
    write_wav(tmp_path / "a.wav", np.zeros(0))
    with pytest.raises(MissingModalityError, match="a.wav holds no samples"):
        load(sound(tmp_path / "a.wav"))
    write_wav(tmp_path / "a.wav", np.full(1600, 0.9e-4), subtype="FLOAT")
    with pytest.raises(MissingModalityError, match="a.wav is silent between 0.00 and"):
        load(sound(tmp_path / "a.wav"))
    LoadWaveform(silence=0)(sound(tmp_path / "a.wav"))
    write_wav(tmp_path / "a.wav", np.full(1600, 1.1e-4), subtype="FLOAT")
    load(sound(tmp_path / "a.wav"))
    # Sound that ends before the sampled frames begin is silence, not absence.
    late = dict(video=dict(frame_inds=np.array([50, 52]), avg_fps=10.0))
    data = LoadWaveform(span="frames")({**sound(tmp_path / "a.wav"), "others": late})
    assert len(data["audios"]) and not data["audios"].any()


def test_unreadable_sound(tmp_path):
    path = tmp_path / "a.wav"
    path.write_text("404: Not Found")
    with pytest.raises(UnreadableMediaError) as error:
        LoadWaveform()(sound(path))
    assert f"cannot read audio of sample 'zoo/lion' from {path}: " in str(error.value)
    assert "-ar 16000" in str(error.value) and "delete the file" in str(error.value)
    write_wav(path, np.array([0.1, np.nan, 0.1]), subtype="FLOAT")
    with pytest.raises(UnreadableMediaError, match="NaN or infinity"):
        LoadWaveform()(sound(path))


def test_cut_off_wav_is_what_there_is_of_it(tmp_path):
    path = tmp_path / "a.wav"
    write_wav(path, tone(1))
    path.write_bytes(path.read_bytes()[: 44 + 2 * 4000])
    assert soundfile.info(path).frames == 4000
    assert len(LoadWaveform()(sound(path))["audios"]) == 4000


def test_unknown_span():
    with pytest.raises(ValueError, match="'file', 'frames', 'segment'.*got 'clip'"):
        LoadWaveform(span="clip")


def test_tile_waveform_by_hand():
    tile = TileWaveform(7)
    wave = np.array([0.5, -1.5, 2.0], np.float32)
    got = tile(dict(audios=wave))["audios"]
    assert got.tolist() == [0.5, -1, 1, 0.5, -1, 1, 0.5] and got.dtype == np.float32
    assert wave.tolist() == [0.5, -1.5, 2.0]
    assert tile(dict(audios=np.arange(9) / 10))["audios"].tolist() == [
        *(np.arange(7) / 10)
    ]


def reference_spectrogram(x, rate, nperseg, noverlap):
    """Periodogram of each window, from the definition (one-sided density)."""
    window, step = tukey(nperseg, 0.25, sym=False), nperseg - noverlap
    columns = []
    for start in range(0, len(x) - nperseg + 1, step):
        piece = x[start : start + nperseg]
        piece = (piece - piece.mean()) * window
        n, k = np.arange(nperseg), np.arange(nperseg // 2 + 1)[:, None]
        power = abs((piece * np.exp(-2j * np.pi * k * n / nperseg)).sum(1)) ** 2
        power = power / (rate * (window**2).sum())
        power[1:-1] *= 2
        columns.append(power)
    return np.stack(columns, 1)


def test_log_spectrogram_against_the_definition():
    random = np.random.default_rng(0)
    wave = (tone(0.1) + 0.05 * random.standard_normal(1600)).astype(np.float32)
    got = LogSpectrogram(nperseg=64, noverlap=20)(dict(audios=wave, sample_rate=16000))[
        "audios"
    ]
    log = np.log(reference_spectrogram(wave.astype(float), 16000, 64, 20) + 1e-7)
    expected = (log - log.mean()) / (log.std() + 1e-9)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-4)
    log = np.log(power_spectrogram(wave, 16000, 64, 20).astype(float) + 1e-7)
    plain = (log - log.mean()) / (log.std() + 1e-9)
    assert np.array_equal(got, plain.astype(np.float32))


def test_published_shape_and_normalisation():
    wave = np.random.default_rng(0).uniform(-1, 1, 160000).astype(np.float32)
    got = LogSpectrogram()(dict(audios=wave, sample_rate=16000))["audios"]
    assert got.shape == (257, 1004)
    assert abs(got.mean()) < 1e-4 and abs(got.std() - 1) < 1e-4


def test_spectrogram_of_a_constant_is_finite():
    # Each window loses its mean, so every cell is log(eps): the deviation is zero.
    constant = dict(audios=np.full(4000, 0.5, np.float32), sample_rate=16000)
    assert abs(LogSpectrogram()(constant)["audios"]).max() < 1e-3


def test_spectrogram_errors():
    with pytest.raises(ValueError, match="noverlap=353, nperseg=256"):
        LogSpectrogram(nperseg=256)
    with pytest.raises(ValueError, match="nperseg=512 needs as many samples, got 511"):
        LogSpectrogram()(dict(audios=np.zeros(511), sample_rate=16000))


def test_noise():
    spectrogram = np.zeros((257, 1004), np.float32)
    with seeded(0):
        got = SpectrogramNoise(0.05)(dict(audios=spectrogram))["audios"]
    assert got.dtype == np.float32 and not spectrogram.any()
    assert got.min() < -0.0499 and got.max() > 0.0499 and abs(got).max() <= 0.05
    assert abs(got.std() - 0.1 / 12**0.5) < 1e-4
    with seeded(0):
        drawn = np.random.uniform(-0.05, 0.05, spectrogram.shape)
    assert np.array_equal(got, drawn.astype(np.float32))


def test_frequency_mask_reaches_bins_0_to_254():
    seen = set()
    mask = FrequencyMask(9)
    with seeded(0):
        for _ in range(4000):
            ones = np.ones((257, 2), np.float32)
            got = mask(dict(audios=ones))["audios"]
            zero = np.flatnonzero(got[:, 0] == 0)
            assert len(zero) == 9 and zero[-1] - zero[0] == 8 and ones.all()
            assert (got[:, 0] == got[:, 1]).all()
            seen.add(zero[0])
    assert seen == set(range(247))


def test_frequency_mask_needs_room():
    mask = FrequencyMask(9)
    assert (mask(dict(audios=np.ones((11, 3))))["audios"][:9] == 0).all()
    with pytest.raises(ValueError, match="needs more than 10 frequency bins, got 10"):
        mask(dict(audios=np.ones((10, 3))))


def test_format_audio():
    spectrogram = np.arange(6, dtype=float).reshape(2, 3)
    data = FormatAudio()(dict(audios=spectrogram))
    assert data["audios"].dtype == torch.float32 and data["input_shape"] == (1, 2, 3)
    assert data["audios"].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    with pytest.raises(ValueError, match=r"got shape \(6,\): put LogSpectrogram"):
        FormatAudio()(dict(audios=spectrogram.ravel()))


def test_whole_audio_chain_of_the_published_code(tmp_path):
    write_wav(tmp_path / "a.wav", tone(3))
    chain = LoadWaveform(), TileWaveform(), LogSpectrogram(), FormatAudio()
    got = run(sound(tmp_path / "a.wav"), *chain)["audios"]
    assert got.shape == (1, 257, 1004)
    # 440 Hz falls between bins 14 (437.5 Hz) and 15 (468.75 Hz).
    assert got[0].mean(1).argmax() == 14


# --- speed without another bit ---------------------------------------------------


@pytest.mark.parametrize(
    ("nperseg", "noverlap", "samples"),
    [(512, 353, 160000), (256, 16, 32000), (512, 256, 80000), (63, 10, 5000)],
)
@pytest.mark.parametrize("rate", [16000, 44100.0])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_power_spectrogram_is_scipys_to_the_bit(nperseg, noverlap, samples, rate, kind):
    random = np.random.default_rng(samples)
    for loudness in (1, 1e-3, 0):
        wave = (loudness * random.normal(0, 0.1, samples)).astype(kind)
        wave[: samples // 3] = loudness  # flat in part
        _, _, theirs = signal.spectrogram(
            wave, rate, nperseg=nperseg, noverlap=noverlap
        )
        ours = power_spectrogram(wave, rate, nperseg, noverlap)
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


def pictures(count=5, height=20, width=30, channels=3):
    random = np.random.default_rng(channels)
    shape = (height, width, channels)
    return [random.integers(0, 256, shape, np.uint8) for _ in range(count)]


@pytest.mark.parametrize("channels", [2, 3])
def test_format_clip_equals_format_shape_and_batches_in_order(channels):
    imgs = pictures(channels=channels)
    given = dict(imgs=imgs, num_clips=1, clip_len=5)
    stock = FormatShape("NCTHW", collapse=True)(dict(given))["imgs"]
    ours = FormatClip()(dict(given))
    assert ours["input_shape"] == stock.shape == (channels, 5, 20, 30)
    assert np.array_equal(ours["imgs"].numpy(), stock)
    assert not np.shares_memory(ours["imgs"].numpy(), imgs[0])
    # A batch is laid out as it always was, also where a clip is absent or smaller.
    absent = torch.zeros(channels, 1, 1, 1, dtype=torch.uint8)
    for clips in ([ours["imgs"]], [ours["imgs"]] * 3, [ours["imgs"], absent]):
        batch = stack_batch(clips)
        assert batch.is_contiguous()
        assert np.array_equal(batch[0].numpy(), stock)
        assert ((batch - torch.ones(channels, 1, 1, 1)) / 2).is_contiguous()
    with pytest.raises(ValueError, match="takes one clip, got 2"):
        FormatClip()(dict(given, num_clips=2))


def test_resize_clip_copies_only_what_changes():
    imgs = pictures()
    for scale, keep in (((-1, 10), True), ((-1, 20), True), ((30, 20), False)):
        given = dict(imgs=imgs, img_shape=(20, 30))
        stock = Resize(scale, keep_ratio=keep)(dict(given))
        ours = ResizeClip(scale, keep_ratio=keep)(dict(given))
        assert ours["img_shape"] == stock["img_shape"]
        assert all(map(np.array_equal, ours["imgs"], stock["imgs"]))
        assert (ours["imgs"] is imgs) == (scale != (-1, 10))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "area"])
def test_a_fixed_size_is_resized_into_one_array(channels, interpolation):
    """Also of frames that differ in size, as crops may, and of grey ones."""
    imgs = [*pictures(2, channels=channels), *pictures(2, 9, 40, channels)]
    imgs = [img[2:-2, 3:] for img in imgs]  # views, as a crop leaves them
    given = dict(imgs=imgs, img_shape=imgs[0].shape[:2])
    options = dict(scale=(24, 16), keep_ratio=False, interpolation=interpolation)
    stock = Resize(**options)(dict(given))["imgs"]
    ours = ResizeClip(**options)(dict(given))["imgs"]
    assert isinstance(ours, np.ndarray) and ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, np.stack(stock))
    if channels > 1:
        clip = FormatClip()(dict(imgs=ours, num_clips=1))["imgs"]
        assert np.shares_memory(clip.numpy(), ours)


def test_resize_clip_by_pillow():
    """Which knows of no place to write to."""
    imgs = pictures()
    mmcv.use_backend("pillow")
    try:
        given = dict(imgs=imgs, img_shape=(20, 30))
        stock = Resize((24, 16), keep_ratio=False)(dict(given))["imgs"]
        ours = ResizeClip((24, 16), keep_ratio=False)(dict(given))["imgs"]
    finally:
        mmcv.use_backend("cv2")
    np.testing.assert_array_equal(ours, np.stack(stock))


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_clip_flip_equals_mmcvs(direction):
    imgs = pictures()
    flipped = ClipFlip(1, direction=direction)(
        dict(imgs=imgs, modality="RGB", img_shape=(20, 30))
    )["imgs"]
    for ours, img in zip(flipped, imgs, strict=True):
        assert np.array_equal(ours, mmcv.imflip(img, direction))
        assert ours.flags.c_contiguous


def test_uncompressed_images():
    (colour,) = pictures(1)
    grey = colour[..., 0].copy()
    ppm = cv2.imencode(".ppm", colour[..., ::-1])[1].tobytes()
    pgm = cv2.imencode(".pgm", grey)[1].tobytes()
    assert np.array_equal(decode_image(ppm), colour)
    assert np.array_equal(decode_image(pgm, grey=True), grey)
    assert np.array_equal(decode_image(pgm), np.stack([grey] * 3, axis=-1))
    bgr = cv2.imdecode(np.frombuffer(ppm, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(decode_image(ppm, grey=True).astype(int) - bgr).max() <= 1
    assert decode_image(bytearray(ppm)).flags.writeable
    for spoiled, why in (
        (ppm[:-1], "cut off after"),
        (ppm + b"x", "cut off after"),
        (ppm.replace(b"30 20", b"30 x0"), "header is damaged"),
        (ppm.replace(b"30 20", b"30000 20000"), "30000 x 20000 pixels"),
    ):
        with pytest.raises(ValueError, match=why):
            decode_image(spoiled)
