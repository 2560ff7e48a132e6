"""Make DiffWave for its stage."""

from pathlib import Path
from typing import Any

import torch

from soundmill.audio import mel
from soundmill.models.components.diffwave import DiffWaveParams, vocoder
from soundmill.models.components.diffwave.vocoder import DiffWave, DiffWaveModule, DiffWaveNet
from soundmill.models.components.making import MadeComponent
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.training.device import use_threads


def make(params: DiffWaveParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    level = vocoder.whitened if params.noise.prior == "mel" else mel.levelled
    trainer = VocoderTrainer.of(params, ctx, clips, mels, catalog, level)
    vocoder.schedule(params.noise, params.sampling)  # raises before the training if they do not fit
    use_threads(params.hardware.threads)
    torch.manual_seed(params.weights.seed)
    net = DiffWaveNet(params.network, trainer.spec)
    model = DiffWave(params.network, params.noise, params.sampling, trainer.spec, net)
    started_from = trainer.start(model, vocoder.load)
    module = DiffWaveModule(params.weights, net, params.noise, params.weights.steps, trainer.spec)
    fitted, facts = trainer.train(module, model, started_from)
    net.eval()
    return trainer.result(model, facts, fitted)
