"""Train Oobleck as a variational autoencoder, by the spectral distance of auraloss; the published codec also had discriminators."""

from typing import Any

import torch
from torch import Tensor, nn

from soundmill.models.components.oobleck.params import TrainedParams
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule


class OobleckModule(TrainingModule):
    """A batch: waves [b, channels, T], encoded, sampled from their posteriors and decoded."""

    def __init__(self, params: TrainedParams, net: nn.Module):
        from auraloss.freq import MultiResolutionSTFTLoss

        super().__init__(net, params, params.steps)
        self.distance = MultiResolutionSTFTLoss(fft_sizes=[2048, 512, 128], hop_sizes=[512, 128, 32], win_lengths=[2048, 512, 128])

    def loss(self, step: int, batch: Batch) -> Tensor:
        (waves,) = batch.values
        waves = waves.float()
        posterior = self.net.encode(waves).latent_dist
        noise = self.noise_like(posterior.mean.float(), self.rng("posterior", step))
        rebuilt = self.net.decode(posterior.mean + posterior.std * noise).sample.float()
        with torch.autocast(waves.device.type, enabled=False):
            return self.distance(rebuilt, waves) + self.params.kl_weight * kl_divergence(posterior)


def kl_divergence(posterior: Any) -> Tensor:
    """KL divergence from the standard normal in nats, summed over the channels of a latent; mean over latents."""
    return 0.5 * posterior.kl().float()
