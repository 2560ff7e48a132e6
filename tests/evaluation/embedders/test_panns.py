"""Cnn14 against panns_inference's at random weights, and checkpoints that are refused: other nets, other rates, other objects."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench import references
from soundmill.decoding.decode import read_mono
from soundmill.errors import UserError
from soundmill.evaluation.embedders.panns import NUMPY, TRANSFORM, VARIANTS, Cnn14Embedder
from soundmill.training import torch_weights


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def save(net: nn.Module, path: Path) -> None:
    """As the file for 16 kHz is: of the older format, with the arrays of a sampler in it under numpy's older names."""
    checkpoint = {"iteration": 1, "model": net.state_dict(), "sampler": {"indexes": np.arange(5), "pointers": [1, 2]}}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"numpy._core.multiarray") == 1
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.fixture(scope="module", params=references.CNN14)
def pair(request, tmp_path_factory):
    """(theirs, ours)."""
    path = tmp_path_factory.mktemp("panns") / "cnn14.pth"
    theirs = references.cnn14(request.param)
    save(theirs, path)
    ours = Cnn14Embedder(request.param, path)
    path.unlink()  # 330 MB
    return theirs, ours


def check(pair, waves: list[np.ndarray]) -> None:
    theirs, ours = pair
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.stack(waves)))
    result = ours.embed(waves)
    assert expected["embedding"].std(dim=0).max() > 0.005  # it hears a difference
    np.testing.assert_allclose(np.concatenate(result.frames), expected["embedding"], atol=1e-5)
    np.testing.assert_allclose(result.logits, torch.logit(expected["clipwise_output"].double()), atol=1e-5)


def test_embeddings_and_logits_are_panns(pair):
    rate = pair[1].sample_rate
    hum = (0.3 * np.sin(2 * np.pi * 120 * np.arange(2 * rate) / rate)).astype(np.float32)  # nothing in the high bands
    check(pair, [noise(2 * rate), hum, np.zeros(2 * rate, np.float32), 0.001 * noise(2 * rate, 1)])


def test_of_real_recordings_too(pair, shared):
    rate = pair[1].sample_rate
    paths = sorted((shared / "data" / "esc10").glob("*/*.ogg"))[::100]
    check(pair, [np.resize(read_mono(path, rate, 60.0), 2 * rate) for path in paths])


@pytest.fixture(scope="module")
def ours(pair):
    return pair[1]


def test_a_wave_does_not_depend_on_the_others(ours):
    rate = ours.sample_rate
    waves = [noise(round(seconds * rate), seed) for seed, seconds in enumerate((2.0, 2.5, 2.0, 0.2, 0.0))]
    together = ours.embed(waves)
    assert {part.shape for part in together.frames} == {(1, 2048)}
    assert together.logits.shape == (5, 527)
    for index, wave in enumerate(waves):
        alone = ours.embed([wave])
        np.testing.assert_allclose(together.frames[index], alone.frames[0], atol=1e-6 * together.frames[index].max())
        np.testing.assert_allclose(together.logits[index], alone.logits[0], atol=1e-6 * np.abs(together.logits).max())
    assert ours.embed([]).logits.shape == (0, 527)


def test_a_short_wave_is_followed_by_silence(ours):
    wave = noise(ours.sample_rate // 2)
    longer = np.pad(wave, (0, 2 * ours.sample_rate - len(wave)))
    np.testing.assert_array_equal(ours.embed([wave]).frames[0], ours.embed([longer]).frames[0])


def test_a_constant_is_not_heard(ours):
    """So it makes no difference that other tools subtract the mean."""
    wave = noise(2 * ours.sample_rate)
    with_constant = ours.embed([wave + np.float32(0.1)]).frames[0]
    np.testing.assert_allclose(with_constant, ours.embed([wave]).frames[0], atol=1e-4)


def transform(name: str) -> dict[str, torch.Tensor]:
    """The part of a checkpoint that is no weights: small, and right."""
    size = VARIANTS[name].window
    window = np.sin(np.pi * np.arange(size) / size) ** 2
    waves = np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size) * window
    return {
        key: torch.tensor(part, dtype=torch.float32)[:, None] for key, part in zip(TRANSFORM, (waves.real, waves.imag), strict=True)
    }


def test_another_net_is_refused(tmp_path):
    path = tmp_path / "cnn14.pth"
    right = transform("panns_cnn14_16k")
    conjugate = {**right, TRANSFORM[1]: -right[TRANSFORM[1]]}
    for content, reason in (
        ([right], "it has no 'model'"),
        ({"model": {}}, "conv_real.weight is not a transform of 512 samples"),
        ({"model": transform("panns_cnn14_32k")}, "weights for another sample rate"),
        ({"model": conjugate}, "conv_imag.weight is not the Fourier transform"),
        ({"model": right}, "not the weights of Cnn14 .*Missing key.*melW"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=reason):
            Cnn14Embedder("panns_cnn14_16k", path)


class Harmful:
    """Would write a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("format", [True, False])
def test_a_file_with_anything_but_tensors_is_refused(tmp_path, format):
    path, touched = tmp_path / "cnn14.pth", tmp_path / "touched"
    for thing in (Harmful(touched), datetime.date(2020, 1, 1), print, np.array([Harmful(touched)])):
        torch.save({"model": {}, "sampler": thing}, path, _use_new_zipfile_serialization=format)
        with pytest.raises(UserError, match=r"cannot be read as weights .* fetch it again"):
            Cnn14Embedder("panns_cnn14_16k", path)
    assert not touched.exists()
    torch.save({"model": np.arange(3)}, path, _use_new_zipfile_serialization=format)
    with pytest.raises(UserError, match="cannot be read as weights"):
        torch_weights.read_checkpoint(path)  # arrays of numpy only where they are allowed
    content = path.read_bytes()
    random = np.random.default_rng(0)
    flipped = [bytes(random.integers(256) if random.random() < 0.2 else byte for byte in content) for _ in range(20)]
    for damaged in (b"", content[: len(content) // 2], b"\x80" + content, bytes(1000), *flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read as weights"):
            torch_weights.read_checkpoint(path, NUMPY)
