"""Paths: what a perfect and a silent net score, that every answer converts to the sound, how training times are spread; and what
each solver alone does: orders of convergence, timesteps and times, variances, schedules of sampling."""

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import torch

from soundmill.diffusion import paths, solvers
from soundmill.diffusion.params import DiffusionParams
from soundmill.diffusion.paths import Discrete, Flow, Net, Path, Velocity, error, linear, normalised, scaled
from soundmill.diffusion.sampling import Draw, Steps, sample
from soundmill.errors import UserError

CPU = torch.device("cpu")


def named(schedule: str, **changes: float) -> DiffusionParams:
    numbers = {"num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "shift": 0.5, "min_snr_gamma": 5.0} | changes
    return DiffusionParams(schedule=schedule, objective="eps", weighting="none", stratified=True, **numbers)


TABLES = {name: paths.alpha_bar(named(name)) for name in ("linear", "cosine", "rectified_flow")}
TABLES["tango"] = paths.alpha_bar(named("scaled_linear", beta_start=0.00085, beta_end=0.012))
SAMPLERS = ["ddpm", "ddim", "dpm++", "unipc"]
FAST = torch.tensor([1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5], dtype=torch.float64)


def scheduled(path: Discrete, sampler: str, **more: object) -> Callable[[int], Steps]:
    return lambda num_steps: solvers.scheduled(path, sampler, num_steps, CPU, **more)


# Every way from noise to sound, with the path that its net is trained on.
CONTINUOUS: dict[str, tuple[Path, Callable[[int], Steps]]] = {
    "velocity": (Velocity(), solvers.velocity),
    **{solver: (Flow(), lambda num_steps, solver=solver: solvers.flow(num_steps, solver)) for solver in solvers.PASSES},
    "dpm++_sde": (Velocity(), lambda num_steps: solvers.stable_audio(num_steps + 1, CPU)),
}
PATHS = {(objective, table): Discrete(TABLES[table], objective) for objective in ("eps", "x0", "v", "flow") for table in TABLES}
DISCRETE = {
    f"{sampler} {objective} {table} {spacing}": (path, scheduled(path, sampler, spacing=spacing))
    for sampler in SAMPLERS
    for (objective, table), path in PATHS.items()
    for spacing in ("trailing", "leading")
}
WAYS = CONTINUOUS | DISCRETE
FRESH = [*CONTINUOUS, *(f"{sampler} v cosine trailing" for sampler in SAMPLERS)]


def perfect(path: Path, x0: torch.Tensor) -> Net:
    """The net that knows x0: of a noisy sound it tells the noise, and so the target."""

    def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = path.alpha_sigma(t[0].item())
        return path.target(x0, (xt - alpha * x0) / sigma, alpha, sigma)

    return net


def blind(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(xt)


ALL: dict[str, Path] = {
    "velocity": Velocity(),
    "flow": Flow(),
    **{f"{one} linear": PATHS[one, "linear"] for one in ("eps", "x0", "v", "flow")},
}
MEAN, DEVIATION = 0.7, 0.3


def times_of(path: Path, shares: torch.Tensor) -> torch.Tensor:
    return path.times(shares) if isinstance(path, Discrete) else shares


def items(path: Path, count: int, spread: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0, evenly spread times, noise."""
    rng = torch.Generator().manual_seed(0)
    x0 = spread * torch.randn(count, 2, 400, generator=rng)
    return x0, times_of(path, (torch.arange(count) + 0.5) / count), torch.randn(x0.shape, generator=rng)


@pytest.mark.parametrize("name", ALL)
def test_a_perfect_net_has_no_error_and_its_answer_is_the_sound(name):
    path = ALL[name]
    x0, times, noise = items(path, 8)
    for item, t in enumerate(times[:7]):  # at the end, dividing by alpha loses digits in float32
        one, alpha, sigma = slice(item, item + 1), *path.alpha_sigma(t.item())
        assert error(path, perfect(path, x0[one]), x0[one], times[one], noise[one]).abs().max() < 1e-3
        goal = path.target(x0[one], noise[one], alpha, sigma)
        torch.testing.assert_close(path.x0(goal, alpha * x0[one] + sigma * noise[one], alpha, sigma), x0[one], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "expected"), [("velocity", 0.625), ("flow", 1.25), ("eps linear", 1), ("x0 linear", 0.25)])
def test_the_loss_of_a_net_that_knows_nothing(name, expected):
    x0, t, noise = items(ALL[name], 400)
    errors = error(ALL[name], blind, x0, t, noise)
    assert errors.shape == x0.shape
    assert float(errors.square().mean()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ALL)
def test_the_scales_of_numbers_and_tensors_agree(name):
    path, shares = ALL[name], torch.linspace(0, 0.999, 7)
    times = times_of(path, shares)
    for t, alpha, sigma in zip(times.tolist(), *path.alpha_sigma(times), strict=True):
        assert path.alpha_sigma(t) == pytest.approx((float(alpha), float(sigma)), abs=1e-6)
        total = alpha + sigma if isinstance(path, Flow) else alpha**2 + sigma**2
        assert float(total) == pytest.approx(1, abs=1e-6)


def test_v_diffusion_goes_along_a_circle():
    for level in (0.0, 0.1, 0.5, 0.9, 1.0):
        alpha, sigma = Velocity().alpha_sigma(level)
        assert math.atan2(sigma, alpha) == pytest.approx(level * math.pi / 2, abs=1e-15)
    assert (Velocity().alpha_sigma(0.0), Velocity().alpha_sigma(1.0)) == ((1.0, 0.0), (0.0, 1.0))


def exact(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[noise − x0 | xt] for x0 ~ N(MEAN, DEVIATION²): regression of one normal variable on another."""
    t = t.reshape(-1, *[1] * (xt.ndim - 1))
    covariance, variance = t - (1 - t) * DEVIATION**2, (1 - t) ** 2 * DEVIATION**2 + t**2
    return -MEAN + covariance / variance * (xt - (1 - t) * MEAN)


def test_the_least_loss_of_a_flow_is_that_of_the_closed_form():
    rng = torch.Generator().manual_seed(1)
    x0 = MEAN + DEVIATION * torch.randn(2000, 1, 100, generator=rng)
    noise, t = torch.randn(x0.shape, generator=rng), torch.rand(2000, generator=rng)

    def loss(net) -> float:
        return float(error(Flow(), net, x0, t, noise).square().mean())

    time = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    covariance, variance = time - (1 - time) * DEVIATION**2, (1 - time) ** 2 * DEVIATION**2 + time**2
    least = float((1 + DEVIATION**2 - covariance**2 / variance).mean())
    assert loss(exact) == pytest.approx(least, rel=0.01)
    for factor in (0.9, 1.1):
        assert loss(lambda xt, t, factor=factor: factor * exact(xt, t)) > loss(exact)


@pytest.mark.parametrize("first", [0, 1])
def test_timesteps_are_as_likely(first):
    path = Discrete(TABLES["linear"], first=first)
    times = path.times((torch.arange(1000 - first) + 0.5) / (1000 - first))
    assert times.tolist() == list(range(first, 1000))
    assert path.times(torch.tensor([0.0, 1 - 1e-8])).tolist() == [first, 999]


def test_times_are_logit_normal():
    t = paths.logit_normal(torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert 0 < float(t.min()) < float(t.max()) < 1
    for point in (0.1, 0.3, 0.5, 0.9):
        expected = (1 + math.erf(math.log(point / (1 - point)) / math.sqrt(2))) / 2
        assert float((t < point).double().mean()) == pytest.approx(expected, abs=5e-3)


def test_a_shift_gives_longer_sounds_the_same_doubt():
    """n values in place of one: the noise left in their mean is 1/√n, so SNR and time agree after the shift (Esser et al. 2024)."""
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    shift = paths.length_shift(512, 128)
    assert shift == 2
    moved = paths.shifted(t, shift)
    torch.testing.assert_close((1 - moved) / moved * math.sqrt(512), (1 - t) / t * math.sqrt(128))
    assert torch.equal(paths.shifted(t, 1.0), t)
    torch.testing.assert_close(paths.shifted(moved, 1 / shift), t)


def test_min_snr_weights_are_one_error_in_four_languages():
    """Weighted errors of one net agree whether its error is counted in eps, v, x0 or flow."""
    t = torch.tensor([0, 146, 500, 999])
    snr = paths.signal_to_noise(TABLES["tango"], t)
    # eps − eps' = (alpha/sigma)(x0 − x0'); v − v' = (x0 − x0')/sigma; of flow, the sum of the first and x0 − x0'
    for objective, squared in (("eps", snr), ("v", snr + 1), ("x0", torch.ones_like(snr)), ("flow", (snr.sqrt() + 1) ** 2)):
        weighted = PATHS[objective, "tango"].weights(t, "min_snr", gamma=5.0) * squared
        torch.testing.assert_close(weighted, snr.clamp(max=5.0))


def test_min_snr_of_tango_divides_by_snr_whatever_is_predicted():
    """Known answers on both sides of gamma = 5, at TANGO's schedule: SNR > 5 exactly up to t = 146."""
    t = torch.tensor([0, 146, 147, 500, 999])
    snr = paths.signal_to_noise(TABLES["tango"], t)
    for objective in ("eps", "v", "x0", "flow"):
        theirs = PATHS[objective, "tango"].weights(t, "min_snr_tango", gamma=5.0)
        assert (theirs[:2] < 1).all()
        torch.testing.assert_close(theirs[:2], 5 / snr[:2])
        torch.testing.assert_close(theirs[2:], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(theirs / PATHS["v", "tango"].weights(t, "min_snr", gamma=5.0), (snr + 1) / snr)
    torch.testing.assert_close(PATHS["eps", "tango"].weights(t, "min_snr", gamma=5.0), theirs)


@pytest.mark.parametrize("weighting", ["none", "min_snr"])
def test_the_loss_of_a_schedule_is_the_weighted_mean(weighting):
    params = named("linear").model_copy(update={"objective": "v", "weighting": weighting})
    path = paths.discrete(params)
    assert path.times(torch.zeros(1)).item() == 0  # the first of all timesteps is drawn too
    x0, t, noise = items(path, 4)
    losses = error(path, lambda xt, t: xt, x0, t, noise).square().flatten(1).mean(1)
    loss = paths.scheduled_loss(path, params, lambda xt, t: xt, x0, t, noise)
    assert loss.item() == pytest.approx((losses * path.weights(t, weighting, 5.0)).mean().item())
    assert (loss.item() == pytest.approx(losses.mean().item())) == (weighting == "none")
    halved = paths.scheduled_loss(path, params, lambda xt, t: xt, x0, t, noise, torch.tensor([[[0.5]], [[0.5]]]).reshape(1, 2, 1))
    assert halved.item() == pytest.approx(loss.item() / 2)


@pytest.mark.parametrize("deviation", [0.088, [0.088] * 9, [0.3, 0.1, 0.02, 0.01]])
def test_normalising_undoes_scaling(deviation):
    waves = torch.randn(3, 2, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(normalised(scaled(waves, deviation), deviation), waves, rtol=1e-12, atol=1e-14)


def test_noise_has_the_spectrum_of_the_sounds():
    """A deviation that falls from 1 to 0.1 along the frequencies, as seen by the power of the start of a sampling in eighths."""
    noise = torch.randn(64, 1, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    power = torch.fft.rfft(scaled(noise, [1.0, 0.1])).abs().square().mean((0, 1))[:2048] / 4096
    expected = torch.linspace(1, 0.1, 2049, dtype=torch.float64)[:2048].square()
    torch.testing.assert_close(power.unflatten(0, (8, -1)).mean(1), expected.unflatten(0, (8, -1)).mean(1), rtol=0.03, atol=0)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("linear", {0: 0.9999, 499: 0.078587, 999: 4.0358e-5}),
        ("tango", {0: 0.99915, 500: 0.27633, 999: 0.0046601}),
        ("rectified_flow", {249: 0.9, 499: 0.5, 899: 1 / 82}),
        ("cosine", {499: 0.4938436}),  # cos²((0.5 + 0.008) / 1.008 · π/2) / cos²(0.008 / 1.008 · π/2)
    ],
)
def test_known_values_of_schedules(table, expected):
    assert {t: TABLES[table][t].item() for t in expected} == pytest.approx(expected, rel=1e-4)


def test_shift_moves_the_log_snr_by_a_constant():
    plain, shifted = (paths.alpha_bar(named("shifted_cosine", shift=shift)) for shift in (1.0, 0.5))
    middle = slice(100, 900)
    difference = torch.logit(shifted[middle]) - torch.logit(plain[middle])
    torch.testing.assert_close(difference, torch.full_like(difference, 2 * torch.tensor(0.5).log().item()))


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "shifted_cosine", "rectified_flow"])
def test_every_schedule_falls_and_keeps_variance(name):
    table = paths.alpha_bar(named(name))
    assert table.dtype == torch.float64
    assert table.shape == (1000,)
    assert (table[1:] < table[:-1]).all()
    assert ((table > 0) & (table < 1)).all()
    torch.testing.assert_close(paths.betas_to_alpha_bar(paths.alpha_bar_to_betas(table)), table)


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


def test_a_perfect_net_finds_the_wave_along_a_schedule_of_its_own():
    x0 = 0.5 * torch.rand(3, 1, 400, generator=torch.Generator().manual_seed(1)) - 0.25
    timesteps = solvers.aligned_timesteps(FAST, OF_DIFFWAVE)
    levels = dict(zip(timesteps.tolist(), torch.cumprod(1 - FAST, 0).tolist(), strict=True))

    def found(part: slice) -> torch.Tensor:
        def net(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            level = min(levels.items(), key=lambda one: abs(one[0] - float(t[0])))[1]
            return (xt - level**0.5 * x0[part]) / (1 - level) ** 0.5

        draw = seeds(*range(3)[part])
        return sample(solvers.ancestral(FAST, timesteps, 1.0), net, draw.noise((1, 400)), draw)

    together = found(slice(0, 3))
    torch.testing.assert_close(together, x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:2], found(slice(1, 2)), atol=0, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 6, 7, 31, 49, 50])
def test_so_many_steps_are_spread_over_the_timesteps(steps):
    expected = torch.linspace(49, 0, steps, dtype=torch.float64).flip(0)
    spread = solvers.aligned_timesteps(solvers.spread_betas(OF_DIFFWAVE, steps), OF_DIFFWAVE)
    torch.testing.assert_close(spread, expected, atol=1e-6, rtol=0)
