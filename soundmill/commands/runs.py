"""Commands about recorded runs: browse them, upload those that MLflow missed, reproduce one, list named experiments with scores."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from soundmill import params as parameters
from soundmill import terminal
from soundmill.commands.project import Root, use_recorded_store
from soundmill.errors import UserError, first_of

app = typer.Typer()

IGNORED = ("experiment.", "execution.", "corpus.path")  # parameters that may differ between runs of one experiment
SYNC_SECONDS = 20.0  # at most, to upload the last runs first


class Experiment(parameters.StageParams):
    """The section `experiment` of a file of conf/experiment, and of the params.yaml that it composes."""

    name: str = Field(description="name of the file, without .yaml")
    title: str
    corpus: str = Field(description="name of the recordings, for display")
    minutes: float | None = Field(gt=0, description="minutes of one CPU core unless the file says otherwise; null: for a GPU")


@app.command()
def browse(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000, root: Root = None) -> None:
    """Show all runs in the MLflow UI, reachable from this machine only; stop it with Ctrl-C."""
    import signal
    import webbrowser

    from soundmill import tracking

    works, where = tracking.status(root)
    if not works:
        raise UserError(f"tracking: {where}")
    tracking.sync(root, SYNC_SECONDS)
    page = tracking.scores_page(root, port)
    address = page.partition("/#")[0]
    server = None
    if not tracking.store(root).is_server:
        if not tracking.unreachable(address):
            raise UserError(f"{address} is in use, perhaps by another `soundmill browse`; choose another --port")
        # Otherwise MLflow starts a job runner and five consumers that nothing here uses.
        variables = {
            "PYTHONWARNINGS": "ignore",
            **os.environ,
            **tracking.QUIET,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_BACKEND_STORE_URI": tracking.store(root).uri,  # not in the command, where all can read its password
        }
        command = tracking.browser_command(port)
        server = subprocess.Popen(command, env=variables, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with suppress(KeyboardInterrupt):  # the usual way to stop it
        try:
            while server and server.poll() is None and tracking.unreachable(address):
                time.sleep(0.2)
            if server and server.poll() is not None:
                raise UserError("MLflow's server did not start; its output is above")
            terminal.say(f"{where}\nopen {page}")
            if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
                webbrowser.open(page)
            if server:
                raise typer.Exit(server.wait())
        finally:
            if server:
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGTERM)  # and its child, which listens


@app.command()
def sync(root: Root = None) -> None:
    """Upload runs that were recorded while MLflow did not answer."""
    from soundmill import tracking

    works, where = tracking.status(root)
    if not works:
        raise UserError(f"tracking: {where}; {tracking.waiting(root)[0]} runs wait on disk: nothing is lost")
    count, why = tracking.sync(root)
    if count:
        raise UserError(f"{count} runs are not in {tracking.store(root).shown} yet: {why or 'still uploading'}; nothing is lost")
    terminal.say(f"all runs are in {tracking.store(root).shown}")


@app.command()
def reproduce(
    run_id: Annotated[str, typer.Argument(help="MLflow run id of a pipeline run (`make browse` shows them).")],
    into: Annotated[Path | None, typer.Option(help="Directory for the checkout (default: workspaces/reproduce-RUN).")] = None,
    root: Root = None,
) -> None:
    """Restore the state that a recorded run started from in a separate checkout, and list what is missing."""
    from flows import checkout
    from soundmill import tracking

    destination = into or tracking.project_of(root) / tracking.WORKSPACES / f"reproduce-{run_id[:8]}"
    missing = checkout.reproduce(root, run_id, destination)
    terminal.say(f"{destination}: the code, params.yaml, dvc.lock and cached outputs of run {run_id}")
    for line in missing:
        terminal.say(f"missing: {line}", color="yellow")


@app.command("experiments")
def list_experiments(root: Root = None) -> None:
    """List the named experiments (conf/experiment): title, recordings, minutes of training, last scores.

    The minutes are of one CPU core, unless the experiment's file says otherwise.
    `soundmill run experiment=NAME` repeats one on the embedded recordings, `soundmill run DIR experiment=NAME` on those in a
    folder. Later parameters override those of the experiment: `soundmill run DIR experiment=esc10_tango tango.train.steps=1000`.
    `soundmill params experiment=NAME` writes its params.yaml for `dvc repro`; `dvc exp run -S experiment=NAME` works too.
    """
    named = read_experiments(root / "conf")
    use_recorded_store(root)
    scores, why = last_scores(root, named)
    from rich.markup import escape

    console = terminal.console(highlight=False)
    for name, experiment in named.items():
        console.print(f"[bold]{name}[/bold]: {escape(experiment.title)}", soft_wrap=True)
        time = f"{experiment.minutes:g} minutes of training" if experiment.minutes else "for a GPU"
        console.print(f"  {experiment.corpus}, {time}", style="dim", markup=False)
        if name in scores:
            console.print(f"  {scores[name]}", soft_wrap=True, markup=False)
    if why:
        console.print(f"No scores: {why}", style="dim", soft_wrap=True, markup=False)
    console.print("`soundmill run [DIR] experiment=NAME` repeats one; see `soundmill experiments --help`.", soft_wrap=True)


def read_experiments(conf: Path) -> dict[str, Experiment]:
    """The experiments in `conf` by name; UserError names the file and key of a mistake."""
    found = {}
    for path in sorted((conf / "experiment").glob("*.yaml")):
        values = {"name": path.stem, **parameters.section(parameters.read_yaml(path), "experiment", str(path))}
        found[path.stem] = parameters.parse(Experiment, values, f"{path}: experiment")
    return found


def last_scores(root: Path, named: Mapping[str, Experiment]) -> tuple[dict[str, str], str]:
    """The last scores of these experiments as text, by name; and the reason if none could be read."""
    from soundmill import tracking

    works, where = tracking.status(root)
    if not works:
        return {}, where
    try:
        scored, texts = tracking.last_scores(root), {}
    except UserError as error:  # as where nothing is recorded yet
        return {}, str(error)
    for name, run in {name: scored[one.title] for name, one in named.items() if one.title in scored}.items():
        values = ", ".join(f"{score} {value:.3g}" for score, value in sorted(run.scores.items()))
        document, recorded = parameters.compose(root / "conf", [f"experiment={name}"]), run.params
        now = {key: str(value) for key, value in tracking.flatten(document).items()}
        keys = [key for key in now | recorded if now.get(key) != recorded.get(key) and not key.startswith(IGNORED)]
        texts[name] = f"{values} ({run.name}{'; with other ' + first_of(keys, 5) if keys else ''})"
    return texts, ""
