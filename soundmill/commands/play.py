"""The command that opens a page to play with models."""

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from soundmill import terminal
from soundmill.commands.project import Root
from soundmill.errors import UserError

app = typer.Typer()
LOCAL = "127.0.0.1"


@app.command()
def play(
    checkpoints: Annotated[
        list[Path] | None, typer.Argument(help="Directories of checkpoints to offer first, besides those of the project.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs a password.")] = LOCAL,
    password: Annotated[
        str | None, typer.Option(envvar="SOUNDMILL_PLAY_PASSWORD", help="Asked of every visitor, with any user name.")
    ] = None,
    models: Annotated[
        int, typer.Option(min=1, max=100, help="Checkpoints kept in memory; the least recently used one is dropped.")
    ] = 2,
    root: Root = None,
) -> None:
    """Open a page on which to make sounds with trained models, change recordings, compare, and keep; stop it with Ctrl-C.

    Kept sounds go to data/kept, each with its request, from which `soundmill generate --from` makes it again.
    """
    if host not in (LOCAL, "localhost") and not password:
        raise UserError(f"--host {host}: whoever reaches it could use the page; give --password too")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="soundmill-play-") as place:
        # Read by Gradio when it is imported.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(Path(place) / "uploads"), HF_HUB_OFFLINE="1")
        terminal.say("starting…")
        from soundmill.play.checkpoints import Models, find

        offered = find(root, [path.resolve() for path in checkpoints or []])
        from soundmill.play import page

        opened = page.Play(root, offered, Models(models), Path(place))
        served = page.serve(opened, host, port, password)
        opened.ready.start()
        terminal.say(f"open {served.local_url}")
        served.block_thread()
