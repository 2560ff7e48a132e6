"""Commands about families and checkpoints: list, import, export, generate, test prompts; terms of their sounds; publish, pull."""

import math
import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from soundmill import disk, terminal
from soundmill.commands import project as shared
from soundmill.errors import UserError, first_of
from soundmill.params import MAX_SEED, once_each, read_json

app = typer.Typer()

FamilyName = Annotated[
    str | None, typer.Option(help="Model family, from `soundmill families` (default: that of the newest checkpoint).")
]
Checkpoint = Annotated[Path | None, typer.Option(help="Checkpoint directory (default: data/models/FAMILY).")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a sampling parameter of the checkpoint, such as num_steps=50 or guidance_scale=3; repeatable. A wrong name "
        "lists the valid ones.",
        callback=once_each,
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(help="A label; the same as a prompt, but a model of `condition=caption_and_label` follows both. Repeatable."),
]
RandomSeed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Same seed, same sounds.")]


@app.command()
def families(
    sizes: Annotated[bool, typer.Option("--sizes", help="Also count the parameters of each part at each scale.")] = False,
    json: Annotated[Path | None, typer.Option(callback=shared.writable_file, help="Write families and sizes to this file.")] = None,
    root: shared.Root = None,
) -> None:
    """List the model families: title, paper, commands; with `--sizes`, the parameter count of each part at each scale.

    Sizes follow from conf/ (`model=FAMILY scale=SCALE`); they are counted without allocating the weights. Label conditioning
    adds one embedding per label of the corpus.
    """
    from soundmill.models import registry

    described = registry.describe(root / "conf", sizes=sizes or json is not None)
    console = terminal.console(highlight=False)
    for name, facts in described.items():
        console.print(f"[bold]{name}[/bold]: {facts['what']}")
        console.print(f"{facts['source']}\ncommands: {', '.join(facts['commands'])}", style="dim")
        scales = {scale: counts for scale, counts in facts.items() if isinstance(counts, dict)}
        if not scales:
            continue
        table = terminal.table("part", *(f"scale={scale}" for scale in scales))
        for part in dict.fromkeys(part for counts in scales.values() for part in counts):
            table.add_row(part, *(f"{counts[part]:,}" if part in counts else "–" for counts in scales.values()))
        console.print(table)
    console.print(
        "`make run MODEL=FAMILY` trains one; `--sizes` counts their parameters, and `soundmill params scale=paper` chooses a scale."
    )
    if json:
        disk.write_json(json, described, sort_keys=False, allow_nan=True)


@app.command("import")
def import_weights(
    file: Annotated[
        str,
        typer.Argument(
            help="A weights-*.pt of lmnt-com/diffwave, a .ckpt of tiny-audio-diffusion, a directory of declare-lab/tango, of an "
            "AudioLDMPipeline, of a StableAudioPipeline or of stable-audio-tools, or the id of a StableAudioPipeline on the hub."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Directory of the vocoder or checkpoint; it must not exist yet.")],
    revision: Annotated[str | None, typer.Option(help="Commit of a model on the hub: 40 hex digits.")] = None,
    project: shared.Project = None,
) -> None:
    """Convert published weights to a vocoder for `soundmill vocode`, or to a checkpoint for `generate`, `restyle` and `inpaint`.

    Only tensors and plain values are read, no code; of StableAudioPipeline and AudioLDMPipeline, only safetensors.
    """
    from soundmill.models import importing

    parameters = importing.import_published(file, output, lambda: shared.project_root(project) / "conf", revision)
    terminal.say(f"{output}: {parameters:,} parameters")


@app.command()
def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A RAVE codec (data/rave/autoencoder), a checkpoint with one (data/models/rave), or a checkpoint of adapters."
        ),
    ],
    streaming: Annotated[bool, typer.Option("--streaming", help="For live use: TorchScript for nn~ (Max, Pure Data).")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            callback=shared.writable_file,
            help="Output file (default: CHECKPOINT's name with .ts or .onnx); of adapters, a new directory.",
        ),
    ] = None,
) -> None:
    """Export a RAVE codec for other programs: with --streaming for live use, else its decoder as ONNX (needs the extra `export`).

    Adapters (LoRA) are merged with their base into a whole checkpoint.

    A TorchScript file runs in plain torch, without Soundmill. Block sizes are multiples of the samples per latent. The latency is
    printed.
    """
    from soundmill.models import adapted, live

    if adapted.are_in(checkpoint):
        from soundmill.models.training import write_whole
        from soundmill.stage import publish

        if output is None or output.exists():
            raise UserError(f"{checkpoint} has adapters: name a new directory for the merged checkpoint with --output")
        if streaming:
            raise UserError(f"--streaming: {checkpoint} has adapters; merge them first, without --streaming")
        disk.make_directory(output.parent)
        with tempfile.TemporaryDirectory(prefix=".soundmill-", dir=output.parent) as folder:
            write_whole(checkpoint, Path(folder) / output.name)
            publish(Path(folder) / output.name, output)
        terminal.say(output)
        return
    codec = live.find(checkpoint)
    path = output or Path(f"{checkpoint.resolve().name}{live.PUBLISHED if streaming else '.onnx'}")
    if codec.phase == 1:
        terminal.say("this codec was trained in phase 1 only, without a discriminator: it sounds duller than after phase 2")
    if not streaming:
        for name, sizes in live.export_onnx(path, codec).items():
            terminal.say(f"{name}: {' × '.join(map(str, sizes))}")
        terminal.say(path)
        return
    facts = live.export_streaming(path, codec)
    latency, block, rate = facts["latency"], facts["block"], facts["sample_rate"]
    ms = 1000 / rate
    terminal.say(
        f"latency {latency} samples ({latency * ms:.1f} ms at {rate} Hz) plus a block, a multiple of {block} ({block * ms:.1f} ms)"
    )
    terminal.say(f"methods forward, encode, decode; {facts['latents']} latents every {block} samples")
    terminal.say(path)


