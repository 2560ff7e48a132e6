"""DVC's cache as the checkouts that share it see it: which those are, and emptying it of what none of them needs.

`dvc gc --workspace` looks at one checkout alone: in a workspace it removes the outputs of the project and of all other workspaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from flows import dvc, locks
from soundmill import disk, tracking
from soundmill.errors import UserError

USERS = "checkouts.txt"  # in the cache: paths of the checkouts that share it, a line each


@dataclass(frozen=True)
class Unused:
    """What `clean` removes, and the checkouts whose outputs stay."""

    objects: list[Path]
    size: int  # bytes
    users: list[Path]


def share(root: Path, owner: Path) -> None:
    """Let the checkout at `root` use the cache of the one at `owner`, and note both as its users."""
    dvc.share_cache(root, owner)
    cache = dvc.cache_directory(owner)
    with disk.exclusive(cache):
        known = _noted(cache)
        listed = [*known, *(path for path in (owner.resolve(), root.resolve()) if path not in known)]
        text = "".join(f"{path}\n" for path in listed)
        disk.write_atomically(cache / USERS, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def users(root: Path, more: Sequence[Path] = ()) -> list[Path]:
    """Checkouts that use the cache of the one at `root`: that, the cache's owner, its workspaces, those noted, and `more`.

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
    known = users(root, more)
    objects = dvc.unused(root, [place for place in known if place != root.resolve()])
    return Unused(objects, sum(path.stat().st_size for path in objects if path.exists()), known)


def clean(root: Path, say: locks.Say, more: Sequence[Path] = ()) -> Unused:
    """Remove it. UserError, and nothing is removed, while a pipeline, a stage or an experiment runs in any of the checkouts."""
    known = users(root, more)
    with ExitStack() as stack:
        for place in known:
            stack.enter_context(locks.only_one(place, 0, say))
            if running := locks.dvc_in(place):  # an experiment in a copy of the project holds no lock here
                raise UserError(f"{place} is in use by {running[0]}; wait for it, or stop it")
        unused = look(root, more)
        dvc.remove_unused(root, [place for place in known if place != root.resolve()])
    return unused


def _noted(cache: Path) -> list[Path]:
    file = cache / USERS
    return [Path(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
