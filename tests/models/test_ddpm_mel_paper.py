"""The mel DDPM's paper scale against the formulas of the published system, written down anew."""

import numpy as np
import pytest
import torch
from torch import Tensor

from soundmill import params
from soundmill.audio.mel import MelSpec, SpectrogramParams, log_mel, mel_filterbank
from soundmill.diffusion import schedules
from soundmill.diffusion.paths import Discrete, discrete
from soundmill.diffusion.sampling import Draw, sample
from soundmill.diffusion.solvers import scheduled
from soundmill.models.ddpm_mel.model import DdpmMel, sample_log_mels
from soundmill.models.ddpm_mel.params import TrainParams
from soundmill.models.ddpm_mel.picture import PictureCodec, rescaled
from soundmill.models.family import Run
from soundmill.models.params import read_sections
from tests.imports import ROOT


@pytest.fixture(scope="module", params=["model=ddpm_mel", "model=[ddpm_mel,tango]"])
def paper(request) -> dict:
    return params.compose(ROOT / "conf", [request.param, "scale=paper"])


@pytest.fixture(scope="module")
def spec(paper) -> MelSpec:
    return SpectrogramParams(**paper["spectrogram"]["ddpm_mel"]).spec


@pytest.fixture(scope="module")
def train(paper) -> TrainParams:
    return params.parse(TrainParams, paper["ddpm_mel"]["train"], "ddpm_mel.train")


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    """Five seconds of noise that swells, and a tone."""
    time = np.arange(80_000) / 16_000
    noise = np.random.default_rng(0).standard_normal(80_000)
    return (0.02 * noise * (1 + time) + 0.2 * np.sin(2 * np.pi * 700 * time)).astype(np.float32)


def magnitude_mel(wave: np.ndarray, spec: MelSpec) -> np.ndarray:
    """Mel bands of magnitudes, float64 [512, 501]."""
    assert (spec.n_fft, spec.win_length, spec.hop_length, spec.n_mels) == (6400, 1600, 160, 512)  # 400, 100 and 10 ms
    window = np.zeros(6400)
    window[2400:4000] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1600) / 1600)
    mirrored = np.pad(wave.astype(np.float64), 3200, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, 6400)[::160]
    return (np.abs(np.fft.rfft(frames * window)) @ mel_filterbank(spec).double().numpy()).T


