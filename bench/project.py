"""A bare project to run stages in: parameters and data of its own, the stage functions of this checkout."""

from __future__ import annotations

import functools
import importlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from bench.measure import ROOT, WORKERS
from soundmill import params, shards, stage


@dataclass(frozen=True)
class Project:
    """A directory with a params.yaml; `run` calls a stage's `run` with a context, as the stage's command line does."""

    root: Path

    @classmethod
    def make(cls, root: Path, overrides: list[str]) -> Project:
        root.mkdir(parents=True)
        params.write_yaml(params.compose(ROOT / "conf", [*overrides, f"execution.workers={WORKERS}"]), root / "params.yaml")
        return cls(root)

    def run(self, module: str, section: str | None = None, **ports: Path) -> float:
        """Run `stages.<module>`; ports not named here lie below `data/`. Returns the seconds its workers were at it: from the
        first shard's start to the last one's end (0 for a stage that maps nothing)."""
        run = importlib.import_module(f"stages.{module}").run
        hints = get_type_hints(run, include_extras=True)
        names = {name: self.root / "data" / name for name, hint in hints.items() if hint in (stage.Input, stage.Output)}
        values = params.load(hints["params"], self.root / "params.yaml", section or module)
        context = TimedContext(
            name=module,
            family=None,
            root=self.root,
            home=self.root,
            scratch=self.root / "data/.work" / module,
            workers=WORKERS,
            tracking=None,
        )
        (self.root / "data").mkdir(exist_ok=True)
        run(values, context, **{**names, **ports})
        return context.seconds_mapping


class TimedContext(stage.Context):
    """Notes beside every shard when its work began and ended, so that starting the processes can be told from the work."""

    def map_shards(
        self, function: Callable[..., shards.Report], jobs: list[shards.Job], output: Path, *args: Any, **kw: Any
    ) -> Any:
        report = super().map_shards(functools.partial(note_times, function), jobs, output, *args, **kw)
        return report

    @property
    def seconds_mapping(self) -> float:
        times = [json.loads(path.read_text()) for path in self.scratch.rglob("*.times.json")]
        return max((end for _, end in times), default=0.0) - min((start for start, _ in times), default=0.0)


def note_times(function: Callable[..., shards.Report], *args: Any) -> shards.Report:
    start = time.monotonic()  # of the machine, the same in every process
    report = function(*args)
    Path(os.fspath(args[-1]) + ".times.json").write_text(json.dumps([start, time.monotonic()]))
    return report
