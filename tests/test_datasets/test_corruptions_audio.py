import math

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from media import tone
from mmaction_mbcd.datasets.transforms.corruptions import CorruptWaveform, audio

KINDS = audio.AUDIO_CORRUPTIONS
RATE = 16000


def corrupt(kind, waveform, severity, seed=0, **options):
    rng = np.random.default_rng(seed)
    return KINDS[kind](waveform, severity, rng, rate=RATE, **options)


def sound(seconds=2.0, seed=0):
    """Noise with falling energy, in bursts, at a peak of 0.7."""
    rng = np.random.default_rng(seed)
    length = int(seconds * RATE)
    noise = signal.lfilter([1], [1, -0.8], rng.standard_normal(length))
    noise *= np.abs(np.sin(np.arange(length) / RATE * 7))
    return (0.7 * noise / np.abs(noise).max()).astype(np.float32)


def power(x):
    return np.mean(np.square(np.asarray(x, np.float64)))


def in_decibels(ratio):
    return 10 * math.log10(ratio)


def test_the_published_numbers():
    gains = [n for (n,) in KINDS["wind"].numbers]
    assert gains == [-16, -14, -12, -10, -8]


# --- every kind ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_severities_are_ordered_by_distance(kind):
    clean = sound()
    errors = [power(corrupt(kind, clean, s) - clean) for s in range(1, 6)]
    assert 0 < errors[0] and (np.diff(errors) > 0).all(), errors


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(2, 5000),
    severity=st.integers(1, 5),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32),
)
def test_pure_and_of_the_same_form(kind, length, severity, dtype, seed):
    clean = np.random.default_rng(seed).uniform(-1, 1, length).astype(dtype)
    before = clean.copy()
    got = corrupt(kind, clean, severity, seed)
    assert got.shape == (length,) and got.dtype == dtype
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, corrupt(kind, clean, severity, seed))
    got[:] = 7
    np.testing.assert_array_equal(clean, before)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "wind"])
def test_silence_stays_silence(kind):
    silence = np.zeros(1000, np.float32)
    assert not corrupt(kind, silence, 3).any()


# --- ratios ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["white_noise", "background"])
def test_the_ratio_is_the_stated_one(kind):
    clean = sound().astype(np.float64)
    for severity, snr in enumerate((20, 15, 10, 5, 0), 1):
        noise = corrupt(kind, clean, severity) - clean
        assert in_decibels(power(clean) / power(noise)) == pytest.approx(snr, abs=1e-6)


def test_the_ratio_holds_in_float32():
    clean = sound()
    noise = corrupt("white_noise", clean, 1).astype(np.float64) - clean
    # float32 rounds at 6e-8 of values below 1; the noise's rms is 0.01.
    assert in_decibels(power(clean) / power(noise)) == pytest.approx(20, abs=1e-4)


def test_the_ratio_by_hand():
    # Energy 1 against energy 9: at 0 dB the noise shrinks to a third.
    got = audio.mixed_at(np.array([1.0, -1.0]), np.array([3.0, 3.0]), 0)
    np.testing.assert_allclose(got, [2, 0])
    got = audio.mixed_at(np.array([1.0, -1.0]), np.array([3.0, 3.0]), 20)
    np.testing.assert_allclose(got, [1.1, -0.9])


def test_white_noise_is_white_and_the_same_draw_at_every_severity():
    clean = sound(8).astype(np.float64)
    mild, strong = (corrupt("white_noise", clean, s) - clean for s in (1, 5))
    np.testing.assert_allclose(mild * 10, strong, atol=1e-12)
    # The energy of eight bands of 1 kHz: equal to within five standard errors.
    spectrum = np.abs(np.fft.rfft(strong)) ** 2
    bands = spectrum[1:].reshape(8, -1).mean(axis=1)
    assert np.abs(bands / bands.mean() - 1).max() < 5 / math.sqrt(len(spectrum) / 8)


def test_a_recording_of_wind_is_looped_from_its_start_at_the_stated_gain():
    recording = np.array([0.5, -0.25, 0.125])
    clean = np.array([0.0, 0.1, 0.2, 0.3, 0.95])
    got = corrupt("wind", clean, 5, recording=recording)
    factor = 10 ** (-8 / 20)  # 0.398
    expected = clean + factor * np.array([0.5, -0.25, 0.125, 0.5, -0.25])
    np.testing.assert_allclose(got, expected)
    # 0.95 and half of 0.398 are too much.
    got = corrupt("wind", np.full(1, 0.95), 5, recording=recording)
    assert got.tolist() == [1.0]


def test_a_background_recording_starts_anywhere():
    recording = np.arange(1.0, 8)
    clean = np.ones(20)
    firsts = set()
    for seed in range(60):
        noise = corrupt("background", clean, 5, seed, recording=recording) - clean
        steps = noise / np.abs(noise).min()
        np.testing.assert_allclose(np.diff(steps) % 7, 1, atol=1e-6)  # 7 -> 1 too
        firsts.add(round(steps[0]))
    assert firsts == set(range(1, 8))