def test_the_picture_is_the_fourth_root_of_magnitudes_from_minimum_to_maximum_loud_dark(train, spec, wave):
    root = magnitude_mel(wave, spec) ** 0.25
    expected = 1 - 2 * (root - root.min()) / (root.max() - root.min())
    codec = PictureCodec(train.picture.model_copy(update={"height": 512, "width": 501}), spec)
    values = torch.from_numpy(log_mel(wave, spec))[None]
    picture, _ = codec.to_picture(values)
    np.testing.assert_allclose(picture[0, 0], expected, atol=2e-3)
    assert (picture.amin(), picture.amax()) == (-1, pytest.approx(1, abs=1e-6))

    assert codec.frames == 501  # of 5 s, whatever other families' clips have
    small, _ = PictureCodec(train.picture, spec).encode(values)
    assert small.shape == (1, 1, 64, 64)
    reduced = torch.nn.functional.interpolate(picture, size=(64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(small, reduced)


def test_the_way_back_takes_the_fourth_power_of_what_is_dark(train, spec):
    codec = PictureCodec(train.picture.model_copy(update={"height": 512, "width": 501}), spec)
    picture = torch.linspace(-1, 1, 501).expand(1, 1, 512, 501)
    loudest = 40.0  # the largest magnitude; level is the logarithm of its square
    magnitude = codec.from_picture(picture, torch.tensor([2 * np.log(loudest)], dtype=torch.float32)).exp()
    torch.testing.assert_close(magnitude[0, 0], (loudest * ((1 - picture[0, 0, 0]) / 2) ** 4).clamp_min(spec.floor))


def test_a_silent_clip_is_bright_all_over(train, spec):
    picture, _ = PictureCodec(train.picture, spec).encode(torch.full((1, 512, 501), float(np.log(spec.floor))))
    torch.testing.assert_close(picture, torch.ones(1, 1, 64, 64))


def test_min_max_wants_the_level_stored(train):
    with pytest.raises(ValueError, match="level: clip"):
        type(train.picture).model_validate({**train.picture.model_dump(), "level": "absolute"})


def test_sampled_pictures_are_put_right_as_published(train):
    assert train.sampling.rescale
    picture = torch.tensor([[0.9, 0.7, 0.7, -1.5], [0.3, 0.3, -0.2, -0.4]]).reshape(2, 1, 2, 2)  # means 0.2 and 0; loud is dark
    expected = torch.tensor([[1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 0.0, -1.0]])
    torch.testing.assert_close(rescaled(picture, "dark").flatten(1), expected)
    torch.testing.assert_close(rescaled(-picture, "bright").flatten(1), -expected)
    assert (rescaled(torch.full((1, 1, 2, 2), 0.3), "dark") == 1).all()


def published_loop(net, noise: Tensor, rng: torch.Generator) -> tuple[Tensor, list[int]]:
    """Algorithm 2 of Ho et al. 2020 with sigma² = beta, for t = 999 … 1; no noise is added in the last step."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = 1 - betas
    bars = torch.cumprod(alphas, 0)
    x, visited = noise.double(), []
    for t in range(999, 0, -1):
        visited.append(t)
        eps = net(x.float(), torch.full((1,), t)).double()
        x = (x - betas[t] / (1 - bars[t]).sqrt() * eps) / alphas[t].sqrt()
        if t > 1:
            x += betas[t].sqrt() * torch.randn(noise.shape, generator=rng).double()
    return x, visited


def test_the_sampler_is_the_published_loop_from_999_to_1(paper, train):
    _, _, sampling = read_sections(paper, "ddpm_mel", TrainParams)
    diffusion, visited = train.diffusion, []
    assert (sampling, diffusion.objective, sampling.clip, sampling.guidance_scale) == (train.sampling, "eps", None, 1.0)
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def net(xt: Tensor, t: Tensor) -> Tensor:
        visited.append(int(t))
        return torch.tanh(xt) * (0.5 + t / 2000)

    path, draw = discrete(diffusion, diffusion.first_timestep), Draw.of_seeds([7])
    steps = scheduled(path, sampling.sampler, sampling.num_steps, torch.device("cpu"))
    output = sample(steps, net, draw.noise((1, 4, 4)), draw)
    assert visited == list(range(999, 0, -1))
    rng = torch.Generator().manual_seed(7)
    noise = torch.randn(1, 4, 4, generator=rng)[None]
    expected, steps = published_loop(net, noise, rng)
    assert visited[: len(steps)] == steps
    torch.testing.assert_close(output, expected.float(), atol=2e-3, rtol=2e-3)


def test_the_last_step_ends_at_the_level_below_the_first_timestep():
    """Where it differs most from x0: one step to alpha_bar_0 of a steep schedule."""
    table = schedules.linear(10, 0.2, 0.3)
    xt, x0 = torch.tensor([[[[1.0]]]]), 0.25
    steps = scheduled(Discrete(table, "x0", first=1), "ddpm", 1, torch.device("cpu"))
    output = sample(steps, lambda *_: torch.full_like(xt, x0), xt)
    before, now = float(table[0]), float(table[9])
    kept = now / before
    expected = (before**0.5 * (1 - kept) * x0 + kept**0.5 * (1 - before)) / (1 - now)
    assert output.item() == pytest.approx(expected, rel=1e-5)


def test_more_steps_than_timesteps_trained_on_are_refused(paper):
    document = {**paper["ddpm_mel"]["train"], "sampling": {**paper["ddpm_mel"]["train"]["sampling"], "num_steps": 1000}}
    with pytest.raises(params.UserError, match="999 timesteps trained on"):
        params.parse(TrainParams, document, "ddpm_mel.train")


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("sampler", ["ddpm", "unipc"])
def test_guidance_is_given_at_the_timesteps_of_its_interval_alone(train, spec, sampler, first):
    seen = []

    class Net(torch.nn.Module):
        def forward(self, xt: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            seen.append((int(t[0]), len(xt)))
            return torch.zeros_like(xt)

    sampling = train.sampling.model_copy(
        update={"sampler": sampler, "num_steps": 7, "guidance_scale": 3.0, "guidance_interval": [0.2, 0.6]}
    )
    diffusion = train.diffusion.model_copy(update={"first_timestep": first})
    settings = train.model_copy(update={"sampling": sampling, "diffusion": diffusion})
    picture = PictureCodec(train.picture, spec)
    model = DdpmMel(settings, Net(), spec, picture, torch.zeros(1), torch.ones(1, 1), labels=["bell"])
    sample_log_mels(model, torch.ones(3, 1), [0, 1, 2], Run(sampling, torch.device("cpu"), "32", 2, ROOT, ROOT))
    guided = {t for t, count in seen if 0.2 <= t / diffusion.num_timesteps <= 0.6}
    assert 0 < len(guided) < 7
    assert [count for _, count in seen] == [
        part * (2 if t in guided else 1) for part, (t, _) in zip([2] * 7 + [1] * 7, seen, strict=True)
    ]


def test_a_vocoder_is_given_log_mels_not_the_stretched_picture(train, spec, wave):
    class Given:
        def __init__(self):
            self.spec = spec

        def to(self, device):
            return self

        def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
            self.log_mels = log_mels
            return torch.zeros(len(log_mels), 1, log_mels.shape[2] * spec.hop_length)

    vocoder, picture = Given(), PictureCodec(train.picture.model_copy(update={"height": 512, "width": 501}), spec)
    model = DdpmMel(train, torch.nn.Identity(), spec, picture, torch.zeros(1), torch.zeros(1, 0), vocoder)
    run = Run(train.sampling.model_copy(update={"vocoder": "trained"}), torch.device("cpu"), "32", 1, ROOT, ROOT)
    assert model.reconstruct(torch.from_numpy(wave)[None, None], run).shape == (1, 1, len(wave))
    real, given = torch.from_numpy(log_mel(wave, spec)), vocoder.log_mels[0]
    assert float(given.max()) == pytest.approx(float(real.max()), abs=0.01)  # the level that a picture is stretched from is stored
    loudest = real > real.max() - 1
    torch.testing.assert_close(given[loudest], real[loudest], atol=0.2, rtol=0)
