"""Train DiffWave to predict the noise in crops of waves (Kong et al. 2021, algorithm 1)."""

import torch
from torch import Tensor

from soundmill.audio.mel import MelSpec
from soundmill.diffusion.paths import Discrete, Net, error
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.diffwave.params import NoiseParams
from soundmill.models.components.diffwave.vocoder import alpha_bar_of, conditioner
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule
from soundmill.training.params import TrainingParams


class DiffWaveModule(TrainingModule):
    """A batch: log-mels [b, n_mels, frames] of `spec` and their waves [b, T]; or waves [b, 1, T], and label weights or vectors of
    captions, if there are.

    With `prior: mel` these waves are whitened (prior.py); others are divided by `sigma_data`. `params` are `TrainingParams` with
    a `loss`.
    """

    def __init__(
        self,
        params: TrainingParams,
        net: DiffWaveNet,
        noise: NoiseParams,
        steps: int,
        spec: MelSpec | None = None,
        sigma_data: float = 1.0,
    ):
        super().__init__(net, params, steps)
        self.spec, self.sigma_data = spec, sigma_data
        self.register_buffer("table", alpha_bar_of(noise), persistent=False)

    def loss(self, step: int, batch: Batch) -> Tensor:
        if self.spec:
            log_mels, waves = batch.values
            x0, condition = waves[:, None], conditioner(log_mels.float(), self.spec)
        else:
            x0, condition = (*batch.values, None)[:2]
        x0, rng = x0 / self.sigma_data, self.rng("noise", step)
        t = self.share(torch.randint(len(self.table), (len(x0) * self.world_size,), generator=rng, device=self.device))
        noise = self.noise_like(x0, rng)
        return noise_loss(lambda xt, t: self.net(xt, t, condition), self.table, x0, t, noise, self.params.loss).mean()


def noise_loss(net: Net, table: Tensor, x0: Tensor, t: Tensor, noise: Tensor, kind: str) -> Tensor:
    """Error [B] of the noise that `net(xt, t)` predicts, `l1` or `l2`; x0, noise [B, 1, T], t [B] whole, table: alpha_bar [T].

    Predicting zero gives a mean l1 of √(2/π).
    """
    errors = error(Discrete(table), lambda xt, t: net(xt, t.float()), x0, t, noise).abs()
    return (errors if kind == "l1" else errors.square()).flatten(1).mean(1)
