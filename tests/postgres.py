"""A private PostgreSQL on loopback, with Debian's binaries, that a test may kill and start again with the same data."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mlflow_server import free_port

USER, PASSWORD = "soundmill", "a secret/of:the@team"  # in an address it has to be quoted
START_SECONDS = 120.0


def binaries() -> Path:
    """The directory of `initdb` and `postgres`; skips the test without them."""
    found = [Path(one).parent for one in [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))] if one]
    if not found:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    return found[-1]


class Postgres:
    """Its data lie in `folder`, which is its user's: PostgreSQL refuses to run as root."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.binaries = folder, free_port(), binaries()
        self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        self._process: subprocess.Popen[bytes] | None = None
        if self._as_user:
            shutil.chown(folder, "postgres", "postgres")
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={password}", "--encoding=UTF8", "--no-sync"]
        command = [*self._as_user, self.binaries / "initdb", f"--pgdata={folder / 'data'}", *options]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    def start(self) -> None:
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", "fsync=off"]
        command = [self.binaries / "postgres", "-D", self.folder / "data", *(part for one in settings for part in ("-c", one))]
        killed_with_us = ["setpriv", "--pdeathsig=KILL", *self._as_user[1:]]
        deadline = time.monotonic() + START_SECONDS
        while self._process is None or self.run("pg_isready", "--quiet", check=False).returncode:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            if self._process is None or self._process.poll() is not None:  # processes of a killed one still hold its memory
                with (self.folder / "log").open("ab") as log:
                    self._process = subprocess.Popen([*killed_with_us, *command], cwd=self.folder, stdout=log, stderr=log)
            time.sleep(0.2)

    def kill(self) -> None:
        """`kill -9` of the server; the processes that it started notice, and end."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def run(self, program: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """One of PostgreSQL's programs, connected to this server."""
        place = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER, "PGPASSWORD": PASSWORD}
        command = [self.binaries / program, *arguments]
        return subprocess.run(command, env={**os.environ, **place}, check=check, capture_output=True)

    def url(self, database: str, driver: str = "postgresql") -> str:
        """The address of a database for SQLAlchemy."""
        from urllib.parse import quote

        return f"{driver}://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"


@contextmanager
def running() -> Iterator[Postgres]:
    """A new, empty server. Its folder is outside pytest's, which only their owner may enter."""
    binaries()
    with tempfile.TemporaryDirectory(prefix="soundmill-postgres-", dir="/tmp") as folder:
        server = Postgres(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.kill()