@app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to make. A text-conditioned family makes sounds for each prompt; a label-conditioned one mixes the labels "
            "that the prompts name. Default: unconditional; a label-conditioned GAN draws each sound's label by its seed."
        ),
    ] = None,
    family: FamilyName = None,
    label: Labels = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=10_000, help="Number of sounds.")] = 4,
    seed: RandomSeed = 0,
    settings: Settings = None,
    psi: Annotated[
        float | None,
        typer.Option(
            min=0, max=2, help="Truncation of a GAN: below 1 is cleaner and less varied; 0 gives the same sound for all seeds."
        ),
    ] = None,
    bpm: Annotated[
        float | None, typer.Option(min=30, max=300, help="Tempo of loops: each is time-stretched to it, at the same pitch.")
    ] = None,
    repeat: Annotated[int | None, typer.Option(min=1, max=1000, help="Repetitions of the loop in each file.")] = None,
    best_of: Annotated[
        int, typer.Option(min=1, max=1000, help="Candidates per sound; the one with the highest CLAP score for its text is kept.")
    ] = 1,
    lora: Annotated[
        str | None,
        typer.Option(
            metavar="DIR=SHARE,…",
            help="Adapters to add, each at a strength (default: 1). The model is the base that they name, or --checkpoint.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    output: Annotated[Path, typer.Option(help="Directory for the WAV files and the picture.")] = Path("sounds"),
    asked: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE.json", help="Make again a sound that `soundmill play` kept, from the request beside it."
        ),
    ] = None,
    project: shared.Project = None,
) -> None:
    """Make sounds from a trained checkpoint, with a picture of their spectrograms.

    Loops (`projected_gan`) repeat seamlessly; `--bpm` and `--repeat` write them at a tempo, which is stored in each file's name and
    in the metadata that samplers read.
    """
    if asked:
        from soundmill.play import checkpoints, making

        if others := shared.given(context, ("asked", "checkpoint", "output", "project")):
            words = ", ".join(one.opts[-1] if one.param_type_name == "option" else "prompts" for one in others)
            raise UserError(f"--from {asked}: that request says what to make; leave out {words}")
        if asked.suffix != ".json" or not asked.is_file():
            raise UserError(f"--from {asked}: no such .json file; give the one that was kept beside a sound")
        root = shared.project_root(project)
        directory = checkpoint or root / making.read(asked).checkpoint
        terminal.say(making.repeat(asked, checkpoints.Found(directory.resolve(), root), output))
        return
    loras = _shares(lora)
    if loras and checkpoint is None:
        from soundmill.models import adapted

        checkpoint = adapted.base_of(loras[0][0])
    directory, home = checkpoint_of(checkpoint, family, project)
    from soundmill.models import generation
    from soundmill.models.sounds import NoLabel

    prompts, labels = prompt or [], label or []
    choose = None
    if best_of > 1:
        from soundmill.evaluation.embedders import clap

        if not prompts and not labels:
            raise UserError("--best-of: needs a prompt to compare sounds with")
        choose = clap.best_of(best_of)
    looped = None
    if bpm is not None or repeat is not None:
        from soundmill.decoding.stretch import best_stretcher, stretch

        stretcher = best_stretcher()
        if bpm is not None and stretcher == "atempo":
            terminal.say("note: this ffmpeg has no rubberband; loops are stretched by atempo, which blurs beats", error=True)
        looped = generation.Looped(bpm, repeat or 1, lambda *loop: stretch(*loop, stretcher))
    sampling = [*(settings or []), *([] if psi is None else [f"psi={psi}"])]
    try:
        paths = generation.generate_sounds(
            directory, prompts, number * best_of, seed, output, home, sampling, choose, looped, loras, labels
        )
    except NoLabel as error:
        chosen = {"--family": family, "--checkpoint": checkpoint, "--project": project}
        options = [str(word) for option, value in chosen.items() if value for word in (option, value)]
        example = [error.example] if error.example else []
        if prompts and labels and example:
            example = [*prompts, "--label", *example]
        works = shlex.join(["soundmill", "generate", *example, *options])
        raise UserError(f"{error}\nthis works: {works}") from None
    shared.say_paths(paths)


