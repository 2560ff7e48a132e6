"""Commands about what this machine has: everything that Soundmill can use, with remedies; the weights of embedders."""

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from soundmill import pretrained, terminal
from soundmill.commands.project import Root, project_root
from soundmill.errors import UserError
from soundmill.params import choose, read_yaml
from soundmill.pretrained import Weights

app = typer.Typer()
weights = typer.Typer(
    no_args_is_help=True, help="Weights of embedders and classifiers: in $SOUNDMILL_WEIGHTS, else the user's cache."
)

LOW_DISK_GB, LOW_TEMPORARY_GB = 5.0, 1.0
CLOCK_SECONDS = 5.0  # that a server's clock may differ


@dataclass(frozen=True)
class Finding:
    """One line of the report; `lacking` stops the pipeline, `optional` limits what it can do."""

    name: str
    state: Literal["ok", "optional", "lacking"]
    detail: str
    remedy: str = ""


@app.command()
def doctor(root: Root = None) -> None:
    """Check this machine (ffmpeg, GPU, weights, disk, tracking server), with a remedy for each thing that is missing."""
    lacking = False
    for finding in examine(root):
        mark, color = {"ok": ("ok", "green"), "optional": ("--", "yellow"), "lacking": ("!!", "red")}[finding.state]
        terminal.say(f"{mark}  {finding.name:<9} {finding.detail}", color=color)
        if finding.remedy:
            terminal.say(f"{'':14}→ {finding.remedy}")
        lacking = lacking or finding.state == "lacking"
    raise typer.Exit(1 if lacking else 0)


def examine(root: Path) -> Iterator[Finding]:
    """Findings about the project at `root`, one at a time (some take a second)."""
    for check in (_python, _ffmpeg, _tools, _cores, _gpu, _disk, _temporary, _weights, _tracking, _prefect, _dvc_lock, _changes):
        found = check(root)
        yield from found if isinstance(found, list) else [found]


def _python(root: Path) -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} in {sys.prefix}")


def _ffmpeg(root: Path) -> Finding:
    from soundmill.decoding import ffmpeg

    try:
        return Finding("ffmpeg", "ok", f"{ffmpeg.ffmpeg_version()} at {ffmpeg.ffmpeg_executable()}")
    except UserError as error:
        return Finding("ffmpeg", "lacking", "none", str(error))


def _tools(root: Path) -> Finding:
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    missing = [name for name in ("git", "dvc") if shutil.which(name, path=beside) is None]
    if missing:
        return Finding("git, dvc", "lacking", f"no {' and no '.join(missing)}", "apt-get install git; dvc comes with `make demo`")
    return Finding("git, dvc", "ok", "both found")


