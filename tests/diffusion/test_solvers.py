"""What each solver alone does: orders of convergence, known timesteps and times, variances, noise schedules of sampling."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from soundmill.diffusion import solvers
from soundmill.diffusion.paths import Discrete, alpha_bar_to_betas, linear
from soundmill.diffusion.sampling import Draw, sample
from soundmill.errors import UserError
from tests.diffusion.test_paths import CPU, DEVIATION, FAST, MEAN, SAMPLERS, TABLES, exact

NOISE = torch.randn(4, 2, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OF_DIFFWAVE = linear(50, 1e-4, 0.05)


def seeds(*numbers: int) -> Draw:
    return Draw.of_seeds(numbers)


def flow_error(solver: str, num_steps: int, shift: float = 1.0) -> float:
    """From the exact flow, which maps noise z to MEAN + DEVIATION · z."""
    found = sample(solvers.flow(num_steps, solver, shift), exact, NOISE)
    return float((found - (MEAN + DEVIATION * NOISE)).abs().max())


def of_two_kinds(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """As `exact`, of sounds that are N(MEAN, DEVIATION²) or, as often, N(−MEAN, DEVIATION²)."""
    variance = (1 - t) ** 2 * DEVIATION**2 + t**2
    first = torch.sigmoid(2 * MEAN * ((1 - t) / variance).reshape(-1, 1, 1) * xt)
    return first * exact(xt, t) - (1 - first) * exact(-xt, t)


@cache
def truth() -> torch.Tensor:
    return sample(solvers.flow(3200, "midpoint"), of_two_kinds, NOISE)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2)])
@pytest.mark.parametrize("shift", [1.0, 1.7])
def test_the_order_of_convergence(solver, order, shift):
    """Of a Gaussian alone, the midpoint's errors of both halves of the path cancel out, and its order is 3."""
    assert math.log2(flow_error(solver, 100, shift) / flow_error(solver, 200, shift)) > order - 0.1
    coarse, fine = (sample(solvers.flow(steps, solver, shift), of_two_kinds, NOISE) - truth() for steps in (100, 200))
    assert math.log2(float(coarse.norm() / fine.norm())) == pytest.approx(order, abs=0.15)


def test_at_equal_passes_the_midpoint_is_nearer():
    assert solvers.PASSES == {"euler": 1, "midpoint": 2, "pingpong": 1}
    assert flow_error("midpoint", 16) < flow_error("euler", 32) / 4


def test_the_times_of_a_flow():
    assert solvers.flow(4, "euler").levels == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert solvers.flow(2, "midpoint", 3.0).levels == [1.0, 0.75, 0.0]
    assert solvers.flow(2, "euler", start=0.5).levels == [0.5, 0.25, 0.0]


def test_pingpong_goes_to_the_sound_and_back_along_even_steps_of_ln_snr():
    steps = solvers.flow(8, "pingpong", 3.0)
    assert steps.levels == pytest.approx([1, *(1 / (1 + math.exp(-x)) for x in (5, 4, 3, 2, 1, 0, -1)), 0], abs=1e-12)
    found = sample(steps, exact, NOISE, seeds(0, 1, 2, 3))
    xt, again = NOISE, seeds(0, 1, 2, 3)
    for now, after in pairwise(steps.levels):
        gain = (1 - now) * DEVIATION**2 / ((1 - now) ** 2 * DEVIATION**2 + now**2)
        expected = MEAN + gain * (xt - (1 - now) * MEAN)  # of x0, given xt
        xt = (1 - after) * expected + after * again.like(xt)
    torch.testing.assert_close(found, xt, rtol=0, atol=1e-12)


