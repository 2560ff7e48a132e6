"""Train the family on latents."""

from pathlib import Path
from typing import Any

from torch import nn

from soundmill.models.components.unet1d.prior import training
from soundmill.models.diffusion_ae.model import FAMILY, DiffusionAE
from soundmill.models.diffusion_ae.params import SamplingParams, TrainParams
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.preparing import guided_passes


def prepare(params: TrainParams, ctx: Any, inputs: Path, parts: Path, catalog: Path, start: DiffusionAE | None) -> Prepared:
    return training.prepare(DiffusionAE, params, ctx, inputs, catalog, start)


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: nn.Module, labels: int) -> Rehearsal:
    """See models/family.py; a sound needs the steps of the latents plus those of the larger decoder."""
    passes = guided_passes(sampling, params.condition != "none") + sampling.decoding.num_steps
    return training.rehearse(document, FAMILY, params, net, labels, passes)
