"""The `soundmill` command: what a person asks of the project beside `dvc repro`."""

from __future__ import annotations

import errno
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from soundmill.errors import UserError, reason, told

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From folders of recordings and captions to trained, measured audio-generation models. "
    "The pipeline itself runs by `make demo`, `dvc repro` or `make run CORPUS=DIR`; these commands are for everything around it.",
)
clips_app = typer.Typer(no_args_is_help=True, help="Find a clip, hear it, trace it back to its recording and offset.")
app.add_typer(clips_app, name="clips")
corpus_app = typer.Typer(no_args_is_help=True, help="Look at a corpus before it is used: nothing is written but what is asked for.")
app.add_typer(corpus_app, name="corpus")
weights_app = typer.Typer(
    no_args_is_help=True, help="The weights of the nets that judge sounds: in $SOUNDMILL_WEIGHTS, else the user's cache."
)
app.add_typer(weights_app, name="weights")

Project = Annotated[Path | None, typer.Option(help="The Soundmill checkout (default: the nearest one upwards from here).")]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Read what links lead to that lead out of the folder (corpus.follow_links).")
]


def _writable(path: Path | None) -> Path | None:
    """A file that is to be written when all work is done: refused before it, where it cannot be."""
    if path is None:
        return None
    from soundmill import shards

    if shards.is_device(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}; name a file that can be written") from None
    if path.is_dir():
        raise typer.BadParameter(f"{path}: a directory; name a file")
    return path


class Command(typer.core.TyperCommand):
    """Shows a UserError, and a disk that is full or may not be written to, as one message, never a traceback."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.secho(str(error), fg="red", err=True)
            raise typer.Exit(1) from None
        except BrokenPipeError:
            raise typer.Exit(0) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            typer.secho(str(error), fg="red", err=True)  # of the disk, and no fault of ours
            raise typer.Exit(1) from None


def project_root(project: Path | None) -> Path:
    """The checkout that the command is about: its params.yaml and dvc.yaml lie there.

    Where a `dvc exp run` has set uncommitted changes aside, that is said: the command goes without them.
    """
    from soundmill import experiments

    directory = _checkout(project)
    for leftover in experiments.leftovers(directory):
        typer.secho(str(leftover), fg="yellow", err=True)
    return directory


def _checkout(project: Path | None) -> Path:
    for directory in [project.resolve()] if project else [Path.cwd(), *Path.cwd().parents]:
        if (directory / "dvc.yaml").is_file() and (directory / "params.yaml").is_file():
            return directory
    here = project or Path.cwd()
    raise UserError(f"{here}: not inside a Soundmill checkout (no dvc.yaml and params.yaml); cd into one or give --project DIR")


@app.command(cls=Command)
def doctor(project: Project = None) -> None:
    """Tell what this machine has (ffmpeg, GPU, weights, disk, tracking server) and what to do about what it lacks."""
    from soundmill.doctor import examine

    lacking = False
    for finding in examine(_checkout(project)):
        mark, color = {"ok": ("ok", "green"), "optional": ("--", "yellow"), "lacking": ("!!", "red")}[finding.state]
        typer.echo(f"{typer.style(mark, fg=color)}  {finding.name:<9} {finding.found}")
        if finding.remedy:
            typer.echo(f"{'':14}→ {finding.remedy}")
        lacking = lacking or finding.state == "lacking"
    raise typer.Exit(1 if lacking else 0)


@app.command(cls=Command)
def browse(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    project: Project = None,
) -> None:
    """Show every run in the experiment browser (MLflow), on this machine only; stop it with Ctrl-C."""
    import os

    from soundmill import tracking

    home = project_root(project)
    works, where = tracking.status(home)
    if not works:
        raise UserError(f"tracking: {where}")
    typer.echo(f"{where}\nopen http://127.0.0.1:{port}")
    command = tracking.browser_command(home, port)
    os.execve(command[0], command, {**os.environ, **tracking.QUIET})


@app.command(cls=Command)
def families(
    json: Annotated[
        Path | None,
        typer.Option(callback=_writable, help="Write them to this file, too: {FAMILY: {SCALE: {PART: parameters}}}."),
    ] = None,
    project: Project = None,
) -> None:
    """List the model families: what each is, its paper, and how many parameters its parts have at each scale.

    Sizes follow from conf/ (`model=FAMILY scale=SCALE`); they are counted without allocating the weights. Conditioning by label
    adds an embedding for each label of the corpus.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from soundmill.models import registry

    described = registry.describe(project_root(project) / "conf")
    console = Console(highlight=False)
    for name, facts in described.items():
        console.print(f"[bold]{name}[/bold]: {facts['what']}")
        console.print(facts["source"], style="dim")
        table = Table("part", box=box.SIMPLE, pad_edge=False)
        scales = {scale: counts for scale, counts in facts.items() if isinstance(counts, dict)}
        for scale in scales:
            table.add_column(f"scale={scale}", justify="right")
        for part in dict.fromkeys(part for counts in scales.values() for part in counts):
            table.add_row(part, *(f"{counts[part]:,}" if part in counts else "–" for counts in scales.values()))
        console.print(table)
    console.print("Numbers of parameters. `soundmill params scale=paper` chooses a scale, `dvc repro train@FAMILY` trains.")
    if json:
        registry.write_json(described, json)


