"""Opening and decoding video so that a bad file is an error that names it."""

import av
import decord
import numpy as np
from mmaction.datasets.transforms import DecordDecode, DecordInit, SampleFrames
from mmaction.registry import TRANSFORMS
from mmengine import fileio

from ..errors import DataError
from ..frame_store import Clip
from .images import decode_image
from .limits import check_file
from .readers import READERS, Reader, open_reader, read_frames


class MissingModalityError(Exception):
    """The sample lacks this modality: no file, or nothing in it.

    A loading transform raises it; :class:`MultiModalDataset` turns it into a
    placeholder that is marked as absent.
    """


class UnreadableMediaError(DataError, RuntimeError):
    """A file is there but cannot be decoded."""

    # A worker process sends an exception as one string, so the constructor must
    # take exactly that.
    @classmethod
    def of(
        cls, results: dict, error: object, remedy: str = "", file: str = ""
    ) -> "UnreadableMediaError":
        """The error for one sample.

        Args:
            results: The pipeline's results: sample, modality and file name.
            error: What the decoder said.
            remedy: What helps. Defaults to downloading or re-encoding.
            file: The culprit, where the sample has several files.
        """
        remedy = remedy or (
            "Fetch the file again, or re-encode it with `ffmpeg -i FILE -c:v libx264 "
            "-pix_fmt yuv420p NEW.mp4`; to leave the sample out, delete its line "
            "from the split file"
        )
        modality = results.get("modality_key", results.get("modality"))
        sample = results.get("sample_id")
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return cls(
            f"cannot read {modality} of sample {sample!r} from "
            f"{file or results['filename']}: {reason[0]}. {remedy}"
        )


DECODER_ERRORS = (
    decord.DECORDError,
    decord.DECORDLimitReachedError,
    av.FFmpegError,
    RuntimeError,
    IndexError,
    ValueError,
    OSError,
    MemoryError,
)
"""What decord and PyAV raise over a damaged file."""


@TRANSFORMS.register_module()
class OpenVideo(DecordInit):
    """MMAction2's :class:`DecordInit` whose failures name the file.

    A segment of a longer video is kept: where the row brings ``total_frames`` (and
    ``start_index``), they are not replaced by the file's length.

    The published loaders (``sampling='published'``) take a file of N frames for N - 1
    with numbers from 1, and so decode frame i - 1 for a sampled i, the last for 0.
    ``total_frames`` is then N - 1 and ``decode_shift`` is ``(-1, N)``.

    A row with a ``filename_tmpl`` is a folder of images: there is nothing to open.

    With a ``frame_store`` in the results (:class:`.FrameStore`), the clip's entry is
    opened instead of any of these.

    Required keys: filename. Added: video_reader, total_frames, avg_fps, perhaps
    decode_shift.

    Args:
        io_backend: Where the file is, a backend of :mod:`mmengine.fileio`.
        num_threads: Decoder threads. One is fastest beside data workers.
        check: Look at the file's packets first (:func:`.readers.index_packets`).
            Without it a damaged file may kill the worker process without a word, and
            decord give other frames than it was asked for.
        reader: ``'decord'``, the fastest, for the files that it reads rightly and
            PyAV for the others (AVI with B frames, open groups of pictures, edit
            lists, AV1; see :mod:`.readers`), or ``'pyav'`` for all.
        kwargs: Further arguments of the backend.

    Raises:
        ValueError: For a reader that is not known.
    """

    def __init__(
        self,
        io_backend: str = "local",
        num_threads: int = 1,
        check: bool = True,
        reader: str = "decord",
        **kwargs,
    ) -> None:
        super().__init__(io_backend, num_threads, **kwargs)
        if reader not in READERS:
            raise ValueError(f"reader must be one of {list(READERS)}, got {reader!r}")
        self.check, self.reader = check, reader

    def open(self, results: dict, filename: str) -> Reader:
        """Opens one file.

        Raises:
            FileNotFoundError: If there is no such file.
            UnreadableMediaError: If it is not a video, is damaged or has no frames.
        """
        try:
            if self.io_backend in ("local", "disk"):
                check_file(filename)
            data = fileio.get(
                filename, backend_args=dict(backend=self.io_backend, **self.kwargs)
            )
            if not data:
                raise ValueError("the file is empty (0 bytes)")
            reader = open_reader(data, self.reader, self.num_threads, self.check)
            if not len(reader):
                raise ValueError("the file has no frames")
        except FileNotFoundError:
            raise
        except DECODER_ERRORS as error:
            raise UnreadableMediaError.of(results, error, file=filename) from error
        return reader

    def transform(self, results: dict) -> dict:
        """Opens ``results['filename']``."""
        if results.get("frame_store"):
            return self._open_stored(results)
        if results.get("filename_tmpl"):
            return results
        reader = self.open(results, results["filename"])
        results["video_reader"] = reader
        self._set_frames(results, len(reader))
        results["avg_fps"] = reader.get_avg_fps()
        return results

    def _open_stored(self, results: dict) -> dict:
        store, modality = results["frame_store"], results["modality_key"]
        clip = Clip.of(results["filename"], results)
        try:
            reader = store.open(modality, clip, decode_image)
        except (OSError, ValueError) as error:
            raise UnreadableMediaError.of(
                results, error, "Pack it again (tools/data/pack.py)"
            ) from error
        results["video_reader"] = reader
        self._set_frames(results, len(reader))
        results.setdefault("avg_fps", reader.get_avg_fps())
        return results

    @staticmethod
    def _set_frames(results: dict, length: int) -> None:
        if "total_frames" not in results and results.get("sampling") == "published":
            results["total_frames"] = max(length - 1, 1)
            results["decode_shift"] = (-1, length)
        total = results.setdefault("total_frames", length)
        start = results["start_index"]
        if total < 1 or start + total > length:
            raise UnreadableMediaError.of(
                results,
                f"the segment of frames {start} to {start + total - 1} is not in "
                f"the file's {length} frames",
                "Correct the row in the split file, or fetch the whole video again",
            )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(io_backend={self.io_backend!r}, "
            f"num_threads={self.num_threads}, check={self.check}, "
            f"reader={self.reader!r})"
        )


