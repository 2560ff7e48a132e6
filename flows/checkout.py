"""Separate checkouts: the state that a recorded run started from, and workspaces; the cache that they share."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows import dvc, locks
from soundmill import disk, hashing, ledger, lifetime, pretrained, provenance, tracking
from soundmill import params as parameters
from soundmill.errors import UserError, first_of
from soundmill.evaluation import embedders
from soundmill.params import read_yaml

NOT_COPIED = ("data/", "dvc.lock", "params.yaml", ledger.FILE)  # each checkout has its own
RESTORED = ("params.yaml", "dvc.lock")  # of a run's state, besides the code
UNAPPLIED = "uncommitted.diff"  # in a checkout if git could not apply it
USERS = "checkouts.txt"  # in the cache: a path per line of the checkouts that share it
OTHER = "other outputs"
COPIED = Path(".dvc/tmp/copied.txt")  # names copied from the project, to remove files that the project no longer has


def reproduce(home: Path, run_id: str, destination: Path) -> list[str]:
    """Restore the state that run `run_id` started from in a new checkout at `destination`; returns what is missing, as text.

    That is the code at the recorded commit with the uncommitted changes, params.yaml, dvc.lock, and every output that the cache of
    `home` still has; no outputs if something was forgotten since. The run of a stage stands for its pipeline. UserError if the run,
    its state or its commit is missing, if `destination` is not empty, or if anything recorded would write outside `destination`,
    which is then removed.
    """
    home, destination = home.resolve(), destination.resolve()
    if why := provenance.fault(home):
        raise UserError(f"{home}: git fails: {why}")
    state = tracking.read_state(home, run_id)
    if destination.exists() and any(destination.iterdir()):
        raise UserError(f"{destination} is not empty; remove it, or choose another directory with --into")
    if state.sha == "none":
        raise UserError(
            f"run {state.run_id} was recorded outside git: its code is unknown; only its params.yaml and dvc.lock are kept"
        )
    _clone(home, destination, state.sha, state.run_id)
    try:
        missing = _apply(destination, state)
        names = _recorded_files(destination, state)
        _write_files(destination, missing, state)
        if not (destination / ".dvc").is_dir():
            return [*missing, "DVC's own files (.dvc/) are not in that commit: outputs cannot be restored"]
        current, recorded = provenance.read(home / ".dvc/config"), provenance.read(destination / ".dvc/config")
        (destination / ".dvc/config").write_bytes(current)  # the recorded ones name directories that DVC writes to
        missing += [] if current == recorded else [f".dvc/config: differed; replaced by that of {home}"]
        if fault := dvc.fault_of_lock(destination / "dvc.lock"):
            return [*missing, f"dvc.lock: damaged when the run was recorded ({fault}): outputs cannot be restored"]
        _check_outputs(destination, names, state)
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        raise
    share(destination, home)
    if since := ledger.add(destination, ledger.in_force(home)):
        outputs = [f"outputs: not restored, as this was forgotten since: {ledger.sources(since)}; `dvc repro` there rebuilds them"]
    else:
        outputs = _outputs(destination)
    return missing + outputs + _outside(home, destination)


def _clone(home: Path, destination: Path, sha: str, run_id: str) -> None:
    """Make a clone with the commit in its index, without writing files."""
    if not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", sha) or not _git(home, "cat-file", "-e", f"{sha}^{{commit}}"):
        raise UserError(f"commit {sha!r} of run {run_id} is not in {home}; fetch it there first (`git fetch --all`)")
    if not _git(home, "clone", "--quiet", "--no-checkout", str(home), str(destination)):
        raise UserError(f"git could not clone {home} to {destination}; check free space and permissions")
    # A clone has only branches, and the commit may no longer be on one.
    steps = [("fetch", "--quiet", str(home), sha), ("update-ref", "--no-deref", "HEAD", sha), ("read-tree", "HEAD")]
    if not all(_git(destination, *step) for step in steps):
        shutil.rmtree(destination, ignore_errors=True)
        raise UserError(f"git could not check out {sha} in {destination}; `git fsck` in {home} shows what is wrong")


def _apply(destination: Path, state: tracking.RecordedState) -> list[str]:
    """Apply the uncommitted changes to the index; returns what is missing."""
    diff = state.files.get("uncommitted.diff", b"")
    if not diff.strip():
        return []
    done = _git_output(destination, "apply", "--cached", "--binary", "--whitespace=nowarn", "-", stdin=diff)
    if done.returncode == 0:
        return []
    reason = " ".join(done.stderr.decode("utf-8", "replace").split())[:300]
    if re.search("invalid path|beyond a symbolic link", reason):
        _refuse([f"uncommitted.diff: {reason}"], state)
    return [f"the uncommitted changes did not apply ({reason}); they are in {UNAPPLIED}"]


def _recorded_files(destination: Path, state: tracking.RecordedState) -> list[str]:
    """Names in the index; UserError names unsafe ones. Git itself rejects names that are absolute, contain `..`, or are `.git`."""
    listed = _git_output(destination, "ls-files", "--stage", "-z").stdout.split(b"\0")
    names, refused = [], []
    for entry in filter(None, listed):
        mode, name = entry[:6].decode(), os.fsdecode(entry.partition(b"\t")[2])
        names.append(name)
        if mode == "120000":
            refused.append(f"{name!r} is a link")
        elif mode == "160000":
            refused.append(f"{name!r} is a submodule")
        elif ".dvc" in name.split("/")[:-1] and not re.fullmatch(r"\.dvc/(config|\.gitignore|plots/.+)", name):
            refused.append(f"{name!r} is one of DVC's own files, which are specific to a machine")
        elif name.startswith(tuple(f"{restored}/" for restored in RESTORED)):
            refused.append(f"{name!r} is in the place of a restored file")
    _refuse(refused, state)
    return names


def _refuse(reasons: list[str], state: tracking.RecordedState) -> None:
    if reasons:
        raise UserError(
            f"run {state.run_id} is not restored, because what it recorded could write outside the checkout:\n  "
            + first_of(reasons, 10, between="\n  ")
            + "\nNothing was kept. Its state/ (`make browse`) has the changes; read them and apply them by hand "
            f"in `git worktree add DIR {state.sha}`"
        )


def _write_files(destination: Path, missing: list[str], state: tracking.RecordedState) -> None:
    """Write the index and the files kept outside git; what was uncommitted is uncommitted again. Adds to `missing`."""
    _must(destination, "checkout-index", "--all", "--force")
    _must(destination, "read-tree", "HEAD")
    if missing:
        (destination / UNAPPLIED).write_bytes(state.files["uncommitted.diff"])
    for name in RESTORED:
        if state.files.get(name):
            (destination / name).write_bytes(state.files[name])
        else:
            missing.append(f"{name}: did not exist when the run was recorded")
    missing += [f"{name}; not kept" for name in state.files.get("not_kept.txt", b"").decode("utf-8", "replace").splitlines()]


def _check_outputs(destination: Path, names: list[str], state: tracking.RecordedState) -> None:
    """UserError unless everything that DVC would write lies in `destination`."""
    refused = []
    for name in [*(name for name in names if name.endswith((".dvc", "/dvc.lock"))), "dvc.lock"]:
        document = read_yaml(destination / name) if (destination / name).is_file() else {}
        refused += [f"{name}: relpath {path!r} {why}" for path in _named(document, "relpath") if (why := _leaves(path))]
        if name.endswith(".dvc") and document.get("deps") and document.get("frozen") is not True:
            refused.append(f"{name}: imports from elsewhere; with `frozen: true` it would not")
    lock = read_yaml(destination / "dvc.lock") if (destination / "dvc.lock").is_file() else {}
    written = [("dvc.lock", out["path"]) for entry in (lock.get("stages") or {}).values() for out in entry.get("outs") or []]
    _refuse(refused + [f"{name}: output {path!r} {why}" for name, path in written if (why := _leaves(path))], state)
    _refuse([f"dvc.yaml: output {path!r} {why}" for path in dvc.outputs(destination) if (why := _leaves(path))], state)


def _named(document: Any, key: str) -> list[Any]:
    """All values of a key, at any depth."""
    own = [document[key]] if isinstance(document, dict) and key in document else []
    inner = document.values() if isinstance(document, dict) else document if isinstance(document, list) else []
    return own + [value for node in inner for value in _named(node, key)]


def _leaves(path: Any) -> str:
    """Why an output must not be written at `path`; empty if it may."""
    if not isinstance(path, str) or "://" in path:
        return "is not a path in the checkout"
    parts = os.path.normpath(path).split("/")
    if os.path.isabs(path) or parts[0] == ".." or parts == ["."]:
        return "is absolute" if os.path.isabs(path) else "leaves the checkout" if parts != ["."] else "is the checkout itself"
    if {".git", ".dvc"} & set(parts) or parts[-1] in (*RESTORED, "dvc.yaml", ".gitignore", ".dvcignore"):
        return "is a file of git's or DVC's own"
    return ""


def _outputs(destination: Path) -> list[str]:
    """Check out what the cache has; returns the stages whose results could not be restored, as text."""
    dvc.checkout(destination)  # what it could not restore, DVC then finds changed
    changed = dvc.changed(destination)
    return [
        f"stage {stage.name}: dvc.lock and the cache do not have its results; "
        f"`dvc repro {stage.name}` there takes them from the run cache, or rebuilds them"
        for stage in dvc.stages(destination)
        if changed.get(stage.name, ["always changed"]) != ["always changed"]
    ]


def _outside(home: Path, destination: Path) -> list[str]:
    """What the run needed that neither git nor DVC keeps, as text."""
    document = read_yaml(destination / "params.yaml")
    missing = []
    corpus = document.get("corpus")
    path = corpus.get("path") if isinstance(corpus, dict) else None
    if isinstance(path, str) and path and "://" not in path and not (destination / path).exists():
        found = f" (it is at {home / path}: give its absolute path)" if (home / path).exists() else ""
        missing.append(f"corpus.path {path}: does not exist{found}; needed to scan the recordings again, not for cached outputs")
    for name in embedders.named_in(document):
        if reason := pretrained.unavailable(embedders.published()[name]):
            missing.append(f"weights: {reason}; needed to train or score again with {name}")
    pins = [provenance.read(root / "constraints.txt") for root in (home, destination)]
    if pins[1] and pins[0] != pins[1]:
        missing.append("packages: constraints.txt differs; to run stages again, make a .venv there with `make demo`")
    return missing


# Workspaces


def place_of(home: Path, name: str) -> Path:
    """The path of a workspace of the project at `home`; UserError if the name is invalid, or `home` itself is a workspace."""
    if (project := tracking.project_of(home)) != home.resolve():  # `soundmill forget` searches the project's workspaces alone
        raise UserError(f"{home} is a workspace, which has no workspaces of its own; run this in {project}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(
            f"workspace name {name!r}: must be letters, digits, `.`, `_` and `-`, at most 100; choose another with --name"
        )
    return home.resolve() / tracking.WORKSPACES / name


def workspace(home: Path, name: str, params: dict[str, Any]) -> Path:
    """Make a checkout `workspaces/<name>` with the current code (uncommitted changes too) and these parameters; returns its path.

    It has its own outputs, dvc.lock and forgotten.yaml (the project's applies too), shares the cache, and records into the store of
    `home`. If it exists, code and parameters are updated and outputs kept, so that only what changed runs. Paths in the parameters
    that begin with `./` or `../` are relative to `home`.
    """
    home, root = home.resolve(), place_of(home, name)
    params = with_absolute_paths(params, home)
    dvc.check_changes(home, print)
    names = _code_files(home)
    with locks.only_one(root, 0, print):
        _must(root, "init", "--quiet")  # again where it exists: it completes one that failed
        _must(root, "fetch", "--quiet", "--no-tags", "--update-shallow", str(home), "HEAD")
        _must(root, "update-ref", "--no-deref", "HEAD", "FETCH_HEAD")
        _must(root, "read-tree", "HEAD")
        _copy_code(home, root, names)
        if not (root / ledger.FILE).exists() and (home / ledger.FILE).exists():
            ledger.write([], root / ledger.FILE)
        ledger.update(root)
        if provenance.read(root / "params.yaml") == b"" or read_yaml(root / "params.yaml") != params:
            parameters.write_yaml(params, root / "params.yaml")
        share(root, home)
    return root


def with_absolute_paths(value: Any, home: Path) -> Any:
    """Parameters with paths that begin with `./` or `../`, which are relative to `home`, made absolute."""
    if isinstance(value, dict):
        return {key: with_absolute_paths(inner, home) for key, inner in value.items()}
    return str((home / value).resolve()) if isinstance(value, str) and re.match(r"\.\.?(/|$)", value) else value


def run_pipeline(root: Path, push: bool = False) -> int:
    """Run the pipeline flow in a workspace, with this Python; returns its exit status. `push`: then push to the default remote."""
    environment = dvc.environment({"PREFECT_HOME": str(root.resolve().parents[1] / ".prefect")})
    command = [sys.executable, "-m", "flows.run", *(["--push"] if push else [])]
    return subprocess.run(command, cwd=root, env=environment, preexec_fn=lifetime.with_this_process()).returncode


def _code_files(home: Path) -> list[str]:
    """Tracked and new files, except NOT_COPIED; no nested repositories, and no new links to directories, which may hold outputs."""
    if why := provenance.fault(home):
        raise UserError(f"{home}: git fails: {why}")
    done = _git_output(home, "ls-files", "-t", "--cached", "--others", "--exclude-standard", "-z")
    if done.returncode:
        remedy = "make it one there: `git init && git add -A && git commit -m start`"
        raise UserError(f"{home} is not a git repository, which DVC and workspaces need; {remedy}")
    listed = [os.fsdecode(raw).split(" ", 1) for raw in done.stdout.split(b"\0") if raw]
    listed = [(tag, name) for tag, name in listed if not f"{name}/".startswith(NOT_COPIED) and os.path.lexists(home / name)]
    return sorted({name for tag, name in listed if not (path := home / name).is_dir() or (path.is_symlink() and tag != "?")})


def _copy_code(home: Path, root: Path, names: list[str]) -> None:
    """Copy these files, and remove those copied before that are not among them, even by a run that failed half-way."""
    record = root / COPIED
    before = record.read_text(encoding="utf-8", errors="surrogateescape").split("\0") if record.exists() else []
    gone = sorted({name for name in before if not name.startswith(NOT_COPIED)} - set(names))
    if names != before:
        _record(record, [*names, *gone])
    # First, as a file may have become a directory, or the reverse; behind a link, a file elsewhere would be removed.
    for name in [name for name in gone if not any((root / parent).is_symlink() for parent in Path(name).parents)]:
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            (root / name).unlink()
        with suppress(OSError):  # not empty
            os.removedirs((root / name).parent)
    for name in names:
        source, target = home / name, root / name
        if source.is_symlink() or not target.is_file() or target.is_symlink() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    if gone:
        _record(record, names)


def _record(path: Path, names: list[str]) -> None:
    text = "\0".join(names)
    disk.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))


def _must(where: Path, *arguments: str) -> None:
    done = _git_output(where, *arguments)
    if done.returncode:
        words = " ".join(done.stderr.decode("utf-8", "replace").split())[:300]
        raise UserError(f"`git {' '.join(arguments)}` failed in {where}: {words}; fix it and run again")


def _git(where: Path, *arguments: str) -> bool:
    return _git_output(where, *arguments).returncode == 0


def _git_output(where: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *arguments], cwd=where, input=stdin, capture_output=True, env=provenance.without_outer_git())


# The cache. Only what its listed checkouts made is removed: other projects may use it too, and it may have their only copies.
# `dvc gc` would remove all that the checkouts which it is given do not need.


@dataclass(frozen=True)
class Unused:
    """Objects that some listed checkout made and none needs."""

    objects: list[Path]
    outputs: dict[str, tuple[int, int]]  # number and bytes of the objects by their output, or OTHER
    users: list[Path]  # the checkouts whose outputs stay
    unknown: int  # objects that none of them needs or has made

    @property
    def size(self) -> int:
        return sum(size for _, size in self.outputs.values())


def share(root: Path, owner: Path) -> None:
    """Let the checkout at `root` use the cache of the one at `owner`, and add both to the cache's list of users."""
    cache = dvc.share_cache(root, owner)
    with disk.exclusive(cache):
        _list(cache, dict.fromkeys([*_listed(cache), owner.resolve(), root.resolve()]))


def check_gone(root: Path, gone: Collection[Path]) -> None:
    """UserError if a checkout is not on the list of the cache, or is there."""
    cache = dvc.cache_directory(root)
    listed = _listed(cache)
    for place in gone:
        if place not in listed or _is_checkout(place):
            listing = ", ".join(map(str, listed)) or "none"
            raise UserError(f"--gone {place}: no deleted checkout of {cache / USERS}, which lists {listing}; leave it out")


def users(root: Path, more: Sequence[Path] = ()) -> list[Path]:
    """Checkouts that use this one's cache: itself, its owner, listed ones, their workspaces, and `more` (UserError if not)."""
    cache = dvc.cache_directory(root)
    owners = [cache.parents[1]] if (cache.parent.name, cache.name) == (".dvc", "cache") else []
    places = [root, *owners, *_listed(cache)]
    places += [path for place in list(places) for path in sorted((place / tracking.WORKSPACES).glob("*"))]
    there = dict.fromkeys(place.resolve() for place in places if _is_checkout(place))
    found = [place for place in there if dvc.cache_directory(place) == cache]
    for place in more:
        if not (place / ".dvc").is_dir() or dvc.cache_directory(place.resolve()) != cache:
            raise UserError(f"{place}: not a checkout that uses {cache}; leave it out")
    return list(dict.fromkeys([*found, *(place.resolve() for place in more)]))


def away(root: Path) -> list[Path]:
    """Listed checkouts that are not there, as on a disk that is not mounted; a workspace whose project is there was deleted."""

    def deleted(place: Path) -> bool:
        return place.parent.name == tracking.WORKSPACES and not place.exists() and _is_checkout(place.parents[1])

    return [place for place in _listed(dvc.cache_directory(root)) if not (_is_checkout(place) or deleted(place))]


@contextmanager
def held(root: Path, seconds: float, say: locks.Say, more: Sequence[Path] = (), gone: Sequence[Path] = ()) -> Iterator[list[Path]]:
    """Hold all that share the cache, after up to `seconds` each; UserError at once if one is away and not `gone`, or dvc runs.

    At the end, unless the block raises, those that are `gone` are taken off the list of the cache.
    """
    check_gone(root, gone)
    if missing := [place for place in away(root) if place not in gone]:  # what it needs is not known
        named, option = ", ".join(map(str, missing)), shlex.join(["--gone", str(missing[0])])
        raise UserError(f"{named}: uses this cache and is not there; mount its disk, or if it was deleted, give `{option}`")
    checkouts = users(root, more)
    with ExitStack() as stack:
        for place in sorted(checkouts):  # one order for all, or two commands could wait for each other
            stack.enter_context(locks.only_one(place, seconds, say))
            if running := locks.dvc_in(place):  # an experiment in a copy of the project holds no lock here
                raise UserError(f"{place} is in use by {running[0]}; wait for it, or stop it")
        yield checkouts
        if gone:
            cache = dvc.cache_directory(root)
            with disk.exclusive(cache):
                check_gone(root, gone)
                _list(cache, [place for place in _listed(cache) if place not in gone])


def unused(root: Path, checkouts: Sequence[Path]) -> Unused:
    """The objects that some of `checkouts` made and none needs; UserError if a dvc.lock is damaged, which DVC may read, or gone."""
    cache, others = dvc.cache_directory(root), [place for place in checkouts if place != root.resolve()]
    for lock in (place / "dvc.lock" for place in checkouts):
        if fault := dvc.fault_of_lock(lock):
            raise UserError(f"{lock}: damaged ({fault}), so what it needs is not known; `python -m flows.run` there repairs it")
    unneeded = {_digest(path): path for path in dvc.unused(root, others) if path.exists()}
    made: set[str] = set()
    for place in checkouts:
        ledger.note_outputs(place, tracking.project_of(place))
        made |= ledger.known_outputs(place)
    # A workspace in which no stage has ended has no dvc.lock yet, and needs nothing.
    ran = [place for place in checkouts if place.parent.name != tracking.WORKSPACES or (place / dvc.LAST_INTACT).exists()]
    unlocked = [place for place in ran if not (place / "dvc.lock").exists()]
    if unlocked and not made.isdisjoint(unneeded):
        remedy = "put it back, as with git, or let `dvc repro` there write it; if nothing there is needed, delete the checkout"
        raise UserError(f"{', '.join(map(str, unlocked))}: no dvc.lock, so what is needed there is not known; {remedy}")
    made |= {digest for name in made if name in unneeded for digest, _ in hashing.listed(unneeded[name])}
    objects = [path for digest, path in unneeded.items() if digest in made]
    return Unused(objects, _by_output(cache, objects), list(checkouts), len(unneeded) - len(objects))


def holding(root: Path, found: Collection[Path], of: Unused) -> Unused:
    """Those of the objects that are in `found`, with the rest of the directories that they are in."""
    by_digest = {_digest(path): path for path in of.objects}
    chosen = {path for path in of.objects if path in found}
    for path in of.objects:
        files = [by_digest[digest] for digest, _ in hashing.listed(path) if digest in by_digest]
        if chosen.intersection(files):
            chosen.update(files, [path])
    objects = [path for path in of.objects if path in chosen]
    return replace(of, objects=objects, outputs=_by_output(dvc.cache_directory(root), objects))


def remove(objects: Sequence[Path]) -> None:
    """Remove objects of the cache; lists of directories last, because their files are known by them."""
    for path in sorted(objects, key=lambda path: path.suffix == ".dir"):
        path.unlink(missing_ok=True)


def _by_output(cache: Path, objects: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Number and bytes of objects by the output that each was, or was a file of, as far as DVC's run cache is readable."""
    names: dict[str, str] = {}
    for path in sorted((cache / "runs").glob("*/*/*")):
        with suppress(UserError):  # if it is damaged, its outputs count as OTHER
            names |= {out["md5"]: out["path"] for out in read_yaml(path).get("outs") or []}
    for path in objects:
        if name := names.get(_digest(path)):
            names |= {digest: name for digest, _ in hashing.listed(path) if digest not in names}
    outputs: dict[str, tuple[int, int]] = {}
    for path in objects:
        count, size = outputs.get(name := names.get(_digest(path), OTHER), (0, 0))
        outputs[name] = (count + 1, size + path.stat().st_size)
    return dict(sorted(outputs.items()))


def _digest(path: Path) -> str:
    return path.parent.name + path.name


def _is_checkout(place: Path) -> bool:
    return (place / "dvc.yaml").is_file() and (place / ".dvc").is_dir()


def _listed(cache: Path) -> list[Path]:
    file = cache / USERS
    return [Path(line) for line in os.fsdecode(file.read_bytes()).split("\n") if line] if file.is_file() else []


def _list(cache: Path, places: Collection[Path]) -> None:
    disk.write_atomically(cache / USERS, lambda path: path.write_bytes(os.fsencode("".join(f"{place}\n" for place in places))))
