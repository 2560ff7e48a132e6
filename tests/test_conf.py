"""Every choice of conf/ gives parameters that every stage accepts."""

import importlib
import inspect
from typing import get_type_hints

import pytest

from soundmill import params, text
from soundmill.commands.pipeline import Choice
from soundmill.commands.runs import read_experiments
from soundmill.models import registry
from soundmill.models.components import registry as components
from soundmill.models.params import read_sections
from tests.imports import EVERY_FAMILY, ROOT, VOCODED

CORPORA = ["synthetic", "loops", "auto", "folder", "esc", "audiocaps", "union"]
SINGLE = ("duplicates", "quality", "splits", "zero_shot", "catalog", "rename", "mixup", "tagger", "evaluate")


def accepted(stage: str) -> type[params.StageParams]:
    run = importlib.import_module(f"stages.{stage}").run
    return get_type_hints(run)[next(iter(inspect.signature(run).parameters))]


@pytest.mark.parametrize(("corpus", "scale"), [*((one, "laptop") for one in CORPORA), ("esc", "gpu"), ("union", "paper")])
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
        kind = registry.family(family)
        read_sections(document, family, kind.train_params, kind.generate_params)


def test_no_bound_of_a_parameter_replaces_another():
    for stage in ("loops", "segment", *SINGLE):
        accepted(stage)
    every = [params.StageParams, *(registry.family(name).train_params for name in registry.FAMILIES)]
    for model in every:
        every += model.__subclasses__()
        for name, field in model.model_fields.items():  # pydantic takes the last bound of each kind
            kinds = [type(bound).__name__ for bound in field.metadata if type(bound).__name__ in ("Ge", "Gt", "Le", "Lt")]
            assert len(kinds) == len({*kinds}), f"{model.__name__}.{name}: {field.metadata}"


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "text").glob("*.yaml")))
def test_text_encoders_are_chosen_by_name(name):
    assert params.compose(ROOT / "conf", ["model=ddpm_mel"])["text"] == {}
    document = params.compose(ROOT / "conf", ["model=tango", f"text={name}"])
    chosen = params.parse(accepted("encode_text"), document["text"]["tango"], name)
    assert (chosen.revision is None) == (chosen.encoder == text.SCRATCH)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "vocoder").glob("*.yaml")))
@pytest.mark.slow(minutes=0.3)
def test_a_vocoder_is_made_for_every_family_of_log_mels(name):
    """Of the other families for none; AudioLDM's is for its own log-mels."""
    document = params.compose(ROOT / "conf", [VOCODED, f"vocoder={name}"])
    of_log_mels = ("audio_dit", "ddpm_mel", "projected_gan", "tango")
    expected = {"griffin_lim": set(), "audioldm": {"tango"}}.get(name, set(of_log_mels))
    assert set(document["vocoder_families"]) == expected
    kinds = {family: document["families"][family]["components"]["vocoder"] for family in of_log_mels}
    assert kinds == {family: document["vocoder"]["kind"] if family in expected else "griffin_lim" for family in kinds}
    assert document["tango"]["train"]["sampling"]["vocoder"] == ("trained" if "tango" in expected else "griffin_lim")
    if expected:
        params.parse(components.kind_of("vocoder", document["vocoder"]).params, document["vocoder"], name)


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


@pytest.mark.parametrize("model", registry.FAMILIES)
@pytest.mark.parametrize("scale", ["laptop", "gpu", "paper"])
def test_every_family_stands_alone_at_every_scale_and_may_stop_early(model, scale):
    document = params.compose(ROOT / "conf", [f"model={model}", f"scale={scale}"])
    registry.check(document)
    assert document[model]["train"]["patience"] is None
    document[model]["train"] |= {"patience": 3, "validate_every_steps": 5}
    registry.check(document)


@pytest.mark.parametrize("scale", ["laptop", "gpu", "paper"])
def test_what_latent_families_need_is_there(scale):
    assert params.compose(ROOT / "conf", ["model=ddpm_mel"])["latent_families"] == {}
    document = params.compose(ROOT / "conf", ["model=tango", f"scale={scale}"])
    assert set(document["text"]) == set(document["latent_families"]) == {"tango"}
    for family, wants in document["latent_families"].items():
        params.parse(accepted("spectrogram"), document["spectrogram"][wants["mel"]], family)
        assert wants["codec"] == components.codec_params(document, family).kind
        params.parse(accepted("latents"), document[family]["latents"], family)
        params.parse(accepted("encode_text"), document["text"][family], family)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_experiment_is_a_whole_choice_that_stages_accept(name):
    document = params.compose(ROOT / "conf", [f"experiment={name}"])
    assert document["experiment"] == read_experiments(ROOT / "conf")[name].model_dump()
    assert document["experiment"]["name"] == name
    registry.check(document)
    if document["vocoder"]:
        params.parse(components.kind_of("vocoder", document["vocoder"]).params, document["vocoder"], name)
    for family in document["latent_families"]:
        components.codec_params(document, family)


def test_an_override_counts_above_an_experiment_and_the_experiment_above_groups():
    assert "experiment" not in params.compose(ROOT / "conf", [])
    document = params.compose(ROOT / "conf", ["experiment=esc10_tango", "tango.train.steps=5", "vocoder=hifigan_laptop"])
    assert (document["tango"]["train"]["steps"], document["vocoder"]["kind"]) == (5, "hifigan")
    assert (list(document["families"]), document["corpus"]["format"]) == (["tango"], "esc")
    assert document["tango"]["train"]["network"]["widths"] == [48, 96, 96]
    assert params.compose(ROOT / "conf", ["experiment=loops_projected_gan", "corpus=esc"])["corpus"]["format"] == "esc"


@pytest.mark.parametrize("condition", ["label", "caption", "none"])
def test_recordings_of_any_description_have_parameters_that_a_run_accepts(condition):
    choice = params.parse(Choice, params.read_yaml(ROOT / "conf/run.yaml"), "conf/run.yaml")
    document = registry.compose(ROOT / "conf", ["corpus=auto", *choice.overrides, *choice.short, *getattr(choice, condition, [])])
    registry.check(document)
    assert document["audio_dit"]["train"]["condition"] == condition
