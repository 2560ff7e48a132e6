"""The prior of DiffWave by the log-mel: the envelope's level, whitening and back, and what an envelope of 1 changes."""

import json

import numpy as np
import pytest
import torch

from soundmill.audio.mel import log_mel
from soundmill.diffusion.sampling import Draw, sample
from soundmill.diffusion.solvers import ancestral
from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.diffwave import NetworkParams, NoiseParams, SamplingParams, WeightsParams, vocoder
from soundmill.models.components.diffwave import vocoder as vocoders
from soundmill.models.components.diffwave.vocoder import DiffWave, DiffWaveModule, DiffWaveNet
from soundmill.params import compose, parse
from soundmill.training.loader import Batch
from tests.imports import ROOT
from tests.mels import spec_with

SPEC = spec_with(n_mels=80, hop_length=256, f_min=20.0, mel_scale="htk", norm="none")
STANDARD = NoiseParams(num_timesteps=50, beta_start=1e-4, beta_end=0.05)
MEL = STANDARD.model_copy(update={"prior": "mel"})
FAST = SamplingParams(betas=[1e-4, 0.01, 0.5], seed=0)
TINY = NetworkParams(layers=4, channels=8, dilation_cycle=4)
NOISE = np.random.default_rng(0).standard_normal(32_000).astype(np.float32)


def envelope_of(wave: np.ndarray, power: float = 1.0) -> torch.Tensor:
    spec = SPEC.model_copy(update={"power": power})
    return vocoder.envelope(torch.from_numpy(log_mel(wave, spec))[None], spec)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("level", [1.0, 0.01])
def test_the_envelope_of_white_noise_is_its_level(power, level):
    assert float(envelope_of(level * NOISE, power)[..., 3:-3].square().mean().sqrt()) == pytest.approx(level, rel=0.05)
    white = vocoder.whitened(level * NOISE, SPEC.model_copy(update={"power": power}))
    assert float(white.std()) == pytest.approx(1, rel=0.05)


def test_whitening_makes_a_quiet_half_as_large_as_a_loud_one_and_can_be_undone():
    wave = 0.3 * NOISE * np.where(np.arange(len(NOISE)) < 16_000, 1, 1e-3).astype(np.float32)
    white = vocoder.whitened(wave, SPEC)
    assert white.dtype == np.float32
    parts = [white[:15_000].std(), white[17_000:].std()]
    assert parts == pytest.approx([1, 1], rel=0.1)
    back = vocoder.filtered(torch.from_numpy(white)[None], envelope_of(wave), SPEC)[0].numpy()
    assert np.square(back - wave).mean() < 0.02 * np.square(wave).mean()  # −17 dB: an STFT changed is no STFT of a wave