@app.command()
def prompts(
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SET|FILE.yaml…",
            help="Of plain, paraphrases, negation, counts, order, materials, unknown, empty, long, languages (default: all), "
            "or files of your own.",
        ),
    ] = None,
    family: FamilyName = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=100, help="Number of sounds for each prompt.")] = 4,
    seed: RandomSeed = 0,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    json: Annotated[Path | None, typer.Option(callback=shared.writable_file, help="Write the result to this file.")] = None,
    page: Annotated[
        Path | None, typer.Option(callback=shared.writable_file, help="Write a page with a sound of each prompt.")
    ] = None,
    project: shared.Project = None,
) -> None:
    """Test whether text steers a text-conditioned model, and how it takes paraphrases, negation, counts, order and more.

    Sounds for each prompt are classified by YAMNet: the share classified as asked, next to that with shuffled prompts. In a
    checkout whose test clips have such sounds, those clips, plain and through the model's codec, show what can be reached.
    """
    from soundmill.prompts import following

    chosen = following.load_sets(sets or following.NAMES)
    directory, home = checkpoint_of(checkpoint, family, project)
    root = shared.project_if_any(project)
    clips = shared.tables(root, "default") if root else None
    real = clips if clips and clips.catalog.is_file() else None
    found = following.follow(directory, chosen, number, seed, home, settings or [], real, shared.progress_bar)
    if json:
        disk.write_json(json, found.document)
    following.show(found.document)
    if page:
        following.write_page(found, page)
        terminal.say(page)


@app.command()
def licences(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, a codec or vocoder (data/tango/vocoder), a directory that `soundmill publish` wrote, or a family "
            "trained in this project."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(callback=shared.writable_file, help="Also write the table of recordings, as in ATTRIBUTION.csv.")
    ] = None,
    project: shared.Project = None,
) -> None:
    """Say what the terms of the training material mean for a model, and why: facts, not advice.

    The recordings of its codec, its vocoder and earlier trainings count too. Material without known terms is `unknown`.
    """
    from soundmill import attribution
    from soundmill.publishing import model as publishing

    root = shared.project_if_any(project)
    checkpoint = publishing.find(model, root)
    if output and output.resolve().is_relative_to(checkpoint.resolve()):
        raise UserError(f"{output}: would change the checkpoint and its digest; choose a file elsewhere")
    if output and root:
        shared.check_apart(output, root)
    found = attribution.credits_of(checkpoint, publishing.recordings_of(root))
    if output:
        attribution.write(found, output)
    for column, title in (("licence", "licence"), ("ai_terms", "AI terms")):
        for name, hours in attribution.hours_by(found, column).items():
            terminal.say(f"{title} {name}: {hours:.2f} h")
    for fact, why in attribution.statements(found):
        terminal.say(f"{fact}\n    {why}")
    creators = sorted({credit.creator for credit in found if credit.creator})
    named = f": {first_of(creators, 10)}" if creators else ""
    terminal.say(f"{len(creators)} creator{'' if len(creators) == 1 else 's'}{named}")


