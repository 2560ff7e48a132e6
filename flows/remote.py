"""What the pipeline has built goes to DVC's default remote, where other checkouts find it."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import dvc
from soundmill import disk, hashing, params
from soundmill.errors import UserError

PUSHED = Path(".dvc/tmp/pushed")  # digest of the dvc.lock that was pushed last, and of the remote's settings
WORK = Path(".dvc/tmp/push")
TARGET = "made.dvc"


@dataclass(frozen=True)
class Pushed:
    """What the remote lacked and has now."""

    remote: str
    objects: int
    size: int  # bytes
    seconds: float

    def __str__(self) -> str:
        return f"{self.objects} objects, {self.size / 1e6:.1f} MB, in {self.seconds:.1f} s, to {self.remote}"


def push(root: Path) -> Pushed:
    """Copy what the outputs and metrics in dvc.lock consist of, and these stages' entries of the run cache, to the default remote.

    `dvc push` alone leaves out metrics, without which the run cache restores no stage, and `--run-cache` copies all entries of all
    checkouts that share the cache. So it runs in a project beside this one, with the objects of its cache. UserError if there is no
    default remote, or it cannot be reached.
    """
    start = time.monotonic()
    name = check(root)
    state = _state(root)
    with _beside(root) as (place, sizes):
        lacked = dvc.push(place, TARGET)
    (root / PUSHED).parent.mkdir(parents=True, exist_ok=True)
    disk.write_text(root / PUSHED, state)
    return Pushed(name, len(lacked), sum(sizes[path] for path in lacked), time.monotonic() - start)


def check(root: Path) -> str:
    """The name of the default remote; UserError, with the remedy, if there is none."""
    if name := dvc.remote(root):
        return name
    raise UserError(f"{root}: DVC has no default remote to push to; add one: `dvc remote add -d NAME s3://BUCKET/PREFIX`")


def is_pushed(root: Path) -> bool:
    known = (root / PUSHED).is_file() and (root / "dvc.lock").is_file()
    return known and (root / PUSHED).read_text(encoding="utf-8") == _state(root)


def _state(root: Path) -> str:
    settings = {key: value for key, value in dvc.config(root).items() if key.startswith(f"remote.{dvc.remote(root)}.")}
    return f"{hashing.file_digest(root / 'dvc.lock')} {hashing.digest(settings)}"


@contextmanager
def _beside(root: Path) -> Iterator[tuple[Path, dict[str, int]]]:
    """A DVC project with the cache's objects and the remotes of the one at `root`, whose TARGET has all outputs in dvc.lock as its
    own; and the size of every object by the name that DVC gives it there."""
    place, cache = root / WORK, Path(dvc.config(root).get("cache.dir", root / ".dvc/cache"))
    shutil.rmtree(place, ignore_errors=True)
    try:
        (place / "cache").mkdir(parents=True)
        (place / "cache/files").symlink_to(cache / "files")
        declared, locked = (params.read_yaml(root / name).get("stages", {}) for name in ("dvc.yaml", "dvc.lock"))
        outs = {}
        for name, stage in locked.items():
            graph = declared.get(name.partition("@")[0], {})
            always_runs = graph.get("do", graph).get("always_changed")  # so DVC leaves its metrics out of the cache
            lasting = (out for out in stage.get("outs", []) if not always_runs or _object(cache, out["md5"]).exists())
            outs |= {out["md5"]: out for out in lasting}
        numbered = {f"objects/{number}": out for number, out in enumerate(outs.values())}
        params.write_yaml({"outs": [{**out, "path": path} for path, out in numbered.items()]}, place / TARGET)
        for entry in sorted((cache / "runs").glob("*/*/*")):
            if params.read_yaml(entry) in locked.values():
                target = place / "cache" / entry.relative_to(cache)
                target.parent.mkdir(parents=True)
                shutil.copyfile(entry, target)
        (place / ".dvc").mkdir()
        dvc.write_settings(place / ".dvc/config", {**dvc.config(root), "cache.dir": "../cache", "core.no_scm": "true"})
        yield place, {name: size for path, out in numbered.items() for name, size in _sizes(path, out, cache)}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _sizes(name: str, out: dict[str, Any], cache: Path) -> Iterator[tuple[str, int]]:
    path = _object(cache, out["md5"])
    try:
        yield name, path.stat().st_size
        for digest, below in hashing.listed(path):
            yield f"{name}/{below}", _object(cache, digest).stat().st_size
    except FileNotFoundError:
        raise UserError(f"the cache lacks {out['path']}; run `dvc repro` again") from None


def _object(cache: Path, md5: str) -> Path:
    return cache / "files/md5" / md5[:2] / md5[2:]
