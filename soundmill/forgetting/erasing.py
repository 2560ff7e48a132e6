"""Removing forgotten sounds from everything that the stages do not rebuild."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from soundmill import shards, tracking
from soundmill.forgetting import leftovers
from soundmill.forgetting.listing import in_force
from soundmill.forgetting.proof import shown, traces_of, workspaces
from soundmill.forgetting.searching import Progress
from soundmill.lineage import Project


@dataclass
class Erased:
    """One sentence for each thing that was removed, and for each that could not be."""

    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def erase(root: Path, progress: Progress = lambda n: None) -> Erased:
    """Remove forgotten sounds from scratch, registered models and files of runs, in the project and its workspaces.

    Registered versions that were trained on them are deleted in MLflow. Files of runs on a server cannot be deleted from here and
    are listed. Outputs of stages stay, because `dvc repro` rebuilds them, and so does DVC's cache (`flows/cache.py`).
    """
    listed, outcome = in_force(root), Erased()
    if not listed.entries:
        return outcome
    project, store = Project(root), tracking.store(root)
    traces = traces_of(project, listed)
    for checkout in (project, *(Project(workspace, is_workspace=True) for workspace in workspaces(root))):
        for path, why in list(leftovers.kept(checkout.root, traces if checkout is project else traces_of(checkout, listed))):
            _remove(path, why, root, outcome)
        for path in leftovers.scratch(checkout.root):
            _remove(path, "a stage's scratch directory", root, outcome)
    trained = project.weights_with(list(traces.pieces), traces.digests)
    versions = {(model.name, model.version): model for weights, *_ in list(trained) for model in weights.registered}
    tracking.delete_versions(root, list(versions.values()))
    for model in versions.values():
        outcome.removed.append(f"{model.name} version {model.version}: trained on it")
        if model.directory is None:
            outcome.left.append(f"{model.name} version {model.version}: its files are at {store.uri}; delete them there")
    if store.artifacts is None:
        found, note = leftovers.on_server(root, store.uri, traces)
        outcome.left += [*found, note]
        return outcome
    for path, why in leftovers.in_store(Path(store.artifacts), traces, listed.entries, progress).items():
        _remove(path, why, root, outcome)
    waiting = leftovers.in_store(store.journals, traces, listed.entries, progress)
    outcome.left += [f"{shown(path, root)}: not in MLflow yet; `soundmill sync`, then erase again" for path in waiting]
    return outcome


def _remove(path: Path, why: str, root: Path, outcome: Erased) -> None:
    """Remove a file (with its report, if it is a shard) or a directory."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():  # otherwise it was removed with its directory
        path.unlink()
        shards.report_path(path).unlink(missing_ok=True)
    else:
        return
    outcome.removed.append(f"{shown(path, root)}: {why}")
