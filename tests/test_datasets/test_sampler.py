import copy
import pickle

import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader, Dataset

from mmaction_mbcd.datasets import ResumableSampler, SampleIndex


class Rows(Dataset):
    """Returns what the worker saw of the index."""

    def __init__(self, n=10):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return (int(index), *index.entropy)


def test_index_is_an_int_with_entropy():
    index = SampleIndex(4, (7, 2))
    assert index == 4 and [10, 11, 12, 13, 14][index] == 14 and hash(index) == hash(4)
    for same in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert same == 4 and same.entropy == (7, 2) and type(same) is SampleIndex
    assert repr(index) == "SampleIndex(4, entropy=(7, 2))"


def test_order_is_the_stock_one():
    ours, stock = (cls(Rows(), seed=3) for cls in (ResumableSampler, DefaultSampler))
    for epoch in range(3):
        ours.set_epoch(epoch), stock.set_epoch(epoch)
        got = list(ours)
        assert got == list(stock)
        assert {i.entropy for i in got} == {(3, epoch)}


def test_start_shortens_one_iteration():
    sampler = ResumableSampler(Rows(), seed=0)
    sampler.set_epoch(1)
    whole = list(sampler)
    sampler.set_start(4)
    assert len(sampler) == 10
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole
    sampler.set_start(10)
    assert list(sampler) == []


@pytest.mark.parametrize("start", [-1, 11])
def test_start_outside_of_the_epoch(start):
    with pytest.raises(ValueError, match=f"sample {start}: an epoch has 10 samples"):
        ResumableSampler(Rows(), seed=0).set_start(start)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_start_counts_the_samples_of_the_rank(monkeypatch, rank):
    monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda: (rank, 3))
    sampler = ResumableSampler(Rows(10), seed=0)
    whole = list(sampler)
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(10, generator=g).tolist()
    assert whole == (order + order[:2])[rank::3]  # 12 = 4 for each of 3
    sampler.set_start(3)
    assert list(sampler) == whole[3:]


@pytest.mark.parametrize("workers", [0, 2])
def test_through_worker_queues(workers):
    sampler = ResumableSampler(Rows(), seed=5)
    loader = DataLoader(
        Rows(),
        batch_size=2,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        got = [row for batch in loader for row in torch.stack(batch, 1).tolist()]
        assert got == [[int(i), 5, epoch] for i in sampler]
    sampler.set_start(6)
    assert len(list(loader)) == 2
    assert len(list(loader)) == 5
