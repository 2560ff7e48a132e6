"""Families by name, their interface, and `scale=gpu`: nets of the size that conf/ says, in bfloat16, which take a step."""

import resource

import pytest

from soundmill import params
from soundmill.models import registry
from soundmill.models.params import FamilyGenerateParams, FamilyTrainParams
from soundmill.training.loop import rehearse
from tests.imports import MODELS, ROOT, components_of, families


def test_offers_the_families_with_their_interface():
    assert set(registry.FAMILIES) == {path.name for path in families()}
    for name in registry.FAMILIES:
        family = registry.family(name)
        assert issubclass(family.train_params, FamilyTrainParams)
        assert issubclass(family.generate_params, FamilyGenerateParams)
        assert all(line and "\n" not in line for line in (family.title, family.paper))


def test_conf_names_the_components_that_a_family_imports(root):
    """They are its stages' dependencies: what it does not name may change without retraining it."""
    for name in registry.FAMILIES:
        document = params.compose(root / "conf", [f"model={name}"])
        named = document["families"][name]["components"]
        assert set(named) == {"source", "net", "codec", "vocoder"}
        by_name = registry.code_by_name(name, {}, document)
        of_all = {"griffin_lim", "log_mels", "text_states", "waves"}  # dependencies whatever conf names
        assert {*named.values(), *of_all} == components_of(MODELS / name, by_name) | of_all


def test_counts_follow_the_parameters_and_allocate_nothing(root):
    changes = ["model=ddpm_mel", "scale=paper", "ddpm_mel.train.network.widths=[4096,8192,8192,8192]"]
    document = params.compose(root / "conf", changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = registry.parameter_counts("ddpm_mel", document)["unet"]
    assert count > 20_000_000_000  # 80 GB of weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB: torch may be imported here


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


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_a_step_of_a_shrunk_net_is_taken(family):
    overrides = [f"{family}.train.network.{one}" for one in SHRUNK[family]]
    overrides += [f"{family}.train.{one}" for one in SMALL.get(family, ["batch_size=2"])]
    overrides += [f"{family}.train.hardware.threads=1", f"{family}.train.hardware.accelerator=cpu"]
    document = params.compose(ROOT / "conf", [f"model={family}", "scale=gpu", *overrides])
    train = params.parse(registry.family(family).train_params, document[family]["train"], family)
    assert train.hardware.precision == "bf16"
    rehearsal = registry.family(family).rehearse(document, num_labels=3)
    before = [weight.detach().clone() for weight in rehearsal.module.net.parameters()]
    rehearse(rehearsal.module, rehearsal.batch, train.hardware, getattr(train, "accumulate", 1))
    after = list(rehearsal.module.net.parameters())
    assert all(weight.isfinite().all() for weight in after)
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))


THINNER = [f"ddpm_mel.train.network.{one}" for one in ("widths=[16,32,64,64]", "attention_levels=[1,2,3]", "embedding_size=64")]


@pytest.mark.parametrize(
    ("family", "choices", "parts"),
    [
        ("audio_dit", "scale=gpu", {"transformer": 183_731_072, "autoencoder": 156_112_514}),
        ("audio_dit", "scale=paper", {"transformer": 1_056_939_136 + 396_544, "autoencoder": 156_112_514}),  # and of the seconds
        ("audio_dit", "scale=paper audio_dit=open_small", {"transformer": 340_928_640 + 198_272}),
        ("ddpm_mel", "scale=gpu", {"unet": 43_166_496}),
        ("ddpm_mel", "scale=paper", {"unet": 23_331_457}),
        ("ddpm_mel", f"scale=paper {' '.join(THINNER)}", {"unet": 1_461_249}),
        ("diffwave", "scale=paper", {"net": 2_619_971}),
        ("diffwave", "diffwave=large", {"net": 6_885_315}),
        ("diffwave", "diffwave=sc09 diffwave.train.condition=none", {"net": 24_034_305}),
        ("diffwave", "diffwave=sc09", {"net": 26_413_313 - 10 * 128}),  # as published, without its ten labels' embeddings
        ("projected_gan", "vocoder=griffin_lim", {"generator": 136_974}),
        ("projected_gan", "scale=paper vocoder=griffin_lim", {"generator": 21_754_254}),
        ("rave", "scale=paper", {"autoencoder": 17_612_369}),
        ("rave", "rave=v2", {"autoencoder": 31_536_000}),
        ("tango", "", {"unet": 1_689_960, "vae": 177_137}),
        ("tango", "scale=gpu", {"unet": 222_995_688, "vae": 55_376_873, "vocoder": 55_264_897}),
        ("tango", "scale=paper", {"unet": 865_933_768, "vae": 55_376_873, "vocoder": 55_264_897}),
        ("waveform_unet", "scale=gpu", {"unet": 31_574_724}),
        ("waveform_unet", "scale=paper", {"unet": 31_574_724}),
    ],
)
def test_nets_have_the_sizes_that_papers_and_scales_say(family, choices, parts):
    counts = registry.parameter_counts(family, params.compose(ROOT / "conf", [f"model={family}", *choices.split()]))
    assert counts.items() >= parts.items()