@TRANSFORMS.register_module()
class DecodeVideo(DecordDecode):
    """MMAction2's :class:`DecordDecode` whose failures name the file.

    Required keys: video_reader, frame_inds. Added: imgs (list of ``(H, W, 3)``
    uint8, RGB), original_shape, img_shape.
    """

    def _decord_load_frames(
        self, container: Reader, frame_inds: np.ndarray
    ) -> list[np.ndarray]:
        stock = isinstance(container, decord.VideoReader)
        if self.mode == "accurate" or not stock:
            return read_frames(container, frame_inds)
        return super()._decord_load_frames(container, frame_inds)

    def transform(self, results: dict) -> dict:
        """Decodes the sampled frames."""
        try:
            return super().transform(results)
        except DECODER_ERRORS as error:
            raise UnreadableMediaError.of(results, error) from error


CENTRES = ("1.x", "0.x")


@TRANSFORMS.register_module()
class SampleClip(SampleFrames):
    """MMAction2's :class:`SampleFrames` whose train draw is a fraction.

    The stock transform draws an integer below the number of possible starts. Two
    modalities with the same seed but different lengths (frames and the flow between
    them) would get unrelated starts. Here a clip starts at ``floor(u * starts)``,
    with ``u`` uniform in [0, 1): the same distribution, the same relative place in
    every modality, and the same number of draws whatever the length.

    Required keys: total_frames, start_index, perhaps decode_shift ``(s, N)``. Added:
    frame_inds, the frames to decode. With a shift these are ``(sampled_inds + s) mod
    N``, and sampled_inds, the frames that were chosen, is added too.

    Args:
        centre: Where the one clip of test mode starts in N frames, with L frames every
            i. ``'1.x'``, the stock transform of MMAction2 1.x: ``(N - (L - 1) i - 1)
            // 2``. ``'0.x'``, that of 0.x, which the published code runs: ``(N - L i +
            1) // 2``, so that a clip has L i frames in test as in training. Both: 0
            where the video is too short, and modulo its length.
        kwargs: Of :class:`SampleFrames`.

    Raises:
        ValueError: For another centre.
    """

    def __init__(self, *args, centre: str = "1.x", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if centre not in CENTRES:
            raise ValueError(f"centre must be one of {CENTRES}, got {centre!r}")
        if centre == "0.x" and self.twice_sample:
            raise ValueError("twice_sample is not implemented for centre='0.x'")
        self.centre = centre

    def _get_test_clips(self, num_frames: int, ori_clip_len: float) -> np.ndarray:
        if self.centre == "1.x":
            return super()._get_test_clips(num_frames, ori_clip_len)
        starts = num_frames - self.clip_len * self.frame_interval + 1
        middles = np.arange(self.num_clips) + 0.5
        return (middles * max(starts, 0) / self.num_clips).astype(np.int64)

    def _get_train_clips(self, num_frames: int, ori_clip_len: float) -> np.ndarray:
        if self.keep_tail_frames:
            return super()._get_train_clips(num_frames, ori_clip_len)
        starts = num_frames - ori_clip_len + 1
        fractions = np.random.rand(self.num_clips)
        interval = starts // self.num_clips
        if interval > 0:
            offsets = np.arange(self.num_clips) * interval
            offsets = offsets + np.floor(fractions * interval)
        else:  # fewer starts than clips, or a video shorter than the clip
            offsets = np.sort(np.floor(fractions * max(starts, 0)))
        return offsets.astype(np.int64)

    def transform(self, results: dict) -> dict:
        """Chooses the frames."""
        results = super().transform(results)
        if "decode_shift" in results:
            shift, length = results["decode_shift"]
            results["sampled_inds"] = results["frame_inds"]
            results["frame_inds"] = (results["sampled_inds"] + shift) % length
        return results
