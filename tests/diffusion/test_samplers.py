"""Samplers: a perfect net leads back to x0 in any number of steps, and items do not hang on their neighbours."""

from __future__ import annotations

import pytest
import torch

from soundmill.diffusion import objectives, samplers, schedules

TABLES = {"linear": schedules.linear(1000, 1e-4, 0.02), "cosine": schedules.cosine(1000)}
X0 = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _rngs(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("objective", ["eps", "v", "x0"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
@pytest.mark.parametrize("num_steps", [2, 7, 10])
def test_perfect_net_leads_to_x0(sampler, objective, num_steps, table):
    def perfect(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedules.alpha_sigma(TABLES[table], t, xt.ndim)
        return objectives.target(objective, X0, (xt - alpha * X0) / sigma, alpha, sigma)

    made = samplers.sample(
        perfect,
        torch.randn(X0.shape, generator=torch.Generator().manual_seed(1)),
        table=TABLES[table],
        objective=objective,
        sampler=sampler,
        num_steps=num_steps,
        clip=None,
        rngs=_rngs(2, 3),
    )
    torch.testing.assert_close(made, X0, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_gaussian_data_keep_their_mean_and_spread(sampler):
    """For data N(m, s²) the best answer is known in closed form; the sampler must end at that distribution."""
    table, mean, spread = TABLES["linear"], 0.5, 0.3

    def best(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedules.alpha_sigma(table, t, xt.ndim)
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return mean + gain * (xt - alpha * mean)

    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    made = samplers.sample(
        best, noise, table=table, objective="x0", sampler=sampler, num_steps=100, clip=None, rngs=_rngs(0, 1, 2, 3)
    )
    assert made.mean().item() == pytest.approx(mean, abs=0.02)
    assert made.std().item() == pytest.approx(spread, rel=0.07)


def test_an_item_does_not_hang_on_its_neighbours():
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    made = {}
    for seeds, items in (((1, 2), [0, 1]), ((2,), [1])):
        made[seeds] = samplers.sample(
            lambda xt, t: xt * 0.1,
            noise[items],
            table=TABLES["linear"],
            objective="eps",
            sampler="ddpm",
            num_steps=5,
            clip=None,
            rngs=_rngs(*seeds),
        )
    torch.testing.assert_close(made[1, 2][1:], made[2,])


def test_clip_holds_the_picture():
    made = samplers.sample(
        lambda xt, t: xt * 50,
        torch.randn(1, 1, 4, 4),
        table=TABLES["linear"],
        objective="x0",
        sampler="ddim",
        num_steps=5,
        clip=1.0,
        rngs=_rngs(0),
    )
    assert made.abs().max() <= 1


def test_timesteps_of_200_and_1000_steps():
    assert samplers.trailing_timesteps(1000, 1000) == list(range(999, -1, -1))
    assert samplers.trailing_timesteps(1000, 200)[:2] == [999, 994]
    assert samplers.trailing_timesteps(1000, 200)[-1] == 4
