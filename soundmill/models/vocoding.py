"""Turn log-mels from any source into sound with a vocoder of any kind."""

import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from soundmill.audio.flac import write_wav_blocks
from soundmill.audio.mel import MelSpec
from soundmill.audio.tags import MadeBy
from soundmill.diffusion.solvers import spread_betas
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.components import registry as components
from soundmill.models.components.contracts import Vocoder, check_vocoder_spec
from soundmill.models.components.diffwave import SamplingParams
from soundmill.models.components.diffwave.vocoder import DiffWave, alpha_bar_of
from soundmill.models.family import family_of, is_checkpoint, use_weights
from soundmill.models.generation import make_directory
from soundmill.training.device import pick_device

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


def load(directory: Path, spec: MelSpec | None, steps: int | None, fast: bool) -> Vocoder:
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
    family = family_of(directory)
    model = registry.family(family).load(directory)
    use_weights(model, directory, model.params.use)
    vocoder = getattr(model, "vocoder", None)
    if vocoder is None:
        raise UserError(f"{directory}: this checkpoint of the family {family!r} has no vocoder; name another directory")
    if spec:
        check_vocoder_spec(str(directory), vocoder.spec.model_dump(), spec)
    return vocoder


def read_log_mel(path: Path, spec: MelSpec) -> LogMel:
    """The log-mel in a `.npy` file; UserError if it does not fit `spec`."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
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
    make_directory(output)
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
