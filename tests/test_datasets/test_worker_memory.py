"""Data workers share what was imported, and their memory stays where it was."""

import os

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmaction_mbcd import cli, cores
from tests_support import ROOT

CONFIG = ROOT / "configs" / "mbcd" / "synth_action" / "erm.py"


def loader(data_root, batch_size, workers):
    """Of the training, with the start method of the config."""
    init_default_scope("mmaction")
    cfg = Config.fromfile(CONFIG)
    cli.set_datasets(cfg, data_root=str(data_root))
    cfg.train_dataloader.update(
        batch_size=batch_size,
        num_workers=workers,
        multiprocessing_context=cfg.env_cfg.mp_cfg.mp_start_method,
    )
    return Runner.build_dataloader(cfg.train_dataloader, seed=0)


def own_memory(pid):
    """MB that no other process shares."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        rows = [line.split() for line in file]
    sizes = {row[0]: int(row[1]) for row in rows if row[-1] == "kB"}
    return (sizes["Private_Clean:"] + sizes["Private_Dirty:"]) / 1024


def test_a_worker_shares_what_was_imported(tiny_data):
    """One that imports for itself has 330 MB, after 7 to 11 s of its core."""
    iterator = iter(loader(tiny_data, batch_size=4, workers=2))
    next(iterator)
    for worker in iterator._workers:
        assert 1 < own_memory(worker.pid) < 100


def test_each_worker_keeps_as_much_memory_as_workers_do(
    tiny_data, tmp_path, monkeypatch
):
    """Told once each, and never the training process."""
    told = tmp_path / "told"

    def tell():
        with open(told, "a") as file:
            file.write(f"{os.getpid()}\n")

    monkeypatch.setattr(cores, "keep_freed_memory_of_a_worker", tell)
    batches = loader(tiny_data, batch_size=1, workers=2)
    batches.dataset[next(iter(batches.sampler))]
    assert not told.exists()
    iterator = iter(batches)
    workers = {worker.pid for worker in iterator._workers}
    for _ in range(8):
        next(iterator)
    iterator._shutdown_workers()
    assert sorted(map(int, told.read_text().split())) == sorted(workers)


@pytest.mark.long
def test_memory_over_5000_batches(tiny_data):
    """The dataset, its decoders and the pages that Python copies as it counts."""
    batches, count, sizes = loader(tiny_data, batch_size=1, workers=2), 0, {}
    while count < 5000:
        batches.sampler.set_epoch(count)
        for _ in batches:
            count += 1
            if count in (500, 5000):
                pids = [worker.pid for worker in batches._iterator._workers]
                sizes[count] = [own_memory(pid) for pid in pids]
    # A clip's frames, 75 kB, left behind by each of 2,250 reads would be 170 MB.
    for early, late in zip(sizes[500], sizes[5000], strict=True):
        assert late - early < 20, sizes
