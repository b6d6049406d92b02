import csv
import dataclasses
import hashlib
import importlib.util
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
from scipy import stats

from mmaction_mbcd.datasets import synth_generator as synth
from mmaction_mbcd.datasets.synth_generator import (
    CLASSES,
    DOMAINS,
    SynthConfig,
    action_pose,
    clip_label,
    clips_without_audio,
    compute_flow,
    dataset_state,
    draw_cue,
    generate,
    quantize_flow,
    render_audio,
    render_clip,
    render_frames,
)

SMALL = SynthConfig(
    num_classes=2,
    train_per_class=2,
    test_per_class=1,
    size=32,
    frames=16,
    missing_audio=0.25,
)


def contents(folder: Path) -> dict[str, str]:
    """Path inside ``folder`` -> sha256, of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def times_written(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "one"
    generate(out, SMALL, workers=1, progress=False)
    return out


# ------------------------------------------------------------------ determinism


def test_files_do_not_depend_on_the_number_of_workers(made, tmp_path, monkeypatch):
    # Chunks of one clip end in any order in two processes.
    monkeypatch.setattr(synth, "_CHUNK", 1)
    meta = generate(tmp_path, SMALL, workers=2, progress=False)
    assert contents(tmp_path) == contents(made)
    assert meta == json.loads((made / "synth.json").read_text())


def test_clip_depends_on_seed_domain_split_and_index_only():
    first = render_clip(SMALL, "street", "test", 1)
    again = render_clip(SMALL, "street", "test", 1)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.waveform, again.waveform)
    # More clips elsewhere, or fewer domains, leave it as it is.
    other = dataclasses.replace(
        SMALL, test_per_class=9, domains=("sketch", "street"), missing_audio=0.0
    )
    np.testing.assert_array_equal(
        first.frames, render_frames(other, "street", "test", 1)
    )
    for change in (
        render_clip(dataclasses.replace(SMALL, seed=1), "street", "test", 1),
        render_clip(SMALL, "studio", "test", 1),
        render_clip(SMALL, "street", "train", 1),
        render_clip(SMALL, "street", "test", 0),
    ):
        assert np.abs(first.frames - change.frames.astype(float)).mean() > 5
        assert np.abs(first.waveform - change.waveform).max() > 0.1


# ------------------------------------------------------------------ layout and files


def test_split_files_are_like_hacs(made):
    raw = (made / "Synth_Splits" / "Synth_train_only_studio.csv").read_bytes()
    assert raw == (
        b"swing_0000.mp4,0\r\nbounce_0000.mp4,1\r\n"
        b"swing_0001.mp4,0\r\nbounce_0001.mp4,1\r\n"
    )
    for domain in DOMAINS:
        names = []
        for split in ("train", "test"):
            file = made / "Synth_Splits" / f"Synth_{split}_only_{domain}.csv"
            rows = list(csv.reader(file.open(newline="")))
            labels = [int(label) for _, label in rows]
            per_class = {"train": 2, "test": 1}[split]
            assert np.bincount(labels).tolist() == [per_class, per_class]
            assert all(CLASSES[int(k)] == name.split("_")[0] for name, k in rows)
            names += [name for name, _ in rows]
        assert len(set(names)) == 6
        assert {p.name for p in (made / domain / "videos").iterdir()} == set(names)


def test_decord_reads_every_video_in_full(made):
    files = sorted(made.rglob("*.mp4"))
    assert len(files) == 3 * 6 * 3
    for file in files:
        reader = decord.VideoReader(str(file), num_threads=1)
        assert len(reader) == SMALL.frames, file
        assert reader.get_avg_fps() == SMALL.fps
        batch = reader.get_batch(range(SMALL.frames)).asnumpy()
        assert batch.shape == (16, 32, 32, 3)


@pytest.mark.parametrize("domain", DOMAINS)
def test_decoded_files_equal_what_was_rendered(made, domain):
    clip = render_clip(SMALL, domain, "train", 1)
    stem = made / domain
    reader = decord.VideoReader(str(stem / "videos" / f"{clip.name}.mp4"))
    video = reader.get_batch(range(16)).asnumpy()
    assert np.abs(video - clip.frames.astype(float)).mean() < 8
    flow = quantize_flow(compute_flow(clip.frames), SMALL.flow_bound)
    for axis, letter in enumerate("xy"):
        file = stem / "flow" / f"{clip.name}_flow_{letter}.mp4"
        decoded = decord.VideoReader(str(file)).get_batch(range(16)).asnumpy()
        # Gray: h264 keeps no colour where there is none.
        assert np.ptp(decoded.astype(int), axis=-1).max() == 0
        error = np.abs(decoded[..., 0] - flow[..., axis].astype(float))
        assert error.mean() < 1.5


def test_wav_files(made):
    for domain in DOMAINS:
        for split, count in (("train", 4), ("test", 2)):
            silent = clips_without_audio(SMALL, domain, split)
            assert len(silent) == {"train": 1, "test": 0}[split]  # 0.25 * 4, 0.25 * 2
            for index in range(count):
                clip = render_clip(SMALL, domain, split, index)
                file = made / domain / "audio" / f"{clip.name}.wav"
                assert file.exists() == clip.has_audio == (index not in silent)
                if clip.has_audio:
                    info = soundfile.info(file)
                    assert (info.samplerate, info.channels) == (16000, 1)
                    assert (info.frames, info.subtype) == (16000, "PCM_16")
                    wave, _ = soundfile.read(file)
                    np.testing.assert_allclose(wave, clip.waveform, atol=1 / 32000)


def test_meta(made):
    meta = json.loads((made / "synth.json").read_text())
    assert meta["classes"] == ["swing", "bounce"]
    assert meta["sources"] == ["studio", "street"]
    assert meta["targets"] == ["sketch"]
    assert meta["counts"]["street"] == {"train": 4, "test": 2}
    assert meta["clips_without_audio"]["sketch"] == {"train": 1, "test": 0}
    assert SynthConfig(**meta["parameters"]) == SMALL


@pytest.mark.parametrize("fraction, expected", [(0, 0), (0.1, 12), (0.5, 60), (1, 120)])
def test_missing_audio_is_an_exact_share(fraction, expected):
    config = SynthConfig(missing_audio=fraction)
    assert len(clips_without_audio(config, "sketch", "train")) == expected


def test_default_size():
    config = SynthConfig().validate()
    assert config.seconds == 2.0
    assert config.clips_per_split("train") + config.clips_per_split("test") == 180


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


def test_flow_of_one_frame_is_zero():
    assert not compute_flow(np.zeros((1, 32, 32, 3), np.uint8)).any()


def test_flow_names_what_it_cannot_take():
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\) and float64"):
        compute_flow(np.zeros((3, 32, 32)))


def test_quantize_flow_by_hand():
    # 128 + round(127 / 8 * v); 15.875 * 4 = 63.5 rounds to even 64
    flow = np.array([0, 4, -4, 8, -8, 100, -100, 0.02, 1])
    expected = [128, 192, 64, 255, 1, 255, 1, 128, 144]
    assert quantize_flow(flow, 8).tolist() == expected
    with pytest.raises(ValueError, match="positive number; got 0"):
        quantize_flow(flow, 0)


def test_flow_file_keeps_zero_at_128(tmp_path):
    synth.write_video(tmp_path / "z.mp4", np.full((8, 32, 32), 128, np.uint8), 16)
    decoded = decord.VideoReader(str(tmp_path / "z.mp4")).get_batch(range(8)).asnumpy()
    assert np.unique(decoded).tolist() == [128]


# ------------------------------------------------------------------ the spurious cue


def cues(config: SynthConfig, domain: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    drawn = [draw_cue(config, domain, "train", i) for i in range(count)]
    return np.array(drawn), np.array([clip_label(config, i) for i in range(count)])


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
    for index in range(18):
        frame = render_frames(config, domain, "train", index)[0]
        # The ratio of channels shows the tint whatever the brightness; the median
        # pixel belongs to the background.
        colour = np.median(frame.reshape(-1, 3).astype(np.float32), axis=0)
        hue = cv2.cvtColor(colour[None, None] / 255, cv2.COLOR_RGB2HSV)[0, 0, 0]
        nearest = round(float(hue) / 60) % 6
        assert nearest == draw_cue(config, domain, "train", index)


def test_spurious_changes_the_tint_alone():
    free, tied = SynthConfig(spurious=0.0), SynthConfig(spurious=1.0)
    agreeing = [i for i in range(60) if draw_cue(free, "studio", "train", i) == i % 6]
    differing = next(i for i in range(60) if i not in agreeing)
    assert len(agreeing) > 2
    for index in agreeing[:2]:
        np.testing.assert_array_equal(
            render_frames(free, "studio", "train", index),
            render_frames(tied, "studio", "train", index),
        )
    one, two = (render_frames(c, "studio", "train", differing) for c in (free, tied))
    assert np.abs(one - two.astype(float)).mean() > 10
    # The object has its own colour: its pixels are equal, noise included.
    assert 0.02 < (one == two).all(axis=-1).mean() < 0.3
    np.testing.assert_array_equal(
        render_audio(free, "studio", "train", differing).mix(),
        render_audio(tied, "studio", "train", differing).mix(),
    )


# ------------------------------------------------------------------ the actions


def pose_of(action: str, seed: int) -> synth.Pose:
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
    assert 0.3 < np.ptp(pulse.scale) < 0.9 and not pulse.x.any() and not pulse.y.any()

    spin = pose_of("spin", seed)
    assert abs(spin.angle[-1] - spin.angle[0]) > 0.9 * 2 * np.pi * 0.35 * 4
    assert np.ptp(spin.scale) < 0.09


def test_unknown_action():
    with pytest.raises(ValueError, match="got action 'jump', needs one of"):
        action_pose("jump", np.random.default_rng(0), np.arange(4.0))
    with pytest.raises(ValueError, match="got action 'jump', needs one of"):
        synth.action_sound("jump", "studio", np.random.default_rng(0), np.arange(4.0))


def test_flow_of_rendered_clips_tells_swing_from_bounce():
    config = SynthConfig(num_classes=2, frames=16)
    for domain in ("studio", "sketch"):
        right = 0
        for index in range(32):
            flow = compute_flow(render_frames(config, domain, "train", index))
            energy = (flow**2).sum((0, 1, 2))
            right += int(energy[1] > energy[0]) == index % 2
        assert right >= 27  # 16 by chance


def test_pitch_rises_for_a_circle_and_falls_for_a_bounce():
    times = np.arange(16000) / 16000
    for seed in range(6):
        slopes = {}
        for action in ("circle", "bounce"):
            sound = synth.action_sound(
                action, "studio", np.random.default_rng(seed), times
            )
            _, _, power = synth.signal.spectrogram(sound, 16000, nperseg=1024)
            peak, loud = power.argmax(0), power.max(0) > 0.2 * power.max()
            steps = np.diff(peak)[loud[1:] & loud[:-1]]
            slopes[action] = np.sign(steps[np.abs(steps) < 8]).sum()
        assert slopes["circle"] > 0 > slopes["bounce"]


# ------------------------------------------------------------------ sound


@pytest.mark.parametrize("domain", DOMAINS)
def test_audio_difficulty_lowers_the_signal_to_noise_ratio(domain):
    ratios, masking = [], []
    for difficulty in (0.0, 0.25, 0.5, 0.75, 1.0):
        config = SynthConfig(audio_difficulty=difficulty)
        sounds = [render_audio(config, domain, "train", i) for i in range(6)]
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


def test_waveform_is_the_scaled_sum_of_its_layers():
    sound = render_audio(SynthConfig(), "street", "test", 3)
    wave = sound.mix()
    assert wave.dtype == np.float32 and wave.shape == (32000,)
    total = sound.event + sound.distractors + sound.noise
    np.testing.assert_allclose(wave, sound.gain * total, atol=1e-6)
    assert 0.3 <= np.abs(wave).max() <= 0.95
    assert abs(np.sqrt(np.mean(sound.event**2)) - 1) < 1e-9


# ------------------------------------------------------------------ existing folders


def test_complete_data_set_is_left_alone(made):
    before = times_written(made)
    assert dataset_state(made, SMALL) == "complete"
    meta = generate(made, SMALL, workers=2, progress=False)
    assert times_written(made) == before
    assert meta["counts"]["sketch"] == {"train": 4, "test": 2}


def test_lost_files_are_made_again(made, tmp_path):
    generate(tmp_path, SMALL, workers=1, progress=False)
    lost = [
        tmp_path / "street" / "videos" / "swing_0001.mp4",
        tmp_path / "sketch" / "flow" / "bounce_0002_flow_y.mp4",
        tmp_path / "Synth_Splits" / "Synth_test_only_studio.csv",
    ]
    before = times_written(tmp_path / "studio")
    for file in lost:
        file.unlink()
    assert dataset_state(tmp_path, SMALL) == "partial"
    generate(tmp_path, SMALL, workers=1, progress=False)
    assert contents(tmp_path) == contents(made)
    assert times_written(tmp_path / "studio") == before


def test_killed_generation_goes_on_where_it_ended(made, tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=generate,
        args=(tmp_path, SMALL),
        kwargs=dict(workers=1, progress=False),
    )
    process.start()
    deadline = time.monotonic() + 30
    while len(list(tmp_path.rglob("*.mp4"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "synth.json").exists()
    assert dataset_state(tmp_path, SMALL) == "partial"
    leftover = tmp_path / "studio" / "videos" / ".bounce_0000.mp4.1.tmp"
    leftover.write_bytes(b"half a file")
    before = {
        name: stamp
        for name, stamp in times_written(tmp_path).items()
        if name.endswith((".mp4", ".wav"))
    }
    assert len(before) >= 5

    generate(tmp_path, SMALL, workers=2, progress=False)
    assert contents(tmp_path) == contents(made)
    after = times_written(tmp_path)
    assert {name: after[name] for name in before} == before


def test_failure_names_the_clip(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(synth, "write_video", fail)
    with pytest.raises(RuntimeError, match="clip 0 of studio/train: disk full"):
        generate(tmp_path, SMALL, workers=1, progress=False)
    assert not list(tmp_path.rglob("*.tmp"))


def test_other_parameters_are_refused_then_forced(tmp_path):
    config = dataclasses.replace(SMALL, domains=("studio", "sketch"))
    generate(tmp_path, config, workers=1, progress=False)
    keep = tmp_path / "notes.txt"
    keep.write_text("mine")
    other = dataclasses.replace(config, seed=5, domains=("street", "sketch"))
    assert dataset_state(tmp_path, other) == "different"
    with pytest.raises(FileExistsError, match="seed 0 there, 5 asked for.*--force"):
        generate(tmp_path, other, workers=1, progress=False)
    assert dataset_state(tmp_path, config) == "complete"
    meta = generate(tmp_path, other, workers=1, force=True, progress=False)
    assert meta["seed"] == 5 and dataset_state(tmp_path, other) == "complete"
    assert not (tmp_path / "studio").exists() and keep.read_text() == "mine"


def test_another_generator_version_is_another_data_set(made, tmp_path):
    meta = json.loads((made / "synth.json").read_text()) | {"generator_version": 0}
    (tmp_path / "synth.json").write_text(json.dumps(meta))
    with pytest.raises(FileExistsError, match="generator version 0 there, 1 here"):
        generate(tmp_path, SMALL, workers=1, progress=False)


def test_folders_of_others_are_never_touched(tmp_path):
    (tmp_path / "street").mkdir()
    (tmp_path / "street" / "photo.jpg").write_bytes(b"x")
    for force in (False, True):
        with pytest.raises(FileExistsError, match="not made by this generator"):
            generate(tmp_path, SMALL, workers=1, force=force, progress=False)
    assert [p.name for p in tmp_path.rglob("*")] == ["street", "photo.jpg"]


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(seed=-1), "seed: got -1, needs an integer from 0"),
        (dict(num_classes=7), "num_classes: got 7, needs an integer from 2 to 6"),
        (dict(num_classes=1), "num_classes: got 1, needs an integer from 2 to 6"),
        (dict(train_per_class=0), "train_per_class: got 0, needs an integer from 1"),
        (dict(test_per_class=2.5), "test_per_class: got 2.5, needs an integer from 1"),
        (dict(size=65), "size: got 65, needs an even number .* such as 66"),
        (dict(size=16), "size: got 16, needs an integer from 32"),
        (dict(frames=True), "frames: got True, needs an integer from 4"),
        (dict(fps=100), "frames: got 32 at 100 fps = 0.32 s, .* 50 frames"),
        (dict(sample_rate=4000), "sample_rate: got 4000, needs an integer from 8000"),
        (dict(spurious=1.5), "spurious: got 1.5, needs a number from 0 to 1"),
        (dict(audio_difficulty=float("nan")), "audio_difficulty: got nan"),
        (dict(missing_audio="all"), "missing_audio: got 'all'"),
        (dict(flow_bound=0), "flow_bound: got 0, needs a positive number"),
        (dict(domains=("studio", "moon")), "domains: .*'moon'.*'studio', 'street'"),
        (dict(domains="sketch"), "domains: got 'sketch', needs a non-repeating"),
        (dict(target="moon"), "target: got 'moon', needs one of the domains"),
        (dict(target=DOMAINS), "target: .* leaves no source"),
        (dict(domains=("sketch",)), "target: got 'sketch', which leaves no source"),
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


def test_bad_workers(tmp_path):
    with pytest.raises(ValueError, match="workers: got 0, needs an integer from 1"):
        generate(tmp_path, SMALL, workers=0)


# ------------------------------------------------------------------ command line


@pytest.fixture(scope="module")
def tool():
    file = Path(__file__).parents[2] / "tools" / "data" / "make_synth_action.py"
    spec = importlib.util.spec_from_file_location("make_synth_action", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line_makes_the_same_files(tool, made, tmp_path, capsys):
    arguments = (
        f"{tmp_path} --num-classes 2 --train-per-class 2 --test-per-class 1 --size 32 "
        "--frames 16 --missing-audio 0.25"
    ).split()
    assert tool.main(arguments) == 0
    captured = capsys.readouterr()
    assert "made in" in captured.out and "sketch" in captured.out
    assert contents(tmp_path) == contents(made)
    assert tool.main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert tool.main([*arguments, "--seed", "1"]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_command_line_defaults_are_the_configs(tool):
    args = vars(tool.parse_args(["out"]))
    for field in dataclasses.fields(SynthConfig):
        value = args[field.name]
        expected = getattr(SynthConfig(), field.name)
        if field.name in ("domains", "target"):
            expected = [expected] if isinstance(expected, str) else list(expected)
        assert value == expected


def test_command_line_reports_bad_values(tool, tmp_path, capsys):
    assert tool.main([str(tmp_path), "--spurious", "3", "--target", "moon"]) == 2
    error = capsys.readouterr().err
    assert "spurious: got 3.0" in error and "target: got 'moon'" in error
