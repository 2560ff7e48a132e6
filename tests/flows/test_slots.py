"""Which stages may run at the same time, and what each takes."""

from __future__ import annotations

import threading

import pytest

from flows import dvc
from flows.slots import Share, Slots, share_of
from soundmill import params
from soundmill.errors import UserError
from soundmill.params import ExecutionParams, SlotsParams
from tests.imports import ROOT


def slots(cpu: int = 1, gpu: int = 0) -> Slots:
    return Slots(SlotsParams(cpu=cpu, gpu=gpu))


def shares(*overrides: str) -> dict[str, Share]:
    """What every stage of the graph takes."""
    document = params.compose(ROOT / "conf", ["execution.workers=2", *overrides])
    execution = params.parse_section(document, "execution", ExecutionParams)
    families = list(document["families"])
    names = ["train", "generate", *(name for name in ("autoencoder", "latents") if name in document[families[0]])]
    sections = {name: document[families[0]][name] for name in names}
    sections |= {name: document[name] for name in ("tagger", "zero_shot", "evaluate")}
    return {name: share_of(section, execution) for name, section in {**sections, "mixup": {}}.items()}


def test_by_default_one_stage_runs_at_a_time_whatever_it_uses() -> None:
    default = params.compose(ROOT / "conf", [])["execution"]["slots"]
    one = Slots(SlotsParams(**default))
    taken = one.take("a", Share(cpu=16))
    assert not one.several
    assert taken.environment == {}
    assert one.take("b", Share(cpu=1)) is None
    one.give_back(taken)
    assert one.take("b", Share(cpu=1))


def test_a_training_takes_its_threads_or_its_gpus_and_a_data_stage_its_workers() -> None:
    found = shares("ddpm_mel.train.hardware.threads=3", "ddpm_mel.train.hardware.devices=2")
    assert (found["train"], found["tagger"], found["mixup"]) == (Share(cpu=6), Share(cpu=1), Share(cpu=2))
    found = shares("execution.slots.gpu=4", "model=tango", "tango.train.hardware.devices=2")
    assert (found["train"], found["autoencoder"]) == (Share(gpu=2), Share(gpu=1))
    assert (found["generate"], found["latents"]) == (Share(gpu=None), Share(gpu=None))
    assert shares("execution.slots.gpu=4", "execution.devices=2")["generate"] == Share(gpu=2)
    on_cpu = shares("execution.slots.gpu=4", "ddpm_mel.train.hardware.accelerator=cpu", "execution.devices=2")
    assert (on_cpu["train"], on_cpu["generate"], on_cpu["tagger"]) == (Share(cpu=1), Share(cpu=2), Share(cpu=1))
    assert shares("model=tango")["latents"] == Share(cpu=2)


def test_comparing_clips_with_texts_takes_gpus_only_if_there_is_an_embedder_and_a_slot() -> None:
    assert shares("execution.slots.gpu=4")["zero_shot"] == Share(cpu=2)  # writes an empty table
    assert shares("zero_shot.embedder=clap")["zero_shot"] == Share(cpu=2)
    assert shares("zero_shot.embedder=clap", "execution.slots.gpu=4")["zero_shot"] == Share(gpu=None)
    one = shares("zero_shot.embedder=clap", "execution.slots.gpu=4", "execution.devices=1")
    assert one["zero_shot"] == Share(gpu=1)


def test_scoring_takes_gpus_only_if_one_of_its_embedders_uses_them() -> None:
    assert shares("execution.slots.gpu=4", "evaluate.embedders=[tagger,texture,yamnet,vggish]")["evaluate"] == Share(cpu=2)
    assert shares("execution.slots.gpu=4", "evaluate.embedders=[tagger,clap]")["evaluate"] == Share(cpu=2, gpu=None)
    assert shares("evaluate.embedders=[tagger,clap]")["evaluate"] == Share(cpu=2)


def test_each_stage_sees_its_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    four = slots(gpu=4)
    first, second = four.take("a", Share(gpu=1)), four.take("b", Share(gpu=2))
    rest = four.take("c", Share(gpu=None))
    assert [taken.environment["CUDA_VISIBLE_DEVICES"] for taken in (first, second, rest)] == ["4", "5,6", "7"]
    assert four.take("d", Share(gpu=None)) is None
    four.give_back(second)
    assert four.take("d", Share(gpu=None)).gpus == ("5", "6")
    with pytest.raises(UserError, match=r"slots\.gpu is 5, but CUDA_VISIBLE_DEVICES names only 4"):
        slots(gpu=5)


def test_what_runs_elsewhere_is_waited_for() -> None:
    two = slots(cpu=2)
    taken = two.take("the same stage", Share(cpu=1))
    changes = two.changes
    assert two.take("the same stage", Share(cpu=1)) is None
    threading.Timer(0.05, two.give_back, [taken]).start()
    two.wait(changes)
    assert two.take("the same stage", Share(cpu=1))
    two.stop()
    assert two.take("another", Share(cpu=1)) is None


def test_a_stage_s_parameters_are_those_that_dvc_yaml_names() -> None:
    sections = dvc.sections(ROOT, [dvc.Stage(name, frozenset()) for name in ("train@ddpm_mel", "tagger", "segment@default")])
    document = params.read_yaml(ROOT / "params.yaml")
    assert sections == {
        "train@ddpm_mel": document["ddpm_mel"]["train"],
        "tagger": document["tagger"],
        "segment@default": document["clips"]["default"],
    }
