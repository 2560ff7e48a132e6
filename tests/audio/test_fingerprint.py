"""A fingerprint stays what it is under what copies go through, and unlike sounds have nothing in common."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill.audio import fingerprint, resample
from soundmill.decoding import decode

RATE = fingerprint.SAMPLE_RATE


def noise(seed: int, seconds: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def best(a: np.ndarray, b: np.ndarray) -> float:
    """Highest similarity over the offsets around the expected ones."""
    return max(fingerprint.similarity(a, b, offset) for offset in range(-30, 31))


def test_a_band_that_rises_against_the_next_sets_its_bit():
    # A tone that starts in the middle: its band rises against the one above, and the one below falls against it.
    edges = fingerprint._edges() * RATE / fingerprint.WINDOW
    band = 10
    hertz = (edges[band] + edges[band + 1]) / 2
    wave = noise(0, 1.0) * 1e-2
    time = np.arange(len(wave)) / RATE
    wave += np.where(time > 0.5, 0.5 * np.sin(2 * np.pi * hertz * time), 0).astype(np.float32)
    bits, certain = fingerprint.fingerprint(wave).T
    frame = round(0.5 * fingerprint.FRAMES_PER_SECOND) - fingerprint.LAG
    both = (1 << band) | (1 << band - 1)
    assert int(certain[frame]) & both == both
    assert int(bits[frame]) & both == 1 << band


@given(gain=st.floats(1e-2, 8.0))
def test_gain_changes_nothing_that_is_certain(gain):
    wave = noise(1, 1.0)
    before, after = fingerprint.fingerprint(wave), fingerprint.fingerprint(wave * np.float32(gain))
    # Rounding may move a level across the limit of what is certain, never the direction of a certain move.
    both = before[:, 1] & after[:, 1]
    assert not ((before[:, 0] ^ after[:, 0]) & both).any()
    assert fingerprint.similarity(before, after, 0) > 0.99


@given(shift=st.integers(0, 8000))
def test_any_shift_keeps_most_of_it(shift):
    wave = noise(2)
    result = fingerprint.fingerprint(wave[shift:])
    original = fingerprint.fingerprint(wave)
    offset = -round(shift / fingerprint.HOP)
    assert max(fingerprint.similarity(original, result, offset + more) for more in (-1, 0, 1)) > 0.6


def test_sound_once_sampled_at_8_khz_keeps_what_it_has():
    wave = noise(3)
    narrow = resample.resample(resample.resample(wave, RATE, 8000), 8000, RATE)
    assert best(fingerprint.fingerprint(wave), fingerprint.fingerprint(narrow)) > 0.9


def test_unlike_noises_have_nothing_in_common():
    prints = [fingerprint.fingerprint(noise(seed)) for seed in range(10, 20)]
    assert max(best(a, b) for number, a in enumerate(prints) for b in prints[:number]) < 0.2


def test_similarity_is_symmetric_and_1_for_itself():
    a, b = fingerprint.fingerprint(noise(4)), fingerprint.fingerprint(noise(4)[1000:])
    assert fingerprint.similarity(a, a, 0) == 1.0
    for offset in (-5, -4, 0, 3):
        assert fingerprint.similarity(a, b, offset) == fingerprint.similarity(b, a, -offset)


@given(cuts=st.lists(st.integers(1, 48_000), max_size=6))
def test_blocks_make_no_difference(cuts):
    wave = noise(5)
    blocks = np.split(wave, sorted(cuts))
    whole, parts = fingerprint.fingerprint(wave), fingerprint.fingerprint_blocks(blocks)
    assert whole.shape == parts.shape
    assert fingerprint.similarity(whole, parts, 0) > 0.999  # an FFT of more rows at once may round otherwise


@pytest.mark.parametrize(
    "wave",
    [
        np.zeros(0, dtype=np.float32),
        np.zeros(1, dtype=np.float32),
        noise(6, 0.05),
        np.zeros(5 * RATE, dtype=np.float32),
        np.full(5 * RATE, 0.5, dtype=np.float32),
        np.full(RATE, np.finfo(np.float32).max, dtype=np.float32),
        (0.5 * np.sin(2 * np.pi * 1000 * np.arange(5 * RATE) / RATE)).astype(np.float32),
    ],
    ids=["empty", "one sample", "50 ms", "silence", "constant", "beyond all scales", "tone"],
)
@pytest.mark.filterwarnings("error")
def test_sound_without_features_says_so(wave):
    result = fingerprint.fingerprint(wave)
    assert result.dtype == np.uint32
    assert result.shape[1] == 2
    assert fingerprint.num_certain(result) < fingerprint.MIN_BITS
    assert fingerprint.similarity(result, result, 0) == 0.0


@pytest.mark.parametrize("name", ["002 - Rain/1-17367-A.ogg", "005 - Clock tick/1-21934-A.ogg", "009 - Rooster/1-26806-A.ogg"])
def test_real_sounds_survive_silence_before_them(shared, name):
    wave = decode.read_mono(shared / "data" / "esc10" / name, RATE, 60)
    later = np.concatenate([np.zeros(4800, dtype=np.float32), wave]) / 2
    assert best(fingerprint.fingerprint(wave), fingerprint.fingerprint(later)) > 0.8
