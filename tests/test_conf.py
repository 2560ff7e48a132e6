"""Every choice of conf/ gives parameters that every stage accepts."""

from __future__ import annotations

import importlib
import inspect
import json
from typing import get_type_hints

import pytest

from soundmill import params, text
from soundmill.commands.experiments import read_experiments
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.components import registry as components
from tests.imports import EVERY_FAMILY, ROOT

SINGLE = ("duplicates", "quality", "splits", "zero_shot", "catalog", "rename", "mixup", "tagger", "evaluate")


def accepted(stage: str) -> type[params.StageParams]:
    run = importlib.import_module(f"stages.{stage}").run
    return get_type_hints(run)[next(iter(inspect.signature(run).parameters))]


@pytest.mark.parametrize("scale", ["laptop", "gpu", "paper"])
@pytest.mark.parametrize("corpus", ["synthetic", "loops", "auto", "folder", "esc", "audiocaps", "union"])
def test_every_stage_accepts_every_choice(corpus, scale):
    document = params.compose(ROOT / "conf", [EVERY_FAMILY, f"corpus={corpus}", f"scale={scale}"])
    where = f"{corpus}/{scale}"
    assert document["corpus"]["format"] == corpus
    assert bool(document["corpus"]["embedded"]) != bool(document["corpus"]["external"])
    params.parse(params.ExecutionParams, document["execution"], where)
    params.parse(accepted("corpus" if document["corpus"]["embedded"] else "scan"), document["corpus"], where)
    for stage in SINGLE:
        params.parse(accepted(stage), document[stage], where)
    for plan in document["clips"].values():
        params.parse(accepted("segment"), plan, where)
        params.parse(accepted("resample"), plan, where)
    for loops in document["loops"].values():
        params.parse(accepted("loops"), loops, where)
    for spec in document["spectrogram"].values():
        params.parse(accepted("spectrogram"), spec, where)
        assert spec["sample_rate"] == document["clips"][spec["clips"]]["sample_rate"]
    for family, wants in document["families"].items():
        assert wants["clips"] in document["clips"]
        mels = {f"data/spectrograms/clips/{name}" for name in document["spectrogram"]}
        assert wants["inputs"] in {f"data/{family}", f"data/clips/{wants['clips']}", *mels}
        params.parse(registry.family(family).train_params, document[family]["train"], where)
        params.parse(registry.family(family).generate_params, document[family]["generate"], where)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "text").glob("*.yaml")))
def test_text_encoders_are_chosen_by_name(name):
    assert params.compose(ROOT / "conf", ["model=ddpm_mel"])["text"] == {}
    document = params.compose(ROOT / "conf", ["model=tango", f"text={name}"])
    chosen = params.parse(accepted("encode_text"), document["text"]["tango"], name)
    assert (chosen.revision is None) == (chosen.encoder == text.SCRATCH)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "vocoder").glob("*.yaml")))
def test_a_vocoder_is_made_for_every_family_of_log_mels(name):
    """Of the other families for none; AudioLDM's is for its own log-mels."""
    document = params.compose(ROOT / "conf", [EVERY_FAMILY, f"vocoder={name}"])
    of_log_mels = ("audio_dit", "ddpm_mel", "projected_gan", "tango")
    expected = {"griffin_lim": set(), "audioldm": {"tango"}}.get(name, set(of_log_mels))
    assert set(document["vocoder_families"]) == expected
    kinds = {family: document["families"][family]["components"]["vocoder"] for family in of_log_mels}
    assert kinds == {family: document["vocoder"]["kind"] if family in expected else "griffin_lim" for family in kinds}
    assert document["tango"]["train"]["sampling"]["vocoder"] == ("trained" if "tango" in expected else "griffin_lim")
    if expected:
        params.parse(components.params_of_vocoder(document["vocoder"]), document["vocoder"], name)


@pytest.mark.parametrize(("model", "vocoder"), [("ddpm_mel", "audioldm"), ("diffwave", "hifigan_laptop")])
def test_a_vocoder_that_no_family_takes_is_refused(model, vocoder):
    with pytest.raises(UserError, match=f"^vocoder={vocoder}: no family of model={model} uses it; leave it out, select another"):
        params.compose(ROOT / "conf", [f"model={model}", f"vocoder={vocoder}"])


@pytest.mark.parametrize(
    ("choices", "keeping"),
    [
        (["model=[ddpm_mel,tango]", "vocoder=audioldm"], "ddpm_mel"),
        (["model=[ddpm_mel,projected_gan]", "scale=paper"], "ddpm_mel and projected_gan"),
        (["model=ddpm_mel", "vocoder=diffwave_laptop"], None),
        (["model=[ddpm_mel,tango]"], None),
        (["model=[diffwave,tango]", "scale=paper"], None),
    ],
)
def test_families_that_keep_griffin_lim_beside_a_vocoder_are_told(choices, keeping):
    note = registry.vocoder_note(params.compose(ROOT / "conf", choices))
    assert (note or "").startswith(f"note: {keeping} will use Griffin-Lim: this vocoder" if keeping else "")
    assert (note is None) == (keeping is None)


