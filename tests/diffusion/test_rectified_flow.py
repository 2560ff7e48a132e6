"""Straight paths against the closed form of Gaussian data, whose velocity and flow are known; times against their distribution."""

import math
from itertools import pairwise

import pytest
import torch

from soundmill.diffusion import rectified_flow

MEAN, DEVIATION = 0.7, 0.3
NOISE = torch.randn(4, 2, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def exact(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[noise − x0 | xt] for x0 ~ N(MEAN, DEVIATION²): regression of one normal variable on another."""
    t = t.reshape(-1, *[1] * (xt.ndim - 1))
    covariance, variance = t - (1 - t) * DEVIATION**2, (1 - t) ** 2 * DEVIATION**2 + t**2
    return -MEAN + covariance / variance * (xt - (1 - t) * MEAN)


def error(solver: str, num_steps: int, shift: float = 1.0) -> float:
    """From the exact flow, which maps noise z to MEAN + DEVIATION · z."""
    found = rectified_flow.sample(exact, NOISE, num_steps, solver, shift)
    return float((found - (MEAN + DEVIATION * NOISE)).abs().max())


def test_the_least_loss_is_that_of_the_closed_form():
    rng = torch.Generator().manual_seed(1)
    x0 = MEAN + DEVIATION * torch.randn(2000, 1, 100, generator=rng)
    noise, t = torch.randn(x0.shape, generator=rng), torch.rand(2000, generator=rng)
    least = float(rectified_flow.loss(exact, x0, t, noise))
    time = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    covariance, variance = time - (1 - time) * DEVIATION**2, (1 - time) ** 2 * DEVIATION**2 + time**2
    assert least == pytest.approx(float((1 + DEVIATION**2 - covariance**2 / variance).mean()), rel=0.01)
    for factor in (0.9, 1.1):
        assert rectified_flow.loss(lambda xt, t, factor=factor: factor * exact(xt, t), x0, t, noise) > least
    blind = rectified_flow.loss(lambda xt, t: torch.zeros_like(xt), x0, t, noise)
    assert float(blind) == pytest.approx(1 + MEAN**2 + DEVIATION**2, rel=0.01)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "pingpong"])
def test_of_one_sound_the_paths_are_straight_and_one_step_is_enough(solver):
    x0, rngs = torch.full_like(NOISE, 0.4), [torch.Generator() for _ in NOISE]
    for num_steps in (1, 3):
        found = rectified_flow.sample(lambda xt, t: (xt - x0) / t.reshape(-1, 1, 1), NOISE, num_steps, solver, rngs=rngs)
        assert (found - x0).abs().max() < 1e-14


def of_two_kinds(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """As `exact`, of sounds that are N(MEAN, DEVIATION²) or, as often, N(−MEAN, DEVIATION²)."""
    variance = (1 - t) ** 2 * DEVIATION**2 + t**2
    first = torch.sigmoid(2 * MEAN * ((1 - t) / variance).reshape(-1, 1, 1) * xt)
    return first * exact(xt, t) - (1 - first) * exact(-xt, t)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2)])
@pytest.mark.parametrize("shift", [1.0, 1.7])
def test_the_order_of_convergence(solver, order, shift):
    """Of a Gaussian alone, the midpoint's errors of both halves of the path cancel out, and its order is 3."""
    assert math.log2(error(solver, 100, shift) / error(solver, 200, shift)) > order - 0.1
    truth = rectified_flow.sample(of_two_kinds, NOISE, 3200, "midpoint")
    coarse, fine = (rectified_flow.sample(of_two_kinds, NOISE, steps, solver, shift) - truth for steps in (100, 200))
    assert math.log2(float(coarse.norm() / fine.norm())) == pytest.approx(order, abs=0.15)


def test_at_equal_passes_the_midpoint_is_nearer():
    assert rectified_flow.PASSES == {"euler": 1, "midpoint": 2, "pingpong": 1}
    assert error("midpoint", 16) < error("euler", 32) / 4


def test_times_are_logit_normal():
    normal = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for mean, deviation in ((0.0, 1.0), (0.5, 0.8)):
        t = rectified_flow.logit_normal(normal, mean, deviation)
        assert 0 < float(t.min()) < float(t.max()) < 1
        for point in (0.1, 0.3, 0.5, 0.9):
            z = (math.log(point / (1 - point)) - mean) / deviation
            expected = (1 + math.erf(z / math.sqrt(2))) / 2
            assert float((t < point).double().mean()) == pytest.approx(expected, abs=5e-3)


def test_a_shift_gives_longer_sounds_the_same_doubt():
    """n values in place of one: the noise left in their mean is 1/√n, so SNR and time agree after the shift (Esser et al. 2024)."""
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    shift = rectified_flow.length_shift(512, 128)
    assert shift == 2
    moved = rectified_flow.shifted(t, shift)
    torch.testing.assert_close((1 - moved) / moved * math.sqrt(512), (1 - t) / t * math.sqrt(128))
    assert torch.equal(rectified_flow.shifted(t, 1.0), t)
    torch.testing.assert_close(rectified_flow.shifted(moved, 1 / shift), t)
    assert rectified_flow.times(4, "euler") == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert rectified_flow.times(2, "midpoint", 3.0) == [1.0, 0.75, 0.0]


def test_pingpong_goes_to_the_sound_and_back_along_even_steps_of_ln_snr():
    times = rectified_flow.times(8, "pingpong", 3.0)
    assert times == pytest.approx([1, *(1 / (1 + math.exp(-x)) for x in (5, 4, 3, 2, 1, 0, -1)), 0], abs=1e-12)
    rngs = [torch.Generator().manual_seed(item) for item in range(4)]
    found = rectified_flow.sample(exact, NOISE, 8, "pingpong", rngs=rngs)
    again = [torch.Generator().manual_seed(item) for item in range(4)]
    xt = NOISE
    for now, after in pairwise(times):
        gain = (1 - now) * DEVIATION**2 / ((1 - now) ** 2 * DEVIATION**2 + now**2)
        expected = MEAN + gain * (xt - (1 - now) * MEAN)  # of x0, given xt
        fresh = torch.stack([torch.randn(2, 300, generator=rng) for rng in again])
        xt = (1 - after) * expected + after * fresh.double()
    torch.testing.assert_close(found, xt, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "pingpong"])
def test_inpainting_keeps_what_it_is_told_to_and_fits_the_rest_to_it(solver):
    """Both halves of a sound are the same value: where one is kept, the other follows it."""
    keep = torch.arange(300) < 150

    def alike(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Of sounds of one value, drawn from N(0, 1), given all of xt."""
        t = t.reshape(-1, 1, 1)
        x0 = (1 - t) * xt.sum(2, keepdim=True) / (300 * (1 - t) ** 2 + t**2)
        return (xt - x0) / t

    sounds = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None, None].expand_as(NOISE).clone()
    sounds[..., ~keep] = 7.0  # nothing of this may be seen
    rngs = [torch.Generator().manual_seed(item) for item in range(4)]
    found = rectified_flow.inpaint(alike, sounds, keep, rngs, 40, solver)
    assert torch.equal(found[..., keep], sounds[..., keep])
    assert (found[..., ~keep] - sounds[..., :1]).abs().max() < 0.2
