"""Google's and Azure's buckets through the real stages: the same bytes as from a folder, from an emulator that fails now and then.

Skipped where a package is missing: `pip install -e '.[gs,az]' gcp-storage-emulator` and `npm install --global azurite` bring them.
"""

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import buckets
from tests.buckets import Store, cut, slow, unavailable
from tests.mlflow_server import free_port
from tests.processes import still_open, wait_for
from tests.stages.handling import table
from tests.stages.test_buckets import build, folder

__all__ = ["folder"]

ACCOUNT, KEY = "account", base64.b64encode(buckets.KEY.encode()).decode()


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
    pytest.importorskip("adlfs")
    if not (azurite := shutil.which("azurite-blob")):
        pytest.skip("azurite-blob is not on the PATH")
    port = free_port()
    command = [
        azurite,
        "--silent",
        "--disableTelemetry",
        "--skipApiVersionCheck",
        "--location",
        str(scratch),
        "--blobPort",
        str(port),
    ]
    with emulated(command, port, {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}) as store:
        facts = {
            "DefaultEndpointsProtocol": "http",
            "AccountName": ACCOUNT,
            "AccountKey": KEY,
            "BlobEndpoint": f"{store.url}/{ACCOUNT}",
        }
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", ";".join(f"{name}={value}" for name, value in facts.items()))
        yield store


@pytest.mark.parametrize(("scheme", "emulator"), [("gs", google), ("az", azure)])
def test_a_bucket_gives_the_bytes_of_a_folder_whatever_the_server_does(
    project, folder, tmp_path_factory, monkeypatch, scheme, emulator
):
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
