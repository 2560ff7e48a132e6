"""The job script of the docs, on a real Slurm cluster."""

import json
import re
import subprocess
import sys

import pytest

from tests.training import slurm
from tests.training.test_launcher import ROOT, assert_trained_what_one_process_does, free_port

SCRIPT = re.search(
    r"```sh\n(#!/bin/sh\n#SBATCH.*?)```", (ROOT / "docs" / "orchestration.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.slow(minutes=2)
@pytest.mark.skipif(bool(slurm.missing()), reason=f"not installed: {', '.join(slurm.missing())} (Debian: slurm-wlm, munge)")
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
    with slurm.cluster(tmp_path / "slurm", [free_port() for _ in range(3)]) as environment:
        job = ["sbatch", "--wait", "--output=job.log", "--open-mode=append", "train.sh"]
        done = subprocess.run(job, cwd=project, env=environment, capture_output=True, text=True, timeout=1500)
    log = (project / "job.log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "train/doubling: machines: 2, processes: 2" in log
    assert "joins train/doubling at" in log
    assert_trained_what_one_process_does(project, tmp_path / "alone")