@app.command()
def publish(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, a codec or vocoder (data/tango/vocoder), or a family trained in this project; `data`: the prepared "
            "clips."
        ),
    ],
    directory: Annotated[Path, typer.Argument(help="A new or empty directory.")],
    variant: shared.Clips = "default",
    root: shared.Root = None,
) -> None:
    """Write a directory with all that goes with a model: checkpoint, attribution, card, sounds, and the digests of all files.

    A RAVE codec, or a `waveform_unet` without captions, is added as TorchScript, with a script that runs it without Soundmill. With
    `data` instead of a model: the prepared clips as Parquet, with attribution, card and Croissant metadata. Nothing is uploaded:
    `hf upload USER/NAME DIRECTORY` does that (for clips, add `--repo-type dataset`).

    Nothing is published if any recording breaks corpus.terms, or its creator refuses generative AI; those of earlier trainings, of
    the codec and of the vocoder count too. Clips are also refused if a licence forbids sharing adaptations.
    """
    shared.check_apart(directory, root)
    if model == "data":
        from soundmill.publishing.directory import publish_clips, terms_of

        with shared.progress_bar(None, "publish", "clip") as tick:
            where, rate = shared.tables(root, variant), shared.sample_rate_of(root, variant)
            recordings = root / "data" / "corpus" / "recordings.parquet"
            written = publish_clips(where, directory, rate, recordings, terms_of(root), tick)
    else:
        from soundmill.publishing import model as publishing

        if shared.given(context, ("model", "directory", "root")):
            raise UserError("--clips: only for `data`; leave it out")
        written = publishing.publish(model, directory, root)
    for path in written:
        terminal.say(f"{path}  {path.stat().st_size:,} bytes")


@app.command()
def pull(
    directory: Annotated[Path, typer.Argument(help="A published model or data set: a directory that `soundmill publish` wrote.")],
    output: Annotated[Path | None, typer.Option(help="A new or empty directory (default: models/NAME, datasets/NAME).")] = None,
) -> None:
    """Check every file of a published model or data set and copy it.

    The model then makes the same sounds, byte for byte, as where it was published. To download one first: `hf download USER/NAME
    --local-dir DIRECTORY` (for a data set, add `--repo-type dataset`).
    """
    from soundmill.publishing import directory as published

    data = published.is_data(directory)
    target = output or Path("datasets" if data else "models") / directory.resolve().name
    shared.say_paths(published.pull(directory, target))
    checkpoint = target / published.CHECKPOINT
    quoted = shlex.quote(str(checkpoint))
    if data:
        use = f"datasets.load_dataset({str(target)!r})"
    elif "family" not in read_json(checkpoint / "config.json", "download it again"):  # a codec or vocoder
        use = f"soundmill params FAMILY.autoencoder.weights.start_from={quoted} (a vocoder: vocoder.weights.start_from)"
    else:
        use = f"as {target / 'README.md'} says"
    terminal.say(f"try it: {use}", error=True)


def _shares(text: str | None) -> list[tuple[Path, float]]:
    """Directories and shares in `DIR=SHARE,DIR`."""
    shares = []
    for part in text.split(",") if text else ():
        name, _, share = part.rpartition("=")
        try:
            shares.append((Path(name), float(share)) if name else (Path(part), 1.0))
            if not math.isfinite(shares[-1][1]):
                raise ValueError(share)
        except ValueError:
            example = shlex.join(["--lora", f"{name}=0.7"])
            raise UserError(f"--lora: the share of {name} is {share!r}, not a number; for example `{example}`") from None
    return shares


def checkpoint_of(checkpoint: Path | None, family: str | None, project: Path | None) -> tuple[Path, Path]:
    """The chosen checkpoint directory, and the directory that paths of text encoders are relative to."""
    from soundmill.models import registry
    from soundmill.models.family import family_of
    from soundmill.training.checkpoint import CONFIG

    if family:
        registry.family(family)
    # Outside a checkout, paths of text encoders are relative to the checkpoint.
    home = shared.project_root(project) if checkpoint is None else shared.project_if_any(project) or checkpoint
    directory = checkpoint
    if directory is None and family is None:
        trained = [path for path in (home / "data" / "models").glob("*") if (path / CONFIG).is_file()]
        if not trained:
            raise UserError(f"{home / 'data' / 'models'}: no checkpoint; train one with `dvc repro` (or `make demo`)")
        directory = max(trained, key=lambda path: (path / CONFIG).stat().st_mtime)
    elif directory is None:
        directory = home / "data" / "models" / family
        if not directory.is_dir():
            raise UserError(f"{directory}: no checkpoint; train one with `dvc repro train@{family}` (or `make demo`)")
    family_of(directory, family)
    return directory, home
