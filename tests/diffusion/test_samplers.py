"""Samplers: a perfect net leads back to x0 in any number of steps, and items do not hang on their neighbours."""

import pytest
import torch

from soundmill.diffusion import objectives, samplers, schedules
from soundmill.errors import UserError

TABLES = {
    "linear": schedules.linear(1000, 1e-4, 0.02),
    "cosine": schedules.cosine(1000),
    "tango": schedules.scaled_linear(1000, 0.00085, 0.012),
}
SAMPLERS = ["ddpm", "ddim", "dpm++", "unipc"]
X0 = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _rngs(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("objective", ["eps", "v", "x0"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("num_steps", "spacing"), [(1, "trailing"), (2, "trailing"), (7, "trailing"), (10, "leading")])
def test_perfect_net_leads_to_x0(sampler, objective, num_steps, spacing, table):
    def perfect(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedules.alpha_sigma(TABLES[table], t, xt.ndim)
        return objectives.target(objective, X0, (xt - alpha * X0) / sigma, alpha, sigma)

    output = samplers.sample(
        perfect,
        torch.randn(X0.shape, generator=torch.Generator().manual_seed(1)),
        table=TABLES[table],
        objective=objective,
        sampler=sampler,
        num_steps=num_steps,
        spacing=spacing,
        clip=None,
        rngs=_rngs(2, 3),
    )
    torch.testing.assert_close(output, X0, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gaussian_data_keep_their_mean_and_spread(sampler):
    """For data N(m, s²) the best answer is known in closed form; the sampler must end at that distribution."""
    table, mean, spread = TABLES["linear"], 0.5, 0.3

    def best(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedules.alpha_sigma(table, t, xt.ndim)
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return mean + gain * (xt - alpha * mean)

    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    output = samplers.sample(
        best, noise, table=table, objective="x0", sampler=sampler, num_steps=100, clip=None, rngs=_rngs(0, 1, 2, 3)
    )
    assert output.mean().item() == pytest.approx(mean, abs=0.02)
    assert output.std().item() == pytest.approx(spread, rel=0.07)


@pytest.mark.parametrize("variance", ["large", "small"])
def test_ddpm_adds_noise_of_the_variance_asked_for(variance):
    """Two steps, of a net that sees nothing but zeros: what is left of xt is its posterior mean and the noise drawn."""
    table, seen = TABLES["tango"], []

    def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(xt)
        return torch.zeros_like(xt)

    noise = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(1))
    common = {"sampler": "ddpm", "objective": "x0", "num_steps": 2, "clip": None, "rngs": _rngs(4)}
    samplers.sample(net, noise, table=table, variance=variance, **common)
    before, now = table[499], table[999]
    kept, beta = now / before, 1 - now / before
    drawn = seen[1] - kept.sqrt() * (1 - before) / (1 - now) * seen[0]
    expected = beta if variance == "large" else beta * (1 - before) / (1 - now)
    assert drawn.var().item() == pytest.approx(expected.item(), rel=0.05)


def test_an_item_does_not_hang_on_its_neighbours():
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    output = {}
    for seeds, items in (((1, 2), [0, 1]), ((2,), [1])):
        output[seeds] = samplers.sample(
            lambda xt, t: xt * 0.1,
            noise[items],
            table=TABLES["linear"],
            objective="eps",
            sampler="ddpm",
            num_steps=5,
            clip=None,
            rngs=_rngs(*seeds),
        )
    torch.testing.assert_close(output[1, 2][1:], output[2,])


def test_clip_holds_the_picture():
    output = samplers.sample(
        lambda xt, t: xt * 50,
        torch.randn(1, 1, 4, 4),
        table=TABLES["linear"],
        objective="x0",
        sampler="ddim",
        num_steps=5,
        clip=1.0,
        rngs=_rngs(0),
    )
    assert output.abs().max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_net_is_asked_at_the_spaced_timesteps(sampler):
    asked = []

    def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(t.unique().item())
        return torch.zeros_like(xt)

    arguments = {"table": TABLES["tango"], "objective": "v", "sampler": sampler, "num_steps": 3, "clip": None, "rngs": _rngs(0, 1)}
    samplers.sample(net, torch.randn(2, 1, 4, 4), **arguments, spacing="leading")
    assert asked == [667, 334, 1]


def test_ddim_lands_on_the_next_timestep_where_steps_do_not_divide():
    """An item's xt after a step is alpha·x0 + sigma·noise at the very timestep that the net is asked at next."""
    noise, seen = torch.randn(X0.shape, generator=torch.Generator().manual_seed(1)), []

    def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedules.alpha_sigma(TABLES["linear"], t, xt.ndim)
        seen.append((xt, alpha, sigma))
        return (xt - sigma * noise) / alpha

    samplers.sample(net, noise, table=TABLES["linear"], objective="x0", sampler="ddim", num_steps=7, clip=None, rngs=_rngs(0, 1))
    first_x0 = (seen[0][0] - seen[0][2] * noise) / seen[0][1]
    for xt, alpha, sigma in seen[1:]:
        torch.testing.assert_close(xt, alpha * first_x0 + sigma * noise, atol=1e-4, rtol=1e-4)


def test_trailing_timesteps():
    assert samplers.timesteps(1000, 1000, "trailing") == list(range(999, -1, -1))
    assert samplers.timesteps(1000, 200, "trailing")[:2] == [999, 994]
    assert samplers.timesteps(1000, 200, "trailing")[-1] == 4


def test_leading_timesteps_of_tango():
    assert samplers.timesteps(1000, 200, "leading") == list(range(996, 0, -5))
    assert samplers.timesteps(1000, 1000, "leading") == list(range(999, -1, -1))
    assert samplers.timesteps(1000, 999, "leading") == list(range(999, 0, -1))


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("num_steps", [1, 3, 25, 150, 600, 1000])
def test_timesteps_fall_and_exist(spacing, num_steps):
    visited = samplers.timesteps(1000, num_steps, spacing)
    assert len(visited) == num_steps
    assert visited == sorted(set(visited), reverse=True)
    assert 0 <= visited[-1] <= visited[0] <= 999


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(UserError, match=r"1001 .* 1000"):
        samplers.timesteps(1000, 1001, "trailing")
