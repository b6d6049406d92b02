import colorsys
import io
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from mmaction_mbcd.datasets.transforms.corruptions import video
from mmaction_mbcd.datasets.transforms.corruptions.kernels import (
    disk_kernel,
    motion_kernel,
    scaled_kernel,
)
from mmaction_mbcd.datasets.transforms.corruptions.severities import sample_generator

KINDS = video.VIDEO_CORRUPTIONS


def corrupt(kind, frames, severity, seed=0):
    return KINDS[kind](frames, severity, np.random.default_rng(seed))


def flat(value, count=2, height=64, width=96):
    frame = np.full((height, width, 3), value, np.uint8)
    return [frame.copy() for _ in range(count)]


def natural(count=4, height=72, width=96, seed=0):
    """Frames with as much energy at every scale, as pictures of the world have."""
    random = np.random.default_rng(seed)
    y, x = (np.fft.fftfreq(n)[:, None] for n in (height, width))
    falling = 1 / np.maximum(np.hypot(y, x.T), 1 / width)[..., None]
    spectrum = np.fft.fft2(random.standard_normal((height, width, 3)), axes=(0, 1))
    picture = np.fft.ifft2(spectrum * falling, axes=(0, 1)).real
    picture = 128 + 45 * picture / picture.std()
    moving = [np.roll(picture, 3 * i, 1) for i in range(count)]
    return [np.clip(frame, 0, 255).astype(np.uint8) for frame in moving]


def test_the_published_numbers():
    numbers = {kind: each.numbers for kind, each in KINDS.items()}
    single = {k: [n for (n,) in v] for k, v in numbers.items() if len(v[0]) == 1}
    assert single == dict(
        gaussian_noise=[0.08, 0.12, 0.18, 0.26, 0.38],
        shot_noise=[60, 25, 12, 5, 3],
        impulse_noise=[0.03, 0.06, 0.09, 0.17, 0.27],
        brightness=[0.1, 0.2, 0.3, 0.4, 0.5],
        contrast=[0.4, 0.3, 0.2, 0.1, 0.05],
        jpeg=[25, 18, 15, 10, 7],
        frame_drop=[0.125, 0.25, 0.375, 0.5, 0.75],
    )
    disks = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
    assert numbers["defocus"] == numbers["defocus_hac_c"] == disks
    assert numbers["motion_blur"] == ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    assert numbers["fog"] == ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
    # The benchmark's own expressions; floating point gives the first one its 1.11.
    published = [
        np.arange(1, 1.11, 0.01),
        np.arange(1, 1.16, 0.01),
        np.arange(1, 1.21, 0.02),
        np.arange(1, 1.26, 0.02),
        np.arange(1, 1.31, 0.03),
    ]
    for (largest, step), factors in zip(numbers["zoom_blur"], published, strict=True):
        ours = 1 + step * np.arange(round((largest - 1) / step) + 1)
        np.testing.assert_allclose(ours, factors, atol=1e-12)


# --- every kind ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_severities_are_ordered_by_distance(kind):
    frames = natural(count=8)
    if kind == "defocus_hac_c":  # pixels of files, which are larger
        frames = natural(count=2, height=256, width=320)
    errors = [
        np.square(np.subtract(corrupt(kind, frames, s), frames, dtype=float)).mean()
        for s in range(1, 6)
    ]
    assert 0 < errors[0] and (np.diff(errors) > 0).all(), errors


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 5),
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    severity=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_pure_and_of_the_same_form(kind, count, height, width, severity, seed):
    frames = list(
        np.random.default_rng(seed).integers(
            0, 256, (count, height, width, 3), np.uint8
        )
    )
    before = [frame.copy() for frame in frames]
    got = corrupt(kind, frames, severity, seed)
    assert type(got) is list and len(got) == count
    assert all(g.shape == (height, width, 3) and g.dtype == np.uint8 for g in got)
    np.testing.assert_array_equal(frames, before)
    np.testing.assert_array_equal(got, corrupt(kind, frames, severity, seed))
    # Writing into one frame changes no other one, nor the input.
    for number, frame in enumerate(got):
        frame[:] = number
    assert [int(frame.max()) for frame in got] == list(range(count))
    np.testing.assert_array_equal(frames, before)


