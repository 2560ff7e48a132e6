"""The only caller of `dvc`: the graph in order, one stage at a time, who holds its locks, and a dvc.lock that stays whole."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from soundmill import experiments, lifetime, params
from soundmill.errors import UserError

GOOD_LOCK = Path(".dvc/tmp/dvc.lock.good")  # the last dvc.lock that was found whole
KEPT_LINES = 40  # of a failing stage
POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 30.0  # a stage that says nothing for so long is said to be still at work
DATA_METRICS = "data/metrics/"

Say = Callable[[str], None]


class StageFailed(UserError):
    """A stage ended badly. `lines` are its own last words, `passing` whether another try may help."""

    def __init__(self, stage: str, lines: list[str], passing: bool):
        self.stage, self.lines, self.passing = stage, lines, passing
        super().__init__(f"stage {stage} failed:\n" + "\n".join(f"  {line}" for line in lines))


@dataclass(frozen=True)
class Stage:
    """One stage of the graph, and every stage it needs (all the way up)."""

    name: str
    needs: frozenset[str]


@dataclass(frozen=True)
class Holder:
    """A process that holds one of DVC's locks."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def executable() -> str:
    """The `dvc` that belongs to this Python (usable without activating the environment), else the one on PATH."""
    beside = Path(sys.executable).parent / "dvc"
    found = str(beside) if beside.exists() else shutil.which("dvc")
    if not found:
        raise UserError("dvc is not installed beside this Python; install the project: `make demo` does, or `pip install -e .`")
    return found


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """For a child: `python` in dvc.yaml is this Python, output comes line by line, nothing is sent home."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    weights = os.environ.get("SOUNDMILL_WEIGHTS")  # may be relative, and a workspace is elsewhere
    found = {"SOUNDMILL_WEIGHTS": str(Path(weights).absolute())} if weights else {}
    return {**os.environ, **found, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1", **(extra or {})}


def stages(root: Path) -> list[Stage]:
    """Every stage of the graph, each after all it needs; ties in the order of dvc.yaml."""
    order: list[str] = []
    above: dict[str, set[str]] = {}
    for line in _dvc(root, "dag", "--dot").splitlines():
        names = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
        if len(names) == 2:
            above.setdefault(names[1], set()).add(names[0])
        elif len(names) == 1:
            order.append(names[0])
    return [stage for stage in _sorted(order, above) if not stage.name.endswith(".dvc")]


def _sorted(order: list[str], above: dict[str, set[str]]) -> list[Stage]:
    done: dict[str, Stage] = {}
    while len(done) < len(order):
        ready = next(name for name in order if name not in done and above.get(name, set()) <= set(done))
        parents = above.get(ready, set())
        done[ready] = Stage(ready, frozenset(parents.union(*(done[parent].needs for parent in parents))))
    return list(done.values())


def changed(root: Path) -> dict[str, list[Any]]:
    """Stages that `dvc status` finds changed themselves, and how; what lies below them may change when they have run."""
    return json.loads(_dvc(root, "status", "--json") or "{}")


def metrics_of(root: Path, names: set[str]) -> list[Path]:
    """The metrics files that dvc.lock says these stages wrote, where they are there."""
    entries = _read_lock(root).get("stages", {})
    paths = {out["path"] for name in names for out in entries.get(name, {}).get("outs", [])}
    return [root / path for path in sorted(paths) if path.startswith(DATA_METRICS) and (root / path).is_file()]


def outputs_of(root: Path, name: str) -> list[str]:
    """Paths that dvc.lock says a stage wrote; empty when it never ran."""
    return [out["path"] for out in _read_lock(root).get("stages", {}).get(name, {}).get("outs", [])]


def outputs(root: Path) -> list[str]:
    """Paths that stages and .dvc files write, as DVC resolves them: from `root`, and absolute where they lie outside."""
    paths = []
    for line in _dvc(root, "dag", "--outs", "--dot").strip().split("\n")[1:-1]:
        node = re.fullmatch(r'"([^"]*)"( -> "[^"]*")?;', line)
        if not node:  # DVC does not escape them
            raise UserError(f"{root}/dvc.yaml: an output has a quote or a line break in its name: {line!r}; give it another one")
        paths += [] if node[2] else [node[1]]
    return paths


def _read_lock(root: Path) -> dict[str, Any]:
    return params.read_yaml(root / "dvc.lock") if (root / "dvc.lock").exists() else {}


Outcome = Literal["ran", "cached", "unchanged"]  # `cached`: done before with the same inputs, its outputs brought back


def repro(root: Path, stage: str, say: Say, force: bool = False, extra: dict[str, str] | None = None) -> Outcome:
    """Run one stage if it changed. `say` gets each line as it comes; raises StageFailed with the stage's own last lines."""
    remove_unreadable_locks(root, say)
    command = [executable(), "repro", "--single-item", *(["--force"] if force else []), stage]
    lines: deque[str] = deque(maxlen=400)
    outcome: Outcome = "unchanged"
    with _running(command, root, environment(extra)) as (process, output):
        for line in output:
            lines.append(line)
            if line.startswith("> "):
                outcome = "ran"
            elif outcome == "unchanged" and line.endswith(CACHED):
                outcome = "cached"
            if not _is_noise(line):
                say(line)
        code = process.wait()
    if code:
        raise _failure(stage, list(lines), code)
    return outcome


