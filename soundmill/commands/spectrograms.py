"""The command that compares mel specs by measurement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soundmill.commands.project import Project, Split, project_root, tables, writable_file
from soundmill.commands.scores import Cache, Workers, scoring_setup
from soundmill.errors import UserError
from soundmill.params import MAX_SEED

if TYPE_CHECKING:
    from soundmill.audio.mel import MelSpec
    from soundmill.models.components.griffin_lim.params import GriffinLimParams
    from soundmill.spectrograms import Comparison

app = typer.Typer(no_args_is_help=True, help="Choose the mel spectrogram of a family by measurement.")


@app.callback()
def _group() -> None:
    pass


@app.command("compare")
def compare_spectrograms(
    spec: Annotated[
        list[str] | None,
        typer.Option(
            "--spec",
            help="BANDSxN_FFT/HOP or BANDSxN_FFT:WINDOW/HOP, such as 64x1024/256 or 64x1024:400/160; repeatable. Default: the "
            "family's own and its neighbours.",
        ),
    ] = None,
    family: Annotated[
        str, typer.Option(help="The family whose other settings of the spectrogram and of Griffin-Lim are used.")
    ] = "ddpm_mel",
    embedder: Annotated[str, typer.Option(help="Measures FAD and classes; `soundmill weights list` names all.")] = "yamnet",
    split: Split = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Compare with at most this many clips.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the choice of clips and of the intervals.")] = 0,
    json: Annotated[Path | None, typer.Option(callback=writable_file, help="Write the result to this file.")] = None,
    cache: Cache = None,
    workers: Workers = None,
    project: Project = None,
) -> None:
    """Measure how much of your recordings each mel spectrogram keeps, before a model is trained on it.

    Clips of the pipeline (`dvc repro` makes them) become log-mels and sound again, by Griffin-Lim without and with speckle. FAD and
    mrstft compare them with the same clips; "in class" is the share that a linear probe, fitted to other real clips, puts into
    their class. A model of log-mels sounds no better than its line. An embedder favours spectrograms like those that it computes
    itself, so look at mrstft, too. The default is all clips outside the test split, which is for final scores.
    """
    from soundmill import spectrograms
    from soundmill.evaluation import evaluator

    root = project_root(project)
    base, griffin_lim, variant, probe_clips = _settings(root, family)
    specs = [spectrograms.parse_spec(text, base) for text in spec or ()] or spectrograms.around(base)
    setup = scoring_setup(None, [embedder], seed, cache, workers, root)
    where = tables(root, variant)
    clip_ids = spectrograms.choose(where, split, number, seed)
    comparison = spectrograms.compare(setup, where, clip_ids, specs, griffin_lim, probe_clips)
    if json:
        evaluator.write_json(comparison.document() | {"family": family, "split": split or "train, valid"}, json)
    _show(comparison, f"{family}, {embedder}", base)


def _settings(root: Path, family: str) -> tuple[MelSpec, GriffinLimParams, str, int]:
    """A family's spec, Griffin-Lim's parameters, the variant of its clips, and the number of clips for the probe.

    They are those of params.yaml, or those of conf/ if params.yaml does not have the family.
    """
    from soundmill import params
    from soundmill.audio.mel import SpectrogramParams
    from soundmill.models import registry
    from soundmill.models.components.griffin_lim.params import GriffinLimParams
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
    probe_clips = params.section(document, "evaluate.probe_clips", "params.yaml")
    return spectrogram.spec, griffin_lim, spectrogram.clips, probe_clips


def _show(comparison: Comparison, what: str, base: MelSpec) -> None:
    """Print the comparison as a table, one row for each spec and grain, then the warnings."""
    from rich import box
    from rich.table import Table

    from soundmill.evaluation import folder_report
    from soundmill.spectrograms import numbers_per_second, short

    console = folder_report.open_console()
    console.print(f"[bold]{what}[/bold]  {len(comparison.clips)} clips; {what.partition(',')[0]} has {short(base)} now")
    table = Table("bands x n_fft:window/hop", "grain", box=box.SIMPLE, pad_edge=False)
    for name in ("frames", "numbers/s", "FAD", "95 %", "in class", "mrstft"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in comparison.lines:
        ends = [f"{line.fad[end]:.3g}" for end in ("low", "high") if end in line.fad]
        accuracy = "–" if line.accuracy is None else f"{line.accuracy:.1%}"
        numbers = f"{numbers_per_second(line.spec):,.0f}"
        table.add_row(
            short(line.spec),
            line.grain,
            str(line.frames),
            numbers,
            f"{line.fad['value']:.3g}",
            "–".join(ends),
            accuracy,
            f"{line.mrstft:.3g}",
        )
    if comparison.real_accuracy is not None:
        table.add_row("the clips themselves", "", "", "", "0", "", f"{comparison.real_accuracy:.1%}", "0")
    console.print(table)
    for warning in comparison.warnings:
        console.print(f"· {warning}", style="yellow", soft_wrap=True, markup=False)
