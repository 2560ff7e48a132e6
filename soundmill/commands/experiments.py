"""The named experiments of conf/experiment, and the last scores that were recorded of each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from soundmill.errors import UserError
from soundmill.params import StageParams, compose, parse, read_yaml, section

ELSEWHERE = ("experiment.", "execution.", "corpus.path")  # parameters that may differ between two runs of one experiment


class Experiment(StageParams):
    """The section `experiment` of a file of conf/experiment, and of the params.yaml that it composes."""

    name: str = Field(description="of the file")
    title: str
    corpus: str = Field(description="the recordings, in words")
    minutes: float = Field(gt=0, description="of its trainings on two CPU cores, as last measured")


def read_experiments(conf: Path) -> dict[str, Experiment]:
    """The experiments below `conf`, by name; a mistake in one raises UserError naming its file and key."""
    paths = sorted((conf / "experiment").glob("*.yaml"))
    return {
        path.stem: parse(Experiment, section(read_yaml(path), "experiment", str(path)), f"{path}: experiment") for path in paths
    }


def last_scores(root: Path, names: Iterable[str]) -> tuple[dict[str, str], str]:
    """The last scores of these experiments in words, by name, and why there are none."""
    from soundmill import tracking

    works, where = tracking.status(root)
    if not works:
        return {}, where
    try:
        runs = tracking.last_scores(root)
    except UserError as error:
        return {}, str(error)
    told = {}
    for name in runs.keys() & set(names):
        values = ", ".join(f"{score} {value:.3g}" for score, value in sorted(runs[name].scores.items()))
        changed = _changed(compose(root / "conf", [f"experiment={name}"]), runs[name].params)
        told[name] = f"{values} ({runs[name].name}{'; with other ' + ', '.join(changed) if changed else ''})"
    return told, ""


def _changed(document: dict[str, Any], recorded: dict[str, str]) -> list[str]:
    """Keys of parameters whose recorded value is not that of an experiment as it is now."""
    from soundmill import tracking

    now = {key: str(value) for key, value in tracking.flatten(document).items()}
    keys = [key for key in now | recorded if now.get(key) != recorded.get(key) and not key.startswith(ELSEWHERE)]
    return keys if len(keys) <= 5 else [*keys[:5], f"and {len(keys) - 5} more"]