def queue(root: Path, name: str, overrides: list[str]) -> str:
    """Put an experiment with these Hydra overrides into DVC's queue; returns its name, numbered where that is taken."""
    taken = set(_dvc(root, "exp", "list", "--name-only").split())
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    free = next(other for other in itertools.chain([name], numbered) if other not in taken)
    _dvc(root, "exp", "run", "--queue", "--name", free, *(word for override in overrides for word in ("-S", override)))
    return free


CACHED = "is cached - skipping run, checking out outputs"
NOISE = re.compile(
    r"\s*$|To track the changes with git|\s+git add |To enable auto staging|\s+dvc config core\.autostage|Use `dvc push`|> "
    r"|(Updating|Generating) lock file|Data and pipelines are up to date|Running stage '|Stage '.*' (didn't change|is cached)"
    r"|ERROR: failed to reproduce"
)


def _is_noise(line: str) -> bool:
    return bool(NOISE.match(line))


def _failure(stage: str, lines: list[str], code: int) -> StageFailed:
    """What a person should read: the stage's own words if it ran, else DVC's."""
    text = "\n".join(lines)
    exited = re.search(r"^ERROR: failed to reproduce .*exited with (-?\d+)$", text, re.MULTILINE)
    busy = "is busy, it is being blocked by" in text or "Unable to acquire lock" in text
    if exited:
        start = max((index + 1 for index, line in enumerate(lines) if line.startswith("> ")), default=0)
        own = [line for line in lines[start:] if line.strip() and not line.startswith("ERROR: failed to reproduce")]
        status = int(exited[1])
        killed = status < 0 or status > 128
        if killed:
            own.append(
                f"killed by {_signal_name(-status if status < 0 else status - 128)}; if memory was short, lower execution.workers"
            )
        return StageFailed(stage, own[-KEPT_LINES:] or [f"no message; its command exited with {status}"], passing=killed)
    own = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ") or not _is_noise(line)]
    if code < 0:
        own.append(f"dvc was killed by {_signal_name(-code)}")
    return StageFailed(stage, own[-KEPT_LINES:] or [f"dvc exited with {code} and no message"], passing=busy or code < 0)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def _running(command: list[str], root: Path, variables: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[str]]]:
    """The process, and its lines as they come.

    On a terminal the command gets one too, so that progress bars show; they are drawn on ours and kept out of the lines.
    """
    live = sys.stderr.isatty()
    if live:
        reader, theirs = pty.openpty()
        fcntl.ioctl(theirs, _SET_SIZE, fcntl.ioctl(sys.stderr.fileno(), _GET_SIZE, b"\0" * 8))
    else:
        reader, theirs = os.pipe()
    process = subprocess.Popen(
        command,
        cwd=root,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lifetime.with_this_process(),
    )
    os.close(theirs)
    started = time.monotonic()
    try:
        yield process, _lines(reader, live, started)
    finally:
        os.close(reader)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # the stage keeps what it has finished
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _lines(reader: int, live: bool, started: float) -> Iterator[str]:
    import select

    rest, drawn, silent_since, next_word = b"", False, time.monotonic(), HEARTBEAT_SECONDS
    while True:
        if not select.select([reader], [], [], POLL_SECONDS)[0]:
            if not live and time.monotonic() - silent_since > next_word:
                yield f"… at work for {_duration(time.monotonic() - started)}"
                next_word *= 2
            continue
        try:
            block = os.read(reader, 65536)
        except OSError:  # a terminal whose other side is closed
            block = b""
        silent_since, next_word = time.monotonic(), HEARTBEAT_SECONDS
        rest += block.replace(b"\r\n", b"\n")
        *whole, rest = rest.split(b"\n")
        if not block and rest:
            whole.append(rest)
        for raw in whole:
            if drawn:
                sys.stderr.write("\r\x1b[K")
                drawn = False
            text = _plain(raw.rpartition(b"\r")[2])
            if not _BAR.search(text):
                yield text
        if not block:
            return
        if live and b"\r" in rest:
            before, _, last = rest.rpartition(b"\r")
            sys.stderr.write("\r" + _plain(last or before.rpartition(b"\r")[2]) + "\x1b[K")
            sys.stderr.flush()
            drawn = True


