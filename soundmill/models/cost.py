"""An estimate of the time to train a family and generate with it on this machine: a few steps of its own loss on noise."""

from __future__ import annotations

import math
from typing import Any

from soundmill import params as strict
from soundmill.models import registry
from soundmill.models.params import FamilyGenerateParams, FamilyTrainParams
from soundmill.training.loop import rehearse

TIMED_STEPS = 3
SOUND_SECONDS = 0.5  # from what a net makes to a wave; small beside its steps


def seconds(family: str, document: dict[str, Any], num_clips: int, num_labels: int) -> float:
    """Seconds of wall time for training on `num_clips` clips and generating after it; the fastest of TIMED_STEPS batches counts.

    By a family's sections in the content of a params.yaml. What other stages make for it (latents, text states) is not in it.
    """
    its = registry.family(family)
    train: FamilyTrainParams = read(document, f"{family}.train", its.train_params)
    generate: FamilyGenerateParams = read(document, f"{family}.generate", its.generate_params)
    rehearsal = its.rehearse(document, num_labels)
    batch = min(rehearse(rehearsal.module, rehearsal.batch, train.hardware, TIMED_STEPS))
    batches = train.steps * rehearsal.module.accumulate if train.steps else math.ceil(train.epochs * num_clips / rehearsal.clips)
    sounds = min(generate.count or num_clips, num_clips)
    forward = batch / 3  # backward costs about twice the forward pass
    looks = 1 + batches // (train.validate_every_steps * rehearsal.module.accumulate) if train.validate_every_steps else 1
    held_out = looks * train.validate_batches * forward
    return batches * batch + held_out + sounds * (rehearsal.passes * forward / train.items + SOUND_SECONDS)


def read(document: dict[str, Any], name: str, model: type[strict.P]) -> strict.P:
    """A section of the content of a params.yaml."""
    return strict.parse(model, strict.section(document, name, "params.yaml"), f"params.yaml: {name}")
