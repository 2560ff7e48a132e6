"""The checkpoints of the page: of the project, its workspaces, pulled ones, and the registry; at most a few in memory."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundmill import clips, params, terminal, tracking
from soundmill.errors import UserError
from soundmill.hashing import model_digest
from soundmill.models import registry
from soundmill.models.family import family_of, is_checkpoint
from soundmill.training import checkpoint

if TYPE_CHECKING:
    from soundmill.models.generation import Loaded

PLACES = ("data/models/*", f"{tracking.WORKSPACES}/*/data/models/*", "models/*/checkpoint")  # the last: where `pull` puts them
SHOWN_SCORES = {"fad_tagger": "FAD {:.3g}", "label_accuracy_tagger": "label accuracy {:.0%}"}


@dataclass(frozen=True)
class Traits:
    """What a `Model` says of the requests that it takes, without its weights."""

    condition: str
    labels: Sequence[str]
    sampling: Any


@dataclass(frozen=True)
class Found:
    """A checkpoint of the project at `root`, or another one on disk."""

    directory: Path
    root: Path
    version: tracking.RegisteredModel | None = None  # that it is in the registry

    @property
    def name(self) -> str:
        """Its path in the project."""
        inside = self.directory.is_relative_to(self.root)
        return str(self.directory.relative_to(self.root) if inside else self.directory)

    @property
    def home(self) -> Path:
        """The checkout that trained it, or the project."""
        data = self.directory.parent.parent
        return data.parent if data.name == "data" and (data.parent / "params.yaml").is_file() else self.root

    @property
    def tables(self) -> clips.Tables:
        """Its real clips."""
        return clips.of_family(self.home, family_of(self.directory))

    @property
    def scores(self) -> dict[str, float]:
        """Those of the stage `evaluate`, or of the version's tags."""
        path = self.home / "data" / "metrics" / "evaluate" / f"{self.directory.name}.json"
        found = params.read_json(path, "`dvc repro`") if path.is_file() else {}
        if self.version:
            found = {key: float(self.version.tags[key]) for key in SHOWN_SCORES if key in self.version.tags}
        return {key: value for key, value in found.items() if isinstance(value, float)}

    @property
    def traits(self) -> Traits:
        config, kind = checkpoint.read(self.directory), registry.family(family_of(self.directory))
        labels = config.get("labels") or []
        condition = "caption" if config.get("text") else "labels" if labels else "none"
        return Traits(condition, labels, params.parse(kind.train_params, config.get("params"), f"{self.name}: params").sampling)

    @property
    def trained(self) -> float:
        return (self.directory / checkpoint.CONFIG).stat().st_mtime

    @property
    def title(self) -> str:
        name = self.name.removeprefix("data/models/")
        if self.version:
            name = " ".join(
                [self.version.name, f"version {self.version.version}", *(f"@{alias}" for alias in self.version.aliases)]
            )
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.trained))
        scores = [text.format(self.scores[key]) for key, text in SHOWN_SCORES.items() if key in self.scores]
        return " · ".join(dict.fromkeys([name, family_of(self.directory), f"trained {day}", *scores]))


def find(root: Path, named: Sequence[Path]) -> dict[str, Found]:
    """The checkpoints on the project's disk by name, the newest first; those that are `named` before all."""
    places = [path / "checkpoint" if (path / "checkpoint" / checkpoint.CONFIG).is_file() else path for path in named]
    first, own = [Found(path, root) for path in places if family_of(path)], []  # family_of: else a UserError
    for path in [path for place in PLACES for path in root.glob(place)]:
        try:
            if is_checkpoint(path) and Found(path, root).title:
                own.append(Found(path, root))
        except UserError as error:
            terminal.say(f"left out: {error}", error=True)
    if not (found := {one.name: one for one in [*first, *_newest_first(own)]}):
        raise UserError(f"{root}: no checkpoint to play with; train one with `make demo`, or name its directory")
    return found


def of_registry(found: Mapping[str, Found], versions: Sequence[tracking.RegisteredModel], root: Path) -> dict[str, Found]:
    """The versions whose files are on this disk, each of weights that `found` has not, the newest first."""
    others = {version.digest: version for version in reversed(versions) if version.directory}
    for one in found.values():
        others.pop(model_digest(one.directory), None)
    own = _newest_first([Found(version.directory, root, version) for version in others.values()])
    return {one.name: one for one in own}


def _newest_first(found: Sequence[Found]) -> list[Found]:
    return sorted(found, key=lambda one: one.trained, reverse=True)


class Models:
    """At most `most` checkpoints in memory; the least recently used one leaves. One person's sound is made at a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.lock = threading.RLock()
        self.loaded: OrderedDict[tuple[str, ...], Loaded] = OrderedDict()

    def load(self, found: Found) -> Loaded:
        """A checkpoint as it is on disk now; call it with the lock held."""
        from soundmill.models import generation

        files = sorted(path for path in found.directory.rglob("*") if path.is_file())
        key = (str(found.directory), *(f"{path} {(facts := os.stat(path)).st_mtime_ns} {facts.st_size}" for path in files))
        if key not in self.loaded:
            for old in [one for one in self.loaded if one[0] == key[0]]:
                del self.loaded[old]
            while len(self.loaded) >= self.most:
                self.loaded.popitem(last=False)
            self.loaded[key] = generation.read(found.directory)
        self.loaded.move_to_end(key)
        return self.loaded[key]
