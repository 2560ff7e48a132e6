"""Published configurations: sizes are read, and everything else must be as this family has it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soundmill import params as strict
from soundmill.errors import UserError

REMEDY = "its files do not belong together: download them again"
NO_PICKLES = "weights in other formats can run code and are not read"


def read(file: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError if it is missing or none."""
    if not file.is_file():
        raise UserError(f"{file}: is missing; {REMEDY}")
    config = strict.read_json(file, "download it again")
    if not isinstance(config, dict):
        raise UserError(f"{file}: not a JSON object; download it again")
    return config


def size(file: Path, config: Mapping[str, Any], key: str) -> int:
    """A size in a configuration; UserError unless it is a whole number."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9 or value != int(value):
        raise UserError(f"{file}: {key} is {value!r}, not a size; download it again")
    return int(value)


def agree(file: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], unused: tuple[str, ...] = ()) -> None:
    """UserError unless every key of a configuration is known and has the value that this family's part has."""
    for key, value in theirs.items():
        if key.startswith("_") or key in unused:
            continue
        if key not in ours:
            raise UserError(f"{file}: {key} is {value!r}, which is not supported: this key is unknown")
        supported = list(ours[key]) if isinstance(ours[key], tuple) else ours[key]
        if value != supported:
            raise UserError(f"{file}: {key} is {value!r}, which is not supported; with the other values it must be {supported!r}")
    if missing := [key for key in ours if not key.startswith("_") and key not in theirs]:
        raise UserError(f"{file}: {missing[0]} is missing; {REMEDY}")


def shards(index: Path) -> list[Path]:
    """The files of weights that an index lists; UserError unless they are files beside it. No name becomes a path unchecked."""
    listed = read(index).get("weight_map")
    beside = {file.name: file for file in index.parent.glob("*.safetensors")}
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index}: weight_map is {listed!r}, not a list of files; download it again")
    if absent := [name for name in listed.values() if not isinstance(name, str) or name not in beside]:
        raise UserError(f"{index}: weight_map names {absent[0]!r}, which is no *.safetensors in this directory; {REMEDY}")
    return [beside[name] for name in sorted(set(listed.values()))]
