"""The only module that runs `dvc`: the sorted graph, single stages, dvc.lock, the cache."""

import functools
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, get_type_hints

from flows import locks
from soundmill import disk, dvc_recovery, lifetime, params, terminal
from soundmill.errors import UserError

KEPT_LINES = 40  # the last lines of a failing stage that are shown
STOP_SECONDS = 20.0  # for an interrupted stage to keep its finished work
STAGE_NAME = r"^[\w@./-]+$"
LAST_INTACT = Path(".dvc/tmp/dvc.lock.good")


class StageFailed(UserError):
    """A stage failed. `lines` are its last lines; `transient`: a retry may help."""

    def __init__(self, stage: str, lines: list[str], transient: bool):
        self.stage, self.lines, self.transient = stage, lines, transient
        super().__init__(f"stage {stage} failed:\n" + "\n".join(f"  {line}" for line in lines))


@dataclass(frozen=True)
class Stage:
    """One stage of the graph, and all its direct and indirect dependencies."""

    name: str
    needs: frozenset[str]


def executable() -> str:
    """The `dvc` next to this Python, so that the environment need not be activated; else the one on PATH."""
    beside = Path(sys.executable).parent / "dvc"
    if beside.exists():
        python = re.match(rb"#!(\S+)", beside.read_bytes())
        if python and not os.path.exists(python[1]):  # the environment was moved
            raise UserError(f"{beside} needs {os.fsdecode(python[1])}, which is gone; run `make clean-venv`, then `make demo`")
        return str(beside)
    if program := shutil.which("dvc"):
        return program
    raise UserError("dvc is not installed next to this Python; install the project with `make demo` or `pip install -e .`")


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Environment of a child: `python` in dvc.yaml is this Python, output is unbuffered and UTF-8, analytics are off."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    weights = os.environ.get("SOUNDMILL_WEIGHTS")  # made absolute, as children run in other directories
    weights_at = {"SOUNDMILL_WEIGHTS": str(Path(weights).absolute())} if weights else {}
    more = {**weights_at, "PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "DVC_NO_ANALYTICS": "1"}
    return {**os.environ, **more, **_variables.get(), **(extra or {})}


_variables: ContextVar[dict[str, str]] = ContextVar("variables", default={})  # noqa: B039 - never changed


@contextmanager
def with_variables(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables of every `dvc` that is started inside; other threads keep theirs."""
    before = _variables.set(_variables.get() | variables)
    try:
        yield
    finally:
        _variables.reset(before)


def check_here(root: Path) -> None:
    if not (root / "dvc.yaml").exists():
        raise UserError("no dvc.yaml here; run it from the root of a Soundmill checkout")


def stages(root: Path) -> list[Stage]:
    """All stages of the graph in topological order; ties in the order of dvc.yaml."""
    order: list[str] = []
    above: dict[str, set[str]] = {}
    for name, below in _graph(root):
        if below:
            above.setdefault(below, set()).add(name)
        else:
            order.append(name)
    return [stage for stage in _sorted(order, above) if not stage.name.endswith(".dvc")]


def _graph(root: Path, *options: str) -> Iterator[tuple[str, str | None]]:
    """The nodes of `dvc dag` as (name, None), and its edges as (name, name of the one below)."""
    for line in _dvc(root, "dag", "--dot", *options).strip().split("\n")[1:-1]:
        node = re.fullmatch(r'"([^"]*)"(?: -> "([^"]*)")?;', line)
        if not node:  # DVC does not escape names
            raise UserError(f"{root}/dvc.yaml: the name of a stage or an output has a quote or a line break: {line!r}; rename it")
        yield node[1], node[2]


def _sorted(order: list[str], above: dict[str, set[str]]) -> list[Stage]:
    done: dict[str, Stage] = {}
    while len(done) < len(order):
        ready = next(name for name in order if name not in done and above.get(name, set()) <= set(done))
        parents = above.get(ready, set())
        done[ready] = Stage(ready, frozenset(parents.union(*(done[parent].needs for parent in parents))))
    return list(done.values())


def sections(root: Path, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The parameters that each stage reads: its section of params.yaml, which dvc.yaml names; UserError if it is missing."""
    graph, document = params.read_yaml(root / "dvc.yaml")["stages"], params.read_yaml(root / "params.yaml")
    found = {}
    for stage in stages:
        name, _, key = stage.partition("@")
        listed = graph[name].get("do", graph[name]).get("params", [])
        found[stage] = params.section(document, listed[0].replace("${key}", key), "params.yaml") if listed else {}
    return found


def check_sections(root: Path, document: dict[str, Any]) -> None:
    """UserError if the content of a params.yaml has values that a stage would refuse, perhaps hours later, or a section for none.

    `registry.check` looks into the sections of families and vocoders.
    """
    if not (root / "conf/model").is_dir():  # a graph of other stages has other sections
        return
    params.parse_section(document, "execution", params.ExecutionParams)
    read, of_family = {"execution", "experiment", "mel_families"}, set()  # the first three are not in the graph
    for stage in params.read_yaml(root / "dvc.yaml")["stages"].values():
        over, do = stage.get("foreach", "").strip("${}"), stage.get("do", stage)
        keys = params.section(document, over, "params.yaml") if over else [""]
        if not isinstance(keys, dict | list):
            raise UserError(f"params.yaml: {over}: expected sections of parameters, found {keys!r}")
        module = importlib.import_module(re.search(r"-m (stages\.\w+)", do["cmd"])[1])
        model = get_type_hints(module.run)["params"]
        read.add(over.partition(".")[0])
        for name in do.get("params", []):
            (of_family if name.startswith("$") else read).add(name.removeprefix("${key}.").partition(".")[0])
            for key in keys if model is not params.StageParams else ():
                params.parse_section(document, name.replace("${key}", str(key)), model)
    families = _collection(document, "families")
    for name, known in {"": read | {*families}, **dict.fromkeys(families, of_family)}.items():
        for key in _collection(document, name) if name else document:
            if key not in known:
                where, meant = f"{name}.{key}".removeprefix("."), params.did_you_mean(key, sorted(known))
                raise UserError(f"params.yaml: {where}: no stage reads this section{meant}")
    for name in ("mel_families", "vocoder_families", "latent_families"):
        for key in _collection(document, name):
            params.section(document, f"{name}.{key}.mel", "params.yaml")


def _collection(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = params.section(document, name, "params.yaml")
    if isinstance(found, dict):
        return found
    raise UserError(f"params.yaml: {name}: expected sections of parameters, found {found!r}")


def changed(root: Path, stages: Sequence[str] = ()) -> dict[str, list[Any]]:
    """What `dvc status` finds changed in the graph, or in `stages` and what they need, and how; run, they may change others."""
    return json.loads(_dvc(root, "status", "--json", *(["--with-deps", *stages] if stages else [])) or "{}")


def metrics_of(root: Path, names: set[str]) -> list[Path]:
    """The existing metrics files that these stages wrote, according to dvc.lock."""
    entries = _read_lock(root).get("stages", {})
    paths = {out["path"] for name in names for out in entries.get(name, {}).get("outs", [])}
    return [root / path for path in sorted(paths) if path.startswith("data/metrics/") and (root / path).is_file()]


def entry_of(root: Path, name: str) -> dict[str, Any]:
    """What dvc.lock says of a stage; empty if it never ran."""
    return _read_lock(root).get("stages", {}).get(name, {})


def outputs(root: Path) -> list[str]:
    """Paths that stages and .dvc files write, as DVC resolves them: relative to `root`, absolute if outside."""
    return [path for path, below in _graph(root, "--outs") if below is None]


def _read_lock(root: Path) -> dict[str, Any]:
    return params.read_yaml(root / "dvc.lock") if (root / "dvc.lock").exists() else {}


Outcome = Literal["ran", "cached", "unchanged"]  # `cached`: outputs restored from an earlier run with the same inputs


def repro(
    root: Path,
    stage: str,
    say: locks.Say,
    force: bool = False,
    extra: dict[str, str] | None = None,
    pull: bool = True,
    note: Callable[[dict[str, Any]], object] = lambda facts: None,
) -> Outcome:
    """Run one stage if it changed; raises StageFailed with the stage's last lines, or with DVC's if it never started.

    `say` gets each line of the stage as it arrives, `note` the facts that it reports (`terminal.report`). `pull`: if it has never
    run here, or an output is missing, take the outputs from the default remote if it has them.
    """
    locks.repair_unreadable(root, say)
    before = entry_of(root, stage)
    there = all((root / out["path"]).exists() for out in before.get("outs", []))
    pull = pull and not force and not (before and there) and bool(remote(root))
    options = [*(["--force"] if force else []), *(["--pull"] if pull else [])]
    command = [executable(), "--wait-for-lock", "repro", "--single-item", *options, stage]
    own: deque[str] = deque(maxlen=KEPT_LINES)
    began = ended = False
    with _running(command, root, environment(extra)) as child:
        for line in child.lines:
            if (facts := terminal.reported(line)) is None:
                own.append(line.rstrip())
                say(line.rstrip())
            else:
                began, ended = began or "began" in facts, ended or "ended" in facts
                note(facts)
    if not child.code:
        return "ran" if began else "unchanged" if there and entry_of(root, stage) == before else "cached"
    if began:
        if not ended:
            own.append("killed; if memory ran out, lower execution.workers")
        raise StageFailed(stage, list(own), transient=not ended)
    words = _words(child.words)
    # A `dvc` that was killed may have left either file damaged, and another one may hold DVC's locks.
    damaged = child.code < 0 or fault_of_lock(root / "dvc.lock") or dvc_recovery.unreadable_locks(root)
    busy = locks.holders(root)
    if pull and not damaged and not busy:
        say(f"nothing was pulled from the remote {remote(root)}: {words[-1] if words else 'no message'}")
        return repro(root, stage, say, force, extra, pull=False, note=note)
    if child.code < 0:
        words.append("dvc was killed")
    raise StageFailed(stage, words or [f"dvc exited with {child.code} and no message"], transient=bool(damaged or busy))


def check_changes(root: Path, say: locks.Say) -> None:
    """UserError if a killed `dvc exp run` has set uncommitted changes aside, so that a run would lack them."""
    left = dvc_recovery.leftovers(root)
    if any(leftover.changes_missing for leftover in left):
        raise UserError("\n".join([*map(str, left), "Nothing was run, as it would have been without these changes."]))
    for leftover in left:
        say(str(leftover))


@dataclass(eq=False)
class _Child:
    """A running `dvc`: the lines of the stage that it runs, and at the end its own words and exit status."""

    process: subprocess.Popen[str]
    lines: TextIO
    words: str = ""
    code: int = 0


_children: set[_Child] = set()


@contextmanager
def _running(command: list[str], root: Path, variables: dict[str, str]) -> Iterator[_Child]:
    """Run `dvc`, and give the stage that it runs a pipe for its lines; `dvc` is interrupted if it still runs at the end."""
    read, write = os.pipe()
    with open(read, encoding="utf-8", errors="replace") as lines:
        variables = {**variables, terminal.PIPE: f"/proc/{os.getpid()}/fd/{write}"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
        process = subprocess.Popen(command, env=variables, **streams, **_options(root))
        _children.add(child := _Child(process, lines))

        def finish() -> None:
            child.words, _ = process.communicate()
            os.close(write)  # ends `lines`

        waiting = threading.Thread(target=finish, daemon=True)
        waiting.start()
        try:
            yield child
            waiting.join()
            child.code = process.returncode
        finally:
            _children.remove(child)
            interrupt([child])


def interrupt(children: Sequence[_Child] | None = None) -> None:
    """Interrupt these `dvc`, by default all that any thread of this process runs, and wait until they have ended."""
    running = [child.process for child in (children or list(_children)) if child.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _options(root: Path) -> dict[str, Any]:
    return {"cwd": root, "stdin": subprocess.DEVNULL, "encoding": "utf-8", "preexec_fn": lifetime.with_this_process()}


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command, streams = [executable(), *arguments], {"capture_output": True, "errors": "surrogateescape"}
    return subprocess.run(command, env=environment(), **streams, **_options(root))


def _dvc(root: Path, *arguments: str) -> str:
    """Output of a short dvc command; UserError with its message if it fails."""
    done = _run(root, *arguments)
    if done.returncode:
        lines = "\n".join(f"  {line}" for line in _words(done.stderr))
        raise UserError(f"`dvc {' '.join(arguments)}` failed in {root}; fix it and run again:\n{lines}")
    return done.stdout


def _words(text: str) -> list[str]:
    return [line.removeprefix("ERROR: ") for line in text.splitlines() if line.strip()][-KEPT_LINES:]


# dvc.lock


def keep_lock_intact(root: Path) -> str | None:
    """Copy an intact dvc.lock; restore one that a full disk or a kill truncated, as DVC rewrites it in place, and say so."""

    def copy(source: Path, target: Path) -> None:
        content = source.read_bytes()
        if not target.exists() or target.read_bytes() != content:
            disk.write_atomically(target, lambda path: path.write_bytes(content))

    lock, good = root / "dvc.lock", root / LAST_INTACT
    if not lock.exists():
        good.unlink(missing_ok=True)
        return None
    fault = fault_of_lock(lock)
    if fault is None:
        copy(lock, good)
        return None
    shutil.copyfile(lock, root / ".dvc/tmp/dvc.lock.broken")
    if good.exists() and fault_of_lock(good) is None:
        copy(good, lock)
        return f"dvc.lock was damaged ({fault}): restored the last intact one; later stages come from the run cache or run again"
    lock.unlink()
    return f"dvc.lock was damaged ({fault}), and there is no intact copy: it is rebuilt, from the run cache where possible"


def fault_of_lock(path: Path) -> str | None:
    """What is wrong with a dvc.lock, if it exists: it must parse, and every entry needs a command and complete hashes."""
    if not path.exists():
        return None
    try:
        document = params.read_yaml(path)
    except UserError as error:
        return str(error).splitlines()[0]
    if not path.read_bytes().endswith(b"\n"):
        return "its last line is truncated"
    if document.get("schema") != "2.0":
        return "no `schema: '2.0'`"
    where = "`stages`"
    try:
        for name, entry in (document.get("stages") or {}).items():
            where = f"stage {name}"
            if not isinstance(entry.get("cmd"), str | list):
                return f"stage {name} has no command"
            for item in [*entry.get("deps", []), *entry.get("outs", [])]:
                path = item["path"]
                if "md5" in item and not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", str(item["md5"])):
                    return f"stage {name}: the hash of {path} is truncated"
                if "md5" not in item and item.get("hash", "md5") == "md5":
                    return f"stage {name}: {path} has no hash"
    except (AttributeError, KeyError, TypeError):
        return f"{where} is not as DVC writes it"
    return None


# The remote


@functools.cache
def config(root: Path) -> dict[str, str]:
    """DVC's settings in the checkout at `root`, with absolute paths, by `section.key`; looked up once."""
    lines = _dvc(root, "config", "--list").splitlines()
    settings = {key: value for key, _, value in (line.partition("=") for line in lines)}
    params.check_urls({key: value for key, value in settings.items() if key.endswith("url")}, f"{root}/.dvc")
    return settings


def write_settings(path: Path, settings: dict[str, str]) -> None:
    """Add settings to a file of DVC's, readable only by this user: they may have secrets. DVC's own commands write ASCII only."""
    from configobj import ConfigObj  # as DVC reads it: it quotes what values need

    sections = ConfigObj(str(path), encoding="utf-8")
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        kind, _, which = section.partition(".")
        sections.setdefault(f'{kind} "{which}"' if which else kind, {})[name] = value
    with open(path, "wb", opener=disk.private) as file:
        sections.write(file)


def remote(root: Path) -> str | None:
    return config(root).get("core.remote")


def remotes(root: Path) -> dict[str, str]:
    """Name → address of the remotes of the checkout at `root`."""
    found = {key: re.fullmatch(r"remote\.(.+)\.url", key) for key in config(root)}
    return {match[1]: config(root)[key] for key, match in found.items() if match}


def push(root: Path, target: str) -> list[str]:
    """Copy a target's outputs and the run cache to the default remote; returns the outputs, and files in them, that it lacked."""
    states = json.loads(_dvc(root, "status", "--cloud", "--json", target) or "{}")
    _dvc(root, "push", "--run-cache", target)
    return [name for name, state in states.items() if state == "new"]


# The cache


def share_cache(root: Path, owner: Path) -> Path:
    """Let the checkout at `root` use the cache of the one at `owner` (in config.local, which git ignores); returns its path."""
    path = cache_directory(owner)
    path.mkdir(parents=True, exist_ok=True)
    # Relative to the file of settings, so both may move together.
    write_settings(root / ".dvc/config.local", {"cache.dir": os.path.relpath(path, root / ".dvc")})
    cache_directory.cache_clear()
    return path


@functools.cache
def cache_directory(root: Path) -> Path:
    """The cache that the checkout at `root` uses; looked up once."""
    return (root / _dvc(root, "cache", "dir").strip()).resolve()


def unused(root: Path, others: Sequence[Path]) -> list[Path]:
    """Objects of the cache that neither this checkout nor `others` use."""
    projects = ["--projects", *map(str, others)] if others else []
    lines = _dvc(root, "gc", "--workspace", "--dry", "--force", *projects).splitlines()
    return sorted(Path(line.removeprefix("Removing ")).resolve() for line in lines if line.startswith("Removing "))


def checkout(root: Path) -> None:
    """Restore the outputs in dvc.lock that the cache has; UserError if that fails for another reason than that it lacks some."""
    done = _run(root, "checkout", "--force", "--relink")
    said = f"{done.stdout}\n{done.stderr}"
    # Neither its exit code nor `dvc status` tells the reasons apart.
    if done.returncode and "Checkout failed for following targets" not in said:
        raise UserError(f"`dvc checkout` failed in {root}:\n" + "\n".join(f"  {line}" for line in _words(said)))
