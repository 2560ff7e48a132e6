"""Make HiFi-GAN for its stage: train it on the training clips, or load it."""

from pathlib import Path
from typing import Any

from soundmill import terminal
from soundmill.models.components.contracts import MadeComponent
from soundmill.models.components.hifigan import pretrained, training
from soundmill.models.components.hifigan.params import HifiGanParams
from soundmill.models.components.loaded import LICENCE
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.training.device import use_threads


def make(params: HifiGanParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    trainer, weights = VocoderTrainer.of(params, ctx, clips, mels, catalog), params.weights
    use_threads(params.hardware.threads)
    if weights.kind == "train":
        model, fitted, facts = training.train(params, trainer)
    else:
        fitted = None
        model, facts = pretrained.load(weights, params.network, trainer.spec, ctx.home, ctx.digests)
        terminal.say(f"{ctx.name}: {LICENCE}")
    return trainer.result(model, facts, fitted)
