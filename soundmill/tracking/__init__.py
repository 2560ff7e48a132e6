"""Recording runs in MLflow; the only package that imports mlflow.

A stage never waits for MLflow and never fails because of it: it appends events to a journal on disk (journal.py), and a second
process, the uploader, sends the journals of a store to MLflow, in order and exactly once, as soon as MLflow answers. If the process
of a run dies, the run ends as KILLED; a parent ends after all runs below it.
"""

from soundmill.tracking.browsing import scores_page
from soundmill.tracking.history import (
    RecordedState,
    ScoredRun,
    check_writing,
    files_of_runs,
    last_scores,
    read_state,
    use_last_store,
)
from soundmill.tracking.loopback import never_proxied
from soundmill.tracking.registered import FORGOTTEN, RegisteredModel, delete_versions, mark_forgotten, registered_models, serve
from soundmill.tracking.runs import (
    PipelineRun,
    StageRun,
    corpus_name,
    metrics_name,
    pipeline_run,
    result_run,
    stage_run,
)
from soundmill.tracking.stores import (
    EXPERIMENT,
    HTTP,
    PARENT,
    QUIET,
    SWITCH,
    TRIAL,
    WORKSPACES,
    Store,
    browser_command,
    flatten,
    numbers,
    project_of,
    status,
    store,
    unreachable,
)
from soundmill.tracking.uploader import sync, waiting

never_proxied()
