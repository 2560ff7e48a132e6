"""Transform recordings with a checkpoint: reconstruct, restyle, inpaint, upsample, interpolate."""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from soundmill import disk, terminal
from soundmill.audio.flac import write_wav, write_wav_blocks
from soundmill.audio.mel import MelSpec
from soundmill.audio.pieces import Sound, window_starts, windows
from soundmill.audio.tags import CHANGED, GENERATED, MadeBy
from soundmill.audio.tempo import BEATS
from soundmill.diffusion.solvers import spread_betas
from soundmill.errors import UserError
from soundmill.models import live, registry
from soundmill.models.components import registry as components
from soundmill.models.components.contracts import Vocoder, check_vocoder_spec
from soundmill.models.components.diffwave import SamplingParams
from soundmill.models.components.diffwave.vocoder import DiffWave, alpha_bar_of
from soundmill.models.family import Command, Model, Request, Run, is_checkpoint, made_by
from soundmill.models.generation import LONGEST_PROMPT, Loaded, draw, load, natural_tempo, read, running
from soundmill.models.sounds import (
    finite,
    length_in_model_format,
    mask_of,
    of_prompts,
    print_matched_labels,
    read_in_model_format,
    reconstructed,
    spans_of,
    stream_windows,
)
from soundmill.params import refuse
from soundmill.training.device import pick_device
from soundmill.training.seeds import seed_of

SHOWN = 12  # recordings in the figure
COMMENT_SPANS = 20  # in the comment of a WAV

Sounds = Mapping[str, Sound]  # by name
# sound name, blocks [C, n] as the model takes them, length → blocks
Work = Callable[[str, Iterable[Tensor], int], Iterator[Tensor]]
Spans = Sequence[tuple[float, float | None]]  # seconds; None: to the end


@dataclass(frozen=True)
class Prompting:
    """The prompts, the seed and the labels of a transformation; labels are further prompts, but for a model that follows both."""

    prompts: Sequence[str] = ()
    seed: int = 0
    labels: Sequence[str] = ()

    def check(self, model: Model) -> None:
        """UserError if the model cannot follow the prompts; prints the labels that they match."""
        if len(self._requests(model)) > 1:
            raise UserError("this model takes a single caption: give one --prompt")
        print_matched_labels(model, self.prompts, self.labels)

    def request(self, model: Model, name: str = "", start: int | None = None) -> Request:
        """The request for the sound `name`, or for its window that starts at sample `start`."""
        return replace(self._requests(model)[0], seed=seed_of(self.seed, name), start=start)

    def _requests(self, model: Model) -> list[Request]:
        return of_prompts(model, self.prompts, 1, self.seed, self.labels) if self.prompts or self.labels else [Request()]

    @property
    def facts(self) -> dict[str, Any]:
        """For the comment of a WAV, with long prompts shortened (LONGEST_PROMPT)."""
        prompts = ", ".join([*self.prompts, *self.labels])
        return {"seed": self.seed, "prompts": prompts if len(prompts) <= LONGEST_PROMPT else prompts[: LONGEST_PROMPT - 1] + "…"}


