"""A bucket on loopback: moto's S3 server, as a process of its own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.mlflow_server import free_port
from tests.processes import still_open, wait_for

NAME = "the-team"


@dataclass(frozen=True)
class Bucket:
    url: str
    process: subprocess.Popen[bytes]

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """In the block it takes requests and answers none."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @property
    def environment(self) -> dict[str, str]:
        """For processes that use it."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        import boto3

        place = {"endpoint_url": self.url, "region_name": "us-east-1"}
        return boto3.client("s3", aws_access_key_id="key", aws_secret_access_key="secret", **place)

    def keys(self) -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=NAME)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


@contextmanager
def running() -> Iterator[Bucket]:
    """An empty bucket."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: server.poll() is not None or still_open({port}), 120, 0.5)
        bucket = Bucket(f"http://127.0.0.1:{port}", server)
        bucket.client().create_bucket(Bucket=NAME)
        yield bucket
    finally:
        server.kill()
        server.wait()
