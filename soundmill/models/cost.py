"""What a family's training and the generating after it will take on this machine, from a few real steps on noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from soundmill import params as strict
from soundmill.models import registry
from soundmill.models.params import FamilyGenerateParams, FamilyTrainParams
from soundmill.training.device import autocast, pick_device
from soundmill.training.module import use_threads

TIMED_STEPS = 3
SOUND_SECONDS = 0.5  # from a log-mel to a wave, by Griffin-Lim; small beside the net's steps


@dataclass
class Probe:
    """A family's net on noise of the shape that a training has."""

    answer: Callable[[], Tensor]  # of one batch
    clips: int  # in the batch; an epoch counts them
    accumulate: int = 1  # batches in a step


def seconds(family: str, document: dict[str, Any], num_clips: int, num_labels: int) -> float:
    """Seconds of wall time for training on `num_clips` clips and generating after it; the fastest of TIMED_STEPS steps counts.

    By a family's sections in the content of a params.yaml. What other stages make for it (latents, text states) is not in it.
    """
    train: FamilyTrainParams = read(document, f"{family}.train", registry.train_params(family))
    generate: FamilyGenerateParams = read(document, f"{family}.generate", registry.generate_params(family))
    use_threads(train.hardware.threads)
    device = pick_device(train.hardware.accelerator)
    probe: Probe = registry.part(family, "cost").probe(document, train, num_labels, device)
    times = []
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        with autocast(device, train.hardware.precision):
            loss = probe.answer().float().square().mean()
        loss.backward()
        loss.item()
        times.append(time.perf_counter() - start)
    batch = min(times)
    batches = train.steps * probe.accumulate if train.steps else math.ceil(train.epochs * num_clips / probe.clips)
    passes = generate.sampling.num_steps * (1 if generate.sampling.guidance_scale == 1 else 2)
    sounds = min(generate.count or num_clips, num_clips)
    forward = batch / 3 / train.items  # backward costs about twice the forward pass
    return batches * batch + sounds * (passes * forward + SOUND_SECONDS)


def read(document: dict[str, Any], name: str, model: type[strict.P]) -> strict.P:
    """A section of the content of a params.yaml."""
    return strict.parse(model, strict.section(document, name, "params.yaml"), f"params.yaml: {name}")
