"""RAVE's parts by their known answers: the filter bank, published sizes, losses, components of latents."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from soundmill import params
from soundmill.errors import UserError
from soundmill.models.components import rave
from soundmill.models.components.pca import components
from soundmill.models.components.rave import AugmentationParams, FeaturesParams, KlParams, NoiseParams, RaveParams, network, phases
from soundmill.models.components.rave.codec import RaveCodec, edited, parse_edits
from soundmill.models.components.rave.network import Pqmf, RaveNet, parts_of_noise
from soundmill.models.components.rave.phases import Discriminators, RaveModule, distance, draw_crops, features_loss, kl_divergence
from soundmill.models.components.waves.source import WaveCrops
from soundmill.training.loader import Described, crop_places, gather
from tests.imports import ROOT

SMALL = rave.NetworkParams(
    version="v2", bands=4, channels=4, ratios=[4, 2], dilations=[[1, 3], [1]], latent_channels=6, noise=None, causal=False
)
STARTED = SMALL.model_copy(update={"noise": NoiseParams(ratios=[2, 2], filters=3), "pca": True})
FIRST = SMALL.model_copy(update={"version": "v1", "noise": NoiseParams(ratios=[2, 2], filters=3)})


def chosen(*choices: str) -> RaveParams:
    """The codec's parameters of a configuration; changes of theirs begin with a dot."""
    changes = [f"rave.autoencoder{choice}" if choice.startswith(".") else choice for choice in choices]
    return params.parse(RaveParams, params.compose(ROOT / "conf", ["model=rave", *changes])["rave"]["autoencoder"], "")


def net(sizes: rave.NetworkParams) -> RaveNet:
    torch.manual_seed(0)
    return RaveNet(sizes).eval()


