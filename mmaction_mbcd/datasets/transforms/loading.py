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
    ValueError,
    OSError,
)
"""What decord and PyAV raise over a damaged file."""


def check_packets(data: bytes) -> str:
    """Raises if the container's index contradicts its content.

    decord takes the index at its word and kills the process (segmentation fault,
    ``std::bad_alloc``) where a damaged one leads it astray; one pass over the
    packets finds that out for about a millisecond.

    Returns:
        str: The codec's standard name, such as ``'h264'``.

    Raises:
        ValueError: Saying what is wrong.
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
        return codec.codec.canonical_name


def upright_image(frame: av.VideoFrame) -> np.ndarray:
    """A frame as it is to be shown: turned as the file's display matrix says.

    decord turns frames by itself, PyAV does not.

    Returns:
        np.ndarray: ``(H, W, 3)`` uint8, RGB; height and width are those after turning.
    """
    # Degrees counter-clockwise, which is also how rot90 counts.
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


class PyAVReader:
    """Frames of a video by index, through PyAV, with decord's reading methods.

    Slower than decord, but its FFmpeg is current: it reads AV1, for one.

    Args:
        data: The file.
        num_threads: Decoder threads.

    Raises:
        av.FFmpegError: If it is no video.
    """

    def __init__(self, data: bytes, num_threads: int = 1) -> None:
        self._container = av.open(io.BytesIO(data))
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = num_threads
        # Frames are numbered in the order of presentation. A packet that the edit
        # list marks as discarded is decoded but not shown.
        shown = [
            packet.pts
            for packet in self._container.demux(self._stream)
            if packet.size and packet.pts is not None and not packet.is_discard
        ]
        self._times = np.sort(np.array(shown, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._times)

    def get_avg_fps(self) -> float:
        """Frames per second."""
        return float(self._stream.average_rate or self._stream.guessed_rate)

    def get_batch(self, indices: np.ndarray) -> np.ndarray:
        """Decodes frames by index, turned as the file says.

        Returns:
            np.ndarray: ``(len(indices), H, W, 3)`` uint8, RGB.

        Raises:
            IndexError: If there is no such frame.
            ValueError: If a frame of the index cannot be decoded.
        """
        wanted = np.unique(indices)
        if wanted[0] < 0 or wanted[-1] >= len(self):
            raise IndexError(f"frames {wanted.tolist()} of {len(self)}")
        times = dict(zip(self._times[wanted].tolist(), wanted.tolist(), strict=True))
        last, found = max(times), {}
        self._container.seek(min(times), stream=self._stream)  # the key frame before
        for frame in self._container.decode(self._stream):
            if frame.pts in times:
                found[times[frame.pts]] = upright_image(frame)
            if frame.pts is not None and frame.pts >= last:
                break
        missing = sorted(set(wanted.tolist()) - found.keys())
        if missing:
            raise ValueError(f"frames {missing[:5]} cannot be decoded")
        return np.stack([found[int(i)] for i in indices])


READERS = ("decord", "pyav")


@TRANSFORMS.register_module()
class OpenVideo(DecordInit):
    """MMAction2's :class:`DecordInit` whose failures name the file.

    A segment of a longer video is kept: where the row brings ``total_frames`` (and
    ``start_index``), they are not replaced by the file's length.

    The published loaders (``sampling='published'``) take a file of N frames for N - 1
    with numbers from 1, and so decode frame i - 1 for a sampled i, the last for 0.
    ``total_frames`` is then N - 1 and ``decode_shift`` is ``(-1, N)``.

    Required keys: filename. Added: video_reader, total_frames, avg_fps, perhaps
    decode_shift.

    Args:
        io_backend: Where the file is, a backend of :mod:`mmengine.fileio`.
        num_threads: Decoder threads. One is fastest beside data workers.
        check: Compare the container's index with its packets first. Without it a
            damaged file may kill the worker process without a word.
        reader: ``'decord'``, the fastest, or ``'pyav'`` for what decord cannot read,
            such as AV1.
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

    def open(self, results: dict, filename: str) -> decord.VideoReader | PyAVReader:
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
            codec = check_packets(data) if self.check else ""
            if self.reader == "pyav":
                reader = PyAVReader(data, self.num_threads)
            elif codec == "av1":
                raise ValueError(
                    "it is AV1, which decord 0.6 cannot decode; set reader='pyav' of "
                    f"{type(self).__name__} in the config's pipelines"
                )
            else:
                reader = decord.VideoReader(
                    io.BytesIO(data), num_threads=self.num_threads
                )
            if not len(reader):
                raise ValueError("the file has no frames")
        except FileNotFoundError:
            raise
        except DECODER_ERRORS as error:
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


def read_frames(
    reader: decord.VideoReader | PyAVReader, indices: np.ndarray
) -> list[np.ndarray]:
    """Decodes frames by index, ``(H, W, 3)`` uint8 each.

    decord 0.6 takes the padding at the end of a row for a fourth channel where the
    padded row is four times the width (16, 24, 48 and 72 pixels), and its
    ``get_batch`` fails. There the padding is cut off here.
    """
    if isinstance(reader, PyAVReader):
        return list(reader.get_batch(indices))
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
        if self.mode == "accurate" or isinstance(container, PyAVReader):
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
