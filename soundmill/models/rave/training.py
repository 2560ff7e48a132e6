"""Train the family on latents."""

from functools import partial

from soundmill.models.components.unet1d.prior import training
from soundmill.models.rave.model import Rave

prepare, rehearse = partial(training.prepare, Rave), partial(training.rehearse, Rave)