COHERENT = [k for k in KINDS if not k.endswith("noise") and k != "frame_drop"]


@pytest.mark.parametrize("kind", COHERENT)
def test_all_but_noise_is_the_same_in_every_frame(kind):
    frames = [natural(1)[0]] * 3
    first, *others = corrupt(kind, frames, 3)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise"])
def test_noise_differs_from_frame_to_frame(kind):
    a, b = (np.subtract(f, 100, dtype=float) for f in corrupt(kind, flat(100), 3))
    correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(a.size)


# --- noise -----------------------------------------------------------------


@pytest.mark.parametrize("severity, sigma", [(1, 0.08), (2, 0.12), (3, 0.18)])
def test_gaussian_noise_has_the_stated_standard_deviation(severity, sigma):
    (frame,) = corrupt("gaussian_noise", flat(127, 1, 256, 256), severity)
    noise = (frame.astype(float) - 127) / 255
    # Rounding adds 1/12 of a grey value squared. At 0.18 the 2.8 sigma of each side
    # that 127 leaves are clipped, which takes 1.2 % of the standard deviation.
    expected = math.hypot(sigma, 1 / 255 / math.sqrt(12))
    error = 5 / math.sqrt(2 * noise.size) + (0.015 if severity == 3 else 0)
    assert noise.std() == pytest.approx(expected, rel=error)
    assert abs(noise.mean()) < 5 * sigma / math.sqrt(noise.size) + 0.001


def test_gaussian_noise_is_the_same_draw_at_every_severity():
    clean = flat(127)
    mild, strong = (
        np.subtract(corrupt("gaussian_noise", clean, s), 127, dtype=float)
        for s in (1, 2)
    )
    inner = np.abs(strong) < 120  # not clipped
    np.testing.assert_allclose(mild[inner] * 1.5, strong[inner], atol=1.25)


@pytest.mark.parametrize("value", [5, 40, 90])
@pytest.mark.parametrize(
    "severity, photons", [(1, 60), (2, 25), (3, 12), (4, 5), (5, 3)]
)
def test_shot_noise_has_poissons_mean_and_variance(severity, photons, value):
    (frame,) = corrupt("shot_noise", flat(value, 1, 300, 400), severity)
    x = value / 255
    # Poisson's own moments, of counts that white cuts off.
    counts = np.arange(200)
    log = counts * math.log(photons * x) - photons * x
    chances = np.exp(log - np.array([math.lgamma(k + 1) for k in counts]))
    shown = np.minimum(counts / photons, 1)
    mean = chances @ shown
    variance = chances @ (shown - mean) ** 2
    fourth = chances @ (shown - mean) ** 4
    if severity < 4 and value < 90:  # hardly any is cut off: x and x / photons
        assert mean == pytest.approx(x, rel=1e-3)
        assert variance == pytest.approx(x / photons, rel=1e-2)
    got, size = frame / 255, frame.size
    # Five standard errors, and half a grey value of rounding.
    assert abs(got.mean() - mean) < 5 * math.sqrt(variance / size) + 0.5 / 255
    error = 5 * math.sqrt((fourth - variance**2) / size)
    assert abs(got.var() - variance) < error + 2 * math.sqrt(variance) / 255


def test_impulse_noise_replaces_the_stated_share_by_both_alike():
    for severity, share in enumerate((0.03, 0.06, 0.09, 0.17, 0.27), 1):
        (frame,) = corrupt("impulse_noise", flat(100, 1, 256, 256), severity)
        assert set(np.unique(frame)) == {0, 100, 255}
        for extreme in (0, 255):
            error = 5 * math.sqrt(share / 2 / frame.size)
            assert abs((frame == extreme).mean() - share / 2) < error


def test_impulses_stay_when_more_come():
    mild, strong = (corrupt("impulse_noise", flat(100), s) for s in (2, 4))
    for a, b in zip(mild, strong, strict=True):
        np.testing.assert_array_equal(b[a != 100], a[a != 100])


# --- blur ------------------------------------------------------------------


