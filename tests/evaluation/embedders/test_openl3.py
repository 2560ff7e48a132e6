"""OpenL3 against torchopenl3 at random weights: windows, channels, and checkpoints that are refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torchopenl3 import get_audio_embedding
from torchopenl3.utils import preprocess_audio_batch

from bench import references
from soundmill.decoding.decode import read_mono
from soundmill.errors import UserError
from soundmill.evaluation.embedders.openl3 import SAMPLE_RATE, TRANSFORM, OpenL3Embedder, windows

TOLERANCE = 1e-4


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise that comes and goes, of a few colours."""
    random = np.random.default_rng(seed)
    spectrum = np.fft.rfft(random.standard_normal(num_samples)) / (1 + np.arange(num_samples // 2 + 1)) ** random.uniform(0, 0.7)
    wave = np.fft.irfft(spectrum, num_samples) * (1.2 + np.sin(2 * np.pi * np.arange(num_samples) / SAMPLE_RATE))
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


@pytest.fixture(scope="module")
def theirs():
    return references.openl3()


@pytest.fixture(scope="module")
def checkpoint(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("openl3") / "openl3.pth.tar"
    torch.save(theirs.state_dict(), path)
    yield path
    path.unlink()  # 37 MB


@pytest.fixture(scope="module")
def ours(checkpoint):
    return OpenL3Embedder("openl3_env", checkpoint)


def expected(net, wave: np.ndarray, hop: float = 0.5) -> np.ndarray:
    return get_audio_embedding(wave, SAMPLE_RATE, net, hop_size=hop)[0][0].numpy()


@pytest.mark.parametrize("seconds", [0.00003, 0.2, 0.5, 0.75, 1.0, 1.9, 2.1])
@pytest.mark.parametrize("hop", [0.1, 0.5])
def test_windows_are_torchopenl3s(seconds, hop):
    wave = np.arange(1, 1 + round(seconds * SAMPLE_RATE), dtype=np.float32)
    theirs = preprocess_audio_batch(torch.from_numpy(wave)[None], SAMPLE_RATE, hop_size=hop)[:, 0]
    np.testing.assert_array_equal(windows(wave, int(hop * SAMPLE_RATE)), theirs)


def test_embeddings_are_torchopenl3s(theirs, ours):
    waves = [noise(round(seconds * SAMPLE_RATE), seed) for seed, seconds in enumerate((1.25, 0.3))]
    waves += [np.zeros(SAMPLE_RATE // 2, np.float32), np.concatenate([np.zeros(30_000, np.float32), noise(30_000, 5)])]
    result = ours.embed(waves)
    assert result.logits.shape == (4, 0)
    for wave, frames in zip(waves, result.frames, strict=True):
        np.testing.assert_allclose(frames, expected(theirs, wave), atol=TOLERANCE)
    assert np.std([frames[0] for frames in result.frames], axis=0).max() > 0.1  # it hears a difference


def in_double_precision(net):
    """torchopenl3's network without its rounding, which in bands without sound is what its spectrogram consists of."""
    exact = copy.deepcopy(net).double()
    samples = np.arange(2048)
    waves = (0.5 - 0.5 * np.cos(np.pi * samples / 1024)) * np.exp(-1j * np.pi * np.outer(np.arange(1025), samples) / 1024)
    exact.speclayer.dft_real_kernels = torch.from_numpy(waves.real[:, None].copy())
    exact.speclayer.dft_imag_kernels = torch.from_numpy(waves.imag[:, None].copy())
    return lambda windows: exact(windows.double())


def test_of_real_recordings_too(theirs, ours, shared):
    """These have no sound above 22 kHz, so torchopenl3's own embeddings depend on how it rounds."""
    for path in sorted((shared / "data" / "esc10").glob("*/*.ogg"))[7::150]:
        wave = read_mono(path, SAMPLE_RATE, 60.0)[: 2 * SAMPLE_RATE // 5]
        (result,) = ours.embed([wave]).frames
        np.testing.assert_allclose(result, expected(in_double_precision(theirs), wave), atol=TOLERANCE)
        np.testing.assert_allclose(result, expected(theirs, wave), atol=0.005 * result.max())


def test_no_sound_has_no_window(ours):
    assert ours.embed([np.zeros(0, np.float32)]).frames[0].shape == (0, 512)
    assert ours.embed([]).frames == []


def test_the_hop_and_the_channels_are_options(theirs, checkpoint):
    stereo = OpenL3Embedder("openl3_env", checkpoint, hop=0.25, channels=2)
    left, right = noise(24_000, 1), noise(24_000, 2)
    both, mono = stereo.embed([np.stack([left, right]), np.stack([left, left])]).frames
    of_left, of_right = (expected(theirs, wave, 0.25) for wave in (left, right))
    np.testing.assert_allclose(both, np.concatenate([of_left, of_right], axis=1), atol=TOLERANCE)
    np.testing.assert_allclose(mono, np.concatenate([of_left, of_left], axis=1), atol=TOLERANCE)
    with pytest.raises(UserError, match=r"openl3_env: 3 channels; it has 1 .* or 2"):
        OpenL3Embedder("openl3_env", checkpoint, channels=3)
    with pytest.raises(UserError, match="openl3_env: a hop of 0 seconds"):
        OpenL3Embedder("openl3_env", checkpoint, hop=0)


def test_checkpoints_of_other_networks_are_refused(theirs, tmp_path):
    path = tmp_path / "other.pth.tar"

    def load(state: object, message: str) -> None:
        torch.save(state, path)
        with pytest.raises(UserError, match=message) as error:
            OpenL3Embedder("openl3_env", path)
        assert str(path) in str(error.value)

    state = theirs.state_dict()
    load([state["conv2d_1.bias"]], "not a checkpoint of torchopenl3")
    load({**state, TRANSFORM[1]: -state[TRANSFORM[1]]}, "dft_imag_kernels is not the Fourier transform")
    load({**state, TRANSFORM[0]: state[TRANSFORM[0]][:257]}, "dft_real_kernels is not a transform of 2048 samples")
    load({**state, "speclayer.mel_basis": state["speclayer.mel_basis"][:128]}, "not the weights of OpenL3")
    load({key: value for key, value in state.items() if key != "conv2d_3.bias"}, r"Missing key.*conv2d_3\.bias")
