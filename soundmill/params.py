"""Strict typed parameters: all are in `params.yaml`, and a wrong key, type or range is an error that names it."""

import difflib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from soundmill import credentials, disk
from soundmill.errors import UserError

MAX_DEPTH = 100  # of nested YAML collections; parameters need six
MAX_VALUES = 100_000  # of a YAML document with fewer bytes, with those that its aliases repeat

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Hertz = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decibels = Annotated[float, Field(allow_inf_nan=False)]


def _of_flac(rate: int) -> int:
    if rate > 65_535 and rate % 10:
        raise ValueError("above 65,535 Hz, FLAC has multiples of 10 alone")
    return rate


SampleRate = Annotated[int, Field(ge=1000, le=655_350), AfterValidator(_of_flac)]
Probability = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
MAX_SEED = 2**63 - 1
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class StageParams(BaseModel):
    """Base of every section: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class LanesParams(StageParams):
    """Rows of a sweep or a bake-off at the same time, each lane in a workspace of its own."""

    number: int = Field(ge=1, description="how many")
    gpus: int = Field(ge=0, description="GPUs of each, which sees no others; 0: each sees all")


class ExecutionParams(StageParams):
    """Workers. Nothing here may change a byte of any output, so no stage lists it under `params:`."""

    workers: int | None = Field(ge=1, description="processes for data stages; null: one per CPU core")
    devices: int | None = Field(
        ge=1, description="processes of `generate`; on GPUs also of `latents`, `evaluate`; null: one per GPU; without, one per core"
    )
    dask: str | None = Field(description="address of a Dask scheduler, whose workers then run the data stages")
    lanes: LanesParams
    system_metrics: bool = Field(True, description="log CPU, memory, disk, network and GPUs of trainings")


P = TypeVar("P", bound=BaseModel)
T = TypeVar("T")


_one_at_a_time = threading.Lock()  # Hydra's state is global, and lanes are threads


def compose(conf: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the Hydra groups below `conf` into the content of params.yaml; `overrides` in Hydra's syntax."""
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for path in conf.rglob("*.yaml"):
        if b"*" in (text := path.read_bytes()):  # OmegaConf copies what an alias repeats
            _of_file(path, lambda text=text: _check_extent(text))
    _check_settings(overrides, "params")
    _check_grammar(conf, overrides)
    try:
        with _one_at_a_time, initialize_config_dir(str(conf.resolve()), version_base=None):
            document = _of_file(
                conf, lambda: OmegaConf.to_container(hydra_compose("config", list(overrides)), resolve=True), yaml.YAMLError
            )
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        _raise_mistake(error, conf, overrides)
    chosen = [choice for group, _, choice in (override.partition("=") for override in overrides) if group == "experiment"]
    if "experiment" in document and chosen:
        document["experiment"] = {"name": re.findall(r"[\w.-]+", chosen[-1])[-1], **document["experiment"]}
    check_urls(document, "params")
    return document


