"""Strict typed parameters: every knob is in `params.yaml`, and a wrong key, type or range is an error that names it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from soundmill import disk
from soundmill.errors import UserError

MAX_DEPTH = 100  # of YAML's collections within each other: parameters have six

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Hertz = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decibels = Annotated[float, Field(allow_inf_nan=False)]
SampleRate = Annotated[int, Field(ge=1000, le=768_000)]
Probability = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class StageParams(BaseModel):
    """Base of every section: strict types, no unknown keys, no hidden defaults, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ExecutionParams(StageParams):
    """Workers; nothing here may change a byte of any output, so no stage lists it under `params:`."""

    workers: int | None = Field(ge=1, description="processes for data stages; null: one per CPU core")
    dask: str | None = Field(description="address of a Dask scheduler, whose workers then do the work of data stages")


P = TypeVar("P", bound=BaseModel)


def compose(conf: Path, overrides: list[str]) -> dict[str, Any]:
    """Compose the Hydra groups below `conf` into the content of params.yaml; `overrides` as Hydra takes them."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(conf.resolve()), version_base=None):
            document = OmegaConf.to_container(hydra_compose("config", overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        check_choices(conf, overrides)
        unknown = re.match(r"Could not override '([^']+)'", str(error))
        choices = [override for override in overrides if (conf / override.partition("=")[0]).is_dir()]
        if unknown and choices != overrides:
            groups = {path.name: None for path in conf.iterdir() if path.is_dir()}
            section(groups | compose(conf, choices), unknown[1], str(conf))  # says what may have been meant
        raise UserError(f"{conf}: {error}") from None
    check_vocoder(document, overrides)
    return document


def check_choices(conf: Path, overrides: list[str]) -> None:
    """UserError where an override chooses what its group below `conf` does not have, with the nearest name."""
    for override in overrides:
        group, _, choice = override.partition("=")
        known = sorted(path.stem for path in (conf / group).glob("*.yaml")) if re.fullmatch(r"\w+", group) else []
        if known and re.fullmatch(r"\w+", choice) and choice not in known:
            raise UserError(f"no {group} {choice!r} in {conf / group}{did_you_mean(choice, known)} (there are: {', '.join(known)})")


def check_vocoder(document: dict[str, Any], overrides: list[str]) -> None:
    """UserError where a vocoder is chosen that no family takes: all would keep Griffin-Lim, or what they are."""
    chosen = next((one for one in overrides if one.startswith("vocoder=")), None)  # not by `scale=`, which is for every family
    if chosen and document["vocoder"] and not document["vocoder_families"]:
        raise UserError(
            f"{chosen}: not for model={','.join(document['families'])}; leave it out, choose another of conf/vocoder/, or add to "
            "model= a family that takes it (docs/parameters.md#vocoders)"
        )


class TooDeepError(ValueError):
    """Brackets nest deeper than Python's parser can follow."""


def parse_json(text: str | bytes, **options: Any) -> Any:
    """The value of a JSON text from outside; ValueError if it is not JSON, TooDeepError (a ValueError) if it nests too deep."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise TooDeepError("brackets within brackets, too deep to be read") from None


def read_json(path: Path, remedy: str) -> Any:
    """The value of a JSON file; a UserError that names it and the remedy where it is none."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}; {remedy}") from None


def parse_yaml(text: str | bytes) -> Any:
    """The value of a YAML 1.2 text (`1e-4` is a number there, a string in YAML 1.1); YAMLError where it is none, or nests too deep.

    The parser in C would end the whole process there, so depth is looked at first.
    """
    from ruamel.yaml import YAML, YAMLError
    from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in YAML(typ="safe").parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise YAMLError(f"more than {MAX_DEPTH} collections within each other")
    return YAML(typ="safe").load(text)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping, as `parse_yaml` does."""
    from ruamel.yaml import YAMLError

    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from a Soundmill checkout, or compose it with `make params`") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected sections of parameters, found {type(document).__name__}")
    return document


def write_yaml(document: dict[str, Any], path: Path) -> None:
    """Write a mapping as YAML, whole or not at all."""
    text = yaml_text(document)
    disk.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def yaml_text(document: dict[str, Any]) -> str:
    """A mapping as `read_yaml` reads it."""
    from ruamel.yaml import YAML

    yaml, text = YAML(), StringIO()
    yaml.width = 120
    yaml.dump(document, text)
    return text.getvalue()


def section(document: dict[str, Any], name: str, where: str) -> Any:
    """The part of the document at a dotted name such as `ddpm_mel.train`."""
    value: Any = document
    done: list[str] = []
    for key in name.split("."):
        if not isinstance(value, dict) or key not in value:
            known = list(value) if isinstance(value, dict) else []
            raise UserError(f"{where}: section {'.'.join([*done, key])!r} is missing{did_you_mean(key, known)}")
        value = value[key]
        done.append(key)
    return value


def did_you_mean(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(key), [str(k) for k in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def load(model: type[P], path: Path, name: str) -> P:
    """Read and validate one section; errors name `file: section.key`, the value found and what is allowed."""
    return parse(model, section(read_yaml(path), name, str(path)), f"{path}: {name}")


def parse_section(document: dict[str, Any], name: str, model: type[P]) -> P:
    """The section at a dotted name of the content of a params.yaml, validated as `load` does."""
    return parse(model, section(document, name, "params.yaml"), f"params.yaml: {name}")


def parse(model: type[P], values: Any, where: str) -> P:
    """Validate plain values as `model`; a mistake raises UserError that names each key."""
    try:
        return model.model_validate(values)
    except ValidationError as invalid:
        lines = []
        for problem in invalid.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                text = f"unknown key{did_you_mean(str(problem['loc'][-1]), _fields_at(model, problem['loc'][:-1]))}"
            elif problem["type"] == "missing":
                text = "missing; every knob must be set, there are no hidden defaults"
            else:
                text = f"{problem['msg']} (found {problem['input']!r})"
            lines.append(f"{where}.{key}: {text}" if key else f"{where}: {text}")
        raise UserError("\n".join(lines)) from None


def override(params: P, settings: Sequence[str], where: str) -> P:
    """The parameters with `settings` (`num_steps=50`, `name.key=value`, values as in YAML) in place of some."""
    from ruamel.yaml import YAML, YAMLError

    values = params.model_dump(mode="json")
    for setting in settings:
        name, equals, text = setting.partition("=")
        try:
            value = YAML(typ="safe").load(text)
        except YAMLError:
            raise UserError(f"{where}.{name}: {text!r} is no value") from None
        *parents, key = name.split(".")
        inner = section(values, ".".join(parents), where) if parents else values
        if not equals or not isinstance(inner, dict) or key not in inner:
            known = list(inner) if isinstance(inner, dict) else []
            raise UserError(f"{where}: cannot set {setting!r}{did_you_mean(key, known)} (KEY=VALUE of: {', '.join(known)})")
        inner[key] = value
    return parse(type(params), values, where)


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the (possibly nested) model at an error location, as far as plain nesting goes."""
    current: Any = model
    for part in loc:
        field = getattr(current, "model_fields", {}).get(part)
        annotation = getattr(field, "annotation", None)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            current = annotation
    return list(getattr(current, "model_fields", {}))
