"""Training of a U-Net along a path, v-diffusion's unless `params.path` says another, with noise levels uniform in [0, 1]."""

from torch import Tensor, nn

from soundmill.diffusion.deviation import Deviation, normalised
from soundmill.diffusion.paths import PATHS, Net, error
from soundmill.training.module import TrainingModule
from soundmill.training.params import TrainingParams


class VelocityModule(TrainingModule):
    """Training whose `loss` is `v_loss` of a network and its targets."""

    def __init__(self, net: nn.Module, params: TrainingParams, steps: int, accumulate: int = 1, sigma_data: Deviation = 1.0):
        super().__init__(net, params, steps, accumulate)
        self.sigma_data, self.path = sigma_data, PATHS[getattr(params, "path", "v")]

    def v_loss(self, net: Net, x0: Tensor, step: int) -> Tensor:
        level, noise = self.uniform(len(x0), self.rng("level", step)), self.noise_like(x0, self.rng("noise", step))
        return error(self.path, net, normalised(x0, self.sigma_data), level, noise).square().mean()
