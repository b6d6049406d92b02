"""Distributions of hyper-parameters; a draw is a point of the unit interval."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UsageError


def unit_draw(*key: object) -> float:
    """A number in [0, 1), uniform over keys and the same on every machine.

    It needs no generator whose state depends on what was drawn before: a search that is
    made longer, or gets a further hyper-parameter, keeps its draws.

    Args:
        key: What the draw is for.
    """
    text = "\n".join(map(str, key))
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11
    return bits / 2**53


def _rounded(value: float) -> float:
    """To four digits: what a log can show, and no machine's last bit."""
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Uniform:
    """Between two numbers."""

    low: float
    high: float

    def at(self, u: float) -> float:
        """The quantile at ``u`` in [0, 1)."""
        return _rounded(self.low + u * (self.high - self.low))

    def __str__(self) -> str:
        return f"U({self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class LogUniform:
    """Whose logarithm is uniform, between two positive numbers."""

    low: float
    high: float

    def at(self, u: float) -> float:
        """The quantile at ``u`` in [0, 1)."""
        return _rounded(self.low * (self.high / self.low) ** u)

    def __str__(self) -> str:
        return f"log U({self.low:.4g}, {self.high:.4g})"


@dataclass(frozen=True)
class Below1:
    """One minus a log-uniform number, for averages: 0.9, 0.99 and 0.999 lie evenly."""

    low: float
    high: float

    def at(self, u: float) -> float:
        """The quantile at ``u`` in [0, 1)."""
        distance = LogUniform(1 - self.high, 1 - self.low).at(1 - u)
        return round(1 - distance, 9)

    def __str__(self) -> str:
        return f"1 - {LogUniform(1 - self.high, 1 - self.low)}"


@dataclass(frozen=True)
class Integer:
    """A whole number between two, both included."""

    low: int
    high: int

    def at(self, u: float) -> int:
        """The quantile at ``u`` in [0, 1)."""
        return self.low + int(u * (self.high - self.low + 1))

    def __str__(self) -> str:
        return f"{self.low} ... {self.high}"


@dataclass(frozen=True)
class Choice:
    """One of some values, each as likely."""

    values: tuple

    def at(self, u: float) -> object:
        """The quantile at ``u`` in [0, 1)."""
        return self.values[int(u * len(self.values))]

    def __str__(self) -> str:
        return "{" + ", ".join(map(str, self.values)) + "}"


Distribution = Uniform | LogUniform | Below1 | Integer | Choice

_KINDS = dict(
    uniform=Uniform, log_uniform=LogUniform, below_1=Below1, integer=Integer,
    choice=Choice,
)  # fmt: skip


def read_distribution(said: object) -> Distribution:
    """A distribution as a grid file has it: ``{log_uniform: [1e-5, 1e-3]}``.

    Raises:
        UsageError: If it is none.
    """
    if not isinstance(said, Mapping) or len(said) != 1 or not set(said) <= set(_KINDS):
        raise UsageError(
            f"{said!r} is not a range such as {{log_uniform: [0.1, 10]}}; there are "
            + ", ".join(_KINDS)
        )
    (kind, values), *_ = said.items()
    if not isinstance(values, (list, tuple)) or not values:
        raise UsageError(f"{kind} needs a list, got {values!r}")
    if kind == "choice":
        return Choice(tuple(values))
    return _between(kind, values)


def _between(kind: str, values: list) -> Distribution:
    number = int if kind == "integer" else float
    try:
        # YAML takes 1e-5, without a dot, for a word.
        low, high = map(number, values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind} needs two numbers, got {values!r}") from error
    most = 1 if kind == "below_1" else math.inf
    if not low < high or (kind == "log_uniform" and low <= 0) or high >= most:
        what = {"log_uniform": " above 0", "below_1": " below 1"}.get(kind, "")
        raise UsageError(
            f"{kind} needs a lower and a higher number{what}, got {values!r}"
        )
    return _KINDS[kind](low, high)
