"""Removing forgotten sounds from everything that the stages do not rebuild."""

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
class Erasure:
    """What holds forgotten sounds and can be removed, with the reasons, and what cannot."""

    paths: dict[Path, str] = field(default_factory=dict)
    cached: list[Path] = field(default_factory=list)  # objects of DVC's cache that hold them, whoever needs them
    versions: list[tracking.RegisteredModel] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def sentences(self, root: Path) -> list[str]:
        """One for each thing that can be removed, except of the cache."""
        return [
            *(f"{shown(path, root)}: {why}" for path, why in self.paths.items()),
            *(f"{model.name} version {model.version}: trained on it" for model in self.versions),
        ]


def find(root: Path, cache: Path | None = None, progress: Progress = lambda n: None) -> Erasure:
    """Find forgotten sounds in scratch, DVC's cache, registered models and files of runs, in the project and its workspaces.

    Outputs of stages are not searched, because `dvc repro` rebuilds them. Files of runs on a server cannot be deleted from here.
    """
    listed, found = in_force(root), Erasure()
    if not listed.entries:
        return found
    project, store = Project(root), tracking.store(root)
    traces = traces_of(project, listed)
    for checkout in (project, *(Project(workspace, is_workspace=True) for workspace in workspaces(root))):
        found.paths |= leftovers.kept(checkout.root, traces if checkout is project else traces_of(checkout, listed))
        found.paths |= dict.fromkeys(leftovers.scratch(checkout.root), "a stage's scratch directory")
    if cache:
        found.cached = list(leftovers.in_cache(cache, traces))
    trained = project.weights_with(list(traces.pieces), traces.digests)
    found.versions = list({(model.name, model.version): model for weights, *_ in trained for model in weights.registered}.values())
    for model in found.versions:
        if model.directory is None:
            found.left.append(f"{model.name} version {model.version}: its files are at {store.shown}; delete them there")
    if store.artifacts is None:
        on_server, note = leftovers.on_server(root, store.shown, traces)
        found.left += [*on_server, note]
        return found
    found.paths |= leftovers.in_store(store.artifacts, traces, listed.entries, progress)
    waiting = leftovers.in_store(store.journals, traces, listed.entries, progress)
    found.left += [f"{shown(path, root)}: not in MLflow yet; `soundmill sync`, then erase again" for path in waiting]
    return found


def erase(root: Path, found: Erasure) -> None:
    """Delete what was found, except in DVC's cache: registered versions, and files, each shard with its report."""
    tracking.delete_versions(root, found.versions)
    for path in found.paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
            shards.report_path(path).unlink(missing_ok=True)