FamilyName = Annotated[
    str | None,
    typer.Option(help="Model family, as `soundmill families` lists them (default: that of the newest checkpoint)."),
]
Checkpoint = Annotated[Path | None, typer.Option(help="Checkpoint directory (default: data/models/FAMILY).")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A sampling parameter of the family in place of the checkpoint's, such as num_steps=50 or guidance_scale=3; may be "
        "given several times. A wrong name lists those there are.",
    ),
]


@app.command(cls=Command)
def generate(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="What to make. A family that reads text makes sounds of each; one that knows labels mixes them."),
    ] = None,
    family: FamilyName = None,
    label: Annotated[list[str] | None, typer.Option(help="The same as a prompt. Without any: any sound.")] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=10_000, help="How many sounds.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same sounds.")] = 0,
    settings: Settings = None,
    best_of: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Candidates for each sound, of which the one is kept that CLAP finds most like its text."
        ),
    ] = 1,
    checkpoint: Checkpoint = None,
    output: Annotated[Path, typer.Option(help="Directory for the WAV files and the picture.")] = Path("sounds"),
    project: Project = None,
) -> None:
    """Make sounds from a trained checkpoint, with a picture of their spectrograms."""
    directory, home = _checkpoint(checkpoint, family, project)
    from soundmill.models import generation

    prompts = [*(prompt or []), *(label or [])]
    choose = generation.keep_all
    if best_of > 1:
        from soundmill.evaluation import reranking

        if not prompts:
            raise UserError("--best-of: which sound is best is judged by its text: give a prompt")
        choose = reranking.best_of(best_of)
    made = number * best_of
    for path in generation.generate_sounds(directory, prompts, made, seed, output, home, settings or [], choose):
        typer.echo(path)


@app.command(cls=Command)
def reconstruct(
    files: Annotated[list[Path], typer.Argument(help="Recordings in any format that ffmpeg reads.")],
    family: FamilyName = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Annotated[Path, typer.Option(help="Directory for the WAV files and the picture.")] = Path("reconstructed"),
    project: Project = None,
) -> None:
    """Send recordings through a trained model's representation and back: what is lost on the way is the best it could ever do.

    Writes each as FILE.wav at the model's rate and channels, what went in beside it as FILE-input.wav, and a picture of both.
    """
    directory, home = _checkpoint(checkpoint, family, project)
    from soundmill.decoding import decode
    from soundmill.models import generation

    repeated = {path.stem for path in files if sum(path.stem == other.stem for other in files) > 1}
    if repeated:
        raise UserError(
            f"several files are called {', '.join(sorted(repeated))}: their results would have one name; give one at a time"
        )
    sounds = {}
    for path in files:
        try:
            sounds[path.stem] = decode.read_channels(path, decode.MAX_SECONDS)
        except decode.DecodeError as error:
            raise UserError(f"{path}: {error.reason} {error.detail}") from None
    for path in generation.reconstruct_sounds(directory, sounds, output, home, settings or []):
        typer.echo(path)


