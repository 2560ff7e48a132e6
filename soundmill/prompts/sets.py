"""Prompt sets: YAML files of prompts, each with the kinds of sounds that it asks for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from soundmill import params
from soundmill.errors import UserError
from soundmill.params import StageParams, did_you_mean

HERE = Path(__file__).parent
DIRECTORY = HERE / "sets"
ORDER = ("plain", "paraphrases", "negation", "counts", "order", "unknown", "empty", "long", "languages")
NAMES = tuple(sorted((path.stem for path in DIRECTORY.glob("*.yaml")), key=lambda name: (*ORDER, name).index(name)))


def _joined(text: object) -> object:
    return " ".join(text) if isinstance(text, list) and all(isinstance(part, str) for part in text) else text


class Kind(StageParams):
    """A kind of sound: the AudioSet classes that count as it, and the labels of real clips of it."""

    classes: list[str] = Field(min_length=1)
    labels: list[str] = Field([])


class Prompt(StageParams):
    text: Annotated[str, BeforeValidator(_joined)] = Field(description="or a list of parts, joined by spaces")
    heard: list[str] = Field([], description="the kinds that it asks for, in their order; empty: none in particular")
    absent: list[str] = Field([], description="kinds that it names to be absent")
    count: int | None = Field(None, ge=1, description="the number of events that it asks for")


class PromptSet(StageParams):
    about: str
    prompts: list[Prompt] = Field(min_length=1)
    kinds: dict[str, Kind] = Field({}, description="further kinds than those of kinds.yaml, for this set alone")
    filler: str = Field("", description="text for YAML's anchors")


def kinds() -> dict[str, Kind]:
    """The kinds that every set knows."""
    path = HERE / "kinds.yaml"
    return {name: params.parse(Kind, kind, f"{path}: {name}") for name, kind in params.read_yaml(path).items()}


def load(names: Sequence[str]) -> dict[str, PromptSet]:
    """Sets by name, of this package or YAML files, each with all kinds that it knows; UserError names file, key and remedy."""
    sets: dict[str, PromptSet] = {}
    common = kinds()
    for name in names:
        path = Path(name) if name.endswith(".yaml") else DIRECTORY / f"{name}.yaml"
        if path.parent == DIRECTORY and path.stem not in NAMES:
            raise UserError(
                f"no prompt set {name!r}{did_you_mean(name, list(NAMES))}; there are {', '.join(NAMES)}, or give a .yaml file"
            )
        if path.stem in sets:
            raise UserError(f"{name}: two prompt sets are called {path.stem!r}; rename a file")
        chosen = params.parse(PromptSet, params.read_yaml(path), f"{path}: prompt set")
        sets[path.stem] = chosen.model_copy(update={"kinds": common | chosen.kinds})
        _check_kinds(path, sets[path.stem])
    return sets


def _check_kinds(path: Path, chosen: PromptSet) -> None:
    for number, prompt in enumerate(chosen.prompts):
        for kind in (*prompt.heard, *prompt.absent):
            if kind not in chosen.kinds:
                where = f"{path}: prompts.{number}: no kind {kind!r}{did_you_mean(kind, list(chosen.kinds))}"
                raise UserError(f"{where}; there are {', '.join(chosen.kinds)}, or describe it under `kinds`")
