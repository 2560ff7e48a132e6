"""The 1-D U-Net: published sizes, and each of its conditions by what it changes; and the diffusion autoencoder that starts from
principal components: what it does untrained, learns, saves and refuses."""

import math

import numpy as np
import pytest
import torch

from soundmill import params
from soundmill.audio.mel import mel_filterbank, mel_spectrogram
from soundmill.audio.pieces import to_samples
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.components.unet1d.codec import AutoencoderParams
from soundmill.models.components.unet1d.codec.codec import AutoencoderNet, DiffusionCodec, GaussianDenoiser
from soundmill.models.components.unet1d.network import InverseStft, Item, Joined, Patches, Stft, UNet1d
from soundmill.models.components.unet1d.params import SamplingParams, TransformParams, UNet1dParams
from soundmill.models.family import Request
from soundmill.models.sounds import noise_of
from tests.imports import ROOT
from tests.mels import spec_with

NO_TRANSFORM = TransformParams(kind="none", size=1, filters=1)
SMALL = UNet1dParams(
    channels=[8, 16],
    factors=[1, 4],
    items=[1, 2],
    attention=[False, True],
    text_attention=[False, True],
    heads=2,
    head_width=4,
    groups=4,
    modulation=16,
)
LARGE = {
    "channels": [8, 32, 64, 128, 256, 512, 512, 1024, 1024],
    "factors": [1, 4, 4, 4, 2, 2, 2, 2, 2],
    "items": [1, 2, 2, 2, 2, 2, 2, 4, 4],
    "attention": [False] * 5 + [True] * 4,
    "text_attention": [False] * 9,
    "heads": 8,
    "head_width": 64,
    "groups": 8,
    "modulation": 1024,
}
XT, LEVEL = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.5, 0.9])
SPEC = spec_with(n_fft=256, win_length=256, hop_length=64, n_mels=12, peak=None)
SIZES = (
    "items: [1, 1], attention: [false, false], text_attention: [false, false], heads: 2, head_width: 4, groups: 2, modulation: 8"
)
SIGMA = 0.2


def net(*, sizes: UNet1dParams = SMALL, transform: TransformParams = NO_TRANSFORM, channels: int = 2, **conditions: int) -> UNet1d:
    torch.manual_seed(0)
    return UNet1d(sizes, transform, channels, 2, **conditions).eval()


def test_published_sizes():
    with torch.device("meta"):
        large = UNet1d(UNet1dParams(**LARGE), NO_TRANSFORM, 2, 2)
    assert sum(weight.numel() for weight in large.parameters()) == 217_437_436


@pytest.mark.parametrize(
    ("family", "counts"),
    [
        ("diffusion_ae", {"unet": 124_354_496, "autoencoder": 197_013_788}),
        ("diffusion_vocoder", {"net": 175_493_349}),
        ("upsampler", {"unet": 175_412_502}),
    ],
)
def test_sizes_of_the_readme_s_examples(family, counts):
    """audio-diffusion-pytorch's: nine levels up to 1,024 channels, without attention; at 44.1 kHz, and at its 48 kHz by name."""
    for choice, rate in (("scale=paper", 44_100), (f"{family}=paper_48k", 48_000)):
        document = params.compose(ROOT / "conf", [f"model={family}", choice])
        registry.check(document)
        assert registry.parameter_counts(family, document) == counts
        section = document[family]["autoencoder" if family == "diffusion_ae" else "train"]
        assert {name: section["network"][name] for name in LARGE} == LARGE | {"attention": [False] * 9}
        plan = document["clips"][document["families"][family]["clips"]]
        assert (plan["sample_rate"], plan["channels"], to_samples(plan["clip_seconds"], rate)) == (rate, 2, 2**18)
        mels = {"diffusion_ae": document["spectrogram"].get(family), "diffusion_vocoder": section.get("mel")}.get(family)
        assert mels is None or (mels["sample_rate"], mels["f_max"], mels["n_mels"]) == (rate, rate / 2, 80)


