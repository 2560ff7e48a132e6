"""Objectives: what a perfect and a silent net score, and that every answer converts to every other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soundmill.diffusion import objectives, schedules
from soundmill.diffusion.params import DiffusionParams

TABLE = schedules.linear(1000, 1e-4, 0.02)


def _items(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x0 = torch.rand(count, 2, 8, 8, generator=rng) * 2 - 1
    return x0, torch.randint(1, 1000, (count,), generator=rng), torch.randn(x0.shape, generator=rng)


def test_zero_net_has_eps_loss_one():
    x0, t, noise = _items(0, 256)
    losses = objectives.per_item_loss(lambda xt, t: torch.zeros_like(xt), "eps", TABLE, x0, t, noise)
    assert losses.shape == (256,)
    assert losses.mean().item() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(losses, noise.square().flatten(1).mean(1))


@given(seed=st.integers(0, 1000), objective=st.sampled_from(["eps", "x0", "v"]))
def test_perfect_answers_convert_to_x0_and_eps(seed, objective):
    x0, t, noise = _items(seed, 4)
    t = t.clamp(max=800)  # beyond, dividing by alpha loses digits in float32
    alpha, sigma = schedules.alpha_sigma(TABLE, t, x0.ndim)
    xt = objectives.diffuse(x0, noise, alpha, sigma)
    answer = objectives.target(objective, x0, noise, alpha, sigma)
    torch.testing.assert_close(objectives.to_x0(objective, answer, xt, alpha, sigma), x0, atol=1e-3, rtol=1e-3)


def test_perfect_net_has_no_loss():
    x0, t, noise = _items(1, 8)

    def perfect(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedules.alpha_sigma(TABLE, t, xt.ndim)
        return objectives.target("v", x0, (xt - alpha * x0) / sigma, alpha, sigma)

    losses = objectives.per_item_loss(perfect, "v", TABLE, x0, t, noise)
    assert losses.max() < 1e-6


def test_min_snr_weights_are_one_error_in_three_languages():
    """Weighted errors of one net agree whether its error is counted in eps, v or x0."""
    snr = torch.tensor([0.01, 1.0, 5.0, 100.0], dtype=torch.float64)
    x0_error = torch.ones_like(snr)
    eps_error, v_error = x0_error * snr, x0_error * (snr + 1)  # eps − eps' = (alpha/sigma)(x0 − x0'); v − v' = (x0 − x0')/sigma
    for objective, error in (("eps", eps_error), ("v", v_error), ("x0", x0_error)):
        weighted = objectives.weights(objective, "min_snr", snr, gamma=5.0) * error
        torch.testing.assert_close(weighted, snr.clamp(max=5.0))


def test_min_snr_of_tango_divides_by_snr_whatever_is_predicted():
    """Known answers on both sides of gamma = 5, at TANGO's schedule: SNR > 5 exactly up to t = 146."""
    table = schedules.scaled_linear(1000, 0.00085, 0.012)
    snr = schedules.signal_to_noise(table, torch.tensor([0, 146, 147, 500, 999]))
    for objective in ("eps", "v", "x0"):
        theirs = objectives.weights(objective, "min_snr_tango", snr, gamma=5.0)
        assert (theirs[:2] < 1).all()
        torch.testing.assert_close(theirs[:2], 5 / snr[:2])
        torch.testing.assert_close(theirs[2:], torch.ones(3, dtype=torch.float64))
    ours = objectives.weights("v", "min_snr", snr, gamma=5.0)
    torch.testing.assert_close(theirs / ours, (snr + 1) / snr)
    torch.testing.assert_close(objectives.weights("eps", "min_snr", snr, gamma=5.0), theirs)


@pytest.mark.parametrize("weighting", ["none", "min_snr"])
def test_training_loss_is_the_weighted_mean(weighting):
    numbers = {"num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "shift": 1.0, "min_snr_gamma": 5.0}
    params = DiffusionParams(schedule="linear", objective="v", weighting=weighting, stratified=True, **numbers)
    x0, t, noise = _items(0, 4)
    losses = objectives.per_item_loss(lambda xt, t: xt, "v", TABLE, x0, t, noise)
    weights = objectives.weights("v", weighting, schedules.signal_to_noise(TABLE, t), 5.0)
    loss = objectives.training_loss(lambda xt, t: xt, params, TABLE, x0, t, noise)
    assert loss.item() == pytest.approx((losses * weights).mean().item())
    assert (loss.item() == pytest.approx(losses.mean().item())) == (weighting == "none")
