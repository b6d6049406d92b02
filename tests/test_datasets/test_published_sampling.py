"""HAC as the published loaders read it, against a plain decode written from the facts.

The reference decodes whole files with PyAV and never meets the transforms: N frames
count as N - 1; a test clip of L frames every i starts at ``(N - 1 - L i + 1) // 2``, or
at 0 and loops; sampled frame j is decoded as frame j - 1, 0 as the last; sound is cut
from ``inds[0] / 24`` to ``inds[-1] / 24`` s, before that shift.
"""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from mmaction.registry import DATASETS
from mmengine.config import Config
from scipy import signal

import media
from mmaction_mbcd.datasets.transforms import (
    LoadWaveform,
    OpenVideo,
    SampleClip,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "mbcd"
# Frames, frames per second, seconds of sound.
CLIPS = dict(
    usual=(90, 24, 4.0),
    odd=(91, 24, 4.0),
    fast=(150, 60, 2.5),  # sound ends before frame 64 at 24 frames per second
    window=(65, 30, 3.0),  # 64 of its frames count: the window exactly
    short=(40, 24, 2.0),  # loops
    nothing=(32, 24, 2.0),  # loops, and ends on the frame that it begins with
)
SIZE = (48, 72)  # pixels


@pytest.fixture(scope="module")
def hac(tmp_path_factory):
    root = tmp_path_factory.mktemp("hac")
    random = np.random.default_rng(0)
    names = list(CLIPS)
    for seed, (name, (count, fps, seconds)) in enumerate(CLIPS.items()):
        options = {"crf": "5", "bf": "2", "g": "12", "preset": "veryfast"}
        for place, what in enumerate(("videos", "flow/x", "flow/y")):
            folder, _, axis = what.partition("/")
            stem = f"{name}_flow_{axis}" if axis else name
            frames = media.smooth_frames(count, 10 * seed + place, *SIZE)
            path = root / "cartoon" / folder / f"{stem}.mp4"
            media.write_video(path, frames, fps=fps, options=options)
        noise = random.normal(0, 0.2, int(16000 * seconds))
        media.write_wav(root / "cartoon" / "audio" / f"{name}.wav", noise)
    media.write_split(root, "cartoon", "test", [(f"{n}.mp4", 1) for n in names])
    media.write_split(root, "cartoon", "train", [(f"{n}.mp4", 1) for n in names])
    return root


def whole(path):
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


def sampled(count, length, interval):
    count -= 1
    free = count - length * interval + 1
    start = int(free / 2) if free > 0 else 0
    return np.mod(start + np.arange(length) * interval, count)


def look(frames, crop):
    """Short side 256, bilinear; the middle square."""
    shown = []
    for frame in frames:
        height, width = frame.shape[:2]
        scale = 256 / min(height, width)
        size = (int(width * scale + 0.5), int(height * scale + 0.5))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
        top, left = (frame.shape[0] - crop) // 2, (frame.shape[1] - crop) // 2
        shown.append(frame[top : top + crop, left : left + crop])
    return np.stack(shown)


def spectrogram(samples, begin, end, rate=16000):
    part = samples[round(begin * rate) : round(end * rate)][: 10 * rate]
    part = part if len(part) else np.zeros(10 * rate)
    part = np.tile(part, -(-10 * rate // len(part)))[: 10 * rate].clip(-1, 1)
    _, _, power = signal.spectrogram(part, rate, nperseg=512, noverlap=353)
    log = np.log(power + 1e-7)
    return (log - log.mean()) / (log.std() + 1e-9)


def reference(root, name, modalities):
    folder, expected = root / "cartoon", {}
    with av.open(str(folder / "audio" / f"{name}.wav")) as container:
        decoded = [f.to_ndarray() for f in container.decode(audio=0)]
    samples = np.concatenate(decoded, axis=1)[0] / 32768
    frames = whole(folder / "videos" / f"{name}.mp4")
    inds = sampled(len(frames), 32, 2)
    clip = look([frames[i - 1] for i in inds], 224)
    expected["video"] = clip.transpose(3, 0, 1, 2)
    pair = []
    for axis in "xy":
        flow = whole(folder / "flow" / f"{name}_flow_{axis}.mp4")
        flow_inds = sampled(len(flow), 8, 4)
        grey = [cv2.cvtColor(flow[i - 1], cv2.COLOR_RGB2GRAY) for i in flow_inds]
        pair.append(look(grey, 256))
    expected["flow"] = np.stack(pair)
    span = inds if "video" in modalities else flow_inds
    expected["audio"] = spectrogram(samples, span[0] / 24, span[-1] / 24)[None]
    return {m: expected[m] for m in modalities}


def dataset(root, config, **changes):
    cfg = Config.fromfile(str(CONFIGS / config)).test_dataloader.dataset
    changes = dict(data_root=str(root), target="cartoon", eval_split="test") | changes
    return DATASETS.build(dict(cfg) | changes)


@pytest.mark.parametrize(
    ("config", "modalities"),
    [
        ("hac/mbcd.py", ("video", "audio", "flow")),
        pytest.param(
            "hac/published/simmmdg.py", ("flow", "audio"), marks=pytest.mark.long
        ),
    ],
)
def test_test_mode_equals_the_published_loader(hac, config, modalities):
    data = dataset(hac, config, modalities=modalities)
    for index, name in enumerate(CLIPS):
        item = data[index]
        assert all(item["data_samples"].present.values())
        for modality, expected in reference(hac, name, modalities).items():
            got = item["inputs"][modality].numpy()
            error = np.abs(got.astype(float) - expected).max()
            assert error <= (1e-4 if modality == "audio" else 0), (name, modality)


def test_these_clips_reach_every_case():
    """The last frame is decoded, sound runs out, and a clip ends where it begins."""
    assert sampled(40, 32, 2)[0] == 0  # is decoded as the last
    fast = sampled(150, 32, 2)
    assert fast[0] / 24 < 2.5 < fast[-1] / 24
    nothing = sampled(32, 32, 2)
    assert nothing[0] == nothing[-1] == 0


def test_a_window_behind_the_sound_is_heard_as_silence(tmp_path):
    """60 frames per second: frame 140 stands at 5.8 s for the published loader."""
    media.write_wav(tmp_path / "a.wav", media.tone(2.5))
    chosen = np.arange(140, 148, 2)
    other = dict(frame_inds=chosen - 1, sampled_inds=chosen, avg_fps=60.0)
    row = dict(filename=str(tmp_path / "a.wav"), sampling="published")
    row["others"] = dict(video=other | dict(sampling="published"))
    heard = LoadWaveform(span="frames")(row)["audios"]
    assert len(heard) and not heard.any()
    # By the file's own rate they stand at 2.3 s, and there is sound.
    row |= dict(sampling="repaired", others=dict(video=other))
    heard = LoadWaveform(span="frames")(row)
    assert heard["audio_span"] == pytest.approx((139 / 60, 146 / 60), abs=1 / 16000)
    assert heard["audios"].any()


def test_repaired_sampling_is_one_switch_away(hac):
    repaired = dataset(hac, "hac/mbcd.py", sampling="repaired")
    published = dataset(hac, "hac/mbcd.py")
    differs = set()
    for index, (name, (count, *_)) in enumerate(CLIPS.items()):
        frames = whole(hac / "cartoon" / "videos" / f"{name}.mp4")
        free = count - 64 + 1
        start = int(free / 2) if free > 0 else 0
        inds = np.mod(start + np.arange(32) * 2, count)
        expected = look([frames[i] for i in inds], 224).transpose(3, 0, 1, 2)
        got = repaired[index]["inputs"]["video"].numpy()
        assert np.array_equal(got, expected), name
        if not np.array_equal(got, published[index]["inputs"]["video"].numpy()):
            differs.add(name)
    assert differs == set(CLIPS)


def test_centres_of_both_versions():
    """By hand: N = 100 frames, 8 of them every 4th."""
    for centre, start in {"1.x": 35, "0.x": 34}.items():
        clip = SampleClip(8, 4, test_mode=True, centre=centre)
        found = clip(dict(total_frames=100, start_index=5))["frame_inds"]
        assert found.tolist() == [5 + start + 4 * i for i in range(8)]
    # Two clips of a 0.x transform begin in the middle of each half of the starts.
    two = SampleClip(8, 4, num_clips=2, test_mode=True, centre="0.x")
    found = two(dict(total_frames=100, start_index=0))["frame_inds"]
    assert found.reshape(2, 8)[:, 0].tolist() == [17, 51]
    with pytest.raises(ValueError, match=r"'1.x', '0.x'.*got '2.x'"):
        SampleClip(8, 4, centre="2.x")
    with pytest.raises(ValueError, match="twice_sample"):
        SampleClip(8, 4, twice_sample=True, centre="0.x")


def test_a_segment_of_the_row_is_kept(tmp_path):
    """The shift is the whole file's: a row that brings its own range has none."""
    media.write_video(tmp_path / "a.mp4", media.numbered_frames(20))
    row = dict(filename=str(tmp_path / "a.mp4"), start_index=3, total_frames=10)
    row |= dict(modality="RGB", sampling="published")
    results = SampleClip(4, 2, test_mode=True, centre="0.x")(OpenVideo()(row))
    assert results["frame_inds"].tolist() == [4, 6, 8, 10]


def test_unknown_sampling(hac):
    with pytest.raises(ValueError, match="sampling must be one of"):
        dataset(hac, "hac/mbcd.py", sampling="exact")
