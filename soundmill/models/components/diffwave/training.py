"""Train DiffWave's net to tell the noise in crops of waves, given their log-mels (Kong et al. 2021, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from soundmill.audio.mel import MelSpec
from soundmill.diffusion.objectives import Net, diffuse
from soundmill.diffusion.schedules import alpha_sigma
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.diffwave.params import NoiseParams, WeightsParams
from soundmill.models.components.diffwave.vocoder import alpha_bar_of, conditioner
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule


class DiffWaveModule(TrainingModule):
    """A batch: crops of waves and their log-mels."""

    def __init__(self, params: WeightsParams, net: DiffWaveNet, noise: NoiseParams, spec: MelSpec):
        super().__init__(net, params, params.steps)
        self.spec, self.table = spec, alpha_bar_of(noise)

    def loss(self, step: int, batch: Batch) -> Tensor:
        log_mels, waves = batch.values
        rng = self.rng("noise", step)
        t = torch.randint(len(self.table), (len(waves),), generator=rng, device=self.device)
        noise = torch.empty_like(waves).normal_(generator=rng)[:, None]
        mel = conditioner(log_mels.float(), self.spec)
        return noise_loss(lambda xt, t: self.net(xt, t, mel), self.table, waves[:, None], t, noise, self.params.loss).mean()


def noise_loss(net: Net, table: Tensor, x0: Tensor, t: Tensor, noise: Tensor, kind: str) -> Tensor:
    """Error [B] of the noise that `net(xt, t)` predicts, `l1` or `l2`; x0, noise [B, 1, T], t [B] whole, table: alpha_bar [T].

    A net that predicts none has an l1 of √(2/π) in the mean.
    """
    predicted = net(diffuse(x0, noise, *alpha_sigma(table, t, x0.ndim)), t.float())
    error = (predicted.float() - noise).abs()
    return (error if kind == "l1" else error.square()).flatten(1).mean(1)
