"""Sizes and shapes that a model takes."""

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
    """MMAction2's :class:`Resize`; frames that have the size already are not copied.

    Such are those of a frame store. Arguments and keys are those of :class:`Resize`.
    """

    def _resize_imgs(
        self, imgs: list[np.ndarray], new_w: int, new_h: int
    ) -> list[np.ndarray]:
        if all(img.shape[:2] == (new_h, new_w) for img in imgs):
            return imgs
        return super()._resize_imgs(imgs, new_w, new_h)


@TRANSFORMS.register_module()
class FormatClip(BaseTransform):
    """Turns the frames of one clip into a uint8 tensor ``(C, T, H, W)``.

    The same values as MMAction2's ``FormatShape('NCTHW', collapse=True)``, which copies
    every pixel three times, twice of them out of order: 20 times as long. Here it is
    one copy in order; in memory the tensor stays ``(T, H, W, C)``, and stacking the
    batch, on the device, puts it in order.

    Required keys: imgs (list of ``(H, W, C)``), num_clips. Changed: imgs. Added:
    input_shape.
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
        clip = torch.from_numpy(np.stack(results["imgs"])).permute(3, 0, 1, 2)
        results["imgs"], results["input_shape"] = clip, tuple(clip.shape)
        return results
