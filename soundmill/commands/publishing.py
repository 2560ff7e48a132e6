"""Commands about whose sounds a model was made from, and about giving it to others."""

from pathlib import Path
from typing import Annotated

import typer

from soundmill import terminal
from soundmill.commands.project import (
    Clips,
    Project,
    check_apart,
    progress_bar,
    project_if_any,
    project_root,
    sample_rate_of,
    tables,
    writable_file,
)
from soundmill.errors import UserError

app = typer.Typer()


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
        Path | None, typer.Option(callback=writable_file, help="Also write the table of recordings, as in ATTRIBUTION.csv.")
    ] = None,
    project: Project = None,
) -> None:
    """Say what the terms of the training material mean for a model, and why: facts, not advice.

    The recordings of its codec, its vocoder and earlier trainings count too. Material without known terms is `unknown`.
    """
    from soundmill import attribution
    from soundmill.publishing import model as publishing

    root = project_if_any(project)
    checkpoint = publishing.find(model, root)
    if output and output.resolve().is_relative_to(checkpoint.resolve()):
        raise UserError(f"{output}: would change the checkpoint and its digest; choose a file elsewhere")
    if output and root:
        check_apart(output, root)
    found = attribution.credits_of(checkpoint, publishing.recordings_of(root))
    if output:
        attribution.write(found, output)
    for column, title in (("licence", "licence"), ("ai_terms", "AI terms")):
        for name, hours in attribution.hours_by(found, column).items():
            terminal.say(f"{title} {name}: {hours:.2f} h")
    for fact, why in attribution.statements(found):
        terminal.say(f"{fact}\n    {why}")
    creators = sorted({credit.creator for credit in found if credit.creator})
    terminal.say(
        f"{len(creators)} creator{'' if len(creators) == 1 else 's'}"
        + (f": {', '.join(creators[:10])}{' …' if len(creators) > 10 else ''}" if creators else "")
    )


@app.command()
def publish(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, a codec or vocoder (data/tango/vocoder), or a family trained in this project; `data`: the prepared "
            "clips."
        ),
    ],
    directory: Annotated[Path, typer.Argument(help="A new or empty directory.")],
    variant: Clips = "default",
    project: Project = None,
) -> None:
    """Write a directory with all that goes with a model: checkpoint, attribution, card, sounds, and the digests of all files.

    A RAVE codec, or a `waveform_unet` without captions, is added as TorchScript, with a script that runs it without Soundmill. With
    `data` instead of a model: the prepared clips as Parquet, with attribution, card and Croissant metadata. Nothing is uploaded:
    then run `hf upload USER/NAME DIRECTORY`.

    Recordings whose creators refuse generative AI, or that break corpus.terms, are refused, also those of earlier trainings and of
    the codec and vocoder, and so are clips whose licences forbid to share adaptations.
    """
    root = project_root(project)
    check_apart(directory, root)
    if model == "data":
        from soundmill.publishing.directory import publish_clips, terms_of

        with progress_bar(None, "publish", "clip") as tick:
            where, rate = tables(root, variant), sample_rate_of(root, variant)
            recordings = root / "data" / "corpus" / "recordings.parquet"
            written = publish_clips(where, directory, rate, recordings, terms_of(root), tick)
    else:
        from soundmill.publishing import model as publishing

        written = publishing.publish(model, directory, root)
    for path in written:
        terminal.say(f"{path}  {path.stat().st_size:,} bytes")


@app.command()
def pull(
    directory: Annotated[Path, typer.Argument(help="A published model or data set: a directory that `soundmill publish` wrote.")],
    output: Annotated[
        Path | None, typer.Option(help="A new or empty directory (default: models/NAME; for data, datasets/NAME).")
    ] = None,
) -> None:
    """Check every file of a published model or data set and copy it.

    The model then makes the same sounds, byte for byte, as where it was published. To download one first: `hf download USER/NAME
    --local-dir DIRECTORY`.
    """
    from soundmill.publishing import directory as published

    data = published.is_data(directory)
    target = output or Path("datasets" if data else "models") / directory.resolve().name
    for path in published.pull(directory, target):
        terminal.say(path)
    checkpoint = target / published.CHECKPOINT
    if data:
        use = f'datasets.load_dataset("{target}")'
    elif published.is_component(checkpoint):
        use = f"soundmill params FAMILY.autoencoder.weights.start_from={checkpoint} (a vocoder: vocoder.weights.start_from)"
    else:
        use = f"soundmill generate --checkpoint {checkpoint}"
    terminal.say(f"try it: {use}", error=True)