def test_stable_audio_s_solver_takes_two_steps_or_more():
    with pytest.raises(UserError, match=r"dpm\+\+_sde.*num_steps of 2 or more"):
        solvers.stable_audio(1, CPU)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gaussian_data_keep_their_mean_and_spread(sampler):
    """For data N(m, s²) the best answer is known in closed form; the sampler must end at that distribution."""
    path, mean, spread = Discrete(TABLES["linear"], "x0"), 0.5, 0.3

    def best(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = path.alpha_sigma(t[0].item())
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return mean + gain * (xt - alpha * mean)

    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    output = sample(solvers.scheduled(path, sampler, 100, CPU), best, noise, seeds(0, 1, 2, 3))
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
    sample(solvers.scheduled(Discrete(table, "x0"), "ddpm", 2, CPU, variance=variance), net, noise, seeds(4))
    before, now = table[499], table[999]
    kept, beta = now / before, 1 - now / before
    drawn = seen[1] - kept.sqrt() * (1 - before) / (1 - now) * seen[0]
    expected = beta if variance == "large" else beta * (1 - before) / (1 - now)
    assert drawn.var().item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_net_is_asked_at_the_spaced_timesteps(sampler):
    asked = []

    def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(t.unique().item())
        return torch.zeros_like(xt)

    sample(solvers.scheduled(Discrete(TABLES["tango"], "v"), sampler, 3, CPU, spacing="leading"), net, NOISE, seeds(0, 1, 2, 3))
    assert asked == [667, 334, 1]


def test_ddim_lands_on_the_next_timestep_where_steps_do_not_divide():
    """An item's xt after a step is alpha·x0 + sigma·noise at the very timestep that the net is asked at next."""
    path, noise, seen = Discrete(TABLES["linear"], "x0"), NOISE.float().flip(0), []

    def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = path.alpha_sigma(t[0].item())
        seen.append((xt, alpha, sigma))
        return (xt - sigma * noise) / alpha

    sample(solvers.scheduled(path, "ddim", 7, CPU), net, NOISE)
    first_x0 = (seen[0][0] - seen[0][2] * noise) / seen[0][1]
    for xt, alpha, sigma in seen[1:]:
        torch.testing.assert_close(xt, alpha * first_x0 + sigma * noise, atol=1e-4, rtol=1e-4)


def test_timesteps_are_trailing_or_as_tango_s_leading():
    for spacing in ("trailing", "leading"):
        assert solvers.timesteps(1000, 1000, spacing) == list(range(999, -1, -1))
    assert solvers.timesteps(1000, 200, "trailing") == list(range(999, 0, -5))
    assert solvers.timesteps(1000, 200, "leading") == list(range(996, 0, -5))
    assert solvers.timesteps(1000, 999, "leading") == list(range(999, 0, -1))


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("num_steps", [1, 3, 25, 150, 600, 1000])
def test_timesteps_fall_and_exist(spacing, num_steps):
    visited = solvers.timesteps(1000, num_steps, spacing)
    assert len(visited) == num_steps
    assert visited == sorted(set(visited), reverse=True)
    assert 0 <= visited[-1] <= visited[0] <= 999


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(UserError, match=r"1001 .* 1000"):
        solvers.timesteps(1000, 1001, "trailing")


def test_the_published_fast_schedule_lies_at_these_timesteps():
    expected = torch.tensor([0, 0.894, 4.087, 10.452, 22.992, 42.919], dtype=torch.float64)
    torch.testing.assert_close(solvers.aligned_timesteps(FAST, OF_DIFFWAVE), expected, atol=5e-4, rtol=0)
    assert float(OF_DIFFWAVE[-1]) == pytest.approx(0.2796725, abs=5e-8)


def test_the_training_schedule_lies_at_its_own_timesteps():
    timesteps = solvers.aligned_timesteps(alpha_bar_to_betas(OF_DIFFWAVE), OF_DIFFWAVE)
    torch.testing.assert_close(timesteps, torch.arange(50, dtype=torch.float64))


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
        solvers.aligned_timesteps(torch.tensor(betas, dtype=torch.float64), OF_DIFFWAVE)


def test_a_perfect_net_finds_the_wave_along_a_schedule_of_its_own():
    x0 = 0.5 * torch.rand(3, 1, 400, generator=torch.Generator().manual_seed(1)) - 0.25
    timesteps = solvers.aligned_timesteps(FAST, OF_DIFFWAVE)
    levels = dict(zip(timesteps.tolist(), torch.cumprod(1 - FAST, 0).tolist(), strict=True))

    def found(part: slice) -> torch.Tensor:
        def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            level = min(levels.items(), key=lambda one: abs(one[0] - float(t[0])))[1]
            return (xt - level**0.5 * x0[part]) / (1 - level) ** 0.5

        draw = seeds(*range(3)[part])
        return sample(solvers.ancestral(FAST, timesteps), net, draw.noise((1, 400)), draw)

    together = found(slice(0, 3))
    torch.testing.assert_close(together, x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:2], found(slice(1, 2)), atol=0, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 6, 7, 31, 49, 50])
def test_so_many_steps_are_spread_over_the_timesteps(steps):
    expected = torch.linspace(49, 0, steps, dtype=torch.float64).flip(0)
    spread = solvers.aligned_timesteps(solvers.spread_betas(OF_DIFFWAVE, steps), OF_DIFFWAVE)
    torch.testing.assert_close(spread, expected, atol=1e-6, rtol=0)


def test_all_steps_are_the_training_s():
    torch.testing.assert_close(solvers.spread_betas(OF_DIFFWAVE, 50), alpha_bar_to_betas(OF_DIFFWAVE), atol=1e-12, rtol=1e-9)
