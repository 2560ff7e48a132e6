"""What a training and the generating after it will take on this machine, from a few real steps on noise."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from soundmill import params as strict
from soundmill.models.tango.checkpoint import FAMILY, build_net
from soundmill.models.tango.params import AutoencoderNetParams, GenerateParams, LatentsParams, TrainParams
from soundmill.training.device import autocast, pick_device
from soundmill.training.module import use_threads

TIMED_STEPS = 3
TOKENS = 24  # of a caption
INVERSION_SECONDS = 0.5  # a sound's Griffin-Lim and decoding; small beside the net's steps


def seconds(document: dict[str, Any], num_clips: int, num_labels: int) -> float:
    """Seconds of wall time for training on `num_clips` clips and generating after it; the fastest of TIMED_STEPS steps counts.

    The stages before them (autoencoder, latents, text) are not in it, and labels count for nothing.
    """

    def section(model: type[strict.P], name: str) -> strict.P:
        return strict.parse(model, strict.section(document, f"{FAMILY}.{name}", "params.yaml"), f"params.yaml: {FAMILY}.{name}")

    train, generate = section(TrainParams, "train"), section(GenerateParams, "generate")
    network, frames = section(AutoencoderNetParams, "autoencoder.network"), section(LatentsParams, "latents").frames
    bands = strict.section(document, f"spectrogram.{FAMILY}.n_mels", "params.yaml")
    use_threads(train.hardware.threads)
    device = pick_device(train.hardware.accelerator)
    shape = network.latent_channels, frames // network.factor, bands // network.factor
    net = build_net(train, shape).to(device)
    items = train.real_items + train.mixed_items
    xt, t = torch.randn(items, *shape, device=device), torch.zeros(items, dtype=torch.long, device=device)
    states = torch.randn(items, TOKENS, train.network.text_width, device=device)
    mask = torch.ones(items, TOKENS, dtype=torch.bool, device=device)
    times = []
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        with autocast(device, train.hardware.precision):
            loss = net(xt, t, states, mask).float().square().mean()
        loss.backward()
        loss.item()
        times.append(time.perf_counter() - start)
    batch = min(times)
    batches = train.steps * train.accumulate if train.steps else math.ceil(train.epochs * num_clips / train.real_items)
    sampling = generate.sampling
    passes = sampling.num_steps * (1 if sampling.guidance_scale == 1 else 2)
    sounds = min(generate.count or num_clips, num_clips)
    forward = batch / 3 / items  # backward costs about twice the forward pass
    return batches * batch + sounds * (passes * forward + INVERSION_SECONDS)