def _checkpoint(checkpoint: Path | None, family: str | None, project: Path | None) -> tuple[Path, Path]:
    """The checkpoint directory that is meant, and where relative names of text encoders start."""
    from soundmill.models import checkpoint as checkpoints
    from soundmill.models import registry

    if family:
        registry.family(family)
    try:
        home = project_root(project)
    except UserError:
        if checkpoint is None:
            raise
        home = checkpoint  # it may lie anywhere; only a text encoder in a relative directory is looked for in the checkout
    directory = checkpoint
    if directory is None and family is None:
        trained = [path for path in (home / "data" / "models").glob("*") if (path / checkpoints.CONFIG).is_file()]
        if not trained:
            raise UserError(f"{home / 'data' / 'models'}: no checkpoint; train one with `dvc repro` (or `make demo`)")
        directory = max(trained, key=lambda path: (path / checkpoints.CONFIG).stat().st_mtime)
    elif directory is None:
        directory = home / "data" / "models" / family
        if not directory.is_dir():
            raise UserError(f"{directory}: no checkpoint; train one with `dvc repro train@{family}` (or `make demo`)")
    checkpoints.read_config(directory, family)
    return directory, home


Protocol = Annotated[
    str | None,
    typer.Option(
        help="How to score: audioldm_eval-16k (as TANGO and AudioLDM), fadtk-vggish, google-fad, project, or a .yaml file."
    ),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--embedder",
        help="In place of a protocol: every metric by this embedder. yamnet (the default), vggish, panns_cnn14_16k, "
        "panns_cnn14_32k, clap or tagger; may be given several times.",
    ),
]
ScoreSeed = Annotated[int | None, typer.Option("--seed", min=0, help="Of resamples, subsets and noise (default: the protocol's).")]
Unpaired = Annotated[bool, typer.Option("--unpaired", help="Equal names mean nothing: leave out metrics of pairs.")]
Cache = Annotated[Path | None, typer.Option(help="Directory of embeddings that were made before (default: in the user's cache).")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes (default: one per CPU core).")]


@app.command(cls=Command)
def evaluate(
    generated: Annotated[Path, typer.Argument(help="Folder of generated sounds, in any format and with sub-folders.")],
    reference: Annotated[Path, typer.Argument(help="Folder of real sounds to measure them against.")],
    protocol: Protocol = None,
    embedder: Judges = None,
    training: Annotated[
        Path | None, typer.Option(help="Folder of the sounds that were trained on: are generated ones copies of them?")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Prompts for the CLAP score: a csv with the columns id and caption.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(callback=_writable, help="Write the result to this file; scores are at its top level: fad_yamnet …"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page to look at (index.html) into this directory, with the numbers as csv and LaTeX."),
    ] = None,
    unpaired: Unpaired = False,
    seed: ScoreSeed = None,
    cache: Cache = None,
    workers: Workers = None,
    project: Project = None,
) -> None:
    """Score any folder of generated sounds against a folder of real ones: FAD, FD, KL, IS, KID and more, by named protocols.

    A sound's id is its path without suffix: `rain/7.wav` is `rain/7`. Where both folders hold the same ids the sounds are pairs,
    and metrics of pairs (KL) are measured; where they have none in common those are left out; anything between is an error that
    names what is missing. A file that cannot be decoded ends the run: no part of a set is ever scored alone.

    Beside every score stands its ruler: what the same measurement says of silence, of white noise and of real sounds. A second run,
    or another metric, embeds nothing anew. `soundmill weights list` tells the embedders' weights.
    """
    from soundmill.evaluation import evaluator, page

    setup = _scoring(protocol, embedder, seed, cache, workers, project)
    if report:
        page.prepare(report)
    found = evaluator.evaluate(setup, generated, reference, unpaired, training, captions)
    if json:
        evaluator.write_json(found.metrics, json)
    with told("the table of scores"):
        page.show(found.metrics)
    if report:
        try:
            page.write(found, report)
        except Exception as error:
            raise UserError(f"{report}: the page could not be written ({reason(error)}); the scores above are whole") from error
        typer.echo(f"{report / 'index.html'}")


@app.command(cls=Command)
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of one model's sounds.")],
    b: Annotated[Path, typer.Argument(help="Folder of another's, of the same ids.")],
    reference: Annotated[Path, typer.Argument(help="Folder of real sounds to measure both against.")],
    protocol: Protocol = None,
    embedder: Judges = None,
    json: Annotated[Path | None, typer.Option(callback=_writable, help="Write the result to this file.")] = None,
    unpaired: Unpaired = False,
    seed: ScoreSeed = None,
    cache: Cache = None,
    workers: Workers = None,
    project: Project = None,
) -> None:
    """Tell whether one of two models is really better: the difference of each score, its interval, and a paired test.

    Both folders must hold sounds of the same ids (the same prompts), which are resampled together. `--unpaired` says that the
    reference's names mean nothing.
    """
    from soundmill.evaluation import evaluator, page

    found = evaluator.compare(_scoring(protocol, embedder, seed, cache, workers, project), a, b, reference, unpaired)
    if json:
        evaluator.write_json(found, json)
    with told("the table of differences"):
        page.show_comparison(found, a, b)


def _scoring(
    protocol: str | None,
    embedder: list[str] | None,
    seed: int | None,
    cache: Path | None,
    workers: int | None,
    project: Path | None,
):
    import os

    from soundmill.evaluation import evaluator, protocols

    if protocol and embedder:
        raise UserError("--protocol and --embedder: a protocol says itself who judges; give one of them")
    chosen = protocols.load(protocol) if protocol else protocols.load("project").judged_by(embedder or ["yamnet"])
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    try:
        tagger = project_root(project) / "data" / "tagger"
    except UserError:
        tagger = None
    return evaluator.Setup(
        chosen,
        cache or evaluator.user_cache(),
        workers or os.cpu_count() or 1,
        tagger if tagger and tagger.is_dir() else None,
        _bar,
    )


@contextmanager
def _bar(total: int, label: str, unit: str):
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=unit, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


@app.command(cls=Command)
def run(
    corpus: Annotated[
        Path, typer.Argument(help="Folder of recordings; captions, class folders and splits are found by themselves.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Parameters to change: `ddpm_mel.train.steps=2000 scale=paper`.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the workspace (default: the folder's).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what was found and what it will take.")] = False,
    project: Project = None,
) -> None:
    """Run the whole pipeline over your own recordings, in a workspace of its own beside the demo's parameters and outputs."""
    from soundmill import params as parameters
    from soundmill.corpora import survey
    from soundmill.models import cost, registry

    root = project_root(project)
    document = parameters.compose(root / "conf", ["corpus=auto", *(overrides or [])])
    registry.check(document)
    found = survey.survey(corpus, document["corpus"].get("follow_links", False))
    if document["corpus"]["format"] == "auto":
        document["corpus"]["format"] = found.format
    document["corpus"]["path"] = str(corpus.resolve())
    clips = found.num_clips(document["segment"]["clip_seconds"])
    training_seconds = sum(cost.seconds(name, document, clips, len(found.labels)) for name in document["families"])
    for line in found.describe(document, training_seconds):
        typer.echo(line)
    if dry_run:
        raise typer.Exit(0)
    from flows import checkout

    workspace = checkout.workspace(root, name or survey.slug(corpus), document)
    typer.echo(f"workspace   {workspace}")
    raise typer.Exit(checkout.run_pipeline(workspace))


@app.command(cls=Command)
def reproduce(
    run_id: Annotated[str, typer.Argument(help="MLflow run id of a pipeline run (`make browse` shows them).")],
    into: Annotated[Path | None, typer.Option(help="Directory for the checkout (default: workspaces/reproduce-RUN).")] = None,
    project: Project = None,
) -> None:
    """Bring back the state a recorded run was made from, in a separate checkout, and say what is missing."""
    from flows import checkout

    root = project_root(project)
    destination = into or root / "workspaces" / f"reproduce-{run_id[:8]}"
    missing = checkout.reproduce(root, run_id, destination)
    typer.echo(f"{destination}: the code, params.yaml, dvc.lock and cached outputs of run {run_id}")
    for line in missing:
        typer.secho(f"missing: {line}", fg="yellow")


@app.command(cls=Command)
def params(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides: `scale=paper corpus=esc corpus.path=DIR`.")
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Print instead of writing params.yaml.")] = False,
    project: Project = None,
) -> None:
    """Compose params.yaml from conf/, for `dvc repro` to run; git and your other files are left as they are."""
    from soundmill import params as parameters
    from soundmill.models import registry

    root = project_root(project)
    document = parameters.compose(root / "conf", overrides or [])
    registry.check(document)
    parameters.write_yaml(document, Path("/dev/stdout") if show else root / "params.yaml")


def tables(root: Path):
    from soundmill import clips

    return clips.Tables(root / "data" / "clips", root / "data" / "catalog.parquet")


Split = Annotated[str | None, typer.Option(help="Only this split: train, valid or test.")]
Label = Annotated[str | None, typer.Option(help="Only clips with this label.")]
Text = Annotated[str | None, typer.Option("--text", help="Only clips with this in a caption, the id or the source path.")]


@clips_app.command("list", cls=Command)
def list_clips(
    split: Split = None,
    label: Label = None,
    text: Text = None,
    limit: Annotated[int, typer.Option(min=0, help="Show at most so many (0: all).")] = 50,
    project: Project = None,
) -> None:
    """List clips: id, split, labels, where they come from, first caption."""
    from soundmill import clips

    rows = clips.find(tables(project_root(project)), split=split, label=label, text=text)
    shown = rows[:limit] if limit else rows
    width = max((len(row["clip_id"]) for row in shown), default=0)
    for row in shown:
        caption = row["captions"][0] if row["captions"] else "(no caption)"
        labels = ", ".join(row["labels"]) or "-"
        typer.echo(f"{row['clip_id']:<{width}}  {row['split']:<5}  {row['source']} @ {row['start']:g} s  [{labels}]  {caption}")
    typer.echo(f"{len(shown)} of {len(rows)} clips" + ("; --limit 0 shows all" if len(shown) < len(rows) else ""), err=True)


@clips_app.command("show", cls=Command)
def show_clip(clip_id: str, project: Project = None) -> None:
    """Show all that is known of one clip, down to the recording and the second it was cut from."""
    from soundmill import clips
    from soundmill.audio import flac

    root = project_root(project)
    row = clips.get(tables(root), clip_id)
    wave = flac.decode_flac(row["audio"]["bytes"])
    peak = float(abs(wave).max()) if len(wave) else 0.0
    sample_rate = _sample_rate(root)
    clips.check_rate(row, sample_rate)
    facts = {
        "clip": row["clip_id"],
        "recording": row["source"],
        "starts at": f"{row['start']:g} s",
        "length": f"{len(wave) / sample_rate:g} s at {sample_rate} Hz",
        "peak": f"{peak:.3f}",
        "split": row["split"],
        "labels": ", ".join(row["labels"]) or "-",
        "captions": "\n           ".join(row["captions"]) or "-",
        "digest": row["digest"],
    }
    for key, value in facts.items():
        typer.echo(f"{key:<10} {value}")
    typer.echo(f"hear it:   soundmill clips export {'-- ' if clip_id.startswith('-') else ''}{clip_id}")


@clips_app.command("export", cls=Command)
def export_clips(
    clip_ids: Annotated[list[str] | None, typer.Argument(help="Clip ids; without, all that the options select.")] = None,
    split: Split = None,
    label: Label = None,
    text: Text = None,
    output: Annotated[Path, typer.Option(help="Directory for the WAV files.")] = Path("clips"),
    project: Project = None,
) -> None:
    """Write clips as WAV files."""
    from soundmill import clips

    root = project_root(project)
    where = tables(root)
    for clip_id in clip_ids or []:
        clips.get(where, clip_id)
    selected = clip_ids or [row["clip_id"] for row in clips.find(where, split=split, label=label, text=text)]
    if not selected:
        raise UserError("no clip matches; `soundmill clips list` shows what there is")
    _check_apart(output, root)
    for path in clips.export(where, selected, output, _sample_rate(root)):
        typer.echo(path)


@corpus_app.command("check", cls=Command)
def check_corpus(
    path: Annotated[
        Path,
        typer.Argument(
            help="Folder of recordings and whatever describes them; or a params.yaml: the corpus that it names, a union too."
        ),
    ],
    format: Annotated[str, typer.Option(help="How to read it (docs/corpora.md); auto: by what it looks like.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="Write the whole report to this file.")] = None,
    missing: Annotated[Path | None, typer.Option(help="Write a csv of the clips without a file, for a downloader.")] = None,
    headers: Annotated[bool, typer.Option("--headers", help="Open every recording's header, and name what is damaged.")] = False,
    follow_links: FollowLinks = False,
) -> None:
    """Tell what a corpus would give: coverage, missing clips, orphans, collisions, what is ambiguous or damaged."""
    from rich.console import Console
    from tqdm import tqdm

    from soundmill.corpora import check

    named = path.is_file() and path.suffix.lower() in (".yaml", ".yml")
    if named and (format != "auto" or follow_links):
        raise UserError(f"{path}: says that itself (corpus.format, corpus.follow_links); leave --format and --follow-links out")
    if named and path.resolve() in [written.resolve() for written in (json, missing) if written]:
        raise UserError(f"{path}: would be written over; name another file")
    if missing:
        check.check_outside(missing, [place.root for place in check.directories_of(path)] if named else [path])
    with tqdm(desc="headers", unit="recording", disable=not (headers and sys.stderr.isatty())) as bar:
        if named:
            report = check.check_params(path, headers, bar.update)
        else:
            report = check.check(path, format, headers, bar.update, follow_links)
    check.show(report, Console())
    if json:
        check.write_json(report, json)
    if missing:
        typer.echo(f"{missing}: {check.write_missing(report, missing)} rows to download")


@corpus_app.command("duplicates", cls=Command)
def corpus_duplicates(
    path: Annotated[
        Path,
        typer.Argument(help="Any folder of audio files, or of Parquet tables with audio inside; what lies below it counts too."),
    ],
    json: Annotated[
        Path | None, typer.Option(callback=_writable, help="Write the pairs to this file: a list of {a, b, score}.")
    ] = None,
    threshold: Annotated[float, typer.Option(min=0.05, max=1, help="Least score of a pair: the share they have in common.")] = 0.4,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: one per CPU core).")] = None,
    follow_links: FollowLinks = False,
) -> None:
    """List files that are one sound twice, also after a gain, a shift, a cut, a resampling or a lossy coder."""
    import os

    from tqdm import tqdm

    from soundmill.corpora import duplicates

    with tqdm(desc="fingerprints", unit="file", disable=not sys.stderr.isatty()) as bar:
        found, unreadable = duplicates.find_in_folder(path, workers or os.cpu_count() or 1, threshold, bar.update, follow_links)
    for pair in found.pairs:
        typer.echo(f"{pair['score']:.2f}  {pair['a']}  {pair['b']}")
    if json:
        duplicates.write_json(found.pairs, json)
    for row in unreadable:
        typer.secho(f"not read: {row['path']}: {row['reason']} ({row['detail']})", fg="yellow", err=True)
    summary = f"{len(found.pairs)} pairs among {found.names.num_rows} files"
    if found.featureless:
        summary += f"; {len(found.featureless)} are too short or too steady to tell but by their bytes"
    typer.echo(summary + (f"; {len(unreadable)} not read" if unreadable else ""), err=True)


@corpus_app.command("export", cls=Command)
def export_corpus(
    format: Annotated[
        str,
        typer.Argument(
            help="amphion, audiocaps, audiocraft, audiofolder, audiofolder_csv, audiofolder_parquet, audioldm, clotho, esc, "
            "folder, gtzan, lhotse, musiccaps, nsynth, panns, stable_audio, tango, urbansound8k, wavcaps or webdataset."
        ),
    ],
    directory: Annotated[Path, typer.Argument(help="A new or empty directory for audio and manifests.")],
    split: Split = None,
    project: Project = None,
) -> None:
    """Write the prepared clips in another tool's format, so that the tool can be pointed at the directory."""
    from tqdm import tqdm

    from soundmill import exports

    root = project_root(project)
    _check_apart(directory, root)
    with tqdm(desc=f"export {format}", unit="clip", disable=not sys.stderr.isatty()) as bar:
        result = exports.export(tables(root), format, directory, _sample_rate(root), split=split, progress=bar.update)
    typer.echo(f"{directory}: {result.written} clips as {format}")
    if result.left_out:
        clip_id, reason = result.left_out[0]
        said = f"left out: {len(result.left_out)} clips, first {clip_id} ({reason}); all are in {directory / exports.LEFT_OUT}"
        typer.secho(said, fg="yellow")


WeightsNames = Annotated[list[str] | None, typer.Argument(help="As `soundmill weights list` has them; without: all.")]


@weights_app.command("list", cls=Command)
def list_weights() -> None:
    """List the files that are known: whether they are here, how large they are, who made them and under which licence."""
    from soundmill.evaluation import weights

    for name, entry in weights.REGISTRY.items():
        path = weights.directory() / entry.file
        if not path.is_file():
            state, color = "--", "yellow"
        else:
            state, color = ("ok", "green") if path.stat().st_size == entry.num_bytes else ("!!", "red")
        typer.echo(
            f"{typer.style(state, fg=color)}  {name:<16} {entry.num_bytes / 1e6:>5.0f} MB  {entry.licence:<10}  {entry.file}"
        )
        typer.echo(f"{'':4}{entry.source}\n{'':4}sha256 {entry.sha256}")
    typer.echo(f"ok: in {weights.directory()}; !!: there, but of another size; `soundmill weights fetch` mends it.", err=True)
    typer.echo("clap comes from the Hugging Face hub when it is first used.", err=True)


@weights_app.command("fetch", cls=Command)
def fetch_weights(
    names: WeightsNames = None,
    mirror: Annotated[Path | None, typer.Option("--from", help="Copy them from this directory instead of downloading.")] = None,
) -> None:
    """Download weights, or go on with a download that broke off; a file appears verified or not at all."""
    from soundmill.evaluation import weights

    for name in names or weights.REGISTRY:
        typer.echo(weights.fetch(name, mirror, progress=sys.stderr.isatty()))


@weights_app.command("verify", cls=Command)
def verify_weights(names: WeightsNames = None) -> None:
    """Compute the digests of the files that are here; one that is not what it should be is an error."""
    from soundmill.evaluation import weights

    wrong = []
    for name in names or [name for name in weights.REGISTRY if not weights.unavailable(name)]:
        try:
            typer.echo(f"{typer.style('ok', fg='green')}  {weights.verify(name)}")
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))


@weights_app.command("path", cls=Command)
def path_of_weights(name: str) -> None:
    """Print where a file lies, after verifying it."""
    from soundmill.evaluation import weights

    typer.echo(weights.path(name))


def _check_apart(directory: Path, root: Path) -> None:
    """UserError where the pipeline would take an export for recordings, or remove it."""
    from soundmill import params as parameters

    corpus = parameters.read_yaml(root / "params.yaml").get("corpus")
    parts = corpus.get("parts") if isinstance(corpus, dict) else None
    told = [corpus, *(parts.values() if isinstance(parts, dict) else [])]
    paths = [path for one in told if isinstance(one, dict) and isinstance(path := one.get("path"), str) and path]
    for path in [*(root / path for path in paths), root / "data"]:
        if directory.resolve().is_relative_to(path.resolve()):
            raise UserError(f"{directory}: lies in {path}, which the pipeline reads or writes; say a directory elsewhere")


def _sample_rate(root: Path) -> int:
    from soundmill import params as parameters

    return int(parameters.section(parameters.read_yaml(root / "params.yaml"), "resample.sample_rate", "params.yaml"))


if __name__ == "__main__":
    sys.exit(app())
