"""Train the family on latents."""

from functools import partial

from soundmill.models.components.unet1d.prior import training
from soundmill.models.diffusion_ae.model import DiffusionAE

prepare, rehearse = partial(training.prepare, DiffusionAE), partial(training.rehearse, DiffusionAE)