def test_an_envelope_of_one_changes_nothing():
    """The whitened waves are the waves: noise, loss and result are DiffWave's."""
    waves = torch.from_numpy(NOISE)[None]
    frames = 1 + waves.shape[1] // SPEC.hop_length
    same = vocoder.filtered(waves, torch.ones(1, SPEC.n_fft // 2 + 1, frames), SPEC)
    torch.testing.assert_close(same, waves, atol=2e-6, rtol=0)
    weights = parse(
        WeightsParams,
        compose(ROOT / "conf", ["model=tango", "vocoder=diffwave_laptop"])["vocoder"]["weights"],
        "vocoder.weights",
    )
    torch.manual_seed(0)
    net = DiffWaveNet(TINY, SPEC)
    torch.nn.init.ones_(net.last.weight)
    log_mels = torch.from_numpy(log_mel(NOISE, SPEC))[None, :, : frames - 1]
    losses = []
    for noise, wave in ((STANDARD, waves), (MEL, same)):
        module = DiffWaveModule(weights, net, noise, 1, SPEC)
        batch = Batch(0, np.zeros(1, np.int64), (log_mels, wave[:, : (frames - 1) * SPEC.hop_length]))
        losses.append(module.loss(0, batch).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_noise_of_the_prior_has_the_log_mels_and_pieces_make_the_same(monkeypatch):
    wave = 0.1 * NOISE * np.linspace(1e-2, 1, len(NOISE), dtype=np.float32)
    log_mels = torch.from_numpy(log_mel(wave, SPEC))[None]
    model = DiffWave(TINY, MEL, FAST, SPEC, DiffWaveNet(TINY, SPEC))
    white = torch.randn(1, 1, log_mels.shape[2] * SPEC.hop_length, generator=torch.Generator().manual_seed(0))
    ended = torch.cat([log_mels, log_mels[..., -1:]], 2)
    coloured = vocoder.filtered(white[:, 0], vocoder.envelope(ended, SPEC), SPEC)
    error = np.abs(log_mel(coloured[0].numpy(), SPEC)[:, 1:-2] - log_mels[0].numpy()[:, 1:-1]).mean()
    assert error < 0.6  # nepers: the speckle of noise; the wave's own quiet part is 4.6 below its loud one
    made = model.vocode(log_mels)
    assert made.shape == (1, 1, log_mels.shape[2] * SPEC.hop_length)
    monkeypatch.setattr(vocoders, "PIECE_SAMPLES", 4096)
    torch.testing.assert_close(model.vocode(log_mels), made, atol=1e-6, rtol=1e-4)
    assert len(list(model.pieces(log_mels))) > 4
    assert torch.equal(model.vocode(log_mels), model.vocode(log_mels))


def test_a_checkpoint_keeps_its_prior_and_an_earlier_one_has_the_published(tmp_path):
    log_mels = torch.from_numpy(log_mel(0.1 * NOISE, SPEC))[None]
    model = DiffWave(TINY, STANDARD, FAST, SPEC, DiffWaveNet(TINY, SPEC))
    save_vocoder(model, tmp_path / "standard", {"kind": "train"})
    config = json.loads((tmp_path / "standard/config.json").read_text())
    assert config["noise"].pop("prior") == "standard"
    (tmp_path / "standard/config.json").write_text(json.dumps(config))
    assert torch.equal(vocoders.load(tmp_path / "standard", SPEC).vocode(log_mels), model.vocode(log_mels))
    model.noise = MEL
    save_vocoder(model, tmp_path / "mel", {"kind": "train"})
    assert torch.equal(vocoders.load(tmp_path / "mel", SPEC).vocode(log_mels), model.vocode(log_mels))


def test_the_published_vocoders_have_the_standard_prior(root):
    for choices, expected in (
        (["model=tango", "vocoder=diffwave"], "standard"),
        (["model=tango", "vocoder=diffwave_laptop"], "mel"),
    ):
        assert compose(root / "conf", choices)["vocoder"]["noise"]["prior"] == expected
    for scale, expected in (("paper", "standard"), ("gpu", "standard"), ("laptop", "mel")):
        train = compose(root / "conf", ["model=diffwave", f"scale={scale}"])["diffwave"]["train"]
        assert (train["noise"]["prior"], train["unit_variance"]) == (expected, False)


def test_the_clip_of_the_reverse_process():
    """Waves / σ are clipped to 1 / σ; by default to 1, as published."""
    betas = torch.tensor([1e-3, 0.2], dtype=torch.float64)
    noise, scale = torch.randn(1, 1, 100, generator=torch.Generator().manual_seed(1)), 0.25

    def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.5 * xt

    def sampled(start: torch.Tensor, clip: float | None) -> torch.Tensor:
        return sample(ancestral(betas, torch.zeros(2), clip), net, start, Draw.of_seeds([2]))

    assert 1 < sampled(noise, 1 / scale).abs().max() <= 1 / scale
    assert torch.equal(sampled(noise, 1.0), sample(ancestral(betas, torch.zeros(2)), net, noise, Draw.of_seeds([2])))
    assert torch.equal(sampled(noise, 1e9), sampled(noise, None))