def plain_disk(radius, sigma):
    """The published construction, in loops."""
    half, reach = max(8, radius), 1 if radius <= 8 else 2
    disk = np.array(
        [
            [float(i * i + j * j <= radius * radius) for j in range(-half, half + 1)]
            for i in range(-half, half + 1)
        ]
    )
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    smooth = ndimage.correlate(disk / disk.sum(), weights, mode="mirror")
    return smooth / smooth.sum()


@pytest.mark.parametrize("radius, sigma", [n for n in KINDS["defocus"].numbers])
def test_the_disk(radius, sigma):
    kernel = disk_kernel(radius, sigma)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(kernel, plain_disk(radius, sigma), atol=1e-9)


def test_the_streak_by_hand():
    # Radius 1: three steps, exp(0), exp(-1/2), exp(-2), to the right of the centre.
    weights = np.exp([0, -0.5, -2])
    kernel = motion_kernel(1, 1, 0)
    np.testing.assert_allclose(kernel[2, 2:], weights / weights.sum())
    assert kernel.sum() == pytest.approx(1) and np.count_nonzero(kernel) == 3
    # A quarter turn counter-clockwise: upwards. 45 degrees: steps of one fall on the
    # pixels 1 and 1 (0.71, 1.41 rounded) of the diagonal.
    np.testing.assert_allclose(motion_kernel(1, 1, 90), np.rot90(kernel), atol=1e-12)
    diagonal = motion_kernel(1, 1, 45)
    assert diagonal[1, 3] == pytest.approx(weights[1:].sum() / weights.sum())
    assert diagonal[2, 2] == pytest.approx(weights[0] / weights.sum())


def test_a_scale_of_one_changes_no_kernel():
    for kernel in (disk_kernel(10, 0.5), motion_kernel(20, 15, 33.0)):
        scaled = scaled_kernel(kernel, 1.0)
        np.testing.assert_allclose(scaled, kernel, atol=1e-15)


def test_scaled_kernel_by_hand():
    # Three cells of half a pixel, from -0.75 to 0.75: half of each outer one lies in
    # the middle pixel, which reaches from -0.5 to 0.5.
    line = np.array([[0, 0, 0], [0.2, 0.5, 0.3], [0, 0, 0]])
    scaled = scaled_kernel(line, 0.5)
    expected = [[0, 0, 0], [0.1, 0.75, 0.15], [0, 0, 0]]
    np.testing.assert_allclose(scaled, expected, atol=1e-15)
    # Twice as large, a cell fills one pixel and half of both neighbours.
    dot = scaled_kernel(np.ones((1, 1)), 2.0)
    np.testing.assert_allclose(dot, np.outer([1, 2, 1], [1, 2, 1]) / 16)


@given(
    radius=st.integers(1, 12),
    scale=st.floats(0.05, 4),
    sigma=st.floats(0.1, 2),
)
@settings(max_examples=60, deadline=None)
def test_scaling_keeps_the_sum_and_scales_the_width(radius, scale, sigma):
    kernel = disk_kernel(radius, sigma)
    scaled = scaled_kernel(kernel, scale)
    assert len(scaled) % 2 == 1 and (scaled >= 0).all()
    assert scaled.sum() == pytest.approx(1, abs=1e-9)

    def variance(k):
        places = np.arange(len(k)) - len(k) // 2
        return k.sum(0) @ places**2 / k.sum()

    # A cell is a square, of variance 1/12. What lies in a pixel is at most half of one
    # from its middle, so the standard deviations differ by no more (Minkowski).
    expected = scale * math.sqrt(variance(kernel) + 1 / 12)
    assert abs(math.sqrt(variance(scaled)) - expected) <= 0.5


