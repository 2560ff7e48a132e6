"""v-diffusion training of a U-Net, with noise levels uniform in [0, 1]."""

from torch import Tensor, nn

from soundmill.diffusion import velocity
from soundmill.diffusion.objectives import Net
from soundmill.training.module import TrainingModule
from soundmill.training.params import TrainingParams


class VelocityModule(TrainingModule):
    """Training whose `loss` is `v_loss` of a network and its targets."""

    def __init__(
        self, net: nn.Module, params: TrainingParams, steps: int, accumulate: int = 1, sigma_data: velocity.Deviation = 1.0
    ):
        super().__init__(net, params, steps, accumulate)
        self.sigma_data = sigma_data

    def v_loss(self, net: Net, x0: Tensor, step: int) -> Tensor:
        level = self.uniform(len(x0), self.rng("level", step))
        return velocity.loss(net, x0, level, self.noise_like(x0, self.rng("noise", step)), self.sigma_data)
