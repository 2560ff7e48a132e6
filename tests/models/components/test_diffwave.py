"""DiffWave as a vocoder: published sizes and numbers, what it learns and makes, its prior, published files, where it is refused; as
a family: labels drawn by the seed, and its vocoder alone."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from soundmill import params
from soundmill.audio.mel import log_mel
from soundmill.diffusion.sampling import Draw, sample
from soundmill.diffusion.solvers import ancestral
from soundmill.errors import UserError
from soundmill.evaluation.waveforms import log_spectral_distance
from soundmill.models import registry
from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.diffwave import DiffWaveParams, NetworkParams, NoiseParams, SamplingParams, WeightsParams
from soundmill.models.components.diffwave import published as files
from soundmill.models.components.diffwave import vocoder as vocoders
from soundmill.models.components.diffwave.vocoder import DiffWave, DiffWaveNet, alpha_bar_of, conditioner, noise_loss, strides
from soundmill.models.diffwave import TrainParams
from soundmill.models.diffwave.model import Generating
from soundmill.models.family import Request, Run
from soundmill.params import compose, parse
from soundmill.training.loader import Batch
from tests import recorded
from tests.commands.running import soundmill, works
from tests.imports import ROOT
from tests.mels import spec_with
from tests.models.components.test_mel_autoencoder import SPEC
from tests.stages.families import ROWS
from tests.stages.of_waves import LABELS, RATE

NOISE = NoiseParams(num_timesteps=50, beta_start=1e-4, beta_end=0.05)
FAST = SamplingParams(betas=[1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5], seed=0)
TINY = NetworkParams(layers=8, channels=16, dilation_cycle=4)
EIGHTY = spec_with(n_mels=80, hop_length=256, f_min=20.0, mel_scale="htk", norm="none")
MEL = NOISE.model_copy(update={"prior": "mel"})
HISS = np.random.default_rng(0).standard_normal(32_000).astype(np.float32)


def test_the_vocoder_has_the_published_sizes_and_noise(root):
    expected = parse(DiffWaveParams, compose(root / "conf", ["vocoder=diffwave"])["vocoder"], "vocoder")
    published = NetworkParams(layers=30, channels=64, dilation_cycle=10)
    assert (expected.network, expected.noise, expected.sampling) == (published, NOISE, FAST)


@pytest.mark.parametrize("choice", ["large", "sc09", "sc09_laptop"])
def test_nets_of_200_timesteps_have_the_paper_s_noise_and_six_steps(root, choice):
    train = parse(TrainParams, compose(root / "conf", ["model=diffwave", f"diffwave={choice}"])["diffwave"]["train"], "train")
    table = alpha_bar_of(train.noise)
    assert len(table) == 200
    assert float(table[-1]) == pytest.approx(0.1321828, abs=5e-8)
    if choice == "sc09":
        assert train.sampling.betas == "trained"
        return
    assert train.sampling.betas == [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.7]
    _, timesteps = vocoders.schedule(train.noise, train.sampling)
    levels, of_training = (np.cumprod(1 - betas) ** 0.5 for betas in (np.array(train.sampling.betas), np.linspace(1e-4, 0.02, 200)))
    np.testing.assert_allclose(np.interp(-levels, -of_training, np.arange(200)), timesteps, atol=1e-6)


@pytest.mark.parametrize(("layers", "cycle", "samples"), [(30, 10, 6_139), (36, 12, 24_571), (12, 6, 253)])
def test_it_sees_so_many_samples(layers, cycle, samples):
    net = DiffWaveNet(NetworkParams(layers=layers, channels=16, dilation_cycle=cycle), SPEC)
    nn.init.ones_(net.last.weight)
    frames = samples // SPEC.hop_length + 3
    xt = torch.zeros(1, 1, SPEC.hop_length * frames, requires_grad=True)
    net(xt, torch.zeros(1), torch.rand(1, SPEC.n_mels, frames))[0, 0, xt.shape[2] // 2].backward()
    seen = xt.grad[0, 0].nonzero()
    assert int(seen.max() - seen.min()) + 1 == samples


@pytest.mark.parametrize(("hop", "factors"), [(256, (16, 16)), (160, (16, 10)), (320, (20, 16)), (225, (15, 15)), (313, (313, 1))])
def test_mels_of_any_hop_become_as_long_as_their_wave(hop, factors):
    assert strides(hop) == factors
    torch.manual_seed(0)
    upsampler = vocoders.Upsampler(hop)
    assert upsampler(torch.rand(2, 8, 5)).shape == (2, 8, 5 * hop)
    one_frame = torch.zeros(1, 1, 5)
    one_frame[..., 2] = 1
    changed = (upsampler(one_frame) - upsampler(torch.zeros(1, 1, 5)))[0, 0].abs() > 1e-7
    middle = float(changed.nonzero().float().mean())
    assert middle == pytest.approx(2.5 * hop, abs=1 + factors[1] / 2)  # a frame stands for the samples around its own


def test_it_begins_by_predicting_no_noise():
    rng = torch.Generator().manual_seed(0)
    x0, noise = torch.rand(4, 1, 160 * 50, generator=rng) - 0.5, torch.randn(4, 1, 160 * 50, generator=rng)
    net, mel = DiffWaveNet(TINY, SPEC), torch.rand(4, SPEC.n_mels, 50, generator=rng)
    t = torch.tensor([0, 10, 30, 49])
    loss = noise_loss(lambda xt, t: net(xt, t, mel), alpha_bar_of(NOISE), x0, t, noise, "l1")
    torch.testing.assert_close(loss, torch.full((4,), math.sqrt(2 / math.pi)), atol=0.02, rtol=0)


def test_a_fractional_timestep_lies_between_its_two():
    embedding = vocoders.TimestepEmbedding()
    embedding.layers = nn.Identity()
    low, high, between = embedding(torch.tensor([22.0, 23.0, 22.25]))
    torch.testing.assert_close(low[:2], torch.tensor([22.0, 22 * 10 ** (4 / 63)]).sin())
    torch.testing.assert_close(between, 0.75 * low + 0.25 * high)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_it_takes_mels_as_published_from_log_mels_of_any_spec(power):
    """A magnitude of 1 under a window of unit energy is 0 dB, and 0.8 for the net; 100 dB below 20 are 0."""
    spec = SPEC.model_copy(update={"power": power, "norm": "none"})
    energy = float(torch.hann_window(spec.win_length).square().sum())
    magnitudes = torch.tensor([1.0, 10.0, 100.0, 1e-4, 1e-6]) * math.sqrt(energy)
    scaled = conditioner(power * magnitudes.log()[None, :, None], spec).flatten()
    torch.testing.assert_close(scaled, torch.tensor([0.8, 1.0, 1.0, 0.0, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_six_steps_make_a_clip_that_it_has_learned():
    """The error of the noise halves, and so does the distance of what is made from the clip."""
    frames, steps, items = 12, 100, 6
    time = np.arange(frames * SPEC.hop_length) / SPEC.sample_rate
    hiss = 0.03 * np.random.default_rng(0).standard_normal(len(time))
    wave = (0.15 * np.sin(2 * np.pi * 440 * time) * np.exp(-3 * time) + hiss).astype(np.float32)
    log_mels = torch.from_numpy(log_mel(wave, SPEC))[None, :, :frames]
    torch.manual_seed(0)
    model = DiffWave(TINY, NOISE, FAST, SPEC, DiffWaveNet(TINY, SPEC))
    untrained = model.vocode(log_mels)[0].numpy()
    x0, mel = torch.from_numpy(wave).expand(items, 1, -1), conditioner(log_mels, SPEC).expand(items, -1, -1)
    optimiser, rng, losses = torch.optim.Adam(model.net.parameters()), torch.Generator().manual_seed(0), []
    table, places = alpha_bar_of(NOISE), torch.arange(items)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        t = ((places + torch.rand(items, generator=rng)) / items * NOISE.num_timesteps).long()
        noise = torch.randn(items, 1, len(wave), generator=rng)
        loss = noise_loss(lambda xt, t: model.net(xt, t, mel), table, x0, t, noise, "l1").mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.5 * losses[0]
    output = model.vocode(log_mels)
    assert output.shape == (1, 1, len(wave))
    assert output.abs().max() <= 1
    near, far = (log_spectral_distance(other, wave[None]) for other in (output[0].numpy(), untrained))
    assert near < 0.5 * far


def envelope_of(wave: np.ndarray, power: float = 1.0) -> torch.Tensor:
    spec = EIGHTY.model_copy(update={"power": power})
    return vocoders.envelope(torch.from_numpy(log_mel(wave, spec))[None], spec)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("level", [1.0, 0.01])
def test_the_envelope_of_white_noise_is_its_level(power, level):
    assert float(envelope_of(level * HISS, power)[..., 3:-3].square().mean().sqrt()) == pytest.approx(level, rel=0.05)
    white = vocoders.whitened(level * HISS, EIGHTY.model_copy(update={"power": power}))
    assert float(white.std()) == pytest.approx(1, rel=0.05)


def test_whitening_makes_a_quiet_half_as_large_as_a_loud_one_and_can_be_undone():
    wave = 0.3 * HISS * np.where(np.arange(len(HISS)) < 16_000, 1, 1e-3).astype(np.float32)
    white = vocoders.whitened(wave, EIGHTY)
    assert white.dtype == np.float32
    parts = [white[:15_000].std(), white[17_000:].std()]
    assert parts == pytest.approx([1, 1], rel=0.1)
    back = vocoders.filtered(torch.from_numpy(white)[None], envelope_of(wave), EIGHTY)[0].numpy()
    assert np.square(back - wave).mean() < 0.02 * np.square(wave).mean()  # −17 dB: an STFT changed is no STFT of a wave


def test_an_envelope_of_one_changes_nothing():
    """The whitened waves are the waves: noise, loss and result are DiffWave's."""
    waves = torch.from_numpy(HISS)[None]
    frames = 1 + waves.shape[1] // EIGHTY.hop_length
    same = vocoders.filtered(waves, torch.ones(1, EIGHTY.n_fft // 2 + 1, frames), EIGHTY)
    torch.testing.assert_close(same, waves, atol=2e-6, rtol=0)
    document = compose(ROOT / "conf", ["model=tango", "vocoder=diffwave_laptop"])["vocoder"]
    weights = parse(WeightsParams, document["weights"], "vocoders.weights")
    torch.manual_seed(0)
    net = DiffWaveNet(TINY, EIGHTY)
    torch.nn.init.ones_(net.last.weight)
    log_mels = torch.from_numpy(log_mel(HISS, EIGHTY))[None, :, : frames - 1]
    losses = []
    for noise, wave in ((NOISE, waves), (MEL, same)):
        module = vocoders.DiffWaveModule(weights, net, noise, 1, EIGHTY)
        batch = Batch(0, np.zeros(1, np.int64), (log_mels, wave[:, : (frames - 1) * EIGHTY.hop_length]))
        losses.append(module.loss(0, batch).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_noise_of_the_prior_has_the_log_mels_and_pieces_make_the_same(monkeypatch):
    wave = 0.1 * HISS[:16_000] * np.linspace(1e-2, 1, 16_000, dtype=np.float32)
    log_mels = torch.from_numpy(log_mel(wave, EIGHTY))[None]
    model = DiffWave(TINY, MEL, FAST, EIGHTY, DiffWaveNet(TINY, EIGHTY))
    white = torch.randn(1, 1, log_mels.shape[2] * EIGHTY.hop_length, generator=torch.Generator().manual_seed(0))
    ended = torch.cat([log_mels, log_mels[..., -1:]], 2)
    coloured = vocoders.filtered(white[:, 0], vocoders.envelope(ended, EIGHTY), EIGHTY)
    error = np.abs(log_mel(coloured[0].numpy(), EIGHTY)[:, 1:-2] - log_mels[0].numpy()[:, 1:-1]).mean()
    assert error < 0.6  # nepers: the speckle of noise; the wave's own quiet part is 4.6 below its loud one
    made = model.vocode(log_mels)
    assert made.shape == (1, 1, log_mels.shape[2] * EIGHTY.hop_length)
    monkeypatch.setattr(vocoders, "PIECE_SAMPLES", 2048)
    again = model.vocode(log_mels)
    torch.testing.assert_close(again, made, atol=1e-6, rtol=1e-4)
    assert len(list(model.pieces(log_mels))) > 4
    assert torch.equal(model.vocode(log_mels), again)


def test_a_checkpoint_keeps_its_prior_and_an_earlier_one_has_the_published(tmp_path):
    log_mels = torch.from_numpy(log_mel(0.1 * HISS[:4000], EIGHTY))[None]
    model = DiffWave(TINY, NOISE, FAST, EIGHTY, DiffWaveNet(TINY, EIGHTY))
    save_vocoder(model, tmp_path / "standard", {"kind": "train"})
    config = json.loads((tmp_path / "standard/config.json").read_text())
    assert config["noise"].pop("prior") == "standard"
    (tmp_path / "standard/config.json").write_text(json.dumps(config))
    assert torch.equal(vocoders.load(tmp_path / "standard", EIGHTY).vocode(log_mels), model.vocode(log_mels))
    model.noise = MEL
    save_vocoder(model, tmp_path / "mel", {"kind": "train"})
    assert torch.equal(vocoders.load(tmp_path / "mel", EIGHTY).vocode(log_mels), model.vocode(log_mels))


def test_the_published_vocoders_have_the_standard_prior(root):
    for choice, expected in (("diffwave", "standard"), ("diffwave_laptop", "mel")):
        assert compose(root / "conf", ["model=tango", f"vocoder={choice}"])["vocoder"]["noise"]["prior"] == expected
    for scale, expected in (("paper", "standard"), ("gpu", "standard"), ("laptop", "mel")):
        train = compose(root / "conf", ["model=diffwave", f"scale={scale}"])["diffwave"]["train"]
        assert (train["noise"]["prior"], train["unit_variance"]) == (expected, False)


def test_the_clip_of_the_reverse_process():
    """Waves / σ are clipped to 1 / σ."""
    betas = torch.tensor([1e-3, 0.2], dtype=torch.float64)
    noise, scale = torch.randn(1, 1, 100, generator=torch.Generator().manual_seed(1)), 0.25

    def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.5 * xt

    def sampled(start: torch.Tensor, clip: float | None) -> torch.Tensor:
        return sample(ancestral(betas, torch.zeros(2), clip), net, start, Draw.of_seeds([2]))

    assert 1 < sampled(noise, 1 / scale).abs().max() <= 1 / scale
    assert torch.equal(sampled(noise, 1e9), sampled(noise, None))


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


def write(path, **changes: Any):
    optimiser = {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
    content = {"step": 5, "model": recorded.state("diffwave"), "optimizer": optimiser, "params": PARAMS, "scaler": {}}
    torch.save(content | changes, path)
    return path


def test_it_is_the_same_net_under_other_names(tmp_path):
    model = files.read(write(tmp_path / "weights-5.pt"))
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
    spec = files.read(write(tmp_path / "weights.pt")).spec
    wave = 0.3 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    wave[3000:] *= 1e-4
    theirs = MelSpectrogram(
        22_050, win_length=1024, hop_length=256, n_fft=1024, f_min=20.0, f_max=11_025.0, n_mels=BANDS, power=1.0, normalized=True
    )(torch.from_numpy(wave))
    theirs = ((20 * theirs.clamp(min=1e-5).log10() - 20 + 100) / 100).clamp(0, 1)
    assert (theirs == 0).any()
    torch.testing.assert_close(conditioner(torch.from_numpy(log_mel(wave, spec)), spec), theirs, atol=1e-5, rtol=0)


def without(prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in recorded.state("diffwave").items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": AttrDict(PARAMS)}, r"AttrDict was not an allowed global .*save it again .*dict\(old\['params'\]\)"),
        ({"params": {**PARAMS, "noise_schedule": np.linspace(1e-4, 0.05, 50)}}, "cannot be read as weights .* as lists"),
        ({"params": None}, "it needs both `model` and `params`"),
        ({"model": without("spectrogram_upsampler.")}, "an unconditional network"),
        ({"model": without("skip_projection.bias")}, r"not the weights of DiffWaveNet .*skip\.bias"),
        ({"model": recorded.state("diffwave") | {"more.weight": torch.ones(1)}}, r"not the weights of DiffWaveNet .*more\.weight"),
        ({"model": recorded.state("diffwave") | {"skip_projection.bias": "0"}}, "not the weights of DiffWaveNet"),
        ({"model": {0: torch.ones(1)}}, "not a checkpoint of DiffWave"),
        (
            {"model": recorded.state("diffwave") | {"skip_projection.bias": torch.full((8,), float("nan"))}},
            "'skip.bias' has values",
        ),
        *(
            ({"params": PARAMS | params}, message)
            for params, message in (
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
            )
        ),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=rf"weights\.pt: .*({message})"):
        files.read(write(tmp_path / "weights.pt", **change))


def test_a_file_that_is_cut_or_absent_is_named(tmp_path):
    path = write(tmp_path / "weights.pt")
    path.write_bytes(path.read_bytes()[:-100])
    for name in ("weights.pt", "gone.pt"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read as weights"):
            files.read(tmp_path / name)


def test_a_request_without_labels_gets_one_by_its_seed():
    run = Run(None, torch.device("cpu"), "32", 1, Path(), Path())
    document = ROWS["diffwave_label"].composed()
    expected = params.parse(registry.family("diffwave").train_params, document["diffwave"]["train"], "diffwave.train")
    model = Generating(expected, None, RATE, labels=LABELS)
    drawn = model._conditions([Request(seed=seed) for seed in range(20)], run)
    assert set(map(tuple, drawn.tolist())) == {(1.0, 0.0), (0.0, 1.0)}
    assert model._conditions([Request(LABELS), Request(("rain",))], run).tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_its_vocoder_alone_makes_what_it_reconstructs(tmp_path, trainings):
    """With all steps of the training; by label it has none."""
    soundfile.write(tmp_path / "some.wav", 0.1 * np.random.default_rng(0).standard_normal(3000), RATE)
    place = ["--checkpoint", f"{trainings.trained('diffwave')}/model"]
    works("reconstruct", "some.wav", *place, "--set", "betas=trained", "--output", "back", cwd=tmp_path)
    soundmill("vocode", "some.wav", *place, "--steps", "50", "--output", "vocoded", cwd=tmp_path)
    vocoded, reconstructed = (soundfile.read(tmp_path / folder / "some.wav")[0] for folder in ("vocoded", "back"))
    np.testing.assert_allclose(vocoded, reconstructed, atol=2e-4)
    assert np.abs(vocoded).max() > 0.01
    place = ["--checkpoint", f"{trainings.trained('diffwave_label')}/model"]
    done = soundmill("vocode", "some.wav", *place, "--steps", "50", "--output", "none", cwd=tmp_path)
    assert "this checkpoint of the family 'diffwave' has no vocoder" in done.stderr
