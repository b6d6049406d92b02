"""One image from its bytes."""

import math
import re

import cv2
import numpy as np

from .limits import check_picture_size, image_size

_PNM = (b"P5", b"P6")
_HEADER = re.compile(rb"P(?P<kind>[56])\n(?P<width>\d+) (?P<height>\d+)\n255\n")
_JPEG, _SCAN, _END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def decode_image(
    data: bytes | bytearray | memoryview, grey: bool = False
) -> np.ndarray:
    """Decodes one image, and refuses a truncated JPEG.

    libjpeg fills what is missing with grey and only warns. But a JPEG ends with a
    marker that its data cannot contain, so a file without one behind its last scan
    was cut off (or preallocated and not filled).

    Args:
        data: The file. Of a PPM or PGM in writable memory, the result is a view.
        grey: One channel instead of RGB.

    Returns:
        np.ndarray: ``(H, W, 3)`` RGB, or ``(H, W)``; uint8.

    Raises:
        ValueError: If it is empty, cut off, larger than any picture or no image.
    """
    if not data:
        raise ValueError("the file is empty (0 bytes)")
    if data[:2] in _PNM:
        return _decode_pnm(data, grey)
    data = bytes(data)
    if data.startswith(_JPEG) and not _has_end(data):
        raise ValueError(f"the JPEG is cut off after {len(data)} bytes")
    check_picture_size(*image_size(data))
    flag = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:  # a header that promises an absurd size
        raise ValueError(str(error)) from error
    if image is None:
        raise ValueError("the file is not an image, or its header is damaged")
    return image if grey else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _has_end(jpeg: bytes) -> bool:
    return jpeg.endswith(_END) or jpeg.rfind(_END) >= max(jpeg.rfind(_SCAN), 0)


def _decode_pnm(data: bytes | bytearray | memoryview, grey: bool) -> np.ndarray:
    """A PPM or PGM image of bytes, as OpenCV writes it: a header, then the pixels."""
    header = _HEADER.match(data)
    if header is None:
        raise ValueError("the file is not an image, or its header is damaged")
    width, height = int(header["width"]), int(header["height"])
    check_picture_size(width, height)
    shape = (height, width) if header["kind"] == b"5" else (height, width, 3)
    if len(data) - header.end() != math.prod(shape):
        raise ValueError(f"the image is cut off after {len(data)} bytes")
    image = np.frombuffer(data, np.uint8, offset=header.end()).reshape(shape)
    if grey != (image.ndim == 2):
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if grey else cv2.COLOR_GRAY2RGB)
    return image
