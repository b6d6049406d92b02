"""Randomness as a function of what is drawn for, not of what was drawn before.

A run that was killed and resumed must draw the crops that the uninterrupted run
would have drawn, in any worker process. So the numbers for a sample come from a
seed made of (seed, epoch, sample index), and the generators are put back after.
"""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Entropy = int | str


def _sequence(entropy: tuple[Entropy, ...]) -> np.random.SeedSequence:
    # SeedSequence pads with zeros and splits large integers in 32-bit words: (1,) and
    # (1, 0) would collide, and so would (2**32,) and (0, 1). So every value takes two
    # words, and the number of values comes first.
    words = [len(entropy)]
    for value in entropy:
        if isinstance(value, str):
            value = zlib.crc32(value.encode())
        value = int(value) & 0xFFFF_FFFF_FFFF_FFFF
        words += [value & 0xFFFF_FFFF, value >> 32]
    return np.random.SeedSequence(words)


def derive_seed(*entropy: Entropy) -> int:
    """One seed from several numbers and names.

    Args:
        entropy: Integers of up to 64 bits (negative ones too) and strings, which
            enter through their CRC-32. Order matters.

    Returns:
        int: In ``[0, 2**63)``, fit for ``torch.Generator.manual_seed``. The same on
        every machine and in every process.
    """
    return int(_sequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def seed_generators(*entropy: Entropy) -> None:
    """Seeds Python's, NumPy's and torch's CPU generator.

    The global generators are used because MMAction2's transforms draw from them.
    CUDA generators are left alone: nothing in a data pipeline draws there.

    Args:
        entropy: As in :func:`derive_seed`.
    """
    sequence = _sequence(entropy)
    python, torch_seed = sequence.generate_state(2, np.uint64)
    random.seed(int(python))
    np.random.seed(sequence.generate_state(8, np.uint32))
    torch.default_generator.manual_seed(int(torch_seed) >> 1)


@contextmanager
def restored_generators() -> Iterator[None]:
    """Puts the generators back into the state that they have now."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def seeded(*entropy: Entropy) -> Iterator[None]:
    """:func:`seed_generators`, and :func:`restored_generators` afterwards."""
    with restored_generators():
        seed_generators(*entropy)
        yield
