"""Make MelGAN for its stage: train it on the training clips."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soundmill.models.components.making import MadeComponent
from soundmill.models.components.melgan import MelGanParams, vocoder
from soundmill.models.components.melgan.vocoder import MelGan, MelGanNet
from soundmill.models.components.vocoder_adversary import (
    Discriminators,
    VocoderModule,
    with_norms,
    without_norms,
)
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.training.device import use_threads
from soundmill.training.module import hinge_discriminator_loss, hinge_generator_loss


def make(params: MelGanParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    """Train with hinge, feature matching and optional log-mel losses, and three scale discriminators (Kumar et al. 2019, 2.3)."""
    trainer, weights = VocoderTrainer.of(params, ctx, clips, mels, catalog), params.weights
    use_threads(params.hardware.threads)
    torch.manual_seed(weights.seed)
    build = partial(MelGanNet, params.network, trainer.spec.n_mels)
    net = build()
    model = MelGan(params.network, trainer.spec, net)
    started_from = trainer.start(model, vocoder.load)
    with_norms(net)
    discriminators = Discriminators(weights.discriminator_width, periods=())
    losses = hinge_discriminator_loss, hinge_generator_loss
    fitted, facts = trainer.train(
        VocoderModule(weights, net, build, trainer.spec, _synthesise, discriminators, *losses), model, started_from
    )
    without_norms(net).eval()
    return trainer.result(model, facts, fitted)


def _synthesise(net: nn.Module, log_mel: Tensor, hop_length: int) -> Tensor:
    return net(log_mel)
