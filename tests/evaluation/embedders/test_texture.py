"""Texture statistics: each kind against sounds whose statistics are known, and what they hear of real recordings."""

from collections.abc import Mapping

import numpy as np
import pytest

from soundmill.decoding.decode import read_mono
from soundmill.evaluation import embedders, features, spoilings
from soundmill.evaluation.embedders import texture
from soundmill.metrics.frechet import frechet_of_rows

RATE = texture.SAMPLE_RATE


def noise(seconds: float = 5.0, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))


def time(seconds: float = 5.0) -> np.ndarray:
    return np.arange(round(seconds * RATE)) / RATE


def means(wave: np.ndarray) -> dict[str, np.ndarray]:
    """Every kind of statistics, averaged over the windows."""
    kinds = texture.of_envelopes(texture.envelopes(texture.windows(wave)))
    return {name: values.mean(axis=0) for name, values in kinds.items()}


@pytest.mark.parametrize(
    ("num_samples", "count"), [(1, 1), (31_999, 1), (32_000, 1), (47_999, 1), (48_000, 2), (80_000, 4), (160_000, 9)]
)
def test_incomplete_last_window_is_dropped_and_a_short_wave_padded(num_samples, count):
    result = texture.statistics(noise()[:1].repeat(num_samples))
    assert result.shape == (count, texture.SIZE)
    assert result.dtype == np.float32
    assert np.isfinite(result).all()


def test_it_needs_no_weights(tmp_path):
    assert embedders.unavailable("texture") is None
    found = embedders.load("texture", None).embed([noise(), noise(1.0), np.zeros(RATE), np.zeros(0)])
    assert [part.shape for part in found.frames] == [(4, texture.SIZE), (1, texture.SIZE), (1, texture.SIZE), (0, texture.SIZE)]
    assert all(part.dtype == np.float32 for part in found.frames)
    assert found.logits.shape == (4, 0)
    assert embedders.find("texture").digest(None) == "none"


def test_other_waves_and_the_length_of_a_sound_change_nothing(monkeypatch):
    waves = [noise(6.0, 1), noise(3.0, 2)]
    together = texture.TextureEmbedder().embed(waves).frames
    for wave, rows in zip(waves, together, strict=True):
        np.testing.assert_array_equal(texture.statistics(wave), rows)
    monkeypatch.setattr(texture, "AT_ONCE", 2)  # as the parts of a long sound
    np.testing.assert_allclose(texture.statistics(waves[0]), together[0], atol=1e-5)


@pytest.mark.parametrize("hertz", [150.3, 440.0, 3_000.7])
def test_a_sine_is_in_one_place_and_constant(hertz):
    found = means(np.sin(2 * np.pi * hertz * time()))
    loud = np.flatnonzero(found["level"] > -55)
    steps = np.linspace(*(21.4 * np.log10(1 + 0.00437 * np.array([texture.LOWEST, texture.HIGHEST]))), texture.BANDS + 2)
    centres = (10 ** (steps[1:-1] / 21.4) - 1) / 0.00437
    below = int(np.searchsorted(centres, hertz)) - 1
    assert set(loud) == {below, below + 1}  # between the centres of two bands
    assert found["level"].max() == pytest.approx(3, abs=3)  # dB: its amplitude relative to its root mean square
    assert found["variation"].max() < -5  # 3 %, of its beginning and end
    for kind in ("across", "phase"):
        assert np.abs(found[kind]).max() < 0.05, kind


@pytest.mark.parametrize("hertz", [2, 8, 32])
def test_a_modulation_is_found_at_its_frequency(hertz):
    """In every band that is wide enough to hold it."""
    plain, modulated = means(noise()), means(noise() * (1 + np.sin(2 * np.pi * hertz * time())))
    risen = (modulated["modulation"] - plain["modulation"])[1:]
    assert (risen.argmax(axis=1) == texture.MODULATIONS.index(hertz)).all()
    assert (modulated["variation"] > plain["variation"] + 0.5)[4:].all()
    across = modulated["across"][:, texture.MODULATIONS.index(hertz)]
    assert (across > 0.6).all()  # all bands are modulated alike
    assert (modulated["correlation"][:, 1:] > 0.6).all()
    assert np.abs(plain["correlation"]).max() < 0.4  # neighbouring bands overlap


def test_reversing_time_turns_the_phases_of_modulations_round_and_nothing_else():
    """Sounds that decay are not sounds that swell (McDermott & Simoncelli's C2)."""
    decaying = noise(8.0) * np.exp(-((time(8.0) * 4) % 1) * 6)
    forwards, backwards = means(decaying), means(decaying[::-1])
    np.testing.assert_allclose(backwards["phase"][0], forwards["phase"][0], atol=0.05)
    np.testing.assert_allclose(backwards["phase"][1], -forwards["phase"][1], atol=0.05)
    assert np.abs(forwards["phase"][1]).max() > 0.3
    for kind in ("level", "variation", "modulation", "correlation", "across"):
        np.testing.assert_allclose(backwards[kind], forwards[kind], atol=0.15, err_msg=kind)


def test_what_they_hear_of_real_recordings(shared):
    """Of a quarter of ESC-10. With all of it the real clips of fold 3 are 7.0 from the others, pieces of 200 ms 75, of 50 ms 106,
    random phases 275, noise 331, silence 465."""
    waves = {path.stem: read_mono(path, RATE, 10) for path in sorted((shared / "data" / "esc10").rglob("*.ogg"))[::4]}
    test = {name: wave for name, wave in waves.items() if name.startswith("3-")}
    reference = np.concatenate([texture.statistics(wave) for name, wave in waves.items() if name not in test])

    def distance(spoiled: Mapping[str, np.ndarray]) -> float:
        return frechet_of_rows(np.concatenate([texture.statistics(wave) for wave in spoiled.values()]), reference)

    steps = [distance(test)]
    for kind in ("pieces_200ms", "pieces_50ms", "random_phases"):
        steps.append(distance({name: spoilings.spoil(kind, wave, RATE, name, 0) for name, wave in test.items()}))
    steps.append(distance({name: features.synthetic_wave("noise", name, 80_000, 0) for name in test}))
    steps.append(distance({"silence": np.zeros(80_000)}))
    assert steps == sorted(steps)
    np.testing.assert_allclose(np.array(steps[1:]) / steps[0], [4.9, 6.1, 13.9, 16, 21.6], rtol=0.2)