def _cores(root: Path) -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Finding("CPU", "ok", f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GB of memory")


def _gpu(root: Path) -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("GPU", "ok", f"{names} (torch {torch.__version__})")
    return Finding("GPU", "optional", f"none that torch {torch.__version__} can use", "`laptop` scale is sized for two CPU cores")


def _disk(root: Path) -> Finding:
    cache = root / ".dvc" / "cache"
    places = [root, *([cache] if cache.exists() else [])]  # the cache may be a link to another disk
    for place in places:
        if not os.access(place, os.W_OK):
            return Finding("disk", "lacking", f"{place} is not writable", "give its files to the user who runs Soundmill")
    free = min(shutil.disk_usage(place).free for place in places) / 1e9
    if free < LOW_DISK_GB:
        remedy = "free some space; `soundmill clean` shows which old outputs can be removed"
        return Finding("disk", "lacking", f"{free:.1f} GB free", remedy)
    return Finding("disk", "ok", f"{free:.0f} GB free")


def _temporary(root: Path) -> Finding:
    place = Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free / 1e9
    if free < LOW_TEMPORARY_GB:
        return Finding("temporary", "optional", f"{free:.1f} GB free in {place}", "free some space, or set TMPDIR to another disk")
    return Finding("temporary", "ok", f"{free:.0f} GB free in {place}")


def _weights(root: Path) -> Finding:
    from soundmill.evaluation import embedders

    published = embedders.published()
    missing = [name for name, weights in published.items() if pretrained.unavailable(weights)]
    here = [name for name in published if name not in missing]
    present = f"{', '.join(here) or 'none'} in {pretrained.directory()}"
    if not missing:
        return Finding("weights", "ok", present)
    can_score = ", ".join(["tagger", "texture", *here])
    remedy = (
        f"`soundmill weights fetch` gets those in params.yaml, `soundmill weights fetch NAME` others ({', '.join(missing)}); "
        f"without them only {can_score} can score"
    )
    return Finding("weights", "optional", present, remedy)


def _tracking(root: Path) -> Finding | list[Finding]:
    from soundmill import tracking

    works, where = tracking.status(root)
    count, why = tracking.waiting(root)
    if not works:
        kept = "no run is recorded" if tracking.is_off() else "runs are kept on disk; `soundmill sync` uploads them"
        return Finding("tracking", "optional", where, f"until then {kept}")
    if why:
        found = Finding("tracking", "optional", f"{where}; {count} runs not uploaded yet ({why})", "`soundmill sync` uploads them")
    else:
        found = Finding("tracking", "ok", f"{where}; `make browse` shows the runs")
    store = tracking.store(root)
    if not store.is_server:
        return found
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    try:
        writing = Finding("recording", "ok", f"allowed; a file was written to {tracking.check_writing(root)}, read and deleted")
    except UserError as error:
        writing = Finding("recording", "optional", str(error), "until then runs are kept on disk; `soundmill sync` uploads them")
    url = f"{store.uri.rstrip('/')}/version"
    return [found, *_compared("MLflow", url, (user, password), "MLFLOW_TRACKING_USERNAME and _PASSWORD"), writing]


def _compared(package: str, url: str, login: tuple[str, str], variables: str) -> list[Finding]:
    """The version of a server (the answer of `url`) and its clock, compared with those here."""
    from email.utils import parsedate_to_datetime
    from importlib.metadata import version

    import httpx

    asked = time.time()
    try:
        answer = httpx.get(url, auth=login if login[0] else None, timeout=10.0)
    except httpx.HTTPError as error:
        return [Finding(package, "optional", str(error), "does the server's address answer from here?")]
    answered, found, url = time.time(), [], url.partition("://")[2].rpartition("@")[2]  # without a password
    there, here = answer.text.strip().strip('"'), version(package.lower())
    if answer.status_code in (401, 403):
        found.append(Finding(package, "optional", f"{url} refuses this login", f"set {variables} to those of the server"))
    elif not answer.is_success or not re.fullmatch(r"\d[\w.+-]*", there):
        detail = f"{url}: no version (status {answer.status_code})"
        found.append(Finding(package, "optional", detail, "is that the server's address?"))
    elif there.split(".")[:2] != here.split(".")[:2]:
        found.append(Finding(package, "optional", f"version {there} there, {here} here", "install the same version there and here"))
    else:
        found.append(Finding(package, "ok", f"version {there} there, {here} here"))
    if date := answer.headers.get("date"):
        there_now = parsedate_to_datetime(date).timestamp()  # whole seconds, between `asked` and `answered`
        behind, ahead = asked - there_now - 1, there_now - answered
        if max(behind, ahead) <= CLOCK_SECONDS:
            found.append(Finding("clocks", "ok", f"that of {url} agrees"))
        else:
            detail = f"that of {url} is {max(behind, ahead):.0f} s {'ahead' if ahead > behind else 'behind'}"
            found.append(Finding("clocks", "optional", detail, "set both by NTP: curves and durations mix the times of both"))
    return found


def _prefect(root: Path) -> Finding | list[Finding]:
    from flows import server

    url = server.address()
    if not url:
        return Finding("Prefect", "ok", "no PREFECT_API_URL: each run starts its own server; for schedules, `make server`")
    try:
        server.check(url)
    except UserError as error:
        return Finding("Prefect", "optional", str(error), "or unset PREFECT_API_URL: each run then starts its own server")
    return [
        Finding("Prefect", "ok", f"{url} answers"),
        *_compared("Prefect", f"{url.rstrip('/')}/admin/version", server.login(url).partition(":")[::2], "PREFECT_API_AUTH_STRING"),
    ]


def _dvc_lock(root: Path) -> Finding:
    path = root / "dvc.lock"
    if not path.exists():
        return Finding("dvc.lock", "optional", "none yet", "`make demo` builds everything for the first time")
    from flows import dvc

    if fault := dvc.fault_of_lock(path):
        return Finding("dvc.lock", "lacking", fault, "full disk? `python -m flows.run` restores the last intact one")
    return Finding("dvc.lock", "ok", f"{len(read_yaml(path).get('stages', {}))} stages built")


def _changes(root: Path) -> Finding:
    from soundmill import dvc_recovery

    left = dvc_recovery.leftovers(root)
    if not left:
        return Finding("changes", "ok", "none set aside by a killed `dvc exp run`")
    remedy = "; then ".join(leftover.remedy for leftover in left)
    return Finding("changes", "lacking", "; ".join(leftover.what for leftover in left), remedy)


@weights.command("list")
def list_weights() -> None:
    """List the known weights: whether they are here, size, licence, file, source and digest."""
    from soundmill.evaluation import embedders

    for name, entry in embedders.published().items():
        path = pretrained.directory() / entry.file
        if not path.is_file():
            state, color = "--", "yellow"
        else:
            state, color = ("ok", "green") if entry.num_bytes in (None, path.stat().st_size) else ("!!", "red")
        terminal.say(f"{state}  {name:<21} {_size(entry):>8}  {entry.licence:<10}  {entry.file}", color=color)
        terminal.say(f"{'':4}{entry.source}\n{'':4}{' '.join(entry.pin)}")
    terminal.say(f"ok: in {pretrained.directory()}; !!: wrong size; `soundmill weights fetch NAME` fixes it.", error=True)
    for name in embedders.NAMES:
        if name not in embedders.published():
            terminal.say(f"{name}: {embedders.find(name).origin}", error=True)


@weights.command("fetch")
def fetch_weights(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names from `soundmill weights list` (default: those that params.yaml of this checkout names)."),
    ] = None,
    mirror: Annotated[Path | None, typer.Option("--from", help="Copy them from this directory instead of downloading.")] = None,
    sha256: Annotated[str, typer.Option(help="SHA-256 that you trust, for a file whose publisher states only an MD5.")] = "",
) -> None:
    """Download weights, or resume an interrupted download; only verified files are installed."""
    if sha256 and not (re.fullmatch("[0-9a-f]{64}", sha256) and names and len(names) == 1):
        raise UserError("--sha256: give the 64 hex digits of one file, and its name")
    for wanted in _published(names or _named_in_params()):
        terminal.say(pretrained.fetch(wanted, mirror, sys.stderr.isatty(), sha256))