@pytest.mark.parametrize("model", sorted(registry.FAMILIES))
@pytest.mark.parametrize("scale", ["laptop", "gpu", "paper"])
def test_every_family_stands_alone_at_every_scale(model, scale):
    registry.check(params.compose(ROOT / "conf", [f"model={model}", f"scale={scale}"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "spectrogram.tango.n_mels=400",
            r"spectrogram\.tango: mel spec: \d+ of 400 bands contain no FFT bin.* raise n_fft",
        ),
        ("spectrogram.tango.f_max=9000.0", r"spectrogram\.tango: .*f_max 9000"),
        ("tango.autoencoder.weights.batch_size=0", r"tango\.autoencoder\.weights\..*batch_size: .*greater than or equal to 1"),
        ("vocoder.weights.batch_size=0", r"vocoder\.weights\..*batch_size: .*greater than or equal to 1"),
        ("vocoder.network.head=wave", r"vocoder: .*network\.head 'wave' is trained with discriminators"),
        ("spectrogram.tango.hop_length=513", r"spectrogram\.tango: .*hop_length 513 must be at most half of win_length 640"),
        ("vocoder=griffin_lim spectrogram.tango.hop_length=513", r"spectrogram\.tango: .*hop_length 513 must be at most half"),
        (
            "vocoder=hifigan_laptop spectrogram.tango.hop_length=200",
            r"spectrogram\.tango: vocoder\.network\.rates .* 160 .* is 200",
        ),
        (
            "vocoder=audioldm",
            r"spectrogram\.tango: .*win_length of its spectrogram is 640; set win_length to 1024, or add `latents=audioldm`",
        ),
        ("vocoder=melgan_laptop spectrogram.tango.hop_length=200", r"spectrogram\.tango: vocoder\.network\.rates .* 160 .* is 200"),
        ("vocoder.weights.crop_frames=8", r"spectrogram\.tango: vocoder\.weights\.crop_frames 8 must be more than 8"),
        (
            "vocoder=hifigan_laptop vocoder.weights.crop_frames=3",
            r"spectrogram\.tango: vocoder\.weights\.crop_frames 3 of 160 samples",
        ),
        ("spectrogram.tango.n_mels=70", r"tango\.autoencoder: mel spec: n_mels 70 must be a multiple of 4"),
        (
            "model=diffwave diffwave.train.mel.n_mels=400",
            r"yaml: diffwave\.train\.mel spec: 21 of 400 bands contain no FFT bin.*raise n_fft",
        ),
        (
            "model=diffwave diffwave.train.mel.hop_length=600",
            r"yaml: diffwave\.train\.mel spec: hop_length 600 must be at most half of",
        ),
        (
            "model=diffusion_vocoder diffusion_vocoder.train.mel.n_mels=400",
            r"yaml: diffusion_vocoder\.train\.mel spec: 22 of 400 bands contain no FFT bin.*raise n_fft",
        ),
        (
            "model=diffusion_ae spectrogram.diffusion_ae.hop_length=100",
            r"yaml: diffusion_ae\.autoencoder: .*a latent of 400 samples \(hop_length .* has a frame of 512: make them equal",
        ),
        (
            "model=projected_gan spectrogram.projected_gan.n_mels=80",
            r"yaml: projected_gan\.train\.generator has 64 mels, but spectrogram\.projected_gan\.n_mels is 80; make them agree",
        ),
    ],
)
def test_what_a_stage_would_refuse_is_refused_before_one_runs(change, message):
    choices = change.split() if change.startswith(("vocoder=", "model=")) else ["vocoder=istft_laptop", change]
    with pytest.raises(UserError, match=message):
        registry.check(params.compose(ROOT / "conf", choices if choices[0].startswith("model=") else ["model=tango", *choices]))


def test_mels_that_a_family_does_not_use_are_not_looked_at():
    registry.check(params.compose(ROOT / "conf", ["model=diffwave", "diffwave=sc09_laptop", "diffwave.train.mel.n_mels=400"]))


