"""The mel DDPM: its nets, pictures and captions, and its paper scale against the formulas of the published system, anew."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from soundmill import params
from soundmill.audio.mel import MelSpec, SpectrogramParams, log_mel, mel_filterbank
from soundmill.diffusion import paths
from soundmill.diffusion.paths import Discrete, discrete
from soundmill.diffusion.sampling import Draw, Given, sample
from soundmill.diffusion.solvers import scheduled
from soundmill.models.components.dit.network import PictureDiT
from soundmill.models.components.dit.params import SizesParams
from soundmill.models.components.text_states.states import vectors
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.params import TransformParams, UNet1dParams
from soundmill.models.ddpm_mel import PictureParams, TrainParams
from soundmill.models.ddpm_mel.model import DdpmMel, PictureCodec, rescaled, sample_log_mels
from soundmill.models.ddpm_mel.unet import ResidualUNet, UNet, timestep_embedding
from soundmill.models.family import Run
from soundmill.models.params import read_sections
from tests.imports import ROOT


def _small(num_labels: int) -> UNet:
    torch.manual_seed(0)
    return UNet(4, [8, 16], [1], heads=2, embedding_size=16, num_labels=num_labels).eval()


def _residual(shape: tuple[int, int, int], num_labels: int, **changes) -> ResidualUNet:
    torch.manual_seed(0)
    return ResidualUNet(shape, [8, 16, 24], [1, 2], 2, 16, num_labels, **({"blocks": 1, "dropout": 0.0, "gated": False} | changes))


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 4, 12)])
def test_keeps_the_shape(shape):
    xt = torch.randn(3, *shape)
    for net in (_small(0), _residual(shape, 0), _residual(shape, 0, blocks=2), _residual(shape, 0, gated=True)):
        assert net(xt, torch.tensor([0, 5, 999]), torch.zeros(3, 0)).shape == xt.shape


@pytest.mark.parametrize("gated", [False, True])
def test_residual_net_begins_at_zero_and_every_weight_learns(gated):
    net = _residual((4, 8, 8), 3, gated=gated)
    xt, t, condition = torch.randn(2, 4, 8, 8), torch.tensor([1, 500]), torch.eye(3)[:2]
    assert net(xt, t, condition).abs().max() == 0
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    net(xt, t, condition).square().mean().backward()
    still = [name for name, weight in net.named_parameters() if weight.grad is None or weight.grad.abs().max() == 0]
    assert not still


FACTORS = torch.linspace(-1, 1, 64)


def _transformer(gated: bool) -> PictureDiT:
    torch.manual_seed(0)
    return PictureDiT(SizesParams(layers=1, heads=2, head_width=4, key_heads=1, gated=gated), (8, 8, 8), 1000, 0)


def _waves(gated: bool) -> UNet1d:
    torch.manual_seed(0)
    levels = {"channels": [8], "factors": [1], "items": [1], "attention": [False], "text_attention": [False]}
    sizes = UNet1dParams(**levels, heads=1, head_width=4, groups=2, modulation=8, gated=gated)
    return UNet1d(sizes, TransformParams(kind="patch", size=64, filters=1), 1, 1)


@pytest.mark.parametrize(
    ("make", "factors"),
    [
        (lambda gated: _residual((64, 8, 8), 0, gated=gated), FACTORS.reshape(64, 1, 1).expand(64, 8, 8)),
        (_transformer, FACTORS.reshape(8, 8, 1).expand(8, 8, 8)),
        (_waves, FACTORS.repeat(1, 8)),
    ],
    ids=["residual", "transformer", "waves"],
)
def test_a_gain_passes_on_more_coefficients_than_the_net_has_channels(make, factors):
    """Each of 64 channels times its own factor, by features of 8 channels: a linear map of these leaves 7/8."""
    xt = torch.randn(8, *factors.shape, generator=torch.Generator().manual_seed(0))
    target, errors = factors * xt, {}
    for gated in (False, True):
        net = make(gated).train()
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(60):
            error = (net(xt, torch.zeros(8), torch.zeros(8, 0)) - target).square().mean() / target.square().mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        errors[gated] = error.item()
    assert errors[True] < 0.1 < 0.5 < errors[False]


def test_residual_net_tells_rows_and_labels_apart():
    net = _residual((4, 8, 8), 3)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    xt, t = torch.zeros(1, 4, 8, 8), torch.tensor([10])
    answer = net(xt, t, torch.zeros(1, 3))
    assert not torch.allclose(answer[:, :, 3], answer[:, :, 4])
    assert not torch.allclose(answer, net(xt, t, torch.eye(3)[:1]))


def test_condition_is_a_weighted_sum_of_label_embeddings():
    net, xt, t = _small(3), torch.randn(1, 4, 8, 8), torch.tensor([10])
    answers = {weights: net(xt, t, torch.tensor([weights])) for weights in ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0))}
    none, one, two = answers.values()
    assert not torch.allclose(none, one)
    assert not torch.allclose(one, two)
    net.labels.weight.data[:2] = 0
    torch.testing.assert_close(net(xt, t, torch.tensor([[0.5, 0.5, 0.0]])), none)


def test_timestep_embedding():
    embedding = timestep_embedding(torch.tensor([0, 7]), 6)
    assert embedding[0].tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(embedding[1, [0, 3]], torch.tensor([math.sin(7), math.cos(7)]))


SPEC = MelSpec(
    sample_rate=16000, n_fft=1024, win_length=1024, hop_length=313, n_mels=64, f_min=0.0, f_max=8000.0,
    mel_scale="htk", norm="slaney", power=2.0, floor=1e-10, peak=None,
)  # fmt: skip
PARAMS = PictureParams(
    seconds=5.0, height=64, width=256, level="absolute", top_db=24.0, compression="log", range_db=90.0, exponent=0.25,
    min_max=False, polarity="bright", patch=[4, 8], patch_basis="pixels", standardise="channel", whitening=1.0,
)  # fmt: skip


def _params(**changes) -> PictureParams:
    return PictureParams.model_validate(PARAMS.model_dump() | changes)


@pytest.fixture(scope="module")
def sounds() -> torch.Tensor:
    """log-mels [3, 64, 256]: noise that swells, a siren, clicks; at three levels."""
    time = torch.arange(80_000) / 16_000
    rng = torch.Generator().manual_seed(0)
    waves = [
        0.3 * torch.randn(80_000, generator=rng) * time / 5,
        0.03 * torch.sin(2 * math.pi * 800 * time + 300 * torch.sin(2 * math.pi * 0.4 * time))
        + 1e-4 * torch.randn(80_000, generator=rng),
        0.9 * (time % 0.5 < 0.01) * torch.randn(80_000, generator=rng) + 1e-3 * torch.randn(80_000, generator=rng),
    ]
    return torch.from_numpy(log_mel(torch.stack(waves).numpy(), SPEC))


@pytest.mark.parametrize("compression", ["log", "power"])
@pytest.mark.parametrize("level", ["absolute", "clip"])
@pytest.mark.parametrize("basis", ["pixels", "dct"])
@pytest.mark.parametrize("standardise", ["none", "global", "band", "channel"])
def test_round_trip_is_within_a_percent(sounds, compression, level, basis, standardise):
    changes = {"compression": compression, "level": level, "patch_basis": basis, "standardise": standardise}
    codec = PictureCodec(_params(**changes), SPEC)
    codec.fit([sounds[:2], sounds[2:]])
    back = codec.decode(*codec.encode(sounds))
    heard = sounds > sounds.amax((1, 2), keepdim=True) - 60 * math.log(10) / 10  # 60 dB below each clip's maximum
    error = (back.exp() - sounds.exp()).abs() / sounds.exp()
    assert error[heard].max() < 0.01
    power = (back.exp().sum() / sounds.exp().sum()).item()
    assert power == pytest.approx(1, abs=0.01)


def test_a_picture_a_little_wider_than_its_frames_is_padded_rather_than_blurred(sounds):
    back = [PictureCodec(_params(width=264, fit=fit), SPEC) for fit in ("pad", "resize")]
    padded, blurred = ((codec.decode(*codec.encode(sounds)) - sounds).abs().mean() for codec in back)
    assert padded < 0.001 < 0.02 < blurred
    assert back[0].to_picture(sounds)[0].shape == (3, 1, 64, 264)
    wide = [PictureCodec(_params(width=272, fit=fit), SPEC).to_picture(sounds)[0] for fit in ("pad", "resize")]
    assert torch.equal(*wide)  # more than a patch wider: stretched


def test_loud_is_bright_and_silence_dark():
    codec = PictureCodec(PARAMS, SPEC)
    steps = torch.linspace(-60, 24, 256) * math.log(10) / 10
    picture, _ = codec.to_picture(steps.expand(1, 64, 256))
    assert (picture.diff(dim=-1) > 0).all()
    assert picture.max().item() == pytest.approx(1)
    silence, _ = codec.to_picture(torch.full((1, 64, 256), codec.silence))
    assert silence.max().item() == pytest.approx(-1, abs=1e-3)


def test_clip_level_is_its_maximum_and_the_picture_does_not_hang_on_it(sounds):
    codec = PictureCodec(_params(level="clip", compression="power"), SPEC)
    quiet = sounds - 3.0
    picture, level = codec.to_picture(sounds)
    quiet_picture, quiet_level = codec.to_picture(quiet)
    torch.testing.assert_close(level, sounds.amax((1, 2)))
    torch.testing.assert_close(quiet_level, level - 3.0)
    torch.testing.assert_close(quiet_picture, picture, atol=1e-4, rtol=1e-4)
    assert picture.amax((1, 2, 3)).tolist() == pytest.approx([1, 1, 1])


def test_channels_or_bands_are_standardised(sounds):
    codec = PictureCodec(PARAMS, SPEC)
    codec.fit([sounds])
    latent, _ = codec.encode(sounds)
    assert latent.shape == (3, *codec.shape) == (3, 32, 16, 32)
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.square().mean((0, 2, 3)), torch.ones(32), atol=1e-3, rtol=0)
    bands = PictureCodec(_params(standardise="band", patch=[1, 1]), SPEC)
    bands.fit([sounds])
    torch.testing.assert_close(bands.encode(sounds)[0].mean((0, 1, 3)), torch.zeros(64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_evens_channels_out_and_keeps_unit_variance(sounds, whitening):
    plain = PictureCodec(_params(standardise="none", patch_basis="dct"), SPEC)
    codec = PictureCodec(_params(patch_basis="dct", whitening=whitening), SPEC)
    codec.fit([sounds])
    before, after = plain.encode(sounds)[0], codec.encode(sounds)[0]
    spread, evened = before.std((0, 2, 3)), after.std((0, 2, 3))
    assert after.square().mean().item() == pytest.approx(1, rel=1e-3)
    torch.testing.assert_close(evened / evened[0], (spread / spread[0]) ** (1 - whitening), atol=1e-3, rtol=1e-2)


def test_cosine_basis_is_orthonormal_and_its_first_is_the_mean(sounds):
    pixels, cosines = (PictureCodec(_params(standardise="none", patch_basis=basis), SPEC) for basis in ("pixels", "dct"))
    latent, transformed = pixels.encode(sounds)[0], cosines.encode(sounds)[0]
    torch.testing.assert_close(transformed[:, 0], latent.mean(1) * 32**0.5)
    torch.testing.assert_close(transformed.square().sum(1), latent.square().sum(1))
    flat = torch.ones(1, 1, 64, 256)
    assert cosines.to_latent(flat)[:, 1:].abs().max() < 1e-5


def test_the_papers_small_picture_comes_back_enlarged(sounds):
    codec = PictureCodec(_params(height=16, width=64, compression="power", patch=[1, 1], standardise="none"), SPEC)
    latent, level = codec.encode(sounds)
    assert latent.shape == (3, 1, 16, 64)
    back = codec.decode(latent, level)
    assert back.shape == sounds.shape
    again, _ = codec.encode(back)
    assert (again - latent).abs().mean() < 0.1


def test_a_patch_is_a_place(sounds):
    codec = PictureCodec(_params(standardise="none"), SPEC)
    picture, _ = codec.to_picture(sounds)
    latent = codec.to_latent(picture)
    assert torch.equal(latent[0, 8 + 3, 2, 5], picture[0, 0, 2 * 4 + 1, 5 * 8 + 3])
    assert torch.equal(codec.from_latent(latent), picture)


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
    gray = Image.fromarray(((picture[0, 0].numpy() + 1) * 127.5).round().astype(np.uint8))
    by_pil = np.asarray(gray.resize((64, 64))) / 127.5 - 1  # bicubic
    np.testing.assert_allclose(small[0, 0], by_pil, atol=1.6 / 127.5)
    assert small.abs().max() <= 1  # as pixels, which have no overshoot


def test_the_way_back_takes_the_fourth_power_of_what_is_dark(train, spec):
    codec = PictureCodec(train.picture.model_copy(update={"height": 512, "width": 501}), spec)
    picture = torch.linspace(-1, 1, 501).expand(1, 1, 512, 501)
    loudest = 40.0  # the largest magnitude; level is the logarithm of its square
    magnitude = codec.from_picture(picture, torch.tensor([2 * np.log(loudest)], dtype=torch.float32)).exp()
    torch.testing.assert_close(magnitude[0, 0], (loudest * ((1 - picture[0, 0, 0]) / 2) ** 4).clamp_min(spec.floor))


def test_a_silent_clip_is_bright_all_over(train, spec):
    picture, _ = PictureCodec(train.picture, spec).encode(torch.full((1, 512, 501), float(np.log(spec.floor))))
    torch.testing.assert_close(picture, torch.ones(1, 1, 64, 64))


def test_sampled_pictures_are_put_right_as_published(train):
    assert train.sampling.rescale
    picture = torch.tensor([[0.9, 0.7, 0.7, -1.5], [0.3, 0.3, -0.2, -0.4]]).reshape(2, 1, 2, 2)  # means 0.2 and 0; loud is dark
    expected = torch.tensor([[1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 0.0, -1.0]])
    torch.testing.assert_close(rescaled(picture, "dark").flatten(1), expected)
    torch.testing.assert_close(rescaled(-picture, "bright").flatten(1), -expected)
    assert (rescaled(torch.full((1, 1, 2, 2), 0.3), "dark") == 1).all()


def published_loop(net, noise: Tensor, rng: torch.Generator) -> Tensor:
    """Algorithm 2 of Ho et al. 2020 with sigma² = beta, for t = 999 … 1; no noise is added in the last step."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = 1 - betas
    bars = torch.cumprod(alphas, 0)
    x = noise.double()
    for t in range(999, 0, -1):
        eps = net(x.float(), torch.full((1,), t)).double()
        x = (x - betas[t] / (1 - bars[t]).sqrt() * eps) / alphas[t].sqrt()
        if t > 1:
            x += betas[t].sqrt() * torch.randn(noise.shape, generator=rng).double()
    return x


