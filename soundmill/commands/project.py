"""Shared by the commands: the checkout that they work on, its tables, where files may be written, progress bars."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from soundmill import disk
from soundmill.errors import UserError

Project = Annotated[Path | None, typer.Option(help="The Soundmill checkout (default: the nearest one, from here upwards).")]
Clips = Annotated[str, typer.Option("--clips", help="Clip variant, a section of `clips` in params.yaml.")]
Split = Annotated[str | None, typer.Option(help="Only this split: train, valid or test.")]


def project_root(project: Path | None) -> Path:
    """The checkout that the command works on, with its params.yaml and dvc.yaml."""
    root = checkout(project)
    if project and root != nearest_checkout():  # the nearest one was checked before the command began
        warn_of_leftovers(root)
    return root


def checkout(project: Path | None) -> Path:
    """The checkout at `project`, else the nearest one upwards from here; UserError if there is none."""
    root = (project.resolve() if _is_checkout(project) else None) if project else nearest_checkout()
    if root is None:
        raise UserError(
            f"{project or Path.cwd()}: not inside a Soundmill checkout (no dvc.yaml and params.yaml); "
            "cd into one or give --project DIR"
        )
    return root


def nearest_checkout() -> Path | None:
    here = Path.cwd()
    return next((directory for directory in (here, *here.parents) if _is_checkout(directory)), None)


def _is_checkout(directory: Path) -> bool:
    return (directory / "dvc.yaml").is_file() and (directory / "params.yaml").is_file()


def warn_of_leftovers(root: Path) -> None:
    """Warn if a killed `dvc exp run` has set uncommitted changes aside: the command goes on without them."""
    from soundmill import dvc_recovery

    for leftover in dvc_recovery.leftovers(root):
        typer.secho(str(leftover), fg="yellow", err=True)


def tell_store(root: Path) -> None:
    """Use the store in which runs and models were recorded, and print it unless it is the project's own file."""
    from soundmill import tracking

    if line := tracking.look_where_recorded(root):
        typer.echo(line)


def tables(root: Path, variant: str):
    from soundmill import clips, params

    params.section(params.read_yaml(root / "params.yaml"), f"clips.{variant}", "params.yaml")
    return clips.Tables(root / "data" / "clips" / variant, root / "data" / "catalog" / f"{variant}.parquet")


def sample_rate_of(root: Path, variant: str) -> int:
    from soundmill import params

    return int(params.section(params.read_yaml(root / "params.yaml"), f"clips.{variant}.sample_rate", "params.yaml"))


def writable_file(path: Path | None) -> Path | None:
    """Check before the work starts that this file can be written when it ends."""
    if path is None:
        return None

    if disk.is_device(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}; name a file that can be written") from None
    if path.is_dir():
        raise typer.BadParameter(f"{path}: is a directory; name a file")
    return path


def check_apart(directory: Path, root: Path) -> None:
    """UserError if the pipeline would read an export as recordings, or remove it."""
    from soundmill import lineage

    for path in [*lineage.Project(root).corpora, root / "data"]:
        if directory.resolve().is_relative_to(path.resolve()):
            raise UserError(f"{directory}: is in {path}, which the pipeline reads or writes; name a directory elsewhere")


@contextmanager
def progress_bar(total: int | None, label: str, unit: str) -> Iterator[Callable[[int], object]]:
    """A progress bar on a terminal, unless the work is short; bytes (`B`) in thousands, millions, …"""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=unit, unit_scale=unit == "B", delay=0.5, disable=not sys.stderr.isatty()) as bar:
        yield bar.update
