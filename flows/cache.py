"""The checkouts that share DVC's cache, and removing from it what none of them needs.

`dvc gc --workspace` looks at one checkout alone: in a workspace it removes the outputs of the project and of all other workspaces.
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

USERS = "checkouts.txt"  # in the cache: paths of the checkouts that share it, a line each
OTHER = "other outputs"


@dataclass(frozen=True)
class Unused:
    """Objects that no checkout needs, and the checkouts whose outputs stay."""

    objects: list[Path]
    outputs: dict[str, tuple[int, int]]  # number and bytes of the objects by the output that they belonged to, else OTHER
    size: int  # bytes
    users: list[Path]
    gone: list[Path]  # checkouts that shared the cache and no longer exist


def share(root: Path, owner: Path) -> None:
    """Let the checkout at `root` use the cache of the one at `owner`, and note both in the cache's list of users."""
    dvc.share_cache(root, owner)
    cache = dvc.cache_directory(owner)
    with disk.exclusive(cache):
        known = _noted(cache)
        listed = [*known, *(path for path in (owner.resolve(), root.resolve()) if path not in known)]
        text = "".join(f"{path}\n" for path in listed)
        disk.write_atomically(cache / USERS, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def users(root: Path, more: Sequence[Path] = ()) -> list[Path]:
    """Checkouts that use the cache of the one at `root`: itself, the one that the cache lies in, those noted, all their workspaces,
    and `more`.

    UserError where one of `more` does not use it.
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
    """What no checkout that shares the cache needs now; nothing is changed."""
    return _unused(root, users(root, more))


@contextmanager
def held(root: Path, seconds: float, say: locks.Say, more: Sequence[Path] = ()) -> Iterator[list[Path]]:
    """Hold all checkouts that share the cache, and give them.

    Waits up to `seconds` for the pipeline or stage of each, then UserError; at once where an experiment runs in a copy of one.
    """
    known = users(root, more)
    with ExitStack() as stack:
        for place in sorted(known):  # two that did this in other orders would wait for each other
            stack.enter_context(locks.only_one(place, seconds, say))
            if running := locks.dvc_in(place):  # an experiment in a copy of the project holds no lock here
                raise UserError(f"{place} is in use by {running[0]}; wait for it, or stop it")
        yield known


def clean(root: Path, checkouts: Sequence[Path]) -> Unused:
    """Remove what none of the checkouts that share the cache needs; the caller has them from `held`. Returns what was removed."""
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
    """By digest, the output that an object was, or was a file of, as far as DVC's run cache can be read."""
    names: dict[str, str] = {}
    for path in sorted((cache / "runs").glob("*/*/*")):
        with suppress(UserError):  # damaged, as by a full disk: its outputs count as OTHER
            names |= {out["md5"]: out["path"] for out in params.read_yaml(path).get("outs") or []}
    for path in objects:
        if (name := names.get(_object_md5(path))) and path.suffix == ".dir":
            with suppress(ValueError):  # the same
                names |= {entry["md5"]: name for entry in json.loads(path.read_bytes()) if entry["md5"] not in names}
    return names


def _object_md5(path: Path) -> str:
    return path.parent.name + path.name


def _others(root: Path, checkouts: Sequence[Path]) -> list[Path]:
    return [place for place in checkouts if place != root.resolve()]


def _noted(cache: Path) -> list[Path]:
    file = cache / USERS
    return [Path(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
