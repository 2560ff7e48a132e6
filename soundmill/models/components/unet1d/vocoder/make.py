"""Make the diffusion vocoder for its stage."""

from pathlib import Path
from typing import Any

import torch

from soundmill.models.components.making import MadeComponent
from soundmill.models.components.unet1d.vocoder import DiffusionVocoderParams, vocoder
from soundmill.models.components.unet1d.vocoder.vocoder import DiffusionVocoder, VocoderModule, VocoderNet
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.models.components.waves.source import wave_deviation
from soundmill.training.device import use_threads


def make(params: DiffusionVocoderParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    trainer = VocoderTrainer.of(params, ctx, clips, mels, catalog)
    use_threads(params.hardware.threads)
    torch.manual_seed(params.weights.seed)
    net = VocoderNet(params.network, trainer.spec)
    model = DiffusionVocoder(params.network, params.sampling, trainer.spec, net)
    started_from = trainer.start(model, vocoder.load, kept=("sigma_data",))
    if params.weights.unit_variance and not started_from:
        model.sigma_data = wave_deviation(trainer.training_pairs().waves, "vocoder.weights.unit_variance")
    module = VocoderModule(net, params.weights, params.weights.steps, sigma_data=model.sigma_data)
    fitted, facts = trainer.train(module, model, started_from)
    net.eval()
    return trainer.result(model, facts, fitted)