def test_as_a_vocoder_of_log_mels_it_has_the_same_net():
    network = params.compose(ROOT / "conf", ["vocoder=diffusion"])["vocoder"]["network"]
    assert {name: network[name] for name in LARGE} == LARGE | {"attention": [False] * 9}


@pytest.mark.parametrize(("kind", "window"), [("none", None), ("patch", None), ("learned", None), ("learned", 10), ("stft", None)])
def test_every_weight_and_sample_takes_part(kind, window):
    """v has the waves' shape, items do not see each other, and all that can learn gets a gradient."""
    built = net(transform=TransformParams(kind=kind, size=4, filters=3, window=window))
    xt = XT.clone().requires_grad_()
    v = built(xt, LEVEL)
    assert v.shape == XT.shape
    torch.testing.assert_close(built(XT[1:2], LEVEL[1:2]), v[1:2], atol=1e-5, rtol=1e-4)
    v.square().sum().backward()
    assert (xt.grad != 0).all()
    assert not [name for name, weight in built.named_parameters() if weight.grad is None or not weight.grad.any()]
    if kind == "learned":  # waves are reflected at their ends: a constant has no edge
        of_constant = built.encode(torch.ones_like(XT))
        torch.testing.assert_close(of_constant, of_constant[..., :1].expand_as(of_constant))


