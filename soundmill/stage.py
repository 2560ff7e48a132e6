"""The stage contract: typed paths and parameters in; atomic outputs, metrics and quarantine out; resumable scratch.

A stage module ends with `stage.main(run, section="clips")`, where

    def run(params: ClipPlan, ctx: Context, corpus: Input, segments: Output) -> dict[str, Any]

An output that only displays the others, a picture or a page, is `Shown`: its failure does not fail the stage. The command line
follows from the signature, `python -m stages.segment --corpus data/corpus --segments FILE`, with `--metrics` (JSON), `--quarantine`
(Parquet), `--family` (selects the section `<family>.<section>`), `--variant`, `--name` and `--params`.
"""

import argparse
import importlib
import inspect
import json
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel

from soundmill import disk, hashing, ledger, lifetime, manifest, params, shards, terminal
from soundmill.errors import UserError, fault_of_disk, report_failure, show_what_the_terminal_can

Input = Annotated[Path, "input"]
Output = Annotated[Path, "output"]
Shown = Annotated[Path, "shown"]  # an output that only displays others; made after them, by Context.show

WORK = Path("data/.work")  # below the project root; not an output, never in DVC
COST = "cost.json"  # in a stage's directory there: the cost of its last run
PROGRESS_SECONDS = 30.0  # between progress lines
EXPERIMENTS = Path(".dvc/tmp/exps")  # where `dvc exp run --temp/--queue` puts its copies of the project


