"""A real Slurm cluster of two nodes on this machine, without root's services: munge, a controller and two node daemons."""

import os
import secrets
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

from tests.processes import wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")


def missing() -> list[str]:
    """Programs of Slurm that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


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