@pytest.mark.parametrize("window", [16, 32])
def test_fourier_coefficients_go_there_and_back_and_keep_the_energy_of_noise(window):
    coefficients = Stft(window, 4)(XT)
    assert coefficients.shape == (3, 2 * window, 16)
    torch.testing.assert_close(InverseStft(window, 4)(coefficients), XT)
    noise = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0))
    assert Stft(window, 4)(noise).square().mean() == pytest.approx(3 / 8, rel=0.05)  # the mean of the squared window
    tone = Stft(window, 4)(torch.sin(torch.arange(400) * 2 * math.pi * 3 / window)[None, None])[0, :, 50]
    assert torch.hypot(tone[1 : window // 2], tone[window // 2 + 1 :]).argmax() == 3 - 1  # cosines and sines without the ends
    with pytest.raises(ValueError, match="stft needs an even size and a multiple of 4"):
        TransformParams(kind="stft", size=4, filters=1, window=24)


def test_a_patch_goes_there_and_back():
    patches = Patches(4)(XT)
    assert patches.shape == (3, 8, 16)
    assert torch.equal(patches[0, :4, 0], XT[0, 0, :4])
    assert torch.equal(Joined(4)(patches), XT)


def test_labels_change_the_answer():
    built = net(num_labels=2)
    bell, rain, none = (torch.tensor([weights] * 3) for weights in ([1.0, 0.0], [0.0, 1.0], [0.0, 0.0]))
    answers = [built(XT, LEVEL, weights) for weights in (bell, rain, none)]
    assert all((one - other).abs().max() > 1e-3 for one in answers for other in answers if one is not other)
    with torch.no_grad():
        built.labels.weight.zero_()
    assert torch.equal(built(XT, LEVEL, bell), built(XT, LEVEL, none))


def test_a_text_is_read_by_its_tokens_alone():
    built = net(text_width=6, null_tokens=5)
    states, mask = torch.randn(3, 8, 6), torch.arange(8) < torch.tensor([[8], [3], [5]])
    shown, dropped = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    answer = built(XT, LEVEL, states, mask, shown)
    beyond = torch.where(mask[:, :, None], states, torch.randn_like(states))
    assert torch.equal(built(XT, LEVEL, beyond, mask, shown), answer)
    assert (built(XT, LEVEL, states.flip(1), mask.flip(1), shown)[1] - answer[1]).abs().max() < 1e-5
    assert (built(XT, LEVEL, torch.randn_like(states), mask, shown) - answer).abs().amax((1, 2)).min() > 1e-4
    # Dropped, it is the learned text, whichever it was and however long.
    without = built(XT, LEVEL, states, mask, dropped)
    torch.testing.assert_close(built(XT, LEVEL, states[:, :2], mask[:, :2], dropped), without, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(built(XT, LEVEL, states, mask, torch.tensor([False, True, False]))[1], without[1])
    assert (without - answer).abs().amax((1, 2)).min() > 1e-4


def test_latents_join_at_their_level_and_a_signal_beside_the_noise():
    local = SMALL.model_copy(update={"attention": [False, False]})
    built, latents = net(sizes=local, latent_channels=3, latents_at=1), torch.randn(1, 3, 16)
    moved = latents.clone()
    moved[..., 0] += 1
    xt, level = XT[:1], LEVEL[:1]
    blocks = [module for module in built.modules() if isinstance(module, Item)]
    seen = {block: [] for block in blocks}
    for block in blocks:
        block.register_forward_hook(lambda block, _, answer: seen[block].append(answer.detach()))
    assert not torch.equal(built(xt, level, latents=latents), built(xt, level, latents=moved))
    changed = [(one != other).any(1)[0].nonzero()[:, 0].tolist() for one, other in seen.values()]
    first_latents = next(place for place, block in enumerate(blocks) if block.latents is not None)
    assert [block.latents is not None for block in blocks] == [block.block[0].num_channels == 16 for block in blocks]
    assert changed[first_latents] == [0]  # of 16 frames, where the first latent joins
    assert [blocks[place].block[0].num_channels for place, frames in enumerate(changed) if not frames] == [8]
    with pytest.raises(RuntimeError):
        built(xt, level, latents=latents[..., :15])
    beside = torch.randn(1, 1, 64)
    joined = net(sizes=local, channels=3)
    assert (joined(xt, level, beside=beside) - joined(xt, level, beside=-beside)).abs().max() > 1e-3


def test_parts_of_a_longer_sound_share_the_noise_of_their_place():
    whole, part = noise_of([Request(seed=1, start=0)], 2, 10_000), noise_of([Request(seed=1, start=3000)], 2, 7000)
    assert torch.equal(whole[..., 3000:], part)
    assert whole.std() == pytest.approx(1, abs=0.02)
    assert not torch.equal(part, noise_of([Request(seed=2, start=3000)], 2, 7000))
    alone, together = noise_of([Request(seed=5)], 2, 100), noise_of([Request(seed=4), Request(seed=5)], 2, 100)
    assert torch.equal(alone[0], together[1])


def chosen(*changes: str) -> AutoencoderParams:
    sizes = (
        "encoder={channels: 8, blocks: 1, factor: 2, latent_channels: 5, groups: 2}",
        f"network={{channels: [4, 8], factors: [2, 64], {SIZES}}}",
        "latents_at=1",
        "weights.num_samples=1024",
    )
    document = params.compose(
        ROOT / "conf", ["model=diffusion_ae", *(f"diffusion_ae.autoencoder.{one}" for one in (*sizes, *changes))]
    )
    return params.parse(AutoencoderParams, document["diffusion_ae"]["autoencoder"], "")


def waves() -> torch.Tensor:
    """[6, 2, 2048]: noise of different colours, rising."""
    white = torch.randn(6, 2, 2049, generator=torch.Generator().manual_seed(0))
    colour = torch.linspace(-0.9, 0.9, 6)[:, None, None]
    return SIGMA * (white[..., 1:] + colour * white[..., :-1]) * torch.linspace(0.1, 1, 2048)


def started(*changes: str) -> DiffusionCodec:
    torch.manual_seed(0)
    net = AutoencoderNet(chosen(*changes), SPEC, 2).eval()
    net.start_from_components(iter(waves()[:, None]), SIGMA, "autoencoder.encoder.pca")
    return DiffusionCodec(chosen(*changes), SPEC, 2, net, SIGMA)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_white_noise_is_denoised_by_one_factor(power):
    """x0 of variance s: E[x0 | xt] = αs / (α²s + σ²) xt, and v follows."""
    spec, variance, level = SPEC.model_copy(update={"power": power}), 0.3, 0.4
    noise = torch.hann_window(256).square().sum() * variance
    mean = noise if power == 2 else (noise * math.pi / 4).sqrt()
    log_mels = (mean * mel_filterbank(spec).sum(0)).log().repeat(2)[None, :, None].expand(3, -1, 32)
    xt = torch.randn(3, 2, 2048, generator=torch.Generator().manual_seed(0))
    alpha, sigma = math.cos(level * math.pi / 2), math.sin(level * math.pi / 2)
    x0 = alpha * variance / (alpha**2 * variance + sigma**2) * xt
    expected = alpha * (xt - alpha * x0) / sigma - sigma * x0
    torch.testing.assert_close(GaussianDenoiser(spec, 2)(xt, torch.full((3,), level), log_mels), expected, atol=1e-5, rtol=0)


def test_an_untrained_codec_is_the_closed_form_of_principal_components():
    """Latents are the components of two frames of both channels' log-mels; the denoiser gets the nearest log-mels."""
    model = started()
    log_mels = mel_spectrogram(SPEC)(waves() / SIGMA)[..., :32].clamp_min(SPEC.floor / SIGMA).log().flatten(1, 2)
    blocks = log_mels.double().numpy().reshape(6, 24, 16, 2).transpose(0, 2, 1, 3).reshape(-1, 48)
    center = blocks.mean(0)
    axes = np.linalg.svd(blocks - center, full_matrices=False)[2][:5]
    components = (blocks - center) @ axes.T
    latents = model.encode(waves())
    unit = (components / components.std(0)).reshape(6, 16, 5).transpose(0, 2, 1)
    found = latents.numpy() * np.sign((latents.numpy() * unit).sum((0, 2)))[None, :, None]
    np.testing.assert_allclose(found, unit, atol=1e-3)
    nearest = (components @ axes + center).reshape(6, 16, 24, 2).transpose(0, 2, 1, 3).reshape(6, 24, 32)
    xt, level = torch.randn(6, 2, 2048, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 1, 6)
    expected = GaussianDenoiser(SPEC, 2)(xt, level, torch.from_numpy(nearest).float())
    with torch.no_grad():
        torch.testing.assert_close(model.net(xt, level, latents), expected, atol=1e-4, rtol=1e-4)


def test_decoded_sounds_have_the_spectrum_and_level_of_the_real_ones():
    model = started("encoder.latent_channels=24")
    decoded = model.decode(model.encode(waves()), SamplingParams(num_steps=20, seed=0))
    assert decoded.shape == waves().shape
    real, made = (mel_spectrogram(SPEC)(one)[..., 2:-2].log().mean((1, 3)) for one in (waves(), decoded))
    assert (real - made).abs().mean() < 0.15  # nepers; the colours differ by 1.5


def test_a_codec_that_starts_from_components_learns_in_every_weight():
    net = started().net.train()
    optimiser, level = torch.optim.SGD(net.parameters(), 0.1), torch.full((6,), 0.5)
    for _ in range(2):  # the first step reaches only the last layers, which are 0
        loss = net(waves(), level, net.encoder(waves())).square().mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    assert not [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_what_has_no_components_is_refused():
    net = AutoencoderNet(chosen(), SPEC, 2)
    with pytest.raises(UserError, match=r"autoencoder\.encoder\.pca: all training clips are silent .* set .* to false"):
        net.start_from_components(iter(torch.zeros(3, 1, 2, 1024)), SIGMA, "autoencoder.encoder.pca")
    with pytest.raises(UserError, match=r"latent_channels 25: with encoder\.pca at most 24, the numbers of 2 frames of 12 bands"):
        chosen("encoder.latent_channels=25").check_spec(SPEC)
    with pytest.raises(UserError, match="hop_length 256 must be at most half of win_length"):
        chosen("network.factors=[2,256]").check_spec(SPEC.model_copy(update={"hop_length": 256}))
