"""Shared by the commands: the checkout, its tables and store, output files, progress bars."""

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from soundmill import disk, params, terminal
from soundmill.errors import UserError

CHECKOUT = "The Soundmill checkout (default: this directory, or the nearest one above it)."
Project = Annotated[Path | None, typer.Option(help=CHECKOUT)]
Clips = Annotated[str, typer.Option("--clips", help="Clip variant, a section of `clips` in params.yaml.")]
TAKES_IDS = {"ignore_unknown_options": True}  # settings of a command whose words may be ids, some of which begin with `-`
Split = Annotated[str | None, typer.Option(help="Only this split: train, valid or test.")]


def project_root(project: Path | None) -> Path:
    """The checkout at `project`, by default this directory or the nearest one above it; UserError if there is none."""
    here = Path.cwd()
    candidates = [project.resolve()] if project else [here, *here.parents]
    root = next((path for path in candidates if (path / "dvc.yaml").is_file() and (path / "params.yaml").is_file()), None)
    if root is None:
        raise UserError(
            f"{project or here}: not inside a Soundmill checkout (no dvc.yaml and params.yaml); cd into one or give --project DIR"
        )
    return root


Root = Annotated[Path, typer.Option("--project", callback=project_root, help=CHECKOUT)]


def project_if_any(project: Path | None) -> Path | None:
    """As `project_root`; None if none is named and there is none here."""
    try:
        return project_root(project)
    except UserError:
        if project:
            raise
        return None


def use_recorded_store(root: Path) -> None:
    """Use the store that runs were last recorded in; print which, unless it is the project's own mlflow.db."""
    from soundmill import tracking

    if line := tracking.use_last_store(root):
        terminal.say(line)


def given(context: typer.Context, without: Sequence[str]) -> list[Any]:
    """The parameters of a command that stand on its command line, `without` some."""
    words = [one for one in context.command.params if one.name not in without]
    return [one for one in words if (source := context.get_parameter_source(one.name)) and source.name == "COMMANDLINE"]


def tables(root: Path, variant: str):
    from soundmill import clips

    params.section(params.read_yaml(root / "params.yaml"), f"clips.{variant}", "params.yaml")
    return clips.Tables.of(root / "data", variant)


def sample_rate_of(root: Path, variant: str) -> int:
    return int(params.section(params.read_yaml(root / "params.yaml"), f"clips.{variant}.sample_rate", "params.yaml"))


def writable_file(path: Path | None) -> Path | None:
    """Check before the work starts that this file can be written at the end."""
    if path is None or disk.is_device(path):
        return path
    from soundmill.corpora.inventory import MEDIA

    if path.exists() and path.suffix.lower() in MEDIA and path.suffix != ".ts":  # an exported net's
        raise typer.BadParameter(f"{path}: is a recording, which is not overwritten; choose another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"):  # as disk names it
            pass
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}; choose a file that can be written") from None
    if path.is_dir():
        raise typer.BadParameter(f"{path}: is a directory; choose a file")
    return path


def check_apart(directory: Path, root: Path) -> None:
    """UserError if an export would lie where the pipeline reads recordings or writes outputs."""
    from soundmill.holdings import Project

    for path in [*Project(root).corpora, root / "data"]:
        if directory.resolve().is_relative_to(path.resolve()):
            raise UserError(f"{directory}: is in {path}, which the pipeline reads or writes; choose a directory elsewhere")


def say_paths(paths: Iterable[Path]) -> None:
    for path in paths:
        terminal.say(path)


@contextmanager
def progress_bar(total: int | None, label: str, unit: str) -> Iterator[Callable[[int], object]]:
    """A progress bar on a terminal, unless the work is short; bytes (`B`) as kB, MB, …"""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=unit, unit_scale=unit == "B", delay=0.5, disable=not sys.stderr.isatty()) as bar:
        yield bar.update
