"""Parts of the package import parts of lower layers only (docs/architecture.md)."""

import ast

from tests_support import ROOT

LAYERS = [
    set(),  # modules that all may import: errors, progress, ...
    {"checkpoint_files", "scripts"},
    {"compat"},
    {"parallel"},
    {"models", "datasets", "evaluation"},
    {"engine"},
    {"cli"},
    {"preparation"},
    {"analysis"},
    {"experiments", "benchmark"},
]
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}


def imports():
    """``(file, part of the package, imported part)``, also within functions."""
    for file in sorted((ROOT / "mmaction_mbcd").rglob("*.py")):
        own = file.relative_to(ROOT).with_suffix("").parts
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            above = own[: -node.level] if node.level else ()
            whole = (*above, *(node.module or "").split(".")) if node.module else above
            if whole[:1] == ("mmaction_mbcd",):
                # `from .. import progress` names parts, `from ..models` one.
                names = whole[1:2] or [alias.name for alias in node.names]
                yield from ((file.name, own[1], name) for name in names)


def test_imports_point_down():
    found = [x for x in imports() if x[1] != x[2] and x[1] != "__init__"]
    assert {part for _, part, _ in found} >= {"engine", "cli", "preparation"}
    upward = [x for x in found if HEIGHT.get(x[2], 0) >= HEIGHT.get(x[1], 0)]
    assert not upward
