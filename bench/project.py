"""A minimal project with its own parameters and data, to run this checkout's stages in."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from bench.measure import ROOT, WORKERS
from soundmill import disk, params, shards, stage, tracking


@dataclass(frozen=True)
class Project:
    """A directory with a params.yaml; `run` calls a stage's `run` as its command line does."""

    root: Path
    workers: int = WORKERS

    @classmethod
    def make(cls, root: Path, overrides: list[str], workers: int = WORKERS) -> Project:
        root.mkdir(parents=True)
        params.write_yaml(params.compose(ROOT / "conf", [*overrides, f"execution.workers={workers}"]), root / "params.yaml")
        return cls(root, workers)

    def run(self, module: str, section: str | None = None, imported: tuple[str, ...] = (), **ports: Path) -> float:
        """Run `stages.<module>`, whose workers also import the modules `imported`; ports not given are below `data/`, and optional
        inputs are left out. Returns the seconds from the start of the first shard to the end of the last."""
        run = importlib.import_module(f"stages.{module}").run
        hints = get_type_hints(run, include_extras=True)
        optional = {name for name, port in inspect.signature(run).parameters.items() if port.default is None}
        names = {
            name: self.root / "data" / name
            for name, hint in hints.items()
            if hint in (stage.Input, stage.Output, stage.Shown) and name not in optional
        }
        work = self.root / "data/.work" / module
        context = TimedContext(
            name=module,
            family=None,
            root=self.root,
            home=self.root,
            scratch=work / "scratch",
            kept=work / "kept",
            digests=work / "digests.sqlite",
            workers=self.workers,
            devices=1,
            cluster=None,
            found_by_name=(),
            tracking=tracking.StageRun(),
            times=work / "times",
            imported=imported,
        )
        context.times.mkdir(parents=True)
        values = params.parse_section(params.read_yaml(self.root / "params.yaml"), section or module, hints["params"])
        run(values, context, **{**names, **ports})
        for _, make in context.shows:
            make()
        for output in (names[name] for name, hint in hints.items() if hint in (stage.Output, stage.Shown)):
            # stage.publish syncs the whole file system instead, which would include other competitors' files here.
            for path in output.rglob("*") if output.is_dir() else [output]:
                disk.sync_directory(path) if path.is_dir() else disk.sync_file(path)
        times = read_times(context.times)
        return max((end for _, end, *_ in times), default=0.0) - min((start for start, *_ in times), default=0.0)

    def busiest(self, module: str) -> float:
        """CPU seconds of the process of `stages.<module>` that needed most, without its start."""
        by_process: dict[int, float] = {}
        for _, _, process, cpu in read_times(self.root / "data/.work" / module / "times"):
            by_process[process] = by_process.get(process, 0.0) + cpu
        return max(by_process.values(), default=0.0)


@dataclass
class TimedContext(stage.Context):
    """Records start and end of the work on every shard, without starting processes."""

    times: Path = field(kw_only=True)
    imported: tuple[str, ...] = field(kw_only=True)

    def make_shards(self, function: Callable[..., shards.Report], *args: Any, **options: Any) -> shards.Report:
        return super().make_shards(functools.partial(record_times, function, self.times, self.imported), *args, **options)


def record_times(
    function: Callable[..., shards.Report], times: Path, imported: tuple[str, ...], *args: Any, **options: Any
) -> shards.Report:
    for name in imported:
        importlib.import_module(name)
    start, cpu = time.monotonic(), time.process_time()  # the first is the same clock in every process
    report = function(*args, **options)
    record = [start, time.monotonic(), os.getpid(), time.process_time() - cpu]
    (times / uuid.uuid4().hex).write_text(json.dumps(record))
    return report


def read_times(times: Path) -> list[list[Any]]:
    """(start, end, process, CPU seconds) of every shard."""
    return [json.loads(path.read_text()) for path in times.iterdir()]
