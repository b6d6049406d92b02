"""Reading split files and tables as text in UTF-8."""

import codecs

from .errors import AnnotationError

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_REMEDY = "save it as UTF-8 (spreadsheets call it `CSV UTF-8`)"


def read_text(path: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        AnnotationError: Naming file and line, if it is in another encoding.
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    if data.startswith(_WIDE):
        raise AnnotationError(f"{path}, line 1: the file is in UTF-16: {_REMEDY}")
    place = data.find(b"\0")
    if place >= 0:  # UTF-16 without a mark is valid UTF-8, with zeros in between
        raise AnnotationError(
            f"{path}, {_line(data, place)}: a zero byte, as in UTF-16: {_REMEDY}"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"{path}, {_line(data, error.start)}: the byte 0x{data[error.start]:02x} "
            f"is not UTF-8 (Latin-1, perhaps): {_REMEDY}"
        ) from None


def _line(data: bytes, place: int) -> str:
    return f"line {data.count(10, 0, place) + 1}"
