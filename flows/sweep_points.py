"""One set of parameters after another through the pipeline, in one workspace: what a sweep and a bake-off are made of."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows import checkout, locks
from flows.pipeline import pipeline
from flows.terminal import tell
from soundmill import params as parameters


def run_pipeline(workspace: Path, document: dict[str, Any], stages: Sequence[str], name: str) -> str | None:
    """Bring a workspace to these parameters and through the pipeline; returns why that failed, in a line."""
    with locks.only_one(workspace, 0, tell):  # DVC would record a stage that runs now with the new ones
        parameters.write_yaml(document, workspace / "params.yaml")
    of_run = pipeline.with_options(flow_run_name=name)
    state = of_run(list(stages), project=workspace, return_state=True)
    if state.is_completed():
        return None
    lines = [line.strip() for line in (state.message or "no message").splitlines() if line.strip()]
    return " ".join(dict.fromkeys([lines[0], lines[-1]]))[:400]  # which stage it was, and its last word


def absolute_paths(document: Any, home: Path, key: str = "") -> list[str]:
    """Overrides that give every parameter which is a path relative to the project as an absolute one."""
    if isinstance(document, dict):
        nested = [absolute_paths(value, home, f"{key}.{name}" if key else name) for name, value in document.items()]
        return [override for overrides in nested for override in overrides]
    if isinstance(document, str) and (absolute := checkout.with_absolute_paths(document, home)) != document:
        quoted = absolute.replace("\\", "\\\\").replace("'", "\\'")
        return [f"{key}='{quoted}'"]
    return []


@contextmanager
def nested_under(variables: dict[str, str]) -> Iterator[None]:
    """Runs that are opened inside are nested below the run that these variables name."""
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
    """Words of an argument, with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[int]:
    """Whole numbers of an argument, with commas between; one at least."""
    if not listed(text) or not all(part.isdigit() for part in listed(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers from 0, with commas between")
    return [int(part) for part in listed(text)]
