"""Removing what earlier runs kept of a forgotten sound, beside the outputs that the stages make anew."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from soundmill import shards, tracking
from soundmill.forgetting import leftovers
from soundmill.forgetting.listing import in_force
from soundmill.forgetting.proof import shown, traces_of, workspaces
from soundmill.forgetting.searching import Progress, files_alike
from soundmill.lineage import Project


@dataclass
class Erased:
    """What was removed, a sentence each, and what could not be."""

    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def erase(root: Path, progress: Progress = lambda n: None) -> Erased:
    """Remove what scratch, registered models and files of runs hold of what is forgotten, in the project and its workspaces.

    Registered versions that were trained on it are deleted in MLflow. Files of runs on a server are not reached: they are named.
    Outputs of stages are not touched (`dvc repro` makes them anew), nor is DVC's cache.
    """
    listed, outcome = in_force(root), Erased()
    if not listed.entries:
        return outcome
    for checkout in (root, *workspaces(root)):
        traces = traces_of(Project(checkout, is_workspace=checkout != root), listed)
        for path, why in list(leftovers.kept(checkout, traces)):
            _remove(path, why, root, outcome)
        for path in leftovers.scratch(checkout):
            _remove(path, "what a killed run would have resumed from", root, outcome)
    project, store = Project(root), tracking.store(root)
    traces = traces_of(project, listed)
    held = project.weights_with(list(traces.pieces), traces.digests)
    versions = {(model.name, model.version): model for weights, *_ in list(held) for model in weights.registered}
    tracking.delete_versions(root, list(versions.values()))
    for model in versions.values():
        outcome.removed.append(f"{model.name} version {model.version}: trained on it")
        if model.directory is None:
            outcome.left.append(f"{model.name} version {model.version}: its files are at {store.uri}; delete them there")
    if store.artifacts is None:
        outcome.left.append(f"files of runs are at {store.uri}: not looked into; what they hold is to be deleted there")
        return outcome
    for path, why in list(leftovers.in_tree(Path(store.artifacts), traces)):
        _remove(path, why, root, outcome)
    sounds = [path for path in sorted(Path(store.artifacts).rglob("*")) if path.suffix in leftovers.SOUNDS]
    for number, name in files_alike(Path(store.artifacts), sounds, listed.entries, progress):
        _remove(Path(store.artifacts) / name, f"sounds like {listed.entries[number]}", root, outcome)
    waiting = [path for path, _ in leftovers.in_tree(store.journals, traces)]
    outcome.left += [f"{shown(path, root)}: not in MLflow yet; `soundmill sync`, then erase again" for path in waiting]
    return outcome


def _remove(path: Path, why: str, root: Path, outcome: Erased) -> None:
    """Remove a file, with the report of a shard, or a directory."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():  # else it went with its directory
        path.unlink()
        shards.report_path(path).unlink(missing_ok=True)
    else:
        return
    outcome.removed.append(f"{shown(path, root)}: {why}")
