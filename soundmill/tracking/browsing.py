"""The first page of the browser: MLflow's list of runs, with scores as columns and the best first.

MLflow stores such a view as a tag of the experiment, in an undocumented format (3.15); only this module writes it, and
tests/tracking/test_browsing.py opens it.
"""

import json
import time
from pathlib import Path

from soundmill.tracking.history import MOST_RUNS, SCORES, open_client
from soundmill.tracking.mlflow_runs import EXPERIMENT_NOTE, NOTE, rank_by
from soundmill.tracking.stores import experiment, store

VIEW = "soundmill-scores"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
TRAINING = "workflowType=machine_learning"  # otherwise MLflow also shows its pages for chats
ORDER = ("fad", "mmd", "kl", "label", "mos", "preference")


def scores_page(home: Path, port: int) -> str:
    """Address of the list of runs by score; also writes this view, and a link to the best report above it.

    Without recorded runs, the address of MLflow.
    """
    where = store(home)
    base = where.shown if where.is_server else f"http://127.0.0.1:{port}"
    if where.database and not where.database.exists():
        return base
    client, _ = open_client(home)
    existing = client.get_experiment_by_name(experiment())
    if not existing:
        return base
    runs = client.search_runs([existing.experiment_id], max_results=MOST_RUNS)
    names = {name for run in runs for name in run.data.metrics if SCORES.fullmatch(name)}
    scores = sorted(names, key=lambda name: (ORDER.index(name.partition("_")[0]), name))
    first = rank_by(client, existing, scores)
    client.set_experiment_tag(existing.experiment_id, VIEW_TAG, view(first, scores))
    scored = [run for run in runs if run.data.tags.get("kind") == "pipeline" and first in run.data.metrics]
    if scored and EXPERIMENT_NOTE in existing.tags.get(NOTE, EXPERIMENT_NOTE):  # a note that the user wrote stays
        best = min(scored, key=lambda run: run.data.metrics[first])
        family = best.data.tags["family"].partition(" ")[0]
        run = f"#/experiments/{existing.experiment_id}/runs/{best.info.run_id}"
        report = f"{run}/artifacts/{family}.html?{TRAINING}"
        line = f"Best {first}, {best.data.metrics[first]:.3g}: [report of {best.info.run_name}]({report}). {EXPERIMENT_NOTE}"
        client.set_experiment_tag(existing.experiment_id, NOTE, line)
    return f"{base}/#/experiments/{existing.experiment_id}/runs?viewStateShareKey={VIEW}&{TRAINING}"


def view(first: str | None, scores: list[str]) -> str:
    """The tag's value: columns and order of the list of runs."""
    columns = [
        *(f"tags.`{name}`" for name in ("family", "corpus")),
        *(f"metrics.`{name}`" for name in sorted(scores, key=lambda name: name != first)),
        "attributes.`Duration`",
        "tags.`commit`",
        "attributes.`Created`",
    ]
    state = {
        "searchFilter": "tags.kind != 'stage'",  # MLflow nests stages below their pipeline only in a list by date
        "orderByKey": f"metrics.`{first}`" if first else "attributes.start_time",
        "orderByAsc": bool(first),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": columns,
        "viewMaximized": True,
    }
    now = time.time_ns() // 1_000_000
    return json.dumps({"name": "Scores, best first", "createdAt": now, "updatedAt": now, "state": json.dumps(state)})
