"""Opening and decoding video so that a bad file is an error that names it."""

import io

import av
import decord
import numpy as np
from mmaction.datasets.transforms import DecordDecode, DecordInit, SampleFrames
from mmaction.registry import TRANSFORMS
from mmengine import fileio


class MissingModalityError(Exception):
    """The sample lacks this modality: no file, or nothing in it.

    A loading transform raises it; :class:`MultiModalDataset` turns it into a
    placeholder that is marked as absent.
    """


class UnreadableMediaError(RuntimeError):
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
    UnicodeDecodeError,
    OSError,
)
"""What decord and PyAV raise over a damaged file."""


def _check_packets(data: bytes) -> None:
    """Raises if the container's index contradicts its content.

    decord takes the index at its word and kills the process (segmentation fault,
    ``std::bad_alloc``) where a damaged one leads it astray; one pass over the
    packets finds that out for about a millisecond.
    """
    with av.open(io.BytesIO(data)) as container:
        if not container.streams.video:
            raise ValueError("the file has no video stream")
        stream = container.streams.video[0]
        codec = stream.codec_context
        packets = [packet for packet in container.demux(stream) if packet.size]
        if any(packet.is_corrupt for packet in packets):
            raise ValueError("the file is cut off, or its index is damaged")
        # Two packets of a frame, or an edit list, are no damage: allow a factor.
        if not packets or stream.frames > 2 * len(packets):
            raise ValueError(
                f"the index promises {stream.frames} frames, the file holds "
                f"{len(packets)}"
            )
        if codec is None or not (codec.width and codec.height):
            raise ValueError("the video stream has no known codec or no frame size")
        if codec.name in ("av1", "libdav1d", "libaom-av1"):
            raise ValueError("decord 0.6 cannot decode AV1")


@TRANSFORMS.register_module()
class OpenVideo(DecordInit):
    """MMAction2's :class:`DecordInit` whose failures name the file.

    A segment of a longer video is kept: where the row brings ``total_frames`` (and
    ``start_index``), they are not replaced by the file's length.

    Required keys: filename. Added: video_reader, total_frames, avg_fps.

    Args:
        io_backend: Where the file is, a backend of :mod:`mmengine.fileio`.
        num_threads: Decoder threads. One is fastest beside data workers.
        check: Compare the container's index with its packets first. Without it a
            damaged file may kill the worker process without a word.
        kwargs: Further arguments of the backend.
    """

    def __init__(
        self,
        io_backend: str = "local",
        num_threads: int = 1,
        check: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(io_backend, num_threads, **kwargs)
        self.check = check

    def open(self, results: dict, filename: str) -> decord.VideoReader:
        """Opens one file.

        Raises:
            FileNotFoundError: If there is no such file.
            UnreadableMediaError: If it is not a video, is damaged or has no frames.
        """
        try:
            data = fileio.get(
                filename, backend_args=dict(backend=self.io_backend, **self.kwargs)
            )
            if not data:
                raise ValueError("the file is empty (0 bytes)")
            if self.check:
                _check_packets(data)
            reader = decord.VideoReader(io.BytesIO(data), num_threads=self.num_threads)
            if not len(reader):
                raise ValueError("the file has no frames")
        except FileNotFoundError:
            raise
        except (*DECODER_ERRORS, ValueError) as error:
            raise UnreadableMediaError.of(results, error, file=filename) from error
        return reader

    def transform(self, results: dict) -> dict:
        """Opens ``results['filename']``."""
        reader = self.open(results, results["filename"])
        results["video_reader"] = reader
        self._set_frames(results, len(reader))
        results["avg_fps"] = reader.get_avg_fps()
        return results

    @staticmethod
    def _set_frames(results: dict, length: int) -> None:
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
            f"num_threads={self.num_threads}, check={self.check})"
        )


def read_frames(reader: decord.VideoReader, indices: np.ndarray) -> list[np.ndarray]:
    """Decodes frames by index, ``(H, W, 3)`` uint8 each.

    decord 0.6 takes the padding at the end of a row for a fourth channel where the
    padded row is four times the width (16, 24, 48 and 72 pixels), and its
    ``get_batch`` fails. There the padding is cut off here.
    """
    try:
        return list(reader.get_batch(indices).asnumpy())
    except decord.DECORDError as error:
        if "The size must exactly match" not in str(error):
            raise
    frames = [reader[int(i)].asnumpy() for i in indices]
    return [
        f.reshape(len(f), -1)[:, : 3 * f.shape[1]].reshape(*f.shape[:2], 3)
        for f in frames
    ]


@TRANSFORMS.register_module()
class DecodeVideo(DecordDecode):
    """MMAction2's :class:`DecordDecode` whose failures name the file.

    Required keys: video_reader, frame_inds. Added: imgs (list of ``(H, W, 3)``
    uint8, RGB), original_shape, img_shape.
    """

    def _decord_load_frames(
        self, container: decord.VideoReader, frame_inds: np.ndarray
    ) -> list[np.ndarray]:
        if self.mode == "accurate":
            return read_frames(container, frame_inds)
        return super()._decord_load_frames(container, frame_inds)

    def transform(self, results: dict) -> dict:
        """Decodes the sampled frames."""
        try:
            return super().transform(results)
        except DECODER_ERRORS as error:
            raise UnreadableMediaError.of(results, error) from error


@TRANSFORMS.register_module()
class SampleClip(SampleFrames):
    """MMAction2's :class:`SampleFrames` whose train draw is a fraction.

    The stock transform draws an integer below the number of possible starts. Two
    modalities with the same seed but different lengths (frames and the flow between
    them) would get unrelated starts. Here a clip starts at ``floor(u * starts)``,
    with ``u`` uniform in [0, 1): the same distribution, the same relative place in
    every modality, and the same number of draws whatever the length.

    In test mode it is the stock transform: the centre, and modulo the length where
    the video is too short.
    """

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
