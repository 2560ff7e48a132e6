"""The command that lists the named experiments of conf/experiment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from pydantic import Field

from soundmill.commands.project import Project, project_root
from soundmill.errors import UserError
from soundmill.params import StageParams, compose, parse, read_yaml, section

app = typer.Typer()

ELSEWHERE = ("experiment.", "execution.", "corpus.path")  # parameters that may differ between two runs of one experiment


class Experiment(StageParams):
    """The section `experiment` of a file of conf/experiment, and of the params.yaml that it composes."""

    name: str = Field(description="of the file")
    title: str
    corpus: str = Field(description="the recordings, in words")
    minutes: float = Field(gt=0, description="of its trainings, as last measured")


def read_experiments(conf: Path) -> dict[str, Experiment]:
    """The experiments below `conf`, by name; a mistake in one raises UserError naming its file and key."""
    paths = sorted((conf / "experiment").glob("*.yaml"))
    return {
        path.stem: parse(Experiment, section(read_yaml(path), "experiment", str(path)), f"{path}: experiment") for path in paths
    }


@app.command("experiments")
def list_experiments(project: Project = None) -> None:
    """List the named experiments (conf/experiment): title, recordings, minutes of training, last scores.

    `soundmill run experiment=NAME` repeats one over embedded recordings, `soundmill run DIR experiment=NAME` over those in a
    folder. Parameters that follow override its own: `soundmill run DIR experiment=esc10_tango tango.train.steps=1000`.
    `soundmill params experiment=NAME` writes its params.yaml for `dvc repro`; `dvc exp run -S experiment=NAME` takes it too.
    A new file in conf/experiment is a new experiment.
    """
    from rich.console import Console

    root = project_root(project)
    named = read_experiments(root / "conf")
    scores, why = _last_scores(root, named)
    console = Console(highlight=False)
    for name, its in named.items():
        console.print(f"[bold]{name}[/bold]: {its.title}", soft_wrap=True)
        console.print(f"  {its.corpus}, {its.minutes:g} minutes of training", style="dim")
        if name in scores:
            console.print(f"  {scores[name]}", soft_wrap=True, markup=False)
    if why:
        console.print(f"No scores: {why}", style="dim", soft_wrap=True)
    console.print("`soundmill run [DIR] experiment=NAME` repeats one; `soundmill experiments --help` says more.", soft_wrap=True)


def _last_scores(root: Path, named: Iterable[str]) -> tuple[dict[str, str], str]:
    """The last scores of the named experiments in words, and why there are none."""
    from soundmill import tracking

    works, where = tracking.status(root)
    if not works:
        return {}, where
    try:
        runs = tracking.last_scores(root)
    except UserError as error:
        return {}, str(error)
    told = {}
    for name in runs.keys() & named:
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
