"""What a training and the generating after it will take on this machine, from a few real steps on noise."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from soundmill import params as strict
from soundmill.models.ddpm_mel.checkpoint import FAMILY, build_net
from soundmill.models.ddpm_mel.params import GenerateParams, TrainParams
from soundmill.training.device import pick_device
from soundmill.training.module import use_threads

TIMED_STEPS = 3
INVERSION_SECONDS = 0.3  # a sound's mel inversion and Griffin-Lim; small beside the net's steps


def seconds(document: dict[str, Any], num_clips: int, num_labels: int) -> float:
    """Seconds of wall time for training on `num_clips` clips and generating after it; the fastest of TIMED_STEPS steps counts."""
    section = strict.section(document, FAMILY, "params.yaml")
    train = strict.parse(TrainParams, strict.section(section, "train", "params.yaml"), f"params.yaml: {FAMILY}.train")
    generate = strict.parse(GenerateParams, strict.section(section, "generate", "params.yaml"), f"params.yaml: {FAMILY}.generate")
    use_threads(train.hardware.threads)
    device = pick_device(train.hardware.accelerator)
    net = build_net(train, num_labels).to(device)
    rows, columns = train.picture.height // train.picture.patch[0], train.picture.width // train.picture.patch[1]
    xt = torch.randn(train.batch_size, train.picture.patch[0] * train.picture.patch[1], rows, columns, device=device)
    t = torch.zeros(train.batch_size, dtype=torch.long, device=device)
    condition = torch.zeros(train.batch_size, num_labels, device=device)
    times = []
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=train.hardware.precision == "bf16"):
            loss = net(xt, t, condition).float().square().mean()
        loss.backward()
        loss.item()
        times.append(time.perf_counter() - start)
    step = min(times)
    steps = train.steps or math.ceil(train.epochs * num_clips / train.batch_size)
    sampling = generate.sampling
    passes = sampling.num_steps * (1 if sampling.guidance_scale == 1 else 2)
    sounds = min(generate.count or num_clips, num_clips)
    forward = step / 3 / train.batch_size  # backward costs about twice the forward pass
    return steps * step + sounds * (passes * forward + INVERSION_SECONDS)
