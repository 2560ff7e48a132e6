"""Commands that run the whole pipeline: on recordings, for the same minutes of several families, as params.yaml has it."""

from __future__ import annotations

import math
import os
import re
import socket
import sys
import time
from contextlib import chdir, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from soundmill import params as parameters
from soundmill import pretrained, terminal
from soundmill.commands.project import Root
from soundmill.errors import UserError

if TYPE_CHECKING:
    from soundmill.corpora.buckets import Bucket
    from soundmill.corpora.survey import Survey

app = typer.Typer()

Corpus = Annotated[
    str | None,
    typer.Argument(
        help="Folder or bucket of recordings; captions, class folders and splits are detected (default: the embedded corpus)."
    ),
]
LOCK_SECONDS = 10.0  # to wait for another command; a pipeline takes longer, and the error names it


class Choice(parameters.StageParams):
    """conf/run.yaml: how to train by label; `caption` and `none` have overrides for recordings that are described otherwise."""

    minutes: float = Field(gt=0, description="from the start of `soundmill run` to its scores, if none are given")
    why: str
    overrides: list[str]
    short_below: float = Field(gt=0, description="median seconds of recordings that `short` is for")
    short: list[str]
    caption: list[str]
    none: list[str]


@app.command()
def run(
    corpus: Corpus = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Parameters to change: `audio_dit.train.steps=2000 scale=paper`; `experiment=NAME` changes many at once "
            "(`soundmill experiments` lists them)."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The family to train (`soundmill families` lists them).")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the workspace (default: the folder's and the experiment's, or the families').")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Minutes for the whole run; training gets what other stages leave (default: 30; a named model: its own steps)."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the contents and the estimated cost.")] = False,
    push: Annotated[bool, typer.Option("--push", help="Copy the results to DVC's default remote.")] = False,
    root: Root = None,
) -> None:
    """Run the whole pipeline on your own recordings, or for another model, in a workspace separate from the demo.

    The recordings and the minutes decide how it is trained, and for how many steps, unless you name a model, an experiment, a
    scale or a vocoder. Other parameters do not affect this.
    """
    from flows import checkout, locks
    from soundmill.corpora import survey
    from soundmill.evaluation import protocols
    from soundmill.models import cost, registry

    folder, changes = _folder_and_overrides(corpus, overrides)
    if folder is None and model is None and not changes:
        raise UserError("give a folder of recordings (`soundmill run DIR`), a model (`--model tango`), or parameters to change")
    if folder is None and dry_run:
        raise UserError("--dry-run shows the contents of a folder; name it: soundmill run DIR --dry-run")
    if folder and (path := next((change for change in changes if change.lstrip("+").startswith("corpus.path=")), None)):
        raise UserError(f"{path}: the folder is already given, as {folder}; leave one of them out")
    if isinstance(folder, Path):
        place, home = folder.resolve(), root.resolve()
        if home.is_relative_to(place) or place == home / "data" or place.is_relative_to(home / "workspaces"):
            raise UserError(f"{place}: holds sounds that this project made; give a folder of recordings outside of it")
    if name:
        checkout.place_of(root, name)
    _check_minutes(minutes)
    chosen = [*([f"model={model}"] if model else []), *changes]
    choice = parameters.parse(Choice, parameters.read_yaml(root / "conf/run.yaml"), "conf/run.yaml")
    document = _composed(root, folder, chosen)
    settled = {"model", "experiment", "scale", "vocoder", *document["families"]}
    chooses = bool(folder) and settled.isdisjoint(change.partition("=")[0].lstrip("+~") for change in chosen)
    if not folder and document["corpus"]["external"] and not (document["corpus"]["path"] or document["corpus"]["parts"]):
        raise UserError(
            f"give the folder of recordings (corpus={document['corpus']['format']}): soundmill run DIR {' '.join(chosen)}"
        )
    _check(root, document)  # a folder may take minutes to read
    protocols.check_weights(document["evaluate"]["protocols"])
    contents = _contents(folder, document) if folder else None
    if chooses:
        if minutes is None and not _own_steps(changes):
            asks = not dry_run and sys.stdin.isatty()
            minutes = typer.prompt("Minutes it may take", choice.minutes, type=float) if asks else choice.minutes
            _check_minutes(minutes)
        chosen = [*_chosen(choice, *document["families"], contents), *chosen]
        document = _composed(root, folder, chosen)
        _check(root, document)
    if note := registry.vocoder_note(document):
        terminal.say(note, error=True)
    if minutes is not None:
        family = _family_for(document, contents, changes)
        chosen = [*chosen, *_hardware(root, folder, family, chosen, contents)]
        document = _composed(root, folder, chosen)
        chosen = [*chosen, *_sounds_and_steps_in(minutes, root, family, document, contents, changes)]
        document = _composed(root, folder, chosen)
    if contents:
        _point_to(contents, document)
        sections = {name: document["clips"][family["clips"]] for name, family in document["families"].items()}
        clips = {name: contents.num_clips(section["clip_seconds"]) for name, section in sections.items()}
        for line in contents.cost(document, cost.training_seconds(root, document, clips, len(contents.labels))):
            terminal.say(line)
    if dry_run:
        raise typer.Exit(0)
    experiment = [document["experiment"]["name"]] if "experiment" in document else []
    name = name or "-".join([survey.slug(folder), *experiment] if folder else experiment or document["families"])
    # A second run would change the parameters of the first.
    with locks.exclusive_lock(checkout.place_of(root, name) / ".dvc/tmp/run.lock"):
        workspace = checkout.workspace(root, name, document)
        terminal.say(f"workspace   {workspace}")
        status = checkout.run_pipeline(workspace, push)
    raise typer.Exit(status)


