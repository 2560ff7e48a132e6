"""Reading back what earlier runs kept."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundmill.errors import UserError
from soundmill.tracking.stores import (
    HTTP,
    QUIET,
    STATE_FOLDER,
    Store,
    store,
    unreachable,
)
from soundmill.tracking.uploader import sync

SYNC_SECONDS = 60.0


@dataclass(frozen=True)
class RecordedState:
    """What a run kept of the project: see `provenance.State`."""

    run_id: str
    name: str
    sha: str
    files: dict[str, bytes] = field(repr=False)  # params.yaml, dvc.lock, uncommitted.diff, not_kept.txt


def read_state(home: Path, run_id: str) -> RecordedState:
    """The state a run was made from; of a stage's run, its pipeline's. `run_id` may be its first characters."""
    sync(home, SYNC_SECONDS)
    client, where = open_client(home)
    run = _find_run(client, where, run_id)
    parent = run.data.tags.get("mlflow.parentRunId") if run.data.tags.get("kind") == "stage" else None
    run = client.get_run(parent) if parent else run
    files = {}
    with tempfile.TemporaryDirectory(prefix="soundmill-state-") as place:  # MLflow would leave one for each file
        for entry in client.list_artifacts(run.info.run_id, STATE_FOLDER):
            files[Path(entry.path).name] = Path(client.download_artifacts(run.info.run_id, entry.path, place)).read_bytes()
    if not files:
        raise UserError(f"run {run.info.run_id} kept no state (its artifacts are gone, or it was made by other means)")
    return RecordedState(run.info.run_id, run.info.run_name, run.data.tags.get("git_sha", "none"), files)


def _find_run(client: Any, where: Store, run_id: str) -> Any:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=10_000)
    matching = [run for run in runs if run.info.run_id == run_id] or [run for run in runs if run.info.run_id.startswith(run_id)]
    if run_id and len(matching) == 1:
        return matching[0]
    top = [run for run in runs if "mlflow.parentRunId" not in run.data.tags][:5]
    known = "".join(f"\n  {run.info.run_id}  {run.info.run_name}" for run in top) or " none yet"
    raise UserError(f"{'no run' if not matching else 'several runs'} {run_id!r} in {where.uri}; the newest:{known}")


def open_client(home: Path) -> tuple[Any, Store]:
    """A client of the store, which is there."""
    where = store(home)
    if where.is_server and (why := unreachable(where.uri)):
        raise UserError(f"tracking server {where.uri} is unreachable ({why}); start it, or unset MLFLOW_TRACKING_URI")
    if where.uri.startswith("sqlite:///") and not Path(where.uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"{where.uri}: no runs are recorded here yet; `make demo` or `dvc repro` records some")
    for key, value in (HTTP | QUIET).items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return MlflowClient(where.uri, where.uri), where
