"""What does not fit is refused before a stage runs, with the key and the remedy's first words: a row for each choice."""

import json
import re
import subprocess
import sys
from pathlib import Path
from string import Template

import pytest
import torch
from safetensors.torch import save_file

from flows import dvc
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
from soundmill.params import read_yaml
from soundmill.training import checkpoint
from tests.imports import ROOT
from tests.models.components.test_istft import CONFIG as VOCOS

TABLE = read_yaml(ROOT / "tests/refusals.yaml")
NAMED: dict[str, str] = {}
for name, named in TABLE["choices"].items():
    NAMED[name] = Template(named).substitute(NAMED)
STARTED = {  # a component → its config; `FROM_…` are choices that start from it
    "istft": IstftConfig,
    "diffwave": DiffWaveConfig,
    "mel_autoencoder": AutoencoderConfig,
    "rave": RaveConfig,
    "oobleck": OobleckConfig,
    "unet1d": DiffusionCodecConfig,
}
FROM = {name: NAMED[f"FROM_{name}"] for name in STARTED}


def whole(choices: str) -> str:
    return Template(choices).substitute(NAMED)


def compose(choices: str) -> dict:
    return registry.compose(ROOT / "conf", whole(choices).split())


def check(choices: str, home: Path) -> None:
    """What a training of adapters starts from is not looked for."""
    document = compose(choices)
    dvc.check_sections(ROOT, document)
    registry.check(document, None if "=../base" in whole(choices) else home)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories with the configurations of AudioLDM, of Vocos and of STARTED, and weights without a tensor."""
    home = tmp_path_factory.mktemp("published")
    loaded = compose("model=tango latents=audioldm vocoder=audioldm")
    vocoder = components.kind_of("vocoder", loaded["vocoder"]).params.model_validate(loaded["vocoder"])
    with torch.device("meta"):
        build_vocoder(vocoder.network, 64, 16_000).config.save_pretrained(home / "audioldm/vocoder")
        build_autoencoder(components.codec_params(loaded, "tango").network).save_config(home / "audioldm/vae")
    for name in ("vocos", "empty", *STARTED):
        (home / name).mkdir()
    (home / "vocos/config.yaml").write_text(VOCOS)
    for name in ("audioldm/vocoder/model", "audioldm/vae/diffusion_pytorch_model", "vocos/model"):
        save_file({}, home / f"{name}.safetensors")
    for name, config in STARTED.items():
        document, family = compose(FROM[name]), FROM[name].split()[0].removeprefix("model=")
        component = document["vocoder"] if "vocoder.weights" in FROM[name] else document[family]["autoencoder"]
        values = {"mel_spec": SpectrogramParams(**document["spectrogram"][family]).spec, "params": component, **component}
        values |= dict.fromkeys(("mean", "deviation", "scaling_factor"), 1.0)
        values |= {"residual": [], "sample_rate": 16_000, "phase": 1, "rank": 8, "channels": 1, "digest": "", "source": {}}
        saved = config(**{key: values[key] for key in config.model_fields if key in values})
        checkpoint.write_config(saved.model_dump(mode="json"), home / name)
    return home


@pytest.mark.parametrize(
    "choices",
    [
        *("$VOICED", *FROM.values(), "$ADAPTED", "model=tango text.tango.encoder=google/flan-t5-large"),
        *("$ISTFT vocoder.weights.crop_frames=9", "$HIFIGAN vocoder.weights.crop_frames=4"),
        "model=diffwave diffwave.train.mel.hop_length=640 diffwave.train.noise.prior=standard",
        "model=diffwave diffwave=sc09_laptop diffwave.train.mel.n_mels=400",  # mels that it does not use
    ],
)
def test_what_fits_is_accepted(published: Path, choices: str) -> None:
    check(choices, published)


@pytest.mark.parametrize(("choices", "said"), [(choices, said) for choices, *said in TABLE["refused"]])
def test_what_does_not_fit_is_refused(published: Path, choices: str, said: list[str]) -> None:
    with pytest.raises(UserError, match=".*".join(map(re.escape, said))) as caught:
        check(choices, published)
    assert "use +" not in str(caught.value)  # Hydra's advice is to add the key


def test_a_base_is_looked_at_before_a_stage_runs(tmp_path: Path) -> None:
    document, base = compose("$LORA tango.train.start_from=base"), tmp_path / "base"
    trained = {**document["tango"]["train"], "lora": None, "start_from": None}
    other = {**trained, "network": {**trained["network"], "text_width": 17}, "seed": 5}

    def refused(*said: str, **config: object) -> None:
        if config:
            (base / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=".*".join(map(re.escape, ["params.yaml: tango.train.", *said]))):
            registry.check(document, tmp_path)

    refused("start_from: ", "base: no such directory")
    base.mkdir()
    refused("start_from: ", "no config.json")
    refused("start_from: ", "'rave', not 'tango'", family="rave")
    refused("start_from: ", "unet.safetensors; copy the whole", family="tango", params=trained)
    (base / "unet.safetensors").touch()
    registry.check(document, tmp_path)
    refused("start_from: ", "network.text_width is 17 there and 64 here; make them agree", family="tango", params=other)
    refused("base/config.json: params", family="tango")
    (base / "adapter_config.json").touch()
    refused("start_from: ", "merge them first: `soundmill export ", family="tango", params=trained)


@pytest.mark.parametrize(
    ("family", "choices", "key"),
    [
        ("tango", "tango.autoencoder.weights.steps=0 tango.autoencoder.weights.start_from=mine", "start_from"),
        ("audio_dit", "scale=paper audio_dit.autoencoder.weights.name=./mine", "name"),
    ],
)
def test_adapters_of_a_base_with_another_codec_are_refused(tmp_path: Path, family: str, choices: str, key: str) -> None:
    document = compose(f"model={family} {choices} +lora@{family}.train.lora=attention {family}.train.start_from=base")
    trained, weights = {**document[family]["train"], "lora": None, "start_from": None}, document[family]["autoencoder"]["weights"]
    network, kind = document[family]["autoencoder"]["network"], document["latent_families"][family]["codec"]
    for name, digest in (("base/autoencoder", "a" * 64), ("mine", "b" * 64)):
        (tmp_path / name).mkdir(parents=True)
        codec = {"kind": kind, "digest": digest, "scaling_factor": 1.0, "network": network, "source": {}}
        (tmp_path / name / "config.json").write_text(json.dumps(codec))
        (tmp_path / name / "model.safetensors").touch()
    (tmp_path / "base/config.json").write_text(json.dumps({"family": family, "params": trained}))
    (tmp_path / "base" / registry.family(family).weights).touch()
    where = rf"mine \(digest b{{12}}…\) .*base \(digest a{{12}}…\).*set {family}\.autoencoder\.weights\.{key} to .*base/autoencoder"
    with pytest.raises(UserError, match=rf"params\.yaml: {family}\.train\.lora: .*{where}"):
        registry.check(document, tmp_path)
    weights[key] = "./base/autoencoder"
    registry.check(document, tmp_path)
    weights[key] = "./mine"
    document[family]["train"]["lora"] = None  # the whole network adapts to it
    registry.check(document, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "`dvc repro`"),
        ("{}", "config.json: not a Soundmill checkpoint: it names no `family`"),
        ('{"family": "tango"}', "of family 'tango', not 'ddpm_mel'; use `--family tango`"),
    ],
    ids=range(3),
)
def test_a_directory_that_is_no_such_checkpoint(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(said)):
        family_of(tmp_path, "ddpm_mel")


def test_parameters_are_checked_without_torch(published: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from soundmill import params; from soundmill.models import registry; "
        "document = params.compose(Path(sys.argv[1]), sys.argv[3:]); "
        "registry.check(document, Path(sys.argv[2])); assert 'torch' not in sys.modules"
    )
    choices = [*FROM["istft"].split(), "tango.autoencoder.weights.start_from=mel_autoencoder"]
    subprocess.run([sys.executable, "-c", code, str(ROOT / "conf"), str(published), *choices], check=True)


def test_an_earlier_component_that_lacks_a_key_with_a_default_is_accepted(published: Path, tmp_path: Path) -> None:
    config = json.loads((published / "diffwave/config.json").read_text())
    del config["noise"]["prior"]
    (tmp_path / "diffwave").mkdir()
    checkpoint.write_config(config, tmp_path / "diffwave")
    registry.check(compose("$FROM_diffwave vocoder.noise.prior=standard"), tmp_path)
