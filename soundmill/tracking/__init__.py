"""Recording runs in MLflow; the only package that imports mlflow.

A stage never waits for MLflow and never fails because of it: it appends events to a journal on disk (journal.py), and a second
process, the uploader, sends the journals of a store to MLflow, in order and exactly once, as soon as MLflow answers. If the process
of a run dies, the run ends as KILLED; a parent ends after all runs below it.
"""

from soundmill.tracking.browser_app import never_proxied, scores_page
from soundmill.tracking.history import (
    FORGOTTEN,
    RecordedState,
    RegisteredModel,
    check_writing,
    delete_versions,
    files_of_runs,
    last_scores,
    mark_forgotten,
    read_state,
    registered_models,
    serve,
    status,
    use_last_store,
)
from soundmill.tracking.journal import sync, waiting
from soundmill.tracking.runs import PipelineRun, StageRun, corpus_name, pipeline_run, result_run, stage_run
from soundmill.tracking.stores import (
    EXPERIMENT,
    JOURNAL,
    PARENT,
    QUIET,
    SWITCH,
    TRIAL,
    WORKSPACES,
    browser_command,
    flatten,
    is_off,
    project_of,
    store,
    unreachable,
)

never_proxied()
