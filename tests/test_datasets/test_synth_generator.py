import csv
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import cv2
import decord
import numpy as np
import pytest
import soundfile
from scipy import signal as filters
from scipy import stats

from mmaction_mbcd.datasets.synth import (
    CLASSES,
    DOMAINS,
    SynthClip,
    SynthConfig,
    generate,
    writing,
)
from mmaction_mbcd.datasets.synth.rendering import compute_flow, render_frames
from mmaction_mbcd.datasets.synth.scene import Pose, action_pose
from mmaction_mbcd.datasets.synth.sound import action_sound, render_audio
from mmaction_mbcd.flow_coding import dequantize_flow, quantize_flow
from tests_support import load_tool

SMALL = SynthConfig(
    num_classes=2,
    train_per_class=2,
    test_per_class=1,
    size=32,
    frames=16,
    missing_audio=0.25,
)
ONE = dataclasses.replace(SMALL, train_per_class=1, domains=("studio", "sketch"))


def contents(folder: Path) -> dict[str, str]:
    """Path inside ``folder`` -> sha256, of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "one"
    generate(out, SMALL, workers=1, progress=False)
    return out


# ------------------------------------------------------------------ determinism


def test_files_do_not_depend_on_the_number_of_workers(made, tmp_path, capsys):
    meta = generate(tmp_path, SMALL, workers=2)
    assert contents(tmp_path) == contents(made)
    assert meta == json.loads((made / "synth.json").read_text())


def test_clip_depends_on_seed_domain_split_and_index_only():
    def render(config=SMALL, domain="street", split="test", index=1):
        clip = SynthClip(config, domain, split, index)
        return render_frames(clip).astype(float), render_audio(clip).mix()

    frames, wave = render()
    # More clips elsewhere, or fewer domains, leave it as it is.
    other = dataclasses.replace(
        SMALL, test_per_class=9, domains=("sketch", "street"), missing_audio=0.0
    )
    for same in (render(), render(other)):
        np.testing.assert_array_equal(frames, same[0])
        np.testing.assert_array_equal(wave, same[1])
    for changes in (
        dict(config=dataclasses.replace(SMALL, seed=1)),
        dict(domain="studio"),
        dict(split="train"),
        dict(index=0),
    ):
        changed = render(**changes)
        assert np.abs(frames - changed[0]).mean() > 5
        assert np.abs(wave - changed[1]).max() > 0.1


# ------------------------------------------------------------------ layout and files


def test_split_files_are_like_hacs(made):
    raw = (made / "Synth_Splits" / "Synth_train_only_studio.csv").read_bytes()
    assert raw == (
        b"swing_0000.mp4,0\r\nbounce_0000.mp4,1\r\n"
        b"swing_0001.mp4,0\r\nbounce_0001.mp4,1\r\n"
    )
    for domain in DOMAINS:
        names = []
        for split, per_class in (("train", 2), ("test", 1)):
            file = made / "Synth_Splits" / f"Synth_{split}_only_{domain}.csv"
            rows = list(csv.reader(file.open(newline="")))
            labels = [int(label) for _, label in rows]
            assert np.bincount(labels).tolist() == [per_class, per_class]
            assert all(CLASSES[int(k)] == name.split("_")[0] for name, k in rows)
            names += [name for name, _ in rows]
        # No clip is in both splits.
        assert len(set(names)) == 6
        assert {p.name for p in (made / domain / "videos").iterdir()} == set(names)


def decode(file: Path) -> np.ndarray:
    reader = decord.VideoReader(str(file), num_threads=1)
    assert reader.get_avg_fps() == 16
    return reader.get_batch(range(len(reader))).asnumpy()


def test_decord_reads_every_video_in_full(made):
    videos = [decode(file) for file in made.rglob("*.mp4")]
    assert [video.shape for video in videos] == [(16, 32, 32, 3)] * (3 * 6 * 3)


@pytest.mark.parametrize("domain", DOMAINS)
def test_decoded_files_equal_what_was_rendered(made, domain):
    clip = SynthClip(SMALL, domain, "train", 1)
    frames = render_frames(clip)
    video = decode(made / domain / "videos" / f"{clip.name}.mp4")
    assert np.abs(video - frames.astype(float)).mean() < 8
    flow = quantize_flow(compute_flow(frames), SMALL.flow_bound)
    for axis, letter in enumerate("xy"):
        decoded = decode(made / domain / "flow" / f"{clip.name}_flow_{letter}.mp4")
        # Grey: h264 keeps no colour where there is none.
        assert np.ptp(decoded.astype(int), axis=-1).max() == 0
        error = np.abs(decoded[..., 0] - flow[..., axis].astype(float))
        assert error.mean() < 1.5


def test_wav_files(made):
    for domain in DOMAINS:
        # 0.25 of 4 clips, of 2 clips.
        for split, missing in (("train", 1), ("test", 0)):
            clips = SMALL.clips(domain, split)
            assert sum(not clip.has_audio for clip in clips) == missing
            for clip in clips:
                file = made / domain / "audio" / f"{clip.name}.wav"
                assert file.exists() == clip.has_audio
                if clip.has_audio:
                    info = soundfile.info(file)
                    assert (info.samplerate, info.channels) == (16000, 1)
                    assert (info.frames, info.subtype) == (16000, "PCM_16")
                    expected = render_audio(clip).mix()
                    wave, _ = soundfile.read(file)
                    np.testing.assert_allclose(wave, expected, atol=1 / 32000)


def test_meta(made):
    meta = json.loads((made / "synth.json").read_text())
    assert meta["classes"] == ["swing", "bounce"]
    assert (meta["sources"], meta["targets"]) == (["studio", "street"], ["sketch"])
    assert meta["counts"]["street"] == {"train": 4, "test": 2}
    assert meta["clips_without_audio"]["sketch"] == {"train": 1, "test": 0}
    assert SynthConfig(**meta["parameters"]) == SMALL


@pytest.mark.parametrize("fraction, expected", [(0, 0), (0.1, 12), (0.5, 60), (1, 120)])
def test_missing_audio_is_an_exact_share(fraction, expected):
    clips = SynthConfig(missing_audio=fraction).clips("sketch", "train")
    assert sum(not clip.has_audio for clip in clips) == expected


# ------------------------------------------------------------------ flow


@pytest.mark.parametrize("velocity", [(1.5, -0.5), (0.0, 3.0), (-4.0, 2.0)])
@pytest.mark.parametrize("size", [32, 64])
def test_flow_of_a_known_translation(velocity, size):
    noise = np.random.default_rng(0).uniform(0, 255, (160, 160, 3)).astype(np.float32)
    texture = cv2.normalize(
        cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX
    )
    frames = []
    for t in range(4):
        x, y = velocity[0] * t - 40, velocity[1] * t - 40
        shift = np.float64([[1, 0, x], [0, 1, y]])
        moved = cv2.warpAffine(texture, shift, (size, size))
        frames.append(moved.astype(np.uint8))
    flow = compute_flow(np.stack(frames))
    assert flow.shape == (4, size, size, 2) and flow.dtype == np.float32
    inner = flow[:, 6:-6, 6:-6]
    assert np.abs(inner - velocity).mean() < 0.15
    np.testing.assert_array_equal(flow[3], flow[2])


def test_flow_coding_by_hand():
    # 128 + round(127 / 8 * v); 15.875 * 4 = 63.5 rounds to even 64
    flow = np.array([0, 4, -4, 8, -8, 100, -100, 0.02, 1])
    expected = [128, 192, 64, 255, 1, 255, 1, 128, 144]
    assert quantize_flow(flow, 8).tolist() == expected
    back = dequantize_flow(np.uint8([1, 128, 255, 144]), 8)
    np.testing.assert_allclose(back, [-8, 0, 8, 16 * 8 / 127], rtol=1e-6)


def test_flow_file_keeps_zero_at_128(tmp_path):
    still = compute_flow(np.zeros((1, 32, 32, 3), np.uint8))
    grey = np.repeat(quantize_flow(still[..., 0], 8.0), 8, axis=0)
    writing.write_video(tmp_path / "z.mp4", grey, 16)
    assert np.unique(decode(tmp_path / "z.mp4")).tolist() == [128]


# ------------------------------------------------------------------ the spurious cue


def cues(config: SynthConfig, domain: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    clips = [SynthClip(config, domain, "train", i) for i in range(count)]
    return np.array([c.cue for c in clips]), np.array([c.label for c in clips])


def test_cue_is_the_label_in_sources_and_independent_in_the_target():
    config = SynthConfig(spurious=1.0)
    for domain in ("studio", "street"):
        cue, label = cues(config, domain, 300)
        np.testing.assert_array_equal(cue, label)
    cue, label = cues(config, "sketch", 1800)
    table = np.zeros((6, 6))
    np.add.at(table, (cue, label), 1)
    assert table.min() > 25  # 50 expected in each cell
    assert stats.chi2_contingency(table).pvalue > 0.01
    both = dataclasses.replace(config, target=("street", "sketch"))
    cue, label = cues(both, "street", 600)
    assert abs((cue == label).mean() - 1 / 6) < 0.05


@pytest.mark.parametrize("spurious", [0.0, 0.5, 0.8])
def test_agreement_of_cue_and_label(spurious):
    cue, label = cues(SynthConfig(spurious=spurious), "studio", 1500)
    expected = spurious + (1 - spurious) / 6
    assert abs((cue == label).mean() - expected) < 4 * np.sqrt(0.25 / 1500)


@pytest.mark.parametrize("domain", DOMAINS)
def test_cue_can_be_read_from_the_tint(domain):
    config = SynthConfig(spurious=0.0, frames=8)
    for clip in config.clips(domain, "train")[:18]:
        frame = render_frames(clip)[0]
        # The ratio of channels shows the tint whatever the brightness; the median
        # pixel belongs to the background.
        colour = np.median(frame.reshape(-1, 3).astype(np.float32), axis=0)
        hue = cv2.cvtColor(colour[None, None] / 255, cv2.COLOR_RGB2HSV)[0, 0, 0]
        assert round(float(hue) / 60) % 6 == clip.cue


def test_spurious_changes_the_tint_alone():
    free, tied = (
        SynthConfig(spurious=s).clips("studio", "train")[:60] for s in (0.0, 1.0)
    )
    agreeing = [i for i in range(60) if free[i].cue == i % 6]
    differing = next(i for i in range(60) if i not in agreeing)
    assert len(agreeing) > 2
    for index in agreeing[:2]:
        np.testing.assert_array_equal(
            render_frames(free[index]), render_frames(tied[index])
        )
    pair = free[differing], tied[differing]
    one, two = map(render_frames, pair)
    assert np.abs(one - two.astype(float)).mean() > 10
    # The object has its own colour: its pixels are equal, noise included.
    assert 0.02 < (one == two).all(axis=-1).mean() < 0.3
    one, two = (render_audio(clip).mix() for clip in pair)
    np.testing.assert_array_equal(one, two)


# ------------------------------------------------------------------ the actions


def pose_of(action: str, seed: int) -> Pose:
    times = np.linspace(0, 4, 400)
    return action_pose(action, np.random.default_rng(seed), times)


@pytest.mark.parametrize("seed", range(8))
def test_each_action_moves_as_its_name_says(seed):
    swing, bounce = pose_of("swing", seed), pose_of("bounce", seed)
    assert np.ptp(swing.x) > 2 * np.ptp(swing.y)
    assert np.ptp(bounce.y) > 2 * np.ptp(bounce.x)

    circle = pose_of("circle", seed)
    spread = np.linalg.eigvalsh(np.cov(circle.x, circle.y))
    assert 0.45 < np.sqrt(spread[0] / spread[1]) <= 1
    turning = np.diff(np.unwrap(np.arctan2(circle.y, circle.x)))
    assert (turning > 0).all() or (turning < 0).all()

    zigzag = pose_of("zigzag", seed)
    assert abs(np.corrcoef(zigzag.x, zigzag.y)[0, 1]) > 0.999
    steepness = np.degrees(np.arctan2(np.ptp(zigzag.y), np.ptp(zigzag.x)))
    assert 32 < steepness < 58

    pulse = pose_of("pulse", seed)
    assert 0.3 < np.ptp(pulse.scale) < 0.9 and not pulse.path().any()

    spin = pose_of("spin", seed)
    assert abs(spin.angle[-1] - spin.angle[0]) > 0.9 * 2 * np.pi * 0.35 * 4
    assert np.ptp(spin.scale) < 0.09


def test_flow_of_rendered_clips_tells_swing_from_bounce():
    config = SynthConfig(num_classes=2, frames=16)
    for domain in ("studio", "sketch"):
        right = 0
        for clip in config.clips(domain, "train")[:32]:
            energy = (compute_flow(render_frames(clip)) ** 2).sum((0, 1, 2))
            right += int(energy[1] > energy[0]) == clip.label
        assert right >= 27  # 16 by chance


def test_pitch_rises_for_a_circle_and_falls_for_a_bounce():
    times = np.arange(16000) / 16000
    for seed in range(6):
        slopes = {}
        for action in ("circle", "bounce"):
            random = np.random.default_rng(seed)
            sound = action_sound(action, "studio", random, times)
            _, _, power = filters.spectrogram(sound, 16000, nperseg=1024)
            peak, loud = power.argmax(0), power.max(0) > 0.2 * power.max()
            steps = np.diff(peak)[loud[1:] & loud[:-1]]
            slopes[action] = np.sign(steps[np.abs(steps) < 8]).sum()
        assert slopes["circle"] > 0 > slopes["bounce"]


# ------------------------------------------------------------------ sound


@pytest.mark.parametrize("domain", DOMAINS)
def test_audio_difficulty_lowers_the_signal_to_noise_ratio(domain):
    ratios, masking = [], []
    for difficulty in (0.0, 0.25, 0.5, 0.75, 1.0):
        clips = SynthConfig(audio_difficulty=difficulty).clips(domain, "train")
        sounds = [render_audio(clip) for clip in clips[:6]]
        measured = [
            10 * np.log10(np.mean(s.event**2) / np.mean(s.noise**2)) for s in sounds
        ]
        np.testing.assert_allclose(measured, [s.snr_db for s in sounds], atol=1e-6)
        ratios.append(measured)
        masking.append([np.abs(s.distractors).max() for s in sounds])
    # 32 dB over the whole range, clip by clip: only the level of the noise changes.
    np.testing.assert_allclose(np.diff(ratios, axis=0), -8, atol=1e-6)
    assert np.max(masking[0]) == 0
    np.testing.assert_allclose(np.array(masking[1]) * 4, masking[4])
    assert np.median(masking[1]) > 0  # one may fall in a pause of its own sound


def test_useless_modality_is_noise_and_the_others_stay(made, tmp_path):
    config = dataclasses.replace(ONE, useless=("flow",))
    meta = generate(tmp_path / "noise", config, workers=1, progress=False)
    assert meta["parameters"]["useless"] == ["flow"]
    generate(tmp_path / "plain", ONE, workers=1, progress=False)
    plain, noise = contents(tmp_path / "plain"), contents(tmp_path / "noise")
    assert plain.keys() == noise.keys()
    differ = {name for name in plain if plain[name] != noise[name]}
    flow = {name for name in plain if "/flow/" in str(name)}
    assert flow and {str(n) for n in differ} == {str(n) for n in flow} | {"synth.json"}
    # Uniform in 8 bits: the encoder's loss narrows the tails a little.
    path = next(tmp_path.glob("noise/*/flow/*_x.mp4"))
    pixels = np.stack([f.asnumpy()[..., 0] for f in decord.VideoReader(str(path))])
    assert abs(pixels.mean() - 127.5) < 2 and 65 < pixels.std() < 80
    # Neighbours in space and time say nothing of each other.
    centred = pixels - pixels.mean()
    for axis in range(3):
        ahead = np.roll(centred, 1, axis)
        assert abs((centred * ahead).mean() / pixels.var()) < 0.1


def test_useless_settings_are_other_settings(tmp_path):
    generate(tmp_path, ONE, workers=1, progress=False)
    other = dataclasses.replace(ONE, useless=("audio",))
    with pytest.raises(FileExistsError, match="useless None there, .'audio'. asked"):
        generate(tmp_path, other, workers=1, progress=False)


def test_waveform_is_the_scaled_sum_of_its_layers():
    sound = render_audio(SynthClip(SynthConfig(), "street", "test", 3))
    wave = sound.mix()
    assert wave.dtype == np.float32 and wave.shape == (32000,)
    total = sound.event + sound.distractors + sound.noise
    np.testing.assert_allclose(wave, sound.gain * total, atol=1e-6)
    assert 0.3 <= np.abs(wave).max() <= 0.95
    assert abs(np.sqrt(np.mean(sound.event**2)) - 1) < 1e-9


# ------------------------------------------------------------------ existing folders


def test_a_killed_generation_is_repeated_and_a_complete_one_is_left(made, tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=generate, args=(tmp_path, SMALL, 1, False, False)
    )
    process.start()
    deadline = time.monotonic() + 30
    while len(list(tmp_path.rglob("*.mp4"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "synth.json").exists()
    stray = tmp_path / "studio" / "videos" / "swing_0009.mp4"
    stray.write_bytes(b"half a file")

    generate(tmp_path, SMALL, workers=1, progress=False)
    assert contents(tmp_path) == contents(made)
    stray.touch()
    assert generate(tmp_path, SMALL)["counts"]["sketch"] == {"train": 4, "test": 2}
    assert stray.exists()


def test_failure_names_the_clip(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(writing, "write_video", fail)
    with pytest.raises(RuntimeError, match="clip 0 of studio/train: disk full"):
        generate(tmp_path, SMALL, workers=1, progress=False)
    assert not (tmp_path / "synth.json").exists()


def test_other_settings_are_refused_then_replaced(tmp_path):
    generate(tmp_path, ONE, workers=1, progress=False)
    keep = tmp_path / "notes.txt"
    keep.write_text("mine")
    before = contents(tmp_path)
    other = dataclasses.replace(ONE, seed=5, domains=("street", "sketch"))
    with pytest.raises(FileExistsError, match="seed 0 there, 5 asked for.*--overwrite"):
        generate(tmp_path, other, workers=1, progress=False)
    assert contents(tmp_path) == before
    meta = generate(tmp_path, other, workers=1, overwrite=True, progress=False)
    assert (
        meta["seed"] == 5 == json.loads((tmp_path / "synth.json").read_text())["seed"]
    )
    assert not (tmp_path / "studio").exists() and keep.read_text() == "mine"


@pytest.mark.parametrize("text", ['{"generator_version": 0}', "{", "[]"])
def test_another_description_is_another_data_set(tmp_path, text):
    (tmp_path / "synth.json").write_text(text)
    with pytest.raises(FileExistsError, match="version (0|None) there, 1 asked for"):
        generate(tmp_path, SMALL, workers=1, progress=False)


def test_folders_of_others_are_never_touched(tmp_path):
    (tmp_path / "street").mkdir()
    (tmp_path / "street" / "photo.jpg").write_bytes(b"x")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="has street, .* not touched"):
            generate(tmp_path, SMALL, 1, overwrite, progress=False)
        assert [p.name for p in tmp_path.rglob("*")] == ["street", "photo.jpg"]
    # Beside a data set that does not need the name.
    generate(tmp_path, ONE, 1, progress=False)
    before = contents(tmp_path)
    assert "street/photo.jpg" in before
    with pytest.raises(FileExistsError, match="has street, "):
        generate(tmp_path, SMALL, 1, overwrite=True, progress=False)
    assert contents(tmp_path) == before


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(seed=-1), "seed: got -1, needs an integer from 0"),
        (dict(num_classes=7), "num_classes: got 7, needs an integer from 2 to 6"),
        (dict(num_classes=1), "num_classes: got 1, needs an integer from 2 to 6"),
        (dict(train_per_class=0), "train_per_class: got 0, needs an integer from 1"),
        (dict(test_per_class=2.5), "test_per_class: got 2.5, needs an integer from 1"),
        (dict(size=65), "size: got 65, needs an even number, such as 66"),
        (dict(size=16), "size: got 16, needs an integer from 32"),
        (dict(frames=True), "frames: got True, needs an integer from 4"),
        (dict(fps=100), "frames: got 32, needs at least half a second: 50 at 100 fps"),
        (dict(sample_rate=4000), "sample_rate: got 4000, needs an integer from 8000"),
        (dict(spurious=1.5), "spurious: got 1.5, needs a number from 0 to 1"),
        (dict(audio_difficulty=float("nan")), "audio_difficulty: got nan"),
        (dict(missing_audio="all"), "missing_audio: got 'all'"),
        (dict(flow_bound=0), "flow_bound: got 0, needs a positive number"),
        (dict(domains=("studio", "moon")), "domains: .*'moon'.*'studio', 'street'"),
        (dict(domains="sketch"), "domains: got 'sketch', needs a non-repeating"),
        (dict(target="moon"), "target: got 'moon', needs one of the domains"),
        (dict(target=DOMAINS), "target: .* needs a source to remain"),
        (dict(useless=("smell",)), "useless: .*some, but not all, of.*'flow'"),
        (dict(useless=("audio", "flow", "video")), "useless: .*some, but not all"),
        (dict(domains=("sketch",)), "target: got 'sketch', needs a source to remain"),
    ],
)
def test_bad_values(values, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        generate(tmp_path / "out", SynthConfig(**values), progress=False)
    assert len(str(error.value).splitlines()) == 2  # the headline and this one key
    assert not (tmp_path / "out").exists()


def test_all_bad_values_are_reported_together():
    with pytest.raises(ValueError) as error:
        SynthConfig(seed=-1, spurious=2, target="moon", size=33).validate()
    keys = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert keys == ["seed", "size", "spurious", "target"]


# ------------------------------------------------------------------ command line

tool = load_tool("data/make_synth_action")


def test_command_line_makes_the_same_files(made, tmp_path, capsys):
    arguments = (
        f"{tmp_path} --num-classes 2 --train-per-class 2 --test-per-class 1 --size 32 "
        "--frames 16 --missing-audio 0.25 --workers 1 --quiet"
    ).split()
    assert tool.main(arguments) == 0
    captured = capsys.readouterr()
    assert "made in" in captured.out and "sketch" in captured.out
    assert contents(tmp_path) == contents(made)
    assert tool.main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert tool.main([*arguments, "--seed", "1"]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert tool.main([*arguments, "--spurious", "3", "--target", "moon"]) == 2
    error = capsys.readouterr().err
    assert "spurious: got 3.0" in error and "target: got 'moon'" in error
    assert tool.main([*arguments, "--workers", "0"]) == 2
    assert "workers: got 0, needs an integer from 1" in capsys.readouterr().err


def test_command_line_defaults_are_the_configs():
    args = vars(tool.parse_args(["out"]))
    for field in dataclasses.fields(SynthConfig):
        value = args[field.name]
        expected = getattr(SynthConfig(), field.name)
        if field.name in ("domains", "target", "useless"):
            expected = [expected] if isinstance(expected, str) else list(expected)
        assert value == expected
