from fractions import Fraction

import av
import cv2
import decord
import numpy as np
import pytest
import soundfile
import torch
from torchvision.models import optical_flow as raft

from media import write_video
from mmaction_mbcd.datasets.transforms import (
    DecodeFlowFrames,
    DecodeFlowPair,
    OpenFlowPair,
)
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.flow_coding import dequantize_flow, quantize_flow
from mmaction_mbcd.preparation.audio import AudioExtraction
from mmaction_mbcd.preparation.flow import (
    FlowExtraction,
    load_raft,
    open_video,
    optical_flow,
    raft_flow,
    resized_size,
    write_videos,
)
from tests_support import load_tool

BOUND = 8.0
TOLERANCE = 1.5 * BOUND / 127 + 0.05
"""Pixels: half a grey level of rounding, one of the 219 levels that video has, and what
the estimators are off on smooth texture."""

AS_IT_IS = ["--short-side", "0"]


main = load_tool("data/extract_flow").main


def texture(x, y):
    """Grey values of a smooth pattern that repeats nowhere near, at real positions."""
    random = np.random.default_rng(3)
    grey = np.zeros(np.broadcast(x, y).shape)
    for _ in range(40):
        a, b = random.uniform(-0.7, 0.7, 2)
        grey += np.sin(a * x + b * y + random.uniform(0, 6.3))
    return np.clip(128 + 20 * grey, 0, 255)


