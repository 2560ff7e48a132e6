"""The command that makes a project forget recordings and clips, and proves that it has."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from soundmill.commands.project import Project, progress_bar, project_root
from soundmill.errors import UserError

app = typer.Typer()

FIRST = 10  # of a list
looking = partial(progress_bar, None, "look for copies", "B")


@app.command()
def forget(
    things: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ids of clips, ids or paths of recordings. Where a clip and a recording have one id: clip:ID, recording:ID."
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; the list, the quarantine and the marks in MLflow keep it.")] = "",
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Prove that nothing holds what is forgotten, by id, digest and fingerprint; status 1 where something does.",
        ),
    ] = False,
    project: Project = None,
) -> None:
    """Never use a recording or a clip again: list it, and every other copy of its sound, in forgotten.yaml.

    A clip takes every cut with it, of any variant, that has some of its seconds. Says what holds the sound now, and marks
    registered models that were trained on it. Then run `dvc repro`, and `soundmill forget --check`. DVC's cache keeps earlier
    outputs until `dvc gc --workspace`; the recording's own file is yours to delete.
    """
    root = project_root(project)
    if check:
        if things or reason:
            raise UserError("--check looks for all that is forgotten; leave the rest out")
        _check(root)
    elif not things:
        raise UserError("name what to forget: clip ids, recordings; or look whether all is forgotten: --check")
    else:
        _forget(root, things, reason)


def _forget(root: Path, things: list[str], reason: str) -> None:
    from soundmill import forgetting

    with looking() as looked_at:
        outcome = forgetting.forget(root, things, reason, looked_at)
    for entry in outcome.known:
        typer.echo(f"forgotten before: {entry} ({entry.reason})")
    for entry in outcome.added:
        typer.echo(f"forgotten: {entry}" + (f" ({entry.reason})" if entry.copy_of else ""))
    held = outcome.held
    clips = [f"{variant}/{row['clip_id']}" for variant, rows in held.clips.items() for row in rows]
    weights = [f"{weights.name}/{part}" if part else weights.name for weights, part, *_ in held.weights]
    lists = {"clips": clips, "mixes": list(held.mixes), "shards": list(held.shards), "trained on it": weights, "sounds": held.files}
    for what, names in (lists | {"reports": held.reports}).items():
        if names:
            more = f" and {len(names) - FIRST} more" if len(names) > FIRST else ""
            typer.echo(f"{what} ({len(names)}): {', '.join(names[:FIRST])}{more}")
    for model in outcome.marked:
        typer.echo(f"marked in MLflow: {model.name} version {model.version}")
    for note in dict.fromkeys(outcome.notes):
        typer.echo(f"note: {note}", err=True)
    if outcome.added:
        typer.echo("next: `dvc repro`, `soundmill forget --check`; DVC's cache keeps earlier outputs until `dvc gc --workspace`")


def _check(root: Path) -> None:
    from soundmill import forgetting

    with looking() as looked_at:
        found, notes = forgetting.check(root, looked_at)
    for sentence in found:
        typer.echo(sentence)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if found:
        typer.echo(
            f"{len(found)} places hold what is to be forgotten; `dvc repro` makes them anew, copies elsewhere are yours to delete",
            err=True,
        )
        raise typer.Exit(1)
    typer.echo("nothing below data/ or among the registered models on this machine holds what is forgotten")
