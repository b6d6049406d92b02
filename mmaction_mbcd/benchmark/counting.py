"""Counts what a piece of work does: floating-point operations, waits for the device."""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# On a GPU the size of what they return, or whether they failed, is known only once
# they have run.
_NEEDS_VALUES = re.compile(
    r"aten\.(_local_scalar_dense|nonzero|masked_select|_?unique\w*|bincount|equal|"
    r"_linalg_check_errors|_?linalg_eig\w*)\b"
)
_TO_HOST = (Tensor.cpu, Tensor.numpy, Tensor.tolist)


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions, also backward.

    A product of ``(m, k)`` and ``(k, n)`` is ``2 m k n``. Elementwise work is not
    counted.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@contextmanager
def counting_waits(device: torch.device, lives_there: Iterable[Tensor]) -> Iterator:
    """Counts where Python waits for the device, by place in the source.

    Args:
        device: On CUDA, torch's sync debug mode counts. On a CPU nothing waits; what
            would is counted by :class:`WouldWait`.
        lives_there: Tensors that lie on the device: parameters and buffers.

    Yields:
        ``{'file.py:line': count}``, filled as the work runs.
    """
    if device.type != "cuda":
        with WouldWait(lives_there) as counter, counter.calls:
            yield counter.found
        return
    found: Counter[str] = Counter()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for each in caught:
        if "synchronizing CUDA operation" in str(each.message):  # not the mode's own
            found[f"{Path(each.filename).name}:{each.lineno}"] += 1


class WouldWait(TorchDispatchMode):
    """Counts, on a CPU, the reads that would wait for a GPU.

    Tensors that lie on the device are followed: what is moved to the device (``to`` a
    ``torch.device``; ``to("cpu")`` is a copy back) and whatever is computed from a
    tensor that lies there, but for a copy elsewhere with ``non_blocking``. A number or
    a mask read from such a tensor counts (``item``, ``bool``, ``tolist``, ``cpu``,
    ``numpy``, ``nonzero``, an index by a mask, the check of a matrix decomposition);
    one read from what a training keeps on the CPU, such as Adam's step, does not.

    Args:
        lives_there: The tensors to start from.

    Attributes:
        found: ``{'file.py:line': count}``.
        calls: To be entered beside this, for the calls that reach no operator.
    """

    def __init__(self, lives_there: Iterable[Tensor]) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.calls = _Moves(self)
        # Weak references keep the addresses from being used again.
        self._there: dict[int, StorageWeakRef] = {}
        for tensor in lives_there:
            self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())
        self._there.setdefault(reference.cdata, reference)

    def lies_there(self, tensor: Tensor) -> bool:
        """Whether a tensor's memory would be the device's."""
        return tensor.untyped_storage()._cdata in self._there

    def moved(self, tensor: Tensor, *args, **kwargs) -> Tensor:
        """``tensor.to(...)`` the device."""
        moved = tensor.to(*args, **kwargs)
        if not self.lies_there(moved):
            moved = moved.clone() if moved is tensor else moved
            self._add(moved)
        return moved

    def copy_of(self, tensor: Tensor) -> Tensor:
        """A copy that lies on the CPU."""
        copy = tensor.clone()
        self._there.pop(copy.untyped_storage()._cdata)
        return copy

    def count(self) -> None:
        """Counts a wait at the place that the caller's code is at."""
        self.found[_place()] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(map(self.lies_there, tensors))
        if there and self._reads(function, args):
            self.count()
        result = function(*args, **(kwargs or {}))
        if _sends(function, args) and not self.lies_there(args[0]):
            return result  # to page-locked memory: it arrives while the device works
        for each in tree_leaves(result) if there else ():
            if isinstance(each, Tensor):
                self._add(each)
        return result

    @staticmethod
    def _reads(function, args) -> bool:
        name = str(function)
        if name.startswith("aten.index.Tensor"):  # a mask is turned into indices
            return any(x is not None and x.dtype == torch.bool for x in args[1])
        return bool(_NEEDS_VALUES.match(name))


class _Moves(TorchFunctionMode):
    """Copies to and from the device; of a CPU's tensors they reach no operator."""

    def __init__(self, counter: WouldWait) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = dict(kwargs or {})
        if function is Tensor.to and _mentions(torch.device, args[1:], given):
            return self._counter.moved(args[0], *args[1:], **given)
        copies = function in _TO_HOST or (
            function is Tensor.to and "cpu" in (*args[1:], *given.values())
        )
        if copies and self._counter.lies_there(args[0]):
            self._counter.count()
            args = (self._counter.copy_of(args[0]), *args[1:])
        return function(*args, **given)


def _mentions(kind: type, args: Iterable, kwargs: Mapping) -> bool:
    return any(isinstance(value, kind) for value in (*args, *kwargs.values()))


def _sends(function: Callable, args: Sequence) -> bool:
    return function is torch.ops.aten.copy_.default and len(args) > 2 and bool(args[2])


def _place() -> str:
    """The innermost line of Python that is neither torch's nor this file's."""
    frame, here = sys._getframe(1), Path(__file__).name
    torch_folder = str(Path(torch.__file__).parent)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        if not path.startswith(torch_folder) and Path(path).name != here:
            break
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
