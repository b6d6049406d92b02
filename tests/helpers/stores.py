"""Frame stores of the tests' tiny data sets."""

import copy

from mmengine.config import Config

from mmaction_mbcd.preparation.packing import pack, store_settings


def config_of(kind, root, train, test=None, **settings):
    """A config whose three loaders have a data set each."""
    base = dict(type=kind, data_root=str(root), **settings)
    uses = dict(train=train, val=test or train, test=test or train)
    return Config(
        {
            f"{use}_dataloader": dict(
                batch_size=2, dataset=dict(base, use=use, pipelines=copy.deepcopy(own))
            )
            for use, own in uses.items()
        }
    )


def pack_quietly(cfg, out, codec="png", quality=92, **settings):
    """Packs in this process; the exit code."""
    chosen = store_settings(cfg, codec, quality)
    return pack(cfg, out, chosen, workers=settings.pop("workers", 1), **settings)
