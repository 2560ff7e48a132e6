"""The comparison of vocoders, with random weights: all results are written, and closer sounds score better."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import vocoders
from soundmill.errors import UserError
from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.diffwave import NetworkParams, NoiseParams, SamplingParams
from soundmill.models.components.diffwave import vocoder as diffwave
from soundmill.models.components.diffwave.vocoder import DiffWaveNet
from soundmill.models.components.hifigan import NetworkParams as HifiGanNetwork
from soundmill.models.components.hifigan import vocoder as hifigan
from tests.mels import TANGO as SPEC
from tests.mels import spec_with
from tests.prepared import sound, write_sounds

RATE = 16_000
NETWORK = NetworkParams(layers=2, channels=2, dilation_cycle=2)
VOICE = HifiGanNetwork(channels=4, rates=[16, 10], kernels=[16, 10], resblock_kernels=[3], resblock_dilations=[[1]])


CLIPS = 50  # FAD needs so many


@pytest.fixture
def data(tmp_path) -> Path:
    """Test clips and one of training, as the pipeline's data directory has them."""
    waves = [(0.3 * np.sin(0.02 * (1 + number) * np.arange(5 * RATE // 4))).astype(np.float32) for number in range(CLIPS + 1)]
    rows = [sound(f"clip{number}", wave, labels=["hum"], split="test" if number else "train") for number, wave in enumerate(waves)]
    write_sounds(rows, tmp_path / "data/clips/default", tmp_path / "data/catalog/default.parquet")
    return tmp_path / "data"


@pytest.fixture
def voices(tmp_path) -> list[Path]:
    """The directories of a DiffWave and a HiFi-GAN for the same log-mels."""
    torch.manual_seed(0)
    noise, sampling = NoiseParams(num_timesteps=5, beta_start=1e-4, beta_end=0.05), SamplingParams(betas=[1e-4, 0.05], seed=0)
    waves = diffwave.DiffWave(NETWORK, noise, sampling, SPEC, DiffWaveNet(NETWORK, SPEC))
    save_vocoder(waves, tmp_path / "diffwave", {})
    gan = hifigan.HifiGan(VOICE, SPEC, hifigan.build_vocoder(VOICE, SPEC.n_mels, SPEC.sample_rate))
    save_vocoder(gan, tmp_path / "hifigan", {})
    return [tmp_path / "diffwave", tmp_path / "hifigan"]


@pytest.mark.slow(minutes=1)
def test_vocoders(tmp_path, monkeypatch, shared, data, voices):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    arguments = [*voices, "--reference", data, "--bootstrap", 20, "--seconds", 1.0, "--results", tmp_path]
    monkeypatch.setattr(sys, "argv", ["vocoders", *map(str, arguments)])
    vocoders.main()
    found = json.loads((tmp_path / "vocoders.json").read_text())
    assert found["items"] == CLIPS  # test clips alone
    names = {f"{voices[0]}, 2 steps", f"{voices[0]}, 5 steps", str(voices[1]), "Griffin-Lim", "Griffin-Lim, speckle"}
    assert set(found["seconds"]) == set(found["scores"]) == names
    for scores in found["scores"].values():
        assert set(scores) == {"fad_yamnet", "kl_yamnet", "mrstft", "lsd"}
        assert all(score["low"] <= score["value"] <= score["high"] for score in scores.values())
    nearest = {score: min(names, key=lambda name: found["scores"][name][score]["value"]) for score in ("lsd", "mrstft")}
    assert set(nearest.values()) == {"Griffin-Lim"}  # of all the only one that is not random


def test_vocoders_for_other_log_mels_are_refused(tmp_path, voices):
    other = spec_with(hop_length=80)
    net = HifiGanNetwork(**VOICE.model_dump() | {"rates": [8, 10]})
    save_vocoder(hifigan.HifiGan(net, other, hifigan.build_vocoder(net, 64, 16_000)), tmp_path / "other", {})
    with pytest.raises(UserError, match="hop_length"):
        vocoders.vocoders([*voices, tmp_path / "other"], fast_only=False)


def test_clips_of_another_rate_are_refused(tmp_path, data):
    with pytest.raises(UserError, match="clips of 16000 Hz, but these vocoders are for 22050 Hz"):
        vocoders.read(data, spec_with(sample_rate=22_050), 2, 1.0, tmp_path / "real")
