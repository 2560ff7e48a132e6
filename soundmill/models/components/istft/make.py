"""Make the vocoder with an inverse STFT: train it on the training clips, or load it."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from soundmill.models.components.contracts import MadeComponent
from soundmill.models.components.istft import published, training, vocoder
from soundmill.models.components.istft.params import IstftParams
from soundmill.models.components.istft.vocoder import Istft
from soundmill.models.components.loaded import LoadedParams
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.training.device import use_threads


def make(params: IstftParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    trainer, weights = VocoderTrainer.of(params, ctx, clips, mels, catalog), params.weights
    spec = trainer.spec
    use_threads(params.hardware.threads)
    if isinstance(weights, LoadedParams):
        fitted = None
        model, facts = published.load(weights, params.network, spec, ctx.home, ctx.digests)
    else:
        torch.manual_seed(weights.seed)
        build = partial(vocoder.build, params.network, spec)
        model = Istft(params.network, spec, build(), params.sampling)
        started_from = trainer.start(model, vocoder.load)
        if params.sampling:
            module = training.LikelihoodModule(weights, model.net, spec)
        else:
            module = training.against_discriminators(weights, model.net, build, spec)
        fitted, facts = trainer.train(module, model, started_from)
        model.net.eval()
    return trainer.result(model, facts, fitted)