@app.command()
def bakeoff(
    corpus: Corpus = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Parameters to change; a family's own section applies to it alone.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Training minutes per family.")] = 20.0,
    families: Annotated[str, typer.Option(help="Only these, comma-separated (`soundmill families` lists them).")] = "",
    seeds: Annotated[str, typer.Option(help="Comma-separated; each family runs with each seed.")] = "0",
    extra: Annotated[list[str] | None, typer.Option(metavar="NAME=DIR", help="Any folder of WAV files, as one more row.")] = None,
    plan: Annotated[str, typer.Option(metavar="NAME", help="A named bake-off: a file of conf/bakeoff, without .yaml.")] = "",
    root: Root = None,
) -> None:
    """Find out which method is best for your sounds: every family trains for the same time on the same recordings.

    All are scored by the same protocol on the same test clips. The result shows which differences are significant, the speed of
    each family, and whether more training would likely help. A family that cannot use these recordings is listed with the reason.
    Table, figure and page are in data/report/bakeoff/; a stopped bake-off resumes.
    """
    folder, changes = _folder_and_overrides(corpus, overrides)
    chosen, here = [], Path.cwd()
    with chdir(root):  # Prefect's settings and login are the project's
        from flows import pipeline  # first, as it keeps Prefect's log off the terminal

        # isort: split
        from flows import bakeoff, trials

    names, numbers, folders = trials.comma_separated(families), trials.numbers(seeds), bakeoff.named_folders(extra or [], here)
    file = bakeoff.read_plan(root, plan)
    models = len(bakeoff.rows_of(root, file, names))
    if folder:
        lengths = [change for change in [*file.overrides, *changes] if change.startswith(("clips.default.", "clip@clips.default="))]
        document = parameters.compose(root / "conf", ["corpus=auto", *lengths])
        contents = _contents(folder, document)
        for line in contents.cost(document, 60 * minutes * models * len(numbers)):
            terminal.say(line)
        quoted = document["corpus"]["path"].replace("\\", "\\\\").replace("'", "\\'")
        chosen = ["corpus=auto", f"corpus.format={document['corpus']['format']}", f"corpus.path='{quoted}'"]
    if not any(change.startswith("evaluate.embedders=") for change in changes):
        _fetch_judge()
    with chdir(root):
        options = minutes, [*chosen, *changes], names, numbers, folders, plan
        raise typer.Exit(pipeline.run_to_end("bakeoff", "families", lambda: bakeoff.bakeoff(*options, return_state=True)))


