"""Registered models as lineage reads them: the run of each, its files, and the tag that marks one."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import scores
from soundmill import attribution, hashing, lineage, manifest, shards, tracking
from soundmill.errors import UserError
from soundmill.forgetting import listing
from soundmill.publishing import model as publishing
from soundmill.tracking import history, mlflow_runs, stores
from tests.commands.running import soundmill, works
from tests.listening.test_answers import answered, make_key, write
from tests.tracking.reading import client, files, runs, text

HEARD = {"clip_id": "dog_5", "recording_id": "dog", "source": "dog.wav", "start": 5.0, "seconds": 5.0, "digest": "d"}
LIKED = {"tiny": 4, "other": 3, "real": 5, "bad": 1}


def register(home: Path, bring: Callable[[Path], None]) -> Path:
    """A project that has registered a model; returns its checkpoint."""
    directory = home / "data/models/tiny"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"family": "tiny", "params": {"steps": 3}}')
    shards.write_rows([{**HEARD, "earlier": False}], directory / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON)
    with tracking.stage_run(home, "train/tiny", {}, family="tiny") as run:
        run.log_model(directory, "tiny", {"label": ["dog"], "seed": [1]}, np.zeros((1, 80), np.float32))
        for name in ("dog_5-codec.wav", "another.wav"):
            (home / name).touch()
            run.log_file(home / name, "listen")
    bring(home)
    return directory


def test_a_registered_model_is_found_when_data_is_gone(home: Path, bring: Callable[[Path], None]) -> None:
    directory = register(home, bring)
    traces = listing.Traces.of([], [], ["dog_5"])  # a server lists files by the same calls
    (sentence,), note = listing.on_server(home, "http://server", traces)
    assert sentence.startswith("http://server, run train/tiny (")
    assert "listen/dog_5-codec.wav: a sound named after a clip of it" in sentence
    assert "were searched for sounds only, by name" in note
    (model,) = tracking.registered_models(home)
    assert (model.name, model.version, model.aliases, model.run_name) == ("soundmill-tiny", "1", ("newest",), "train/tiny")
    assert model.directory
    assert hashing.model_digest(model.directory) == model.digest == hashing.model_digest(directory)

    found = lineage.trace(home, "recording:dog")
    (checkpoint,) = found.made_from_it
    assert (checkpoint.name, checkpoint.facts["clips_of_it"]) == ("data/models/tiny", 1)
    training = {node.kind: node for node in checkpoint.below}["training"]
    assert (training.facts["run"], training.facts["commit"]) == (model.run_id, model.commit)

    shutil.rmtree(home / "data")
    (registered,) = lineage.trace(home, "clip:dog_5").made_from_it
    assert registered.name == "soundmill-tiny version 1"
    assert lineage.trace(home, "dog.wav").thing.facts["gone"]

    tracking.mark_forgotten(home, [model], add=["dog: its owner asks for it"])
    (model,) = tracking.registered_models(home)
    assert model.tags[tracking.FORGOTTEN] == "dog: its owner asks for it"
    (registered,) = lineage.trace(home, "recording:dog").made_from_it
    assert {node.kind: node for node in registered.below}["registered"].facts["forgotten"] == "dog: its owner asks for it"

    tracking.mark_forgotten(home, [model], add=["cat: so does hers"])
    (model,) = tracking.registered_models(home)
    assert model.tags[tracking.FORGOTTEN].splitlines() == ["dog: its owner asks for it", "cat: so does hers"]
    tracking.mark_forgotten(home, [model], remove=["dog: its owner asks for it"])
    (model,) = tracking.registered_models(home)
    assert model.tags[tracking.FORGOTTEN] == "cat: so does hers"
    tracking.mark_forgotten(home, [model], remove=["cat: so does hers"])
    (model,) = tracking.registered_models(home)
    assert tracking.FORGOTTEN not in model.tags


def first_line(home: Path, *arguments: str) -> str:
    done = works(*arguments, "--project", str(home), cwd=home)
    return done.stdout.partition("\n")[0]


@pytest.mark.parametrize(
    "command", [("experiments",), ("lineage", "recording:dog"), ("forget", "recording:dog", "--reason", "asked")]
)
def test_models_are_found_where_they_were_recorded_in_a_shell_that_does_not_say_where(command, home, bring, monkeypatch):
    (home / "mlflow.db").rename(home.parent / "elsewhere.db")
    elsewhere = f"sqlite:///{home.parent}/elsewhere.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    register(home, bring)
    shutil.rmtree(home / "data" / "models")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert first_line(home, *command) == f"MLflow: searching {elsewhere}, where runs were last recorded"
    (model,) = tracking.registered_models(home)  # the command has set it, for the processes that it starts too
    assert (tracking.FORGOTTEN in model.tags) == (command[0] == "forget")


def test_an_empty_store_and_one_beside_another_are_named_first(home, bring, mlflow_tables, monkeypatch):
    shutil.copy(mlflow_tables, home.parent / "elsewhere.db")
    own, elsewhere = tracking.store(home).uri, f"sqlite:///{home.parent}/elsewhere.db"
    lineage_of = ("lineage", "recording:dog")
    assert tracking.use_last_store(home) == f"MLflow: {own} has no runs; set MLFLOW_TRACKING_URI to use another store"
    register(home, bring)
    assert first_line(home, *lineage_of).startswith("recording dog")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    with tracking.stage_run(home, "segment", {}):
        pass
    bring(home)
    assert first_line(home, *lineage_of) == f"MLflow: searching {elsewhere}, which MLFLOW_TRACKING_URI names"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with tracking.stage_run(home, "segment", {}):
        pass
    bring(home)
    assert first_line(home, *lineage_of) == (
        f"MLflow: searching {own}, where runs were last recorded; "
        f"not {elsewhere}, where runs were also recorded (MLFLOW_TRACKING_URI={elsewhere})"
    )


def test_no_password_of_a_server_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1/mlflow")
    stores.remember(home)
    stores.remember(home)
    assert (home / "mlflow.db.state" / stores.RECORDED_IN).read_text() == "http://me@127.0.0.1:1/mlflow\n"


def test_versions_are_tagged_with_the_terms_of_their_training_material(home: Path, bring: Callable[[Path], None]) -> None:
    directory = register(home, bring)
    row = {"recording_id": "dog", "licence": "CC-BY-4.0", "creator": "Ann", "ai_terms": "refused"}
    table = pa.Table.from_pylist([row], manifest.RECORDINGS)
    (home / "data/corpus").mkdir()
    pq.write_table(table, home / "data/corpus/recordings.parquet")
    found = attribution.credits_of(directory, home / "data/corpus/recordings.parquet")
    tables = home / "data/attribution/tiny"
    attribution.write(found, tables / manifest.ATTRIBUTION)
    (tables / "summary.json").write_text(json.dumps(attribution.summary(found)))
    with tracking.pipeline_run(home, "pipeline") as run:
        with tracking.stage_run(home, "attribution/tiny", {}, family="tiny") as stage:
            digest = hashing.model_digest(directory)
            stage.log_model_attribution(digest, "tiny", tables / manifest.ATTRIBUTION, attribution.tags(found))
        scores.record(run, home, {"tiny": {"baselines": {}, "embedders": {}}})
    bring(home)
    (model,) = tracking.registered_models(home)
    hours = {"licences": "CC-BY-4.0 0.00 h", "ai_terms": "refused 0.00 h"}
    assert {key: model.tags[key] for key in (*hours, "training_material")} == hours | {"training_material": "refused"}
    recorded = runs(home)
    assert recorded["pipeline"].data.tags["training_material"] == "refused"
    credit = "dog.wav,Ann,CC-BY-4.0,refused,,1,5.0,0,model"
    assert text(home, recorded["pipeline"].info.run_id, "attribution/tiny.csv").splitlines()[1] == credit
    assert text(home, recorded["attribution/tiny"].info.run_id, manifest.ATTRIBUTION).splitlines()[1] == credit
    shutil.rmtree(home / "data")
    assert attribution.credits_of(model.directory, None) == found  # a registered model has its table


def test_a_card_has_the_ratings_of_the_same_weights(home: Path, bring: Callable[[Path], None]) -> None:
    checkpoint = register(home, bring)
    assert publishing._listening(home, checkpoint) == {}
    values = {"mos_quality": 3.5, "mos_quality_low": 3.25, "mos_quality_high": 3.75}
    with tracking.result_run(home, "tiny", "listening-test", {}) as run:
        run.log_model_scores(hashing.model_digest(checkpoint), "tiny", {**values, "fad_yamnet": 2.0})
    bring(home)
    assert publishing._listening(home, checkpoint) == values
    (checkpoint / "config.json").write_text("{}")
    assert publishing._listening(home, checkpoint) == {}
    (home / "mlflow.db").unlink()
    assert publishing._listening(home, checkpoint) is None


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_files_of_runs_are_found_after_the_project_moved_or_was_copied(home, bring, tmp_path, monkeypatch, how):
    register(home, bring)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow has set in this process
    run_id = runs(home)["train/tiny"].info.run_id
    how(home, there := tmp_path / "other place%41?")
    if how is shutil.copytree:  # what the copy shows is its own
        shutil.rmtree(home / "mlartifacts")
    assert tracking.read_state(there, run_id).files["params.yaml"] == (there / "params.yaml").read_bytes()
    (model,) = tracking.registered_models(there)
    assert model.directory
    assert model.directory.is_relative_to(there)
    assert text(there, run_id, "listen/another.wav") == ""
    client(there).delete_run(run_id)  # in MLflow's page: its files stay
    assert Path("listen/another.wav") in dict(map(reversed, tracking.files_of_runs(there)))
    client(there).restore_run(run_id)
    with tracking.stage_run(there, "later", {}) as run:
        run.log_file(there / "params.yaml")
    bring(there)
    later = runs(there)["later"].info
    assert (later.experiment_id, text(there, later.run_id, "params.yaml")) == (
        runs(there)["train/tiny"].info.experiment_id,
        (there / "params.yaml").read_text(),
    )


def test_a_database_alone_that_was_copied_leaves_the_files_where_they_are(home, bring, tmp_path, monkeypatch):
    register(home, bring)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (copy := tmp_path / "copy").mkdir()
    shutil.copy(home / "mlflow.db", copy)
    (copy / "mlartifacts").mkdir()
    assert tracking.read_state(copy, runs(home)["train/tiny"].info.run_id).files


def test_a_deleted_experiment_is_restored_in_one_line(home: Path, bring, capfd: pytest.CaptureFixture) -> None:
    with tracking.stage_run(home, "before", {}):
        pass
    bring(home)
    mlflow = client(home)
    mlflow.delete_experiment(mlflow.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)
    with tracking.stage_run(home, "after", {}):
        pass
    bring(home)  # the uploader restores it
    assert {"before", "after"} <= set(runs(home))
    mlflow.delete_experiment(mlflow.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)
    capfd.readouterr()
    assert tracking.scores_page(home, 5000).startswith("http://127.0.0.1:5000/#/experiments/")
    assert capfd.readouterr().err.count("\n") == 1
    assert "before" in {run.name for run in history.last_scores(home).values()} | set(runs(home))


def test_a_database_of_a_newer_mlflow_is_named(home: Path, bring) -> None:
    with tracking.stage_run(home, "before", {}):
        pass
    bring(home)
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.execute("UPDATE experiment_tags SET value = '99.1.0' WHERE key = 'soundmill.mlflow'")
    with pytest.raises(UserError, match=rf"mlflow.db: written by MLflow 99.1.0, and {metadata.version('mlflow')} is"):
        tracking.scores_page(home, 5000)
    assert "written by MLflow 99.1.0" in soundmill("sync", "--project", str(home), cwd=home).stderr
    (home / "mlflow.db").write_text("no database")
    with pytest.raises(UserError, match="no database of MLflow"):
        tracking.scores_page(home, 5000)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("sqlite:////nonexistent/dir/x.db", "/nonexistent/dir does not exist"),
        ("file:///tmp/mlruns", "file:///tmp/mlruns: MLflow keeps runs neither in a directory of files"),
        ("mlruns", "mlruns: MLflow keeps runs neither in a directory of files"),
        ("sqlite:///.", ": MLflow keeps runs neither in a directory of files"),
        ("sqlite://", "sqlite://: MLflow keeps runs neither in a directory of files nor in memory"),
        ("nonsense://x", "nonsense://x refuses to be read: UnsupportedModelRegistryStoreURIException"),
        ("sqlite:///other.db", "other.db: no database of MLflow (it has the tables of another program); move it away"),
        ("sqlite:///damaged.db", "damaged.db: no database of MLflow (file is not a database); move it away"),
        ("sqlite:///locked.db", "locked.db: database is locked; wait for what uses it"),
    ],
)
def test_a_store_that_cannot_be_is_not_said_to_have_all_runs(home, monkeypatch, uri, why):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(mlflow_runs, "LOCKED_SECONDS", 0.1)
    (home / "damaged.db").write_bytes(b"\xff" * 5000)
    with closing(sqlite3.connect(home / "other.db")) as other:
        other.executescript("CREATE TABLE alembic_version (version_num)")
    with closing(sqlite3.connect(home / "locked.db")) as other:
        other.executescript("CREATE TABLE one (two); BEGIN EXCLUSIVE")
        works, said = tracking.status(home)
    assert (works, why in said) == (False, True), said


def test_a_listening_test_stands_beside_the_scores(home: Path, bring: Callable[[Path], None]) -> None:
    facts = {"tiny": {"family": "tiny", "weights": "abc", "scores": {"fad_x": 2.5}}, "other": {"scores": {"fad_x": 7.0}}}
    key = make_key(["tiny", "other"], 3, **facts)
    (home / "listening-test").mkdir()
    write(home / "listening-test" / "key.json", key.model_dump(mode="json"))
    for rater in (1, 2):
        write(home / f"{rater}.json", answered(key, rater, lambda question, systems, *_: LIKED[systems[0]]))
    done = works("listening-test", "score", "1.json", "2.json", cwd=home)
    assert "recorded in MLflow: listening test 0123456789ab" in done.stdout
    bring(home)
    found = runs(home)
    whole, tiny, other = (found[f"{name}listening test {key.test}"] for name in ("", "tiny · ", "other · "))
    assert (whole.data.metrics["counts.passed"], whole.data.metrics["questions.quality.agreement"]) == (2, 1)
    assert {run.data.tags["mlflow.parentRunId"] for run in (tiny, other)} == {whole.info.run_id}
    assert {run.data.tags["kind"] for run in (whole, tiny, other)} == {"listening-test"}
    assert tiny.data.metrics == {"fad_x": 2.5, "mos_quality": 4.0, "mos_quality_low": 4.0, "mos_quality_high": 4.0}
    assert (other.data.metrics["mos_quality"], other.data.tags["family"]) == (3.0, "other")
    assert "metrics.json" in files(home, whole.info.run_id)
    kept = json.loads(text(home, whole.info.run_id, "metrics.json"))
    assert kept["raters"] == {"passed": [1, 2], "failed": {}}


def test_with_tracking_off_nothing_is_said_of_it(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("SOUNDMILL_TRACKING", "off")
    key = make_key(["tiny"], 3)
    write(home / "key.json", key.model_dump(mode="json"))
    write(home / "1.json", answered(key, 1, lambda question, systems, *_: LIKED[systems[0]]))
    done = works("listening-test", "score", "1.json", "--key", "key.json", cwd=home)
    assert "MLflow" not in done.stdout
    assert "One rater passed" in done.stdout