def _check_grammar(conf: Path, overrides: Sequence[str]) -> None:
    """UserError in our words, as Hydra's speak of its grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    defaults = read_yaml(conf / "config.yaml").get("defaults", [])
    groups = {group for choice in defaults if isinstance(choice, dict) for group in choice}
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
            valid = override.key_or_group and not override.is_sweep_override()
        except HydraException:
            valid = False
        if not valid:
            raise UserError(
                f"{text!r}: expected KEY=VALUE; write a list as KEY=[1,2], a text with special characters as 'KEY=\"a, b\"'"
            )
        if (name := override.key_or_group) in groups and not text.startswith(name):
            raise UserError(f"{text!r}: write {name}=CHOICE, without a prefix, or leave it out")
        if re.match(r"hydra(?:[./]|$)", name):
            raise UserError(f"{text!r}: a setting of Hydra, which has no effect here; leave it out")


def _raise_mistake(error: Exception, conf: Path, overrides: Sequence[str]) -> NoReturn:
    """Raise the UserError that names which override Hydra or OmegaConf could not follow, and the remedy."""
    for group, choice in ((re.split("[@=]", text.lstrip("+"))[0], text.partition("=")[2]) for text in overrides):
        options = {path.stem: path for path in sorted((conf / group).glob("*.yaml"))} if re.fullmatch(r"\w+", group) else {}
        plain = re.fullmatch(r"\[?[\w.,\s-]*\]?", choice)  # a name, or a list of names
        for name in (re.findall(r"[\w.-]+", choice) or [choice]) if options and plain and choice != "[]" else ():
            choose(options, name, group)
    unknown = re.match(r"Could not (?:override|delete from config\.) '(?:\w+@)?([^']+)'", str(error))
    choices = [override for override in overrides if (conf / override.partition("=")[0]).is_dir()]
    if unknown and choices != list(overrides):
        groups = {path.name: None for path in conf.iterdir() if path.is_dir()}
        composed, name = compose(conf, choices), unknown[1]
        family = name.partition(".")[0]
        if (conf / "model" / f"{family}.yaml").is_file() and family not in composed["families"]:
            raise UserError(f"{name}: {family} is not trained here; add `model={family}`") from None
        if alike := [known for known in flat(composed) if known.endswith(f".{name}") and "." not in name]:
            raise UserError(f"{name}: no such parameter; did you mean {' or '.join(alike[:3])}?") from None
        section(groups | composed, name, str(conf))  # raises with a suggestion
    message = re.sub(r"Interpolation key '([^']+)' not found", r"follows \1, which is missing", _one_line(error))
    if cut := re.search(r"(?:trying to access \S+ node `|merging override )([^`=]+)", message):  # perhaps a relative name
        keys = [key for key in (text.partition("=")[0] for text in overrides) if f".{key}".endswith(f".{cut[1]}")]
        raise UserError(f"{[*keys, cut[1]][0]}: is a section or a list; set one of its keys, or all as [A,B]") from None
    raise UserError(f"{getattr(error, 'full_key', None) or conf}: {message}") from None


def _one_line(error: Exception) -> str:
    """Without what OmegaConf adds for its developers."""
    return " ".join(
        line.strip() for line in str(error).splitlines() if not re.match(r"\s*(full_key|object_type|reference_type)\b", line)
    )


def check_urls(values: Any, where: str) -> None:
    """UserError, without repeating it, if a text in parameters or words of a command has credentials: every run records them."""
    if isinstance(values, str) and credentials.has_some(values):
        raise UserError(
            f"{where}: the URL has credentials in it; remove them, change them, and put the new ones into the environment "
            "(docs/corpora.md#buckets)"
        )
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list | tuple) else ()
    for key, value in items:
        check_urls(value, f"{where}.{key}")


def _check_settings(settings: Sequence[str], where: str) -> None:
    """`check_urls` for `key=value`, by its key."""
    for setting in settings:
        key = re.match(r"[\w.+~/]+(?==)", setting)
        check_urls(setting, f"{where}.{key[0].lstrip('+~')}" if key and not credentials.has_some(key[0]) else where)


class TooDeepError(ValueError):
    """JSON nested deeper than Python's parser can follow."""


def parse_json(text: str | bytes, **options: Any) -> Any:
    """The value of untrusted JSON text; ValueError if it is not JSON, TooDeepError (a ValueError) if it is nested too deeply."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise TooDeepError("nested too deeply") from None


def read_json(path: Path, remedy: str) -> Any:
    """The value of a JSON file; if it is not JSON, a UserError that names the file and the remedy."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}; {remedy}") from None


def parse_yaml(text: str | bytes) -> Any:
    """The value of YAML 1.2 text (`1e-4` is a number, in YAML 1.1 a string); YAMLError, naming the line, if it is none.

    Nesting is checked first, because the parser in C would crash the process; aliases, because a few bytes may stand for billions
    of values.
    """
    from ruamel.yaml import YAML, YAMLError

    _check_extent(text)
    try:
        return YAML(typ="safe").load(text)
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:  # of values that do not fit their tag
        raise YAMLError(f"a value does not fit its tag ({type(error).__name__}: {error})") from None


