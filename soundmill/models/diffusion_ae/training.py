"""Train the family on latents."""

from functools import partial
from pathlib import Path
from typing import Any

from soundmill import params as strict
from soundmill.models.components.latents.params import LatentsParams
from soundmill.models.components.unet1d.codec.params import AutoencoderParams
from soundmill.models.components.unet1d.prior import training
from soundmill.models.diffusion_ae.model import FAMILY, DiffusionAE
from soundmill.models.diffusion_ae.params import TrainParams
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_sections


def prepare(params: TrainParams, ctx: Any, inputs: Path, parts: Path, catalog: Path, start: DiffusionAE | None) -> Prepared:
    """Reads autoencoder/ and latents/ in `inputs`."""
    return training.prepare(DiffusionAE, params, ctx, inputs, catalog, start)


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py; a sound needs the steps of the latents plus those of the larger decoder."""
    read = partial(strict.parse_section, document)
    params, _, sampling = read_sections(document, FAMILY, TrainParams)
    autoencoder = read(f"{FAMILY}.autoencoder", AutoencoderParams)
    frames = read(f"{FAMILY}.latents", LatentsParams).num_samples // autoencoder.samples_per_latent
    guided = sampling.guidance_scale != 1 and params.condition != "none"
    passes = sampling.num_steps * (1 + guided) + sampling.decoding.num_steps
    return training.rehearse(DiffusionAE, params, autoencoder.encoder.latent_channels, frames, num_labels, passes)
