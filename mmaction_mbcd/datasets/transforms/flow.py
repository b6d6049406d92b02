"""Optical flow stored as images of its x and its y component."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from mmaction.datasets.transforms import Flip
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform

from ...flow_coding import FLOW_ZERO
from ..frame_store import StoredClip
from .loading import DECODER_ERRORS, DecodeVideo, OpenVideo, UnreadableMediaError
from .readers import read_frames

_AXES = {"horizontal": 1, "vertical": 0}  # of cv2.flip
_REFLECTED = np.minimum(2 * FLOW_ZERO - np.arange(256), 255).astype(np.uint8)


@TRANSFORMS.register_module()
class OpenFlowPair(OpenVideo):
    """Opens the two videos of a clip's flow.

    One may have a frame more, which has no partner and is not used. Of a larger
    difference one file is damaged, or they belong to two clips.

    Required keys: filename, a pair ``(x, y)``. Added: video_reader (a pair),
    total_frames, avg_fps.
    """

    def transform(self, results: dict) -> dict:
        """Opens both files of ``results['filename']``.

        Raises:
            UnreadableMediaError: If one cannot be read, or they differ by more than a
                frame.
        """
        if results.get("frame_store"):
            return self._open_stored(results)
        if results.get("filename_tmpl"):
            return results
        readers = tuple(self.open(results, name) for name in results["filename"])
        lengths = sorted(map(len, readers))
        if lengths[-1] - lengths[0] > 1:
            raise UnreadableMediaError.of(
                results,
                f"its components have {lengths[0]} and {lengths[-1]} frames",
                "Compute the flow of this clip again",
            )
        results["video_reader"] = readers
        self._set_frames(results, min(map(len, readers)))
        results["avg_fps"] = readers[0].get_avg_fps()
        return results


@TRANSFORMS.register_module()
class DecodeFlowPair(BaseTransform):
    """Decodes the sampled frames of both components.

    Required keys: video_reader, frame_inds. Added: imgs (list of ``(H, W, 2)``
    uint8, channel 0 is x), original_shape, img_shape.
    """

    def transform(self, results: dict) -> dict:
        """Decodes and stacks.

        Raises:
            UnreadableMediaError: If a frame cannot be decoded, or the two videos
                differ in size.
        """
        if isinstance(results["video_reader"], StoredClip):
            return DecodeVideo()(results)
        components = []
        indices = np.ravel(results["frame_inds"])
        # One after the other: decord reads ahead in a thread until a reader is gone.
        readers, results["video_reader"] = list(results["video_reader"]), None
        for name in results["filename"]:
            try:
                frames = read_frames(readers.pop(0), indices)
            except DECODER_ERRORS as error:
                raise UnreadableMediaError.of(results, error, file=name) from error
            components.append([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames])
        x, y = components
        if x[0].shape != y[0].shape:
            raise UnreadableMediaError.of(
                results,
                f"its x frames are {x[0].shape} pixels (h, w), its y frames "
                f"{y[0].shape}",
                "Compute the flow of this clip again",
            )
        results["imgs"] = [join_flow(*pair) for pair in zip(x, y, strict=True)]
        results["original_shape"] = results["img_shape"] = x[0].shape
        return results


def join_flow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One flow image ``(H, W, 2)`` of its components, each ``(H, W)``.

    OpenCV's: NumPy's ``stack`` takes six times as long along the last axis.
    """
    return cv2.merge([x, y])


def mirror_flow(frame: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Mirrors one flow image and inverts the sense of its x component.

    The x component is reflected about :data:`FLOW_ZERO`, ``x -> 256 - x``, so that
    no motion stays no motion. (``255 - x`` would turn 128 into 127: a drift to the
    left in every flipped clip.) The single value without a partner, 0, becomes 255.

    Args:
        frame: ``(H, W, 2)`` uint8, channel 0 is x.
        out: Where to; it may be the frame itself.

    Returns:
        np.ndarray: ``out``, or a new array of the same shape.
    """
    x, y = cv2.split(cv2.flip(frame, _AXES["horizontal"]))
    return cv2.merge([cv2.LUT(x, _REFLECTED), y], dst=out)


@TRANSFORMS.register_module()
class ClipFlip(Flip):
    """MMAction2's :class:`Flip`, right for flow and for video alike.

    The stock transform takes every second item of ``imgs`` for an x component and
    inverts it; flow that is stacked ``(H, W, 2)`` has whole frames there. Here the
    x channel of every frame is inverted, see :func:`mirror_flow`. The coin is drawn
    as in the stock transform, one ``np.random.rand()``, so that modalities with one
    seed are flipped together.

    Args:
        flip_ratio: Probability of the flip.
        kwargs: As in the stock transform; ``lazy`` is refused, because ``Fuse``
            would mirror flow without inverting it.
    """

    def __init__(self, flip_ratio: float = 0.5, **kwargs) -> None:
        if kwargs.get("lazy"):
            raise ValueError(
                "ClipFlip cannot be lazy: Fuse mirrors flow without inverting its x "
                "component. Leave `lazy` out"
            )
        super().__init__(flip_ratio, **kwargs)

    def _flip_imgs(
        self, imgs: Sequence[np.ndarray], modality: str
    ) -> Sequence[np.ndarray]:
        if modality != "Flow":
            # OpenCV's copy: NumPy's mirrored view would be copied pixel by pixel later.
            return _each(cv2.flip, imgs, _AXES[self.direction])
        if imgs[0].ndim != 3 or imgs[0].shape[-1] != 2:
            raise ValueError(
                "ClipFlip needs flow frames of shape (H, W, 2), as DecodeFlowPair "
                f"makes them; got {imgs[0].shape}"
            )
        return _each(mirror_flow, imgs)


def _each(
    function: Callable[..., np.ndarray], imgs: Sequence[np.ndarray], *args: object
) -> Sequence[np.ndarray]:
    """Of each frame; an array of them, as ResizeClip makes it, is changed in place."""
    if not isinstance(imgs, np.ndarray) or imgs.base is not None:
        return [function(img, *args) for img in imgs]
    for img in imgs:
        found = function(img, *args, img)
        if found is not img:
            img[...] = found
    return imgs