def _check_extent(text: str | bytes) -> None:
    """YAMLError if a document is nested deeper than MAX_DEPTH, or has far more values than bytes because aliases repeat them."""
    from ruamel.yaml import YAML, YAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    most = max(MAX_VALUES, len(text))
    sizes: dict[str | None, int] = {}  # by anchor
    within: list[tuple[str | None, int]] = [(None, 0)]  # anchor and values so far of the collections around an event
    for event in YAML(typ="safe").parse(text):
        if isinstance(event, CollectionStartEvent):
            within.append((event.anchor, 1))
            if len(within) > MAX_DEPTH + 1:
                raise YAMLError(f"line {event.start_mark.line + 1}: collections nested deeper than {MAX_DEPTH}")
            continue
        if isinstance(event, CollectionEndEvent):
            anchor, size = within.pop()
        elif isinstance(event, AliasEvent):
            of_itself = any(event.anchor == anchor for anchor, _ in within)
            anchor, size = None, most + 1 if of_itself else sizes.get(event.anchor, 0)
        elif isinstance(event, ScalarEvent):
            anchor, size = event.anchor, 1
        else:
            continue
        sizes[anchor] = size
        around, before = within[-1]
        within[-1] = around, before + size
        if before + size > most:
            line = event.start_mark.line + 1
            raise YAMLError(f"line {line}: more than {most} values, with those that aliases repeat")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping with `parse_yaml`; UserError if there is none."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from a Soundmill checkout, or compose it with `make params`") from None
    document = _of_file(path, lambda: parse_yaml(text.decode("utf-8")))
    if not isinstance(document, dict):
        found = "an empty file" if document is None else type(document).__name__
        remedy = "; `soundmill params` makes it again" if path.name == "params.yaml" else ""
        raise UserError(f"{path}: expected sections of parameters, found {found}{remedy}")
    return document


def _of_file(path: Path, read: Callable[[], T], *others: type[Exception]) -> T:
    """What `read` gives; a UserError, naming the file and the line, if it is no YAML; `others` are errors of other parsers."""
    from ruamel.yaml import YAMLError

    try:
        return read()
    except (YAMLError, UnicodeDecodeError, *others) as error:
        mark = getattr(error, "problem_mark", None)
        said = f"line {mark.line + 1}: {error.problem}" if mark else str(error)
        where = mark.name if mark and mark.name.endswith(".yaml") else path
        remedy = "; `soundmill params` makes it again" if Path(where).name == "params.yaml" else ""
        raise UserError(f"{where}: not readable as YAML: {credentials.hide(said)}{remedy}") from None


