"""Commands about the weights of embedders and classifiers: list, fetch, verify, path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from soundmill.errors import UserError

app = typer.Typer(
    no_args_is_help=True, help="The weights of the nets that judge sounds: in $SOUNDMILL_WEIGHTS, else the user's cache."
)

WeightsNames = Annotated[list[str] | None, typer.Argument(help="As `soundmill weights list` has them; without: all.")]


@app.command("list")
def list_weights() -> None:
    """List the files that are known: whether they are here, how large they are, who made them and under which licence."""
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
    typer.echo(f"ok: in {pretrained.directory()}; !!: there, but of another size; `soundmill weights fetch` mends it.", err=True)
    typer.echo("clap comes from the Hugging Face hub when it is first used.", err=True)


@app.command("fetch")
def fetch_weights(
    names: WeightsNames = None,
    mirror: Annotated[Path | None, typer.Option("--from", help="Copy them from this directory instead of downloading.")] = None,
) -> None:
    """Download weights, or go on with a download that broke off; a file appears verified or not at all."""
    from soundmill import pretrained

    for name in names or pretrained.REGISTRY:
        typer.echo(pretrained.fetch(name, mirror, progress=sys.stderr.isatty()))


@app.command("verify")
def verify_weights(names: WeightsNames = None) -> None:
    """Compute the digests of the files that are here; one that is not what it should be is an error."""
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
    """Print where a file lies, after verifying it."""
    from soundmill import pretrained

    typer.echo(pretrained.path(name))
