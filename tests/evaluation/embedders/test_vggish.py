"""VGGish against torchvggish at random weights, its log-mels against that package's, and weights that are not it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvggish import mel_features, vggish_input

from bench import references
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders.vggish import FRONT_ENDS, VggishEmbedder, patches

RATE = 16_000
GOOGLE = FRONT_ENDS["google-fad"]


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """A tone that rises, in noise that comes and goes."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(time)) * np.sin(np.pi * time) ** 2
    return (0.2 * np.sin(2 * np.pi * (200 + 300 * time) * time) + 0.1 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def theirs():
    return references.vggish()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("vggish") / "vggish.pth"
    torch.save(theirs.state_dict(), path)
    yield VggishEmbedder(path)
    path.unlink()  # 289 MB


@pytest.mark.parametrize(
    ("num_samples", "count"), [(0, 0), (1, 0), (15_599, 0), (15_600, 1), (30_959, 1), (30_960, 2), (160_000, 10), (160_240, 10)]
)
def test_an_incomplete_patch_is_dropped(num_samples, count):
    result = patches(np.zeros(num_samples, np.float32), FRONT_ENDS["torchvggish"])
    assert result.shape == (count, 96, 64)
    np.testing.assert_array_equal(result, np.float32(np.log(np.float32(0.01))))


@pytest.mark.parametrize(("num_samples", "count"), [(15_999, 0), (16_000, 1), (23_999, 1), (24_000, 2), (160_000, 19)])
def test_google_wants_whole_seconds_every_half(num_samples, count):
    assert len(patches(np.zeros(num_samples, np.float32), GOOGLE)) == count


@pytest.mark.parametrize("seconds", [0.975, 2.5, 10.0])
def test_log_mels_are_torchvggishs(seconds):
    wave = sound(seconds)
    expected = vggish_input.waveform_to_examples(wave.astype(np.float64), RATE, return_tensor=False)
    result = patches(wave, FRONT_ENDS["torchvggish"])
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected.astype(np.float32))


@pytest.mark.parametrize("loudness", [0.05, 4.0])  # below the least peak that is divided by, and above full scale
def test_log_mels_of_google_are_of_one_second_each(loudness):
    wave = sound(3.3) * np.float32(loudness)
    levelled = wave.astype(np.float64) / max(0.1, wave.max())
    expected = [
        mel_features.log_mel_spectrogram(
            levelled[start : start + RATE], RATE, 0.01, num_mel_bins=64, lower_edge_hertz=125, upper_edge_hertz=7500
        )[:96]
        for start in range(0, len(wave) - RATE + 1, RATE // 2)
    ]
    np.testing.assert_allclose(patches(wave, GOOGLE), expected, rtol=0, atol=1e-6)


def test_embeddings_are_torchvggishs(theirs, ours):
    wave = sound(10)
    examples = vggish_input.waveform_to_examples(wave.astype(np.float64), RATE)
    with torch.no_grad():
        expected = theirs(examples)
        alone = torch.cat([theirs(example[None]) for example in examples])
        # In torch's usual layout the arithmetic is the very same.
        features = theirs.features(examples).permute(0, 2, 3, 1).flatten(1)
        assert torch.equal(ours._net.embeddings(features).relu(), expected)
    (result,) = ours.embed([wave]).frames
    assert result.shape == (10, 128)
    assert (result < 0).any()  # before the last ReLU
    # Channels last, sums are in another order; theirs differs as much from itself when patches are given one by one.
    scale = expected.abs().max().item()
    assert (expected - alone).abs().max() < 2e-6 * scale
    assert np.abs(np.maximum(result, 0) - expected.numpy()).max() < 2e-6 * scale


def test_a_wave_does_not_depend_on_the_others(ours):
    waves = [sound(seconds, seed) for seed, seconds in enumerate((2.0, 0.5, 0.0, 7.3, 0.975))]
    together = ours.embed(waves)
    assert [len(part) for part in together.frames] == [2, 0, 0, 7, 1]
    assert together.logits.shape == (5, 0)
    for wave, part in zip(waves, together.frames, strict=True):
        (alone,) = ours.embed([wave]).frames
        assert alone.shape == part.shape
        np.testing.assert_allclose(part, alone, atol=1e-6 * np.abs(together.frames[0]).max())
    assert ours.embed([]).frames == []
    assert ours.embed(waves[1:3]).frames[0].shape == (0, 128)


def test_other_weights_are_refused(theirs, tmp_path):
    path = tmp_path / "vggish.pth"
    small = {key: value.flatten()[:1].clone() for key, value in theirs.state_dict().items()}
    for state, reason in (
        ({**small, "pproc.means": torch.zeros(1)}, r"Unexpected key.*pproc\.means"),
        ({key: value for key, value in small.items() if key != "features.0.bias"}, r"Missing key.*features\.0\.bias"),
        (small, "size mismatch"),
        ([small], "not the weights of Vggish"),
    ):
        torch.save(state, path)
        with pytest.raises(UserError, match=reason):
            VggishEmbedder(path)


def test_an_unknown_front_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'google-fad'"):
        VggishEmbedder(tmp_path, front_end="google_fad")
    with pytest.raises(UserError, match="yamnet: unknown option 'front_end'; it has none"):
        embedders.load("yamnet", tmp_path, front_end="google-fad")