def moving(count, dx, dy, height=64, width=96, still_left=0):
    """``count`` frames of the texture, moving right and down by (dx, dy) a frame."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    moves = x >= still_left
    return [
        np.rint(texture(x - dx * t * moves, y - dy * t * moves)).astype(np.uint8)
        for t in range(count)
    ]


def read_pair(x, y):
    """``(T, H, W, 2)`` uint8 of two flow videos, by the transforms of training."""
    results = dict(filename=(str(x), str(y)), start_index=0, modality="Flow")
    results = OpenFlowPair()(results)
    results["frame_inds"] = np.arange(results["total_frames"])
    return np.stack(DecodeFlowPair()(results)["imgs"])


def read_folders(u, v, count):
    """``(T, H, W, 2)`` uint8 of two folders, by the transforms of training."""
    results = dict(
        filename=(str(u), str(v)),
        filename_tmpl="frame_{:010d}.jpg",
        frame_inds=np.arange(1, count + 1),
        modality="Flow",
    )
    return np.stack(DecodeFlowFrames()(results)["imgs"])


def inner(flow, border=12):
    """Median of each frame and component away from the edges, ``(T, 2)``."""
    flow = flow[:, border:-border, border:-border]
    return np.median(flow, axis=(1, 2))


def extracted(folder, frames, layout="mp4", fps=10, options=None, **settings):
    """``(T - 1, H, W, 2)`` uint8 that is made of a video of these frames."""
    write_video(folder / "clip.mp4", frames, fps=fps, options=options)
    targets = folder / f"{layout}_x", folder / f"{layout}_y"
    settings = dict(short_side=None, bound=BOUND, method="dis") | settings
    extraction = FlowExtraction(layout=layout, **settings)
    extraction.write(folder / "clip.mp4", targets)
    if layout == "mp4":
        return read_pair(*targets)
    pairs = (len(frames) - 1) // extraction.fps_divisor
    return read_folders(*targets, pairs)


# ------------------------------------------------------------------ displacement


@pytest.mark.parametrize("first", ["video", "audio"])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_no_frame_is_lost_whichever_stream_is_the_first(tmp_path, name, first):
    """The decoder holds frames back (B frames) until it is flushed at the end."""
    source, count = tmp_path / name, 30
    with av.open(str(source), "w") as container:
        streams = {}
        for kind in sorted(("video", "audio"), key=lambda kind: kind != first):
            if kind == "video":
                options = {"bf": "3", "refs": "4"}
                video = container.add_stream("libx264", rate=10, options=options)
                video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
                streams[kind] = video
            else:
                streams[kind] = container.add_stream("aac", rate=16000, layout="mono")
        for frame in moving(count, 1, 1):
            picture = av.VideoFrame.from_ndarray(frame, format="gray")
            container.mux(streams["video"].encode(picture.reformat(format="yuv420p")))
        container.mux(streams["video"].encode())
        sound = np.sin(np.arange(3 * 16000) / 8).astype(np.float32)[None] / 2
        heard = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
        heard.sample_rate = 16000
        container.mux(streams["audio"].encode(heard))
        container.mux(streams["audio"].encode())
    with av.open(str(source)) as container:
        assert container.streams[0].type == first
        samples = sum(f.samples for f in container.decode(audio=0))
    out = tmp_path / "flow"
    assert main([str(source), str(out), "--method", "dis", *AS_IT_IS]) == 0
    with av.open(str(out / "clip_flow_x.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == count - 1
    AudioExtraction().write(source, (tmp_path / "a.wav",))
    # Up to two frames of the encoder's priming stand before the picture or are trimmed.
    heard = soundfile.info(tmp_path / "a.wav").frames
    assert abs(heard - samples) <= 2048


@pytest.mark.parametrize("method", ["tvl1", "dis"])
@pytest.mark.parametrize("layout", ["mp4", "frames"])
def test_known_translation_comes_back_from_the_files(tmp_path, method, layout):
    dx, dy = 2.5, -1.25
    write_video(tmp_path / "in/sub/clip.mp4", moving(4, dx, dy))
    args = ["--method", method, "--layout", layout, "--bound", str(BOUND), *AS_IT_IS]
    out = tmp_path / "out"
    assert main([str(tmp_path / "in"), str(out), "--workers", "1", *args]) == 0
    if layout == "mp4":
        pixels = read_pair(*(out / f"sub/clip_flow_{axis}.mp4" for axis in "xy"))
        made = {"sub/clip_flow_x.mp4", "sub/clip_flow_y.mp4"}
    else:
        pixels = read_folders(out / "sub/clip/u", out / "sub/clip/v", 3)
        names = [f"frame_{i:010d}.jpg" for i in (1, 2, 3)]
        made = {f"sub/clip/{c}/{name}" for c in "uv" for name in names}
    found = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert found == made | {"flow_settings.json"}
    assert pixels.shape == (3, 64, 96, 2)  # four frames
    flow = inner(dequantize_flow(pixels, BOUND))
    assert np.abs(flow - [dx, dy]).max() < TOLERANCE


def test_flow_stands_where_the_motion_is(tmp_path):
    pixels = extracted(tmp_path, moving(3, 1.5, 1, still_left=64))
    flow = dequantize_flow(pixels, BOUND)
    assert np.abs(inner(flow[:, :, :52]) - 0).max() < TOLERANCE
    assert np.abs(inner(flow[:, :, 68:], 8) - [1.5, 1]).max() < TOLERANCE


@pytest.mark.parametrize(("layout", "tolerance"), [("mp4", 1), ("frames", 1.5)])
def test_files_hold_the_quantised_flow_of_an_estimator(tmp_path, layout, tolerance):
    still = [moving(1, 0, 0)[0]] * 3
    settings = dict(layout=layout, method="tvl1", bound=20)
    # No motion is exactly 128.
    assert (extracted(tmp_path, still, options={"crf": "1"}, **settings) == 128).all()
    pixels = extracted(tmp_path, moving(3, 3, 2, 48, 64), **settings)
    reader = decord.VideoReader(str(tmp_path / "clip.mp4"))
    grey = [cv2.cvtColor(f.asnumpy(), cv2.COLOR_RGB2GRAY) for f in reader]
    estimator = cv2.optflow.DualTVL1OpticalFlow_create()
    expected = [
        np.clip(np.round(estimator.calc(a, b, None) / 20 * 127), -127, 127) + 128
        for a, b in zip(grey, grey[1:], strict=False)
    ]
    error = np.abs(pixels - np.stack(expected))
    assert error.mean() < tolerance and np.quantile(error, 0.99) <= 3


def test_videos_give_the_grey_values_back_without_a_bias(tmp_path):
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 32, 256))
    pairs = np.stack([ramp, ramp[:, :, ::-1]], axis=-1)
    targets = tmp_path / "x", tmp_path / "y"
    assert write_videos(targets, iter(pairs), Fraction(10)) == 3
    error = read_pair(*targets).astype(int) - pairs
    assert np.abs(error).max() == 1  # 256 values on 220 levels
    assert np.abs(error).mean() < 0.16 and abs(error.mean()) < 0.02
    assert (error[:, :, 128, 0] == 0).all()
    assert write_videos(targets, iter([]), Fraction(10)) == 0


@pytest.mark.parametrize("bound", [1.0, 8.0, 20.0])
def test_quantisation(bound):
    flow = np.linspace(-1.2 * bound, 1.2 * bound, 4001)
    pixels = quantize_flow(flow, bound)
    assert pixels[[0, 2000, -1]].tolist() == [1, 128, 255]
    error = np.abs(dequantize_flow(pixels, bound) - np.clip(flow, -bound, bound))
    assert error.max() <= bound / 254 * 1.0001
    # dense_flow's: 255 (v - L) / (H - L), rounded.
    dense = np.rint(255 * (np.clip(flow, -bound, bound) + bound) / (2 * bound))
    assert np.abs(pixels - dense).max() == 1


# ------------------------------------------------------------------ time and size


def test_divisor_doubles_the_flow_and_halves_the_rate(tmp_path):
    rate = Fraction(30000, 1001)
    pixels = extracted(tmp_path, moving(5, 1, -0.5), fps=rate, fps_divisor=2)
    flow = inner(dequantize_flow(pixels, BOUND))
    assert flow.shape == (2, 2)  # from frame 0 to 2, from 2 to 4
    assert np.abs(flow - [2, -1]).max() < TOLERANCE
    for axis in "xy":
        with av.open(str(tmp_path / f"mp4_{axis}")) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == rate / 2
            assert stream.codec_context.name == "h264"
            assert stream.format.name == "yuv420p"


def test_flow_is_in_pixels_of_the_resized_picture(tmp_path):
    frames = moving(3, 4, -2, height=96, width=130)
    pixels = extracted(tmp_path, frames, short_side=48)
    assert pixels.shape[1:3] == (48, 64)  # 65 is odd
    flow = inner(dequantize_flow(pixels, BOUND))
    assert np.abs(flow - [4 * 64 / 130, -1]).max() < TOLERANCE


def test_the_same_content_has_the_same_flow_at_every_resolution(tmp_path):
    """A picture that moves by 1 % of its width, shown in three sizes."""
    found, as_it_is = {}, {}
    for height in (128, 256, 512):
        scale = height / 128
        y, x = np.mgrid[0:height, 0 : height * 3 // 2] / scale
        frames = [np.rint(texture(x - 2 * t, y + t)).astype(np.uint8) for t in range(3)]
        options = {"crf": "8", "bf": "0"}
        for kept, into in ((256, found), (None, as_it_is)):
            pixels = extracted(tmp_path, frames, options=options, short_side=kept)
            assert min(pixels.shape[1:3]) == (kept or height)
            into[height] = inner(pixels, 24).mean(axis=0) - 128
    # (4, -2) pixels of 256 are (63.5, -31.75) grey levels.
    for levels in found.values():
        assert np.abs(levels - [63.5, -31.75]).max() < 2.5
    ratio = as_it_is[512] / as_it_is[128]
    assert np.abs(ratio - 4).max() < 0.4


@pytest.mark.parametrize(
    ("size", "short_side", "even", "expected"),
    [
        ((360, 640), 256, False, (256, 455)),
        ((360, 640), 256, True, (256, 454)),
        ((640, 360), 255, True, (452, 254)),
        ((97, 65), None, True, (96, 64)),
        ((97, 65), None, False, (97, 65)),
        ((100, 50), 100, False, (200, 100)),
    ],
)
def test_resized_size(size, short_side, even, expected):
    assert resized_size(*size, short_side, even) == expected


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_video_that_is_shown_turned_has_turned_flow(tmp_path, angle):
    shown = moving(3, 2, -1)
    stored = [np.rot90(frame, -angle // 90) for frame in shown]
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.height, stream.width = stored[0].shape
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        stream.set_display_rotation(angle)
        for frame in stored:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "gray")
            container.mux(stream.encode(picture.reformat(format="yuv420p")))
        container.mux(stream.encode())
    with open_video(tmp_path / "clip.mp4") as (frames, rate):
        frames = np.stack(list(frames))
    assert rate == 10
    assert np.abs(frames[..., 0] - np.stack(shown).astype(float)).max() < 8
    reader = decord.VideoReader(str(tmp_path / "clip.mp4"))
    by_decord = reader.get_batch(range(3)).asnumpy()
    np.testing.assert_array_equal(frames, by_decord)
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    flow = estimator.calc(grey[0], grey[1], None)
    made = next(optical_flow(iter(frames), FlowExtraction(method="dis")._method()))
    np.testing.assert_array_equal(made, flow)
    assert np.abs(inner(made[None]) - [2, -1]).max() < 0.1


# ------------------------------------------------------------------ faults


def test_short_and_damaged_videos_are_reported(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    write_video(folder / "good.mp4", moving(2, 1, 1))
    write_video(folder / "one.mp4", moving(1, 1, 1))
    for name, options, share in (("a.mp4", None, 0.7), ("b.mkv", {}, 0.6)):
        write_video(tmp_path / name, moving(30, 1, 1), fps=10, options=options)
        data = (tmp_path / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(data[: int(share * len(data))])
    (folder / "empty.webm").touch()
    (folder / "text.avi").write_text("no video at all")
    args = [str(folder), str(out), "--workers", "1", "--method", "dis", *AS_IT_IS]
    assert main(args) == 1
    reasons = dict(
        line.removeprefix(f"failed: {folder}/").split(": ", 1)
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("failed: ")
    )
    cut = {"cut_a.mp4", "cut_b.mkv"}
    assert reasons.keys() == cut | {"one.mp4", "empty.webm", "text.avi"}
    assert reasons["one.mp4"] == "it has fewer than two frames, and flow needs two"
    assert "header promises 3.0 s, it holds" in reasons["cut_b.mkv"]
    assert {p.name for p in out.iterdir()} == {
        "good_flow_x.mp4",
        "good_flow_y.mp4",
        "flow_settings.json",
    }
    # The divisor leaves one frame of two.
    out = tmp_path / "half"
    assert main([str(folder / "good.mp4"), str(out), *args[2:], "--fps-divisor=2"]) == 1
    assert "fewer than two frames at --fps-divisor 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--bound", "0"], "--bound: got 0.0"),
        (["--bound", "nan"], "--bound: got nan"),
        (["--short-side", "4"], "--short-side: got 4"),
        (["--fps-divisor", "0"], "--fps-divisor: got 0"),
        (["--device", "cuda"], "--method tvl1 runs on the CPU"),
        (["--raft-weights", "x"], "--raft-weights has no meaning with --method tvl1"),
        (["--method", "raft", "--raft-weights", "absent"], "there is no file absent"),
        (["--method", "raft", "--device", "tpu9"], "--device: cannot use 'tpu9'"),
        (["--method", "brox"], "invalid choice: 'brox'"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(tmp_path, capsys, args, message):
    write_video(tmp_path / "clip.mp4", moving(2, 1, 1))
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "clip.mp4"), str(tmp_path / "out"), *args])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last and message in last
    assert not (tmp_path / "out").exists()


def test_all_wrong_settings_are_named_together(monkeypatch):
    monkeypatch.delattr(cv2, "optflow")
    monkeypatch.setattr(av.codec, "codecs_available", set())
    with pytest.raises(UsageError) as error:
        FlowExtraction(bound=-1).check()
    for part in ("--bound", "needs libx264", "opencv-contrib-python"):
        assert part in str(error.value)


def test_flow_that_is_not_finite_is_refused(tmp_path, monkeypatch):
    def broken(self):
        return lambda a, b: np.full((*a.shape[:2], 2), np.nan, np.float32)

    monkeypatch.setattr(FlowExtraction, "_method", broken)
    with pytest.raises(RuntimeError, match="tvl1's flow no. 1 is not finite"):
        extracted(tmp_path, moving(2, 1, 1), method="tvl1")


# ------------------------------------------------------------------ RAFT


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory):
    torch.manual_seed(1)
    model = raft.raft_small(weights=None)
    path = tmp_path_factory.mktemp("raft") / "small.pth"
    torch.save(model.state_dict(), path)
    return path


def test_raft_pads_with_the_border_and_cuts_off(small_weights):
    model = load_raft(str(small_weights), "cpu")
    assert not model.training
    a, b = (np.repeat(f[..., None], 3, -1) for f in moving(2, 3, 1, 100, 140))
    flow = raft_flow(model, a, b)
    assert flow.shape == (100, 140, 2) and flow.dtype == np.float32
    padded = [
        torch.tensor(np.pad(f, ((0, 28), (0, 4), (0, 0)), mode="edge").astype("f4"))
        for f in (a, b)
    ]
    with torch.no_grad():
        pair = [f.permute(2, 0, 1)[None] / 127.5 - 1 for f in padded]
        expected = model(*pair)[-1][0, :, :100, :140].permute(1, 2, 0).numpy()
    assert expected.std() > 0
    np.testing.assert_allclose(flow, expected, rtol=1e-4, atol=1e-4)


def test_raft_from_the_command_line(tmp_path, small_weights):
    write_video(tmp_path / "clip.mp4", moving(3, 1, 1, 66, 90))
    args = ["--method", "raft", "--raft-weights", str(small_weights), "--bound", "50"]
    args += AS_IT_IS
    assert main([str(tmp_path / "clip.mp4"), str(tmp_path / "out"), *args]) == 0
    pixels = read_pair(*(tmp_path / f"out/clip_flow_{axis}.mp4" for axis in "xy"))
    assert pixels.shape == (2, 66, 90, 2)
    settings = (tmp_path / "out/flow_settings.json").read_text()
    assert '"raft_weights": "small.pth"' in settings and "device" not in settings


def test_raft_large_is_known_by_its_keys(tmp_path):
    torch.save(raft.raft_large(weights=None).state_dict(), tmp_path / "large.pth")
    model = load_raft(str(tmp_path / "large.pth"), "cpu")
    assert model.mask_predictor is not None
    load_raft.cache_clear()


@pytest.mark.parametrize("content", [b"", b"text", {"conv.weight": torch.ones(1)}, 3])
def test_raft_weights_that_are_none(tmp_path, content):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UsageError, match=r"w.pth holds no state dict.*https://") as e:
        load_raft(str(path), "cpu")
    assert "\n" not in str(e.value)


def test_unreachable_raft_weights(monkeypatch):
    def offline(weights=None, progress=True):
        raise OSError("no route to host")

    monkeypatch.setattr(raft, "raft_large", offline)
    with pytest.raises(UsageError, match=r"no route to host.*raft_large_\S*\.pth else"):
        FlowExtraction(method="raft").prepare()
