"""The commands that make a project forget recordings and clips, prove that it has, and empty the cache of what nobody needs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soundmill.commands.project import Project, progress_bar, project_root, tell_store
from soundmill.errors import UserError

if TYPE_CHECKING:
    from flows.cache import Unused

app = typer.Typer()

FIRST = 10  # of a list
looking = partial(progress_bar, None, "look for copies", "B")
WaitMinutes = Annotated[float, typer.Option(min=0, help="How long to wait for a pipeline, a stage or a command at work here.")]


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
            help="Prove that nothing holds what is forgotten, or the named recordings and clips, listed or not: by id, digest and "
            "fingerprint, in outputs, workspaces, scratch, DVC's cache and MLflow. Status 1 where something does.",
        ),
    ] = False,
    erase: Annotated[
        bool,
        typer.Option(
            "--erase", help="Remove what scratch, DVC's cache, MLflow's files and registered models hold of it; then --check."
        ),
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Use the named recordings and clips, and the copies listed with them, again.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Put back into forgotten.yaml what another branch or an edit took out of it.")
    ] = False,
    wait_minutes: WaitMinutes = 10,
    project: Project = None,
) -> None:
    """Never use a recording or a clip again: list it, and every other copy of its sound, in forgotten.yaml.

    A clip takes every cut with it, of any variant, that has some of its seconds. Says what holds the sound now, and marks
    registered models that were trained on it. Then run `dvc repro`, and `soundmill forget --erase`, which removes what earlier runs
    kept. The recording's own file is yours to delete.
    """
    from flows import locks

    root = project_root(project)
    if check + erase + undo + update > 1:
        raise UserError("--check, --erase, --undo and --update: say one of them")
    if reason and (check or erase or undo or update):
        raise UserError("--reason goes with what to forget; leave it out")
    if things and (erase or update):
        raise UserError("--erase and --update are about all that is forgotten; leave the names out")
    if not (things or check or erase or update):
        raise UserError("name what to forget: clip ids, recordings; or look whether all is forgotten: --check")
    if not (undo or update):
        tell_store(root)
    if check:
        _check(root, things or [])
        return
    if erase:
        unused = _clean(root)
        typer.echo(f"DVC's cache: {_amount(unused)} removed, which no checkout needs")
    with locks.only_one(root, 60 * wait_minutes, lambda line: typer.echo(line, err=True)):
        if erase:
            _erase(root)
        elif undo:
            _undo(root, things)
        elif update:
            _update(root)
        else:
            _forget(root, things, reason)
    if erase:
        _check(root, [])


@app.command()
def clean(
    checkouts: Annotated[
        list[Path] | None, typer.Argument(help="Further checkouts that use this cache, if the list does not name them.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; otherwise it is only shown.")] = False,
    project: Project = None,
) -> None:
    """Free disk space: remove from DVC's cache what no checkout or workspace that shares it needs now.

    These are the outputs of earlier parameters and recordings, of other branches and of experiments; stages make them again.
    Without --yes it says how much that is, and removes nothing. (`dvc gc --workspace` would remove the outputs of all other
    checkouts too.)
    """
    from flows import cache

    root = project_root(project)
    unused = _clean(root, checkouts or []) if yes else cache.look(root, checkouts or [])
    for place in unused.users:
        typer.echo(f"needed by {place}: kept")
    typer.echo(f"{_amount(unused)} {'removed' if yes else 'can go: `soundmill clean --yes` removes them'}")


def _clean(root: Path, checkouts: Sequence[Path] = ()) -> Unused:
    from flows import cache

    return cache.clean(root, lambda line: typer.echo(line, err=True), checkouts)


def _amount(unused: Unused) -> str:
    return f"{len(unused.objects)} objects, {unused.size / 1e6:,.1f} MB,"


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
        typer.echo(
            "next: `dvc repro`; then `soundmill forget --erase` removes what earlier runs kept, and proves that nothing holds it"
        )


def _undo(root: Path, things: list[str]) -> None:
    from soundmill import forgetting

    for entry in forgetting.use_again(root, things):
        typer.echo(f"may be used again: {entry} ({entry.reason})")
    typer.echo("next: `dvc repro`; workspaces have lists of their own (`soundmill forget --undo … --project workspaces/NAME`)")


def _update(root: Path) -> None:
    from soundmill import ledger

    added = ledger.obey(root)
    for entry in added:
        typer.echo(f"put back: {entry['source']} ({entry['reason']})")
    typer.echo(f"{ledger.FILE} has all that is forgotten" + ("; next: `dvc repro`" if added else ""))


def _erase(root: Path) -> None:
    from soundmill import forgetting

    with looking() as looked_at:
        outcome = forgetting.erase(root, looked_at)
    for sentence in outcome.removed:
        typer.echo(f"removed {sentence}")
    for sentence in outcome.left:
        typer.echo(f"left: {sentence}", err=True)


def _check(root: Path, things: list[str]) -> None:
    from flows import dvc
    from soundmill import forgetting

    with looking() as looked_at:
        proof = forgetting.check(root, things, dvc.cache_directory(root) if (root / ".dvc/config").is_file() else None, looked_at)
    for sentence in proof.found:
        typer.echo(sentence)
    for note in proof.notes:
        typer.echo(f"note: {note}", err=True)
    what = ", ".join(things) or "what is forgotten"
    if proof.found:
        typer.echo(
            f"{len(proof.found)} places hold {what}; `dvc repro` makes outputs anew, copies elsewhere are yours to delete", err=True
        )
        raise typer.Exit(1)
    typer.echo(f"nothing on this machine that was looked into holds {what}")