LORA = ["model=tango", "+lora@tango.train.lora=attention", "tango.train.start_from=../base"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["tango.train.start_from=null"], r"tango\.train: .*lora needs a base: set start_from"),
        (["tango.train.lora.rank=4096"], r"params\.yaml: tango\.train\.lora\.rank: 4096 is above the size of \d+ layers"),
        (
            ["tango.train.lora.targets=[query]"],
            r"train\.lora\.targets: no layer of the net is named 'query'; .*to_out\.0, to_q",
        ),
        (
            ["model=ddpm_mel", "+lora@ddpm_mel.train.lora=attention", "ddpm_mel.train.start_from=../base"],
            r"ddpm_mel\.train\.lora: adapters cannot be trained in this family, only in .*tango",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_refused_before_a_stage_runs(choices, message):
    registry.check(params.compose(ROOT / "conf", LORA))
    with pytest.raises(UserError, match=message):
        registry.check(params.compose(ROOT / "conf", choices if choices[0].startswith("model=") else [*LORA, *choices]))


def test_what_a_training_starts_from_is_looked_at_before_a_stage_runs(tmp_path):
    document = params.compose(ROOT / "conf", [*LORA, "tango.train.start_from=base"])

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            registry.check(document, tmp_path)

    refused(r"params\.yaml: tango\.train\.start_from: .*base: no such directory")
    (tmp_path / "base").mkdir()
    refused(r"start_from: .*base is not a family's checkpoint: it has no config\.json")
    (tmp_path / "base/config.json").write_text('{"family": "rave"}')
    refused(r"is a checkpoint of family 'rave', not 'tango'")
    trained = {**document["tango"]["train"], "lora": None, "start_from": None}
    config = {"family": "tango", "params": trained}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    refused(r"has no unet\.safetensors; copy the whole checkpoint again")
    (tmp_path / "base/unet.safetensors").touch()
    registry.check(document, tmp_path)
    other = {**config, "params": {**trained, "network": {**trained["network"], "text_width": 17}, "seed": 5}}
    (tmp_path / "base/config.json").write_text(json.dumps(other))
    refused(r"params\.yaml: tango\.train\.start_from: .*base: network\.text_width is 17 there and \d+ here; make them agree, or")
    (tmp_path / "base/config.json").write_text('{"family": "tango"}')
    refused(r"params\.yaml: tango\.train\..*base/config\.json: params")
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    (tmp_path / "base/adapter_config.json").touch()
    refused(r"has only adapters; merge them first: `soundmill export ")


@pytest.mark.parametrize(
    ("choices", "key"),
    [
        (["model=tango", "tango.autoencoder.weights.steps=0", "tango.autoencoder.weights.start_from=mine"], "start_from"),
        (["model=audio_dit", "scale=paper", "audio_dit.autoencoder.weights.name=./mine"], "name"),
    ],
)
def test_adapters_of_a_base_with_another_codec_are_refused_before_a_stage_runs(tmp_path, choices, key):
    family = choices[0].removeprefix("model=")
    lora = [f"+lora@{family}.train.lora=attention", f"{family}.train.start_from=base"]
    document = params.compose(ROOT / "conf", [*choices, *lora])
    trained = {**document[family]["train"], "lora": None, "start_from": None}
    for name, digest in (("base/autoencoder", "a" * 64), ("mine", "b" * 64)):
        (tmp_path / name).mkdir(parents=True)
        network = document[family]["autoencoder"]["network"]
        codec = {"kind": document["latent_families"][family]["codec"], "digest": digest, "scaling_factor": 1.0, "network": network}
        (tmp_path / name / "config.json").write_text(json.dumps({**codec, "source": {}}))
        (tmp_path / name / "model.safetensors").touch()
    (tmp_path / "base/config.json").write_text(json.dumps({"family": family, "params": trained}))
    (tmp_path / "base" / registry.family(family).weights).touch()
    message = (
        rf"params\.yaml: {family}\.train\.lora: the autoencoder .*mine \(digest b{{12}}…\) is not that of .*base "
        rf"\(digest a{{12}}…\), to which adapters cannot add another; "
        rf"set {family}\.autoencoder\.weights\.{key} to .*base/autoencoder"
    )
    with pytest.raises(UserError, match=message):
        registry.check(document, tmp_path)
    document[family]["autoencoder"]["weights"][key] = "./base/autoencoder"
    registry.check(document, tmp_path)
    document[family]["autoencoder"]["weights"][key] = "./mine"
    document[family]["train"]["lora"] = None  # the whole network adapts to it
    registry.check(document, tmp_path)


@pytest.mark.parametrize(
    ("encoder", "lacking"),
    [("../models/t5", r"\.\./models/t5: no such directory \(.*models/t5\)"), ("./empty", r"\./empty: .*empty has no config\.json")],
)
def test_a_text_encoder_that_is_not_there_is_named_before_a_stage_runs(tmp_path, encoder, lacking):
    (tmp_path / "empty").mkdir()
    document = params.compose(ROOT / "conf", ["model=tango", f"text.tango.encoder={encoder}"])
    refused = rf"params\.yaml: text\.tango\.encoder: {lacking}.*; put its files .* set `encoder`"
    with pytest.raises(UserError, match=refused):
        registry.check(document, tmp_path)
    registry.check(params.compose(ROOT / "conf", ["model=tango", "text.tango.encoder=google/flan-t5-large"]), tmp_path)


@pytest.mark.parametrize("scale", ["laptop", "gpu", "paper"])
def test_what_latent_families_need_is_there(scale):
    assert params.compose(ROOT / "conf", ["model=ddpm_mel"])["latent_families"] == {}
    document = params.compose(ROOT / "conf", ["model=tango", f"scale={scale}"])
    assert set(document["text"]) == set(document["latent_families"]) == {"tango"}
    for family, wants in document["latent_families"].items():
        spec = params.parse(accepted("spectrogram"), document["spectrogram"][wants["mel"]], family)
        autoencoder = params.parse(components.params_of_codec(section := document[family]["autoencoder"]), section, family)
        assert wants["codec"] == autoencoder.kind
        latents = params.parse(accepted("latents"), document[family]["latents"], family)
        params.parse(accepted("encode_text"), document["text"][family], family)
        assert latents.num_samples % (spec.hop_length * autoencoder.network.factor) == 0
        assert latents.num_samples >= document["clips"][wants["clips"]]["clip_seconds"] * spec.sample_rate


def test_the_length_of_one_familys_clips_is_not_anothers():
    document = params.compose(ROOT / "conf", ["model=[ddpm_mel,tango]", "scale=paper"])
    seconds = {family: document["clips"][wants["clips"]]["clip_seconds"] for family, wants in document["families"].items()}
    assert seconds == {"ddpm_mel": 5.0, "tango": 10.0}
    assert document["ddpm_mel"]["train"]["picture"]["seconds"] == 5.0
    assert {document[stage]["clips"] for stage in ("mixup", "rename")} == {"tango"}
    assert document["spectrogram"]["tagger"]["clips"] == "default"


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_experiment_is_a_whole_choice_that_stages_accept(name):
    document = params.compose(ROOT / "conf", [f"experiment={name}"])
    assert document["experiment"] == read_experiments(ROOT / "conf")[name].model_dump()
    assert document["experiment"]["name"] == name
    registry.check(document)
    if document["vocoder"]:
        params.parse(components.params_of_vocoder(document["vocoder"]), document["vocoder"], name)
    for family in document["latent_families"]:
        components.codec_params(document, family)


def test_an_override_counts_above_an_experiment_and_the_experiment_above_groups():
    assert "experiment" not in params.compose(ROOT / "conf", [])
    document = params.compose(ROOT / "conf", ["experiment=esc10_tango", "tango.train.steps=5", "vocoder=hifigan_laptop"])
    assert (document["tango"]["train"]["steps"], document["vocoder"]["kind"]) == (5, "hifigan")
    assert (list(document["families"]), document["corpus"]["format"]) == (["tango"], "esc")
    assert document["tango"]["train"]["network"]["widths"] == [48, 96, 96]
    assert params.compose(ROOT / "conf", ["experiment=loops_projected_gan", "corpus=esc"])["corpus"]["format"] == "esc"


def test_the_demo_with_the_published_objective_keeps_the_settings_of_its_table():
    document = params.compose(ROOT / "conf", ["experiment=demo_epsilon"])
    train = document["ddpm_mel"]["train"]
    assert (document["corpus"]["recordings"], document["corpus"]["test_fraction"]) == (60, 0.2)
    assert document["spectrogram"]["ddpm_mel"]["hop_length"] == 313
    assert (train["steps"], train["picture"]["width"], train["picture"]["patch"]) == (300, 256, [4, 4])
    assert (train["network"]["widths"], train["optimiser"]["learning_rate"], train["ema"]["decay"]) == ([96, 192, 256], 1e-3, 0.995)
    assert (train["diffusion"]["objective"], train["diffusion"]["schedule"]) == ("eps", "linear")
    for sampling in (train["sampling"], document["ddpm_mel"]["generate"]["sampling"]):
        assert (sampling["num_steps"], sampling["guidance_scale"], sampling["griffin_lim_grain"]) == (25, 1.0, "none")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=esc10_ddpm"], "no experiment 'esc10_ddpm' in .*/conf/experiment; did you mean 'esc10_ddpm_mel'"),
        (["model=tango", "text=minilem"], "no text 'minilem' in .*/conf/text; did you mean 'minilm'"),
    ],
)
def test_a_choice_that_is_not_there_is_named_with_the_nearest(overrides, message):
    with pytest.raises(UserError, match=message):
        params.compose(ROOT / "conf", overrides)
