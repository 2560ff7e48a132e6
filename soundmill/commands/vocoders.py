"""The command that converts log-mels to sounds with a vocoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soundmill import terminal
from soundmill.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from soundmill.audio.mel import MelSpec
    from soundmill.models.vocoding import LogMel

app = typer.Typer()


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
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Number of steps, evenly spaced over DiffWave's training timesteps."),
    ] = None,
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
    from soundmill.models import vocoding

    if path.is_dir() and any(path.rglob("*.parquet")):
        vocoder = vocoding.load(checkpoint, log_mels.read_spec(path), steps, fast)
        log_mels_read = (
            vocoding.LogMel(manifest.check_clip_id(clip_id), values) for clip_id, values in log_mels.iterate_log_mels(path)
        )
    else:
        vocoder = vocoding.load(checkpoint, None, steps, fast)
        log_mels_read = (_log_mel(file, vocoder.spec) for file in _files(path, output))
    made_by = MadeBy(f"vocoder {hashing.tree_digest(checkpoint)}", CHANGED)  # of a log-mel, which may be a recording's
    paths, timing = vocoding.write_sounds(vocoder, log_mels_read, output, made_by)
    for written in paths:
        terminal.say(written)
    terminal.say(
        f"real-time factor {timing.real_time_factor:.3g}: {timing.sound:.1f} s of sound in {timing.work:.1f} s, "
        f"{1 / timing.real_time_factor:.3g} times real time"
    )


def _files(path: Path, output: Path) -> list[Path]:
    """The chosen log-mels and recordings; UserError if results would overwrite them or each other."""
    from soundmill.corpora.inventory import MEDIA

    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in MEDIA | {".npy"})
        if not files:
            raise UserError(f"{path}: no log-mel (.npy) and no recording in this folder; give another folder, or a file")
    stems = [file.stem for file in files]
    for file in files:
        if stems.count(file.stem) > 1:
            raise UserError(f"{path}: several files are named {file.stem}, and so would be their results; rename one")
        if (output / f"{file.stem}.wav").resolve() == file.resolve():
            raise UserError(f"{file}: its result would overwrite it; choose another --output")
    return files


def _log_mel(file: Path, spec: MelSpec) -> LogMel:
    from soundmill.audio.mel import log_mel_of_blocks
    from soundmill.audio.resample import resample_blocks
    from soundmill.decoding import decode
    from soundmill.models import vocoding

    if file.suffix.lower() == ".npy":
        return vocoding.read_log_mel(file, spec)

    def blocks() -> Iterator[np.ndarray]:
        rate, decoded = decode.decode_blocks(file, decode.MAX_SECONDS)
        return resample_blocks(decoded, rate, spec.sample_rate)

    try:
        values, num_samples = log_mel_of_blocks(blocks, spec)
    except decode.DecodeError as error:
        raise UserError(f"{file}: {error.reason} {error.detail}") from None
    return vocoding.LogMel(file.stem, values, num_samples)