@weights.command("verify")
def verify_weights(
    names: Annotated[list[str] | None, typer.Argument(help="Names from `soundmill weights list` (default: all).")] = None,
) -> None:
    """Check the digests of the files that are here; a wrong one is an error."""
    wrong = []
    chosen = [weights for weights in _published(names) if names or not pretrained.unavailable(weights)]
    for weights in chosen:
        try:
            terminal.say(f"ok  {pretrained.verify(weights)}", color="green")
        except UserError as error:
            wrong.append(str(error))
    if not chosen:
        terminal.say(f"none in {pretrained.directory()}; `soundmill weights fetch` downloads them", error=True)
    if wrong:
        raise UserError("\n".join(wrong))


@weights.command("path")
def path_of_weights(name: Annotated[str, typer.Argument(help="A name from `soundmill weights list`.")]) -> None:
    """Verify a file and print its path."""
    (weights,) = _published([name])
    terminal.say(pretrained.path(weights))


def _named_in_params() -> list[str]:
    """The weights that params.yaml of this checkout names; UserError if it names none, or if there is no checkout."""
    from soundmill.evaluation import embedders, protocols

    sizes = ", ".join(f"{name} ({_size(entry)})" for name, entry in embedders.published().items())
    ask = f"name the weights to fetch: {sizes}"
    try:
        root = project_root(None)
    except UserError:
        raise UserError(f"{Path.cwd()}: not inside a checkout whose params.yaml names weights; {ask}") from None
    document = read_yaml(root / "params.yaml")
    others = [name for name in (document.get("evaluate") or {}).get("protocols") or [] if name != protocols.PROJECT]
    names = embedders.named_in([document, *(list(protocols.load(name).embedders) for name in others)])
    if not names:
        raise UserError(f"{root / 'params.yaml'}: names no published weights; {ask}")
    return names


def _size(entry: Weights) -> str:
    return f"{entry.num_bytes / 1e6:.0f} MB" if entry.num_bytes else "? MB"


def _published(names: list[str] | None) -> list[Weights]:
    """The weights of these names, else all; an unknown name raises UserError."""
    from soundmill.evaluation import embedders

    published = embedders.published()
    return [choose(published, name, "weights") for name in names or published]
