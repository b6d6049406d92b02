"""Sampling that can be continued, and that tells the dataset seed and epoch."""

from collections.abc import Iterator

from mmaction.registry import DATA_SAMPLERS
from mmengine.dataset import DefaultSampler


class SampleIndex(int):
    """A sample's index that carries what its random draws depend on.

    It is an ``int``, so batch samplers, worker queues and any dataset take it as one.

    Attributes:
        entropy: ``(seed, epoch)`` of the order that the index comes from.
    """

    entropy: tuple[int, ...]

    def __new__(cls, index: int, entropy: tuple[int, ...] = ()) -> "SampleIndex":
        """An index with its ``(seed, epoch)``."""
        self = super().__new__(cls, index)
        self.entropy = tuple(entropy)
        return self

    def __reduce__(self) -> tuple:
        return type(self), (int(self), self.entropy)

    def __repr__(self) -> str:
        return f"SampleIndex({int(self)}, entropy={self.entropy})"


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """:class:`mmengine.dataset.DefaultSampler` whose order can be entered midway.

    The order is the stock one, a function of (seed, epoch). The indices are
    :class:`SampleIndex`, from which :class:`MultiModalDataset` seeds its draws.
    """

    _start = 0

    def set_start(self, start: int) -> None:
        """Skips samples at the head of this rank's order, once.

        Only the next iteration is shortened (an epoch that was interrupted); those
        after it are whole again. The length stays that of a whole epoch.

        Args:
            start: Number of samples, not of batches.

        Raises:
            ValueError: If this rank does not have so many samples.
        """
        if not 0 <= start <= len(self):
            raise ValueError(
                f"cannot start at sample {start}: an epoch has {len(self)} samples "
                f"on rank {self.rank}. Resume with the batch size and the number of "
                "processes of the interrupted run"
            )
        self._start = start

    def __iter__(self) -> Iterator[SampleIndex]:
        order, start = list(super().__iter__()), self._start
        self._start = 0
        entropy = (self.seed, self.epoch)
        return iter([SampleIndex(index, entropy) for index in order[start:]])
