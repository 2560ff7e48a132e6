"""Train the family on latents."""

from pathlib import Path
from typing import Any

from torch import nn

from soundmill.models.components.unet1d.prior import training
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.preparing import guided_passes
from soundmill.models.rave.model import FAMILY, Rave
from soundmill.models.rave.params import SamplingParams, TrainParams


def prepare(params: TrainParams, ctx: Any, inputs: Path, parts: Path, catalog: Path, start: Rave | None) -> Prepared:
    return training.prepare(Rave, params, ctx, inputs, catalog, start)


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: nn.Module, labels: int) -> Rehearsal:
    """See models/family.py; the codec's single pass counts as one of the network's.

    All latents are kept here: fidelity leaves some out after the codec is trained.
    """
    return training.rehearse(document, FAMILY, params, net, labels, guided_passes(sampling, params.condition != "none") + 1)
