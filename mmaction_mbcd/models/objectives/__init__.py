"""Objectives: one method per file, its formulas on top and its losses below.

Every module of this folder is imported, because importing registers its losses under
the names that configs use. A new method is a new file that no list has to name.
"""

import importlib
import inspect
import pkgutil

from .base import Objective

_names = set()
for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    for _name, _class in inspect.getmembers(_module, inspect.isclass):
        # Those that a module defines, not those that it imports.
        if issubclass(_class, Objective) and _class.__module__ == _module.__name__:
            globals()[_name] = _class
            _names.add(_name)

__all__ = sorted(_names)
