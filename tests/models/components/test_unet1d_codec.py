"""The diffusion autoencoder that starts from principal components: what it does untrained, learns, saves and refuses."""

import math

import numpy as np
import pytest
import torch

from soundmill import params
from soundmill.audio.mel import mel_filterbank, mel_spectrogram
from soundmill.errors import UserError
from soundmill.models.components.unet1d.codec import AutoencoderParams
from soundmill.models.components.unet1d.codec.codec import AutoencoderNet, DiffusionCodec, GaussianDenoiser
from soundmill.models.components.unet1d.params import SamplingParams
from tests.imports import ROOT
from tests.mels import spec_with

SPEC = spec_with(n_fft=256, win_length=256, hop_length=64, n_mels=12, peak=None)
SIZES = (
    "items: [1, 1], attention: [false, false], text_attention: [false, false], heads: 2, head_width: 4, groups: 2, modulation: 8"
)
SIGMA = 0.2


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
