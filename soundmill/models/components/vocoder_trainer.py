"""Training a vocoder on the corpus's training clips, and measuring it beside Griffin-Lim."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from soundmill import terminal
from soundmill.audio import figures, mel
from soundmill.audio.log_mels import read_spec
from soundmill.audio.mel import MelSpec
from soundmill.audio.tags import CHANGED
from soundmill.errors import UserError
from soundmill.models.catalog import choose_by_hash, read_weights
from soundmill.models.components.contracts import Vocoder, save_vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.log_mels.source import LogMels, gather_log_mels
from soundmill.models.components.making import MadeComponent, fit_crops, size, starting
from soundmill.models.components.waves.source import Pairs, gather_waves
from soundmill.models.samples import Samples
from soundmill.training.device import pick_device
from soundmill.training.fitting import Fitted
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import HeldOut

MEASURED_CLIPS = 16  # held-out clips, at most
SILENCE = 0.1  # nepers above the floor that still count as silence
Level = Callable[[np.ndarray, MelSpec], np.ndarray]
SHOWN_CLIPS = 3


@dataclass(frozen=True)
class VocoderTrainer:
    """A vocoder's parameters (`weights`, `hardware`, Griffin-Lim's), and its training data.

    A `model` below is a `Vocoder` whose `net` is trained.
    """

    params: Any
    ctx: Any
    clips: Path
    mels: Path
    spec: MelSpec
    splits: Mapping[str, Mapping[str, float]]  # split → clip id → weight, as in `Order`
    level: Level

    @classmethod
    def of(cls, params: Any, ctx: Any, clips: Path, mels: Path, catalog: Path, level: Level = mel.levelled) -> Self:
        """`level` makes the wave [T] to train on from a clip's."""
        spec = read_spec(mels)
        params.check_spec(spec)
        return cls(params, ctx, clips, mels, spec, read_weights(catalog), level)

    def start(self, model: Any, load: Callable[[Path, None], Any], kept: Sequence[str] = ()) -> str | None:
        """Print what is trained, and load the weights of `weights.start_from` into `model.net`; returns their digest, or None.

        Copies the attributes `kept`, too. UserError as `params.check_start`.
        """
        weights, spec, ctx = self.params.weights, self.spec, self.ctx
        terminal.say(
            f"{ctx.name}: {len(self.splits['train'])} clips, {size(model.net):,} parameters, {weights.steps} steps of "
            f"{weights.batch_size} crops of {weights.crop_frames * spec.hop_length / spec.sample_rate:g} s"
        )
        if weights.start_from is None:
            return None
        where = self.params.check_start(ctx.home, mel_spec=spec)
        start = load(where, None)
        model.net.load_state_dict(start.net.state_dict())
        for name in kept:
            setattr(model, name, getattr(start, name))
        return starting(where, self.params, ctx)

    def train(self, module: TrainingModule, model: Any, started_from: str | None) -> tuple[Fitted, dict[str, Any]]:
        """Train `module`, whose net is that of `model`; also returns facts for the config."""
        weights, ctx = self.params.weights, self.ctx
        pairs = self.training_pairs()
        valid = choose_by_hash(list(self.splits["valid"]), weights.validate_batches * weights.batch_size)
        unseen = self._pairs(valid) if valid else None
        fitted = fit_crops(
            module,
            pairs,
            unseen and HeldOut(unseen, len(unseen.log_mels)),
            self.splits["train"],
            self.params,
            ctx,
            self._draw(model, (unseen or pairs).log_mels),
            item_seconds=weights.crop_frames * self.spec.hop_length / self.spec.sample_rate,
            started_from=started_from,
        )
        start = {"started_from": started_from} if started_from else {}
        facts = {**fitted.facts, "use": weights.use, "steps": weights.steps, "clips": len(self.splits["train"])}
        return fitted, facts | start

    def result(self, model: Any, facts: Mapping[str, Any], fitted: Fitted | None) -> MadeComponent:
        """The vocoder for its stage to publish; `facts` are for its config, and `fitted` is None if it was loaded."""
        split = "valid" if self.splits["valid"] else "train"
        chosen = choose_by_hash(list(self.splits[split]), MEASURED_CLIPS)
        log_mels = gather_log_mels(self.mels, chosen, self.ctx.scratch)
        ways = {"l1_db": model, "griffin_lim_l1_db": GriffinLim(self.spec, self.params)}
        measured = measure(ways, log_mels, pick_device(self.params.hardware.accelerator))
        metrics = {
            "parameters": size(model.net),
            "measured_clips": len(chosen),
            **{f"{split}_{key}": value for key, value in measured.items()},
        }
        save = partial(save_vocoder, model, source={"kind": self.params.weights.kind, **facts})
        return MadeComponent(save, metrics, self._draw(model, log_mels), fitted)

    def training_pairs(self) -> Pairs:
        """Log-mels and waves of the training clips; UserError if all are silent."""
        pairs = self._pairs(list(self.splits["train"]))
        log_mels, quietest = pairs.log_mels, np.float16(math.log(self.spec.floor)) + SILENCE
        if not any((log_mels.arrays.read(item) > quietest).any() for item in range(len(log_mels))):
            raise UserError(
                f"{self.mels}: all {len(log_mels)} training clips are silent, no band rises above spectrogram floor "
                f"{self.spec.floor:g}: there is nothing to train a vocoder on; check corpus.path, or take Griffin-Lim "
                "(`vocoder=griffin_lim`)"
            )
        return pairs

    def _pairs(self, clip_ids: Sequence[str]) -> Pairs:
        waves = gather_waves(self.clips, clip_ids, self.ctx.scratch / self.level.__name__, partial(self.level, spec=self.spec))
        log_mels = gather_log_mels(self.mels, clip_ids, self.ctx.scratch)
        return Pairs(log_mels, waves, self.params.weights.crop_frames, self.spec)

    def _draw(self, model: Any, log_mels: LogMels) -> Callable[[int], Samples]:
        ways = {"by the vocoder": model, "by Griffin-Lim": GriffinLim(self.spec, self.params)}
        return partial(samples, ways, log_mels, pick_device(self.params.hardware.accelerator))


