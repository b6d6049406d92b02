"""Optical flow of videos, quantised and stored as the datasets read it.

The chain of :meth:`FlowExtraction.write`::

    open_video     the pictures of a video, turned and resized
    optical_flow   displacements between neighbours, by TV-L1, DIS or RAFT
    quantize_flow  8 bits a component: -bound, 0, bound become 1, 128, 255
    write_videos   a pair of videos (HAC's layout), or
    write_images   two folders of images (EPIC-Kitchens')

No motion is exactly 128, which is the mean that flow is normalised with, and mirroring
is exact: ``256 - x`` swaps -bound and bound (see ``transforms.mirror_flow``).
dense_flow, which much published flow was made with, puts -bound, 0, bound at 0, 127.5,
255; the two differ by at most one grey level.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import av
import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import optical_flow as raft

from .. import progress
from ..datasets.transforms.readers import upright_image
from ..errors import UsageError
from ..flow_coding import quantize_flow
from .extraction import Extraction, MediaError, read_packets

METHODS = ("tvl1", "dis", "raft")
LAYOUTS = ("mp4", "frames")

SHORT_SIDE = 256
"""Pixels: the published pipelines show flow at this size."""

FRAME_NAME = "frame_{:010d}.jpg"
"""EPIC-Kitchens' names; numbers start at 1."""

JPEG_QUALITY = 95

X264_OPTIONS = {"crf": "8", "preset": "veryfast", "g": "8", "bf": "0"}
"""Near-lossless, without B frames and with a key frame every 8: clips are read at
random places."""

# FFmpeg rounds down when it turns luma (16 to 235) into grey, so does decord. Half a
# level more and the grey values come back without a bias: 128 and most others exactly,
# every seventh off by one.
_LUMA = np.rint(16 + (np.arange(256) + 0.5) * 219 / 255).clip(16, 235).astype(np.uint8)

_RAFT_SMALLEST = 128  # pixels a side: 8 times smaller, and halved three times

