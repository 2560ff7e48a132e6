"""Audiobox Aesthetics against audiobox_aesthetics at random weights: whole windows, short ones, several; files that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench import references
from soundmill.errors import UserError
from soundmill.evaluation.embedders.audiobox import AXES, SAMPLE_RATE, Audiobox

TOLERANCE = 1e-4


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.1 * np.cumsum(random.standard_normal(round(seconds * SAMPLE_RATE))) % 1 - 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def theirs():
    return references.audiobox()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("audiobox") / "audiobox.safetensors"
    save_file(theirs.state_dict(), path)
    result = Audiobox(path)
    path.unlink()  # 415 MB
    return result


def expected(net, wave: np.ndarray) -> np.ndarray:
    """As its own predictor: windows of ten seconds, weighted by their length."""
    infer = references.module("audiobox_aesthetics.infer")
    waves, masks, weights, _ = infer.make_inference_batch([torch.from_numpy(wave)[None]])
    with torch.no_grad():
        outputs = net({"wav": torch.stack(waves), "mask": torch.stack(masks)})
    means = [np.average(outputs[axis].numpy(), weights=weights) for axis in infer.AXES_NAME]
    return np.array([mean * AXES[axis][2] + AXES[axis][1] for axis, mean in zip(infer.AXES_NAME, means, strict=True)])


@pytest.mark.slow(minutes=0.7)
@pytest.mark.parametrize("seconds", [0.02, 2.5, 9.99, 10, 12.3])
def test_ratings_are_audiobox_aesthetics(theirs, ours, seconds):
    wave = noise(seconds)
    result = ours.embed([wave])
    assert result.frames[0].shape == (1, 4)
    np.testing.assert_allclose(result.frames[0][0], expected(theirs, wave), atol=TOLERANCE)


@pytest.mark.slow(minutes=0.5)
def test_a_sound_does_not_depend_on_the_others(ours):
    waves = [noise(1.0), np.zeros(0, np.float32), noise(3.0, 2)]
    together = ours.embed(waves)
    assert [part.shape for part in together.frames] == [(1, 4), (0, 4), (1, 4)]
    assert together.logits.shape == (3, 0)
    np.testing.assert_allclose(ours.embed([waves[2]]).frames[0], together.frames[2], atol=1e-5)
    assert not np.allclose(together.frames[0], together.frames[2], atol=1e-3)  # it hears a difference


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"other\.safetensors: cannot be read as weights"):
        Audiobox(path)
    save_file({"layer_weights.CE": torch.zeros(13)}, path)
    with pytest.raises(UserError, match=r"other\.safetensors: not the weights of ModuleDict .*Missing key"):
        Audiobox(path)