@app.command()
def sweep(
    name: Annotated[str | None, typer.Argument(help="A file of conf/sweep, without .yaml (default: list them).")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Parameters to change at all points.")] = None,
    points: Annotated[str, typer.Option(help="Only these, comma-separated: `soundmill sweep steps --points 10,50`.")] = "",
    seeds: Annotated[str, typer.Option(help="Comma-separated; each point runs with each of them (default: the file's).")] = "",
    root: Root = None,
) -> None:
    """Run the pipeline at every point of conf/sweep/NAME.yaml, and collect the scores in one table and one figure.

    Points run in workspaces/sweep-NAME and share DVC's cache, so common stages run once and a stopped sweep resumes. The results
    are in sweeps/NAME, in MLflow and in Prefect.
    """
    with chdir(root):  # Prefect's settings and login are the project's
        from flows import pipeline  # first, as it keeps Prefect's log off the terminal

        # isort: split
        from flows import sweep as sweeps
        from flows import trials

    if name is None:
        for stem in trials.files(root / sweeps.FILES):
            definition = sweeps.read(root, stem)
            terminal.say(f"{stem:<12} {definition.title}{f' ({definition.paper.source})' if definition.paper else ''}")
        return
    chosen = parameters.once_each(overrides), trials.comma_separated(points), trials.numbers(seeds) if seeds else []
    sweeps.plan(root, sweeps.read(root, name), *chosen)  # a mistake is told before Prefect starts
    with chdir(root):
        raise typer.Exit(pipeline.run_to_end("sweep", "points", lambda: sweeps.sweep(name, *chosen, return_state=True)))


def _fetch_judge() -> None:
    """Fetch YAMNet, unless it is here: without it the rows are compared by texture statistics, which know no classes."""
    from soundmill.evaluation import embedders

    weights = embedders.find("yamnet").weights
    if not pretrained.unavailable(weights):
        return
    try:
        terminal.say(f"judge       YAMNet, fetched to {pretrained.fetch(weights)}")
    except UserError as error:
        terminal.say(f"judge       texture statistics, which know no classes: YAMNet could not be fetched ({error})")


def _folder_and_overrides(corpus: str | None, overrides: list[str] | None) -> tuple[Path | Bucket | None, list[str]]:
    """The folder or bucket, if given, and the parameters to change, the first of which may take the folder's place."""
    from soundmill.corpora import buckets

    if corpus and buckets.is_url(corpus):
        return buckets.root_of(corpus, Path()), parameters.once_each(overrides)
    if corpus and "=" in corpus and not Path(corpus).is_dir():
        return None, parameters.once_each([corpus, *(overrides or [])])
    return Path(corpus) if corpus else None, parameters.once_each(overrides)


def _check_minutes(minutes: float | None) -> None:
    if minutes is not None and not 0 < minutes < 1e6:  # nan neither
        raise UserError(f"--minutes {minutes:g}: give a number above 0 and below a million")


def _composed(root: Path, folder: Path | Bucket | None, chosen: list[str]) -> dict[str, Any]:
    from soundmill.models import registry

    document = registry.compose(root / "conf", chosen)
    if folder and not document["corpus"]["external"]:  # otherwise the experiment or the override sets the format
        document = registry.compose(root / "conf", ["corpus=auto", *chosen])
    return document


def _check(root: Path, document: dict[str, Any]) -> None:
    from flows import dvc
    from soundmill.models import registry

    dvc.check_sections(root, document)
    registry.check(document, root)


def _contents(corpus: Path | Bucket, document: dict[str, Any]) -> Survey:
    """Print the contents of a folder of recordings; their format and path are written into `document`."""
    from soundmill.corpora import survey

    contents = survey.survey(corpus, document["corpus"].get("follow_links", False), document["corpus"]["format"])
    contents.check_sound(document["clips"]["default"])
    for line in contents.describe(document["splits"]):
        terminal.say(line)
    _point_to(contents, document)
    return contents


def _point_to(contents: Survey, document: dict[str, Any]) -> None:
    if document["corpus"]["format"] == "auto":
        document["corpus"]["format"] = contents.report.tables.format
    document["corpus"]["path"] = str(contents.report.path)


def _own_steps(changes: list[str]) -> list[str]:
    return [change for change in changes if re.match(r"\+*\w+\.train\.(steps|epochs)=", change)]


def _chosen(choice: Choice, family: str, contents: Survey) -> list[str]:
    """The overrides that fit the recordings; says what is trained, and why."""
    condition = "label" if contents.labels else "caption" if contents.report.tables.captions else "none"
    by = "" if condition == "none" else f" by {condition}"
    short = choice.short if contents.median_seconds < choice.short_below else []
    terminal.say(f"choice      {family}{by}, for sounds of {contents.median_seconds:.3g} s: {choice.why} (docs/results.md)")
    terminal.say("            another: --model NAME, experiment=NAME; or compare all on them: soundmill bakeoff DIR")
    return [*choice.overrides, *short, *getattr(choice, condition, [])]


def _family_for(document: dict[str, Any], contents: Survey | None, changes: list[str]) -> str:
    """The one family that `--minutes` is for; UserError if there are more, or something else sets its steps."""
    if len(document["families"]) > 1:
        raise UserError(
            f"--minutes is for one family, not {', '.join(document['families'])}; compare several by `soundmill bakeoff`"
        )
    if contents is None:
        raise UserError("--minutes needs a folder of recordings (`soundmill run DIR --minutes 30`)")
    (family,) = document["families"]
    if own := _own_steps(changes):
        raise UserError(f"--minutes sets the steps, and so does {own[0]}; leave one of them out")
    parts = {f"{family}.autoencoder.weights": document[family].get("autoencoder"), "vocoder.weights": document["vocoder"]}
    for name, part in parts.items():
        if ((part or {}).get("weights", {}).get("steps") or 0) > 1:
            raise UserError(
                f"--minutes counts the steps of {family}.train alone, but {name} has {part['weights']['steps']:,} of its own; set "
                f"{family}.train.steps, or let `soundmill bakeoff --families {family}` divide the minutes"
            )
    return family


def _hardware(root: Path, folder: Path | Bucket | None, family: str, chosen: list[str], contents: Survey) -> list[str]:
    """The overrides of threads and precision that are fastest here, unless `chosen` has its own; says which."""
    from soundmill.models import cost

    if any(re.match(rf"experiment=|\+*(hardware@)?{family}\.train\.hardware\b", change) for change in chosen):
        return []
    fastest = cost.fastest_hardware(root, family, lambda more: _composed(root, folder, [*chosen, *more]), len(contents.labels))
    if fastest:
        said = " ".join(override.removeprefix(f"{family}.train.hardware.") for override in fastest)
        terminal.say(f"hardware    {said}, with which a training step is fastest on this machine now")
    return fastest


def _sounds_and_steps_in(
    minutes: float, root: Path, family: str, document: dict[str, Any], contents: Survey, changes: list[str]
) -> list[str]:
    """The overrides with which all is done after `minutes`; UserError if the steps would be too few.

    Where sounds would take longer than the training, half or a quarter as many are made, unless `changes` has their number.
    """
    from soundmill.models import cost

    clip_seconds = document["clips"][document["families"][family]["clips"]]["clip_seconds"]
    clips, others = contents.num_clips(clip_seconds), contents.preparation_seconds(clip_seconds)
    key, generate, left = f"{family}.generate.count", document[family]["generate"], 60 * minutes - others
    given = min(generate["count"] or clips, clips)
    parts = (1,) if any(change.startswith(f"{key}=") for change in changes) else (1, 2, 4)
    for count in (math.ceil(given / part) for part in parts):
        sized = {**document, family: {**document[family], "generate": {**generate, "count": count}}}
        steps, least = cost.steps_in(left, root, family, sized, clips, len(contents.labels))
        if least <= left / 2:
            break
    if steps < cost.FEWEST_STEPS:
        raise UserError(
            f"--minutes {minutes:g}: everything but training takes about {(others + least) / 60:.1f} minutes on this machine; give "
            f"at least {math.ceil((others + least) / 30)}"
        )
    fewer = [] if count == given else [f"{key}={count}"]
    if fewer:
        terminal.say(f"sounds      {count} instead of {given}, to leave more time for training; {key}=N changes it")
    terminal.say(f"steps       {steps:,}: what {minutes:g} minutes leave for training; --minutes changes it")
    return [*fewer, f"{family}.train.steps={steps}", f"{family}.train.epochs=null"]


@app.command()
def params(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides: `scale=paper corpus=esc corpus.path=DIR`, `experiment=NAME`.")
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Print instead of writing params.yaml.")] = False,
    root: Root = None,
) -> None:
    """Compose params.yaml from conf/, for `dvc repro` to run; nothing else is changed."""
    from soundmill.evaluation import protocols
    from soundmill.models import registry

    document = registry.compose(root / "conf", parameters.once_each(overrides))
    _check(root, document)
    if note := registry.vocoder_note(document):
        terminal.say(note, error=True)
    try:
        protocols.check_weights(document["evaluate"]["protocols"])
    except UserError as error:  # `dvc repro` would only miss them after its trainings
        terminal.say(str(error), error=True)
    if show:
        parameters.write_yaml(document, Path("/dev/stdout"))
    else:
        from flows import locks

        with locks.only_one(root, LOCK_SECONDS, terminal.say):  # DVC would record a running stage with the new parameters
            parameters.write_yaml(document, root / "params.yaml")
        terminal.say(f"{root / 'params.yaml'}: `dvc repro` runs it")


@app.command()
def join(
    head: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The machine that runs the pipeline, and its `hardware.port`.")],
    root: Root = None,
) -> None:
    """Take part in the trainings of another machine, one after the other, until Ctrl-C (docs/orchestration.md).

    That machine runs `dvc repro` with `hardware.nodes` above 1. Both need this checkout on a shared disk, under the same path.
    """
    host, _, port = head.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{head!r} is not HOST:PORT; for example `soundmill join node1:29400`")
    with suppress(KeyboardInterrupt):
        _wait_for(host, int(port))
        from soundmill.training import launcher  # after the wait: the code of today

        launcher.take_part(host, int(port), root)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # waits for the next


def _wait_for(host: str, port: int) -> None:
    """Return when a training listens there; UserError if nobody knows the machine."""
    waiting = False
    while True:
        try:
            socket.create_connection((host, port), 10).close()
            return
        except socket.gaierror as error:
            raise UserError(f"{host}: {error.strerror}; give an address of the machine that runs `dvc repro`") from None
        except OSError as error:
            reason = "" if isinstance(error, ConnectionRefusedError) else f" ({error.strerror or error}: is it behind a firewall?)"
        if not waiting:
            terminal.say(f"waits for a training at {host}:{port}{reason}; Ctrl-C ends it")
        waiting = True
        time.sleep(1.0)
