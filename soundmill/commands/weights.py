"""Commands about the weights of embedders and classifiers: list, fetch, verify, path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from soundmill.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Weights of embedders and classifiers: in $SOUNDMILL_WEIGHTS, else the user's cache.")

WeightsNames = Annotated[list[str] | None, typer.Argument(help="Names from `soundmill weights list` (default: all).")]


@app.command("list")
def list_weights() -> None:
    """List the known weights: whether they are here, size, licence, file, source and digest."""
    from soundmill import pretrained

    for name, entry in pretrained.REGISTRY.items():
        path = pretrained.directory() / entry.file
        if not path.is_file():
            state, color = "--", "yellow"
        else:
            state, color = ("ok", "green") if path.stat().st_size == entry.num_bytes else ("!!", "red")
        typer.echo(
            f"{typer.style(state, fg=color)}  {name:<16} {entry.num_bytes / 1e6:>5.0f} MB  {entry.licence:<10}  {entry.file}"
        )
        typer.echo(f"{'':4}{entry.source}\n{'':4}sha256 {entry.sha256}")
    typer.echo(f"ok: in {pretrained.directory()}; !!: wrong size; `soundmill weights fetch` fixes it.", err=True)
    typer.echo("clap is downloaded from the Hugging Face hub on first use.", err=True)


@app.command("fetch")
def fetch_weights(
    names: WeightsNames = None,
    mirror: Annotated[Path | None, typer.Option("--from", help="Copy them from this directory instead of downloading.")] = None,
) -> None:
    """Download weights, or resume an interrupted download; only verified files are installed."""
    from soundmill import pretrained

    for name in names or pretrained.REGISTRY:
        typer.echo(pretrained.fetch(name, mirror, progress=sys.stderr.isatty()))


@app.command("verify")
def verify_weights(names: WeightsNames = None) -> None:
    """Check the digests of the files that are here; a wrong one is an error."""
    from soundmill import pretrained

    wrong = []
    for name in names or [name for name in pretrained.REGISTRY if not pretrained.unavailable(name)]:
        try:
            typer.echo(f"{typer.style('ok', fg='green')}  {pretrained.verify(name)}")
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))


@app.command("path")
def path_of_weights(name: str) -> None:
    """Verify a file and print its path."""
    from soundmill import pretrained

    typer.echo(pretrained.path(name))