_GET_SIZE, _SET_SIZE = 0x5413, 0x5414  # TIOCGWINSZ, TIOCSWINSZ
_BAR = re.compile(r"\d+%\|.*\|.*\d+/\d+|\d+(\.\d+)?[kMG]?(it|clip|step|file)s? \[\d+:\d+")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _plain(raw: bytes) -> str:
    return _ESCAPES.sub("", raw.decode("utf-8", "replace")).rstrip()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _run(root: Path, *arguments: str, extra: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [executable(), *arguments]
    return subprocess.run(
        command,
        cwd=root,
        env=environment(extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=lifetime.with_this_process(),
    )


def _dvc(root: Path, *arguments: str) -> str:
    """Output of a short dvc command; its own message becomes the error."""
    done = _run(root, *arguments)
    if done.returncode:
        words = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f"`dvc {' '.join(arguments)}` failed in {root}:\n" + "\n".join(f"  {line}" for line in words[-KEPT_LINES:]))
    return done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Locks


def holders(root: Path) -> list[Holder]:
    """Who runs DVC in this project right now, by its two locks: of the repository, and of the paths a stage works on."""
    found = {}
    temporary = root / ".dvc" / "tmp"
    written = _mtime(root / lifetime.LOCKS)
    for info in lifetime.dvc_locks(root):
        started = _started(info["pid"])
        if started is not None and started <= written + 1:  # a process born later only has the number of a dead one
            found[info["pid"]] = Holder(info["pid"], info["cmd"])
    if _is_locked(temporary / "lock"):
        pid = _number_in(temporary / "lock")
        found.setdefault(pid, Holder(pid, _command_line(pid) or "dvc"))
    return list(found.values())


def wait_until_free(root: Path, seconds: float, say: Say) -> None:
    """Wait up to `seconds` for others to finish with DVC in this project; says who they are, and UserError if they do not."""
    deadline = time.monotonic() + seconds
    said: list[Holder] = []
    while busy := holders(root):
        names = ", ".join(map(str, busy))
        if time.monotonic() >= deadline:
            waited = f" after {_duration(seconds)} of waiting" if seconds else ""
            raise UserError(f"{root} is in use by {names}{waited}; wait for it, or stop it, and run again")
        if busy != said:
            say(f"waiting for {names} (up to {_duration(deadline - time.monotonic())})")
            said = busy
        time.sleep(POLL_SECONDS)
    if said:
        say(f"{', '.join(map(str, said))} has finished; going on")


def remove_unreadable_locks(root: Path, say: Say) -> None:
    """Move DVC's locks of paths away that a killed `dvc` left unreadable, while no `dvc` runs here."""
    for path in experiments.unreadable_locks(root):
        if running := holders(root) or _dvc_in(root):
            raise UserError(f"{path} is unreadable, and {running[0]} runs; when it has ended, run again")
        path.replace(path.with_name("rwlock.unreadable"))
        say(f"{path.relative_to(root)} was unreadable, left so by a `dvc` that was killed: moved to rwlock.unreadable beside it")


def _dvc_in(root: Path) -> list[Holder]:
    """Living `dvc` processes in this checkout, whatever its locks say."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        words = _command_line(int(entry.name))
        with suppress(OSError):
            if re.search(r"(^|/)dvc( |$)", words) and (entry / "cwd").resolve().is_relative_to(root.resolve()):
                found.append(Holder(int(entry.name), words))
    return found


@contextmanager
def only_one(root: Path, seconds: float, say: Say) -> Iterator[None]:
    """Hold the project for one pipeline: others wait up to `seconds` for it, then UserError says who has it."""
    path = root / ".dvc" / "tmp" / "pipeline.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline, told = time.monotonic() + seconds, False
    with path.open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pid = _number_in(path)
                other = Holder(pid, _command_line(pid) or "a pipeline")
                if time.monotonic() >= deadline:
                    raise UserError(f"{root}: a pipeline runs here already: {other}; wait for it, or stop it") from None
                if not told:
                    say(f"waiting for {other} (up to {_duration(seconds)})")
                    told = True
                time.sleep(POLL_SECONDS)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        wait_until_free(root, max(deadline - time.monotonic(), 0), say)
        yield


def check_changes(root: Path, say: Say) -> None:
    """UserError where a `dvc exp run` has set uncommitted changes aside: what runs now would run without them."""
    found = experiments.leftovers(root)
    if any(leftover.changes_missing for leftover in found):
        raise UserError("\n".join([*map(str, found), "Nothing was run: it would have gone without them."]))
    for leftover in found:
        say(str(leftover))


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _number_in(path: Path) -> int:
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _started(pid: int) -> float | None:
    """When a living process began, in seconds since 1970; None when there is none.

    One that has ended and that nobody asks after, as in a container without an init, is none.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if state in "ZX":
            return None
        ticks = int(rest[18])
        boot = next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return boot + ticks / os.sysconf("SC_CLK_TCK")


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(word.decode("utf-8", "replace") for word in words if word)


# ---------------------------------------------------------------------------------------------------------------------
# dvc.lock


def keep_lock_whole(root: Path) -> str | None:
    """Keep a copy of dvc.lock while it is whole, and put it back when it is not (DVC rewrites it in place: a full disk cuts it).

    Returns what was mended, in words, or None.
    """
    lock, good = root / "dvc.lock", root / GOOD_LOCK
    if not lock.exists():
        return None
    fault = lock_fault(lock)
    if fault is None:
        if not good.exists() or good.read_bytes() != lock.read_bytes():
            _copy_whole(lock, good)
        return None
    shutil.copyfile(lock, root / ".dvc" / "tmp" / "dvc.lock.broken")
    if good.exists() and lock_fault(good) is None:
        _copy_whole(good, lock)
        return f"dvc.lock was broken ({fault}): the last whole one is back; later stages come from the run cache or run again"
    lock.unlink()
    return f"dvc.lock was broken ({fault}), and no whole copy is kept: it is made anew, from the run cache where that has it"


_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


def lock_fault(path: Path) -> str | None:
    """What is wrong with a dvc.lock, or None: it must parse, and every entry must have its command and whole hashes."""
    try:
        document = params.read_yaml(path)
    except UserError as error:
        return str(error).splitlines()[0]
    if not path.read_bytes().endswith(b"\n"):
        return "its last line is cut"
    if document.get("schema") != "2.0":
        return "no `schema: '2.0'`"
    entries = document.get("stages") or {}
    if not isinstance(entries, dict):
        return "`stages` is no mapping"
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("cmd"), str | list):
            return f"stage {name} has no command"
        listed = [entry.get("deps") or [], entry.get("outs") or []]
        if not all(isinstance(items, list) for items in listed):
            return f"stage {name} has no list of what it reads or writes"
        for item in [item for items in listed for item in items]:
            if not isinstance(item, dict) or not isinstance(item.get("path"), str):
                return f"stage {name} has an entry without a path"
            if "md5" in item and not _HASH.fullmatch(str(item["md5"])):
                return f"stage {name}: the hash of {item['path']} is cut"
            if "md5" not in item and item.get("hash", "md5") == "md5":
                return f"stage {name}: {item['path']} has no hash"
    return None


