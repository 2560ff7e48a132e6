"""The command that traces a sound's origin and what was made from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soundmill import terminal
from soundmill.commands.project import TAKES_IDS, Project, project_root, use_recorded_store, writable_file

if TYPE_CHECKING:
    from rich.tree import Tree

    from soundmill.lineage import Node

app = typer.Typer()

FIRST = 5  # items of a list that are shown without --all
LONGEST = 80  # characters of one fact without --all


@app.command(context_settings=TAKES_IDS)
def lineage(
    thing: Annotated[
        str,
        typer.Argument(
            help="A generated WAV, a checkpoint's directory, the id of a clip or mix, or a recording's id or path. If a clip "
            "and a recording share an id: clip:ID, recording:ID."
        ),
    ],
    json: Annotated[Path | None, typer.Option(callback=writable_file, help="Also write all of it to this file.")] = None,
    all: Annotated[bool, typer.Option("--all", help=f"Show whole lists, not only the first {FIRST}.")] = False,
    project: Project = None,
) -> None:
    """Trace a sound's origin and everything made from it: recordings, clips, mixes, shards, trainings, checkpoints, sounds, scores.

    A checkpoint carries what it was trained on, so this also works for one that was copied or registered in MLflow.
    """
    from json import dumps

    from rich.tree import Tree

    from soundmill.lineage import trace

    root = project_root(project)
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
        json.write_text(dumps(found.plain(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _grow(tree: Tree, nodes: list[Node], all: bool) -> None:
    from rich.text import Text

    shown = nodes if all or len(nodes) <= FIRST + 1 else nodes[:FIRST]
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
