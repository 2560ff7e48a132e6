"""Commands about the weights of embedders and classifiers: list, fetch, verify, path."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soundmill import terminal
from soundmill.commands.project import project_root
from soundmill.errors import UserError
from soundmill.params import did_you_mean

if TYPE_CHECKING:
    from soundmill.pretrained import Weights

app = typer.Typer(no_args_is_help=True, help="Weights of embedders and classifiers: in $SOUNDMILL_WEIGHTS, else the user's cache.")

WeightsNames = Annotated[list[str] | None, typer.Argument(help="Names from `soundmill weights list` (default: all).")]
Wanted = Annotated[
    list[str] | None,
    typer.Argument(help="Names from `soundmill weights list` (default: those that params.yaml of this checkout names)."),
]


@app.command("list")
def list_weights() -> None:
    """List the known weights: whether they are here, size, licence, file, source and digest."""
    from soundmill import pretrained
    from soundmill.evaluation import embedders

    for name, entry in embedders.published().items():
        path = pretrained.directory() / entry.file
        if not path.is_file():
            state, color = "--", "yellow"
        else:
            state, color = ("ok", "green") if entry.num_bytes in (None, path.stat().st_size) else ("!!", "red")
        terminal.say(f"{state}  {name:<21} {_size(entry):>8}  {entry.licence:<10}  {entry.file}", color=color)
        terminal.say(f"{'':4}{entry.source}\n{'':4}{' '.join(entry.pin)}")
    terminal.say(f"ok: in {pretrained.directory()}; !!: wrong size; `soundmill weights fetch NAME` fixes it.", error=True)
    for name in embedders.NAMES:
        if name not in embedders.published():
            terminal.say(f"{name}: {embedders.find(name).origin}", error=True)


@app.command("fetch")
def fetch_weights(
    names: Wanted = None,
    mirror: Annotated[Path | None, typer.Option("--from", help="Copy them from this directory instead of downloading.")] = None,
    sha256: Annotated[str, typer.Option(help="Of a file whose publisher states only an MD5; from a source you trust.")] = "",
) -> None:
    """Download weights, or resume an interrupted download; only verified files are installed."""
    from soundmill import pretrained

    if sha256 and not (re.fullmatch("[0-9a-f]{64}", sha256) and names and len(names) == 1):
        raise UserError("--sha256: give the 64 hex digits of one file, and its name")
    for weights in _published(names or _named_in_params()):
        terminal.say(pretrained.fetch(weights, mirror, sys.stderr.isatty(), sha256))


@app.command("verify")
def verify_weights(names: WeightsNames = None) -> None:
    """Check the digests of the files that are here; a wrong one is an error."""
    from soundmill import pretrained

    wrong = []
    for weights in _published(names):
        if not names and pretrained.unavailable(weights):
            continue
        try:
            terminal.say(f"ok  {pretrained.verify(weights)}", color="green")
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))


@app.command("path")
def path_of_weights(name: str) -> None:
    """Verify a file and print its path."""
    from soundmill import pretrained

    (weights,) = _published([name])
    terminal.say(pretrained.path(weights))


def _named_in_params() -> list[str]:
    """The weights that params.yaml of this checkout names; UserError if it names none, or if there is no checkout."""
    from soundmill.evaluation import embedders
    from soundmill.params import read_yaml

    sizes = ", ".join(f"{name} ({_size(entry)})" for name, entry in embedders.published().items())
    ask = f"name the weights to fetch: {sizes}"
    try:
        root = project_root(None)
    except UserError:
        raise UserError(f"{Path.cwd()}: not inside a checkout whose params.yaml names weights; {ask}") from None
    names = embedders.named_in(read_yaml(root / "params.yaml"))
    if not names:
        raise UserError(f"{root / 'params.yaml'}: names no published weights; {ask}")
    return names


def _size(entry: Weights) -> str:
    return f"{entry.num_bytes / 1e6:.0f} MB" if entry.num_bytes else "? MB"


def _published(names: list[str] | None) -> list[Weights]:
    """The weights of these names, else all; an unknown name raises UserError."""
    from soundmill.evaluation import embedders

    published = embedders.published()
    for name in names or ():
        if name not in published:
            raise UserError(f"unknown weights {name!r}{did_you_mean(name, list(published))}; there are {', '.join(published)}")
    return [published[name] for name in names or published]