def test_synthetic_wind_is_turbulence_in_gusts():
    wind = audio.synthetic_wind(10 * RATE, RATE, np.random.default_rng(0))
    assert np.abs(wind).max() == 1
    frequencies, density = signal.welch(wind, RATE, nperseg=8192)

    def at(low, high):
        return density[(frequencies > low) & (frequencies < high)].mean()

    # 2^(5/3) = 3.17 times the density an octave lower.
    octaves = [at(f, 2 * f) for f in (100, 200, 400, 800, 1600, 3200)]
    ratios = np.divide(octaves[:-1], octaves[1:])
    np.testing.assert_allclose(ratios, 2 ** (5 / 3), rtol=0.2)
    loudness = np.sqrt(np.square(wind).reshape(40, -1).mean(axis=1))
    assert loudness.max() > 2 * loudness.min()


def test_synthetic_babble_is_pink_above_100_hz():
    babble = audio.synthetic_babble(20 * RATE, RATE, np.random.default_rng(0))
    frequencies, density = signal.welch(babble, RATE, nperseg=4096)

    def at(low, high):
        return density[(frequencies > low) & (frequencies < high)].mean()

    # Half the density an octave higher: 3 dB.
    octaves = [at(f, 2 * f) for f in (200, 400, 800, 1600, 3200)]
    np.testing.assert_allclose(np.divide(octaves[:-1], octaves[1:]), 2, rtol=0.15)


# --- the others ------------------------------------------------------------


def test_clipping_by_hand():
    clean = np.array([1.0, -0.5, 0.2, -0.8])
    got = corrupt("clipping", clean, 1)  # 6 dB below the peak: 0.501
    limit = 10 ** (-6 / 20)
    np.testing.assert_allclose(got, [limit, -0.5, 0.2, -limit])


@pytest.mark.parametrize("severity, cutoff", [(1, 4000), (3, 1000), (5, 250)])
def test_low_pass_by_tones(severity, cutoff):
    time = np.arange(RATE) / RATE

    def gain(hertz):
        heard = corrupt("low_pass", np.sin(2 * np.pi * hertz * time), severity)
        middle = slice(RATE // 4, -RATE // 4)
        return math.sqrt(2 * power(heard[middle]))

    # |H|^2 of a Butterworth filter of order 4, applied twice; its bilinear form warps
    # frequencies by tan(pi f / rate).
    for hertz in (cutoff / 2, cutoff, cutoff * 1.5):
        warped = math.tan(math.pi * hertz / RATE) / math.tan(math.pi * cutoff / RATE)
        assert gain(hertz) == pytest.approx(1 / (1 + warped**8), abs=0.002)


def test_low_pass_above_what_the_rate_holds_changes_nothing():
    clean = sound()
    got = KINDS["low_pass"](clean, 1, np.random.default_rng(0), rate=8000)
    np.testing.assert_array_equal(got, clean)
    assert got is not clean


def test_dropouts_silence_the_stated_share_of_segments():
    clean = np.ones(2 * RATE, np.float32)
    before = np.ones(40, bool)
    for severity, share in enumerate((0.1, 0.2, 0.3, 0.4, 0.5), 1):
        segments = corrupt("dropouts", clean, severity).reshape(40, 800)  # 50 ms
        assert set(np.unique(segments)) == {0, 1}
        assert (segments == segments[:, :1]).all()
        kept = segments[:, 0] == 1
        assert (~kept).sum() == round(40 * share)
        assert not (kept & ~before).any()  # what was lost stays lost
        before = kept


# --- the transform ---------------------------------------------------------


def heard(waveform, sample_id="a/b", rate=RATE, **settings):
    results = dict(audios=waveform, sample_rate=rate, sample_id=sample_id)
    return CorruptWaveform(**settings)(results)["audios"]


def test_a_recording_is_resampled_and_mixed_in(tmp_path):
    file = tmp_path / "wind.wav"
    soundfile.write(file, np.stack([tone(1, rate=8000)] * 2, 1), 8000)
    clean = np.zeros(RATE, np.float32)
    got = heard(clean, kind="wind", severity=1, recording=str(file))
    read, _ = soundfile.read(file)
    expected = 10 ** (-16 / 20) * signal.resample_poly(read[:, 0], 2, 1)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_each_sample_draws_one_of_a_folders_recordings(tmp_path):
    levels = {"a.wav": 0.2, "deeper/b.flac": 0.4, "c.WAV": 0.8}
    for name, level in levels.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.full(10, level), RATE)
    (tmp_path / "notes.txt").write_text("no sound")
    settings = dict(kind="wind", severity=5, recording=str(tmp_path))
    clean = np.zeros(20, np.float32)
    peaks = {heard(clean, f"s{i}", **settings).max() for i in range(40)}
    expected = [level * 10 ** (-8 / 20) for level in levels.values()]
    np.testing.assert_allclose(sorted(peaks), expected, atol=1e-4)


def test_recordings_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match="no sound in .*wav"):
        CorruptWaveform("wind", 1, recording=str(tmp_path))
    with pytest.raises(
        ValueError, match="'clipping' mixes in no recording; wind, back"
    ):
        CorruptWaveform("clipping", 1, recording=str(tmp_path))
    (tmp_path / "bad.wav").write_bytes(b"not a sound")
    bad = dict(kind="wind", severity=1, recording=str(tmp_path / "bad.wav"))
    with pytest.raises(ValueError, match="cannot read the recording .*bad.wav"):
        heard(np.zeros(10, np.float32), **bad)
    soundfile.write(tmp_path / "mute.wav", np.zeros(10), RATE)
    mute = dict(kind="background", severity=1, recording=str(tmp_path / "mute.wav"))
    with pytest.raises(ValueError, match="mute.wav is empty, silent"):
        heard(np.zeros(10, np.float32), **mute)
