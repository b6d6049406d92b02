"""What goes wrong before the first batch is a sentence; what a stopped run left."""

import logging
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ..checkpoint_files import checkpoints_in
from ..errors import UsageError

# What MMEngine's registries put before an error of the class that they build.
_BUILT = re.compile(r"^(?:class `(\w+)` in \S+: )+")


class _Begun(Hook):
    """Knows whether a batch was asked for."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.yet = False

    def before_train_epoch(self, runner: Runner) -> None:
        self.yet = True

    def before_val_epoch(self, runner: Runner) -> None:
        self.yet = True

    def before_test_epoch(self, runner: Runner) -> None:
        self.yet = True


@contextmanager
def start_errors(begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Makes one line of errors that come before the first batch: the config's.

    The traceback goes to the run's log file, for whoever writes a component; where the
    error is none of a checked setting, the line says so.

    Raises:
        UsageError: Instead of any other exception while ``begun()`` is False.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if begun():
            raise
        raise UsageError(_sentence(error) + _logged(error)) from error


@contextmanager
def errors_of_the_start(runner: Runner) -> Iterator[None]:
    """:func:`start_errors` until the runner's first batch."""
    begun = _Begun()
    runner.register_hook(begun)
    with start_errors(lambda: begun.yet):
        yield


def _sentence(error: Exception) -> str:
    # str() of a KeyError is the repr of its message.
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = " ".join(str(said).split())
    match = _BUILT.match(text)
    rest = text[match.end() :] if match else text
    if match and match[1] not in rest:
        rest = f"{match[1]}: {rest}"
    return rest or type(error).__name__


def _logged(error: Exception) -> str:
    """Writes the traceback to the log file; where it is, unless it needs no reading."""
    if not MMLogger._instance_dict:
        return ""
    logger = MMLogger.get_current_instance()
    files = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
    text = "".join(traceback.format_exception(error))
    for handler in files:
        record = logger.makeRecord(
            logger.name, logging.ERROR, __file__, 0, text, (), None
        )
        handler.handle(record)
    if isinstance(error, (ValueError, OSError)) or not files:
        return ""
    return f" ({type(error).__name__}; traceback in {files[0].baseFilename})"


def continue_advice(cfg: Config | None) -> str:
    """Which checkpoint a stopped training left, and how to go on."""
    folder = cfg.get("work_dir") if cfg is not None else None
    saved = checkpoints_in(folder) if folder else []
    newest = saved[0] if saved else None
    if newest is None:
        return "nothing was saved yet: run the same command again"
    return f"saved is {newest}: the same command with --resume continues from there"