def reconstruct(checkpoint: Path | Loaded, sounds: Sounds, output: Path, home: Path, settings: Sequence[str] = ()) -> list[Path]:
    """Encode sounds and decode them again."""

    def work(model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        return reconstructed(model, blocks, length, run)

    return _each(checkpoint, "reconstruct", "reconstructed", work, sounds, output, home, settings)


def restyle(
    checkpoint: Path | Loaded, sounds: Sounds, prompting: Prompting, output: Path, home: Path, settings: Sequence[str] = ()
) -> list[Path]:
    """Add noise to sounds and denoise them; `amount` sets how much."""

    def check(model: Model) -> None:
        prompting.check(model)
        refuse(settings, "keep", "resamples")

    work = partial(_in_windows, lambda model, run, name, start: prompting.request(model, name, start))
    return _each(checkpoint, "restyle", "restyled", work, sounds, output, home, settings, check, **prompting.facts)


def inpaint(
    checkpoint: Path | Loaded,
    sounds: Sounds,
    keep: Spans,
    prompting: Prompting,
    output: Path,
    home: Path,
    settings: Sequence[str] = (),
) -> list[Path]:
    """Regenerate all of each sound except the spans `keep`, whose samples stay unchanged (at the model's rate and channels).

    In a sound longer than the model's length, each window also keeps what the one before made of its first quarter (the last
    window: of more). A span outside a sound is a UserError before anything is written.
    """

    def work(model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        spans = [
            (round(start * model.sample_rate), length if stop is None else round(stop * model.sample_rate)) for start, stop in keep
        ]
        size, previous, done_to = model.num_samples or length, torch.zeros(model.channels, 0), 0
        for start, part in windows(blocks, window_starts(length, size, size // 4), size):
            yield previous[:, : previous.shape[1] - (done_to - start)]
            part = part.clone()
            part[:, : done_to - start] = previous[:, previous.shape[1] - (done_to - start) :]
            within = [(max(0, first - start), max(0, stop - start)) for first, stop in spans]
            kept = mask_of([(0, done_to - start), *within], part.shape[1])
            if not kept.all():
                keeping = replace(run, sampling=run.sampling.model_copy(update={"keep": spans_of(kept)}))
                request = replace(prompting.request(model, name), seed=seed_of(prompting.seed, name, start))
                part = finite(model.transform(part[None], [request], keeping), keeping)[0]
            previous, done_to = part, start + part.shape[1]
        yield previous

    def check(model: Model) -> None:
        refuse(settings, "amount")
        prompting.check(model)
        for name, sound in sounds.items():
            for start, stop in keep:
                if not 0 <= start < (sound.seconds if stop is None else stop) <= sound.seconds:
                    span = f"{start:g}:{'end' if stop is None else format(stop, 'g')}"
                    inside = f"is not within the sound's {sound.seconds:g} s; choose a span inside it that ends after its start"
                    raise UserError(f"{name}: the span {span} {inside}")

    about = {**prompting.facts, "kept_seconds": [list(span) for span in keep[:COMMENT_SPANS]]}
    return _each(checkpoint, "inpaint", "inpainted", work, sounds, output, home, settings, check, **about)


def upsample(checkpoint: Path | Loaded, sounds: Sounds, output: Path, home: Path, settings: Sequence[str] = ()) -> list[Path]:
    """Raise the sample rate of sounds to the model's and generate the missing band."""

    def check(model: Model) -> None:
        low = model.sample_rate / model.params.factor
        for name, sound in sounds.items():
            if sound.sample_rate > low:
                terminal.say(f"{name}: has {sound.sample_rate} Hz; content above {low / 2:g} Hz is replaced")
            elif sound.sample_rate < low:
                terminal.say(
                    f"{name}: has {sound.sample_rate} Hz, the model expects {low:g} Hz: "
                    f"the band from {sound.sample_rate / 2:g} to {low / 2:g} Hz stays empty"
                )

    work = partial(_in_windows, lambda model, run, name, start: Request(seed=seed_of(run.sampling.seed, name), start=start))
    return _each(checkpoint, "upsample", "upsampled", work, sounds, output, home, settings, check)


def interpolate(
    checkpoint: Path | Loaded,
    seeds: tuple[int, int],
    sounds: Sequence[tuple[str, Sound]],
    steps: int,
    prompting: Prompting,
    output: Path,
    home: Path,
    settings: Sequence[str] = (),
) -> list[Path]:
    """Write `steps` sounds that interpolate between two seeds or two named sounds: `00.wav`, `01.wav`, …

    A seed stands for the first sound that `generate_sounds` makes with it. Sounds longer than the model's length are cut.
    """
    model, source_facts = load(checkpoint, "interpolate")
    refuse(settings, "keep", "resamples", *([] if sounds else ["amount"]))
    prompting.check(model)
    prompts, labels = prompting.prompts, prompting.labels
    untold = bool(sounds) and not (prompts or labels)  # recordings need no caption
    ends = [Request(seed=seed) if untold else of_prompts(model, prompts, 1, seed, labels)[0] for seed in seeds]
    shares = [step / (steps - 1) for step in range(steps)]
    waves = None
    if sounds:
        if "amount" not in type(model.params.sampling).model_fields:
            raise UserError("this family cannot interpolate between recordings: give two seeds, such as 1 2")
        both = []
        for _, sound in sounds:
            length = model.num_samples or length_in_model_format(sound, model)
            both.append(next(windows(read_in_model_format(sound, model), [0], length))[1])
        waves = torch.zeros(2, model.channels, max(wave.shape[1] for wave in both))
        for row, wave in zip(waves, both, strict=True):
            row[:, : wave.shape[1]] = wave
    paths = []
    with running(model, home, settings) as run:
        disk.make_directory(output)
        between = {"between": [name for name, _ in sounds] or list(seeds), "seeds": list(seeds)}
        about = {**source_facts, "sampling": run.sampling.model_dump(mode="json"), **between, **prompting.facts}
        maker = made_by(source_facts, CHANGED if sounds else GENERATED)
        loops = registry.family(source_facts["family"]).loops
        for step, wave in enumerate(finite(model.interpolate((ends[0], ends[1]), waves, shares, run), run)):
            paths.append(output / f"{step:02d}.wav")
            comment = json.dumps({**about, "share": shares[step]}, ensure_ascii=False)
            tempo = (natural_tempo(wave.shape[1], model.sample_rate), BEATS) if loops else None
            write_wav(paths[-1], wave.numpy(), model.sample_rate, comment, tempo, maker)
    draw(paths, [f"{share:.0%}" for share in shares], min(4, steps), source_facts["family"], output / "spectrograms.png")
    return paths


def transfer(source: live.Trained | live.Published, sounds: Sounds, output: Path, **facts: Any) -> list[Path]:
    """Timbre transfer: encode and decode sounds with a codec trained on other sounds. `facts` go into the WAV comments."""
    disk.make_directory(output)

    def work(name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        for block in source.stream(blocks, length):
            if not torch.isfinite(block).all():
                raise UserError(f"{name}: the model's output is not finite; use smaller latent edits or another model")
            yield block

    return _write_each(source, work, sounds, output, "transferred", "transfer", facts, MadeBy(source.weights, CHANGED))


def _in_windows(
    request: Callable[[Model, Run, str, int], Request], model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int
) -> Iterator[Tensor]:
    """Transform the sound `name` window by window, each as the `request` for its first sample asks."""

    def window(part: Tensor, start: int) -> Tensor:
        return finite(model.transform(part, [request(model, run, name, start)], run), run)

    return stream_windows(window, blocks, length, model)


def _each(
    checkpoint: Path | Loaded,
    command: Command,
    verb: str,
    work: Callable[[Model, Run, str, Iterable[Tensor], int], Iterator[Tensor]],
    sounds: Sounds,
    output: Path,
    home: Path,
    settings: Sequence[str],
    check: Callable[[Model], None] = lambda model: None,
    **more: Any,
) -> list[Path]:
    """Write for each sound the output `<name>.wav` and the input as the model takes it, `<name>-input.wav`, and a figure of both.

    Returns the paths of the outputs. `check` raises before anything is written; `more` are facts for the WAV comments.
    """
    model, source_facts = load(checkpoint, command)
    check(model)
    with running(model, home, settings) as run:
        disk.make_directory(output)
        facts = {**source_facts, "sampling": run.sampling.model_dump(mode="json"), **more}
        maker = made_by(source_facts, CHANGED)
        return _write_each(model, partial(work, model, run), sounds, output, verb, source_facts["family"], facts, maker)


def _saying_what_is_clipped(blocks: Iterable[Tensor], file: Path) -> Iterator[np.ndarray]:
    peak = 0.0
    for block in blocks:
        wave = block.numpy()
        peak = np.abs(wave).max(initial=peak)
        yield wave
    if peak > 1.01:  # rounding aside
        terminal.say(f"{file}: clipped, as its peak of {20 * math.log10(peak):.1f} dBFS is above full scale", error=True)


def _write_each(
    model: Any, work: Work, sounds: Sounds, output: Path, verb: str, heading: str, facts: Mapping[str, Any], maker: MadeBy
) -> list[Path]:
    """Write the files of `_each` block by block, for any `model` with a sample rate and channels."""
    paths, shown, titles = [], [], []
    for name, sound in sounds.items():
        path, input_path = output / f"{name}.wav", output / f"{name}-input.wav"
        comment = json.dumps({**facts, verb: name}, ensure_ascii=False)
        result = work(name, read_in_model_format(sound, model), length_in_model_format(sound, model))
        for file, blocks, *tags in ((path, result, comment, maker), (input_path, read_in_model_format(sound, model))):
            write_wav_blocks(file, _saying_what_is_clipped(blocks, file), model.sample_rate, model.channels, *tags)
        paths.append(path)
        shown += [input_path, path]
        titles += [name, verb]
    draw(shown[: 2 * SHOWN], titles[: 2 * SHOWN], 2, heading, output / "spectrograms.png")
    return paths


# Betas published with DiffWave (Kong et al. 2021, appendix B) for networks trained on 50 and on 200 timesteps.
FAST, FAST_OF_200 = [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5], [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.7]
READ_SAMPLES = 1 << 18  # per block of the second pass, which sets the level


@dataclass(frozen=True)
class LogMel:
    """Input of a vocoder: values [n_mels, frames], natural logarithms; `num_samples` None: frames · hop_length."""

    name: str
    values: np.ndarray
    num_samples: int | None = None


@dataclass
class Timing:
    """Seconds of sound, and seconds of work to synthesise it."""

    sound: float = 0.0
    work: float = 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of sound."""
        return self.work / self.sound


def load_vocoder(directory: Path, spec: MelSpec | None, steps: int | None, fast: bool) -> Vocoder:
    """The vocoder in a directory or in a family's checkpoint; UserError if its mel spec differs from `spec` (None: any).

    `steps` or `fast` replaces the noise schedule of a DiffWave; UserError for other vocoders.
    """
    vocoder = _of_family(directory, spec) if is_checkpoint(directory) else components.load_vocoder(directory, spec)
    if steps is None and not fast:
        return vocoder
    if not isinstance(vocoder, DiffWave):
        raise UserError(
            f"{directory}: this vocoder makes sound in one step, without a noise schedule; leave --fast and --steps out"
        )
    table = alpha_bar_of(vocoder.noise)
    if steps is not None and steps > len(table):
        raise UserError(f"{directory}: trained on {len(table)} timesteps: --steps {steps} is too many, use at most {len(table)}")
    published = FAST_OF_200 if len(table) == 200 else FAST
    betas = published if fast else spread_betas(table, steps).tolist()
    return replace(vocoder, sampling=SamplingParams(betas=betas, seed=vocoder.sampling.seed))


def _of_family(directory: Path, spec: MelSpec | None) -> Vocoder:
    """The vocoder in the checkpoint of a family."""
    loaded = read(directory)
    vocoder, family = getattr(loaded.model, "vocoder", None), loaded.facts["family"]
    if vocoder is None:
        raise UserError(f"{directory}: this checkpoint of the family {family!r} has no vocoder; name another directory")
    if spec:
        check_vocoder_spec(str(directory), vocoder.spec.model_dump(), spec)
    return vocoder


def read_log_mel(path: Path, spec: MelSpec) -> LogMel:
    """The log-mel in a `.npy` file; UserError if it does not fit `spec`."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as an array ({error}); write it with numpy.save") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        raise UserError(f"{path}: not an array of floating-point numbers; write log-mels with numpy.save")
    if values.ndim != 2 or len(values) != spec.n_mels or not values.shape[1]:
        raise UserError(
            f"{path}: its shape is {values.shape}, the vocoder needs ({spec.n_mels}, frames): n_mels must be {spec.n_mels}; "
            "compute log-mels with the spec in the vocoder's config.json, one sound per file"
        )
    if not np.isfinite(values).all():
        raise UserError(f"{path}: has values that are not finite; compute it again")
    if values.min() >= 0 and values.max() <= 1:
        raise UserError(
            f"{path}: all values lie between 0 and 1, like scaled decibels; the vocoder needs the natural logarithm of mels, "
            "not scaled"
        )
    return LogMel(path.stem, values)


def write_sounds(
    vocoder: Vocoder, log_mels: Iterable[LogMel], output: Path, made_by: MadeBy | None = None
) -> tuple[list[Path], Timing]:
    """Write `NAME.wav` for each log-mel, one after another, with tags; returns the paths and the vocoder's timing."""
    disk.make_directory(output)
    device, paths, timing = pick_device("auto"), [], Timing()
    for log_mel in log_mels:
        start, path = time.perf_counter(), output / f"{log_mel.name}.wav"
        with tempfile.TemporaryFile(dir=output) as scratch:  # the peak is known only at the end
            peak, written = 1.0, 0
            for piece in _pieces(vocoder, log_mel, device):
                if not np.isfinite(piece).all():
                    raise UserError(f"{log_mel.name}: the vocoder's sound is not finite; its weights are damaged: remake it")
                peak, written = max(peak, float(np.abs(piece).max(initial=0))), written + piece.shape[1]
                scratch.write(piece.T.tobytes())
            timing.work += time.perf_counter() - start
            scratch.seek(0)
            read = iter(partial(scratch.read, 4 * len(piece) * READ_SAMPLES), b"")  # of interleaved samples
            blocks = (np.frombuffer(data, np.float32).reshape(-1, len(piece)).T / np.float32(peak) for data in read)
            write_wav_blocks(path, blocks, vocoder.spec.sample_rate, len(piece), made_by=made_by)
        timing.sound += written / vocoder.spec.sample_rate
        paths.append(path)
    return paths, timing


def _pieces(vocoder: Vocoder, log_mel: LogMel, device: torch.device) -> Iterator[np.ndarray]:
    """float32 [C, n] pieces of a sound, cut to its length; only the log-mel is in memory whole."""
    log_mels = torch.tensor(log_mel.values, dtype=torch.float32)[None].to(device)
    left = log_mel.num_samples if log_mel.num_samples is not None else log_mels.shape[2] * vocoder.spec.hop_length
    for piece in vocoder.to(device).pieces(log_mels):
        yield np.ascontiguousarray(piece[0, :, :left].cpu().numpy(), np.float32)
        left = max(0, left - piece.shape[2])
