"""In which settings the configs of several methods differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

ABSENT = "–"
"""Stands for a key that a config does not have."""


@dataclass
class Differences:
    """The settings of several methods, by dotted key; values as JSON text.

    Attributes:
        methods: Their names.
        common: ``{key: value}`` of what all have alike.
        differing: ``{key: (value of each method)}``; several values of one method's
            runs are joined by ``' | '``.
        by_run: ``{key: values}`` of what differs from run to run, such as the target,
            in the same way for all methods.
    """

    methods: list[str]
    common: dict[str, str] = field(default_factory=dict)
    differing: dict[str, list[str]] = field(default_factory=dict)
    by_run: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def between(cls, configs: Mapping[str, Sequence[Mapping]]) -> Differences:
        """Compares the methods' configs.

        Args:
            configs: ``{method: resolved configs of its runs}``.
        """
        flat = {m: [dict(flatten(c)) for c in own] for m, own in configs.items()}
        found = cls(list(configs))
        every = (key for own in flat.values() for config in own for key in config)
        for key in dict.fromkeys(every):
            values = [
                sorted({config.get(key, ABSENT) for config in own})
                for own in flat.values()
            ]
            # A method with fewer runs has fewer of the values that runs have.
            most = max(values, key=len)
            if not all(set(own) <= set(most) for own in values):
                found.differing[key] = [" | ".join(own) for own in values]
            elif len(most) > 1:
                found.by_run[key] = most
            else:
                found.common[key] = most[0]
        return found


def flatten(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a config, as ``--cfg-options`` takes them, and JSON values.

    A list of plain values is one value; the items of other lists have their index as
    key, ``pipeline.0.type``.
    """
    items: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(x, (Mapping, list)) for x in value):
        items = list(enumerate(value))
    if not items:
        yield key, json.dumps(value, ensure_ascii=False, default=str)
    for name, item in items:
        yield from flatten(item, f"{key}.{name}" if key else str(name))
