"""Commands that give recordings to a trained model: reconstruct, transfer, restyle, inpaint, upsample, interpolate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soundmill.commands.models import Checkpoint, FamilyName, Settings, checkpoint_of
from soundmill.commands.project import Project
from soundmill.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from soundmill.audio.pieces import Sound
    from soundmill.models.transforming import Spans

app = typer.Typer()

NUMBER = r"(\d{1,6}(?:\.\d{0,12})?)"
SPAN = f"{NUMBER}:(?:{NUMBER}|end)"
Files = Annotated[
    list[Path],
    typer.Argument(
        help="Recordings in any format that ffmpeg reads, of up to two hours. They are brought to the model's rate, and where they "
        "have other channels than it, their mean is taken, once or for each of two. Silence is a sound as any other; one with "
        "samples that are no numbers is refused."
    ),
]
Output = Annotated[Path, typer.Option(help="Directory for the WAV files and the picture.")]
Prompts = Annotated[
    list[str] | None, typer.Option("--prompt", "--label", help="What it is to sound like: a caption or labels, as the model reads.")
]
RandomSeed = Annotated[int, typer.Option(min=0, help="Same seed, same sounds.")]


@app.command()
def reconstruct(
    files: Files,
    family: FamilyName = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Output = Path("reconstructed"),
    project: Project = None,
) -> None:
    """Send recordings through a trained model's representation and back: what is lost on the way is the best it could ever do.

    Writes each as FILE.wav at the model's rate and channels, what went in beside it as FILE-input.wav, and a picture of both.
    """
    directory, home = checkpoint_of(checkpoint, family, project)
    from soundmill.models import transforming

    _say(transforming.reconstruct(directory, _read(files, output), output, home, settings or []))


@app.command()
def transfer(
    files: Files,
    checkpoint: Annotated[
        Path,
        typer.Option(
            help="A RAVE codec (data/rave/autoencoder), a checkpoint with one (data/models/rave), or a published file (.ts)."
        ),
    ],
    latent: Annotated[
        list[str] | None,
        typer.Option(
            help="Change a latent on the way: DIM=VALUE sets it, DIM=+VALUE adds to it, DIM=*VALUE multiplies it; may be "
            "given several times. Latent 0 varies the most."
        ),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run a .ts file: it is a program, by whoever made it.")] = False,
    sample_rate: Annotated[int | None, typer.Option(min=1000, help="Of a .ts file that does not tell it.")] = None,
    seed: RandomSeed = 0,
    output: Output = Path("transferred"),
) -> None:
    """Give recordings the timbre of the sounds that a RAVE codec was trained on: through its latents and back.

    Writes each as FILE.wav (16 bits) at the codec's rate, mono, what went in beside it as FILE-input.wav, and a picture of both.
    """
    from soundmill.models import live, transforming

    edits = latent or []
    source = live.read(checkpoint, edits, trust, sample_rate, seed)
    _say(transforming.transfer(source, _read(files, output), output, checkpoint=checkpoint.name, latent=edits, seed=seed))


@app.command()
def restyle(
    files: Files,
    amount: Annotated[
        float, typer.Option(min=0, max=1, help="Of noise that a recording takes first: 0 changes nothing, 1 keeps nothing of it.")
    ] = 0.5,
    prompt: Prompts = None,
    seed: RandomSeed = 0,
    family: FamilyName = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Output = Path("restyled"),
    project: Project = None,
) -> None:
    """Make recordings sound like what a model was trained on: noise is added to them, and the model takes it away.

    Recordings that are longer than the model makes go through it in windows, faded into one another; shorter ones stay so long.
    Writes each as FILE.wav (16 bits) at the model's rate and channels, what went in beside it as FILE-input.wav, and a picture.
    """
    directory, home = checkpoint_of(checkpoint, family, project)
    from soundmill.models import transforming

    asked = transforming.Asked(prompt or [], seed)
    _say(transforming.restyle(directory, _read(files, output), asked, output, home, [*(settings or []), f"amount={amount}"]))


@app.command()
def inpaint(
    files: Files,
    keep: Annotated[
        str,
        typer.Option(
            help="Seconds to keep, all else is made anew: `0:1.2,2:end`; or a text file with a start and an end on each line, as "
            "Audacity exports labels."
        ),
    ],
    prompt: Prompts = None,
    seed: RandomSeed = 0,
    family: FamilyName = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Output = Path("inpainted"),
    project: Project = None,
) -> None:
    """Make parts of recordings anew by a model, to go with what is kept. `--set resamples=3` takes longer and joins better.

    What is kept stays as it is, bit for bit in a recording of 16 bits at the model's rate and channels. Recordings that are longer
    than the model makes go through it in windows, each of which goes on from what the one before made; a kept part beyond a
    recording's end is an error.
    Writes each as FILE.wav (16 bits) at the model's rate and channels, what went in beside it as FILE-input.wav, and a picture.
    """
    spans = parse_spans(keep)
    if any(setting.partition("=")[0].strip() == "keep" for setting in settings or []):
        raise UserError("--set keep=…: --keep says what to keep")
    directory, home = checkpoint_of(checkpoint, family, project)
    from soundmill.models import transforming

    asked = transforming.Asked(prompt or [], seed)
    _say(transforming.inpaint(directory, _read(files, output), spans, asked, output, home, settings or []))


@app.command()
def upsample(
    files: Files,
    family: FamilyName = "upsampler",
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Output = Path("upsampled"),
    project: Project = None,
) -> None:
    """Bring recordings of a low sample rate to a model's: they pass through it whole, and it makes the band that they lack.

    By how many times is the model's (`upsampler.train.factor`): of a recording with a higher rate than that, what is above it is
    made anew. Longer recordings than the model makes go through it in windows, faded into one another. Writes each as
    FILE.wav (16 bits) at the model's rate and channels, FILE-input.wav, plainly resampled, beside it, and a picture of both.
    """
    directory, home = checkpoint_of(checkpoint, None if checkpoint else family, project)
    from soundmill.models import transforming

    _say(transforming.upsample(directory, _read(files, output), output, home, settings or []))


@app.command()
def interpolate(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="A seed, as `generate --seed`'s first sound has, or a recording.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="A seed or a recording, as the first is.")],
    steps: Annotated[int, typer.Option(min=2, max=100, help="Sounds, both ends among them.")] = 8,
    amount: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of noise that mixed recordings take first, as `restyle`'s (default: 0.5).")
    ] = None,
    prompt: Prompts = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of that noise: same seed, same sounds (default: 0).")] = None,
    family: FamilyName = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Output = Path("interpolated"),
    project: Project = None,
) -> None:
    """Make sounds on the way from one to another: from seed to seed, or from recording to recording.

    Of recordings that are longer than the model makes it takes the beginning. Writes 00.wav, the first end, to the last one, and a
    picture of all.
    """
    directory, home = checkpoint_of(checkpoint, family, project)
    from soundmill.models import transforming

    ends, sounds, more, seeds = (first, second), [], [], (seed or 0, seed or 0)
    if all(re.fullmatch(r"\d{1,18}", end) for end in ends):
        if amount is not None or seed is not None:
            raise UserError("--amount and --seed are of recordings: from seed to seed no noise is added")
        seeds = int(first), int(second)
    else:
        paths = [Path(end) for end in ends]
        _refuse_overwriting(paths, [output / f"{step:02d}.wav" for step in range(steps)])
        sounds, more = [(path.name, _sound(path)) for path in paths], [f"amount={0.5 if amount is None else amount}"]
    _say(transforming.interpolate(directory, seeds, sounds, steps, prompt or [], output, home, [*(settings or []), *more]))


def parse_spans(text: str) -> Spans:
    """`0:1.2,2:end`, or the lines of a file with a start and an end, as seconds."""
    given = [one.strip() for one in text.split(",")]
    if not all(re.fullmatch(SPAN, one) for one in given):
        try:
            lines = Path(text).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise UserError(
                f"--keep {text[:100]}: no spans of seconds, as 0:1.2,2:end, and no text file that can be read "
                f"({getattr(error, 'strerror', None) or type(error).__name__})"
            ) from None
        given = [":".join(line.replace(",", " ").split()[:2]) for line in lines if line.strip()]
    if not given:
        raise UserError(f"{text}: no span in it; write a start and an end in seconds on each line")
    return [_span(one, text) for one in given]


def _span(text: str, where: str) -> tuple[float, float | None]:
    match = re.fullmatch(SPAN, text)
    if not match:
        raise UserError(f"--keep {where[:100]}: {text[:100]!r} is no span of seconds; write a start and an end")
    return float(match[1]), None if match[2] is None else float(match[2])


def _read(files: list[Path], output: Path) -> dict[str, Sound]:
    """Recordings by the name of their results; what would overwrite one of them, or another's result, is a UserError."""
    results = [output / f"{path.stem}{kind}.wav" for path in files for kind in ("", "-input")]
    repeated = sorted({path.name for path in results if results.count(path) > 1})
    if repeated:
        raise UserError(f"several results would be called {', '.join(repeated)}; give these recordings one at a time")
    _refuse_overwriting(files, results)
    return {path.stem: _sound(path) for path in files}


def _refuse_overwriting(files: list[Path], results: list[Path]) -> None:
    taken = {path.resolve() for path in results}
    for path in files:
        if path.resolve() in taken:
            raise UserError(f"{path}: a result would take its place; name another --output")


def _sound(path: Path) -> Sound:
    """A recording, decoded once to its end: a damaged one is told before anything is written."""
    from soundmill.audio.pieces import Sound
    from soundmill.decoding import decode

    @contextmanager
    def named() -> Iterator[None]:
        try:
            yield
        except decode.DecodeError as error:
            raise UserError(f"{path}: {error.reason} {error.detail}") from None

    def blocks() -> Iterator[np.ndarray]:
        with named():
            yield from map(decode.check_numbers, decode.decode_channels(path, decode.MAX_SECONDS)[2])

    with named():
        rate, channels, first = decode.decode_channels(path, decode.MAX_SECONDS)
        num_samples = sum(len(decode.check_numbers(block)) for block in first)
        if not num_samples:
            raise decode.DecodeError("too short", "no sample")
        return Sound(rate, channels, num_samples, blocks)


def _say(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(path)
