"""Which arguments a class or function takes, also those it hands on to its parents."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mmaction.registry import MODELS
from mmengine.hooks import EMAHook


class Arguments(NamedTuple):
    """Names of arguments.

    Attributes:
        names: Those that are known.
        closed: Whether there are no others; False where ``**kwargs`` goes elsewhere
            than to the parent's ``__init__``.
    """

    names: frozenset[str]
    closed: bool = True

    def __or__(self, other: Arguments) -> Arguments:
        return Arguments(self.names | other.names, self.closed and other.closed)


def accepted_arguments(kind: Callable, config: Mapping[str, object]) -> Arguments:
    """What ``kind(**config)`` may have.

    Args:
        kind: A registered class or function.
        config: Its config; of :class:`EMAHook`, what is averaged decides.
    """
    if not inspect.isclass(kind):
        found, _ = _of_function(kind)
        return found
    if issubclass(kind, EMAHook):
        # MMEngine hands the rest of its arguments to the averaged model.
        averaged = MODELS.get(config.get("ema_type", "ExponentialMovingAverage"))
        if averaged is not None:
            own = _of_chain(kind, last=EMAHook)
            return own | accepted_arguments(averaged, {})
    return _of_chain(kind)


@functools.cache
def _of_chain(kind: type, last: type | None = None) -> Arguments:
    """Those of ``__init__``, and of parents while it hands the rest on to them.

    Args:
        kind: The class.
        last: The parent whose own rest is known to be good.
    """
    found = Arguments(frozenset())
    for cls in kind.__mro__:
        if cls is object or "__init__" not in vars(cls):
            continue
        own, hands_on = _of_function(vars(cls)["__init__"])
        found |= own._replace(closed=True) if cls is last else own
        if cls is last or (own.closed and not hands_on):
            return found
    # What is handed on to `object` was meant for somebody else.
    return found._replace(closed=False)


def _of_function(function: Callable) -> tuple[Arguments, bool]:
    """Its arguments, and whether it hands others to ``super().__init__``."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return Arguments(frozenset(), closed=False), False
    named = frozenset(
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )
    rest = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
    if not rest:
        return Arguments(named), False
    read = _read_from(function, rest[0])
    if read is None:
        return Arguments(named, closed=False), False
    return Arguments(named | read), True


def _read_from(function: Callable, name: str) -> set[str] | None:
    """Keys that a function reads from its ``**name``; None if it goes elsewhere."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    keys: set[str] = set()
    parents = {
        child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Name) and node.id == name):
            continue
        user = parents[node]
        if isinstance(user, ast.keyword):  # f(**kwargs)
            called = parents[user].func
            if not (isinstance(called, ast.Attribute) and called.attr == "__init__"):
                return None
        elif isinstance(user, ast.Subscript):  # kwargs["key"]
            keys |= _constants([user.slice])
        elif isinstance(user, ast.Attribute):  # kwargs.pop("key")
            if user.attr in ("pop", "get", "setdefault"):
                keys |= _constants(parents[user].args[:1])
            elif user.attr not in ("keys", "update"):
                return None
        elif not isinstance(user, ast.Compare):  # "key" in kwargs
            return None
    return keys


def _constants(nodes: list[ast.expr]) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant)}
