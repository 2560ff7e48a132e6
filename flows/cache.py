"""The checkouts that share DVC's cache, and removal of objects that none of them needs.

`dvc gc --workspace` considers one checkout only: in a workspace it removes the outputs of the project and of all other workspaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flows import dvc, locks
from soundmill import disk, params, tracking
from soundmill.errors import UserError

USERS = "checkouts.txt"  # in the cache: a path per line of the checkouts that share it
OTHER = "other outputs"


@dataclass(frozen=True)
class Unused:
    """Objects that no checkout needs, and the checkouts whose outputs stay."""

    objects: list[Path]
    outputs: dict[str, tuple[int, int]]  # number and bytes of the objects by their output, or OTHER
    size: int  # bytes
    users: list[Path]
    gone: list[Path]  # checkouts that shared the cache and no longer exist


def share(root: Path, owner: Path) -> None:
    """Let the checkout at `root` use the cache of the one at `owner`, and add both to the cache's list of users."""
    cache = dvc.share_cache(root, owner)
    with disk.exclusive(cache):
        paths = dict.fromkeys([*_noted(cache), owner.resolve(), root.resolve()])
        text = "".join(f"{path}\n" for path in paths)
        disk.write_atomically(cache / USERS, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def users(root: Path, more: Sequence[Path] = ()) -> list[Path]:
    """Checkouts that use the cache of the one at `root`: itself, the owner of the cache, listed ones, their workspaces, and `more`.

    UserError if one of `more` does not use it.
    """
    cache = dvc.cache_directory(root)
    owners = [cache.parents[1]] if (cache.parent.name, cache.name) == (".dvc", "cache") else []
    places = [root, *owners, *_noted(cache)]
    places += [path for place in list(places) for path in sorted((place / tracking.WORKSPACES).glob("*"))]
    there = dict.fromkeys(place.resolve() for place in places if (place / "dvc.yaml").is_file() and (place / ".dvc").is_dir())
    found = [place for place in there if dvc.cache_directory(place) == cache]
    for place in more:
        if not (place / ".dvc").is_dir() or dvc.cache_directory(place.resolve()) != cache:
            raise UserError(f"{place}: not a checkout that uses {cache}")
    return list(dict.fromkeys([*found, *(place.resolve() for place in more)]))


def look(root: Path, more: Sequence[Path] = ()) -> Unused:
    """The objects that no checkout that shares the cache needs; nothing is changed."""
    return _unused(root, users(root, more))


@contextmanager
def held(root: Path, seconds: float, say: locks.Say, more: Sequence[Path] = ()) -> Iterator[list[Path]]:
    """Hold all checkouts that share the cache, and yield them.

    Waits up to `seconds` for a pipeline or stage in each, then UserError; immediately if an experiment runs in a copy of one.
    """
    checkouts = users(root, more)
    with ExitStack() as stack:
        for place in sorted(checkouts):  # one order for all, or two commands could wait for each other
            stack.enter_context(locks.only_one(place, seconds, say))
            if running := locks.dvc_in(place):  # an experiment in a copy of the project holds no lock here
                raise UserError(f"{place} is in use by {running[0]}; wait for it, or stop it")
        yield checkouts


def clean(root: Path, checkouts: Sequence[Path]) -> Unused:
    """Remove and return the objects that none of `checkouts`, which come from `held`, needs."""
    unused = _unused(root, checkouts)
    dvc.remove_unused(root, _others(root, checkouts))
    return unused


def _unused(root: Path, checkouts: Sequence[Path]) -> Unused:
    objects = [path for path in dvc.unused(root, _others(root, checkouts)) if path.exists()]
    cache = dvc.cache_directory(root)
    names = _outputs_of(cache, objects)
    outputs: dict[str, tuple[int, int]] = {}
    for path in objects:
        count, size = outputs.get(name := names.get(_object_md5(path), OTHER), (0, 0))
        outputs[name] = (count + 1, size + path.stat().st_size)
    gone = [place for place in _noted(cache) if not (place / "dvc.yaml").is_file()]
    return Unused(objects, dict(sorted(outputs.items())), sum(size for _, size in outputs.values()), list(checkouts), gone)


def _outputs_of(cache: Path, objects: Sequence[Path]) -> dict[str, str]:
    """Digest → the output that the object was, or was a file of, as far as DVC's run cache is readable."""
    names: dict[str, str] = {}
    for path in sorted((cache / "runs").glob("*/*/*")):
        with suppress(UserError):  # if it is damaged, its outputs count as OTHER
            names |= {out["md5"]: out["path"] for out in params.read_yaml(path).get("outs") or []}
    for path in objects:
        if (name := names.get(_object_md5(path))) and path.suffix == ".dir":
            with suppress(ValueError):
                names |= {entry["md5"]: name for entry in json.loads(path.read_bytes()) if entry["md5"] not in names}
    return names


def _object_md5(path: Path) -> str:
    return path.parent.name + path.name


def _others(root: Path, checkouts: Sequence[Path]) -> list[Path]:
    return [place for place in checkouts if place != root.resolve()]


def _noted(cache: Path) -> list[Path]:
    file = cache / USERS
    return [Path(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