def write_yaml(document: dict[str, Any], path: Path) -> None:
    disk.write_text(path, yaml_text(document))


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted names, such as `ddpm_mel.train.steps`."""
    values: dict[str, Any] = {}
    for key, value in nested.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def yaml_text(document: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml, text = YAML(), StringIO()
    yaml.width = 120
    yaml.dump(document, text)
    return text.getvalue()


def section(document: dict[str, Any], name: str, where: str) -> Any:
    """The part of the document at a dotted name such as `ddpm_mel.train`."""
    value: Any = document
    names = name.split(".")
    for depth, key in enumerate(names, start=1):
        if not isinstance(value, dict) or key not in value:
            keys = list(value) if isinstance(value, dict) else []
            raise UserError(f"{where}: section {'.'.join(names[:depth])!r} is missing{did_you_mean(key, keys)}")
        value = value[key]
    return value


def did_you_mean(key: str, options: list[str]) -> str:
    """`; did you mean 'option'?` for the nearest option, empty if none is near."""
    close = difflib.get_close_matches(str(key), [str(option) for option in options], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def choose(options: Mapping[str, T], name: str, what: str) -> T:
    """The option of that name; UserError for an unknown one suggests the nearest, and lists all."""
    if name not in options:
        raise UserError(f"no {what} {name!r}{did_you_mean(name, list(options))} (there are: {', '.join(options) or 'none'})")
    return options[name]


def parse_section(document: dict[str, Any], name: str, model: type[P], where: str = "params.yaml") -> P:
    """The section at a dotted name of the content of a params.yaml, validated as `parse` does."""
    return parse(model, section(document, name, where), f"{where}: {name}")


def parse(model: type[P], values: Any, where: str) -> P:
    """Validate plain values as `model`; a UserError names each invalid key, the value found and what is allowed."""
    check_urls(values, where)
    try:
        return model.model_validate(values)
    except ValidationError as invalid:
        lines = []
        for problem in invalid.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                text = f"unknown key{did_you_mean(str(problem['loc'][-1]), _fields_at(model, problem['loc'][:-1]))}"
            elif problem["type"] == "missing":
                text = "missing; every parameter must be set"
            else:
                said = problem["msg"].removeprefix("Value error, ").replace("should be None", "should be null")
                # The values of a whole section would fill the screen.
                found = "null" if problem["input"] is None else f"{problem['input']!r:.200}"
                text = said if isinstance(problem["input"], dict) else f"{said} (found {found})"
            lines.append(f"{where}.{key}: {text}" if key else f"{where}: {text}")
        raise UserError("\n".join(lines)) from None


def changed(params: P, changes: dict[str, Any], where: str) -> P:
    """The parameters with some values replaced, at any depth; a UserError names each invalid key."""

    def merged(values: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        both = {key: (values.get(key), value) for key, value in new.items()}
        return values | {key: merged(*two) if all(isinstance(one, dict) for one in two) else two[1] for key, two in both.items()}

    return parse(type(params), merged(params.model_dump(mode="json"), changes), where)


def once_each(settings: Sequence[str] | None) -> list[str]:
    """The settings (`KEY=VALUE`) of a command line; UserError if it has a key twice."""
    settings = list(settings or [])
    keys = [setting.partition("=")[0].strip("+ ") for setting in settings]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"{twice[0]} is given twice; leave one of them out")
    return settings


def refuse(settings: Sequence[str] | None, *names: str, instead: str = "") -> None:
    """UserError if one of `names` is set: by `--set` it is of no use here, but by the option `instead` or in another command."""
    for name in (setting.partition("=")[0].strip() for setting in settings or []):
        if name in names:
            use = instead or f"`soundmill {'restyle' if name == 'amount' else 'inpaint'}`"
            raise UserError(f"--set {name}=…: is not used here; use {use}")


def override(params: P, settings: Sequence[str], where: str) -> P:
    """The parameters with some replaced by `settings` (`num_steps=50`, `name.key=value`, values in YAML)."""
    from ruamel.yaml import YAMLError

    _check_settings(settings, where)
    values = params.model_dump(mode="json")
    for setting in settings:
        name, _, text = (part.strip() for part in setting.partition("="))
        try:
            value = parse_yaml(text)
        except YAMLError:
            raise UserError(f"{where}.{name}: {text!r} is not a YAML value") from None
        *parents, key = name.split(".")
        inner = section(values, ".".join(parents), where) if parents else values
        if not text or not isinstance(inner, dict) or key not in inner:
            keys = list(inner) if isinstance(inner, dict) else []
            raise UserError(
                f"{where}: cannot set {setting!r}{text and did_you_mean(key, keys)} (expected KEY=VALUE, keys: {', '.join(keys)})"
            )
        inner[key] = value
    return parse(type(params), values, where)


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the (possibly nested) model at an error location; none inside lists and unions."""
    current: Any = model
    for part in loc:
        field = getattr(current, "model_fields", {}).get(part)
        annotation = getattr(field, "annotation", None)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            current = annotation
    return list(getattr(current, "model_fields", {}))
