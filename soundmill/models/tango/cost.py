"""The family's net on noise, to tell what it costs (models/cost.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from soundmill import params as strict
from soundmill.models.cost import Probe, read
from soundmill.models.tango.checkpoint import FAMILY, build_net
from soundmill.models.tango.params import AutoencoderNetParams, LatentsParams, TrainParams

TOKENS = 24  # of a caption


def probe(document: dict[str, Any], train: TrainParams, num_labels: int, device: torch.device) -> Probe:
    network = read(document, f"{FAMILY}.autoencoder.network", AutoencoderNetParams)
    frames = read(document, f"{FAMILY}.latents", LatentsParams).frames
    bands = strict.section(document, f"spectrogram.{FAMILY}.n_mels", "params.yaml")
    shape = network.latent_channels, frames // network.factor, bands // network.factor
    net, items = build_net(train, shape).to(device), train.items
    xt, t = torch.randn(items, *shape, device=device), torch.zeros(items, dtype=torch.long, device=device)
    states = torch.randn(items, TOKENS, train.network.text_width, device=device)
    mask = torch.ones(items, TOKENS, dtype=torch.bool, device=device)
    return Probe(partial(net, xt, t, states, mask), clips=train.real_items, accumulate=train.accumulate)
