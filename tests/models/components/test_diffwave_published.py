"""Weights of DiffWave's published implementation: its names, shapes and mels, and files that are refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.models.components.diffwave import published
from soundmill.models.components.diffwave.vocoder import conditioner
from tests import recorded

LAYERS, CHANNELS, CYCLE, BANDS = 5, 8, 3, 80
PARAMS: dict[str, Any] = {
    "batch_size": 16,
    "learning_rate": 2e-4,
    "max_grad_norm": None,
    "sample_rate": 22_050,
    "n_mels": BANDS,
    "n_fft": 1024,
    "hop_samples": 256,
    "crop_mel_frames": 62,
    "residual_layers": LAYERS,
    "residual_channels": CHANNELS,
    "dilation_cycle_length": CYCLE,
    "noise_schedule": np.linspace(1e-4, 0.05, 50).tolist(),
    "inference_noise_schedule": [0.0001, 0.001, 0.01, 0.05, 0.2, 0.5],
}


class AttrDict(dict):
    """What holds the parameters there while it trains; a plain dictionary is written."""


def state() -> dict[str, Tensor]:
    return recorded.state("diffwave")


def write(path, model=None, **params: Any):
    optimiser = {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
    content = {"step": 5, "model": state() if model is None else model, "optimizer": optimiser, "params": {**PARAMS, **params}}
    torch.save(content | {"scaler": {}}, path)
    return path


def test_it_is_the_same_net_under_other_names(tmp_path):
    model = published.read(write(tmp_path / "weights-5.pt"))
    wave, mel = (torch.from_numpy(recorded.uniform(2, *shape)) for shape in ((6 * 256,), (BANDS, 6)))
    with torch.no_grad():
        for t in (0.0, 3.5, 22.992, 49.0, 7):
            recorded.check("diffwave", f"noise at {t}", model.net(wave[:, None], torch.full((2,), float(t)), mel), 1e-5, 1e-5)
    assert (model.noise.num_timesteps, model.noise.beta_end) == (50, 0.05)
    assert model.sampling.betas == PARAMS["inference_noise_schedule"]
    output = model.vocode(torch.full((1, BANDS, 3), -5.0))
    assert output.shape == (1, 1, 3 * 256)
    assert not model.net.training


def test_its_mels_are_those_that_were_published(tmp_path):
    """`diffwave.preprocess`: its spectrograms are divided by the window's energy, and scaled to [0, 1] by decibels."""
    spec = published.read(write(tmp_path / "weights.pt")).spec
    wave = 0.3 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    wave[3000:] *= 1e-4
    theirs = MelSpectrogram(
        22_050, win_length=1024, hop_length=256, n_fft=1024, f_min=20.0, f_max=11_025.0, n_mels=BANDS, power=1.0, normalized=True
    )(torch.from_numpy(wave))
    theirs = ((20 * theirs.clamp(min=1e-5).log10() - 20 + 100) / 100).clamp(0, 1)
    assert (theirs == 0).any()
    torch.testing.assert_close(conditioner(torch.from_numpy(log_mel(wave, spec)), spec), theirs, atol=1e-5, rtol=0)


def without(prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state().items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": AttrDict(PARAMS)}, r"AttrDict was not an allowed global .*save it again .*dict\(old\['params'\]\)"),
        ({"params": {**PARAMS, "noise_schedule": np.linspace(1e-4, 0.05, 50)}}, "cannot be read as weights .* as lists"),
        ({"params": None}, "it needs both `model` and `params`"),
        ({"model": without("spectrogram_upsampler.")}, "an unconditional network"),
        ({"model": without("skip_projection.bias")}, r"not the weights of DiffWaveNet .*skip\.bias"),
        ({"model": {**state(), "more.weight": torch.ones(1)}}, r"not the weights of DiffWaveNet .*more\.weight"),
        ({"model": {**state(), "skip_projection.bias": "0"}}, "not the weights of DiffWaveNet"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, change, message):
    torch.save({"model": state(), "params": PARAMS} | change, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=rf"weights\.pt: .*{message}"):
        published.read(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"residual_layers": 6}, r"not the weights of DiffWaveNet .*layers\.5"),
        ({"residual_channels": 16}, "size mismatch"),
        ({"residual_channels": 0}, r"params\.channels"),
        ({"residual_channels": 10**8}, "size mismatch"),
        ({"residual_layers": 10**8}, r"params\.residual_layers"),
        ({"hop_samples": 300}, r"params\.win_length|win_length 1200 must not exceed n_fft 1024"),
        ({"hop_samples": 200}, "size mismatch"),
        ({"n_mels": "80"}, r"params\.n_mels"),
        ({"noise_schedule": [1e-4, 2e-4, 0.05]}, "not evenly spaced"),
        ({"noise_schedule": [0.0, 0.05]}, r"params\.noise_schedule.*beta_start"),
        ({"inference_noise_schedule": [float("nan")]}, r"params\.inference_noise_schedule"),
        ({"inference_noise_schedule": []}, r"params\.betas"),
    ],
)
def test_params_of_another_net_are_refused(tmp_path, params, message):
    with pytest.raises(UserError, match=rf"weights\.pt: .*({message})"):
        published.read(write(tmp_path / "weights.pt", **params))


def test_a_file_that_is_cut_or_absent_is_named(tmp_path):
    path = write(tmp_path / "weights.pt")
    path.write_bytes(path.read_bytes()[:-100])
    for name in ("weights.pt", "gone.pt"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read as weights"):
            published.read(tmp_path / name)
