"""Noise schedules other than the training's: known fractional timesteps, refusals, and a perfect net."""

import pytest
import torch

from soundmill.diffusion.aligned import aligned_timesteps, ancestral, spread_betas
from soundmill.diffusion.schedules import alpha_bar_to_betas, linear
from soundmill.errors import UserError

FAST = torch.tensor([1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5], dtype=torch.float64)
TABLE = linear(50, 1e-4, 0.05)


def test_the_published_fast_schedule_lies_at_these_timesteps():
    expected = torch.tensor([0, 0.894, 4.087, 10.452, 22.992, 42.919], dtype=torch.float64)
    torch.testing.assert_close(aligned_timesteps(FAST, TABLE), expected, atol=5e-4, rtol=0)
    assert float(TABLE[-1]) == pytest.approx(0.2796725, abs=5e-8)


def test_the_training_schedule_lies_at_its_own_timesteps():
    torch.testing.assert_close(aligned_timesteps(alpha_bar_to_betas(TABLE), TABLE), torch.arange(50, dtype=torch.float64))


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([1e-4, 1e-4, 0.5], "betas must increase"),
        ([0.0, 0.1], "between 0 and 1"),
        ([1e-5, 0.5], "must stay within"),
        ([0.1, 0.9], "must stay within"),
    ],
)
def test_a_schedule_that_the_training_never_had_is_refused(betas, message):
    with pytest.raises(UserError, match=message):
        aligned_timesteps(torch.tensor(betas, dtype=torch.float64), TABLE)


def test_a_perfect_net_gives_the_wave_back_whatever_shares_its_batch():
    x0 = 0.5 * torch.rand(3, 1, 400, generator=torch.Generator().manual_seed(1)) - 0.25
    timesteps = aligned_timesteps(FAST, TABLE)
    levels = dict(zip(timesteps.tolist(), torch.cumprod(1 - FAST, 0).tolist(), strict=True))

    def sample(part: slice) -> torch.Tensor:
        def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            level = min(levels.items(), key=lambda one: abs(one[0] - float(t[0])))[1]
            return (xt - level**0.5 * x0[part]) / (1 - level) ** 0.5

        rngs = [torch.Generator().manual_seed(number) for number in range(3)[part]]
        noise = torch.stack([torch.randn(1, 400, generator=rng) for rng in rngs])
        return ancestral(net, noise, FAST, timesteps, rngs)

    together = sample(slice(0, 3))
    torch.testing.assert_close(together, x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:2], sample(slice(1, 2)), atol=0, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 6, 7, 31, 49, 50])
def test_so_many_steps_are_spread_over_the_timesteps(steps):
    expected = torch.linspace(49, 0, steps, dtype=torch.float64).flip(0)
    torch.testing.assert_close(aligned_timesteps(spread_betas(TABLE, steps), TABLE), expected, atol=1e-6, rtol=0)


def test_all_steps_are_the_training_s():
    torch.testing.assert_close(spread_betas(TABLE, 50), alpha_bar_to_betas(TABLE), atol=1e-12, rtol=1e-9)