def test_the_sampler_is_the_published_loop_from_999_to_1(paper, train):
    _, _, sampling = read_sections(paper, "ddpm_mel", TrainParams)
    diffusion, visited = train.diffusion, []
    assert (sampling, diffusion.objective, sampling.clip, sampling.guidance_scale) == (train.sampling, "eps", None, 1.0)

    def net(xt: Tensor, t: Tensor) -> Tensor:
        visited.append(int(t))
        return torch.tanh(xt) * (0.5 + t / 2000)

    path, draw = discrete(diffusion, diffusion.first_timestep), Draw.of_seeds([7])
    steps = scheduled(path, sampling.sampler, sampling.num_steps, torch.device("cpu"))
    output = sample(steps, net, draw.noise((1, 4, 4)), draw)
    assert visited == list(range(999, 0, -1))
    rng = torch.Generator().manual_seed(7)
    noise = torch.randn(1, 4, 4, generator=rng)[None]
    torch.testing.assert_close(output, published_loop(net, noise, rng).float(), atol=2e-3, rtol=2e-3)


def test_the_last_step_ends_at_the_level_below_the_first_timestep():
    """Where it differs most from x0: one step to alpha_bar_0 of a steep schedule."""
    table = paths.linear(10, 0.2, 0.3)
    xt, x0 = torch.tensor([[[[1.0]]]]), 0.25
    steps = scheduled(Discrete(table, "x0", first=1), "ddpm", 1, torch.device("cpu"))
    output = sample(steps, lambda *_: torch.full_like(xt, x0), xt)
    before, now = float(table[0]), float(table[9])
    kept = now / before
    expected = (before**0.5 * (1 - kept) * x0 + kept**0.5 * (1 - before)) / (1 - now)
    assert output.item() == pytest.approx(expected, rel=1e-5)


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
    run = Run(sampling, torch.device("cpu"), "32", 2, ROOT, ROOT)
    sample_log_mels(model, torch.ones(3, 1), [0, 1, 2], run, torch.zeros(3), Given())
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


