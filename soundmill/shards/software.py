"""What made a shard beside its parameters: code and versions."""

from __future__ import annotations

import inspect
import os
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from soundmill.shards.digests import digest, file_digest


def software(function: Callable[..., Any]) -> dict[str, str]:
    """What the bytes that `function` makes depend on beside its arguments: this library, the files beside its own (a stage keeps
    rows by what they are made from, and another stage's file made that), Python and packages; and ffmpeg, where the function's
    module has imported `soundmill.decoding.decode`: lossy formats decode bit-equal for one version only."""
    module = function.__module__
    decode = sys.modules.get("soundmill.decoding.decode")
    decodes = decode is not None and any(value is decode for value in function.__globals__.values())
    return {
        **_packages(),  # first: it names this library too, once installed, by a version that no edit changes
        "soundmill": _source_digest(Path(__file__).parents[1]),
        module: _source_digest(Path(inspect.getfile(function)).parent),
        **({"ffmpeg": decode.installed_version()} if decodes else {}),
    }


# Each is found once in a process, because a process goes on with the code that it has loaded.


@cache
def _source_digest(directory: Path) -> str:
    return digest([[path.name, file_digest(path)] for path in sorted(directory.rglob("*.py"))])


@cache
def _packages() -> dict[str, str]:
    """Name → version of all that is installed, and of Python; from the names of the directories, which takes a millisecond."""
    ending = ".dist-info"
    names = [name for entry in sys.path if os.path.isdir(entry) for name in os.listdir(entry) if name.endswith(ending)]
    found = dict(name.removesuffix(ending).rsplit("-", 1) for name in sorted(names, reverse=True) if "-" in name)
    return {"Python": platform.python_version(), **found}
