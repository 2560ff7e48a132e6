"""What does not fit is refused before a stage runs, with the key and the remedy's first words: a row for each choice."""

import json
import re
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file

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
from soundmill.training import checkpoint
from tests.imports import ROOT
from tests.models.components.test_istft import CONFIG as VOCOS

AUDIOLDM = "model=tango latents=audioldm tango.autoencoder.weights.name=./audioldm"
VOICED = f"{AUDIOLDM} vocoder=audioldm vocoder.weights.name=./audioldm"
ISTFT = "model=tango vocoder=istft_laptop"
HIFIGAN = "model=tango vocoder=hifigan_laptop"
DIFFWAVE = "model=tango vocoder=diffwave_laptop"
VOCOS_24KHZ = "vocoder=vocos_mel_24khz vocoder.weights.name=./vocos"
ENCODEC = "model=audio_dit codec@audio_dit.autoencoder=encodec audio_dit.autoencoder.weights.name=./encodec"
OOBLECK = "model=audio_dit codec@audio_dit.autoencoder=oobleck_laptop"
WAVEFORM = "model=waveform_unet"
LORA = "model=tango +lora@tango.train.lora=attention"
ADAPTED = f"{LORA} tango.train.start_from=../base"
STARTED = {  # a component → its config, and choices that start from it
    "istft": (IstftConfig, f"{ISTFT} vocoder.weights.start_from=istft"),
    "diffwave": (DiffWaveConfig, "model=tango vocoder=diffwave_laptop vocoder.weights.start_from=diffwave"),
    "mel_autoencoder": (AutoencoderConfig, "model=tango tango.autoencoder.weights.start_from=mel_autoencoder"),
    "rave": (RaveConfig, "model=tango latents=rave tango.autoencoder.weights.start_from=rave"),
    "oobleck": (OobleckConfig, f"{OOBLECK} audio_dit.autoencoder.weights.start_from=oobleck"),
    "unet1d": (DiffusionCodecConfig, "model=diffusion_ae diffusion_ae.autoencoder.weights.start_from=unet1d"),
}
FROM = {name: choices for name, (_, choices) in STARTED.items()}


def compose(choices: str) -> dict:
    return registry.compose(ROOT / "conf", choices.split())


