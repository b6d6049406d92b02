import numpy as np
import pytest

from media import write_video
from mmaction_mbcd.datasets.transforms import DecodeVideo, OpenVideo
from mmaction_mbcd.datasets.transforms.corruptions import VIDEO_CORRUPTIONS
from mmaction_mbcd.datasets.transforms.corruptions.severities import sample_generator
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.flow_coding import dequantize_flow
from mmaction_mbcd.preparation.corruption import VideoCorruption
from mmaction_mbcd.preparation.flow import FlowExtraction, open_video
from tests_support import load_tool

main = load_tool("data/corrupt_videos").main


def moving(count, dx, height=64, width=96):
    """A coarse random pattern that moves to the right, ``dx`` pixels a frame."""
    coarse = np.random.default_rng(0).integers(40, 215, (height // 8, 40, 3), np.uint8)
    wide = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    return np.array([wide[:, 100 - dx * t :][:, :width] for t in range(count)])


@pytest.fixture
def videos(tmp_path):
    write_video(tmp_path / "in" / "human" / "a.mp4", moving(6, dx=2), fps=12)
    return tmp_path / "in"


def decoded(path):
    results = dict(filename=str(path), start_index=0, modality="RGB", sample_id="a")
    results = OpenVideo()(results)
    results["frame_inds"] = np.arange(results["total_frames"])
    return np.array(DecodeVideo()(results)["imgs"]), results["avg_fps"]


def run(*args):
    return main([str(a) for a in args])


@pytest.mark.parametrize("kind", ["gaussian_noise", "fog", "frame_drop"])
def test_a_copy_is_the_corrupted_video(kind, videos, tmp_path):
    out = tmp_path / "out"
    options = ["--kind", kind, "--severity", 3, "--short-side", 0, "--seed", 5]
    assert run(videos, out, *options, "--workers", 1) == 0
    with open_video(videos / "human" / "a.mp4") as (frames, _):
        rng = sample_generator(5, "a", "RGB", kind)
        expected = np.array(VIDEO_CORRUPTIONS[kind](list(frames), 3, rng), float)
    got, rate = decoded(out / "human" / "a.mp4")
    assert got.shape == expected.shape and rate == 12
    # What the encoder loses is small beside what the corruption changes.
    with open_video(videos / "human" / "a.mp4") as (frames, _):
        changed = np.square(np.array(list(frames)) - expected).mean()
    assert np.square(got - expected).mean() < 0.02 * changed + 4


def test_numbers_in_pixels_of_the_file_keep_its_size(videos, tmp_path):
    source = videos / "human" / "a.mp4"
    VideoCorruption("defocus_hac_c", 1).write(source, (tmp_path / "kept.mp4",))
    VideoCorruption("defocus", 1).write(source, (tmp_path / "resized.mp4",))
    assert decoded(tmp_path / "kept.mp4")[0].shape[1:3] == (64, 96)
    assert decoded(tmp_path / "resized.mp4")[0].shape[1:3] == (256, 384)


def test_flow_of_the_copy_is_that_of_what_is_seen(videos, tmp_path):
    """Lost frames stop the motion; the next frame that arrives makes up for it."""
    options = ["--kind", "frame_drop", "--severity", 4, "--short-side", 0]
    assert run(videos, tmp_path / "out", *options, "--workers", 1) == 0
    copy = tmp_path / "out" / "human" / "a.mp4"
    flow = FlowExtraction(method="dis", short_side=None)
    targets = flow.outputs(tmp_path / "flow")
    flow.write(copy, targets)
    grey = decoded(targets[0])[0][..., 0]
    motion = np.median(dequantize_flow(grey, 20.0), axis=(1, 2))
    seen, _ = decoded(copy)
    clean, _ = decoded(videos / "human" / "a.mp4")
    shown = [
        int(np.square(clean - f.astype(float)).mean((1, 2, 3)).argmin()) for f in seen
    ]
    assert sum(a == b for a, b in zip(shown[1:], shown, strict=False)) == 3
    np.testing.assert_allclose(motion, 2 * np.diff(shown), atol=0.4)


def test_what_cannot_work_is_said(videos, tmp_path, capsys):
    with pytest.raises(UsageError, match="no kind 'rain'.*fog"):
        VideoCorruption("rain").check()
    with pytest.raises(UsageError, match="severity .*got 6"):
        VideoCorruption("fog", 6).check()
    with pytest.raises(UsageError, match="short-side: got 8"):
        VideoCorruption("fog", short_side=8).check()
    file = videos / "human" / "a.mp4"
    for source, out in ((videos, videos / ".." / "in"), (file, file.parent)):
        with pytest.raises(SystemExit):
            run(source, out, "--kind", "fog", "--severity", 1)
        assert "would replace the videos" in capsys.readouterr().err
