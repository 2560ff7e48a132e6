"""Prefect's run of a flow that was killed: nobody was left to end it, so the next one in the same place does."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from soundmill import disk

WHY = "its process was killed; found by the next run"


def end_last(path: Path) -> None:
    """End the run that `path` names as crashed, with its tasks, where it has no end; then name this run there.

    To be called by who holds the lock that only one run at a time holds: the last one is over, whatever Prefect says.
    """
    last = None
    with suppress(OSError, ValueError):
        last = UUID(path.read_text(encoding="utf-8"))
    if last and str(last) != runtime.flow_run.id:
        with suppress(ObjectNotFound):  # another server has it
            _end(last)
    disk.write_atomically(path, lambda file: file.write_text(runtime.flow_run.id or "", encoding="utf-8"))


def _end(run: UUID) -> None:
    client = get_client(sync_client=True)
    if (state := client.read_flow_run(run).state) and state.is_final():
        return
    for task in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run]))):
        if not (task.state and task.state.is_final()):
            client.set_task_run_state(task.id, Crashed(message=WHY), force=True)
    client.set_flow_run_state(run, Crashed(message=WHY), force=True)
