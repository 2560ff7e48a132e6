"""What came out of every run, in MLflow; the only package that imports mlflow.

A stage never waits for tracking and never fails of it: a second process (recorder.py) talks to MLflow, and the stage only hands
it lines of JSON and links to files. It also ends the run as KILLED when the stage dies without a word. Runs whose both processes
died, or could not reach MLflow at the end, are closed by the next one: every process holds a lock on a note of its own for as long
as it lives, and the note goes when the run is recorded to its end. What was lost is named in its parent's tag `incomplete`.
"""

from soundmill.tracking.history import RecordedState, read_state
from soundmill.tracking.runs import PipelineRun, StageRun, metrics_name, pipeline_run, stage_run
from soundmill.tracking.serving import serve
from soundmill.tracking.stores import (
    EXPERIMENT,
    HTTP,
    PARENT,
    QUIET,
    SWITCH,
    WORKSPACES,
    Store,
    browser_command,
    flatten,
    numbers,
    status,
    store,
)

__all__ = [
    "EXPERIMENT",
    "HTTP",
    "PARENT",
    "QUIET",
    "SWITCH",
    "WORKSPACES",
    "PipelineRun",
    "RecordedState",
    "StageRun",
    "Store",
    "browser_command",
    "flatten",
    "metrics_name",
    "numbers",
    "pipeline_run",
    "read_state",
    "serve",
    "stage_run",
    "status",
    "store",
]
