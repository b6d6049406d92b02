import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmaction_mbcd.datasets.transforms.corruptions import CorruptFlow, flow
from mmaction_mbcd.flow_coding import FLOW_ZERO, quantize_flow

KINDS = flow.FLOW_CORRUPTIONS
BOUND = 20.0


def corrupt(kind, frames, severity, seed=0, bound=BOUND):
    return KINDS[kind](frames, severity, np.random.default_rng(seed), bound=bound)


def moving(count=4, height=64, width=80, seed=0):
    rng = np.random.default_rng(seed)
    return list(rng.integers(88, 169, (count, height, width, 2), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_severities_are_ordered_by_distance(kind):
    frames = moving()
    errors = [
        np.square(np.subtract(corrupt(kind, frames, s), frames, dtype=float)).mean()
        for s in range(1, 6)
    ]
    assert 0 < errors[0] and (np.diff(errors) > 0).all(), errors


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 4),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    severity=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_pure_and_of_the_same_form(kind, count, height, width, severity, seed):
    frames = moving(count, height, width, seed)
    before = [frame.copy() for frame in frames]
    got = corrupt(kind, frames, severity, seed)
    assert type(got) is list and len(got) == count
    assert all(g.shape == (height, width, 2) and g.dtype == np.uint8 for g in got)
    np.testing.assert_array_equal(got, corrupt(kind, frames, severity, seed))
    for frame in got:
        frame[:] = 0
    np.testing.assert_array_equal(frames, before)


def still(count=2, height=256, width=256):
    return [np.full((height, width, 2), FLOW_ZERO, np.uint8) for _ in range(count)]


@pytest.mark.parametrize("bound, side", [(20.0, 256), (10.0, 256), (5.0, 64)])
def test_noise_is_in_pixels_of_displacement(bound, side):
    share = side / 256
    for severity, sigma in enumerate((0.5, 1, 2), 1):
        frames = corrupt("gaussian_noise", still(2, side, side), severity, bound=bound)
        pixels = (np.array(frames, float) - 128) * bound / 127
        step = bound / 127  # quantisation adds step^2 / 12
        expected = math.hypot(sigma * share, step / math.sqrt(12))
        assert pixels.std() == pytest.approx(expected, rel=5 / math.sqrt(pixels.size))
        assert abs(pixels.mean()) < 5 * expected / math.sqrt(pixels.size)
        a, b = (p.ravel() for p in pixels)
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)


def test_scale_by_hand():
    frame = np.array([[[128, 255], [1, 148]]], np.uint8)  # 0, 20; -20, 3.15 pixels
    got = corrupt("scale", [frame], 2)  # 0.6
    # 127 * 0.6 = 76.2; 20 * 0.6 = 12.
    assert got[0].tolist() == [[[128, 204], [52, 140]]]


def test_blocks_stop():
    frames = [quantize_flow(np.full((64, 96, 2), 5.0), BOUND)] * 3
    before = [np.zeros((8, 12), bool)] * 3
    for severity, share in enumerate((0.1, 0.2, 0.3, 0.5, 0.7), 1):
        stopped = []
        for frame in corrupt("block_dropout", frames, severity):
            # An eighth of 64 pixels; 8 x 12 blocks, each of one value in both axes.
            blocks = frame.reshape(8, 8, 12, 8, 2)
            assert (blocks == blocks[:, :1, :, :1, :1]).all()
            lost = blocks[:, 0, :, 0, 0] == FLOW_ZERO
            assert lost.sum() == round(share * 96)
            stopped.append(lost)
        assert not (stopped[0] == stopped[1]).all()
        for less, more in zip(before, stopped, strict=True):
            assert not (less & ~more).any()
        before = stopped


def test_the_transform_takes_the_bound_of_the_extraction():
    results = dict(imgs=still(), sample_id="a/b")
    wide = CorruptFlow("gaussian_noise", 2, bound=40.0)(dict(results))["imgs"]
    narrow = CorruptFlow("gaussian_noise", 2)(dict(results))["imgs"]
    assert np.std(narrow) == pytest.approx(2 * np.std(wide), rel=0.02)
    for bound in (0, -3.0, math.inf):
        with pytest.raises(ValueError, match="bound is a positive number"):
            CorruptFlow("scale", 1, bound=bound)
