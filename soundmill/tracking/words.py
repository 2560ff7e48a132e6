"""What may come down the line to the recorder; anything else is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

MAX_LINE = 16 * 2**20  # bytes

Check = Callable[[Any], bool]


def check(line: bytes) -> dict[str, Any]:
    """One line as the recorder carries it out; ValueError says what is wrong with it."""
    try:
        word = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("not JSON") from None
    op = word.get("op") if isinstance(word, dict) else None
    if not isinstance(op, str) or op not in FORMS:
        raise ValueError("no known `op`")
    form = FORMS[op] | {key: fits for key, fits in OPTIONAL.items() if key in word}
    for key, fits in form.items():
        if not fits(word.get(key)):
            raise ValueError(f"{op}: `{key}` is missing or of another type")
    return word


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _token(value: Any) -> bool:
    return _text(value) and re.fullmatch(r"[0-9a-f]{32}", value) is not None


def _integer(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63  # what a database takes


def _number(value: Any) -> bool:
    return type(value) is float or _integer(value)


def _folder(value: Any) -> bool:
    return _text(value) and not value.startswith("/") and ".." not in PurePosixPath(value).parts


def _each(fits: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _list_of(fits: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _parent(value: Any) -> bool:
    shared = {"identity": _token, "name": _text, "tags": _each(_text), "params": _each(_text)}
    forms: tuple[dict[str, Check], ...] = ({}, {"id": _text}, shared)
    return value is None or any(
        isinstance(value, dict) and value.keys() == form.keys() and all(fits(value[key]) for key, fits in form.items())
        for form in forms
    )


FORMS: dict[str, dict[str, Check]] = {
    "open": {"token": _token, "name": _text, "tags": _each(_text), "parent": _parent},
    "settle": {},
    "params": {"values": _each(_text)},
    "metrics": {"values": _each(_number), "time": _integer},
    "tags": {"values": _each(_text)},
    "file": {"path": _text, "folder": _folder},
    "dataset": {
        "name": _text,
        "digest": _text,
        "source": _text,
        "columns": _each(_text),
        "rows": _integer,
        "context": _text,
    },
    "model": {
        "path": _text,
        "name": _text,
        "registered": _text,
        "inputs": _each(_list_of(_scalar)),
        "dtype": _text,
        "shape": _list_of(_integer),
    },
    "end": {"status": lambda value: value in ("FINISHED", "FAILED", "KILLED"), "reason": _text},
}
OPTIONAL: dict[str, Check] = {"on": lambda value: value in ("stage", "parent"), "step": _integer}
