"""Train HiFi-GAN on the training clips.

Losses, sizes and rates are those of HiFi-GAN (Kong, Kim & Bae 2020, arXiv:2010.05646).
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from soundmill.models.components.hifigan.params import HifiGanParams
from soundmill.models.components.hifigan.vocoder import HifiGan, build_vocoder, load, synthesise
from soundmill.models.components.vocoder_adversary import VocoderModule, convolutions, with_norms, without_norms
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.models.components.wave_discriminators import Discriminators
from soundmill.training.fitting import Fitted


def train(params: HifiGanParams, trainer: VocoderTrainer) -> tuple[HifiGan, Fitted, dict[str, Any]]:
    """The trained vocoder, its training, and facts."""
    weights, spec = params.weights, trainer.spec
    torch.manual_seed(weights.seed)
    build = partial(build_vocoder, params.network, spec.n_mels, spec.sample_rate)
    net = reinitialised(build())
    model = HifiGan(params.network, spec, net)
    started_from = trainer.start(model, load)
    with_norms(net)
    module = VocoderModule(weights, net, build, spec, synthesise, Discriminators(weights.discriminator_width))
    fitted, facts = trainer.train(module, model, started_from)
    without_norms(net).eval()
    return model, fitted, facts


def reinitialised(net: nn.Module) -> nn.Module:
    """Initialise with torch's defaults: transformers' scale suits 512 channels, and a narrow network would start silent."""
    for layer in convolutions(net):
        layer.reset_parameters()
    return net
