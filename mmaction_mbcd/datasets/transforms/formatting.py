"""The last step of an audio pipeline."""

import numpy as np
import torch
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform


@TRANSFORMS.register_module()
class FormatAudio(BaseTransform):
    """Turns a spectrogram ``(F, T)`` into a float32 tensor ``(1, F, T)``.

    MMAction2's ``FormatAudioShape`` makes ``(clips, 1, T, F)`` instead, for audio
    features in clips. Video and flow end in the stock ``FormatShape``.

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
