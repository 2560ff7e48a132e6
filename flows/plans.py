"""What a sweep or a bake-off runs: a file of conf/ with the overrides of its rows, and the params.yaml that each composes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, StringConstraints

from flows import checkout
from soundmill import params as parameters
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.params import StageParams, did_you_mean

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$"  # of a sweep, a family, a folder of sounds
Name = Annotated[str, StringConstraints(pattern=NAME)]
PointName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,60}$")]  # as MLflow allows in metric names
FAMILY = "{family}"  # in overrides and keys of seeds: every family of the point


class Plan(StageParams):
    """A file of conf/sweep or conf/bakeoff."""

    title: str
    overrides: list[str] = Field(description="for every point, as in `soundmill params`; `{family}` stands for every family of it")
    points: dict[PointName, list[str]] = Field(description="the rows")


@dataclass(frozen=True)
class Trial:
    """A row of a plan: its overrides, and the params.yaml that they compose."""

    name: str
    overrides: list[str]
    document: dict[str, Any] = field(repr=False)


P = TypeVar("P", bound=Plan)


def files(folder: Path) -> dict[str, Path]:
    """The plans in a folder by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read(kind: type[P], folder: Path, name: str, what: str) -> P:
    """One of the plans in a folder; UserError names the file and key of a mistake, or the plans there are."""
    paths = files(folder)
    if name not in paths:
        raise UserError(
            f"no {what} {name!r} in {folder}{did_you_mean(name, list(paths))} (there are: {', '.join(paths) or 'none'})"
        )
    return read_file(kind, paths[name])


def read_file(kind: type[P], path: Path) -> P:
    return parameters.parse(kind, parameters.read_yaml(path), str(path))


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def of_families(texts: Sequence[str], families: Sequence[str]) -> list[str]:
    """The texts, those with `{family}` once for every family."""
    return [text.replace(FAMILY, family) for text in texts for family in (families if FAMILY in text else [""])]


def refuse_varied(points: Mapping[str, Sequence[str]], families: Sequence[str], extra: Sequence[str], option: str) -> None:
    """UserError if one of the `extra` overrides would make the points alike; `option` chooses among them."""
    varied = {key_of(one) for own in points.values() for one in of_families(own, families)}
    for override in extra:
        if key_of(override) in varied:
            raise UserError(f"{override}: the points differ in {key_of(override)}; choose among them with {option}")


def compose(home: Path, name: str, overrides: Sequence[str], families: Sequence[str]) -> Trial:
    """A row with these overrides. Paths relative to the project (`./` or `../`) become absolute, because it runs in a workspace."""
    overrides = of_families(overrides, families)
    document = registry.compose(home / "conf", overrides)
    paths = []
    for key, value in leaves(document):
        if isinstance(value, str) and (absolute := checkout.with_absolute_paths(value, home)) != value:
            quoted = absolute.replace("\\", "\\\\").replace("'", "\\'")
            paths.append(f"{key}='{quoted}'")
    return Trial(name, overrides + paths, document)


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested mapping that are none, by dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
