"""From a bucket to clips through the real stages: the same bytes as from a folder, whatever the server does."""

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from soundmill.corpora.buckets import fetch_ahead
from soundmill.decoding.ffmpeg import ffmpeg_executable
from stages import segment
from tests import buckets
from tests.buckets import Store, cut, slow, unavailable
from tests.corpora.tiny import put, sound, write
from tests.mlflow_server import free_port
from tests.prepared import PLAN
from tests.processes import still_open, wait_for
from tests.stages.handling import PLANNED, cut_clips, external, failure, scanned, settle, table, tree

VARIANT = {"default": {**PLAN, "clip_seconds": 1.0, "min_seconds": 0.1}}
RECORDING = r"GET /[^ ?]+\.(wav|flac|m4a)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings for libsndfile and for ffmpeg, a damaged one, captions beside them, and a table with recordings inside."""
    root = put(tmp_path / "sounds", *(f"{kind}/{number}.{kind}" for kind in ("wav", "flac") for number in range(6)), seconds=1.5)
    for number in range(3):
        write(root, f"m4a/{number}.wav", sound(20 + number, seconds=1.5))
        source, target = root / f"m4a/{number}.wav", root / f"m4a/{number}.m4a"
        subprocess.run([ffmpeg_executable(), "-loglevel", "error", "-i", source, "-c:a", "aac", target], check=True)
        source.unlink()
    write(root, "wav/broken.wav", sound(3)[:300])
    write(root, "wav/1.txt", "the second tone")
    return root


def build(project: Path, path: str, workers: int = 1) -> dict[str, bytes]:
    """Scan, plan and cut the corpus at `path`; returns the outputs and metrics, by name."""
    settle(project, workers=workers, corpus=external(path), clips=VARIANT)
    scanned()
    cut_clips()
    return tree(project / "data/clips") | {
        name: (project / "data" / name).read_bytes()
        for name in ("corpus/recordings.parquet", "corpus/captions.parquet", "segments.parquet", "metrics/scan.json")
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bucket_gives_the_bytes_of_a_folder_whatever_the_server_does(project, folder, bucket: Store, workers):
    expected = build(project, str(folder))
    quarantined = table("data/quarantine/segment.parquet")
    assert [row["path"] for row in quarantined] == ["wav/broken.wav"]
    shutil.rmtree(project / "data")
    url = bucket.upload(folder, f"whole-{workers}", "some/where")
    for fault in (unavailable, cut, slow):
        bucket.fail(RECORDING, fault, times=4)
    actual = build(project, url, workers)
    assert actual == expected
    assert table("data/quarantine/segment.parquet") == quarantined
    assert bucket.failures_left() == 0
    assert not list(project.rglob("objects-*"))


@pytest.mark.parametrize("change", ["other", "gone"])
def test_an_object_that_changed_since_the_scan_is_named(project, folder, bucket, capsys, change):
    url = bucket.upload(folder, f"changed-{change}")
    settle(project, corpus=external(url), clips=VARIANT)
    scanned()
    if change == "other":
        bucket.put("changed-other", "wav/2.wav", sound(9))
    else:
        bucket.client.delete_object(Bucket="changed-gone", Key="wav/2.wav")
    message = failure(capsys, segment, *PLANNED, section="clips")
    assert f"{url}/wav/2.wav: the file has changed since the corpus was scanned" in message
    metrics = scanned()
    assert metrics["recordings"] == (16 if change == "other" else 15)
    cut_clips()


def test_a_stage_whose_server_stays_away_fails_with_the_objects_name_and_continues_later(project, folder, bucket, capsys):
    url = bucket.upload(folder, "away-for-a-while")
    settle(project, corpus=external(url), clips=VARIANT)
    scanned()
    bucket.fail(r"GET /[^ ?]+/flac/3\.flac", unavailable, times=1000)
    message = failure(capsys, segment, *PLANNED, section="clips")
    assert f"{url}/flac/3.flac: failed 6 times, lastly: " in message
    bucket.forget()
    cut_clips()
    assert {row["source"] for row in table("data/segments.parquet")} >= {"flac/3.flac", "m4a/0.m4a"}


def test_only_some_objects_are_on_disk_at_once(tmp_path, folder, bucket, monkeypatch):
    monkeypatch.setattr("soundmill.corpora.buckets.AHEAD", 3)
    url = bucket.upload(folder, "few").encode()
    most = 0
    for copied in fetch_ahead([url + f"/{kind}/{n}.{kind}".encode() for kind in ("wav", "flac") for n in range(6)], tmp_path):
        path = copied()
        most = max(most, sum(len(list(place.iterdir())) for place in tmp_path.glob("objects-*")))
        path.unlink()
    assert 0 < most <= 4
    assert not list(tmp_path.glob("objects-*"))


@contextmanager
def emulated(command: list[str], port: int, environment: dict[str, str]) -> Iterator[Store]:
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: still_open({port}), seconds=60)
        with buckets.behind_proxy(f"127.0.0.1:{port}") as store:
            yield store
    finally:
        process.terminate()
        process.wait()


@contextmanager
def google(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for package in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(package)
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    with emulated(command, port, {}) as store:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.url)
        yield store


@contextmanager
def azure(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    account, key = "account", base64.b64encode(buckets.KEY.encode()).decode()
    pytest.importorskip("adlfs")
    if not (azurite := shutil.which("azurite-blob")):
        pytest.skip("azurite-blob is not on the PATH")
    port = free_port()
    silent = ("--silent", "--disableTelemetry", "--skipApiVersionCheck")
    command = [azurite, *silent, "--location", str(scratch), "--blobPort", str(port)]
    with emulated(command, port, {"AZURITE_ACCOUNTS": f"{account}:{key}"}) as store:
        endpoint = f"DefaultEndpointsProtocol=http;BlobEndpoint={store.url}/{account}"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"{endpoint};AccountName={account};AccountKey={key}")
        yield store


@pytest.mark.parametrize(("scheme", "emulator"), [("gs", google), ("az", azure)])
def test_so_do_googles_and_azures(project, folder, tmp_path_factory, monkeypatch, scheme, emulator):
    """Skipped where a package is missing: `pip install -e '.[gs,az]' gcp-storage-emulator`, `npm install --global azurite`."""
    monkeypatch.setattr("soundmill.corpora.buckets.FIRST_PAUSE", 0.01)
    with emulator(tmp_path_factory.mktemp(scheme), monkeypatch) as store:
        import fsspec

        expected = build(project, str(folder))
        shutil.rmtree(project / "data")
        files = fsspec.filesystem(scheme)
        files.mkdir("sounds")
        files.put(str(folder), "sounds/some/where", recursive=True)
        for fault in (unavailable, cut, slow):
            store.fail(r"GET /.*\.(wav|flac|m4a)", fault, times=4)
        assert build(project, f"{scheme}://sounds/some/where", workers=2) == expected
        assert [row["path"] for row in table("data/quarantine/segment.parquet")] == ["wav/broken.wav"]
        assert store.failures_left() == 0
        assert not list(project.rglob("objects-*"))