@dataclass
class Context:
    """What a stage gets besides parameters and paths; nothing here changes a byte of its outputs."""

    name: str  # `segment`, `train/ddpm_mel`, `spectrogram/tagger`
    family: str | None
    root: Path  # the project: the directory of params.yaml
    home: Path  # `root`, or the checkout that `dvc exp run --temp` copied; base of relative paths outside the project
    scratch: Path  # a killed run with these parameters, inputs and code resumes from here
    kept: Path  # shards for the next run with these parameters and this code
    digests: Path  # cache of hashing.file_digests
    workers: int
    devices: int | None  # processes that generate, and that encode or score on GPUs; None: there is no GPU
    cluster: str | None  # address of the Dask scheduler whose workers run the shards
    found_by_name: tuple[str, ...]  # modules and packages, see `code_by_name` of `main`
    tracking: Any  # soundmill.tracking.StageRun
    quarantine: list[dict[str, str]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # names of kept files that had changed since they were written
    shows: list[tuple[str, Callable[[], object], Path | None]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)  # for the tracked run and COST, such as `seconds_per_step`

    def show(self, what: str, make: Callable[[], object], page: Path | None = None) -> None:
        """Call `make` for pictures and pages once all outputs and metrics are there; a `page` is logged, a failure only printed."""
        self.shows.append((what, make, page))

    def report_damaged(self, where: Path, names: Sequence[str]) -> None:
        """Report kept files that were damaged and are rebuilt; the run's metrics count them."""
        shards.report_damaged(f"{self.name}: {where}", names)
        self.damaged.extend(names)

    def reject(self, path: str, reason: str, detail: str = "") -> None:
        """Quarantine one item: `path` relative to the corpus (escaped), a short stable `reason`, free `detail`."""
        self.quarantine.append({"path": path, "reason": reason, "detail": detail})

    @contextmanager
    def progress(self, total: int, label: str, unit: str = "clip") -> Iterator[Callable[[int], None]]:
        """`with ctx.progress(n, "resample") as tick: tick(1)`: a bar on a terminal, otherwise a line every half minute."""
        if not sys.stderr.isatty():
            yield _progress_lines(total, label, unit)
            return
        from tqdm import tqdm

        with tqdm(total=total, desc=label, unit=unit, unit_scale=unit == "B") as bar:
            yield bar.update

    def map_shards(
        self, function: Callable[..., shards.Report], jobs: list[shards.Job], output: Path, unit: str = "clip"
    ) -> shards.Report:
        """Map over shards and write them to the directory `output`; rejected items go to this stage's quarantine."""
        report, directory = self.make_shards(function, jobs, output.name, unit)
        output.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            # Linked, not moved: after a kill here, the rerun still finds every finished shard.
            os.link(directory / job.name, output / job.name)
        return report

    def make_shards(
        self, function: Callable[..., shards.Report], jobs: list[shards.Job], name: str, unit: str = "clip"
    ) -> tuple[shards.Report, Path]:
        """`map_shards` without an output: also returns the shards' directory, kept for the next run only if all jobs have keys."""
        directory = (self.kept if all(job.key for job in jobs) else self.scratch) / name
        with self.progress(sum(job.weight for job in jobs), self.name, unit) as tick:
            report = shards.map_shards(
                function, jobs, directory, workers=self.workers, cluster=self.cluster, code=self.found_by_name, progress=tick
            )
        self.quarantine.extend(report.quarantine)
        self.report_damaged(directory, report.damaged)
        return report, directory


def project_home(root: Path) -> Path:
    """The user's checkout: `root`, or the one that `dvc exp run --temp` copied to `root`."""
    project, found, _ = str(root.resolve()).rpartition(f"/{EXPERIMENTS}/")
    return Path(project or "/") if found else root.resolve()


def main(
    run: Callable[..., dict[str, Any]],
    section: str,
    argv: list[str] | None = None,
    params_type: Callable[[str | None, dict[str, Any]], type[BaseModel]] | None = None,
    code_by_name: Callable[[str | None, dict[str, Any], dict[str, Any]], Sequence[str]] | None = None,
    always_runs: bool = False,
    launcher: Any = None,
) -> None:
    """Run a stage from the command line; on failure, exit with status 1 and a message without a traceback.

    The parameters' type is the annotation of `run`'s first argument, or `params_type(family, section)` if families or kinds differ.
    `code_by_name(family, section, parameters)` lists the modules and packages that `run` finds by name instead of importing them.
    With `always_runs` (the stage runs in every `dvc repro`), a run is recorded only after `ctx.tracking.start()`. A stage that
    trains names the `launcher` of its processes (training/launcher.py).
    """
    show_what_the_terminal_can()
    terminal.join_flow()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if run.__module__ == "__main__" and spec:  # `python -m stages.x`: from its importable module
        run = getattr(importlib.import_module(spec.name), run.__name__)
    argv = sys.argv[1:] if argv is None else argv
    with _without_traceback(run.__module__.removeprefix("stages.") if run.__module__.startswith("stages.") else section):
        from soundmill import tracking

        hints = get_type_hints(run, include_extras=True)
        ports = {name: hint.__metadata__[0] for name, hint in hints.items() if hint in (Input, Output, Shown)}
        args = _parse(run, section, ports, argv)
        lifetime.die_with_dvc()
        document = params.read_yaml(args.params)
        params.check_urls(document, args.params.stem)
        execution = params.parse_section(document, "execution", params.ExecutionParams, str(args.params))
        where = _section_to_read(document, args, section)
        as_read = params.section(document, where, str(args.params))
        model = params_type(args.family, as_read) if params_type else hints[next(iter(inspect.signature(run).parameters))]
        values = params.parse(model, as_read, f"{args.params}: {where}")
        recorded = values.model_dump(mode="json")
        root = args.params.resolve().parent
        home = project_home(root)
        ledger.check(root)
        ledger.note_outputs(root, tracking.project_of(home))

        name = args.name or (f"{section}/{args.family}" if args.family else section)
        inputs, finals = _given(args, ports, "input"), _given(args, ports, "output", "shown")
        for port, path in inputs.items():
            if not path.exists():
                raise UserError(f"--{port.replace('_', '-')} {path}: no such file or directory; create it with `dvc repro`")
        found_by_name = tuple(code_by_name(args.family, as_read, document)) if code_by_name else ()
        identity = {"name": name, "params": recorded, "code": shards.code_identity(run.__module__, *found_by_name)}
        workers = execution.workers or os.cpu_count() or 1
        devices = execution.devices or len(shards.visible_gpus()) or None
        cluster = execution.dask or os.environ.get("DASK_SCHEDULER_ADDRESS")
        work = root / WORK / name.replace("/", "-")
        track = partial(tracking.stage_run, home, name, recorded, root, args.family, not always_runs, execution.system_metrics)
        place = launcher and launcher.place  # of this process among those of a training
        rank = launcher.rank if launcher else 0
        with nullcontext() if place else _only_one(work):
            if launcher and launcher.is_needed(values):
                with track() as tracked:
                    launcher.launch(values.hardware, name, run.__module__, argv, tracked)
                return
            digests = root / WORK / "digests.sqlite"
            contents = {} if rank else {port: hashing.tree_digest(path, digests, workers) for port, path in inputs.items()}
            scratch, kept = work / hashing.digest(identity, contents), work / "kept" / hashing.digest(identity)
            if place:
                scratch = launcher.agree({"parameters": hashing.digest(recorded), **identity["code"]}, scratch)
            staged = _empty_staging(scratch / (f"outputs-{rank}" if rank else "outputs"), finals)
            with nullcontext(tracking.StageRun() if rank else place.tracking) if place else track() as tracked:
                ctx = Context(
                    name, args.family, root, home, scratch, kept, digests, workers, devices, cluster, found_by_name, tracked
                )
                started = time.monotonic()
                metrics = run(values, ctx, **inputs, **staged)
                if rank:
                    return
                ctx.cost |= {
                    "seconds": time.monotonic() - started,
                    "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                }
                lifetime.die_if_dvc_did()
                for port, final in _given(args, ports, "output").items():
                    if not staged[port].exists():
                        raise UserError(f"{name} did not write its output {final}")
                    publish(staged[port], final)
                    staged[port].symlink_to(final.resolve())
                _record(ctx, metrics, args, work / COST)
                _show(ctx, {staged[port]: path for port, path in _given(args, ports, "shown").items()})
            _remove_stale(work, kept)


@contextmanager
def _without_traceback(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        sys.exit(terminal.plain(f"{name}: {error}"))
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; run it again to continue: finished work is kept")
    except OSError as error:
        sys.exit(terminal.plain(f"{name}: {fault_of_disk(error, WORK.parent)}: finished work is kept"))
    except Exception as error:
        log = WORK / f"{name}.traceback.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(terminal.plain(traceback.format_exc()), encoding="utf-8")
        sys.exit(terminal.plain(f"{name}: {type(error).__name__}: {error}\nThis is a bug in Soundmill; the traceback is in {log}"))
    finally:
        terminal.report(ended=True)  # by itself: it was not killed


def _progress_lines(total: int, label: str, unit: str) -> Callable[[int], None]:
    done, printed_at = 0, time.monotonic()

    def tick(count: int) -> None:
        nonlocal done, printed_at
        done += count
        if time.monotonic() - printed_at >= PROGRESS_SECONDS:
            printed_at = time.monotonic()
            terminal.say(f"{label}: {done / total:.0%}" if total else f"{label}: {done} {unit}s")
            terminal.report(**({"done": done / total} if total else {}))

    return tick


def _section_to_read(document: dict[str, Any], args: argparse.Namespace, section: str) -> str:
    if args.family and args.family not in document:
        missing = f"{args.params}: section {args.family!r} is missing"
        raise UserError(f"{missing}{params.did_you_mean(args.family, list(document))}")
    if args.family and section in document[args.family]:
        return f"{args.family}.{section}"
    return f"{section}.{args.variant}" if args.variant else section


def _given(args: argparse.Namespace, ports: dict[str, str], *kinds: str) -> dict[str, Path]:
    return {port: path for port, kind in ports.items() if kind in kinds and (path := getattr(args, port)) is not None}


def _empty_staging(directory: Path, finals: dict[str, Path]) -> dict[str, Path]:
    """Where a run writes its outputs before they are published, by port."""
    shutil.rmtree(directory, ignore_errors=True)
    staged = {port: directory / port / path.name for port, path in finals.items()}
    for path in staged.values():
        path.parent.mkdir(parents=True)
    return staged


def _record(ctx: Context, metrics: dict[str, Any], args: argparse.Namespace, cost: Path) -> None:
    if args.quarantine:
        rows = sorted(ctx.quarantine, key=lambda row: (row["path"], row["reason"], row["detail"]))
        disk.write_atomically(args.quarantine, lambda path: shards.write_rows(rows, path, manifest.QUARANTINE))
        metrics = {**metrics, "quarantined": len(rows)}
        for row in rows[:20]:
            detail = f" ({row['detail']})" if row["detail"] else ""
            terminal.say(f"{ctx.name}: quarantined {row['path']}: {row['reason']}{detail}")
        if rows:
            terminal.say(f"{ctx.name}: {len(rows)} quarantined in total; see {args.quarantine}")
    if args.metrics:
        disk.write_json(args.metrics, metrics)
    # For the tracked run only: the metrics file has the same bytes as after a run without kept shards.
    damaged = {"damaged": len(ctx.damaged)} if ctx.damaged else {}
    ctx.tracking.log_metrics_tree({**metrics, **damaged, "cost": ctx.cost})
    disk.write_text(cost, json.dumps(ctx.cost))


def _remove_stale(work: Path, kept: Path) -> None:
    """Remove the scratch of killed runs, and shards kept for other parameters or code."""
    for directory in [*work.iterdir(), *(work / "kept").glob("*")]:
        if directory.is_dir() and directory not in (kept, kept.parent):
            shutil.rmtree(directory)


def _parse(run: Callable[..., Any], section: str, ports: dict[str, str], argv: Sequence[str]) -> argparse.Namespace:
    signature = inspect.signature(run)
    parser = argparse.ArgumentParser(prog=f"python -m stages.{section}", description=inspect.getdoc(run))
    for port, kind in ports.items():
        optional = signature.parameters[port].default is not inspect.Parameter.empty
        parser.add_argument(f"--{port.replace('_', '-')}", dest=port, type=Path, required=not optional, help=f"{kind} path")
    parser.add_argument("--name", help="name in tracking and scratch (default: the section, and the family)")
    parser.add_argument("--variant", help="subsection of the stage's section to read, if it has several")
    parser.add_argument("--family", help="model family; reads `<family>.<section>` of the parameters if it exists")
    parser.add_argument("--metrics", type=Path, help="where to write the metrics JSON")
    parser.add_argument("--quarantine", type=Path, help="where to write the table of rejected material")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (default: params.yaml)")
    return parser.parse_args(argv)


def _show(ctx: Context, shown: dict[Path, Path]) -> None:
    """Make and publish (staged → final) pictures and pages; if one fails, a text file in its place says why."""
    failed: list[str] = []
    for what, make, page in ctx.shows:
        with report_failure(f"{ctx.name}: {what}") as failures:
            make()
            if page:
                ctx.tracking.log_file(page)
        failed += failures
    for staged, final in shown.items():
        partly = "completely " if staged.exists() else ""
        if not partly or (failed and staged.is_dir()):
            text = staged if staged.suffix else staged / "failed.txt"
            text.parent.mkdir(exist_ok=True)
            text.write_text("\n".join([f"{final} was not {partly}written.", *failed, ""]), encoding="utf-8")
        publish(staged, final)


def publish(staged: Path, final: Path) -> None:
    """Move a finished output into place, synced; the previous one, maybe a hard link to DVC's cache, is unlinked, not written."""
    if staged.is_dir():
        disk.sync_files_below(staged)
    else:
        disk.sync_file(staged)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir() and not final.is_symlink():
        shutil.rmtree(final)
    elif final.exists() or final.is_symlink():
        final.unlink()
    os.replace(staged, final)
    disk.sync_directory(final.parent)


@contextmanager
def _only_one(work: Path) -> Iterator[None]:
    """Hold the stage's lock, so that no concurrent run shares its scratch."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("a+") as lock:
        for _ in range(20):  # workers of a killed run die within milliseconds
            if disk.try_lock(lock):
                break
            time.sleep(0.25)
        else:
            lock.seek(0)
            raise UserError(f"this stage is already running (process {lock.read().strip() or 'unknown'}); wait for it or stop it")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