@pytest.mark.parametrize("kind", ["defocus", "motion_blur"])
@pytest.mark.parametrize("side", [128, 256])
def test_blur_of_a_bright_pixel_is_the_kernel(kind, side):
    frame = np.zeros((side, side + 20, 3), np.uint8)
    frame[side // 2, side // 2] = 255
    for severity, numbers in enumerate(KINDS[kind].numbers, 1):
        angle = (
            () if kind == "defocus" else (np.random.default_rng(3).uniform(-45, 45),)
        )
        make = disk_kernel if kind == "defocus" else motion_kernel
        kernel = scaled_kernel(make(*numbers, *angle), side / 256)
        half = len(kernel) // 2
        (blurred,) = corrupt(kind, [frame], severity, seed=3)
        window = slice(side // 2 - half, side // 2 + half + 1)
        # Rounded to grey values; half a one, and float32.
        got = blurred[window, window].astype(float)
        np.testing.assert_allclose(
            got, np.repeat(255 * kernel[..., None], 3, -1), atol=0.501
        )
        outside = blurred.astype(int).sum() - got.sum()
        assert outside == 0


def test_the_radius_in_file_pixels_follows_no_size():
    for side in (64, 128):
        frame = np.zeros((side, side, 3), np.uint8)
        frame[side // 2, side // 2] = 255
        (blurred,) = corrupt("defocus_hac_c", [frame], 5)
        lit = np.flatnonzero(blurred[side // 2, :, 0])
        assert lit[-1] - lit[0] + 1 == 21  # radius 10


def test_zoom_blur_is_the_mean_of_magnifications():
    frames = natural(1, 60, 80)
    (largest, step) = KINDS["zoom_blur"].numbers[2]
    factors = np.arange(1, largest + step / 2, step)
    picture = frames[0].astype(float)
    total = picture.copy()
    for factor in factors:
        # From the output's pixel to where it is read, about the middle.
        offset = [(n - 1) / 2 * (1 - 1 / factor) for n in (60, 80)] + [0]
        total += ndimage.affine_transform(
            picture, np.diag([1 / factor, 1 / factor, 1]), offset, order=1
        )
    expected = total / (len(factors) + 1)
    (got,) = corrupt("zoom_blur", frames, 3)
    # OpenCV's places are of 1/32 pixel.
    difference = np.abs(got - expected)
    assert difference.max() < 1.5 and difference.mean() < 0.5


def test_zoom_blur_keeps_the_middle():
    frame = np.zeros((61, 81, 3), np.uint8)
    frame[30, 40] = 255
    (blurred,) = corrupt("zoom_blur", [frame], 5)
    assert blurred[30, 40, 0] == 255
    rows, columns = np.nonzero(blurred[..., 0])
    np.testing.assert_allclose([rows.mean(), columns.mean()], [30, 40])


# --- light -----------------------------------------------------------------


def test_brightness_is_hsvs():
    random = np.random.default_rng(0)
    frame = random.integers(0, 256, (6, 7, 3), np.uint8)
    frame[0, 0], frame[0, 1] = 0, 255
    (got,) = corrupt("brightness", [frame], 2)
    for pixel, shown in zip(frame.reshape(-1, 3), got.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1)))
        np.testing.assert_allclose(shown, expected, atol=0.501)


def test_brightness_by_hand():
    frame = np.array([[[100, 50, 0], [0, 0, 0], [240, 120, 60]]], np.uint8)
    (got,) = corrupt("brightness", [frame], 1)  # + 25.5
    # 125.5 / 100 = 1.255; black becomes 25.5; 240 reaches 255, a factor of 1.0625.
    np.testing.assert_allclose(
        got[0], [[125.5, 62.75, 0], [25.5] * 3, [255, 127.5, 63.75]], atol=0.501
    )


def test_contrast_by_hand():
    # Channel means over both frames: 100, 50, 10.
    a, b = flat([80, 50, 0], 1)[0], flat([120, 50, 20], 1)[0]
    got = corrupt("contrast", [a, b], 1)  # 40 % are kept
    assert got[0][0, 0].tolist() == [92, 50, 6]
    assert got[1][5, 7].tolist() == [108, 50, 14]


def test_cloud_is_a_fractal_that_continues_at_its_edges():
    field = video.cloud(np.random.default_rng(0), decay=2)
    assert field.shape == (256, 256)
    assert (field.min(), field.max()) == (0, 1)
    steps = np.abs(np.diff(field, axis=1)).mean()
    across = np.abs(field[:, 0] - field[:, -1]).mean()
    assert across < 3 * steps
    finer = video.cloud(np.random.default_rng(0), decay=1.4)
    assert np.abs(np.diff(finer, axis=1)).mean() > 2 * steps


def plain_cloud(rng, decay, size):
    """Diamond-square point by point, on a torus."""
    field, amplitude, step = np.zeros((size, size)), 1.0, size
    while step > 1:
        half = step // 2
        places = range(0, size, step)
        count = size // step
        squares, tops, lefts = (rng.uniform(-1, 1, (count, count)) for _ in range(3))

        def at(i, j):
            return field[i % size, j % size]

        for i in places:
            for j in places:
                corners = at(i, j) + at(i + step, j) + at(i, j + step)
                corners += at(i + step, j + step)
                noise = amplitude * squares[i // step, j // step]
                field[i + half, j + half] = corners / 4 + noise
        for i in places:
            for j in places:
                for y, x, draws in ((i, j + half, tops), (i + half, j, lefts)):
                    around = at(y - half, x) + at(y + half, x)
                    around += at(y, x - half) + at(y, x + half)
                    noise = amplitude * draws[i // step, j // step]
                    field[y, x] = around / 4 + noise
        step, amplitude = half, amplitude / decay**2
    return (field - field.min()) / (field.max() - field.min())


def test_cloud_equals_the_algorithm_point_by_point():
    got = video.cloud(np.random.default_rng(5), 1.7, size=16)
    expected = plain_cloud(np.random.default_rng(5), 1.7, 16)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_fog_is_the_clean_picture_and_the_cloud():
    frames = natural(2, 256, 300)
    thickness, decay = KINDS["fog"].numbers[3]
    field = video.cloud(np.random.default_rng(0), decay)
    field = np.concatenate([field, field[:, :44]], axis=1)[..., None]
    most = max(f.max() for f in frames) / 255
    for frame, foggy in zip(frames, corrupt("fog", frames, 4), strict=True):
        expected = (frame / 255 + thickness * field) * most / (most + thickness)
        np.testing.assert_allclose(foggy, 255 * expected, atol=0.51)


def test_fog_of_a_small_picture_is_the_same_cloud_made_smaller():
    (large,) = corrupt("fog", flat(100, 1, 256, 256), 1)
    (small,) = corrupt("fog", flat(100, 1, 64, 64), 1)
    reduced = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(reduced.ravel(), small.ravel())[0, 1] > 0.98


# --- transmission ----------------------------------------------------------


def test_jpeg_is_pillows():
    frames = natural(2)
    for severity, quality in enumerate((25, 18, 15, 10, 7), 1):
        for frame, got in zip(frames, corrupt("jpeg", frames, severity), strict=True):
            file = io.BytesIO()
            Image.fromarray(frame).save(file, format="jpeg", quality=quality)
            expected = np.asarray(Image.open(io.BytesIO(file.getvalue())))
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("count", [1, 2, 8, 32])
def test_lost_frames_are_counted_and_replaced_by_the_last(count):
    frames = [np.full((8, 8, 3), i, np.uint8) for i in range(count)]
    lost_before = set()
    for severity, eighths in enumerate((1, 2, 3, 4, 6), 1):
        shown = [int(f[0, 0, 0]) for f in corrupt("frame_drop", frames, severity)]
        lost = {i for i, value in enumerate(shown) if value != i}
        assert len(lost) == min(round(eighths * count / 8), count - 1)
        assert shown[0] == 0 and lost_before <= lost
        for i in lost:
            assert shown[i] == max(j for j in range(i) if j not in lost)
        lost_before = lost


# --- randomness ------------------------------------------------------------


def test_a_sample_has_its_own_random_numbers():
    def draw(*entropy):
        return sample_generator(*entropy).integers(2**62)

    same = draw(0, "a/b", "RGB", "fog")
    assert same == draw(0, "a/b", "RGB", "fog")
    others = [
        draw(1, "a/b", "RGB", "fog"),
        draw(0, "a/c", "RGB", "fog"),
        draw(0, "a/b", "Flow", "fog"),
        draw(0, "a/b", "RGB", "jpeg"),
    ]
    assert len({same, *others}) == 5
