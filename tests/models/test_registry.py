"""Families by name, and checkpoints that say which family they are of."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
import torch

from soundmill import params
from soundmill.audio.mel import SpectrogramParams
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.components import registry as components
from soundmill.models.components.diffwave.vocoder import DiffWaveConfig
from soundmill.models.components.hifigan.vocoder import build_vocoder
from soundmill.models.components.istft.vocoder import IstftConfig
from soundmill.models.components.mel_autoencoder.autoencoder import AutoencoderConfig, build_autoencoder
from soundmill.models.components.oobleck.codec import OobleckConfig
from soundmill.models.components.rave.codec import RaveConfig
from soundmill.models.components.unet1d.codec.codec import DiffusionCodecConfig
from soundmill.models.family import family_of
from soundmill.models.params import FamilyGenerateParams, FamilyTrainParams
from soundmill.training import checkpoint
from tests.imports import MODELS, components_of, families
from tests.models.components.test_istft import CONFIG as VOCOS


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
        assert set(named) == {"source", "codec", "vocoder", "condition"}
        by_name = registry.code(name, document)
        of_all = {"griffin_lim", "waves"}  # dependencies whatever conf names
        assert {*named.values(), *of_all} == components_of(MODELS / name, by_name) | of_all


def test_counts_follow_the_parameters_and_allocate_nothing(root):
    changes = ["scale=paper", "ddpm_mel.train.network.widths=[4096,8192,8192,8192]"]
    document = params.compose(root / "conf", changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = registry.parameter_counts("ddpm_mel", document)["unet"]
    assert count > 20_000_000_000  # 80 GB of weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB: torch may be imported here


def test_parameters_are_checked_without_torch(root, trained):
    code = (
        "import sys; from pathlib import Path; from soundmill import params; from soundmill.models import registry; "
        "document = params.compose(Path(sys.argv[1]), sys.argv[3:]); "
        "registry.check(document, Path(sys.argv[2])); assert 'torch' not in sys.modules"
    )
    choices = [*STARTED["istft"][1], "tango.autoencoder.weights.start_from=mel_autoencoder"]
    subprocess.run([sys.executable, "-c", code, str(root / "conf"), str(trained), *choices], check=True)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_early_stopping_is_set_for_any_family(root, scale):
    for name in registry.FAMILIES:
        choices = [f"model={name}", f"scale={scale}"]
        assert params.compose(root / "conf", choices)[name]["train"]["patience"] is None
        registry.check(
            params.compose(root / "conf", [*choices, f"{name}.train.patience=3", f"{name}.train.validate_every_steps=5"])
        )


def test_unknown_family_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"'ddpm_mell'; did you mean 'ddpm_mel'"):
        registry.family("ddpm_mell")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "dvc repro"),
        ("{", "not readable as JSON"),
        ('{"family": ' + "[" * 100_000, r"config\.json: not readable as JSON: nested too deeply"),
        ("[]", "not a JSON object"),
        ("{}", "names no `family`"),
        (json.dumps({"family": "tango"}), "of family 'tango', not 'ddpm_mel'"),
    ],
)
def test_a_directory_that_is_no_such_checkpoint(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        family_of(tmp_path, "ddpm_mel")


@pytest.fixture
def published(root, tmp_path):
    """Directories with AudioLDM's and Vocos' configurations, and empty files in place of their weights."""
    loaded = params.compose(root / "conf", ["model=tango", "latents=audioldm", "vocoder=audioldm"])
    vocoder = components.params_of_vocoder(loaded["vocoder"]).model_validate(loaded["vocoder"])
    with torch.device("meta"):
        build_vocoder(vocoder.network, 64, 16_000).config.save_pretrained(tmp_path / "audioldm/vocoder")
        build_autoencoder(components.codec_params(loaded, "tango").network).save_config(tmp_path / "audioldm/vae")
    for name in ("vocoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        (tmp_path / "audioldm" / name).touch()
    (tmp_path / "vocos").mkdir()
    (tmp_path / "vocos/config.yaml").write_text(VOCOS)
    (tmp_path / "vocos/model.safetensors").touch()
    return tmp_path


AUDIOLDM = ["model=tango", "latents=audioldm", "tango.autoencoder.weights.name=./audioldm"]
VOICED = [*AUDIOLDM, "vocoder=audioldm", "vocoder.weights.name=./audioldm"]


def test_published_weights_that_fit_are_accepted_by_their_configuration(root, published):
    registry.check(params.compose(root / "conf", VOICED), published)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            [*VOICED, "spectrogram.tango.n_mels=80"],
            r"spectrogram\.tango: .*other spectrograms than these \(n_mels 64, not 80\)",
        ),
        ([*VOICED, "vocoder.network.channels=512"], r"channels is 1024, vocoder\.network has 512; make them agree"),
        (
            [*AUDIOLDM, "tango.autoencoder.network.widths=[64,128,256]"],
            r"tango\.autoencoder: .*block_out_channels is \[128, 256, 512\], autoencoder\.network has \[64, 128, 256\]",
        ),
        ([*AUDIOLDM, "spectrogram.tango.n_mels=70"], r"tango\.autoencoder: .*n_mels 70 must be a multiple of 4"),
        (
            ["vocoder=vocos_mel_24khz", "vocoder.weights.name=./vocos"],
            r"spectrogram\.ddpm_mel: .*for other spectrograms than these .*n_mels 100, not 64.*`vocoder=griffin_lim`",
        ),
        ([*AUDIOLDM[:2], "tango.autoencoder.weights.name=./nowhere"], r"tango\.autoencoder: \./nowhere: no such directory"),
    ],
)
def test_published_weights_that_do_not_fit_are_refused_before_a_stage_runs(root, published, choices, message):
    with pytest.raises(UserError, match=message):
        registry.check(params.compose(root / "conf", choices), published)


STARTED = {  # a component → its config, and choices that start from it
    "istft": (IstftConfig, ["model=tango", "vocoder=istft_laptop", "vocoder.weights.start_from=istft"]),
    "diffwave": (DiffWaveConfig, ["model=tango", "vocoder=diffwave_laptop", "vocoder.weights.start_from=diffwave"]),
    "mel_autoencoder": (AutoencoderConfig, ["model=tango", "tango.autoencoder.weights.start_from=mel_autoencoder"]),
    "rave": (RaveConfig, ["model=tango", "latents=rave", "tango.autoencoder.weights.start_from=rave"]),
    "oobleck": (OobleckConfig, [
        "model=audio_dit", "codec@audio_dit.autoencoder=oobleck_laptop", "audio_dit.autoencoder.weights.start_from=oobleck",
    ]),
    "unet1d": (DiffusionCodecConfig, ["model=diffusion_ae", "diffusion_ae.autoencoder.weights.start_from=unet1d"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A directory with the configs of STARTED, as trained with the choices; weights are not needed."""
    home = tmp_path_factory.mktemp("trained")
    (home / "empty").mkdir()
    for name, (config, choices) in STARTED.items():
        document, family = params.compose(root / "conf", choices), choices[0].removeprefix("model=")
        component = document["vocoder"] if "vocoder" in choices[-1] else document[family]["autoencoder"]
        values = {
            "mel_spec": SpectrogramParams(**document["spectrogram"][family]).spec,
            "params": component,
            **component,
            **dict.fromkeys(("mean", "deviation", "scaling_factor"), 1.0),
            **{"residual": [], "sample_rate": 16_000, "phase": 1, "rank": 8, "channels": 1, "digest": "", "source": {}},
        }
        saved = config(**{key: values[key] for key in config.model_fields if key in values})
        (home / name).mkdir()
        checkpoint.write_config(saved.model_dump(mode="json"), home / name)
    return home