Method = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Two neighbours ``(H, W, 3)`` uint8 RGB -> ``(H, W, 2)`` float32 pixels."""


@dataclass(frozen=True)
class FlowExtraction(Extraction):
    """Flow between neighbouring frames: T frames give T - 1.

    A flow frame holds the displacement (right, down) of each pixel from its frame to
    the next one, in pixels of the resized picture.

    Layout ``'mp4'`` (HAC): ``X_flow_x.mp4`` and ``X_flow_y.mp4``, grey. ``'frames'``
    (EPIC-Kitchens): ``X/u/frame_0000000001.jpg`` for x and ``X/v/...`` for y.

    Args:
        method: ``'tvl1'`` (Zach et al. 2007; what most published flow was made with),
            ``'dis'`` (Kroeger et al. 2016; a hundred times faster) or ``'raft'`` (Teed
            and Deng 2020; a network).
        layout: ``'mp4'`` or ``'frames'``.
        bound: Pixels per frame that become 255; beyond it flow is clipped.
        short_side: Pixels of the shorter side after resizing, up or down: flow is in
            pixels of the resized picture, so clips of different sizes would give the
            same motion different values. ``None`` keeps the size. The layout
            ``'mp4'`` makes both sides even, as H.264 needs them.
        fps_divisor: Every how many frames one is used. EPIC's split files count flow
            at half rate: 2.
        device: Where RAFT runs, such as ``'cuda'``.
        raft_weights: A state dict of torchvision's ``raft_large`` or ``raft_small``.
            Defaults to the published weights of ``raft_large``.
    """

    name: ClassVar[str] = "flow"
    unit: ClassVar[str] = "frame pairs"

    method: str = "tvl1"
    layout: str = "mp4"
    bound: float = 20.0
    short_side: int | None = SHORT_SIDE
    fps_divisor: int = 1
    device: str = "cpu"
    raft_weights: str | None = None

    def check(self) -> None:
        """Raises one :class:`UsageError` for all settings that cannot work."""
        if problems := list(self._problems()):
            raise UsageError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        for key, allowed in (("method", METHODS), ("layout", LAYOUTS)):
            if getattr(self, key) not in allowed:
                yield f"--{key}: got {getattr(self, key)!r}, needs one of {allowed}"
        if not 0 < self.bound < math.inf:
            yield f"--bound: got {self.bound}, needs a positive number of pixels"
        if self.short_side is not None and self.short_side < 16:
            yield f"--short-side: got {self.short_side}, needs at least 16 pixels"
        if self.fps_divisor < 1:
            yield f"--fps-divisor: got {self.fps_divisor}, needs an integer from 1"
        if self.layout == "mp4" and "libx264" not in av.codec.codecs_available:
            yield (
                "--layout mp4 needs libx264, which this PyAV was built without; "
                "install PyAV's wheel (`pip install av`), or use --layout frames"
            )
        if self.method == "tvl1" and not hasattr(cv2, "optflow"):
            yield (
                "--method tvl1 needs OpenCV's contributed modules, which OpenCV "
                f"{cv2.__version__} lacks; `pip install opencv-contrib-python`, or use "
                "--method dis"
            )
        if self.method == "raft":
            if self.raft_weights is not None and not Path(self.raft_weights).is_file():
                yield f"--raft-weights: there is no file {self.raft_weights}"
            try:
                torch.empty(1, device=self.device)
            except (RuntimeError, AssertionError) as error:
                yield f"--device: cannot use {self.device!r} ({_first_line(error)})"
        elif self.raft_weights is not None:
            yield f"--raft-weights has no meaning with --method {self.method}"
        elif self.device != "cpu":
            yield (
                f"--device: got {self.device!r}, but --method {self.method} runs on "
                "the CPU; leave it out, or use --method raft"
            )

    def prepare(self) -> None:
        """Loads RAFT once, so that workers find its weights downloaded and sound."""
        if self.method == "raft":
            load_raft(self.raft_weights, "cpu")

    def default_workers(self) -> int:
        """One for RAFT, which uses the whole device or all cores by itself."""
        return 1 if self.method == "raft" else super().default_workers()

    def settings(self) -> dict:
        """Without the device; the weights by the name of their file."""
        settings = super().settings()
        del settings["device"]
        if self.raft_weights is not None:
            settings["raft_weights"] = Path(self.raft_weights).name
        return settings

    def size(self, source: Path) -> int:
        """Pairs of frames by the container's word; 1 where it says nothing."""
        try:
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                rate = stream.average_rate or stream.guessed_rate or 0
                seconds = (container.duration or 0) / av.time_base
                frames = stream.frames or round(seconds * rate)
        except (av.FFmpegError, OSError, IndexError):  # its job will say
            return 1
        return max(-(-frames // self.fps_divisor) - 1, 1)

    def outputs(self, stem: Path) -> tuple[Path, Path]:
        """The x and the y component: two files, or two folders."""
        if self.layout == "frames":
            return stem / "u", stem / "v"
        return tuple(stem.with_name(f"{stem.name}_flow_{axis}.mp4") for axis in "xy")

    def write(self, source: Path, targets: tuple[Path, Path]) -> None:
        """Computes and writes the flow of one video.

        Raises:
            MediaError: If the video is cut off or has fewer than two frames.
        """
        even = self.layout == "mp4"
        write_pair = write_images if self.layout == "frames" else write_videos
        opened = open_video(source, self.fps_divisor, self.short_side, even)
        with opened as (frames, rate):
            flow = optical_flow(frames, self._method())
            count = write_pair(targets, self._quantized(flow), rate)
        if not count:
            at = f" at --fps-divisor {self.fps_divisor}" * (self.fps_divisor > 1)
            raise MediaError(f"it has fewer than two frames{at}, and flow needs two")

    def _quantized(self, flow: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for number, displacement in enumerate(flow, 1):
            if not np.isfinite(displacement).all():
                raise MediaError(f"{self.method}'s flow no. {number} is not finite")
            progress.count()
            yield quantize_flow(displacement, self.bound)

    def _method(self) -> Method:
        if self.method == "raft":
            model = load_raft(self.raft_weights, self.device)
            return functools.partial(raft_flow, model)
        if self.method == "tvl1":
            estimator = cv2.optflow.DualTVL1OpticalFlow_create()
        else:
            preset = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
            estimator = cv2.DISOpticalFlow_create(preset)
        return functools.partial(_opencv_flow, estimator)


# --------------------------------------------------------------------------------
# From the video to flow


@contextmanager
def open_video(
    source: Path | str,
    every: int = 1,
    short_side: int | None = None,
    even: bool = False,
) -> Iterator[tuple[Iterator[np.ndarray], Fraction]]:
    """Opens a video and decodes it frame by frame.

    Frames are counted, not timed, and turned as the file says: both as decord does,
    so that frame i is frame i of the video modality.

    Args:
        source: The file.
        every: Use every how many frames, from the first on.
        short_side: See :func:`resized_size`.
        even: See :func:`resized_size`.

    Yields:
        The frames, ``(H, W, 3)`` uint8 RGB, and how many of them a second has.

    Raises:
        MediaError: If there is no video stream, or (while reading) the file is cut off.
    """
    with av.open(str(source)) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise MediaError("it has no video stream")
        stream.codec_context.thread_count = 1
        # 25 for the rare stream that does not say.
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25) / every
        yield _frames(container, stream.index, every, short_side, even), rate


def _frames(
    container: av.container.InputContainer,
    index: int,
    every: int,
    short_side: int | None,
    even: bool,
) -> Iterator[np.ndarray]:
    count, size = 0, None
    for packet in read_packets(container):
        for frame in packet.decode() if packet.stream.index == index else ():
            count += 1
            if (count - 1) % every:
                continue
            image = upright_image(frame)
            # The first frame decides, should the size change within a video.
            size = size or resized_size(*image.shape[:2], short_side, even)
            yield np.ascontiguousarray(_resize(image, size))


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=kind)


def resized_size(
    height: int, width: int, short_side: int | None, even: bool
) -> tuple[int, int]:
    """Height and width (pixels) with the aspect ratio kept as integers allow.

    Args:
        height: Before.
        width: Before.
        short_side: The shorter side after resizing; ``None`` keeps the size.
        even: Round both down to even numbers.
    """
    if short_side is not None:
        scale = short_side / min(height, width)
        height, width = round(height * scale), round(width * scale)
    if even:
        height, width = max(height - height % 2, 2), max(width - width % 2, 2)
    return height, width


def optical_flow(frames: Iterable[np.ndarray], method: Method) -> Iterator[np.ndarray]:
    """The flow from each frame to the next.

    Args:
        frames: T times ``(H, W, 3)`` uint8, RGB.
        method: Computes the flow between two frames.

    Yields:
        np.ndarray: T - 1 times ``(H, W, 2)`` float32, displacement right and down in
        pixels.
    """
    for first, second in pairwise(frames):
        yield method(first, second)


def _opencv_flow(
    estimator: cv2.DenseOpticalFlow, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    first, second = (cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (first, second))
    return estimator.calc(first, second, None)


# --------------------------------------------------------------------------------
# RAFT


@functools.lru_cache(maxsize=1)
def load_raft(weights: str | None, device: str) -> nn.Module:
    """RAFT, ready to use; the last one is kept.

    Args:
        weights: A state dict of torchvision's ``raft_large`` or ``raft_small``; which
            of the two, its keys tell. ``None``: torchvision's published weights of
            ``raft_large``, downloaded once into torch's cache.
        device: Where it runs.

    Raises:
        UsageError: If the weights are missing, unreachable or do not fit.
    """
    published = raft.Raft_Large_Weights.DEFAULT
    try:
        if weights is None:
            model = raft.raft_large(weights=published, progress=False)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            # Only the large network learns how to upsample.
            large = any(key.startswith("mask_predictor.") for key in state)
            model = (raft.raft_large if large else raft.raft_small)(weights=None)
            model.load_state_dict(state)
    except Exception as error:  # unpickling what is not a pickle raises anything
        reason = _first_line(error)
        raise UsageError(
            f"cannot fetch RAFT's weights ({reason}); download {published.url} "
            "elsewhere and name the file with --raft-weights, or use --method tvl1 or "
            "dis"
            if weights is None
            else f"--raft-weights: {weights} holds no state dict of torchvision's "
            f"raft_large or raft_small ({reason}); {published.url} does"
        ) from error
    return model.eval().to(device)


@torch.inference_mode()
def raft_flow(model: nn.Module, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """RAFT's flow between two frames of any size.

    The network needs sides that are multiples of 8, from 128: the frames are padded
    with their border on the right and below, and the flow there is cut off.

    Args:
        model: From :func:`load_raft`.
        first: ``(H, W, 3)`` uint8, RGB.
        second: The same.

    Returns:
        ``(H, W, 2)`` float32, displacement right and down in pixels.
    """
    device = next(model.parameters()).device
    height, width = first.shape[:2]
    down, right = (max(-(-n // 8) * 8, _RAFT_SMALLEST) - n for n in (height, width))
    pair = torch.from_numpy(np.stack([first, second])).to(device)
    pair = pair.permute(0, 3, 1, 2) / 127.5 - 1
    pair = F.pad(pair, (0, right, 0, down), mode="replicate")
    flow = model(pair[:1], pair[1:])[-1]
    return flow[0, :, :height, :width].permute(1, 2, 0).cpu().numpy()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --------------------------------------------------------------------------------
# Files


def write_videos(
    paths: tuple[Path, Path], pairs: Iterable[np.ndarray], rate: Fraction
) -> int:
    """Encodes flow as two grey videos, H.264 (:data:`X264_OPTIONS`) in mp4.

    Args:
        paths: Of the x and the y component.
        pairs: ``(H, W, 2)`` uint8, of even height and width.
        rate: Frames per second.

    Returns:
        int: How many frames; without any, no file is written.
    """
    count = 0
    with ExitStack() as stack:
        videos = []
        for count, pair in enumerate(pairs, 1):  # noqa: B007  returned
            if not videos:
                for path in paths:
                    video = stack.enter_context(av.open(str(path), "w", format="mp4"))
                    videos.append(video)
                    _add_stream(video, pair.shape[:2], rate)
            for video, image in zip(videos, np.moveaxis(pair, -1, 0), strict=True):
                planes = np.full((image.shape[0] * 3 // 2, image.shape[1]), 128, "u1")
                planes[: len(image)] = _LUMA[image]  # below it: no colour
                frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
                video.mux(video.streams[0].encode(frame))
        for video in videos:
            video.mux(video.streams[0].encode())
    return count


def _add_stream(
    video: av.container.OutputContainer, size: tuple[int, int], rate: Fraction
) -> None:
    rate = rate.limit_denominator(10_000)
    stream = video.add_stream("libx264", rate=rate, options=dict(X264_OPTIONS))
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1


def write_images(
    folders: tuple[Path, Path], pairs: Iterable[np.ndarray], rate: Fraction
) -> int:
    """Writes flow as :func:`write_videos`, but one grey JPEG per frame; no rate."""
    count = 0
    for count, pair in enumerate(pairs, 1):  # noqa: B007  returned
        for folder, image in zip(folders, np.moveaxis(pair, -1, 0), strict=True):
            folder.mkdir(exist_ok=True)
            quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            data = cv2.imencode(".jpg", np.ascontiguousarray(image), quality)[1]
            (folder / FRAME_NAME.format(count)).write_bytes(data)
    return count
