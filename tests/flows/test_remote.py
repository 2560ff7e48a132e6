"""What one checkout has built and pushed, another pulls: from a real S3 server, and from a folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import checkout, dvc, remote
from soundmill import params, tracking
from soundmill.corpora.buckets import Bucket
from soundmill.errors import UserError
from tests.buckets import ENVIRONMENT, Store, unavailable
from tests.checkouts import HARDEST_NAME
from tests.corpora.tiny import put
from tests.flows.prefect_server import ask, environment
from tests.flows.test_pipeline import pipeline
from tests.flows.tiny import dvc_command, git
from tests.stages.handling import tree

SECRETS = [ENVIRONMENT[name].encode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]


def with_remote(project: Path, url: str) -> Path:
    """Make the bucket or folder the default remote of a project, and commit that."""
    assert dvc_command(project, "remote", "add", "--default", "store", url).returncode == 0
    git(project, "commit", "--quiet", "--all", "--message", "add a remote")
    return project


def clone(project: Path, name: str) -> Path:
    target = project.parent / name
    git(project, "clone", "--quiet", str(project), str(target))
    return target


def results(project: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(project / "data").items() if name.startswith(("first", "generated", "metrics"))}


@pytest.mark.parametrize("tiny", [HARDEST_NAME], indirect=True)
def test_only_the_entries_of_current_stages_are_pushed(tiny: Path, tmp_path: Path, set_param, alone: None, monkeypatch) -> None:
    scan = "  scan: {cmd: mkdir -p data && echo 1 > data/scan, always_changed: true, metrics: [data/scan: {cache: false}]}\n"
    (tiny / "dvc.yaml").write_text((tiny / "dvc.yaml").read_text() + scan)  # DVC's run cache has no stage that always runs
    with_remote(tiny, str(tmp_path / "store"))
    for number in (5, 6):
        set_param("evaluate", number=number)
        assert dvc_command(tiny, "repro").returncode == 0
    assert not remote.is_pushed(tiny)
    told = remote.push(tiny)
    assert remote.is_pushed(tiny)
    assert not (tiny / remote.WORK).exists()
    sizes = [path.stat().st_size for path in (tmp_path / "store/files").rglob("*") if path.is_file()]
    assert (told.remote, told.objects, told.size) == ("store", len(sizes), sum(sizes))
    assert len(list((tiny / ".dvc/cache/runs").glob("*/*/*"))) == 3
    pushed = [params.read_yaml(path) for path in (tmp_path / "store/runs").glob("*/*/*")]
    stages = params.read_yaml(tiny / "dvc.lock")["stages"].values()
    assert sorted(entry["cmd"] for entry in pushed) == sorted(entry["cmd"] for entry in stages if "scan" not in entry["cmd"])
    monkeypatch.setattr(dvc, "config", lambda root: {"core.remote": "store", "remote.store.url": str(tmp_path / "moved")})
    assert not remote.is_pushed(tiny)


def test_without_a_remote_the_remedy_is_named_and_an_unreachable_one_stops_no_build(tiny, bucket, alone, monkeypatch):
    with pytest.raises(UserError, match="dvc remote add -d NAME"):
        remote.push(tiny)
    other = with_remote(clone(tiny, "other"), "s3://bucket/dvc")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    said: list[str] = []
    assert dvc.repro(other, "first", said.append) == "ran"
    assert any(line.startswith("nothing was pulled from the remote store: ") for line in said)


UNPUSHED = """
import sys
from flows import pipeline
pipeline.PUSH_DELAYS[1:] = []
pipeline.push_outputs = pipeline.push_outputs.with_options(retries=1, retry_delay_seconds=0)
sys.exit(pipeline.run_to_end("pipeline", "stages", lambda: pipeline.pipeline(push=True, return_state=True)))
"""


@pytest.mark.slow
def test_a_push_that_fails_for_good_is_told_and_made_up_by_the_next_run(tiny, tmp_path, prefect_server, alone):
    in_the_way = tmp_path / "store"
    in_the_way.write_text("a file where the remote's folder should be")
    with_remote(tiny, str(in_the_way))
    command, variables = [sys.executable, "-c", UNPUSHED], environment(tmp_path, prefect_server)
    done = subprocess.run(command, cwd=tiny, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("; next try in 10 s") == 1
    assert done.stdout.count("Not pushed: ") == 2
    assert "Everything is built; run it again to push it." in done.stdout
    assert "Traceback" not in done.stdout
    in_the_way.unlink()
    done = pipeline(tiny, tmp_path, prefect_server, "--push")
    assert "Pushed   5 objects" in done.stdout


@pytest.mark.slow
def test_a_workspace_of_a_clone_pulls_instead_of_building(tiny: Path, tmp_path: Path, alone: None, capfd) -> None:
    with_remote(tiny, str(tmp_path / "store"))
    made = {}
    for project, push in ((tiny, True), (None, False)):
        project = project or clone(tiny, "fresh")
        document = params.read_yaml(project / "params.yaml") | {"families": {"mine": {}}}
        place = checkout.workspace(project, "mine", document)
        assert checkout.run_pipeline(place, push) == 0
        made[push] = results(place)
    assert capfd.readouterr().out.count("done before: taken from the cache") == 2
    assert made[True] == made[False]
    assert "generated/mine/a.wav" in made[True]


@pytest.mark.slow(minutes=1)
def test_a_flow_pushes_and_other_machines_have_the_same_reports(tiny, tracked, tmp_path, prefect_server, bucket):
    bucket.client.create_bucket(Bucket="team")
    with_remote(tiny, "s3://team/dvc")
    bucket.fail(r"PUT /team/dvc/files", unavailable, times=3)
    done = pipeline(tiny, tmp_path, prefect_server, "--push")
    assert "Pushed   5 objects" in done.stdout
    assert bucket.failures_left() == 0
    (flow_run,) = ask(prefect_server, "flow_runs/filter", sort="START_TIME_DESC", limit=1)
    artifacts = ask(prefect_server, "artifacts/filter", artifacts={"flow_run_id": {"any_": [flow_run["id"]]}})
    (report,) = [artifact for artifact in artifacts if artifact["key"] == "push"]
    assert "| bytes |" in report["data"]

    git(tiny, "add", "dvc.lock", "data/metrics")
    git(tiny, "commit", "--quiet", "--message", "results")
    with_lock = clone(tiny, "with lock")
    assert dvc_command(with_lock, "pull").returncode == 0
    assert results(with_lock) == results(tiny)
    without = clone(tiny, "without lock")
    git(without, "rm", "-r", "--quiet", "dvc.lock", "data/metrics")
    shutil.copy(tiny / "mlflow.db", without / "mlflow.db")
    done = pipeline(without, tmp_path, prefect_server)
    assert done.stdout.count("done before: taken from the cache") == 2, done.stdout + done.stderr
    assert results(without) == results(tiny)

    done = pipeline(tiny, tmp_path, "http://127.0.0.1:9/api", "--push")  # nothing to do, and no server is asked
    assert secrets_in(tiny) == secrets_in(without) == []
    kept = [str(ask(prefect_server, f"{what}/filter", limit=200)) for what in ("logs", "artifacts", "flow_runs", "task_runs")]
    assert all(len(text) > 100 for text in kept)
    assert not any(secret.decode() in text for text in kept for secret in SECRETS)


@pytest.mark.slow(minutes=1)
def test_credentials_are_in_the_environment_only(checkout: Path, tracked: None, tmp_path: Path, bucket: Store) -> None:
    """Parameters, output, MLflow's store and journals, tables and pages of a run over a bucket have no key in them."""
    sounds = put(tmp_path / "sounds", *(f"{label}/{number}.wav" for label in ("dog", "rain") for number in range(4)), seconds=5)
    root = Bucket(bucket.upload(sounds, "recordings", "mine"))
    changes = ["corpus=folder", f"corpus.path={root}", "execution.workers=1", "corpus.shards=2"]
    params.write_yaml(params.compose(checkout / "conf", changes), checkout / "params.yaml")
    bucket.fail(r"GET /recordings/mine/dog/1", unavailable)
    done = dvc_command(checkout, "repro", "quality@default")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "s3://recordings/mine/dog/1.wav: failed 1 of 6 times" in done.stdout + done.stderr
    assert (checkout / "data/quality/default.html").is_file()
    assert tracking.sync(checkout)[0] == 0
    assert (checkout / "mlflow.db").is_file()
    assert secrets_in(checkout) == []
    assert not any(secret in (done.stdout + done.stderr).encode() for secret in SECRETS)


def secrets_in(place: Path) -> list[str]:
    """Files below a directory that contain a credential."""
    found = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(found) > 10
    return [str(path) for path in found if any(secret in path.read_bytes() for secret in SECRETS)]
