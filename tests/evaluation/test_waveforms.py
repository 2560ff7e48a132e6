"""Distances of waves: known answers, any rate and channels, and pairs of files."""

import numpy as np
import pytest
import soundfile
import torch

from soundmill import hashing
from soundmill.evaluation import features, waveforms
from soundmill.evaluation.waveforms import fit, log_spectral_distance, multi_resolution_stft


def noise(seed: int, channels: int = 1, samples: int = 20_000) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((channels, samples))).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 20_000), (2, 44_100), (1, 800), (1, 1), (3, 2_049)])
def test_a_wave_is_at_no_distance_from_itself(shape):
    wave = noise(0, *shape)
    assert log_spectral_distance(wave, wave) == 0
    assert multi_resolution_stft(wave, wave) == 0


@pytest.mark.parametrize("gain_db", [-12.0, -1.0, 6.0])
def test_a_gain_is_a_distance_of_as_many_decibels(gain_db):
    wave = noise(1, 2).astype(np.float64)
    gain = 10 ** (gain_db / 20)
    assert log_spectral_distance(gain * wave, wave) == pytest.approx(abs(gain_db), rel=1e-3)
    # the spectral convergence is |g − 1|, and the log magnitudes are |ln g| apart
    assert multi_resolution_stft(gain * wave, wave) == pytest.approx(abs(gain - 1) + abs(np.log(gain)), rel=1e-3)


def test_what_is_below_the_floor_does_not_count():
    wave = noise(2)
    assert log_spectral_distance(wave + 1e-4 * 1e-4 * noise(3), wave) < 0.01
    assert log_spectral_distance(1e-9 * wave, wave) == pytest.approx(log_spectral_distance(0 * wave, wave))
    levels = 20 * np.log10(waveforms._magnitudes(wave))
    below = np.maximum(levels - (levels.max() - waveforms.FLOOR_DB), 0)  # silence is at the floor everywhere
    assert log_spectral_distance(0 * wave, wave) == pytest.approx(np.sqrt((below**2).mean(axis=1)).mean(), rel=1e-6)


def test_one_frame_by_hand():
    wave, other = noise(4, samples=2_048), noise(5, samples=2_048)
    levels = []
    for signal in (other, wave):
        padded = np.pad(signal[0].astype(np.float64), 1024, mode="reflect")
        frames = np.stack([padded[start : start + 2048] for start in range(0, len(padded) - 2047, 512)])
        levels.append(np.abs(np.fft.rfft(frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)), axis=1)))
    floor = levels[1].max() * 1e-4
    first, second = (20 * np.log10(np.maximum(level, floor)) for level in levels)
    expected = np.sqrt(((first - second) ** 2).mean(axis=1)).mean()
    assert log_spectral_distance(other, wave) == pytest.approx(expected, rel=1e-9)


def test_mrstft_is_auraloss_as_it_is_by_default():
    from auraloss.freq import MultiResolutionSTFTLoss

    output, original = noise(6, 2), noise(7, 2)
    expected = MultiResolutionSTFTLoss()(torch.from_numpy(output)[None], torch.from_numpy(original)[None])
    assert multi_resolution_stft(output, original) == pytest.approx(float(expected), rel=1e-4)


def test_waves_of_other_rates_channels_and_lengths_are_fitted_to_the_original():
    output, original = fit(noise(8, 2, 44_100), 44_100, noise(9, 1, 16_500), 16_000)
    assert output.shape == original.shape == (1, 16_000)
    stereo, same = fit(noise(8, 2, 300), 22_050, noise(9, 2, 200), 22_050)
    assert stereo.shape == same.shape == (2, 200)


def test_pairs_of_files(tmp_path):
    original, output = noise(10, 2, 22_050), noise(10, 2, 22_050) / 2
    sounds = {}
    for name, wave in (("original", original), ("made", output), ("short", output[:, :11_025]), ("silent", 0 * original)):
        soundfile.write(tmp_path / f"{name}.wav", wave.T, 22_050, subtype="FLOAT")
        path = tmp_path / f"{name}.wav"
        sounds[name] = features.file(name, path, hashing.file_digest(path))
    pairs = {"whole": ("made", "original"), "cut": ("short", "original"), "silent": ("made", "silent")}
    whole, cut, silent = waveforms.measure((name, *(sounds[one] for one in both)) for name, both in pairs.items())
    assert whole["lsd"] == pytest.approx(20 * np.log10(2), rel=1e-3)
    assert (whole["cut"], cut["cut"], silent["cut"]) == (False, True, False)
    assert cut["lsd"] == pytest.approx(whole["lsd"], rel=0.05)
    assert "lsd" not in silent  # nothing is at a distance from silence
