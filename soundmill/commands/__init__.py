"""The `soundmill` command, one file per group of commands."""

import errno
import shutil
from pathlib import Path

import typer

from soundmill import terminal
from soundmill.commands import corpus, doctor, lineage, listening, models, pipeline, recordings, runs, scores
from soundmill.errors import UserError, fault_of_disk, show_what_the_terminal_can
from soundmill.params import check_urls

FAULTS_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EINTR)  # without a name


class Group(typer.core.TyperGroup):
    """Shows a UserError, and errors of a file or the disk, as one message, never a traceback."""

    def main(self, *args: object, **more: object) -> object:
        show_what_the_terminal_can()  # the help too
        try:
            Path.cwd()
        except FileNotFoundError:
            terminal.say("this directory was deleted; cd into another one", error=True, color="red")
            raise SystemExit(1) from None
        try:
            return super().main(*args, **more)
        except UserError as error:
            terminal.say(error, error=True, color="red")
            raise SystemExit(1) from None

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        check_urls(args, "arguments")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise typer.Exit(0) from None
        except OSError as error:
            if error.errno not in FAULTS_OF_THE_DISK and not error.filename and not isinstance(error, shutil.Error):
                raise
            terminal.say(fault_of_disk(error, Path.cwd()), error=True, color="red")
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="From folders of recordings and captions to trained, measured audio-generation models. "
    "`make demo`, `dvc repro` or `make run CORPUS=DIR` run the pipeline, as does `soundmill run DIR`; the other commands are for "
    "everything around it.",
)
for group in (doctor, pipeline, runs, models, recordings, scores, lineage, listening):
    app.add_typer(group.app)
app.add_typer(corpus.clips_app, name="clips")
app.add_typer(corpus.app, name="corpus")
app.add_typer(scores.spectrogram, name="spectrogram")
app.add_typer(doctor.weights, name="weights")