def check(choices: str, home: Path) -> None:
    """What a training of adapters starts from is not looked for."""
    registry.check(compose(choices), None if "=../base" in choices else home)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories with the configurations of AudioLDM, of Vocos and of STARTED, and empty files in place of weights."""
    home = tmp_path_factory.mktemp("published")
    loaded = compose("model=tango latents=audioldm vocoder=audioldm")
    vocoder = components.params_of_vocoder(loaded["vocoder"]).model_validate(loaded["vocoder"])
    with torch.device("meta"):
        build_vocoder(vocoder.network, 64, 16_000).config.save_pretrained(home / "audioldm/vocoder")
        build_autoencoder(components.codec_params(loaded, "tango").network).save_config(home / "audioldm/vae")
    for name in ("vocos", "empty", *STARTED):
        (home / name).mkdir()
    (home / "vocos/config.yaml").write_text(VOCOS)
    for name in ("audioldm/vocoder/model", "audioldm/vae/diffusion_pytorch_model", "vocos/model"):
        save_file({}, home / f"{name}.safetensors")
    for name, (config, choices) in STARTED.items():
        document, family = compose(choices), choices.split()[0].removeprefix("model=")
        component = document["vocoder"] if "vocoder.weights" in choices else document[family]["autoencoder"]
        values = {"mel_spec": SpectrogramParams(**document["spectrogram"][family]).spec, "params": component, **component}
        values |= dict.fromkeys(("mean", "deviation", "scaling_factor"), 1.0)
        values |= {"residual": [], "sample_rate": 16_000, "phase": 1, "rank": 8, "channels": 1, "digest": "", "source": {}}
        saved = config(**{key: values[key] for key in config.model_fields if key in values})
        checkpoint.write_config(saved.model_dump(mode="json"), home / name)
    return home


@pytest.mark.parametrize(
    "choices",
    [
        *(VOICED, *FROM.values(), ADAPTED, "model=tango text.tango.encoder=google/flan-t5-large"),
        *(f"{ISTFT} vocoder.weights.crop_frames=9", f"{HIFIGAN} vocoder.weights.crop_frames=4"),
        "model=diffwave diffwave.train.mel.hop_length=640 diffwave.train.noise.prior=standard",
        "model=diffwave diffwave=sc09_laptop diffwave.train.mel.n_mels=400",  # mels that it does not use
    ],
)
def test_what_fits_is_accepted(published: Path, choices: str) -> None:
    check(choices, published)


REFUSED = [  # choices, the key, what is there, and the remedy's first words
    ("modl=tango", "'modl'", "did you mean 'model'?"),
    ("model=tang", "'tang'", "did you mean 'tango'"),
    ("model=tango tango.train.stps=3", "'tango.train.stps'", "did you mean 'steps'?"),
    ("model=ddpm_mel ddpm_mel.trian.steps=3", "'ddpm_mel.trian'", "did you mean 'train'?"),
    ("segmnt.x=1", "'segmnt'"),
    ("model=tango tango.train.diffusion.schedule=quadratic", "tango.train.diffusion.schedule: ", "'quadratic'"),
    ("ddpm_mel.train.steps=abc", "ddpm_mel.train.steps: ", "integer"),
    ("model=tango tango.generate.sampling.sampler=euler", "tango.generate.sampling.sampler: ", "'euler'"),
    ("experiment=esc10_ddpm", "no experiment 'esc10_ddpm' in", "did you mean 'esc10_ddpm_mel'"),
    ("model=tango text=minilem", "no text 'minilem' in", "did you mean 'minilm'"),
    ("model=ddpm_mel vocoder=audioldm", "vocoder=audioldm: no family of model=ddpm_mel", "leave it out"),
    ("model=diffwave vocoder=hifigan_laptop", "vocoder=hifigan_laptop: no family of model=diffwave", "leave it out"),
    (f"{ISTFT} spectrogram.tango.n_mels=400", "spectrogram.tango: ", "5 of 400 bands", "raise n_fft (now 1024)"),
    (f"{ISTFT} spectrogram.tango.f_max=9000.0", "spectrogram.tango: ", "f_max 9000.0 <= sample_rate / 2 = 8000.0"),
    (f"{ISTFT} tango.autoencoder.weights.batch_size=0", "tango.autoencoder.weights.", "batch_size: ", "greater than or equal to 1"),
    (f"{ISTFT} vocoder.weights.batch_size=0", "vocoder.weights.", "batch_size: ", "greater than or equal to 1"),
    (f"{ISTFT} vocoder.network.head=wave", "vocoder: network.head 'wave'", "see conf/vocoder/"),
    (f"{ISTFT} spectrogram.tango.hop_length=513", "spectrogram.tango: ", "hop_length 513", "at most half of win_length 640"),
    (f"{ISTFT} vocoder.weights.crop_frames=8", "spectrogram.tango: vocoder.weights.crop_frames 8 must be more than 8"),
    (f"{ISTFT} spectrogram.tango.n_mels=70", "tango.autoencoder: ", "n_mels 70 must be a multiple of 4"),
    ("model=tango vocoder=griffin_lim spectrogram.tango.hop_length=513", "spectrogram.tango: ", "half of win_length 640"),
    ("model=tango vocoder=hifigan_laptop spectrogram.tango.hop_length=200", "vocoder.network.rates", "160", "200; make them agree"),
    ("model=tango vocoder=melgan_laptop spectrogram.tango.hop_length=200", "vocoder.network.rates", "160", "200; make them agree"),
    ("model=tango vocoder=hifigan_laptop vocoder.weights.crop_frames=3", "vocoder.weights.crop_frames 3", "half of n_fft 1024"),
    ("model=tango vocoder=audioldm", "spectrogram.tango: ", "(1024), but win_length", "is 640; set win_length to 1024"),
    ("model=diffwave diffwave=sc09_laptop diffwave.train.condition=caption", "diffwave.train: ", "text_width", "set both"),
    ("model=ddpm_mel ddpm_mel.train.text_width=64", "ddpm_mel.train is by caption", "take `ddpm_mel=captions`"),
    ("model=rave rave.train.condition=caption rave.train.text_width=8", "rave.train is by caption", "take `rave=captions`"),
    ("model=rave rave.train.path=circle", "rave.train.path: ", "'circle'"),
    ("model=ddpm_mel net@ddpm_mel.train.network=dit ddpm_mel.train.network.key_heads=3", "key_heads 3 must divide the 4 heads"),
    ("model=ddpm_mel +ddpm_mel.train.network.key_heads=3", "ddpm_mel.train.network.residual.key_heads: ", "unknown key"),
    ("model=diffwave diffwave.train.mel.n_mels=400", "diffwave.train.mel", "21 of 400 bands", "raise n_fft"),
    ("model=diffwave diffwave.train.mel.hop_length=600", "diffwave.train.mel", "hop_length 600", "half of win_length 1024"),
    ("model=diffusion_vocoder diffusion_vocoder.train.mel.n_mels=400", "diffusion_vocoder.train.mel", "22 of 400", "raise n_fft"),
    ("model=diffusion_ae spectrogram.diffusion_ae.hop_length=100", "diffusion_ae.autoencoder: ", "400", "512: make them equal"),
    ("model=projected_gan spectrogram.projected_gan.n_mels=80", "projected_gan.train.generator", "64", "80; make them agree"),
    (f"{LORA} tango.train.start_from=null", "tango.train: lora needs a base", "set start_from"),
    (f"{ADAPTED} tango.train.lora.rank=4096", "tango.train.lora.rank: 4096", "set it to at most 64"),
    (f"{ADAPTED} tango.train.lora.targets=[query]", "lora.targets: ", "'query'", "to_out.0, to_q"),
    ("model=ddpm_mel +lora@ddpm_mel.train.lora=attention ddpm_mel.train.start_from=../base", "train.lora: ", "set it to"),
    ("model=tango text.tango.encoder=../models/t5", "text.tango.encoder: ../models/t5: no such directory", "put its files"),
    ("model=tango text.tango.encoder=./empty", "text.tango.encoder: ./empty: ", "no config.json", "put its files"),
    (f"{VOICED} spectrogram.tango.n_mels=80", "spectrogram.tango: ", "(n_mels 64, not 80); make them agree", "vocoder=griffin_lim"),
    (f"{VOICED} vocoder.network.channels=512", "channels is 1024, vocoder.network has 512", "make them agree"),
    (f"{AUDIOLDM} tango.autoencoder.network.widths=[64,128,256]", "tango.autoencoder: ", "[128, 256, 512]", "make them agree"),
    (f"{AUDIOLDM} spectrogram.tango.n_mels=70", "tango.autoencoder: ", "n_mels 70 must be a multiple of 4"),
    ("vocoder=vocos_mel_24khz vocoder.weights.name=./vocos", "spectrogram.ddpm_mel: ", "n_mels 100, not 64", "make them agree"),
    ("model=tango latents=audioldm tango.autoencoder.weights.name=./nowhere", "tango.autoencoder: ./nowhere: no such", "put vae/"),
    ("model=audio_dit scale=paper audio_dit.autoencoder.weights.name=./nowhere", "audio_dit.autoencoder: ./nowhere: no such dir"),
    (f"{ISTFT} vocoder.weights.start_from=nowhere", "vocoder.weights.start_from: ", "nowhere: no such directory", "copy it"),
    (f"{ISTFT} vocoder.weights.start_from=empty", "vocoder.weights.start_from: ", "(config.json is missing)", "name one's"),
    (f"{ISTFT} vocoder.weights.start_from=diffwave", "vocoder.weights.start_from: ", "diffwave there and istft here; make them"),
    (f"{FROM['istft']} vocoder.network.width=64", "vocoder.weights.start_from: ", "network.width is 256 there and 64 here; make"),
    (f"{FROM['istft']} spectrogram.tango.n_mels=80", "vocoder.weights.start_from: ", "n_mels is 64 there and 80 here; make"),
    (f"{FROM['diffwave']} vocoder.noise.beta_end=0.02", "vocoder.weights.start_from: ", "beta_end is 0.05 there and 0.02 here"),
    ("model=tango tango.autoencoder.weights.start_from=nowhere", "tango.autoencoder.weights.start_from: ", "nowhere: no such"),
    (f"{FROM['mel_autoencoder']} tango.autoencoder.network.latent_channels=3", "latent_channels is 8 there and 3 here; make them"),
    (f"{FROM['mel_autoencoder']} spectrogram.tango.n_mels=80", "start_from: ", "n_mels is 64 there and 80 here; make them"),
    (f"{FROM['rave']} tango.autoencoder.network.channels=8", "start_from: ", "network.channels is 16 there and 8 here; make them"),
    (f"{FROM['rave']} clips.default.sample_rate=22050", "start_from: ", "sample_rate is 16000 there and 22050 here; make them"),
    (f"{FROM['rave']} tango.autoencoder.fidelity=0.9 tango.autoencoder.weights.steps=0", "fidelity is 1.0 there and 0.9 here"),
    (f"{FROM['oobleck']} audio_dit.autoencoder.network.channels=8", "network.channels is 16 there and 8 here; make them agree"),
    (f"{FROM['unet1d']} diffusion_ae.autoencoder.encoder.channels=16", "encoder.channels is 64 there and 16 here; make them agree"),
    (f"{FROM['unet1d']} spectrogram.diffusion_ae.n_mels=64", "start_from: ", "mel_spec.n_mels is 80 there and 64 here; make them"),
]  # fmt: skip


@pytest.mark.parametrize(("choices", "said"), [(choices, said) for choices, *said in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_does_not_fit_is_refused(published: Path, choices: str, said: list[str]) -> None:
    with pytest.raises(UserError, match=".*".join(map(re.escape, said))) as caught:
        check(choices, published)
    assert "use +" not in str(caught.value)  # Hydra's advice is to add the key


CHANGED = [  # choices, a key of what they compose to and another value, and what is said
    ("model=ddpm_mel scale=paper", "ddpm_mel.train.picture.level=absolute", "level: clip"),
    ("model=ddpm_mel scale=paper", "ddpm_mel.train.sampling.num_steps=1000", "999 timesteps trained on"),
    (ISTFT, "vocoder.sampling=null", "'magnitude' needs sampling"),
    (VOCOS_24KHZ, "vocoder.network.head=magnitude", "'magnitude' is trained with no discriminators, and none is loaded"),
    (VOCOS_24KHZ, "vocoder.sampling={iterations: 4, momentum: 0.9, grain: 0.0}", "'wave' has no sampling"),
    (HIFIGAN, "vocoder.network.kernels=[4, 8, 8, 4]", "may be shorter than its rate"),
    (HIFIGAN, "vocoder.network.channels=24", "cannot be halved 4 times"),
    (HIFIGAN, "vocoder.weights.discriminator_width=6", "multiple of 4"),
    *((DIFFWAVE, f"vocoder.sampling.betas={betas}", "sampling.betas") for betas in ("[]", "[0.0, 0.1]", "[0.5, 1.0]", "fast")),
    ("model=tango", "tango.autoencoder.weights.crop_frames=130", "must be a multiple of 4"),
    ("model=tango", "tango.autoencoder.network.groups=6", "cannot be split into 6 groups"),
    ("model=tango", "tango.autoencoder.network.latent_channels=17", "with pca at most 16, the numbers of a patch"),
    (AUDIOLDM, "tango.autoencoder.network.pca=true", "network.pca must be false for loaded weights"),
    (AUDIOLDM, "tango.autoencoder.weights.steps=3", "steps: unknown key"),
    (ENCODEC, "audio_dit.autoencoder.network.bandwidths=[6.0, 1.5]", "[6.0, 1.5] must rise: the last sets the number of codebooks"),
    (ENCODEC, "audio_dit.autoencoder.bandwidth=5.0", "bandwidth 5.0 must be one of network.bandwidths"),
    (OOBLECK, "audio_dit.autoencoder.network.multiples=[1]", "must have one value for each of ratios"),
    (OOBLECK, "audio_dit.autoencoder.network.ratios=[2, 3, 4, 4]", "ratios [3] must be even"),
    (OOBLECK, "audio_dit.autoencoder.network.multiples=[1, 0, 1, 1]", "must be 1 or more"),
    ("model=rave", "rave.autoencoder.network.dilations=[[1]]", "one list for each of ratios"),
    ("model=rave", "rave.autoencoder.network.ratios=[4, 1, 2]", "must be 2 or more"),
    ("model=rave", "rave.autoencoder.network.noise.ratios=[3]", "does not divide the"),
    ("model=rave", "rave.autoencoder.network.dilations=[[0], [1], [1]]", "must be 1 or more"),
    ("model=rave", "rave.autoencoder.network.noise=null", "pca needs noise"),
    ("model=rave", "rave.autoencoder.network.noise.ratios=[2]", "with pca at most", "more would be empty"),
    ("model=rave", "rave.autoencoder.network.latent_channels=4000", "with pca at most", "the number of gains"),
    (WAVEFORM, "waveform_unet.train.network.items=[1]", "must have one value for each of channels"),
    (WAVEFORM, "waveform_unet.train.network.factors=[1, 0, 2, 2, 2]", "must be 1 or more"),
    (WAVEFORM, "waveform_unet.train.network.channels=[8, 10, 8, 8, 8]", "multiples of"),
    ("model=diffwave diffwave=laptop", "diffwave.train.unit_variance=true", "mels give the level; set noise.prior to `mel`"),
    ("model=diffwave diffwave=sc09_laptop", "diffwave.train.noise.prior=mel", "needs mels, which condition `label` lacks"),
]


@pytest.mark.parametrize(("choices", "change", "said"), [(*row[:2], row[2:]) for row in CHANGED], ids=[row[1] for row in CHANGED])
def test_values_that_do_not_fit_are_refused(choices: str, change: str, said: list[str]) -> None:
    document = compose(choices)
    registry.check(document)
    path, _, value = change.partition("=")
    *parents, key = path.split(".")
    reduce(getitem, parents, document)[key] = YAML(typ="safe").load(value)
    with pytest.raises(UserError, match=f"{re.escape(parents[0])}.*" + ".*".join(map(re.escape, said))):
        registry.check(document)


def test_a_base_is_looked_at_before_a_stage_runs(tmp_path: Path) -> None:
    document, base = compose(f"{LORA} tango.train.start_from=base"), tmp_path / "base"
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
    registry.check(compose(f"{FROM['diffwave']} vocoder.noise.prior=standard"), tmp_path)