def _copy_whole(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.partial")
    with temporary.open("wb") as file:
        file.write(source.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)


# ---------------------------------------------------------------------------------------------------------------------
# The cache


def share_cache(root: Path, owner: Path) -> None:
    """Let the checkout at `root` use the cache of the one at `owner`, for itself alone (config.local)."""
    cache = _dvc(owner, "cache", "dir").strip()
    path = Path(cache) if Path(cache).is_absolute() else (owner / cache).resolve()
    path.mkdir(parents=True, exist_ok=True)
    _dvc(root, "cache", "dir", "--local", str(path))


def checkout(root: Path) -> list[str]:
    """Bring back what dvc.lock names from the cache; returns the paths that are not in it."""
    done = _run(root, "checkout", "--force", "--relink")
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    if done.returncode == 0:
        return []
    start = next((index + 1 for index, line in enumerate(lines) if "Checkout failed for following targets" in line), None)
    if start is None:
        raise UserError(f"`dvc checkout` failed in {root}:\n" + "\n".join(f"  {line}" for line in lines[-KEPT_LINES:]))
    missing = []
    for line in lines[start:]:
        if line.startswith(("Is your cache", "<http")):
            break
        missing.append(line)
    return missing


def restore(root: Path, stage: str) -> bool:
    """Bring a stage's results back from the run cache, under the digests of its inputs; False where it would have to run."""
    # DVC runs commands through $SHELL: with this one it finds nothing to run, whatever the command.
    command = [executable(), "repro", "--single-item", stage]
    done = subprocess.run(
        command,
        cwd=root,
        env=environment({"SHELL": shutil.which("false") or "false"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        preexec_fn=lifetime.with_this_process(),
    )
    return done.returncode == 0