def waves(count: int = 2, length: int = 4096) -> torch.Tensor:
    return 0.3 * torch.randn(count, 1, length, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bands", [2, 4, 16])
def test_what_the_filter_bank_splits_comes_back_without_lag(bands):
    bank, given = Pqmf(bands), waves(1, 8192)
    split = bank.analysis(given)
    assert split.shape == (1, bands, 8192 // bands)
    inside = slice(1024, -1024)
    error = (bank.synthesis(split) - given)[..., inside].square().mean()
    assert 10 * math.log10(given[..., inside].square().mean() / error) > 55


def test_polyphase_is_the_filters_themselves():
    """A band is the wave convolved with its filter, every 16th sample of that; of odd bands every other sample negated."""
    bank, given, filters = Pqmf(16), waves(1, 1024), torch.from_numpy(network.filter_bank(16)).float()
    assert filters.shape == (16, 377)
    direct = F.conv1d(F.pad(given, (188, 188)), filters.flip(1)[:, None], stride=16)
    direct[:, 1::2, 1::2] *= -1
    torch.testing.assert_close(bank.analysis(given), direct, atol=1e-5, rtol=0)
    spread = torch.zeros(1, 16, 1024)
    spread[..., ::16] = direct * network.flips(16, 64)
    back = F.conv1d(F.pad(spread, (188, 188)), 16 * filters[None])
    torch.testing.assert_close(bank.synthesis(direct), back, atol=1e-5, rtol=0)


def test_the_prototype_is_the_published_one():
    """A Kaiser window of 100 dB; of its own echoes at shifts of two bands nearly nothing is left."""
    taps = network.prototype(16)
    echoes = np.convolve(taps, taps)[len(taps) - 1 :: 32]
    assert len(taps) == 377
    assert np.abs(echoes[1:]).max() < 1e-3 * echoes[0]
    assert np.abs(network.low_pass(0.10752) - taps).max() < 1e-3 * taps.max()


def test_no_band_runs_backwards():
    """A tone a little above the lower edge of any band is a low one there."""
    bank, time = Pqmf(16), torch.arange(16_384)
    for band in range(16):
        tone = torch.sin(math.pi / 16 * (band + 0.2) * time)[None, None]
        spectrum = torch.fft.rfft(bank.analysis(tone)[0, band, 64:-64] * torch.hann_window(1024 - 128)).abs()
        assert spectrum.argmax() / len(spectrum) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(("choice", "periods", "of_periods"), [("scale=paper", 0, 0), ("rave=v2", 5, 4_314_565)])
def test_discriminators_have_the_published_sizes(choice, periods, of_periods):
    with torch.device("meta"):
        built = Discriminators(chosen(choice).weights.discriminators)
    sizes = [sum(weight.numel() for weight in part.parameters()) for part in (built.scales, built.periods)]
    assert (sizes, len(built.periods)) == ([7_751_619, of_periods], periods)


@pytest.mark.parametrize("sizes", [SMALL, FIRST], ids=["v2", "v1"])
@pytest.mark.parametrize("causal", [False, True])
def test_every_weight_and_sample_takes_part(sizes, causal):
    """And items do not see each other; a causal net does not see what comes."""
    built = net(sizes.model_copy(update={"causal": causal})).with_norms()
    given = waves(2, 1024).requires_grad_()
    bands = built.pqmf.analysis(given)
    mean, deviation = built.posterior(bands)
    assert mean.shape == deviation.shape == (2, 6, 1024 // 32)
    assert (deviation > 0).all()
    noise = built.draw_noise(mean, torch.Generator().manual_seed(0))
    output = built.decoder(mean + deviation, noise)
    assert output.shape == bands.shape
    torch.testing.assert_close(
        built.decoder((mean + deviation)[1:], None if noise is None else noise[1:]), output[1:], atol=1e-5, rtol=1e-4
    )
    output.square().sum().backward()
    assert (given.grad != 0).float().mean() > 0.99
    assert not [name for name, weight in built.named_parameters() if weight.grad is None or not weight.grad.any()]
    with torch.no_grad():
        later = bands.clone()
        later[..., 128:] = 0
        same = (built.posterior(later)[0] - mean).abs().amax((0, 1)) < 1e-6
        assert same[: 16 if causal else 12].all()
        assert bool(same[15]) == causal
        assert not same[16]


@pytest.mark.parametrize("sizes", [SMALL, FIRST], ids=["v2", "v1"])
def test_norms_come_and_go(sizes):
    built = net(sizes)
    names, (mean, _) = list(built.state_dict()), built.posterior(built.pqmf.analysis(waves()))
    with_norms = built.with_norms().posterior(built.pqmf.analysis(waves()))[0]
    torch.testing.assert_close(with_norms, mean, atol=1e-6, rtol=1e-5)
    assert list(built.without_norms().state_dict()) == names


def test_gains_of_noise_are_those_of_its_frequencies():
    """All at 1 it is as it was; one alone leaves what lies around it."""
    noise = 2 * torch.rand(500, 16, generator=torch.Generator().manual_seed(0)) - 1
    parts = (noise @ parts_of_noise(16, 3)).unflatten(1, (3, 16))
    torch.testing.assert_close(parts.sum(1), noise, atol=1e-6, rtol=0)
    power = torch.fft.rfft(parts).abs().square().mean(0)
    assert power.argmax(1).tolist() == [0, 4, 8]
    assert power[1, [0, 8]].max() < 1e-9 * power[1, 4]


def levels(given: torch.Tensor) -> np.ndarray:
    """ln (σ(x) / (1 − σ(x))) of noise as loud as waves in each part of a band, by the definition: [N, parts, T / 16], float64."""
    split = (Pqmf(4).analysis(given).unflatten(2, (-1, 4)) @ parts_of_noise(4, 3)).unflatten(3, (3, 4)).double().numpy()
    energy = np.square(parts_of_noise(4, 3).double().numpy().reshape(4, 3, 4)).sum((0, 2)) / 12  # of independent values: each 1/3
    share = (np.sqrt(np.square(split).mean(4) / energy + 1e-10) / 2) ** (1 / 2.3)
    return np.log(share / (1 - share)).transpose(0, 1, 3, 2).reshape(len(given), 12, -1)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_untrained_codec_is_the_closed_form_of_principal_components(version):
    """Noise of the levels that the first six components of a latent's 24 levels give."""
    sizes = STARTED.model_copy(update={"version": version})
    built = RaveNet(sizes).with_norms()
    given = waves(8) * torch.linspace(0.01, 0.5, 4096) * torch.linspace(0.1, 1, 8)[:, None, None]
    built.start_from_components(iter(given[:, None]), "autoencoder.network.pca")
    model = RaveCodec(sizes, 16_000, built.without_norms().eval(), 1, 1.0, 6)
    output = model.decode(model.encode(given), seed=3)
    blocks = levels(given).reshape(8, 12, -1, 2).transpose(0, 2, 1, 3).reshape(-1, 24)
    center = blocks.mean(0)
    axes = np.linalg.svd(blocks - center, full_matrices=False)[2][:6]
    nearest = ((blocks - center) @ axes.T @ axes + center).reshape(8, -1, 12, 2).transpose(0, 2, 1, 3).reshape(8, 12, -1)
    gains = 2 / (1 + np.exp(-nearest)) ** 2.3 + 1e-7
    noise = 2 * torch.rand(1, 256, 4, 4, generator=torch.Generator().manual_seed(3)).double().numpy() - 1
    parts = (noise @ parts_of_noise(4, 3).double().numpy()).reshape(1, 256, 4, 3, 4)
    bands = (gains.transpose(0, 2, 1).reshape(8, 256, 4, 3, 1) * parts).sum(3).transpose(0, 2, 1, 3).reshape(8, 4, 1024)
    expected = built.pqmf.synthesis(torch.from_numpy(np.tanh(bands) if version == "v2" else bands).float()).clamp(-1, 1)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    assert 0.5 < output.std() / given.std() < 1.5


def test_a_codec_that_starts_from_components_learns_in_every_weight():
    built = RaveNet(STARTED).with_norms()
    built.start_from_components(iter(waves(8)[:, None]), "autoencoder.network.pca")
    optimiser = torch.optim.SGD(built.parameters(), 0.1)
    for step in range(3):  # the first steps reach only the last layers, which are 0
        bands = built.pqmf.analysis(waves())
        mean, deviation = built.posterior(bands)
        output = built.decoder(mean + deviation, built.draw_noise(mean, torch.Generator().manual_seed(step)))
        loss = distance(output, bands, [128], 1e-4)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    assert torch.isfinite(loss)
    assert not [name for name, weight in built.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_a_spectral_distance_has_its_known_values():
    """0 of the same; of twice as loud, at each window a fourth of the power and ln 2."""
    real = waves(3, 4096)
    scales = [2048, 512, 128]
    assert distance(real, real, scales, 1e-7) == 0
    assert float(distance(real, 2 * real, scales, 1e-7)) == pytest.approx(3 * (0.25 + math.log(2)), rel=1e-3)
    short = real[..., :1024]
    assert torch.equal(distance(short, 2 * short, scales, 1e-7), distance(short, 2 * short, scales[1:], 1e-7))
    with pytest.raises(ValueError, match="no window of"):
        distance(real[..., :64], real[..., :64], scales, 1e-7)


def test_magnitudes_are_not_normalised():
    """A constant 1 is the sum of the window at 0 Hz; and what is added before the logarithm is as loud as published."""
    assert phases.magnitudes(torch.ones(1, 1, 1024), 256)[0, 0].tolist() == pytest.approx([128.0] * 17)
    faint = torch.full((1, 1, 1024), 1e-7 / 128)
    expected = float(distance(2 * faint, faint, [256], 1e-7) - distance(faint, faint, [256], 1e-7))
    assert expected == pytest.approx(_logarithms(faint, 2 * faint), rel=1e-3)


def test_the_floor_of_magnitudes_decides_what_silence_costs():
    silence, noise = torch.zeros(1, 1, 1024), 1e-5 * waves(1, 1024)
    assert float(distance(noise, silence, [256], 1e-4) - distance(silence, silence, [256], 1e-4)) < 0.5
    assert float(distance(noise, silence, [256], 1e-7) - distance(silence, silence, [256], 1e-7)) > 5


def _logarithms(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Mean |ln(X + 1e-7) − ln(Y + 1e-7)| of an STFT written down anew, float64."""
    window = torch.hann_window(256, dtype=torch.float64)
    one, other = (
        (torch.fft.rfft(F.pad(wave.double(), (128, 128), mode="reflect")[0, 0].unfold(0, 256, 64) * window).abs() + 1e-7).log()
        for wave in (real, fake)
    )
    return float((one - other).abs().mean())


@pytest.mark.parametrize("sizes", [SMALL, FIRST], ids=["v2", "v1"])
def test_silence_gives_numbers(sizes):
    """Distance, divergence, and all gradients; sound that is to become silence too."""
    built = net(sizes).with_norms().train()
    for real in (torch.zeros(2, 1, 4096), torch.cat([torch.zeros(1, 1, 4096), waves(1)])):
        bands = built.pqmf.analysis(real)
        mean, deviation = built.posterior(bands)
        output = built.decoder(mean + deviation, built.draw_noise(mean, None))
        loss = distance(output, bands, [512, 128], 1e-7)
        loss = loss + distance(built.pqmf.synthesis(output), real, [512, 128], 1e-7)
        loss = loss + kl_divergence(mean, deviation)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(weight.grad).all() for weight in built.parameters() if weight.grad is not None)


def test_losses_have_their_known_values():
    mean, deviation = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.ones(1, 2, 2)
    assert kl_divergence(mean, deviation) == 2  # 4 at one of two times
    assert kl_divergence(0 * mean, 2 * deviation) == pytest.approx(2 * (4 - math.log(4) - 1))
    maps = [[torch.full((2,), 9.0), torch.full((4,), 2.0)]]
    other = [[torch.full((2,), 8.0), torch.full((4,), 1.0)]]
    assert features_loss(maps, other, FeaturesParams(weight=10.0, relative=False, skip=0)) == 1
    assert features_loss(maps * 3, other * 3, FeaturesParams(weight=10.0, relative=False, skip=0)) == 1  # the mean over them
    assert float(features_loss(maps, other, FeaturesParams(weight=10.0, relative=True, skip=1))) == pytest.approx(0.5)


def test_the_weight_of_the_divergence_rises_evenly_in_its_logarithm():
    weight = KlParams(first=1e-6, last=0.05, steps=20_000).weight
    assert [weight(0), weight(10_000), weight(20_000), weight(10**9)] == pytest.approx([1e-6, math.sqrt(5e-8), 0.05, 0.05])
    assert KlParams(first=0.1, last=0.1, steps=0).weight(0) == pytest.approx(0.1)


def test_latents_of_rank_k_have_fidelity_1_at_k():
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=rng))[0][:, :3]
    latents = [basis @ (torch.tensor([[3.0], [2.0], [1.0]]) * torch.randn(3, 500, generator=rng)) + 5 for _ in range(4)]
    found = components(latents)
    assert [found.rank(fidelity) for fidelity in (0.5, 0.9, 1.0)] == [1, 2, 3]
    assert float(found.kept[2]) == pytest.approx(1)
    torch.testing.assert_close(found.rotation @ found.rotation.T, torch.eye(8), atol=1e-5, rtol=0)
    turned = found.rotation @ (torch.cat(latents, 1) - found.mean[:, None])
    assert turned.std(1)[:3].tolist() == pytest.approx([3, 2, 1], rel=0.1)
    assert turned[3:].abs().max() < 1e-4
    assert components([torch.ones(4, 10)]).rank(0.95) == 4  # nothing varies: nothing is left out


@pytest.mark.parametrize("sizes", [SMALL, FIRST], ids=["v2", "v1"])
def test_a_codec_turns_latents_back_and_draws_what_is_left_out(sizes):
    built = net(sizes)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))[0]
    built.rotation.copy_(rotation), built.center.copy_(torch.arange(6.0))
    built.spread.copy_(torch.arange(6.0) + 0.5)
    codec = RaveCodec(sizes, 16_000, built, phase=1, fidelity=1.0, rank=6)
    given = waves(2, 1000)
    latents = codec.encode(given)
    assert latents.shape == (2, 6, 32)  # the last one of a part of a frame
    with torch.no_grad():
        mean, _ = built.posterior(built.pqmf.analysis(F.pad(given, (0, 24))))
        plainly = built.pqmf.synthesis(built.decoder(mean, None)).clamp(-1, 1)
    torch.testing.assert_close(codec.decode(latents), plainly, atol=1e-5, rtol=0)
    codec.rank = 2
    few = codec.encode(given)
    torch.testing.assert_close(few, latents[:, :2])
    output = codec.decode(few)
    torch.testing.assert_close(codec.decode(few[1:]), output[1:], atol=1e-5, rtol=0)
    assert (codec.decode(few, seed=1) - output).abs().max() > 1e-4
    posterior = codec.posterior([wave.numpy() for wave in given], 1024)
    assert posterior.shape == (2, 2, 2, 32, 1)
    torch.testing.assert_close(posterior[:, 0, :, :, 0], few)
    with pytest.raises(ValueError, match="waves of 2 channels, but this codec takes one"):
        codec.encode(given.expand(-1, 2, -1))
    with pytest.raises(UserError, match=r"num_samples 1000 must be a multiple of 32, the samples of a latent: 992 or 1024"):
        codec.posterior([given[0].numpy()], 1000)


def test_latents_are_set_moved_and_scaled():
    latents = torch.ones(1, 3, 2)
    edits = parse_edits(["0=-1.5", "1=+0.5", "2=*3", "1=*2"], 3)
    assert edited(latents, edits)[0, :, 0].tolist() == [-1.5, 3.0, 3.0]
    assert latents.eq(1).all()
    with pytest.raises(UserError, match="DIM=VALUE to set a latent"):
        parse_edits(["1=a"], 3)
    with pytest.raises(UserError, match="latents 0 to 2"):
        parse_edits(["3=1"], 3)
    for beyond in ("0=1e99", "0=+1e39", "0=*-1e99"):
        with pytest.raises(UserError, match=r"is beyond 3\.4e\+38"):
            parse_edits([beyond], 3)


def test_the_rate_of_the_discriminators_begins_with_phase_2():
    changes = [".network.channels=2", ".weights.discriminators.channels=1", ".weights.discriminators.optimiser.decay=linear"]
    changes += [".weights.discriminators.optimiser.warmup_steps=9", ".weights.steps=300", ".weights.phase_1_steps=100"]
    codec = chosen(*changes)
    module = RaveModule(codec.weights, RaveNet(codec.network))
    shares = [module.share_of_rate("discriminators", step) for step in (100, 200, 300)]
    assert shares == pytest.approx([0.1, 0.5, 0.0])
    assert [module.share_of_rate("net", step) for step in (0, 100, 300)] == pytest.approx([1, 0.1, 0.1])


def test_discriminators_see_all_of_a_wave():
    discriminators = Discriminators(chosen(".weights.discriminators.channels=4").weights.discriminators)
    given = waves(1, 2048).requires_grad_()
    outputs = discriminators(given)
    assert [len(maps) for maps in outputs] == [5] * 6
    for maps in outputs:
        (grad,) = torch.autograd.grad(maps[-1].square().sum(), given, retain_graph=True)
        assert (grad != 0).float().mean() > 0.9


def test_feature_maps_are_what_convolutions_say():
    """Before the activation, and the scores are one of them; only the last convolution, which makes them, has no norm."""
    sizes = [f".weights.discriminators.{size}" for size in ("channels=2", "layers=2", "scales=1", "periods=[]")]
    (discriminator,) = Discriminators(chosen(*sizes).weights.discriminators).scales
    given = waves(1, 256)
    first, second, scores = discriminator(given)
    assert torch.equal(first, discriminator.layers[0](given[..., None]))
    assert (first < 0).any()
    assert torch.equal(second, discriminator.layers[1](F.leaky_relu(first, 0.2)))
    assert torch.equal(scores, discriminator.last(F.leaky_relu(second, 0.2)))
    assert [layer.length is None for layer in (*discriminator.layers, discriminator.last)] == [False, False, True]


@pytest.mark.parametrize("sizes", [SMALL, FIRST], ids=["v2", "v1"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_receptive_field_is_where_gradients_are(sizes, causal):
    built, given = net(sizes.model_copy(update={"causal": causal})), waves(1, 4096).requires_grad_()
    built.pqmf.synthesis(built.decoder(built.posterior(built.pqmf.analysis(given))[0], None))[0, 0, 2048].backward()
    seen = given.grad[0, 0].nonzero().flatten()
    before, behind = built.receptive_field()
    assert before == math.ceil((2048 - int(seen[0])) / 4)
    assert behind == (int(seen[-1]) - 2048) // 4


def module_of(*changes: str) -> RaveModule:
    sizes = ["bands=4", "channels=4", "ratios=[4,2]", "dilations=[[1,3],[1]]", "latent_channels=6", "noise=null", "pca=false"]
    codec = chosen(*(f".network.{size}" for size in sizes), ".weights.num_samples=4096", ".weights.scales=[128]", *changes)
    torch.manual_seed(0)
    return RaveModule(codec.weights, RaveNet(codec.network))


def test_the_bands_distance_leaves_out_where_padding_is_heard():
    """The waves' does not, as published."""
    bands, output, waveform = waves(4, 1024).transpose(0, 1), waves(4, 1024).flip(0).transpose(0, 1), torch.zeros(1, 1, 4096)
    output.requires_grad_()
    module = module_of(".weights.valid_signal_crop=true")
    module._distance(output, bands, waveform, waveform).backward()
    moved = output.grad[0].abs().sum(0).nonzero().flatten()
    assert (int(moved[0]), 1023 - int(moved[-1])) == module.net.receptive_field() == (77, 75)
    output.grad = None
    module_of(".weights.valid_signal_crop=false")._distance(output, bands, waveform, waveform).backward()
    assert output.grad[0].abs().sum(0).all()


def test_only_the_second_version_leaves_them_out():
    for choice, crops in (("scale=paper", False), ("rave=v2", True)):
        document = params.compose(ROOT / "conf", ["model=rave", choice])
        weights = params.parse(RaveParams, document["rave"]["autoencoder"], choice).weights
        assert (weights.valid_signal_crop, weights.features.skip) == (crops, int(crops))
        assert weights.augmentation == AugmentationParams(phase_mangle=0.8, dequantise_bits=16)
        assert document["clips"][document["families"]["rave"]["clips"]]["sample_rate"] == 44_100


def test_the_laptops_codec_keeps_enough_and_is_regularised_little():
    """1,000 numbers per second; and bins of digital silence cost little: their magnitudes are lifted and the input has noise."""
    document = params.compose(ROOT / "conf", ["model=rave"])
    codec = params.parse(RaveParams, document["rave"]["autoencoder"], "rave.autoencoder")
    rate = document["clips"][document["families"]["rave"]["clips"]]["sample_rate"]
    assert codec.network.latent_channels * rate / codec.network.samples_per_latent >= 1000
    assert (rate, codec.fidelity, codec.weights.kl.last <= 1e-3, codec.weights.log_epsilon >= 1e-5) == (16_000, 1.0, True, True)
    assert codec.weights.augmentation.dequantise_bits is not None


def crops_of(path: Path, augmentation: AugmentationParams | None) -> phases.AugmentedCrops:
    """Of waves of noise."""
    rng = np.random.default_rng(0)
    sounds = {str(length): (0.1 * rng.standard_normal(length)).astype("<f2") for length in (6000, 5000, 4000)}
    described = [Described(name, sound.shape, name) for name, sound in sounds.items()]
    arrays = gather(lambda: described, lambda: sounds.items(), list(sounds), path / "waves", "noise")
    return phases.AugmentedCrops(WaveCrops(arrays, 4096), 44_100, augmentation)


def test_what_is_drawn_for_a_crop_follows_from_seed_and_step():
    drawn = draw_crops(3, 5, 7)
    assert torch.equal(drawn, draw_crops(3, 5, 7))
    assert drawn.shape == (5, 4)
    assert torch.equal(drawn[:, 0].float(), crop_places(3, 5, 7))
    assert len({float(value) for other in (drawn, draw_crops(3, 5, 8), draw_crops(4, 5, 7)) for value in other.flatten()}) == 60


def test_crops_are_mangled_by_their_share_and_dequantised(tmp_path):
    """Each by what was drawn for it, whatever stands beside it; with neither, crops are as they were."""
    items, drawn = np.array([0, 1, 2, 0]), draw_crops(0, 4, 0).numpy()
    drawn[:, 1] = [0.1, 0.79, 0.8, 0.95]
    (plain,) = crops_of(tmp_path, None).batch(items, drawn)
    (same,) = crops_of(tmp_path, AugmentationParams(phase_mangle=0.0, dequantise_bits=None)).batch(items, drawn)
    assert torch.equal(same, plain)
    (mangled,) = crops_of(tmp_path, AugmentationParams(phase_mangle=0.8, dequantise_bits=None)).batch(items, drawn)
    assert [torch.equal(one, other) for one, other in zip(mangled, plain, strict=True)] == [False, False, True, True]
    (noisy,) = crops_of(tmp_path, AugmentationParams(phase_mangle=0.0, dequantise_bits=8)).batch(items, drawn)
    added = (noisy - plain) * 2**8
    assert 0 <= added.min() < 0.01 < 0.99 < added.max() <= 1
    assert added.mean() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(added[0], added[3])
    both = crops_of(tmp_path, AugmentationParams(phase_mangle=0.8, dequantise_bits=16))
    (alone,) = both.batch(items[1:2], drawn[1:2])
    assert torch.equal(alone[0], both.batch(items, drawn)[0][1])


def test_a_phase_filter_passes_all_magnitudes_and_turns_phases_most_at_its_frequency():
    """An impulse through it has a flat spectrum, whose phase falls by two turns: half of that below the poles' frequency."""
    impulse = np.zeros((1, 1 << 16), np.float32)
    impulse[0, 0] = 1
    for hertz in (20.0, 440.0, 2000.0):
        spectrum = np.fft.rfft(phases.phase_mangled(impulse, hertz, 44_100)[0])
        np.testing.assert_allclose(np.abs(spectrum), 1, atol=1e-6)
        phase = -np.unwrap(np.angle(spectrum)) / (2 * np.pi)
        assert phase[-1] == pytest.approx(1, abs=1e-3)
        if hertz == 2000.0:  # far from its mirror image
            slope = np.diff(phase)
            assert slope.argmax() / len(slope) * 22_050 == pytest.approx(hertz, rel=0.01)
