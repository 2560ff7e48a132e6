"""A bake-off of real families on a copy of the graph, with a real Prefect server and MLflow; and who takes part in one."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import soundfile

from flows import bakeoff, locks, scores, trials
from flows.bakeoff import MAX_VALIDATIONS, TIMED_STEPS, WARM_UP_STEPS
from flows.results import Estimate, MetricResult, Row, Training, chosen_embedder, without_score
from flows.terminal import LOG
from soundmill import disk, ledger, params, tracking
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.family import commands_of
from soundmill.training import curve
from tests.flows.prefect_server import ROOT, ask, environment
from tests.flows.test_pipeline import runs
from tests.flows.tiny import DOG
from tests.graph import SHRUNK
from tests.processes import wait_for

FEWER = ("model=", "vocoder", "tango", "ddpm_mel.train.steps", "ddpm_mel.generate")
SMALL = [override for override in SHRUNK if not override.startswith(FEWER)]
SMALL += ["waveform_unet.train.network.channels=[4,4,8]", "waveform_unet.train.network.groups=4"]
SMALL += ["waveform_unet.train.sampling.num_steps=2", "waveform_unet.train.hardware.threads=1"]
SMALL += ["diffusion_ae.autoencoder.weights.num_samples=none at all"]


def test_shares_are_those_of_trainings_that_can_be_set_and_who_has_none_cannot_generate():
    for family in registry.FAMILIES:
        document = params.compose(ROOT / "conf", [f"model={family}"])
        shares = document["families"][family]["trainings"]
        kind = registry.family(family)
        model = getattr(kind.module.load, "__self__", None) or get_type_hints(kind.module.load)["return"]
        able = {one for model in get_args(model) or [model] for one in commands_of(model, kind.train_params)}
        assert set(kind.commands) == able, family
        assert (shares is not None) == ("generate" in able), family
        if shares:
            assert sum(shares.values()) == pytest.approx(1)
            assert shares.keys() <= bakeoff.SECTIONS.keys()


def the_plan() -> bakeoff.BakeOff:
    return bakeoff.read_plan(ROOT)


def test_who_takes_part_and_what_is_for_whom():
    plan = the_plan()
    models, excluded = bakeoff.choose_models(ROOT, plan, ["ddpm_mel.train.batch_size=5", "corpus.recordings=20"], [])
    assert {model.family for model in models} | {row.name for row in excluded} == set(registry.FAMILIES)
    assert {row.name: row.why_not for row in excluded}["upsampler"] == "does not generate sound from a request"
    documents = {model.family: model.params(ROOT, dict.fromkeys(model.shares, 50), 7) for model in models}
    assert documents["ddpm_mel"]["ddpm_mel"]["train"]["batch_size"] == 5
    for family, document in documents.items():
        assert document["corpus"]["recordings"] == 20
        assert (document[family]["generate"]["count"], document[family]["generate"]["seed"]) == (100, 7)
        assert (document[family]["train"]["steps"], document[family]["train"]["seed"]) == (50, 7)
    assert documents["diffusion_ae"]["diffusion_ae"]["autoencoder"]["weights"]["steps"] == 50
    assert documents["tango"]["tango"]["autoencoder"]["weights"]["steps"] == 1  # principal components, which take no minutes
    model = next(model for model in models if model.family == "ddpm_mel")
    paces = ((TIMED_STEPS, TIMED_STEPS), (100, TIMED_STEPS), (1000, 1000 // MAX_VALIDATIONS))  # none among timed steps
    for steps, looks_every in paces:
        assert model.params(ROOT, {"train": steps}, 0)["ddpm_mel"]["train"]["validate_every_steps"] == looks_every
    weights = documents["rave"]["rave"]["autoencoder"]["weights"]  # of 3000, of which 2000 are the first phase's
    assert (weights["steps"], weights["phase_1_steps"], weights["kl"]["steps"]) == (50, 33, 20000)  # the ramp is absolute
    rave = next(model for model in models if model.family == "rave")
    timed = rave.params(ROOT, {"autoencoder": 50, "train": TIMED_STEPS}, 0, timed="train")
    assert (timed["rave"]["train"]["grid"], documents["rave"]["rave"]["train"]["grid"]["rows"]) == ({"columns": 1, "rows": 1}, 3)
    assert timed["rave"]["autoencoder"] == documents["rave"]["rave"]["autoencoder"] | {
        "weights": documents["rave"]["rave"]["autoencoder"]["weights"] | {"seed": 0}
    }  # so that DVC has it in its cache
    timed = rave.params(ROOT, {"autoencoder": TIMED_STEPS}, 0, timed="autoencoder")
    first = timed["rave"]["autoencoder"]["weights"]["phase_1_steps"]
    assert first - WARM_UP_STEPS == 2 * (TIMED_STEPS - first) == 8  # the training's own two to one, of what is counted
    assert WARM_UP_STEPS == curve.WARM_UP_STEPS
    assert {document["corpus"]["embedded"][0] for document in documents.values()} == {"synthetic"}  # the same for all
    with pytest.raises(UserError, match="did you mean 'tango'"):
        bakeoff.choose_models(ROOT, plan, [], ["tanga"])
    with pytest.raises(UserError, match="no family can take part"):
        bakeoff.choose_models(ROOT, plan, [], ["upsampler"])
    with pytest.raises(UserError, match=r"rave: evaluate\.protocols: audioldm_eval-16k needs vggish"):
        bakeoff.choose_models(ROOT, plan, ["evaluate.protocols=[project,audioldm_eval-16k]"], ["rave"])


def test_a_family_that_a_stage_would_refuse_is_left_out_before_the_first_training():
    models, (tango,) = bakeoff.choose_models(ROOT, the_plan(), ["tango.train.network.text_width=65"], ["tango", "rave"])
    assert ([model.name for model in models], tango.name) == (["rave"], "tango")
    assert "tango.train.network.text_width: is 65, but" in tango.why_not


def test_an_override_that_names_a_family_anywhere_is_for_it_alone():
    trained = ["families.tango.trainings.autoencoder=0.7", "tango.autoencoder.weights.steps=200"]
    extra = [*trained, "spectrogram.tango.n_fft=2048", "tango=laptop"]
    models, excluded = bakeoff.choose_models(ROOT, the_plan(), extra, ["tango", "ddpm_mel", "rave"])
    assert excluded == []
    assert {model.family: model.shares for model in models}["tango"] == {"autoencoder": 0.5, "train": 0.5}


def test_families_of_several_lanes_are_composed_at_the_same_time():
    models, _ = bakeoff.choose_models(ROOT, the_plan(), [], ["ddpm_mel", "rave"])
    with ThreadPoolExecutor(4) as pool:
        documents = list(pool.map(lambda number: models[number % 2].params(ROOT, {}, number), range(8)))
        assert len(set(map(len, pool.map(scores.changed_parameters, [ROOT] * 4)))) == 1
    assert [document["families"].keys() for document in documents] == [{"ddpm_mel": 0}.keys(), {"rave": 0}.keys()] * 4


def test_a_named_plan_counts_above_that_of_every_bake_off():
    plan = bakeoff.read_plan(ROOT, "one_shots")
    overrides, families = ["corpus=folder", "corpus.path=../drums"], ["diffusion_ae", "rave", "ddpm_mel"]
    models, _ = bakeoff.choose_models(ROOT, plan, overrides, families)
    documents = {one.family: one.params(ROOT, dict.fromkeys(one.shares, 9), 0) for one in models}
    assert {document["clips"]["default"]["clip_seconds"] for document in documents.values()} == {1.024}
    section = documents["diffusion_ae"]["diffusion_ae"]
    autoencoder, latents = section["autoencoder"], section["latents"]
    assert (autoencoder["decoding"]["num_steps"], latents["num_samples"]) == (10, 16384)
    assert "diffusion_ae" not in documents["rave"]
    assert "ddpm_mel" not in documents["rave"]["spectrogram"]
    assert len(bakeoff.choose_models(ROOT, bakeoff.read_plan(ROOT, "minutes"), [], ["audio_dit", "ddpm_mel", "rave"])[0]) == 3
    (tango,), _ = bakeoff.choose_models(ROOT, bakeoff.read_plan(ROOT, "esc10"), [], ["tango"])
    threads = tango.params(ROOT, {}, 0)["tango"]
    assert [threads[stage]["hardware"]["threads"] for stage in ("autoencoder", "train")] == [1, 1]
    with pytest.raises(UserError, match=r"no bake-off 'one_shot'; did you mean 'one_shots'"):
        bakeoff.read_plan(ROOT, "one_shot")


def test_trainings_are_counted_that_there_are():
    """A vocoder where it is trained; what is loaded leaves its minutes to the rest; steps stand in for epochs."""
    plan = the_plan()

    def shares(*extra: str) -> dict[str, float]:
        (tango,), excluded = bakeoff.choose_models(ROOT, plan, extra, ["tango"])
        assert excluded == []
        document = tango.params(ROOT, dict.fromkeys(tango.shares, 9), 0)
        assert (document["tango"]["train"]["steps"], document["tango"]["train"]["epochs"]) == (9, None)
        if "vocoder" in tango.shares:
            assert document["vocoder"]["weights"]["steps"] == 9
        return tango.shares

    trained = "tango.autoencoder.weights.steps=200"  # by default, principal components alone
    assert shares() == {"train": 1.0}
    assert shares(trained) == pytest.approx({"autoencoder": 0.02 / 0.72, "train": 0.7 / 0.72})
    assert shares("vocoder=hifigan_laptop", trained) == pytest.approx({"autoencoder": 0.02, "vocoder": 0.28, "train": 0.7})
    assert shares("scale=paper", "evaluate.protocols=[project]") == {"train": 1.0}
    assert shares("tango.train.epochs=3", "tango.train.steps=null") == {"train": 1.0}
    models, _ = bakeoff.choose_models(ROOT, plan, ["scale=paper", "evaluate.protocols=[project]"], ["ddpm_mel", "rave"])
    assert {model.family for model in models} == {"ddpm_mel", "rave"}
    broken, excluded = bakeoff.choose_models(ROOT, plan, ["+families.rave.trainings.stew=1"], ["rave", "ddpm_mel"])
    assert [model.family for model in broken] == ["ddpm_mel"]
    ((name, why),) = ((row.name, row.why_not) for row in excluded)
    assert name == "rave"
    assert re.fullmatch(r"KeyError: 'stew' \(bakeoff\.py, line \d+\)", why)


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> SimpleNamespace:
    """A workspace whose pipeline and stages write what they took, where `ran` has them."""
    calls = SimpleNamespace(path=tmp_path, ran=set(), pipelines=[], forced=[], speed=2.0, scores={})

    def cost(stage: str) -> None:
        path = tmp_path / "data" / ".work" / stage.replace("@", "-") / "cost.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"seconds_per_step": 0.5, "peak_memory_bytes": 1e9, "seconds": 8.0, "seconds_per_second": calls.speed}
        path.write_text(json.dumps(facts))

    def run_pipeline(place, document, stages, name):
        calls.pipelines.append(*stages)
        for stage in calls.ran:
            cost(stage)
        for name, content in {
            "metrics/evaluate/tiny.json": json.dumps(calls.scores),
            "metrics/train/tiny.json": "{}",
            "plots/loss/train_tiny.csv": "step,loss/valid\n1,0.5\n",
            "report/tiny/scores.json": "{}",
            "report/tiny/sounds.csv": "",
        }.items():
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).write_text(content)

    def repro(place, stage, say, force):
        assert force
        calls.forced.append(stage)
        cost(stage)

    monkeypatch.setattr(bakeoff, "run_pipeline", run_pipeline)
    monkeypatch.setattr(bakeoff.dvc, "repro", repro)
    return calls


def test_a_training_that_is_in_the_cache_is_timed_again_and_alone(workspace, tmp_path):
    results = tmp_path / "results"

    def measure(stage: str, *more: str) -> dict[str, float]:
        (model,), _ = bakeoff.choose_models(ROOT, the_plan(), more, ["rave"])
        earlier = {"autoencoder": 40} if stage == "train" else {}
        return bakeoff.measure(tmp_path, ROOT, results, model, stage, earlier, 0)

    found = [measure("autoencoder"), measure("train")]
    assert workspace.forced == ["autoencoder@rave", "train@rave"]
    assert {facts["seconds_per_step"] for facts in found} == {0.5}
    workspace.forced.clear()
    irrelevant = "rave.generate.count=3", "evaluate.embedders=[tagger]"  # neither changes a training
    assert [measure("autoencoder", *irrelevant), measure("train", *irrelevant)] == found
    assert workspace.forced == []
    workspace.ran = {"autoencoder@rave", "train@rave"}
    measure("train", "rave.train.batch_size=3")
    assert workspace.forced == []
    assert workspace.pipelines == ["autoencoder@rave", "train@rave", "train@rave"]
    row = Row("rave", trainings=[Training(stage, 9, 1.0) for stage in ("autoencoder", "train")])
    seconds, training = bakeoff.total_seconds(results, [row], [])
    assert (seconds < 8.0, training) == (True, 8.0)  # the autoencoder's own training, done before `train` was timed


def test_two_combinations_of_one_family_are_a_row_each(workspace, tmp_path):
    combinations = {"unet": ["model=ddpm_mel"], "transformer": ["model=ddpm_mel", "net@ddpm_mel.train.network=dit"]}
    file = tmp_path / "two.yaml"
    params.write_yaml({"title": "Two", "overrides": [], "families": {}, "points": combinations | {"rave": ["model=rave"]}}, file)
    plan = trials.read_file(bakeoff.BakeOff, file)
    models, _ = bakeoff.choose_models(ROOT, plan, ["ddpm_mel.train.batch_size=5"], ["ddpm_mel"])
    assert [(model.name, model.family) for model in models] == [("unet", "ddpm_mel"), ("transformer", "ddpm_mel")]
    assert [model.document["ddpm_mel"]["train"]["batch_size"] for model in models] == [5, 5]
    assert models[0].document["ddpm_mel"]["train"]["network"] != models[1].document["ddpm_mel"]["train"]["network"]
    for model in models:
        bakeoff.measure(tmp_path, ROOT, tmp_path / "results", model, "train", {}, 0)
    assert sorted(path.stem for path in (tmp_path / "results/measured").iterdir()) == ["transformer-train", "unet-train"]
    (alone,), _ = bakeoff.choose_models(ROOT, plan, [], ["transformer"])
    assert alone.name == "transformer"
    params.write_yaml({"title": "Two", "overrides": [], "families": {}, "points": {"unet": ["model=[rave]"]}}, file)
    with pytest.raises(UserError, match=r"points.*unet: names no family"):
        trials.read_file(bakeoff.BakeOff, file)


def test_the_speed_is_that_of_the_run_that_made_the_sounds_and_scores_are_by_all_embedders(workspace, tmp_path, monkeypatch):
    directory = tmp_path / "results" / "runs" / "tiny-0"

    def run(seed: int, **section: int) -> float:
        tiny = SimpleNamespace(name="tiny", family="tiny")
        document = {"tiny": {"generate": {"seed": seed, **section}}, "evaluate": {"embedders": ["tagger"], **section}}
        return bakeoff._run(tmp_path, tiny, document, seed, ["train"], directory)["seconds_per_second"]

    workspace.ran = {"generate@tiny", "train@tiny"}
    assert run(0) == 2.0
    workspace.ran, workspace.speed = set(), 9.0  # what another seed left in the workspace
    assert run(0) == 2.0
    assert json.loads((directory / "run.json").read_text())["took"]["training"] == 8.0
    assert workspace.forced == []
    assert run(0, count=3) == 9.0  # from the cache, and never made here
    assert workspace.forced == ["generate@tiny"]
    workspace.scores = {"embedders": {"texture": "unavailable: once", "yamnet": "unavailable: still"}}
    monkeypatch.delenv("SOUNDMILL_WEIGHTS", raising=False)
    assert run(0, count=3) == 9.0
    assert workspace.forced == ["generate@tiny", "evaluate@tiny"]
    workspace.scores = {"embedders": {"yamnet": "unavailable: still"}}
    assert run(0, count=3) == 9.0
    assert workspace.forced == ["generate@tiny", "evaluate@tiny"]


def test_rows_are_compared_by_the_first_embedder_asked_for_that_no_stage_trained():
    def chosen(*asked: str, without: str = "") -> str:
        facts = {name: "its file is missing" if name == without else {"weights": "none"} for name in sorted(asked)}
        return chosen_embedder([{"embedders": list(asked), "scores": {"embedders": facts}}])

    assert chosen("tagger", "yamnet", "texture") == "yamnet"
    assert chosen("tagger", "yamnet", "texture", without="yamnet") == "texture"
    assert chosen("audiobox", "tagger", "yamnet") == "yamnet"
    assert chosen("tagger") == "tagger"


def test_rows_of_which_one_was_scored_without_weights_are_compared_by_an_embedder_that_all_have(tmp_path):
    def scored(name: str, missing: Sequence[str], **fad: float) -> Row:
        facts = {embedder: {} for embedder in fad} | dict.fromkeys(missing, "its file is missing")
        metrics = {"embedders": facts, **{f"fad_{embedder}": value for embedder, value in fad.items()}}
        run = {"embedders": ["tagger", "yamnet", "texture"], "scores": metrics}
        disk.write_text(tmp_path / f"{name}-0" / "run.json", json.dumps(run))
        return Row(name, {"fad": MetricResult(Estimate(fad[chosen_embedder([run])]))})

    rows = [
        scored("rave", [], yamnet=1.0, texture=20.0),
        scored("tango", ["yamnet"], texture=10.0),
        without_score("ddpm_mel", "full disk"),
    ]
    embedder, (rave, tango, failed) = bakeoff._same_embedder(rows, tmp_path, [0])
    assert (embedder, rave.scores["fad"].total.value, tango.scores["fad"].total.value) == ("texture", 20.0, 10.0)
    assert failed.why_not == "full disk"
    assert bakeoff._same_embedder(rows[:1], tmp_path, [0])[0] == "yamnet"
    assert bakeoff._same_embedder(rows[2:], tmp_path, [0]) == ("tagger", rows[2:])


def test_a_folder_is_looked_at_before_anything_is_trained(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no sounds to score"):
        bakeoff._check(ROOT, {"mine": tmp_path / "empty"})
    for suffix in ("wav", "flac"):
        soundfile.write(tmp_path / "empty" / f"a.{suffix}", [0.0] * 100, 16_000)
    with pytest.raises(UserError, match="differ only in their suffix"):
        bakeoff._check(ROOT, {"mine": tmp_path / "empty"})
    (tmp_path / "empty" / "a.flac").unlink()
    bakeoff._check(ROOT, {"mine": tmp_path / "empty"})
    with pytest.raises(UserError, match="tango is a family"):
        bakeoff._check(ROOT, {"tango": tmp_path / "empty"})
    with pytest.raises(UserError, match="--extra: several folders"):
        bakeoff.named_folders([f"mine={tmp_path}", f"mine={tmp_path}"], tmp_path)


def test_rows_over_other_clips_are_out_of_the_ranking():
    rows = [Row(name, {"fad": MetricResult(Estimate(1.0))}) for name in ("ddpm_mel", "projected_gan")]
    variants = {"ddpm_mel": "default", "projected_gan": "one_bar"}
    variant, (first, second) = bakeoff._same_variant(rows, variants)
    assert (variant, first) == ("default", rows[0])
    assert second.scores["fad"].unranked == "measured against clips of `one_bar`, the others of `default`"
    assert bakeoff._same_variant(rows[1:], variants) == ("one_bar", rows[1:])


def test_sounds_of_earlier_corpora_are_removed(tmp_path):
    for name in ("tiny-0", "tiny-1", "gone-0"):
        (tmp_path / name / "generated").mkdir(parents=True)
    bakeoff._remove_others(tmp_path, {"tiny-0"})
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-0"]


@pytest.mark.attack
def test_a_bake_off_is_killed_goes_on_to_the_same_steps_and_an_error_costs_its_row(graph_copy, tracked, tmp_path, prefect_server):
    project = graph_copy
    (project / "conf" / "bakeoff.yaml").write_text(
        'title: Three families\noverrides: ["{family}.generate.count=4", "{family}.generate.codec_count=2"]\nfamilies: {}\n'
    )
    ledger.add(project, [DOG])
    folder = tmp_path / "mine"
    shutil.copytree(project / "data" / "generated" / "ddpm_mel", folder)
    families = "ddpm_mel,waveform_unet,diffusion_ae,upsampler"
    options = ["--minutes", "0.02", "--families", families, f"--extra=mine={folder}"]
    command = [sys.executable, "-m", "soundmill", "bakeoff", *SMALL, *options]
    variables = environment(tmp_path, prefect_server)
    quiet = variables | {tracking.SWITCH: "off"}  # one whole pass is recorded
    workspace, results = project / "workspaces" / "bakeoff", project / "data" / "report" / "bakeoff"

    measured = results / "measured" / "ddpm_mel-train.json"
    killed = subprocess.Popen(command, cwd=project, env=quiet, stdout=subprocess.DEVNULL)
    wait_for(lambda: measured.exists() and "generate@ddpm_mel" in (workspace / LOG).read_text(), seconds=400)
    killed.kill()
    killed.wait()
    wait_for(lambda: not locks.holders(workspace), seconds=60)
    before = measured.read_bytes()

    done = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr
    assert measured.read_bytes() == before
    assert ledger.read(workspace / ledger.FILE) == [DOG]
    table = json.loads((results / "table.json").read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert set(rows) == {"ddpm_mel", "waveform_unet", "diffusion_ae", "upsampler", "mine"}
    assert "none at all" in rows["diffusion_ae"]["why_not"]
    assert rows["upsampler"]["why_not"] == "does not generate sound from a request"
    for family in ("ddpm_mel", "waveform_unet"):
        row = rows[family]
        assert row["why_not"] is None
        assert row["scores"]["mmd"]["total"]["low"] < row["scores"]["mmd"]["total"]["high"]
        assert row["seconds_per_second"] > 0
        assert row["peak_memory_bytes"] > 2**27
        (training,) = row["trainings"]
        assert training["minutes"] == pytest.approx(0.02, rel=0.5)
        timed = json.loads((results / "measured" / f"{family}-train.json").read_text())["measured"]["seconds_per_step"]
        took = json.loads((results / "runs" / f"{family}-0" / "run.json").read_text())["took"]
        assert took["training"] <= took["seconds"]
        assert training["minutes"] == pytest.approx(training["steps"] * timed / 60)
        cost = workspace / "data" / ".work" / f"train-{family}" / "cost.json"
        assert cost.exists() == (family == "waveform_unet")  # the other was trained before the kill
        if cost.exists() and training["steps"] > 5 * WARM_UP_STEPS:  # on a busy machine there are fewer, of which no pace is told
            real = json.loads(cost.read_text())
            assert 0.2 < timed / real["seconds_per_step"] < 5  # whose looks are among its steps
        assert json.loads((workspace / f"data/metrics/train/{family}.json").read_text())["steps"] == training["steps"]
    assert rows["mine"]["scores"]["mmd"]["total"]["value"] > 0
    assert {(one["metric"], one["a"], one["b"]) for one in table["differences"]} >= {("mmd", "ddpm_mel", "waveform_unet")}
    assert table["verdict"].startswith("For quality choose ")
    assert done.stdout.rstrip().endswith(table["verdict"])
    assert (results / "figure.png").read_bytes().startswith(b"\x89PNG")
    page = (results / "index.html").read_text()
    assert table["verdict"] in page
    assert page.count("<audio") >= 4 * 4  # real sounds, both families, and mine; codecs besides

    flow_run = ask(prefect_server, "flow_runs/filter", sort="START_TIME_DESC", flows={"name": {"any_": ["bakeoff"]}}, limit=1)[0]
    artifacts = ask(prefect_server, "artifacts/filter", artifacts={"flow_run_id": {"any_": [flow_run["id"]]}})
    assert {"bakeoff", "bakeoff-figure"} <= {artifact["key"] for artifact in artifacts}
    ours = next(run for run in runs(project) if run.info.run_name == "bakeoff")
    assert ours.data.metrics["ddpm_mel.mmd"] == pytest.approx(rows["ddpm_mel"]["scores"]["mmd"]["total"]["value"])

    # What is done is not done again; a time that was removed, as docs/sweeps.md says, is taken again of what DVC has in its cache.
    (results / "measured" / "waveform_unet-train.json").unlink()
    command[command.index(families)] = "ddpm_mel,waveform_unet"
    again = subprocess.run(command, cwd=project, env=quiet, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    first, _ = again.stdout.split("== 2/2: waveform_unet")
    assert "  ran," not in first, again.stdout
    after = {row["name"]: row for row in json.loads((results / "table.json").read_text())["rows"]}
    assert (after["ddpm_mel"], after["mine"]) == (rows["ddpm_mel"], rows["mine"])
    assert after["waveform_unet"]["why_not"] is None
    assert after.keys() == {"ddpm_mel", "waveform_unet", "mine"}
