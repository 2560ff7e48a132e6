"""Commands that forget recordings and clips, check that nothing holds them, and free space in DVC's cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from soundmill.commands.project import Project, progress_bar, project_root, use_recorded_store
from soundmill.errors import UserError

app = typer.Typer()

FIRST = 10  # items of a list that are shown
search_progress = partial(progress_bar, None, "look for copies", "B")
WaitMinutes = Annotated[float, typer.Option(min=0, help="How long to wait while a pipeline, a stage or another command runs here.")]


@app.command()
def forget(
    things: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ids of clips, ids or paths of recordings. If a clip and a recording share an id: clip:ID, recording:ID."
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the list, the quarantine and the tags in MLflow.")] = "",
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Search outputs, workspaces, scratch, DVC's cache and MLflow for everything forgotten, or for the named "
            "recordings, clips and files, by id, digest and fingerprint. Exit status 1 if anything holds it.",
        ),
    ] = False,
    erase: Annotated[
        bool,
        typer.Option(
            "--erase",
            help="Remove everything forgotten from scratch, DVC's cache, MLflow's files and the model registry; then --check.",
        ),
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Allow the named recordings and clips again, with the copies listed with them.")
    ] = False,
    refused: Annotated[
        bool, typer.Option("--refused", help="Forget all recordings that corpus.terms refuses, as the last scan listed them.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Restore entries of forgotten.yaml that another branch, an edit or an old copy lost.")
    ] = False,
    wait_minutes: WaitMinutes = 10,
    project: Project = None,
) -> None:
    """Never use a recording or a clip again: list it in forgotten.yaml, with every other copy of its sound.

    Forgetting a clip includes every cut, of any variant, that overlaps it. The command names what holds the sound now, and tags
    registered models that were trained on it. Next, `dvc repro` rebuilds all outputs without it, and `soundmill forget --erase`
    removes what earlier runs kept. Your own file of the recording stays.
    """
    from flows import cache, locks

    root, names = project_root(project), things or []
    if check + erase + undo + update > 1:
        raise UserError("--check, --erase, --undo and --update exclude each other; give one")
    if refused and (names or check or erase or undo or update):
        raise UserError("--refused names the recordings itself; give only --reason with it")
    if reason and (check or erase or undo or update):
        raise UserError("--reason: only for forgetting; leave it out")
    if names and (erase or update):
        raise UserError("--erase and --update apply to everything forgotten; leave out the names")
    if not (names or refused or check or erase or update):
        raise UserError("name clips or recordings, by id or path; or give --check, to see whether everything forgotten is gone")
    if refused:
        names = _refused(root)
    if not (undo or update):
        use_recorded_store(root)
    if check:
        _check(root, names)
    elif erase:
        with cache.held(root, 60 * wait_minutes, _say) as checkouts:
            _erase(root, checkouts)
        _check(root, [])
    else:
        with locks.only_one(root, 60 * wait_minutes, _say):
            if undo:
                _undo(root, names)
            elif update:
                _update(root)
            else:
                _forget(root, names, reason)


@app.command()
def clean(
    checkouts: Annotated[
        list[Path] | None, typer.Argument(help="Other checkouts that share this cache, if the command does not list them.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it, instead of only showing it.")] = False,
    project: Project = None,
) -> None:
    """Free disk space: remove from DVC's cache what no checkout or workspace that shares it needs.

    These are outputs of earlier parameters, recordings, branches and experiments; stages can rebuild them. Without --yes, the
    command only shows what it would remove. (`dvc gc --workspace` would also remove what other checkouts need.)
    """
    from flows import cache

    root = project_root(project)
    if yes:
        with cache.held(root, 0, _say, checkouts or []) as held:
            unused = cache.clean(root, held)
    else:
        unused = cache.look(root, checkouts or [])
    for place in unused.users:
        typer.echo(f"kept: what {place} needs")
    for place in unused.gone:
        typer.echo(f"checkout gone, so its outputs are not kept: {place}")
    for output, (count, size) in unused.outputs.items():
        typer.echo(f"{size / 1e6:>10,.1f} MB in {count:>7,}  {output}")
    amount = f"{len(unused.objects)} objects, {unused.size / 1e6:,.1f} MB"
    typer.echo(f"removed: {amount}" if yes else f"not needed: {amount}; `soundmill clean --yes` removes them")


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _refused(root: Path) -> list[str]:
    """What `corpus.terms` refuses, as the command takes it; UserError if it is nothing."""
    from soundmill.lineage import Project

    found = [f"recording:{name}" for name in Project(root).refused]
    if not found:
        raise UserError("--refused: data/refused.parquet lists no recording; set corpus.terms, and run `dvc repro` first")
    return found


def _forget(root: Path, things: list[str], reason: str) -> None:
    from soundmill import forgetting

    with search_progress() as progress:
        outcome = forgetting.forget(root, things, reason, progress)
    for entry in outcome.listed_before:
        typer.echo(f"already forgotten: {entry} ({entry.reason})")
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
        typer.echo(f"tagged in MLflow: {model.name} version {model.version}")
    for note in dict.fromkeys(outcome.notes):
        typer.echo(f"note: {note}", err=True)
    if outcome.added:
        typer.echo("next: `dvc repro`; then `soundmill forget --erase` removes what earlier runs kept, and checks the rest")


def _undo(root: Path, things: list[str]) -> None:
    from soundmill import forgetting

    for entry in forgetting.use_again(root, things):
        typer.echo(f"no longer forgotten: {entry} ({entry.reason})")
    typer.echo("next: `dvc repro`; a workspace with its own entry needs `soundmill forget --undo … --project workspaces/NAME`")


def _update(root: Path) -> None:
    from soundmill import ledger

    added = ledger.update(root)
    for entry in added:
        typer.echo(f"added: {entry['source']} ({entry['reason']})")
    typer.echo(f"{ledger.FILE} lists everything forgotten" + ("; next: `dvc repro`" if added else ""))


def _erase(root: Path, checkouts: Sequence[Path]) -> None:
    from flows import cache
    from soundmill import forgetting

    unused = cache.clean(root, checkouts)
    typer.echo(f"removed from DVC's cache: {len(unused.objects)} objects, {unused.size / 1e6:,.1f} MB, which no checkout needs")
    with search_progress() as progress:
        outcome = forgetting.erase(root, progress)
    for sentence in outcome.removed:
        typer.echo(f"removed {sentence}")
    for sentence in outcome.left:
        typer.echo(f"left: {sentence}", err=True)


def _check(root: Path, things: list[str]) -> None:
    from flows import cache, dvc
    from soundmill import forgetting

    has_cache = (root / ".dvc/config").is_file()
    directory, sharing = (dvc.cache_directory(root), cache.users(root)) if has_cache else (None, [])
    with search_progress() as progress:
        proof = forgetting.check(root, things, directory, sharing, progress)
    for sentence in proof.found:
        typer.echo(sentence)
    for note in proof.notes:
        typer.echo(f"note: {note}", err=True)
    what = ", ".join(things) or "forgotten sounds"
    if proof.found:
        remedy = "`dvc repro` rebuilds outputs; delete copies elsewhere yourself"
        places = f"{len(proof.found)} places hold" if len(proof.found) > 1 else "1 place holds"
        typer.echo(f"{places} {what}; {remedy}", err=True)
        raise typer.Exit(1)
    typer.echo(f"no searched place holds {what}")
