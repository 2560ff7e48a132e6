"""Commands that pass recordings through a trained model: reconstruct, transfer, restyle, inpaint, upsample, interpolate, vocode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soundmill import terminal
from soundmill.commands.models import Checkpoint, FamilyName, Labels, RandomSeed, Settings, checkpoint_of
from soundmill.commands.project import Project, say_paths
from soundmill.errors import UserError
from soundmill.params import MAX_SEED, refuse

if TYPE_CHECKING:
    import numpy as np

    from soundmill.audio.mel import MelSpec
    from soundmill.audio.pieces import Sound
    from soundmill.models.transforming import LogMel, Spans

app = typer.Typer()

NUMBER = r"(\d{1,6}(?:\.\d{0,12})?)"
SPAN = f"{NUMBER}:(?:{NUMBER}|end)"
Files = Annotated[
    list[Path],
    typer.Argument(
        help="Recordings of up to two hours, in any format that ffmpeg reads. They are resampled to the model's rate; if their "
        "channels differ from the model's, they are mixed to mono, and duplicated for stereo. Silence is allowed; non-finite "
        "samples are an error."
    ),
]
Output = Annotated[Path, typer.Option(help="Directory for the WAV files and the spectrograms.")]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="Target sound: a caption, or labels.")]


@app.command()
def reconstruct(
    files: Files,
    family: FamilyName = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Output = Path("reconstructed"),
    project: Project = None,
) -> None:
    """Pass recordings through a trained model's representation and back: the upper bound of its quality.

    Writes each as FILE.wav at the model's rate and channels, its input as FILE-input.wav, and a picture of both.
    """
    directory, home = checkpoint_of(checkpoint, family, project)
    from soundmill.models import transforming

    say_paths(transforming.reconstruct(directory, _read(files, output), output, home, settings or []))


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
            help="Change a latent: DIM=VALUE sets it, DIM=+VALUE adds to it, DIM=*VALUE multiplies it; repeatable. Latent 0 has "
            "the largest variance."
        ),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Allow running a .ts file: it is a program by someone else.")] = False,
    sample_rate: Annotated[int | None, typer.Option(min=1000, help="Sample rate of a .ts file that does not store it.")] = None,
    seed: RandomSeed = 0,
    output: Output = Path("transferred"),
) -> None:
    """Give recordings the timbre of a RAVE codec's training sounds, by encoding and decoding them.

    Writes each as FILE.wav (16 bits) at the codec's rate, mono, its input as FILE-input.wav, and a picture of both.
    """
    from soundmill.models import live, transforming

    edits = latent or []
    source = live.read(checkpoint, edits, trust, sample_rate, seed)
    say_paths(transforming.transfer(source, _read(files, output), output, checkpoint=checkpoint.name, latent=edits, seed=seed))


@app.command()
def restyle(
    files: Files,
    amount: Annotated[
        float,
        typer.Option(min=0, max=1, help="Most noise to add: 0: none; 1: keep only length, and loudness except in wave models."),
    ] = 0.5,
    prompt: Prompts = None,
    label: Labels = None,
    seed: RandomSeed = 0,
    family: FamilyName = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Output = Path("restyled"),
    project: Project = None,
) -> None:
    """Make recordings sound like a model's training sounds: noise is added, and the model removes it.

    Recordings longer than the model's sounds are processed in crossfaded windows; shorter ones keep their length. Writes each as
    FILE.wav (16 bits) at the model's rate and channels, its input as FILE-input.wav, and a picture.
    """
    refuse(settings, "amount", instead="--amount")
    directory, home = checkpoint_of(checkpoint, family, project)
    from soundmill.models import transforming

    request = transforming.Prompting(prompt or [], seed, label or [])
    say_paths(transforming.restyle(directory, _read(files, output), request, output, home, [*(settings or []), f"amount={amount}"]))


@app.command()
def inpaint(
    files: Files,
    keep: Annotated[
        str,
        typer.Option(
            help="Seconds to keep, as `0:1.2,2:end`, or a text file with a start and an end on each line, like Audacity's labels; "
            "everything else is regenerated."
        ),
    ],
    prompt: Prompts = None,
    label: Labels = None,
    seed: RandomSeed = 0,
    family: FamilyName = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Output = Path("inpainted"),
    project: Project = None,
) -> None:
    """Regenerate parts of recordings to fit what is kept. `--set resamples=3` takes longer and gives smoother joins.

    Kept parts are unchanged, bit for bit in a 16-bit recording at the model's rate and channels. Recordings longer than the model's
    sounds are processed in windows, each continuing the one before; a kept part beyond a recording's end is an error.
    Writes each as FILE.wav (16 bits) at the model's rate and channels, its input as FILE-input.wav, and a picture.
    """
    refuse(settings, "keep", instead="--keep")
    spans = parse_spans(keep)
    directory, home = checkpoint_of(checkpoint, family, project)
    from soundmill.models import transforming

    request = transforming.Prompting(prompt or [], seed, label or [])
    say_paths(transforming.inpaint(directory, _read(files, output), spans, request, output, home, settings or []))


@app.command()
def upsample(
    files: Files,
    family: Annotated[str | None, typer.Option(help="Model family, from `soundmill families`.")] = "upsampler",
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Output = Path("upsampled"),
    project: Project = None,
) -> None:
    """Extend the bandwidth of recordings to a model's sample rate: it generates the band that they lack.

    The model sets the ratio (`upsampler.train.factor`); in a recording with more bandwidth than that, the upper band is replaced.
    Recordings longer than the model's sounds are processed in crossfaded windows. Writes each as FILE.wav (16 bits) at the
    model's rate and channels, the input, plainly resampled, as FILE-input.wav, and a picture of both.
    """
    directory, home = checkpoint_of(checkpoint, None if checkpoint else family, project)
    from soundmill.models import transforming

    say_paths(transforming.upsample(directory, _read(files, output), output, home, settings or []))


@app.command()
def interpolate(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="A seed (the first sound of `generate --seed`) or a recording.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="A seed or a recording, like FIRST.")],
    steps: Annotated[int, typer.Option(min=2, max=100, help="Number of sounds, including both ends.")] = 8,
    amount: Annotated[
        float | None, typer.Option(min=0, max=1, help="Amount of noise added to mixed recordings, as in `restyle` (default: 0.5).")
    ] = None,
    prompt: Prompts = None,
    label: Labels = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of that noise (default: 0).")] = None,
    family: FamilyName = None,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    output: Output = Path("interpolated"),
    project: Project = None,
) -> None:
    """Interpolate between two sounds: from seed to seed, or from recording to recording.

    Recordings longer than the model's sounds are cut to their beginning. Writes 00.wav (FIRST) to the last one (SECOND), and a
    picture of all.
    """
    directory, home = checkpoint_of(checkpoint, family, project)
    from soundmill.decoding import decode
    from soundmill.models import transforming

    ends, sounds, more, seeds = (first, second), [], [], (seed or 0, seed or 0)
    numbers = [end for end in ends if re.fullmatch(r"\d{1,100}", end)]
    if len(numbers) == 1 and not Path(numbers[0]).exists():
        raise UserError(f"interpolate {first} {second}: give two seeds or two recordings, not one of each")
    paths = [] if len(numbers) == 2 else [Path(end) for end in ends]
    _check_results(paths, [output / f"{step:02d}.wav" for step in range(steps)])
    if not paths:
        if amount is not None or seed is not None:
            raise UserError("--amount and --seed are for recordings: between seeds no noise is added; leave them out")
        seeds = int(first), int(second)
        if max(seeds) > MAX_SEED:
            raise UserError(f"interpolate {first} {second}: a seed is at most {MAX_SEED}")
    else:
        sounds, more = [(path.name, decode.open_sound(path)) for path in paths], [f"amount={0.5 if amount is None else amount}"]
        refuse(settings, "amount", instead="--amount")
    prompting = transforming.Prompting(prompt or [], seed or 0, label or [])
    say_paths(transforming.interpolate(directory, seeds, sounds, steps, prompting, output, home, [*(settings or []), *more]))


@app.command()
def vocode(
    path: Annotated[
        Path,
        typer.Argument(
            help="A log-mel (.npy: n_mels × frames, natural logarithm), a recording in any format that ffmpeg reads, a folder of "
            "either, or a directory of the pipeline's spectrograms."
        ),
    ],
    checkpoint: Annotated[Path, typer.Option(help="Directory of a vocoder (data/tango/vocoder), or a checkpoint with one.")],
    fast: Annotated[bool, typer.Option("--fast", help="Use DiffWave's six published steps.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of steps, evenly spaced over DiffWave's timesteps.")] = None,
    output: Annotated[Path, typer.Option(help="Directory for the WAV files.")] = Path("vocoded"),
) -> None:
    """Make sounds from log-mels with a vocoder, and print how long that takes; a recording's log-mel is computed first.

    Without --fast and --steps DiffWave uses the steps stored in its directory.
    """
    if fast and steps is not None:
        raise UserError("--fast and --steps exclude each other; give one")
    from soundmill import hashing, manifest
    from soundmill.audio import log_mels
    from soundmill.audio.tags import CHANGED, MadeBy
    from soundmill.models import transforming

    def of_clip(clip_id: str, values: np.ndarray) -> LogMel:
        _check_results([], [output / f"{manifest.check_clip_id(clip_id)}.wav"])
        return transforming.LogMel(clip_id, values)

    if path.is_dir() and any(path.rglob("*.parquet")):
        vocoder = transforming.load_vocoder(checkpoint, log_mels.read_spec(path), steps, fast)
        log_mels_read = (of_clip(*row) for row in log_mels.iterate_log_mels(path))
    else:
        vocoder = transforming.load_vocoder(checkpoint, None, steps, fast)
        log_mels_read = (_log_mel(file, vocoder.spec) for file in _files(path, output))
    made_by = MadeBy(f"vocoder {hashing.tree_digest(checkpoint)}", CHANGED)  # of a log-mel, which may be a recording's
    paths, timing = transforming.write_sounds(vocoder, log_mels_read, output, made_by)
    say_paths(paths)
    terminal.say(
        f"real-time factor {timing.real_time_factor:.3g}: {timing.sound:.1f} s of sound in {timing.work:.1f} s, "
        f"{1 / timing.real_time_factor:.3g} times real time"
    )


def parse_spans(text: str) -> Spans:
    """`0:1.2,2:end`, or the lines of a file with a start and an end, as seconds."""
    spans = [span.strip() for span in text.split(",")]
    if not all(re.fullmatch(SPAN, span) for span in spans):
        try:
            lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise UserError(
                f"--keep {text[:100]}: neither spans of seconds, as 0:1.2,2:end, nor a readable text file "
                f"({getattr(error, 'strerror', None) or type(error).__name__})"
            ) from None
        # Audacity's labels have tabs, and a second line, of frequencies, after a backslash; there a comma is a decimal point.
        decimal = re.compile(r"\d+(,\d+)?\t\d+(,\d+)?(\t|$)")
        lines = [line.replace(",", "." if decimal.match(line) else " ") for line in lines if not line.startswith("\\")]
        spans = [":".join(line.split()[:2]) for line in lines if line.strip()]
    if not spans:
        raise UserError(f"{text}: has no span; write a start and an end in seconds on each line")
    for span in spans:
        if not re.fullmatch(SPAN, span):
            raise UserError(f"--keep {text[:100]}: {span[:100]!r} is not a span of seconds; write a start and an end")
    ends = [span.split(":") for span in spans]
    return [(float(start), None if end == "end" else float(end)) for start, end in ends]


def _read(files: list[Path], output: Path) -> dict[str, Sound]:
    """Recordings by the stem of their results."""
    _check_results(files, [output / f"{path.stem}{kind}.wav" for path in files for kind in ("", "-input")])
    from soundmill.decoding import decode

    return {path.stem: decode.open_sound(path) for path in files}


def _check_results(files: list[Path], results: list[Path]) -> None:
    """UserError if a result would overwrite one of the files, another result, or a sound that this project did not make."""
    from soundmill.audio import tags

    if repeated := sorted({path.name for path in results if results.count(path) > 1}):
        raise UserError(f"several results would be named {', '.join(repeated)}; rename one, or run each with its own --output")
    outputs = {path.resolve() for path in results}
    for path in files:
        if path.resolve() in outputs:
            raise UserError(f"{path}: a result would overwrite it; choose another --output")
    for path in results:
        if path.exists() and not path.stem.endswith("-input") and not tags.kinds(path):
            raise UserError(f"{path}: is there, and was not made by a model; choose another --output")


def _files(path: Path, output: Path) -> list[Path]:
    from soundmill.corpora.inventory import MEDIA

    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in MEDIA | {".npy"})
        if others := len(list(path.iterdir())) - len(files):
            terminal.say(f"{path}: left out {others} entries, by their names no log-mels (.npy) and no recordings", error=True)
        if not files:
            raise UserError(f"{path}: no log-mel (.npy) and no recording in this folder; give another folder, or a file")
    _check_results(files, [output / f"{file.stem}.wav" for file in files])
    return files


def _log_mel(file: Path, spec: MelSpec) -> LogMel:
    from soundmill.audio.mel import log_mel_of_blocks
    from soundmill.audio.resample import resample_blocks
    from soundmill.decoding import decode
    from soundmill.models import transforming

    if file.suffix.lower() == ".npy":
        return transforming.read_log_mel(file, spec)

    def blocks() -> Iterator[np.ndarray]:
        rate, decoded = decode.decode_blocks(file, decode.MAX_SECONDS)
        return resample_blocks(decoded, rate, spec.sample_rate)

    try:
        values, num_samples = log_mel_of_blocks(blocks, spec)
    except decode.DecodeError as error:
        raise UserError(f"{file}: {error}") from None
    return transforming.LogMel(file.stem, values, num_samples)
