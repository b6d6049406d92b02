"""Frames of a video by index: frame i is the i-th that a plain decode shows.

A *plain decode* reads a file from its start to its end and counts the pictures that
come out. It is right by definition, and slow. Seeking is fast, and wrong in many files:
where packets have no time stamps (AVI, MPEG-4's packed B frames), where pictures that
are shown before a key frame follow it in the file (open groups of pictures, usual in
H.265), where an edit list hides some (a cut without encoding again), in transport
streams. :func:`index_packets` sorts files by what can be done with them:

========== ================================== ======================================
``access`` what the packets say               read by
========== ================================== ======================================
decord     every picture has its time, none   decord; :class:`PyAVReader`, seeking,
           is hidden or follows a later       where it is asked for
           key frame
seek       every picture has its time         :class:`PyAVReader`, from the last key
                                              frame that is shown before
decode     else                               :class:`PyAVReader`, from the start
========== ================================== ======================================
"""

import io
from dataclasses import dataclass

import av
import decord
import numpy as np

from ..frame_store import StoredClip
from .limits import MAX_FRAMES, check_picture_size

READERS = ("decord", "pyav")

# Containers and codecs in which a packet with a time is one picture, so that indices
# can be known without decoding. (MPEG-4 part 2 may pack two in one.)
_TIMED = {"mov", "mp4", "matroska", "webm"}
_ONE_PICTURE = {"h264", "hevc", "vp8", "vp9", "av1", "mjpeg"}
_NOT_DECORD = {"av1"}  # its FFmpeg is of 2020


@dataclass(frozen=True)
class PacketIndex:
    """What one pass over a file's video packets tells.

    Attributes:
        codec: Standard name, such as ``'h264'``.
        access: ``'decord'``, ``'seek'`` or ``'decode'``, see this module.
        times: Presentation times of the shown pictures, ascending ``(N,)``, in the
            stream's time base; empty for ``'decode'``.
        keys: ``(K, 2)``: presentation time of each key frame, and the time to seek.
    """

    codec: str
    access: str
    times: np.ndarray
    keys: np.ndarray


def index_packets(data: bytes) -> PacketIndex:
    """Reads the packets of a file and refuses one whose index contradicts them.

    decord takes the index at its word and kills the process (segmentation fault,
    ``std::bad_alloc``) where a damaged one leads it astray; this pass over the packets
    finds that out for about a millisecond.

    Raises:
        ValueError: Saying what is wrong.
    """
    with av.open(io.BytesIO(data)) as container:
        if not container.streams.video:
            raise ValueError("the file has no video stream")
        stream = container.streams.video[0]
        codec = stream.codec_context
        if codec is not None:
            check_picture_size(codec.width or 0, codec.height or 0)
        if stream.frames > MAX_FRAMES:
            raise ValueError(f"the index promises {stream.frames} frames")
        packets = [packet for packet in container.demux(stream) if packet.size]
        if any(packet.is_corrupt for packet in packets):
            raise ValueError("the file is cut off, or its index is damaged")
        # Two packets of a frame, or an edit list, are not damage: allow a factor.
        if not packets or stream.frames > 2 * len(packets):
            raise ValueError(
                f"the index promises {stream.frames} frames, the file holds "
                f"{len(packets)}"
            )
        if codec is None or not (codec.width and codec.height):
            raise ValueError("the video stream has no known codec or no frame size")
        name = codec.codec.canonical_name
        known = set(container.format.name.split(",")) & _TIMED and name in _ONE_PICTURE
        if not known or not _are_timed(packets):
            return PacketIndex(name, "decode", np.empty(0, np.int64), np.empty((0, 2)))
        shown = [packet.pts for packet in packets if not packet.is_discard]
        # Matroska has no decoding times.
        keys = [
            (p.pts, p.pts if p.dts is None else min(p.pts, p.dts))
            for p in packets
            if p.is_keyframe
        ]
        by_decord = (
            name not in _NOT_DECORD
            and len(shown) == len(packets)
            and not _any_leads(packets)
        )
        return PacketIndex(
            name,
            "decord" if by_decord else "seek",
            np.sort(np.array(shown, np.int64)),
            np.array(sorted(keys), np.int64),
        )


def _are_timed(packets: list[av.Packet]) -> bool:
    """Each has a time of its own, and what is shown first can be decoded first."""
    times = [packet.pts for packet in packets]
    if None in times or len(set(times)) < len(times):
        return False
    return packets[0].is_keyframe and times[0] == min(times)


