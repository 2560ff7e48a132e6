"""Commands that measure: folders of sounds, and the mel specs of a family."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soundmill import disk, params, terminal
from soundmill.commands.project import Project, Root, Split, given, progress_bar, project_if_any, tables, writable_file
from soundmill.errors import UserError, reason, report_failure
from soundmill.params import MAX_SEED, choose

if TYPE_CHECKING:
    from soundmill.audio.mel import MelSpec
    from soundmill.evaluation.library import Setup
    from soundmill.models.components.contracts import GriffinLimParams
    from soundmill.spectrograms import Comparison

app = typer.Typer()
spectrogram = typer.Typer(no_args_is_help=True, help="Choose the mel spectrogram of a family by measurement.")

# Not `protocols.NAMES`: the help is shown without importing the evaluation.
PROTOCOLS = ", ".join(sorted(path.stem for path in (Path(__file__).parents[1] / "evaluation/protocols").glob("*.yaml")))
Protocol = Annotated[str | None, typer.Option(help=f"{PROTOCOLS} (TANGO and AudioLDM use audioldm_eval-16k), or a .yaml file.")]
Embedders = Annotated[
    list[str] | None,
    typer.Option(
        "--embedder",
        help="Instead of a protocol: all metrics with this embedder (default: yamnet); repeatable. "
        "`soundmill weights list` names them.",
    ),
]
ScoreSeed = Annotated[
    int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of resamples, subsets, noise (default: the protocol's).")
]
Unpaired = Annotated[bool, typer.Option("--unpaired", help="Ignore equal names: leave out paired metrics.")]
Cache = Annotated[Path | None, typer.Option(help="Directory of cached embeddings (default: in the user's cache).")]
NOT_SCORES = ("json", "report", "card", "cache", "workers")  # options that change no score
Workers = Annotated[int | None, typer.Option(min=1, help="Processes (default: one per CPU core).")]


@app.command()
def evaluate(
    context: typer.Context,
    generated: Annotated[Path, typer.Argument(help="Folder of generated sounds, in any format, with subfolders.")],
    reference: Annotated[Path, typer.Argument(help="Folder of real sounds to compare with.")],
    protocol: Protocol = None,
    embedder: Embedders = None,
    training: Annotated[Path | None, typer.Option(help="Folder of training sounds: report near-copies of them.")] = None,
    captions: Annotated[Path | None, typer.Option(help="Prompts for the CLAP score: a csv with columns id and caption.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(callback=writable_file, help="Write the result to this file, with scores at its top level: fad_yamnet …"),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write index.html into this directory, with the numbers as JSON, csv, Markdown and LaTeX.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(help="Write what a paper needs into this directory: tables, protocol, digests, figures, command (card.md)."),
    ] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="For the card: sounds made per prompt; one was kept.")] = None,
    unpaired: Unpaired = False,
    paired: Annotated[
        bool, typer.Option("--paired", help="Sounds reconstruct the reference sounds of the same names: add lsd and mrstft.")
    ] = False,
    ladder: Annotated[
        list[str],
        typer.Option(
            metavar="METRIC", help="Metrics to measure on real sounds degraded in known ways, too; repeatable. `none`: none."
        ),
    ] = ("fad", "fd"),
    seed: ScoreSeed = None,
    cache: Cache = None,
    workers: Workers = None,
    project: Project = None,
) -> None:
    """Score any folder of generated sounds against a folder of real ones: FAD, FD, KL, IS, KID and more, by named protocols.

    A sound's id is its path without suffix: `rain/7.wav` is `rain/7`. If both folders hold the same ids, the sounds are pairs and
    paired metrics (KL) are measured; if they share no id, these are left out; if only some ids match,
    the error names the missing ones. A file that cannot be decoded stops the run: no subset is ever scored.

    Every score has baselines: the same measurement of silence, white noise and real sounds. If silence or noise scores as well as
    real sound, the metric is marked unfit and ranks no models. A second run, or another metric, reuses the embeddings.
    `soundmill weights list` shows the embedders' weights.
    """
    from soundmill.evaluation import evaluator, folders
    from soundmill.evaluation import report as reports
    from soundmill.metrics import scores

    if paired and unpaired:
        raise UserError("--paired and --unpaired exclude each other; give one")
    if candidates and not card:
        raise UserError("--candidates: only for --card; leave it out")
    setup = scoring_setup(protocol, embedder, seed, cache, workers, project)
    metrics = [] if ladder == ["none"] else ladder
    for name in metrics:
        choose(scores.METRICS, name, "metric for --ladder")
    setup = replace(setup, ladder=metrics)
    for directory in filter(None, (report, card)):
        disk.make_directory(directory)  # before scoring starts
    candidates = candidates or folders.about(generated).candidates
    evaluation = evaluator.evaluate(setup, generated, reference, unpaired, training, captions, paired)
    if json:
        disk.write_json(json, evaluation.metrics)
    with report_failure("the table of scores"):
        evaluator.show(evaluation.metrics)
    if report:
        try:
            evaluator.write(evaluation, report)
        except Exception as error:
            raise UserError(f"{report}: the page could not be written ({reason(error)}); the scores above are complete") from error
        terminal.say(f"{report / 'index.html'}")
    if card:
        reports.write_card(card, evaluator.title(evaluation), evaluation.metrics, _again(context), candidates)
        terminal.say(f"{card / reports.CARD}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of one model's sounds.")],
    b: Annotated[Path, typer.Argument(help="Folder of the other model's sounds, with the same ids.")],
    reference: Annotated[Path, typer.Argument(help="Folder of real sounds to compare both with.")],
    protocol: Protocol = None,
    embedder: Embedders = None,
    json: Annotated[Path | None, typer.Option(callback=writable_file, help="Write the result to this file.")] = None,
    unpaired: Unpaired = False,
    seed: ScoreSeed = None,
    cache: Cache = None,
    workers: Workers = None,
    project: Project = None,
) -> None:
    """Test whether one of two models is better: the difference of each score, its interval, and a paired test.

    Both folders must hold sounds with the same ids (the same prompts), which are resampled together. With `--unpaired` the
    reference's names are ignored.
    """
    from soundmill.evaluation import evaluator

    comparison = evaluator.compare(scoring_setup(protocol, embedder, seed, cache, workers, project), a, b, reference, unpaired)
    if json:
        disk.write_json(json, comparison)
    with report_failure("the table of differences"):
        evaluator.show_comparison(comparison, a, b)


def _again(context: typer.Context) -> str:
    """The command as it was given, without its outputs."""
    words = ["soundmill", context.info_name or ""]
    for parameter in given(context, NOT_SCORES):
        value = context.params[parameter.name]
        option = [parameter.opts[0]] if parameter.param_type_name == "option" else []
        if value is True:
            words += option
        else:
            words += [word for one in (value if isinstance(value, list | tuple) else [value]) for word in (*option, str(one))]
    return shlex.join(words)


def scoring_setup(
    protocol: str | None,
    embedder: list[str] | None,
    seed: int | None,
    cache: Path | None,
    workers: int | None,
    project: Path | None,
) -> Setup:
    import pooch

    from soundmill.evaluation import protocols
    from soundmill.evaluation.library import Setup

    if protocol and embedder:
        raise UserError("--protocol and --embedder exclude each other: a protocol names its embedders; give one of them")
    chosen = protocols.load(protocol) if protocol else protocols.load("project").with_embedders(embedder or ["yamnet"])
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    root = project_if_any(project)
    tagger = root / "data" / "tagger" if root and (root / "data" / "tagger").is_dir() else None
    cache = cache or Path(pooch.os_cache("soundmill")) / "embeddings"
    return Setup(chosen, cache, workers or os.cpu_count() or 1, tagger, progress_bar)


spectrogram.callback()(lambda: None)  # a group, though it has one command


@spectrogram.command("compare")
def compare_spectrograms(
    spec: Annotated[
        list[str] | None,
        typer.Option(
            "--spec",
            help="BANDSxN_FFT/HOP or BANDSxN_FFT:WINDOW/HOP, such as 64x1024/256 or 64x1024:400/160; repeatable. Default: the "
            "family's own and its neighbours.",
        ),
    ] = None,
    family: Annotated[str, typer.Option(help="The family with the other settings of spectrogram and Griffin-Lim.")] = "audio_dit",
    embedder: Annotated[str, typer.Option(help="Measures FAD and classes; `soundmill weights list` names all.")] = "yamnet",
    split: Split = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Compare with at most this many clips.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the choice of clips and of the intervals.")] = 0,
    json: Annotated[Path | None, typer.Option(callback=writable_file, help="Write the result to this file.")] = None,
    cache: Cache = None,
    workers: Workers = None,
    root: Root = None,
) -> None:
    """Measure how much of your recordings each mel spectrogram keeps, before a model is trained on it.

    Clips of the pipeline (`dvc repro` makes them) become log-mels and sound again, by Griffin-Lim without and with speckle. FAD and
    mrstft compare them with the same clips; "in class" is the share that a linear probe, fitted to other real clips, puts into
    their class. A model of log-mels sounds no better than its line. An embedder favours spectrograms like those that it computes
    itself, so look at mrstft, too. The default is all clips outside the test split, which is for final scores.
    """
    from soundmill import spectrograms

    base, griffin_lim, variant, probe_clips = _settings(root, family)
    specs = [spectrograms.parse_spec(text, base) for text in spec or ()] or spectrograms.around(base)
    setup = scoring_setup(None, [embedder], seed, cache, workers, root)
    where = tables(root, variant)
    clip_ids = spectrograms.choose(where, split, number, seed)
    comparison = spectrograms.compare(setup, where, clip_ids, specs, griffin_lim, probe_clips)
    if json:
        disk.write_json(json, comparison.document() | {"family": family, "split": split or "train, valid"})
    _show(comparison, f"{family}, {embedder}", base)


def _settings(root: Path, family: str) -> tuple[MelSpec, GriffinLimParams, str, int]:
    """A family's spec, Griffin-Lim's parameters, clip variant and number of probe clips, of params.yaml or, without it, conf/."""
    from soundmill.audio.mel import SpectrogramParams
    from soundmill.models import registry
    from soundmill.models.components.contracts import GriffinLimParams
    from soundmill.models.params import read_sections

    kind = registry.family(family)
    document = params.read_yaml(root / "params.yaml")
    if family not in document["families"]:
        rate = params.section(document, "clips.default.sample_rate", "params.yaml")
        document = params.compose(root / "conf", [f"model={family}", f"clips.default.sample_rate={rate}"])
    if family not in document["mel_families"]:
        of_mels = params.compose(root / "conf", [f"model=[{','.join(registry.FAMILIES)}]"])["mel_families"]
        raise UserError(f"--family {family}: it makes no log-mels; choose {' or '.join(of_mels)}")
    spectrogram = params.parse_section(document, f"spectrogram.{document['mel_families'][family]['mel']}", SpectrogramParams)
    _, _, sampling = read_sections(document, family, kind.train_params, kind.generate_params)
    griffin_lim = GriffinLimParams(**{name: getattr(sampling, name) for name in GriffinLimParams.model_fields})
    return spectrogram.spec, griffin_lim, spectrogram.clips, params.section(document, "evaluate.probe_clips", "params.yaml")


def _show(comparison: Comparison, what: str, base: MelSpec) -> None:
    from soundmill.evaluation import evaluator
    from soundmill.spectrograms import numbers_per_second, short

    console = evaluator.open_console()
    console.print(f"[bold]{what}[/bold]  {len(comparison.clips)} clips; {what.partition(',')[0]} has {short(base)} now")
    columns = ("grain", "frames", "numbers/s", "FAD", "95 %", "in class", "mrstft")
    table = terminal.table("bands x n_fft:window/hop", *columns)
    for line in comparison.lines:
        ends = [f"{line.fad[end]:.3g}" for end in ("low", "high") if end in line.fad]
        accuracy = "–" if line.accuracy is None else f"{line.accuracy:.1%}"
        sizes = [str(line.frames), f"{numbers_per_second(line.spec):,.0f}"]
        measured = [f"{line.fad['value']:.3g}", "–".join(ends), accuracy, f"{line.mrstft:.3g}"]
        table.add_row(short(line.spec), line.grain, *sizes, *measured)
    if comparison.real_accuracy is not None:
        table.add_row("the clips themselves", "", "", "", "0", "", f"{comparison.real_accuracy:.1%}", "0")
    console.print(table)
    evaluator.show_warnings(console, comparison.warnings)
