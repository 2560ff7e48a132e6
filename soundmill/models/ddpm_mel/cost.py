"""The family's net on noise, to tell what it costs (models/cost.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from soundmill.models.cost import Probe
from soundmill.models.ddpm_mel.checkpoint import build_net
from soundmill.models.ddpm_mel.params import TrainParams


def probe(document: dict[str, Any], train: TrainParams, num_labels: int, device: torch.device) -> Probe:
    picture, items = train.picture, train.batch_size
    net = build_net(train, num_labels).to(device)
    rows, columns = picture.height // picture.patch[0], picture.width // picture.patch[1]
    xt = torch.randn(items, picture.patch[0] * picture.patch[1], rows, columns, device=device)
    t = torch.zeros(items, dtype=torch.long, device=device)
    return Probe(partial(net, xt, t, torch.zeros(items, num_labels, device=device)), clips=items)
