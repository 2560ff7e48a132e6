"""The named experiments of conf/experiment, and the last scores that were recorded of each."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from soundmill.errors import UserError
from soundmill.params import StageParams, compose, parse, read_yaml, section

IGNORED = ("experiment.", "execution.", "corpus.path")  # parameters that may differ between runs of one experiment


class Experiment(StageParams):
    """The section `experiment` of a file of conf/experiment, and of the params.yaml that it composes."""

    name: str = Field(description="name of the file, without .yaml")
    title: str
    corpus: str = Field(description="name of the recordings, for display")
    minutes: float = Field(gt=0, description="minutes of training on two CPU cores, as last measured")


def read_experiments(conf: Path) -> dict[str, Experiment]:
    """The experiments in `conf` by name; UserError names the file and key of a mistake."""
    paths = sorted((conf / "experiment").glob("*.yaml"))
    return {
        path.stem: parse(Experiment, section(read_yaml(path), "experiment", str(path)), f"{path}: experiment") for path in paths
    }


def last_scores(root: Path, names: Iterable[str]) -> tuple[dict[str, str], str]:
    """The last scores of these experiments as text, by name; and the reason if none could be read."""
    from soundmill import tracking

    works, where = tracking.status(root)
    if not works:
        return {}, where
    try:
        runs = tracking.last_scores(root)
    except UserError as error:
        return {}, str(error)
    texts = {}
    for name in runs.keys() & set(names):
        values = ", ".join(f"{score} {value:.3g}" for score, value in sorted(runs[name].scores.items()))
        changed = _changed(compose(root / "conf", [f"experiment={name}"]), runs[name].params)
        texts[name] = f"{values} ({runs[name].name}{'; with other ' + ', '.join(changed) if changed else ''})"
    return texts, ""


def _changed(document: dict[str, Any], recorded: dict[str, str]) -> list[str]:
    """Keys of parameters whose recorded value differs from that of the experiment now."""
    from soundmill import tracking

    now = {key: str(value) for key, value in tracking.flatten(document).items()}
    keys = [key for key in now | recorded if now.get(key) != recorded.get(key) and not key.startswith(IGNORED)]
    return keys if len(keys) <= 5 else [*keys[:5], f"and {len(keys) - 5} more"]
