"""Whether this machine may record in the tracking server: what `soundmill doctor` tries."""

import secrets
import tempfile
from pathlib import Path

from soundmill.errors import UserError, reason
from soundmill.tracking.history import LOGIN, open_client
from soundmill.tracking.stores import experiment


def check_writing(home: Path) -> str:
    """Write, read and delete a tag and a small file in the experiment of the project's runs; returns where files go.

    The experiment is created if missing, as by the first run. UserError says what failed, and the remedy.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from soundmill.tracking.mlflow_runs import Runs

    client, where = open_client(home)
    name, content = f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(1000)
    try:
        experiment_id = Runs(where).experiment(experiment())
        client.set_experiment_tag(experiment_id, name, "may write")
        client.delete_experiment_tag(experiment_id, name)
    except Exception as error:  # of MLflow, its server or the network
        raise UserError(f"runs cannot be recorded in {where.shown}: {reason(error)}; {LOGIN}") from None
    place = client.get_experiment(experiment_id).artifact_location
    try:
        files = get_artifact_repository(place, tracking_uri=where.uri)
        with tempfile.TemporaryDirectory(prefix="soundmill-doctor-") as folder:
            (sent := Path(folder) / name).write_bytes(content)
            files.log_artifact(str(sent))
            received = Path(files.download_artifacts(name, tempfile.mkdtemp(dir=folder))).read_bytes()
        files.delete_artifacts(name)
    except Exception as error:
        remedy = "check the server's bucket, its free space, and the server's credentials for it (docs/team.md)"
        raise UserError(f"files of runs cannot be stored in {place}: {reason(error)}; {remedy}") from None
    if received != content:
        raise UserError(f"a file stored in {place} came back with other bytes: check the server's bucket (docs/team.md)")
    return place
