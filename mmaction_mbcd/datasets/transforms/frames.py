"""Decoding video and flow that are stored as one image per frame, or as clips.

MMAction2's ``RawFrameDecode`` does not serve: a truncated JPEG passes it as a picture
that is grey from some row on, and its flow needs both components in one folder.
"""

import numpy as np
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform
from mmengine import fileio

from .flow import DecodeFlowPair, join_flow
from .images import decode_image
from .limits import check_file
from .loading import DecodeVideo, UnreadableMediaError


@TRANSFORMS.register_module()
class DecodeFrames(BaseTransform):
    """Decodes the sampled frames of a folder of images, or of an opened video.

    Where :class:`.OpenVideo` has left a reader, the row is a video file and
    :class:`.DecodeVideo` decodes it, so that one pipeline serves both forms in which
    EPIC-Kitchens is published. Of images, ``SampleClip`` before it keeps to the segment
    that the row names with ``start_index`` and ``total_frames``: frame numbers are
    those of the files, and a segment that is shorter than the clip repeats (modulo its
    length).

    Required keys: frame_inds, and filename (the folder) and filename_tmpl, or
    video_reader. Added: imgs (list of ``(H, W, 3)`` uint8, RGB), original_shape,
    img_shape.

    Args:
        io_backend: Where the files are, a backend of :mod:`mmengine.fileio`.
        kwargs: Further arguments of the backend.
    """

    def __init__(self, io_backend: str = "local", **kwargs) -> None:
        self.backend_args = dict(backend=io_backend, **kwargs)

    def read(self, results: dict, folder: str, grey: bool = False) -> list[np.ndarray]:
        """Decodes the sampled frames of one folder, each file once.

        Raises:
            UnreadableMediaError: Naming the file, if it is missing or damaged.
        """
        indices = [int(i) for i in np.ravel(results["frame_inds"])]
        decoded = {}
        for index in indices:
            if index in decoded:
                continue
            path = fileio.join_path(
                folder,
                results["filename_tmpl"].format(index),
                backend_args=self.backend_args,
            )
            try:
                if self.backend_args["backend"] in ("local", "disk"):
                    check_file(path)
                data = fileio.get(path, backend_args=self.backend_args)
                decoded[index] = decode_image(data, grey)
            except (OSError, ValueError, MemoryError) as error:
                missing = isinstance(error, FileNotFoundError)
                raise UnreadableMediaError.of(
                    results,
                    "there is no such frame" if missing else error,
                    "Fetch or extract the frames of this video again; to leave the "
                    "sample out, delete its row from the split file",
                    file=path,
                ) from error
        sizes = {image.shape[:2] for image in decoded.values()}
        if len(sizes) > 1:
            raise UnreadableMediaError.of(
                results,
                f"its frames differ in size (h, w): {sorted(sizes)}",
                "Extract the frames of this video again",
                file=folder,
            )
        # A copy for every repetition: a later transform may write into an image.
        return [decoded[index].copy() for index in indices]

    def transform(self, results: dict) -> dict:
        """Decodes.

        Raises:
            UnreadableMediaError: Naming the file, if one is missing or damaged.
        """
        if "video_reader" in results:
            return DecodeVideo()(results)
        results["imgs"] = self.read(results, results["filename"])
        shape = results["imgs"][0].shape[:2]
        results["original_shape"] = results["img_shape"] = shape
        return results


@TRANSFORMS.register_module()
class DecodeFlowFrames(DecodeFrames):
    """Decodes the sampled frames of flow, a folder of grey images per component.

    Comparing with :class:`DecodeFrames`, ``filename`` is a pair of folders, x (EPIC's
    ``u``) and y (``v``), and ``imgs`` holds ``(H, W, 2)``, channel 0 is x.
    """

    def transform(self, results: dict) -> dict:
        """Decodes and stacks.

        Raises:
            UnreadableMediaError: If a file is missing or damaged, or the components
                differ in size.
        """
        if "video_reader" in results:
            return DecodeFlowPair()(results)
        x, y = (self.read(results, f, grey=True) for f in results["filename"])
        if x[0].shape != y[0].shape:
            raise UnreadableMediaError.of(
                results,
                f"its x frames are {x[0].shape} pixels (h, w), its y frames "
                f"{y[0].shape}",
                "Compute the flow of this video again",
            )
        results["imgs"] = [join_flow(*pair) for pair in zip(x, y, strict=True)]
        results["original_shape"] = results["img_shape"] = x[0].shape
        return results
