"""Known answers of the noise schedules."""

import pytest
import torch

from soundmill.diffusion import schedules
from soundmill.diffusion.params import DiffusionParams
from soundmill.errors import UserError
from soundmill.params import parse

PAPER = {"num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


@pytest.mark.parametrize(("t", "expected"), [(0, 0.9999), (499, 0.078587), (999, 4.0358e-5)])
def test_linear_of_ddpm(t, expected):
    assert schedules.linear(**PAPER)[t].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("t", "expected"), [(0, 0.99915), (500, 0.27633), (999, 0.0046601)])
def test_scaled_linear_of_latent_diffusion(t, expected):
    assert schedules.scaled_linear(1000, 0.00085, 0.012)[t].item() == pytest.approx(expected, rel=1e-4)


def test_cosine_halves_the_signal_in_the_middle():
    table = schedules.cosine(1000)
    assert table[499].item() == pytest.approx(0.4938, abs=1e-3)  # cos²((0.5 + 0.008) / 1.008 · π/2) / cos²(0.008 / 1.008 · π/2)
    assert table[-1] < 1e-8


def test_shift_moves_the_log_snr_by_a_constant():
    plain, shifted = schedules.shifted_cosine(1000, 1.0), schedules.shifted_cosine(1000, 0.5)
    middle = slice(100, 900)
    difference = torch.logit(shifted[middle]) - torch.logit(plain[middle])
    torch.testing.assert_close(difference, torch.full_like(difference, 2 * torch.tensor(0.5).log().item()))


def named(schedule: str) -> DiffusionParams:
    numbers = {"num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "shift": 0.5, "min_snr_gamma": 5.0}
    return DiffusionParams(schedule=schedule, objective="eps", weighting="none", stratified=True, **numbers)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "shifted_cosine"])
def test_every_schedule_falls_and_keeps_variance(name):
    table = schedules.alpha_bar(named(name))
    assert table.dtype == torch.float64
    assert table.shape == (1000,)
    assert (table[1:] < table[:-1]).all()
    assert ((table > 0) & (table < 1)).all()
    torch.testing.assert_close(schedules.betas_to_alpha_bar(schedules.alpha_bar_to_betas(table)), table)


def test_unknown_schedule_is_refused():
    with pytest.raises(UserError, match="quadratic"):
        parse(DiffusionParams, named("linear").model_dump() | {"schedule": "quadratic"}, "train.diffusion")
