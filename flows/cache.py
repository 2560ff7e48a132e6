"""The checkouts that share DVC's cache, and removal of objects that none of them needs.

Only what these checkouts made is removed: other projects may use the cache too, and it may have their only copies. `dvc gc` would
remove all that the checkouts which it is given do not need.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flows import dvc, locks
from soundmill import disk, ledger, params, tracking
from soundmill.errors import UserError

USERS = "checkouts.txt"  # in the cache: a path per line of the checkouts that share it
OTHER = "other outputs"


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


def forget_users(root: Path, gone: Collection[Path]) -> None:
    """Take checkouts that were deleted off the list of the cache; UserError if one is not on it, or is there."""
    cache = dvc.cache_directory(root)
    with disk.exclusive(cache):
        listed = _listed(cache)
        for place in gone:
            if place not in listed or _is_checkout(place):
                raise UserError(
                    f"--gone {place}: is not a deleted checkout of {cache / USERS}; it lists {', '.join(map(str, listed))}"
                )
        _list(cache, [place for place in listed if place not in gone])


def users(root: Path, more: Sequence[Path] = ()) -> list[Path]:
    """Checkouts that use the cache of the one at `root`: itself, the owner of the cache, listed ones, their workspaces, and `more`.

    UserError if one of `more` does not use it.
    """
    cache = dvc.cache_directory(root)
    owners = [cache.parents[1]] if (cache.parent.name, cache.name) == (".dvc", "cache") else []
    places = [root, *owners, *_listed(cache)]
    places += [path for place in list(places) for path in sorted((place / tracking.WORKSPACES).glob("*"))]
    there = dict.fromkeys(place.resolve() for place in places if _is_checkout(place))
    found = [place for place in there if dvc.cache_directory(place) == cache]
    for place in more:
        if not (place / ".dvc").is_dir() or dvc.cache_directory(place.resolve()) != cache:
            raise UserError(f"{place}: not a checkout that uses {cache}")
    return list(dict.fromkeys([*found, *(place.resolve() for place in more)]))


def away(root: Path) -> list[Path]:
    """Listed checkouts that are not there, and so may be on a disk that is not mounted.

    A workspace is deleted, not away, if its folder is missing while its project is there.
    """

    def deleted(place: Path) -> bool:
        return place.parent.name == tracking.WORKSPACES and not place.exists() and _is_checkout(place.parents[1])

    return [place for place in _listed(dvc.cache_directory(root)) if not (_is_checkout(place) or deleted(place))]


def look(root: Path, more: Sequence[Path] = ()) -> Unused:
    """The objects that some checkout made and none needs; nothing is changed."""
    return unused(root, users(root, more))


@contextmanager
def held(root: Path, seconds: float, say: locks.Say, more: Sequence[Path] = ()) -> Iterator[list[Path]]:
    """Hold all checkouts that share the cache, and yield them.

    Waits up to `seconds` for a pipeline or stage in each, then UserError; immediately if one is away, or an experiment runs in a
    copy of one.
    """
    if missing := away(root):  # what it needs is not known
        named = ", ".join(map(str, missing))
        raise UserError(
            f"{named}: uses this cache and is not there; mount its disk, or if it was deleted, give `--gone {missing[0]}`"
        )
    checkouts = users(root, more)
    with ExitStack() as stack:
        for place in sorted(checkouts):  # one order for all, or two commands could wait for each other
            stack.enter_context(locks.only_one(place, seconds, say))
            if running := locks.dvc_in(place):  # an experiment in a copy of the project holds no lock here
                raise UserError(f"{place} is in use by {running[0]}; wait for it, or stop it")
        yield checkouts


def unused(root: Path, checkouts: Sequence[Path]) -> Unused:
    """The objects that some of `checkouts` made and none needs."""
    cache, others = dvc.cache_directory(root), [place for place in checkouts if place != root.resolve()]
    unneeded = {_digest(path): path for path in dvc.unused(root, others) if path.exists()}
    made: set[str] = set()
    for place in checkouts:
        ledger.note_outputs(place, tracking.project_of(place))
        made |= ledger.known_outputs(place)
    made |= {digest for name in made if name in unneeded for digest in _files_of(unneeded[name])}
    objects = [path for digest, path in unneeded.items() if digest in made]
    return Unused(objects, _by_output(cache, objects), list(checkouts), len(unneeded) - len(objects))


def holding(root: Path, found: Collection[Path], of: Unused) -> Unused:
    """Those of the objects that are in `found`, with the rest of the directories that they are in."""
    by_digest = {_digest(path): path for path in of.objects}
    chosen = {path for path in of.objects if path in found}
    for path in of.objects:
        files = [by_digest[digest] for digest in _files_of(path) if digest in by_digest]
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
            names |= {out["md5"]: out["path"] for out in params.read_yaml(path).get("outs") or []}
    for path in objects:
        if name := names.get(_digest(path)):
            names |= {digest: name for digest in _files_of(path) if digest not in names}
    outputs: dict[str, tuple[int, int]] = {}
    for path in objects:
        count, size = outputs.get(name := names.get(_digest(path), OTHER), (0, 0))
        outputs[name] = (count + 1, size + path.stat().st_size)
    return dict(sorted(outputs.items()))


def _files_of(path: Path) -> list[str]:
    """Digests of the files that a list of a directory names; none for another object, or a damaged list."""
    if path.suffix == ".dir":
        with suppress(ValueError, TypeError, KeyError, OSError):
            return [entry["md5"] for entry in json.loads(path.read_bytes())]
    return []


def _digest(path: Path) -> str:
    return path.parent.name + path.name


def _is_checkout(place: Path) -> bool:
    return (place / "dvc.yaml").is_file() and (place / ".dvc").is_dir()


def _listed(cache: Path) -> list[Path]:
    file = cache / USERS
    return [Path(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _list(cache: Path, places: Collection[Path]) -> None:
    text = "".join(f"{path}\n" for path in places)
    disk.write_atomically(cache / USERS, lambda temporary: temporary.write_text(text, encoding="utf-8"))
