"""One image from its bytes."""

import cv2
import numpy as np

from .limits import check_picture_size, image_size

_JPEG, _SCAN, _END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def decode_image(data: bytes, grey: bool = False) -> np.ndarray:
    """Decodes one image, and refuses a truncated JPEG.

    libjpeg fills what is missing with grey and only warns. But a JPEG ends with a
    marker that its data cannot contain, so a file without one behind its last scan
    was cut off (or preallocated and not filled).

    Args:
        data: The file.
        grey: One channel instead of RGB.

    Returns:
        np.ndarray: ``(H, W, 3)`` RGB, or ``(H, W)``; uint8.

    Raises:
        ValueError: If it is empty, cut off, larger than any picture or no image.
    """
    if not data:
        raise ValueError("the file is empty (0 bytes)")
    if data.startswith(_JPEG) and data.rfind(_END) < max(data.rfind(_SCAN), 0):
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
