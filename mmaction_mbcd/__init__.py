"""Multi-modal domain generalization for MMAction2.

Importing the package (``custom_imports = dict(imports=['mmaction_mbcd'])`` in a
config) repairs the installed MMAction2, see :mod:`mmaction_mbcd.compat`, and registers
every component in MMAction2's registries. Where it loads torch, it also sees to it that
jobs can share a machine, see :mod:`mmaction_mbcd.cores`.
"""

from . import compat, cores

with cores.shared_cores():
    compat.apply()
cores.keep_freed_memory()

from . import datasets, engine, evaluation, models  # noqa: E402

__all__ = ["compat", "cores", "datasets", "engine", "evaluation", "models"]
__version__ = "0.1.0"