@pytest.mark.parametrize("name", STARTED)
def test_weights_to_start_from_that_fit_are_accepted_by_their_config(root, trained, name):
    registry.check(params.compose(root / "conf", STARTED[name][1]), trained)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("istft", "vocoder.weights.start_from=nowhere", r"nowhere: no such directory.* copy it elsewhere first"),
        ("istft", "vocoder.weights.start_from=empty", r"empty: no vocoder or autoencoder here \(config\.json is missing\)"),
        (
            "istft",
            "vocoder.weights.start_from=diffwave",
            "diffwave: kind is diffwave there and istft here; make them agree, or train",
        ),
        ("istft", "vocoder.network.width=64", r"istft: network\.width is 256 there and 64 here; make them agree, or train"),
        ("istft", "spectrogram.tango.n_mels=80", r"istft: mel_spec\.n_mels is 64 there and 80 here; make them agree, or train"),
        ("diffwave", "vocoder.noise.beta_end=0.02", r"diffwave: noise\.beta_end is 0\.05 there and 0\.02 here; make them agree"),
        ("mel_autoencoder", "tango.autoencoder.weights.start_from=nowhere", "nowhere: no such directory"),
        (
            "mel_autoencoder",
            "tango.autoencoder.network.latent_channels=3",
            r"network\.latent_channels is \d there and 3 here; make",
        ),
        ("mel_autoencoder", "spectrogram.tango.n_mels=80", r"mel_spec\.n_mels is 64 there and 80 here; make them agree"),
        ("rave", "tango.autoencoder.network.channels=8", r"rave: network\.channels is 16 there and 8 here; make them agree"),
        ("rave", "clips.default.sample_rate=22050", "rave: sample_rate is 16000 there and 22050 here; make them agree"),
        (
            "rave",
            "tango.autoencoder.fidelity=0.9 tango.autoencoder.weights.steps=0",
            r"rave: fidelity is 1\.0 there and 0\.9 here; make them agree",
        ),
        ("oobleck", "audio_dit.autoencoder.network.channels=8", r"oobleck: network\.channels is 16 there and 8 here; make them"),
        (
            "unet1d",
            "diffusion_ae.autoencoder.encoder.channels=16",
            r"unet1d: encoder\.channels is 64 there and 16 here; make them",
        ),
        ("unet1d", "spectrogram.diffusion_ae.n_mels=64", r"unet1d: mel_spec\.n_mels is 80 there and 64 here; make them agree"),
    ],
)
def test_weights_to_start_from_that_do_not_fit_are_refused_before_a_stage_runs(root, trained, name, change, message):
    key = STARTED[name][1][-1].partition("=")[0].replace(".", r"\.")
    with pytest.raises(UserError, match=rf"^params\.yaml: {key}: .*{message}"):
        registry.check(params.compose(root / "conf", [*STARTED[name][1], *change.split()]), trained)


def test_an_earlier_component_that_lacks_a_key_with_a_default_is_accepted(root, trained, tmp_path):
    config = json.loads((trained / "diffwave/config.json").read_text())
    del config["noise"]["prior"]
    (tmp_path / "diffwave").mkdir()
    checkpoint.write_config(config, tmp_path / "diffwave")
    registry.check(params.compose(root / "conf", [*STARTED["diffwave"][1], "vocoder.noise.prior=standard"]), tmp_path)
