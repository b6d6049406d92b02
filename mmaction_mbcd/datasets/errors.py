"""What is wrong with data: one line that names the file or the sample."""

from ..errors import UsageError


class DataError(UsageError):
    """The data cannot be used; the message names the file or the sample.

    A data worker's error arrives with its traceback as its message. The message alone
    is kept: what is at fault is the file, not the code.
    """

    def __init__(self, message: str = "") -> None:
        text = str(message)
        if text.startswith("Caught ") and "Original Traceback" in text:
            text = text.rpartition(f"{type(self).__name__}: ")[2].rstrip()
        super().__init__(text)


class AnnotationError(DataError, ValueError):
    """A split file or table is faulty."""


class MissingFileError(DataError, FileNotFoundError):
    """A file that the data set must have is not there."""