def _any_leads(packets: list[av.Packet]) -> bool:
    """Whether a picture behind a key frame in the file is shown before it."""
    latest = packets[0].pts
    for packet in packets:
        if packet.is_keyframe:
            latest = packet.pts
        elif packet.pts < latest:
            return True
    return False


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

    Slower than decord, but right for every file that decodes, and its FFmpeg is
    current: it reads AV1, for one. A file of ``access='decode'`` is decoded once to
    count its frames and again, from the start, for each :meth:`get_batch`.

    Args:
        data: The file.
        num_threads: Decoder threads.
        index: Of the file; made here if None.

    Raises:
        av.FFmpegError: If it is not a video.
        ValueError: If its index contradicts its packets.
    """

    def __init__(
        self, data: bytes, num_threads: int = 1, index: PacketIndex | None = None
    ) -> None:
        self._index = index or index_packets(data)
        self._data, self._threads = data, num_threads
        with self._open() as container:
            stream = container.streams.video[0]
            self._fps = float(stream.average_rate or stream.guessed_rate or 0)
            self._length = len(self._index.times)
            if self._index.access == "decode":
                self._length = sum(1 for _ in container.decode(stream))

    def _open(self) -> av.container.InputContainer:
        container = av.open(io.BytesIO(self._data))
        container.streams.video[0].codec_context.thread_count = self._threads
        return container

    def __len__(self) -> int:
        return self._length

    def get_avg_fps(self) -> float:
        """Frames per second; 0 where the file does not say."""
        return self._fps

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
        found = self._sought(wanted) if self._index.access != "decode" else {}
        if len(found) < len(wanted):
            found = self._counted(wanted)
        missing = [i for i in wanted.tolist() if i not in found]
        if missing:
            raise ValueError(f"frames {missing[:5]} cannot be decoded")
        return np.stack([found[int(i)] for i in indices])

    def _sought(self, wanted: np.ndarray) -> dict[int, np.ndarray]:
        """From the last key frame that is shown before the first of them."""
        times = dict(
            zip(self._index.times[wanted].tolist(), wanted.tolist(), strict=True)
        )
        keys = self._index.keys
        shown, seek = keys[keys[:, 0] <= min(times)][-1].tolist()
        last, begun, found = max(times), False, {}
        with self._open() as container:
            stream = container.streams.video[0]
            container.seek(seek, stream=stream)
            for frame in container.decode(stream):
                if not begun and (frame.pts is None or frame.pts > shown):
                    break  # at a later key frame: what it refers to may be missing
                begun = True
                if frame.pts in times:
                    found[times[frame.pts]] = upright_image(frame)
                if frame.pts is not None and frame.pts >= last:
                    break
        return found

    def _counted(self, wanted: np.ndarray) -> dict[int, np.ndarray]:
        """By a plain decode."""
        found, last = {}, wanted[-1]
        chosen = set(wanted.tolist())
        with self._open() as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in chosen:
                    found[number] = upright_image(frame)
                if number == last:
                    break
        return found


Reader = decord.VideoReader | PyAVReader | StoredClip


def open_reader(
    data: bytes, reader: str = "decord", num_threads: int = 1, check: bool = True
) -> Reader:
    """A reader whose frame i is the i-th of a plain decode.

    Args:
        data: The file.
        reader: ``'decord'`` where it is right for the file, or ``'pyav'`` always.
        num_threads: Decoder threads.
        check: Look at the packets first. Without it decord is trusted with any file.

    Raises:
        ValueError: If the file is damaged or empty.
        av.FFmpegError, decord.DECORDError: If it is not a video.
    """
    index = index_packets(data) if check else None
    if reader == "pyav" or (index is not None and index.access != "decord"):
        return PyAVReader(data, num_threads, index)
    found = decord.VideoReader(io.BytesIO(data), num_threads=num_threads)
    if index is not None and len(found) != len(index.times):
        return PyAVReader(data, num_threads, index)
    return found


def read_frames(reader: Reader, indices: np.ndarray) -> list[np.ndarray]:
    """Decodes frames by index, ``(H, W, 3)`` uint8 each (a stored flow: 2 channels).

    decord 0.6 takes the padding at the end of a row for a fourth channel where the
    padded row is four times the width (16, 24, 48 and 72 pixels), and its
    ``get_batch`` fails. There the padding is cut off here.
    """
    if not isinstance(reader, decord.VideoReader):
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
