"""Ends the Prefect run of a killed flow: the next flow in the same place marks it as crashed."""

from contextlib import suppress
from pathlib import Path
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from soundmill import disk

MESSAGE = "its process was killed; found by the next run"


def end_last(path: Path) -> None:
    """Mark the run that `path` names, and its tasks, as crashed unless they have ended; then write this run's id to `path`.

    The caller must hold the lock that only one run at a time can hold, so the last run has ended, even if Prefect says otherwise.
    """
    last = None
    with suppress(OSError, ValueError):
        last = UUID(path.read_text(encoding="utf-8"))
    if last and str(last) != runtime.flow_run.id:
        with suppress(ObjectNotFound):  # it was on another server
            _end(last)
    disk.write_atomically(path, lambda file: file.write_text(runtime.flow_run.id or "", encoding="utf-8"))


def _end(run: UUID) -> None:
    client = get_client(sync_client=True)
    if (state := client.read_flow_run(run).state) and state.is_final():
        return
    for task in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run]))):
        if not (task.state and task.state.is_final()):
            client.set_task_run_state(task.id, Crashed(message=MESSAGE), force=True)
    client.set_flow_run_state(run, Crashed(message=MESSAGE), force=True)
