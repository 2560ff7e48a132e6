"""Train the family on latents."""

from pathlib import Path
from typing import Any

from soundmill.models.components.unet1d.prior import training
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_sections
from soundmill.models.rave import model as models
from soundmill.models.rave.model import FAMILY, Rave
from soundmill.models.rave.params import GenerateParams, TrainParams


def prepare(params: TrainParams, ctx: Any, inputs: Path, parts: Path, catalog: Path, start: Rave | None) -> Prepared:
    """Reads autoencoder/ and latents/ in `inputs`."""
    return training.prepare(Rave, params, ctx, inputs, catalog, start)


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py; the codec's single pass counts as one of the network's. All latents are kept here."""
    _, autoencoder, frames = models.read(document)
    params, _, sampling = read_sections(document, FAMILY, TrainParams, GenerateParams)
    guided = sampling.guidance_scale != 1 and params.condition != "none"
    passes = sampling.num_steps * (1 + guided) + 1
    return training.rehearse(Rave, params, autoencoder.network.latent_channels, frames, num_labels, passes)
