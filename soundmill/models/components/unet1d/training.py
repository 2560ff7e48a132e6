"""Training of a U-Net along a path from sound to noise, with noise levels uniform in [0, 1]."""

from abc import abstractmethod

from torch import Tensor, nn

from soundmill.diffusion.deviation import Deviation, normalised
from soundmill.diffusion.paths import PATHS, Net, error
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule
from soundmill.training.params import TrainingParams


class PathModule(TrainingModule):
    """Training of a network that denoises targets divided by `sigma_data`."""

    def __init__(
        self,
        net: nn.Module,
        params: TrainingParams,
        steps: int,
        accumulate: int = 1,
        sigma_data: Deviation = 1.0,
        path: str = "v",
    ):
        super().__init__(net, params, steps, accumulate)
        self.sigma_data, self.path = sigma_data, PATHS[path]

    @abstractmethod
    def target(self, step: int, batch: Batch) -> tuple[Net, Tensor]:
        """The net as a function of noisy sound and level, given the conditions of a batch; and the batch's sounds."""

    def loss(self, step: int, batch: Batch) -> Tensor:
        net, x0 = self.target(step, batch)
        level, noise = self.uniform(len(x0), self.rng("level", step)), self.noise_like(x0, self.rng("noise", step))
        return error(self.path, net, normalised(x0, self.sigma_data), level, noise).square().mean()
