"""The checkpoints that the page offers, and those of them that are in memory."""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soundmill import params, tracking
from soundmill.errors import UserError
from soundmill.models import generation
from soundmill.models.family import family_of, is_checkpoint
from soundmill.training import checkpoint


@dataclass(frozen=True)
class Found:
    """A checkpoint of the project at `root`, or another one on disk."""

    directory: Path
    root: Path

    @property
    def name(self) -> str:
        """Its path in the project."""
        inside = self.directory.is_relative_to(self.root)
        return str(self.directory.relative_to(self.root) if inside else self.directory)

    @property
    def home(self) -> Path:
        """The checkout that trained it, or the project."""
        data = self.directory.parents[1]
        return data.parent if data.name == "data" and (data.parent / "params.yaml").is_file() else self.root

    @property
    def scores(self) -> dict[str, float]:
        """Those of the stage `evaluate`."""
        path = self.home / "data" / "metrics" / "evaluate" / f"{self.directory.name}.json"
        found = params.read_json(path, "`dvc repro`") if path.is_file() else {}
        return {key: value for key, value in found.items() if isinstance(value, float)}

    @property
    def trained(self) -> float:
        return (self.directory / checkpoint.CONFIG).stat().st_mtime

    @property
    def title(self) -> str:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.trained))
        shown = [f"{key} {value:.3g}" for key, value in self.scores.items() if key in ("fad_tagger", "label_accuracy_tagger")]
        return " · ".join([self.name, family_of(self.directory), day, *shown])


def find(root: Path, named: Sequence[Path]) -> dict[str, Found]:
    """The checkpoints of a project and its workspaces by name, the newest first; those that are `named` before all."""
    paths = [
        path for home in ("", f"{tracking.WORKSPACES}/*/") for path in root.glob(f"{home}data/models/*") if is_checkpoint(path)
    ]
    for path in named:
        family_of(path)  # else a UserError
    own = sorted((Found(path, root) for path in paths), key=lambda one: one.trained, reverse=True)
    found = {one.name: one for one in [*(Found(path, root) for path in named), *own]}
    if not found:
        raise UserError(f"{root}: no checkpoint to play with; train one with `make demo`, or name its directory")
    return found


class Models:
    """At most `most` checkpoints in memory; the least recently used one leaves. One person's sound is made at a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.lock = threading.RLock()
        self._kept: OrderedDict[tuple[str, ...], generation.Loaded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def load(self, found: Found) -> generation.Loaded:
        """A checkpoint as it is on disk now; call it with the lock held."""
        files = sorted(path for path in found.directory.rglob("*") if path.is_file())
        key = (str(found.directory), *(f"{path} {(facts := path.stat()).st_mtime_ns} {facts.st_size}" for path in files))
        if key not in self._kept:
            for old in [one for one in self._kept if one[0] == key[0]]:
                del self._kept[old]
            while len(self._kept) >= self.most:
                self._kept.popitem(last=False)
            self._kept[key] = generation.read(found.directory)
        self._kept.move_to_end(key)
        return self._kept[key]
