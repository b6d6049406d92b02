"""What is refused before it is opened, or before memory is taken for it.

A decoder takes a header at its word: it waits for a named pipe for ever, reads a device
until memory is full, and allocates what a damaged size field promises.
"""

import os
import stat

MAX_BYTES = 4 << 30
"""Of a file that is read as a whole: video, flow and images."""

MAX_PIXELS = 1 << 26
"""Of one picture: 8192 x 8192."""

MAX_FRAMES = 10_000_000
"""Of one video: 46 hours at 60 per second."""

MAX_SAMPLES = 1 << 28
"""Of the sound that is read at once, over all channels: 1 GiB as float32."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_file(path: str, max_bytes: int | None = MAX_BYTES) -> None:
    """Refuses what is not a file with something in it.

    Args:
        path: Links are followed.
        max_bytes: Size that is refused beyond; None: no limit.

    Raises:
        FileNotFoundError: If nothing is there.
        OSError: If it may not be looked at.
        ValueError: Saying what it is.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "not a file")
        raise ValueError(f"it is {kind}, not a file with data")
    if not found.st_size:
        raise ValueError("the file is empty (0 bytes)")
    if max_bytes is not None and found.st_size > max_bytes:
        raise ValueError(
            f"it has {found.st_size:,} bytes, and more than {max_bytes:,} are not read "
            "into memory: cut the video into clips"
        )


def check_picture_size(width: int, height: int) -> None:
    """Refuses a picture that no memory is taken for.

    Raises:
        ValueError: Saying its size.
    """
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"its header says {width} x {height} pixels; more than {MAX_PIXELS:,} are "
            "taken for damage"
        )


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a JPEG or PNG image; ``(0, 0)`` of others.

    OpenCV decodes up to 2 ** 30 pixels (3 GB), however small the file.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    place = 2 if data.startswith(b"\xff\xd8") else len(data)
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        # Start of frame: C0 to CF but for DHT, JPG and DAC.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(data[place + 5 : place + 7], "big")
            return int.from_bytes(data[place + 7 : place + 9], "big"), height
        if marker == 0xFF:  # a fill byte
            place += 1
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 0, 0
