"""The 1-D U-Net: published sizes, and each of its conditions by what it changes."""

import math

import pytest
import torch

from soundmill import params
from soundmill.audio.pieces import to_samples
from soundmill.models import registry
from soundmill.models.components.unet1d.network import InverseStft, Item, Joined, Patches, Stft, UNet1d
from soundmill.models.components.unet1d.noise import noise_of
from soundmill.models.components.unet1d.params import TransformParams, UNet1dParams
from soundmill.models.family import Request
from tests.imports import ROOT

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


def net(*, sizes: UNet1dParams = SMALL, transform: TransformParams = NO_TRANSFORM, channels: int = 2, **conditions: int) -> UNet1d:
    torch.manual_seed(0)
    return UNet1d(sizes, transform, channels, 2, **conditions).eval()


def test_published_sizes():
    document = params.compose(ROOT / "conf", ["model=waveform_unet", "scale=paper"])
    assert registry.parameter_counts("waveform_unet", document) == {"unet": 31_574_724}
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


@pytest.mark.parametrize("window", [16, 32])
def test_fourier_coefficients_go_there_and_back_and_keep_the_energy_of_noise(window):
    coefficients = Stft(window, 4)(XT)
    assert coefficients.shape == (3, 2 * window, 16)
    torch.testing.assert_close(InverseStft(window, 4)(coefficients), XT)
    noise = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0))
    assert Stft(window, 4)(noise).square().mean() == pytest.approx(3 / 8, rel=0.05)  # the mean of the squared window
    tone = Stft(window, 4)(torch.sin(torch.arange(400) * 2 * math.pi * 3 / window)[None, None])[0, :, 50]
    assert torch.hypot(tone[1 : window // 2], tone[window // 2 + 1 :]).argmax() == 3 - 1  # cosines and sines without the ends
    with pytest.raises(ValueError, match="stft needs a multiple of 4"):
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
