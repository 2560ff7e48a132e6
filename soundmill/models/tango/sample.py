"""From noise and a text to latents, each item from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from soundmill.diffusion.guidance import guided
from soundmill.diffusion.objectives import Net
from soundmill.diffusion.samplers import sample_each
from soundmill.models.components.text_states.states import pad
from soundmill.models.family import Run
from soundmill.training.device import autocast, evaluating

if TYPE_CHECKING:
    from soundmill.models.tango.model import Tango


def sample_latents(model: Tango, states: Sequence[np.ndarray], null: np.ndarray, seeds: Sequence[int], run: Run) -> Tensor:
    """x0 [N, channels, frames, bands] on the CPU for texts [tokens, width]; `null` are those of no text. `model.net` is moved."""
    sampling, device = run.sampling, run.device
    net = model.net.to(device)

    def denoiser(part: slice) -> Net:
        values, mask = pad([*states[part], null])  # to one length, as guidance's single pass needs
        values, mask = values.float().to(device), mask.to(device)
        condition = values[:-1], mask[:-1]
        unconditional = values[-1:].expand_as(condition[0]), mask[-1:].expand_as(condition[1])

        def denoise(xt: Tensor, t: Tensor) -> Tensor:
            with autocast(device, run.precision):
                return guided(net, xt, t, condition, unconditional, sampling.guidance_scale).float()

        return denoise

    rule = {"spacing": sampling.spacing, "variance": sampling.variance}
    with torch.no_grad(), evaluating(net):
        return sample_each(
            denoiser, seeds, model.latent_shape, model.params.diffusion, sampling, device, run.batch_size, run.progress, **rule
        )