RNG = np.random.default_rng(0)


def test_a_caption_is_the_mean_of_its_states_with_length_one():
    states = RNG.standard_normal((5, 3)).astype("<f2")
    found = vectors([states, None, 7 * states], 3)
    mean = states.astype(np.float64).mean(0)
    np.testing.assert_allclose(found[0].double(), mean / np.linalg.norm(mean), atol=1e-3)
    assert found[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(found[2], found[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("conditions", [0, 3])
def test_the_transformer_of_pictures_is_told_time_and_condition(conditions):
    net = PictureDiT(SizesParams(layers=2, heads=2, head_width=8, key_heads=1), (4, 2, 6), 1000, conditions)
    for parameter in net.parameters():  # it starts as the identity in many parts
        torch.nn.init.normal_(parameter, std=0.2)
    xt, weights = torch.randn(2, 4, 2, 6), torch.eye(2, conditions)
    with torch.no_grad():
        answer = net(xt, torch.tensor([10, 10]), weights)
        assert answer.shape == xt.shape
        assert not torch.allclose(answer, net(xt, torch.tensor([10, 900]), weights))
        alone = net(xt[1:], torch.tensor([10]), weights[1:])
        torch.testing.assert_close(answer[1:], alone, atol=1e-5, rtol=1e-4)
        assert torch.allclose(answer, net(xt, torch.tensor([10, 10]), 2 * weights)) == (conditions == 0)
