"""The job script of the docs, on a real Slurm cluster of two nodes here, without root's services: munge and three daemons."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import wait_for
from tests.training.test_launcher import ROOT, assert_trained_what_one_process_does, free_port

MISSING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if shutil.which(name) is None]  # programs of Slurm


def settings(directory: Path, ports: list[int]) -> str:
    host, (controller, *nodes) = socket.gethostname(), ports
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={controller}",
        f"SlurmUser={os.environ.get('USER', 'root')}",
        f"AuthInfo=socket={directory}/munge",
        f"StateSaveLocation={directory}/state",
        f"SlurmdSpoolDir={directory}/spool-%n",
        f"SlurmctldPidFile={directory}/controller.pid",
        f"SlurmdPidFile={directory}/%n.pid",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "ReturnToService=2",
        *(f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}" for number, port in enumerate(nodes, 1)),
        "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
    ]
    return "\n".join([*lines, ""])


@contextmanager
def cluster(directory: Path, ports: list[int]):
    """The environment in which `sbatch` uses the cluster; `ports` are the controller's and those of two nodes."""
    for name in ("state", "spool-n1", "spool-n2"):
        (directory / name).mkdir(parents=True)
    key = directory / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    (directory / "slurm.conf").write_text(settings(directory, ports))
    environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}
    munge = [f"--{name}={directory / file}" for name, file in (("socket", "munge"), ("pid-file", "pid"), ("log-file", "munge.log"))]
    munge += [f"--key-file={key}", f"--seed-file={directory / 'seed'}"]
    log = (directory / "log").open("wb")
    daemons = []

    def start(*command: str) -> None:
        daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    try:
        start("munged", "--foreground", "--force", *munge)
        wait_for((directory / "munge").exists, 30, 0.1)
        start("slurmctld", "-D")
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node)
        idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        wait_for(lambda: subprocess.run(idle, env=environment, capture_output=True, text=True).stdout.strip() == "2", 60, 0.5)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait()


SCRIPT = re.search(
    r"```sh\n(#!/bin/sh\n#SBATCH.*?)```", (ROOT / "docs" / "orchestration.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.slow(minutes=2)
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (Debian: slurm-wlm, munge)")
def test_the_job_script_of_the_docs_trains_on_two_nodes(tmp_path):
    project, port = tmp_path / "project", free_port()
    hardware = {"devices": 1, "nodes": 2, "min_nodes": 2, "port": port, "listen": "0.0.0.0"}
    programs = {  # a training, as a stage of `dvc repro` would run it
        "dvc": ["-m", "tests.training.doubling", str(project), json.dumps({"hardware": hardware})],
        "soundmill": ["-m", "soundmill"],
    }
    (project / ".venv" / "bin").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        (project / name).touch()
    for name, arguments in programs.items():
        quoted = " ".join(f"'{argument}'" for argument in [sys.executable, *arguments])
        path = project / ".venv" / "bin" / name
        given = '"$@"' if name == "soundmill" else ""
        path.write_text(f"#!/bin/sh\nexport OMP_NUM_THREADS=1 PYTHONPATH='{ROOT}' TMPDIR='{tmp_path}'\nexec {quoted} {given}\n")
        path.chmod(0o755)
    # No GPUs here; the port is a free one.
    text = SCRIPT[1].replace("#SBATCH --gpus-per-node=8\n", "").replace("29400", str(port))
    (project / "train.sh").write_text(text)
    with cluster(tmp_path / "slurm", [free_port() for _ in range(3)]) as environment:
        job = ["sbatch", "--wait", "--output=job.log", "--open-mode=append", "train.sh"]
        done = subprocess.run(job, cwd=project, env=environment, capture_output=True, text=True, timeout=1500)
    log = (project / "job.log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "train/doubling: machines: 2, processes: 2" in log
    assert "joins train/doubling at" in log
    assert_trained_what_one_process_does(project, tmp_path / "alone")
