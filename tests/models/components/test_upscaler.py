"""The upscaler of small mel pictures: where it starts, what it learns, and that level and length come back."""

import math

import numpy as np
import pytest
import torch

from soundmill.models.components.contracts import GriffinLimParams
from soundmill.models.components.upscaler import NetworkParams, UpscalerParams
from soundmill.models.components.upscaler.vocoder import Upscaler, UpscalerModule, UpscalerNet
from soundmill.params import compose, parse
from soundmill.training.loader import Batch
from tests.mels import spec_with

SPEC = spec_with(hop_length=320, n_mels=64, power=1.0, floor=1e-10)
PARAMS = NetworkParams(height=16, columns_per_second=12.5, exponent=0.25, channels=16, layers=2)  # a quarter of both sides


def untrained() -> UpscalerNet:
    torch.manual_seed(0)
    return UpscalerNet(PARAMS, SPEC)


def lines(count: int) -> torch.Tensor:
    """Log-mels [count, 64, 100] of narrow horizontal lines, which a small picture blurs."""
    rows = torch.rand(count, 64, generator=torch.Generator().manual_seed(1)) < 0.2
    return (4.0 * rows[..., None] - 6.0).expand(-1, -1, 100)


def test_it_starts_from_the_bicubic_picture_and_learns_the_detail_that_lacks(root):
    assert untrained().small(untrained().picture(lines(2))).shape == (2, 1, 16, 25)
    weights = parse(UpscalerParams, compose(root / "conf", ["vocoder=upscaler"])["vocoder"], "vocoder").weights
    module, batch = UpscalerModule(untrained(), weights, weights.steps), Batch(0, np.arange(8), (lines(8),))
    optimiser = torch.optim.Adam(module.net.parameters(), 3e-3)
    assert 1 <= module.loss(0, batch) < 1.05  # small twice
    with torch.autocast("cpu", torch.bfloat16):
        assert 1 <= module.loss(0, batch) < 1.05
    for step in range(80):
        optimiser.zero_grad()
        module.loss(step, batch).backward()
        optimiser.step()
    assert module.loss(80, batch) < 0.8


@pytest.mark.parametrize("frames", [40, 100])
def test_a_quieter_sound_is_the_same_picture_and_as_long(frames):
    net = untrained()
    torch.nn.init.normal_(net.layers[-2].weight, std=0.05)
    vocoder = Upscaler(PARAMS, SPEC, net.eval(), GriffinLimParams(griffin_lim_iterations=2, griffin_lim_momentum=0.0))
    log_mel = lines(2)[..., :frames]
    loud, quiet = vocoder.vocode(log_mel), vocoder.vocode(log_mel - math.log(10))
    assert loud.shape == (2, 1, frames * 320)
    torch.testing.assert_close(quiet * 10, loud, rtol=1e-3, atol=1e-4)
