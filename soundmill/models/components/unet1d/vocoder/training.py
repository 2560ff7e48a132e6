"""Train the vocoder's network on crops of waves and their log-mels."""

from torch import Tensor

from soundmill.diffusion.paths import Net
from soundmill.models.components.unet1d.training import PathModule
from soundmill.training.loader import Batch


class VocoderModule(PathModule):
    """A batch: log-mels [b, n_mels, frames] and their waves [b, frames · hop_length]."""

    def target(self, step: int, batch: Batch) -> tuple[Net, Tensor]:
        log_mels, waves = batch.values
        return lambda xt, level: self.net(xt, level, log_mels.float()), waves[:, None]
