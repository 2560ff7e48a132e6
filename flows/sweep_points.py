"""Runs the pipeline with one set of parameters after another in one workspace, for sweeps and bake-offs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from flows import checkout, locks
from flows.pipeline import pipeline
from flows.terminal import tell
from soundmill import params as parameters

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$"  # of a sweep, a family, a folder of sounds
Name = Annotated[str, StringConstraints(pattern=NAME)]


def run_pipeline(workspace: Path, document: dict[str, Any], stages: Sequence[str], name: str) -> str | None:
    """Run these stages in a workspace with these parameters; returns the reason of a failure in one line."""
    with locks.only_one(workspace, 0, tell):  # DVC would record a running stage with the new parameters
        parameters.write_yaml(document, workspace / "params.yaml")
    state = pipeline.with_options(flow_run_name=name)(list(stages), project=workspace, return_state=True)
    if state.is_completed():
        return None
    lines = [line.strip() for line in (state.message or "no message").splitlines() if line.strip()]
    return " ".join(dict.fromkeys([lines[0], lines[-1]]))[:400]  # the stage and its last line


def absolute_paths(document: Any, home: Path, key: str = "") -> list[str]:
    """Overrides that make every path that is relative to the project absolute."""
    if isinstance(document, dict):
        nested = [absolute_paths(value, home, f"{key}.{name}" if key else name) for name, value in document.items()]
        return [override for overrides in nested for override in overrides]
    if isinstance(document, str) and (absolute := checkout.with_absolute_paths(document, home)) != document:
        quoted = absolute.replace("\\", "\\\\").replace("'", "\\'")
        return [f"{key}='{quoted}'"]
    return []


@contextmanager
def nested_under(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables, so that runs started inside are nested under the run that they name."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def listed(text: str) -> list[str]:
    """Comma-separated words of an argument."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[int]:
    """Comma-separated whole numbers of an argument, at least one."""
    if not listed(text) or not all(part.isdigit() for part in listed(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: must be comma-separated whole numbers")
    return [int(part) for part in listed(text)]
