"""Commands that trace a sound, forget recordings and clips, check that nothing holds them, and free space in DVC's cache."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soundmill import disk, terminal
from soundmill.commands.project import TAKES_IDS, Root, progress_bar, use_recorded_store, writable_file
from soundmill.errors import UserError, first_of

if TYPE_CHECKING:
    from rich.tree import Tree

    from flows.checkout import Unused
    from soundmill.lineage import Node

app = typer.Typer()

FIRST_NODES = 5  # items of a lineage's list that are shown without --all
LONGEST = 80  # characters of one of its facts without --all
FIRST = 10  # items of a list of what holds a sound that are shown
_say = partial(terminal.say, error=True)
search_progress = partial(progress_bar, None, "look for copies", "B")
Gone = Annotated[list[Path] | None, typer.Option(help="A checkout that shared this cache and was deleted: nothing is kept for it.")]


@app.command(context_settings=TAKES_IDS)
def lineage(
    thing: Annotated[
        str,
        typer.Argument(
            help="A generated WAV, a checkpoint's directory, the id of a clip or mix, or a recording's id or path. If a clip "
            "and a recording share an id, write clip:ID or recording:ID."
        ),
    ],
    json: Annotated[Path | None, typer.Option(callback=writable_file, help="Also write all of it to this file.")] = None,
    all: Annotated[bool, typer.Option("--all", help=f"Show whole lists, not only the first {FIRST_NODES}.")] = False,
    root: Root = None,
) -> None:
    """Trace a sound's origin and everything made from it: recordings, clips, mixes, shards, trainings, checkpoints, sounds, scores.

    A checkpoint carries what it was trained on, so this also works for one that was copied or registered in MLflow.
    """
    from rich.tree import Tree

    from soundmill.lineage import trace

    use_recorded_store(root)
    found = trace(root, thing)
    console = terminal.console(highlight=False, markup=False)
    console.print(_line(found.thing, all))
    for heading, nodes in (("comes from", found.comes_from), ("made from it", found.made_from_it)):
        if nodes:
            tree = Tree(heading)
            _grow(tree, nodes, all)
            console.print(tree)
    if not found.comes_from + found.made_from_it:
        console.print("nothing related was found here")
    for sentence in dict.fromkeys(found.gone):
        terminal.say(f"note: {sentence}", error=True)
    if json:
        disk.write_json(json, found.plain(), indent=1, sort_keys=False, allow_nan=True)


def _grow(tree: Tree, nodes: list[Node], all: bool) -> None:
    from rich.text import Text

    shown = nodes if all or len(nodes) <= FIRST_NODES + 1 else nodes[:FIRST_NODES]
    for node in shown:
        _grow(tree.add(Text(_line(node, all))), node.below, all)
    if len(shown) < len(nodes):
        tree.add(f"… {len(nodes) - len(shown)} more (--all)")


def _line(node: Node, all: bool) -> str:
    facts = {name: value for name, value in node.facts.items() if value not in (None, "", [], {})}
    return " ".join([node.kind, node.name, *(f"{name}={_fact(value, all)}" for name, value in facts.items())])


def _fact(value: Any, all: bool) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if all or len(text) <= LONGEST else f"{text[:LONGEST]}…"


@app.command(context_settings=TAKES_IDS)
def forget(
    things: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of clips, or ids or paths of recordings; clip:ID or recording:ID if the two share an id."),
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
            help="Remove everything forgotten from scratch, this project's objects in DVC's cache, MLflow's files and the model "
            "registry, after showing a list; then --check.",
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
    yes: Annotated[bool, typer.Option("--yes", help="With --erase: do not ask.")] = False,
    gone: Gone = None,
    wait_minutes: Annotated[
        float, typer.Option(min=0, help="Minutes to wait while a pipeline, a stage or another command runs here.")
    ] = 10,
    root: Root = None,
) -> None:
    """Never use a recording or a clip again: list it in forgotten.yaml, with every other copy of its sound.

    Forgetting a clip includes every cut, of any variant, that overlaps it. The command names what holds the sound now, and tags
    registered models that were trained on it. Next, `dvc repro` rebuilds all outputs without it, and `soundmill forget --erase`
    removes what earlier runs kept. Your own file of the recording stays.
    """
    from flows import checkout, locks
    from soundmill import ledger

    names = things or []
    if check + erase + undo + update > 1:
        raise UserError("--check, --erase, --undo and --update exclude each other; give one")
    if refused and (names or check or erase or undo or update):
        raise UserError("--refused names the recordings itself; give only --reason with it")
    if reason and (check or erase or undo or update):
        raise UserError("--reason: only for forgetting; leave it out")
    if (yes or gone) and not erase:
        raise UserError("--yes and --gone: only for --erase; leave them out")
    if names and (erase or update):
        raise UserError("--erase and --update apply to everything forgotten; leave out the names")
    if not (names or refused or check or erase or update):
        raise UserError("name clips or recordings, by id or path; or give --check, to see whether everything forgotten is gone")
    if refused:
        from soundmill.holdings import Project

        names = [f"recording:{name}" for name in Project(root).refused]
        if not names:
            raise UserError("--refused: data/refused.parquet lists no recording; set corpus.terms, and run `dvc repro` first")
    if not (undo or update):
        use_recorded_store(root)
    if check:
        _check(root, names)
    elif erase and not ledger.in_force(root):
        terminal.say("nothing is forgotten, so nothing is erased")
    elif erase:
        with checkout.held(root, 60 * wait_minutes, _say, gone=gone or []) as checkouts:
            _erase(root, checkouts, yes)
        _check(root, [])
    else:
        with locks.only_one(root, 60 * wait_minutes, _say):
            if undo:
                from soundmill import forgetting

                for entry in forgetting.use_again(root, names):
                    terminal.say(f"no longer forgotten: {entry} ({entry.reason})")
                terminal.say(
                    "next: `dvc repro`; a workspace with its own entry needs `soundmill forget --undo … --project workspaces/NAME`"
                )
            elif update:
                added = ledger.update(root)
                for entry in added:
                    terminal.say(f"added: {entry['source']} ({entry['reason']})")
                terminal.say(f"{ledger.FILE} lists everything forgotten" + ("; next: `dvc repro`" if added else ""))
            else:
                _forget(root, names, reason)


@app.command()
def clean(
    checkouts: Annotated[
        list[Path] | None, typer.Argument(help="Other checkouts that share this cache, if the command does not list them.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it, instead of only showing it.")] = False,
    gone: Gone = None,
    root: Root = None,
) -> None:
    """Free disk space: remove from DVC's cache what its checkouts and workspaces made and none of them needs.

    These are outputs of earlier parameters, recordings, branches and experiments; stages can rebuild them. Without --yes, the
    command only shows what it would remove. (`dvc gc --workspace` would also remove what other checkouts and projects need.)
    """
    from flows import checkout

    gone, checkouts = gone or [], checkouts or []
    if yes:
        with checkout.held(root, 0, _say, checkouts, gone) as held:
            unused = checkout.unused(root, held)
            checkout.remove(unused.objects)
    else:
        checkout.check_gone(root, gone)
        unused = checkout.unused(root, checkout.users(root, checkouts))
    for place in unused.users:
        terminal.say(f"kept: what {place} needs")
    for place in (one for one in checkout.away(root) if one not in gone):
        option = shlex.join(["--gone", str(place)])
        terminal.say(f"not there, so `--yes` would refuse: {place}; mount its disk, or if it was deleted, give `{option}`")
    if unused.unknown:
        terminal.say(f"kept: {unused.unknown} objects that none of these made; they may be another project's")
    _show_outputs(unused)
    amount = f"{len(unused.objects)} objects, {unused.size / 1e6:,.1f} MB"
    others = [*(word for place in gone for word in ("--gone", str(place))), *map(str, checkouts)]
    command = shlex.join(["soundmill", "clean", "--yes", *others])
    terminal.say(f"removed: {amount}" if yes else f"not needed: {amount}; `{command}` removes them")


def _show_outputs(unused: Unused) -> None:
    for output, (count, size) in unused.outputs.items():
        terminal.say(f"{size / 1e6:>10,.1f} MB in {count:>7,}  {output}")


def _forget(root: Path, things: list[str], reason: str) -> None:
    from soundmill import forgetting

    with search_progress() as progress:
        outcome = forgetting.forget(root, things, reason, progress)
    for entry in outcome.listed_before:
        terminal.say(f"already forgotten: {entry} ({entry.reason})")
    for entry in outcome.added:
        terminal.say(f"forgotten: {entry}" + (f" ({entry.reason})" if entry.copy_of else ""))
    held = outcome.held
    clips = [f"{variant}/{row['clip_id']}" for variant, rows in held.clips.items() for row in rows]
    weights = [f"{weights.name}/{part}" if part else weights.name for weights, part, *_ in held.weights]
    lists = {"clips": clips, "mixes": list(held.mixes), "shards": list(held.shards), "trained on it": weights, "sounds": held.files}
    for what, names in (lists | {"reports": held.reports}).items():
        if names:
            terminal.say(f"{what} ({len(names)}): {first_of(names, FIRST)}")
    for model in outcome.marked:
        terminal.say(f"tagged in MLflow: {model}")
    for note in dict.fromkeys(outcome.notes):
        terminal.say(f"note: {note}", error=True)
    if outcome.added:
        terminal.say("next: `dvc repro`; then `soundmill forget --erase` removes what earlier runs kept, and checks the rest")


def _erase(root: Path, checkouts: Sequence[Path], yes: bool) -> None:
    from flows import checkout, dvc
    from soundmill import forgetting

    with search_progress() as progress:
        found = forgetting.find(root, dvc.cache_directory(root), progress)
    unused = checkout.holding(root, set(found.cached), checkout.unused(root, checkouts))
    sentences = found.sentences(root)
    if sentences or unused.objects:
        for sentence in sentences:
            terminal.say(sentence)
        if unused.objects:
            terminal.say(f"DVC's cache: {len(unused.objects)} objects, {unused.size / 1e6:,.1f} MB, which no checkout needs:")
            _show_outputs(unused)
        if not yes and not typer.confirm("Erase all of these?"):
            raise typer.Exit(1)
        checkout.remove(unused.objects)
        forgetting.erase(root, found)
        terminal.say(f"erased: {len(sentences) + len(unused.objects)}")
    for sentence in found.left:
        terminal.say(f"left: {sentence}", error=True)


def _check(root: Path, things: list[str]) -> None:
    from flows import dvc
    from soundmill import forgetting

    has_cache = (root / ".dvc/config").is_file()
    with search_progress() as progress:
        proof = forgetting.check(root, things, dvc.cache_directory(root) if has_cache else None, progress)
    for sentence in proof.found:
        terminal.say(sentence)
    for name, url in (dvc.remotes(root) if has_cache else {}).items():
        proof.notes.append(f"DVC's remote {name} ({url}) was not searched; remove what it holds there (docs/orchestration.md)")
    for note in proof.notes:
        terminal.say(f"note: {note}", error=True)
    what = ", ".join(things) or "forgotten sounds"
    if proof.found:
        remedy = "`dvc repro` rebuilds outputs; delete copies elsewhere yourself"
        places = f"{len(proof.found)} places hold" if len(proof.found) > 1 else "1 place holds"
        terminal.say(f"{places} {what}; {remedy}", error=True)
        raise typer.Exit(1)
    terminal.say(f"no searched place holds {what}")
