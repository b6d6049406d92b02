"""Sizes and shapes that a model takes."""

from collections.abc import Sequence

import mmcv
import numpy as np
import torch
from mmaction.datasets.transforms import Resize
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform


@TRANSFORMS.register_module()
class FormatAudio(BaseTransform):
    """Turns a spectrogram ``(F, T)`` into a float32 tensor ``(1, F, T)``.

    MMAction2's ``FormatAudioShape`` makes ``(clips, 1, T, F)`` instead, for audio
    features in clips. Video and flow end in :class:`FormatClip`.

    Required and changed key: audios. Added: input_shape.
    """

    def transform(self, results: dict) -> dict:
        """Adds the channel."""
        audios = np.ascontiguousarray(results["audios"], dtype=np.float32)
        if audios.ndim != 2:
            raise ValueError(
                f"FormatAudio needs a spectrogram (F, T), got shape {audios.shape}: "
                "put LogSpectrogram before it"
            )
        results["audios"] = torch.from_numpy(audios)[None]
        results["input_shape"] = tuple(results["audios"].shape)
        return results


@TRANSFORMS.register_module()
class ResizeClip(Resize):
    """MMAction2's :class:`Resize`, to the bit, without the copies.

    Frames that have the size already, as those of a frame store, stay what they are.
    With ``keep_ratio=False``, the size of a network's input, the others are written
    into one array, which :class:`FormatClip` need not stack: imgs is ``(T, H, W, C)``
    then. Arguments and keys are those of :class:`Resize`.
    """

    def _resize_imgs(
        self, imgs: Sequence[np.ndarray], new_w: int, new_h: int
    ) -> Sequence[np.ndarray]:
        if all(img.shape[:2] == (new_h, new_w) for img in imgs):
            return imgs
        if self.keep_ratio:
            return super()._resize_imgs(imgs, new_w, new_h)
        first = self._resized(imgs[0], (new_w, new_h))
        clip = np.empty((len(imgs), *first.shape), first.dtype)
        clip[0] = first
        for img, out in zip(imgs[1:], clip[1:], strict=True):
            found = self._resized(img, (new_w, new_h), out)
            if found is not out:  # by mmcv's other backend
                out[...] = found
        return clip

    def _resized(
        self, img: np.ndarray, size: tuple[int, int], out: np.ndarray | None = None
    ) -> np.ndarray:
        return mmcv.imresize(img, size, interpolation=self.interpolation, out=out)


@TRANSFORMS.register_module()
class FormatClip(BaseTransform):
    """Turns the frames of one clip into a uint8 tensor ``(C, T, H, W)``.

    The same values as MMAction2's ``FormatShape('NCTHW', collapse=True)``, which copies
    every pixel three times, twice of them out of order: 20 times as long. Here it is
    one copy in order; in memory the tensor stays ``(T, H, W, C)``, and stacking the
    batch, on the device, puts it in order.

    Required keys: imgs (frames ``(H, W, C)`` in a list, which are stacked, or in an
    array), num_clips. Changed: imgs. Added: input_shape.
    """

    def transform(self, results: dict) -> dict:
        """Stacks.

        Raises:
            ValueError: If the sample has several clips.
        """
        if results.get("num_clips", 1) != 1:
            raise ValueError(
                f"FormatClip takes one clip, got {results['num_clips']}: use "
                "FormatShape for several"
            )
        frames = results["imgs"]
        if not isinstance(frames, np.ndarray):
            frames = np.stack(frames)
        clip = torch.from_numpy(frames).permute(3, 0, 1, 2)
        results["imgs"], results["input_shape"] = clip, tuple(clip.shape)
        return results