def measure(vocoders: Mapping[str, Vocoder], log_mels: LogMels, device: torch.device) -> dict[str, float]:
    """Mean absolute log-mel error in dB, by name of the vocoder."""
    errors: dict[str, list[float]] = {key: [] for key in vocoders}
    for item in range(len(log_mels)):
        real = log_mels.arrays.read(item)
        for key, vocoder in vocoders.items():
            fake = _log_mel_of(vocoder, _wave(real, vocoder, device), real.shape[1])
            errors[key].append(float(np.abs(fake - real.astype(np.float32)).mean()))
    decibels = 20 / next(iter(vocoders.values())).spec.power / math.log(10)
    return {key: decibels * float(np.mean(values)) for key, values in errors.items()}


def samples(vocoders: Mapping[str, Vocoder], log_mels: LogMels, device: torch.device, step: int) -> Samples:
    """Log-mels of some clips and of each vocoder's output, and the vocoded sounds."""
    pictures, titles, sounds, named, made = [], [], [], [], []
    for item, clip_id in enumerate(log_mels.arrays.ids[:SHOWN_CLIPS]):
        real = log_mels.arrays.read(item)
        pictures.append(real.astype(np.float32))
        titles.append(clip_id)
        for name, vocoder in vocoders.items():
            wave = _wave(real, vocoder, device)
            pictures.append(_log_mel_of(vocoder, wave, real.shape[1]))
            titles.append(name)
            sounds.append((wave, vocoder.spec.sample_rate))
            named.append(f"{clip_id} {name}")
            made.append(None if isinstance(vocoder, GriffinLim) else CHANGED)
    frames = min(picture.shape[1] for picture in pictures)
    spec = next(iter(vocoders.values())).spec
    columns, heading = 1 + len(vocoders), f"vocoder after {step} steps"
    figure = figures.draw_log_mels(np.stack([picture[:, :frames] for picture in pictures]), titles, spec, columns, heading)
    return Samples(figure, named, sounds, made)


def _wave(log_mel: np.ndarray, vocoder: Vocoder, device: torch.device) -> np.ndarray:
    """The mono wave [T] vocoded from a log-mel [n_mels, frames]."""
    with torch.no_grad():
        return vocoder.to(device).vocode(torch.from_numpy(log_mel.astype(np.float32))[None].to(device))[0].mean(0).cpu().numpy()


def _log_mel_of(vocoder: Vocoder, wave: np.ndarray, frames: int) -> np.ndarray:
    spec = vocoder.spec.model_copy(update={"peak": None})  # so that a wrong level counts as an error
    return mel.log_mel(wave, spec)[:, :frames]
