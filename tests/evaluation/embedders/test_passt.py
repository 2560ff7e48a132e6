"""PaSST against hear21passt at random weights, the windows of three tools, and checkpoints that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchaudio.compliance import kaldi

from bench import references
from soundmill.decoding.decode import read_mono
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import passt
from soundmill.evaluation.embedders.passt import SAMPLE_RATE, PasstEmbedder
from soundmill.evaluation.embedders.passt_net import mel_filters

TOLERANCE = 1e-4


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def theirs():
    return references.passt()


@pytest.fixture(scope="module")
def checkpoint(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("passt") / "passt.pt"
    torch.save(theirs.net.state_dict(), path)
    yield path
    path.unlink()  # 345 MB


@pytest.fixture(scope="module")
def ours(checkpoint):
    return PasstEmbedder(checkpoint)


def check(theirs, ours, wave: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        expected = theirs.get_scene_embeddings(torch.from_numpy(wave)[None])[0].numpy()
    result = ours.embed([wave])
    np.testing.assert_allclose(result.logits[0], expected[:527], atol=TOLERANCE)
    np.testing.assert_allclose(result.frames[0][0], expected[527:], atol=TOLERANCE)
    return expected


def test_the_filters_are_kaldis():
    expected, _ = kaldi.get_mel_banks(128, 1024, 32_000, 0.0, 15_000.0, 100.0, -500.0, 1.0)
    np.testing.assert_allclose(mel_filters(), nn.functional.pad(expected, (0, 1)), atol=2e-5)


def test_embeddings_and_logits_are_hear21passts(theirs, ours):
    hum = (0.3 * np.sin(2 * np.pi * 120 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32)
    found = [check(theirs, ours, wave) for wave in (noise(1.3), hum, np.zeros(SAMPLE_RATE, np.float32), 0.001 * noise(0.5, 1))]
    assert np.std(found, axis=0).max() > 0.1  # it hears a difference


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize("seconds", [10.0, 11.0])
def test_of_long_sounds_too(theirs, ours, seconds):
    check(theirs, ours, noise(seconds, 2))


def test_of_real_recordings_too(theirs, ours, shared):
    path = sorted((shared / "data" / "esc10").glob("*/*.ogg"))[7]
    check(theirs, ours, read_mono(path, SAMPLE_RATE, 60.0)[: 2 * SAMPLE_RATE])


def test_a_wave_does_not_depend_on_the_others(ours):
    waves = [noise(seconds, seed) for seed, seconds in enumerate((1.0, 0.5, 1.0, 0.15, 0.0))]
    together = ours.embed(waves)
    assert [part.shape for part in together.frames] == [(1, 768)] * 3 + [(0, 768)] * 2  # too short for a patch
    assert together.logits.shape == (5, 527)
    for index, wave in enumerate(waves[:3]):
        alone = ours.embed([wave])
        np.testing.assert_allclose(together.frames[index], alone.frames[0], atol=1e-5)
        np.testing.assert_allclose(together.logits[index], alone.logits[0], atol=1e-5)
    assert ours.embed([]).logits.shape == (0, 527)


@pytest.mark.parametrize(
    ("front_end", "seconds", "starts", "lengths"),
    [
        ("hear21passt", 1, [0], [1]),
        ("hear21passt", 10, [0], [10]),
        ("stable-audio-metrics", 1, [0], [1]),
        ("stable-audio-metrics", 1.5, [0], [1.5]),
        ("stable-audio-metrics", 2, [0], [10]),
        ("stable-audio-metrics", 10, [0], [10]),
        ("stable-audio-metrics", 12, [0, 5], [10, 10]),
        ("stable-audio-metrics", 20, [0, 5, 10], [10] * 3),
        ("stable-audio-metrics", 21, [0, 5, 10, 15], [10] * 4),
        ("av-benchmark", 1, [0], [10]),
        ("av-benchmark", 12, [0], [10]),
    ],
)
def test_every_tool_has_its_own_windows(front_end, seconds, starts, lengths):
    wave = np.arange(1, 1 + round(seconds * SAMPLE_RATE), dtype=np.float32)
    cut = passt.FRONT_ENDS[front_end](wave)
    assert [(window[0] - 1) / SAMPLE_RATE for window in cut] == starts
    assert [len(window) / SAMPLE_RATE for window in cut] == lengths
    assert sum(np.count_nonzero(window) for window in cut) == sum(
        min(len(window), len(wave) - round(start * SAMPLE_RATE)) for start, window in zip(starts, cut, strict=True)
    )


def test_a_long_scene_is_reflected_at_its_ends():
    wave = np.arange(12 * SAMPLE_RATE, dtype=np.float32)
    cut = passt.scene(wave)
    assert len(cut) == 5
    assert [window[passt.WINDOW // 2] / SAMPLE_RATE for window in cut] == [0, 2.5, 5, 7.5, 10]
    np.testing.assert_array_equal(cut[0][: passt.WINDOW // 2], wave[passt.WINDOW // 2 : 0 : -1])


def test_no_sound_has_no_window(ours):
    for windows in passt.FRONT_ENDS.values():
        assert sum(map(len, windows(np.zeros(0, np.float32)))) == 0


def test_checkpoints_of_other_networks_are_refused(theirs, checkpoint, tmp_path):
    with pytest.raises(UserError, match="passt: unknown front end 'hear21pass'; did you mean 'hear21passt'"):
        PasstEmbedder(checkpoint, front_end="hear21pass")
    path = tmp_path / "other.pt"
    torch.save({"norm.weight": theirs.net.norm.weight}, path)
    with pytest.raises(UserError, match=r"other\.pt: not the weights of Passt"):
        PasstEmbedder(path)
    torch.save([1], path)
    with pytest.raises(UserError, match="not a checkpoint of PaSST"):
        PasstEmbedder(path)


def test_missing_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"passt-s-f128-p16-s10-ap\.476-swa\.pt is not in .*soundmill weights fetch passt"):
        embedders.load("passt", None)
    assert "344,665,734 bytes" in embedders.unavailable("passt")
    assert "the file there, from https://github.com/torchopenl3" in embedders.unavailable("openl3_music")
