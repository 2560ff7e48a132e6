"""`scale=gpu`: nets of the size that conf/ says, in bfloat16, which take a step of their own loss."""

import pytest

from soundmill import params
from soundmill.models import registry
from soundmill.training.loop import rehearse
from tests.imports import ROOT

UNET1D = ["channels=[4,4,4]", "factors=[1,4,4]", "items=[1,1,1]", "attention=[false,false,true]", "groups=2", "modulation=8"]
UNET1D += ["heads=2", "head_width=4", "text_attention=[false,false,false]"]
PRIOR = ["channels=[4,4]", "factors=[1,2]", "items=[1,1]", "attention=[false,true]", "text_attention=[false,false]"]
PRIOR += ["groups=2", "modulation=8", "heads=2", "head_width=4"]
SHRUNK = {  # of `FAMILY.train.network`
    "audio_dit": ["layers=1", "heads=2", "head_width=8", "key_heads=1", "condition_width=8", "text_width=8"],
    "ddpm_mel": ["widths=[8,8,8]", "embedding_size=16"],
    "diffusion_ae": PRIOR,
    "diffusion_vocoder": UNET1D,
    "diffwave": ["layers=2", "channels=8"],
    "projected_gan": [],
    "rave": PRIOR,
    "tango": ["widths=[8,8,8,8]", "heads=[1,1,1,1]", "groups=4"],
    "upsampler": UNET1D,
    "waveform_unet": UNET1D,
}
SMALL = {  # beside the net
    "diffusion_vocoder": ["batch_size=1", "crop_frames=64"],
    "diffwave": ["batch_size=1"],
    "projected_gan": [
        "batch_size=4",
        "generator.channels=8",
        *(f"discriminators.{name}_widths=[4,4,8,8]" for name in ("mixed", "random")),
        "discriminators.projectors=[random]",
    ],
    "tango": ["real_items=1", "mixed_items=1"],
    "upsampler": ["batch_size=1", "num_samples=16384"],
}


def gpu(family: str, *more: str) -> dict:
    return params.compose(ROOT / "conf", [f"model={family}", "scale=gpu", *more])


def test_every_family_has_the_scale():
    assert set(SHRUNK) == set(registry.FAMILIES)


@pytest.mark.parametrize("family", SHRUNK)
def test_a_step_of_a_shrunk_net_is_taken(family):
    overrides = [f"{family}.train.network.{one}" for one in SHRUNK[family]]
    overrides += [f"{family}.train.{one}" for one in SMALL.get(family, ["batch_size=2"])]
    document = gpu(family, *overrides, f"{family}.train.hardware.threads=1", f"{family}.train.hardware.accelerator=cpu")
    train = params.parse(registry.family(family).train_params, document[family]["train"], family)
    assert train.hardware.precision == "bf16"
    rehearsal = registry.family(family).rehearse(document, num_labels=3)
    before = [weight.detach().clone() for weight in rehearsal.module.net.parameters()]
    rehearse(rehearsal.module, rehearsal.batch, train.hardware, getattr(train, "accumulate", 1))
    after = list(rehearsal.module.net.parameters())
    assert all(weight.isfinite().all() for weight in after)
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("audio_dit", {"transformer": 183_731_072, "autoencoder": 156_112_514}),
        ("ddpm_mel", {"unet": 43_166_496}),
        ("tango", {"unet": 222_995_688, "vae": 55_376_873, "vocoder": 55_264_897}),
        ("waveform_unet", {"unet": 31_574_724}),
    ],
)
def test_nets_have_the_sizes_that_the_scale_says(family, parts):
    counts = registry.parameter_counts(family, gpu(family))
    assert {part: counts[part] for part in parts} == parts
