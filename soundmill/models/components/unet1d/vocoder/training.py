"""Train the vocoder's network on crops of waves and their log-mels."""

from torch import Tensor

from soundmill.models.components.unet1d.training import VelocityModule
from soundmill.training.loader import Batch


class VocoderModule(VelocityModule):
    """A batch: log-mels [b, n_mels, frames] and their waves [b, frames · hop_length]."""

    def loss(self, step: int, batch: Batch) -> Tensor:
        log_mels, waves = batch.values
        return self.v_loss(lambda xt, level: self.net(xt, level, log_mels.float()), waves[:, None], step)
