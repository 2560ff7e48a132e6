"""The state of the project that a run used: git commit, uncommitted changes, parameters and dvc.lock."""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from soundmill import credentials, hashing

# Of untracked files that the pipeline may run or read. Not .json: keys of cloud accounts are such files.
KINDS = (".py", ".sh", ".yaml", ".yml", ".toml", ".lock", ".html", ".css", ".js", ".md")
MAX_UNTRACKED_FILE = 1_000_000  # bytes; larger files are named, not stored
MAX_DIFF = 50_000_000
SECRET = "seems to have a password or key in it"
# As `git apply` reads it, whatever the user's settings.
DIFF_FROM_HEAD = (
    *("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--no-relative", "--submodule=short", "--unified=3"),
    *("--src-prefix=a/", "--dst-prefix=b/", "HEAD"),
)
# Rewritten by `dvc repro` itself, so no difference between states.
REWRITTEN = (":(exclude)dvc.lock", ":(exclude)data", ":(exclude,glob)**/.gitignore")


@dataclass(frozen=True)
class State:
    """The project at one moment. `sha` is empty outside git; `git apply --binary` restores `diff`."""

    sha: str
    diff: bytes
    left_out: tuple[str, ...]  # names of changed and untracked files that are not in `diff`, with the reason
    dirty: bool  # whether code or parameters differ from `sha`
    params: bytes
    lock: bytes
    identity: str  # equal for all stages of one repro; changes with code and parameters


def capture(root: Path) -> State:
    """The state of the project at `root`; outside git without sha and diff."""
    params, lock = read(root / "params.yaml"), read(root / "dvc.lock")
    sha = git(root, "rev-parse", "HEAD").decode().strip()
    why = not sha and fault(root)
    diff, left_out = _diff_with_untracked(root) if sha else (b"", (f"the code: git fails: {why}",) if why else ())
    tracked = git(root, *DIFF_FROM_HEAD, "--binary", "--", ".", *REWRITTEN) if sha else b""
    new = git(root, "ls-files", "--others", "--exclude-standard", "--", ".", *REWRITTEN) if sha else b""
    identity = hashing.digest(sha, params, read(root / "dvc.yaml"), tracked)
    return State(sha, diff, left_out, bool(tracked or new), params, lock, identity)


def git_directories(root: Path) -> tuple[Path | None, Path | None]:
    """Git's directory of this working tree, and the one shared by all working trees; None outside git."""
    for directory in [root, *root.parents]:
        own = directory / ".git"
        if own.is_file():  # a linked working tree: the file names its directory
            own = directory / read(own).decode("utf-8", "replace").partition("gitdir:")[2].strip()
        if own.is_dir():
            return own, own / (read(own / "commondir").decode("utf-8", "replace").strip() or ".")
    return None, None


def _diff_with_untracked(root: Path) -> tuple[bytes, tuple[str, ...]]:
    """Changes against HEAD, new files of KINDS included, and what was left out; git's index stays as it is.

    What an `.env` has in it would be in MLflow for everyone, so other new files, and changes with a credential, are only named.
    """
    top = Path(os.fsdecode(git(root, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    kept, left_out = [], []
    for raw in git(root, "ls-files", "--others", "--exclude-standard", "--full-name", "-z").split(b"\0"):
        if raw:
            name = os.fsdecode(raw)
            path = top / name
            used = path.suffix in KINDS or path.is_relative_to(root.resolve() / "data")  # there, metrics and plots of stages
            if path.is_symlink() or not path.is_file() or not used:
                left_out.append(f"{name}: git does not track it")
            elif path.stat().st_size > MAX_UNTRACKED_FILE:
                left_out.append(f"{name}: too big")
            else:
                kept.append(name)
    index = os.fsdecode(git(root, "rev-parse", "--path-format=absolute", "--git-path", "index").rstrip(b"\n"))
    with tempfile.TemporaryDirectory(prefix="soundmill-index-") as scratch:
        copy = Path(scratch) / "index"
        if Path(index).exists():
            shutil.copy2(index, copy)  # with its time: git reads again what was written in the same second
        extra = {"GIT_INDEX_FILE": str(copy)}
        if kept:
            names = b"\0".join(os.fsencode(name) for name in kept)
            arguments = ("add", "--intent-to-add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul")
            git(top, "--literal-pathspecs", *arguments, extra=extra, stdin=names)
        changed = git(top, *DIFF_FROM_HEAD, "--name-only", "-z", extra=extra).split(b"\0")[:-1]
        diff = git(top, *DIFF_FROM_HEAD, "--binary", extra=extra)
    parts = re.split(rb"^(?=diff --git )", diff, flags=re.MULTILINE)[1:]
    if len(parts) != len(changed):  # then which file has a credential is not known
        return b"", (*left_out, "the uncommitted diff: it changed while it was read")
    clean = bytearray()
    for name, part in zip(map(os.fsdecode, changed), parts, strict=True):
        binary = b"\nGIT binary patch\n" in part  # as of code in UTF-16
        if credentials.in_file(part if not binary else read(top / name) if Path(name).suffix in KINDS else b""):
            left_out.append(f"{name}: {SECRET}")
        else:
            clean += part
    if len(clean) > MAX_DIFF:
        return b"", (*left_out, f"the uncommitted diff ({len(clean):,} bytes)")
    return bytes(clean), tuple(left_out)


def without_outer_git() -> dict[str, str]:
    """The environment without git's own variables (set in hooks), which would point every command at another repository."""
    return {key: value for key, value in os.environ.items() if key not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}


def git(where: Path, *arguments: str, extra: dict[str, str] | None = None, stdin: bytes = b"") -> bytes:
    """Output of a git command; empty if it fails (no git, no repository, no commit)."""
    return _git(where, *arguments, extra=extra, stdin=stdin)[0]


def fault(root: Path) -> str:
    """Why git does not work where there is a `.git`, such as one of another user; empty if it does, or there is none."""
    return _git(root, "rev-parse", "--git-dir")[1] if git_directories(root)[0] else ""


def _git(where: Path, *arguments: str, extra: dict[str, str] | None = None, stdin: bytes = b"") -> tuple[bytes, str]:
    """Output of a git command; if it failed, none, and git's words on one line."""
    environment = {**without_outer_git(), "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", **(extra or {})}
    try:
        command = ["git", "-c", "core.quotePath=off", *arguments]
        done = subprocess.run(command, cwd=where, env=environment, input=stdin, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return b"", str(error)
    return (done.stdout, "") if done.returncode == 0 else (b"", " ".join(done.stderr.decode("utf-8", "replace").split()))


def read(path: Path) -> bytes:
    """The content of a file; empty if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
