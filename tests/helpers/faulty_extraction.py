"""An extraction whose videos say what should go wrong. Workers import it, too."""

import os
import time
from dataclasses import dataclass
from typing import ClassVar

from mmaction_mbcd.preparation.extraction import Extraction, MediaError, NothingToWrite


@dataclass(frozen=True)
class Faulty(Extraction):
    """Copies a text file twice; its first word may be a fault."""

    name: ClassVar[str] = "copy"
    nothing: ClassVar[str] = "no text"
    mark: str = ""

    def outputs(self, stem):
        return tuple(stem.with_name(f"{stem.name}_{n}.txt") for n in "ab")

    def write(self, source, targets):
        text = source.read_text()
        if text == "nothing":
            raise NothingToWrite
        targets[0].write_text(self.mark + text)
        if text == "broken":
            raise MediaError("it is broken")
        if text == "die":
            os._exit(9)
        if text.startswith("sleep"):
            source.with_suffix(".tmp").write_text(str(os.getpid()))
            source.with_suffix(".tmp").rename(source.with_suffix(".pid"))
            time.sleep(float(text.split()[1]))
        targets[1].write_text(self.mark + text)
