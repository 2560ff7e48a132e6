"""Sampling, restyling and inpainting along every path: a perfect net, a net that knows nothing, and what is kept."""

import math

import pytest
import torch

from soundmill.diffusion import solvers
from soundmill.diffusion.paths import Velocity, on_unit_variance, scaled
from soundmill.diffusion.sampling import Draw, guided, inpaint, restyle, sample
from tests.diffusion.test_paths import CONTINUOUS, FRESH, WAYS, perfect

X0 = 0.3 * torch.randn(3, 2, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(X0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
KEEP = (torch.arange(500) >= 100) & (torch.arange(500) < 300)


def draw(items: int = len(X0), deviation=1.0) -> Draw:
    return Draw.of_seeds(range(items), deviation)


def near(name: str) -> float:
    """How near a perfect net gets: schedules work in float32."""
    return 1e-13 if name in CONTINUOUS and name != "dpm++_sde" else 5e-3


@pytest.mark.parametrize("name", WAYS)
def test_a_perfect_net_finds_the_sound_in_any_number_of_steps(name):
    path, steps = WAYS[name]
    for num_steps in (1, 2, 7, 10):
        found = sample(steps(num_steps), perfect(path, X0), NOISE, draw())
        assert (found - X0).abs().max() < near(name)


@pytest.mark.parametrize("name", FRESH)
def test_an_item_does_not_depend_on_its_neighbours(name):
    _, steps = WAYS[name]
    together = sample(steps(5), lambda xt, t: 0.1 * xt, NOISE, draw())
    alone = sample(steps(5), lambda xt, t: 0.1 * xt, NOISE[2:], Draw.of_seeds([2]))
    torch.testing.assert_close(together[2:], alone)


@pytest.mark.parametrize("name", FRESH)
def test_inpainting_keeps_what_it_is_told_to_bit_for_bit(name):
    path, steps = WAYS[name]
    for resamples in (1, 3) if name in ("velocity", "euler", "midpoint", "ddim v cosine trailing") else (1,):
        found = inpaint(steps(5), perfect(path, -X0), X0, KEEP, draw(), resamples)
        assert torch.equal(found[..., KEEP], X0[..., KEEP])
        assert (found + X0)[..., ~KEEP].abs().max() < near(name)
        assert torch.equal(found, inpaint(steps(5), perfect(path, -X0), X0, KEEP, draw(), resamples))
        unseen = inpaint(steps(5), perfect(path, -X0), torch.where(KEEP, X0, 7.0), KEEP, draw(), resamples)
        assert torch.equal(unseen, found)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_inpainting_fits_the_rest_to_what_is_kept(name):
    """Both halves of a sound are the same value: where one is kept, the other follows it."""
    keep = torch.arange(300) < 150
    path, steps = CONTINUOUS[name]

    def alike(xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Of sounds of one value, drawn from N(0, 1), given all of xt."""
        alpha, sigma = path.alpha_sigma(t[0].item())
        return perfect(path, alpha * xt.sum(2, keepdim=True) / (300 * alpha**2 + sigma**2))(xt, t)

    sounds = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None, None].expand(4, 2, 300).clone()
    sounds[..., ~keep] = 7.0  # nothing of this may be seen
    found = inpaint(steps(40), alike, sounds, keep, draw(4))
    assert (found[..., ~keep] - sounds[..., :1]).abs().max() < 0.2


def test_an_inpainting_s_noise_has_the_level_s_strength():
    """At every call of the net, whatever came before: what is kept and what is not have the variance of that level."""
    silence, keep, seen = torch.zeros(64, 1, 4000), torch.arange(4000) < 2000, []

    def net(xt: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        alpha, sigma = Velocity().alpha_sigma(float(level[0]))
        seen.append((sigma, float(xt[..., keep].std()), float(xt[..., ~keep].std())))
        return alpha / max(sigma, 1e-9) * xt  # of silence

    inpaint(solvers.velocity(5), net, silence, keep, draw(64), 3)
    assert len(seen) == 15
    for sigma, kept, output in seen:
        assert kept == pytest.approx(sigma, rel=0.02)
        assert output == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize("name", WAYS)
def test_the_last_steps_of_any_way_restyle(name):
    path, steps = WAYS[name]
    assert torch.equal(restyle(steps(5).last(0.0), perfect(path, -X0), X0, NOISE, draw()), X0)
    counts, seen = [], []

    def net(xt: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        seen.append(xt)
        return perfect(path, -X0)(xt, level)

    for amount in (0.4, 1.0):
        seen.clear()
        found = restyle(last := steps(5).last(amount), net, X0, NOISE, draw())
        assert (found + X0).abs().max() < near(name)
        alpha, sigma = last.alpha_sigma(last.levels[0])
        counts.append(len(last.levels))
        assert amount == 1 or counts[0] == 2 or math.atan2(sigma, alpha) < 0.4 * math.pi / 2 + 1e-5
        expected = alpha * X0 + sigma * NOISE
        torch.testing.assert_close(seen[0] / seen[0].std(), (expected / expected.std()).to(seen[0]), rtol=0, atol=1e-3)
    assert 2 <= counts[0] < counts[1]


def net_of_x0(xt: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    return xt.tanh() * level.reshape(-1, 1, 1) - 0.1


@pytest.mark.parametrize("deviation", [0.088, [0.088] * 9, [0.3, 0.1, 0.02, 0.01]])
def test_scaled_sounds_are_those_of_unit_variance(deviation):
    waves, noise, net = scaled(X0, deviation), scaled(NOISE, deviation), on_unit_variance(net_of_x0, deviation)
    for larger, unit in [
        (sample(solvers.velocity(5), net, noise), sample(solvers.velocity(5), net_of_x0, NOISE)),
        (restyle(solvers.velocity(5).last(0.6), net, waves, noise), restyle(solvers.velocity(5).last(0.6), net_of_x0, X0, NOISE)),
    ]:
        torch.testing.assert_close(larger, scaled(unit, deviation), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("deviation", [0.088, [0.088] * 9, [0.3, 0.1, 0.02, 0.01]])
def test_inpainting_of_scaled_sounds(deviation):
    """Although a filter has no borders: what is kept stays bit for bit, and the rest depends on it alone."""

    def found(sounds: torch.Tensor) -> torch.Tensor:
        return inpaint(solvers.velocity(5), on_unit_variance(net_of_x0, deviation), sounds, KEEP, draw(3, deviation), 2)

    assert torch.equal(found(X0)[..., KEEP], X0[..., KEEP])
    assert torch.equal(found(X0), found(torch.where(KEEP, X0, 7.0)))
    assert not torch.equal(found(X0), found(torch.where(KEEP, -X0, X0)))
    if deviation != [0.3, 0.1, 0.02, 0.01]:
        unit = inpaint(solvers.velocity(5), net_of_x0, X0 / 0.088, KEEP, draw(), 2)
        torch.testing.assert_close(found(X0), 0.088 * unit, rtol=1e-10, atol=1e-12)


def test_v_diffusion_without_a_scale_is_as_published_bit_for_bit():
    xt = NOISE.float()
    for now, after in [(1.0, 0.5), (0.5, 0.0)]:
        v = net_of_x0(xt, torch.full((len(xt),), now))
        (alpha, sigma), (to_alpha, to_sigma) = Velocity().alpha_sigma(now), Velocity().alpha_sigma(after)
        xt = to_alpha * (alpha * xt - sigma * v) + to_sigma * (sigma * xt + alpha * v)
    assert torch.equal(sample(solvers.velocity(2), on_unit_variance(net_of_x0, 1.0), NOISE.float()), xt)


def test_clipping_holds_every_estimate():
    path, _ = WAYS["ddim x0 linear trailing"]
    found = sample(solvers.scheduled(path, "ddim", 5, torch.device("cpu"), clip=1.0), lambda xt, t: 50 * xt, NOISE)
    assert found.abs().max() <= 1


def _net(xt: torch.Tensor, t: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """An answer that hangs on states [B, L, D] where mask [B, L] is true."""
    return xt * 0.5 + (states * mask[..., None]).sum((1, 2))[:, None] + t[:, None] * 0.01


XT, T = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3])
TEXT = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(1)), torch.arange(5) < torch.tensor([[2], [5], [3]])
NULL = torch.ones(3, 5, 2), (torch.arange(5) < 1).expand(3, 5)


def test_line_through_conditional_and_unconditional():
    conditional, unconditional = _net(XT, T, *TEXT), _net(XT, T, *NULL)
    assert torch.equal(guided(_net, TEXT, NULL, 1)(XT, T), conditional)
    torch.testing.assert_close(guided(_net, TEXT, NULL, 0.0)(XT, T), unconditional)
    torch.testing.assert_close(guided(_net, TEXT, NULL, 3.0)(XT, T), 3 * conditional - 2 * unconditional)


def test_masks_stay_boolean_and_what_they_hide_changes_nothing():
    kinds = []

    def looking(xt: torch.Tensor, t: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        kinds.append(mask.dtype)
        return _net(xt, t, states, mask)

    states, mask = TEXT
    hidden = torch.where(mask[..., None], states, 1e3)
    torch.testing.assert_close(guided(looking, (hidden, mask), NULL, 2.0)(XT, T), guided(looking, TEXT, NULL, 2.0)(XT, T))
    assert set(kinds) == {torch.bool}


@pytest.mark.parametrize("plain", [[0, 1, 2], [1], []])
def test_items_without_a_condition_are_computed_once(plain):
    evaluated = []

    def counting(xt: torch.Tensor, t: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        evaluated.append(len(xt))
        return _net(xt, t, states, mask)

    mixed = tuple(states.clone() for states in TEXT)
    for states, nothing in zip(mixed, NULL, strict=True):
        states[plain] = nothing[plain]
    conditional, unconditional = _net(XT, T, *mixed), _net(XT, T, *NULL)
    output = guided(counting, mixed, NULL, 3.0)(XT, T)
    torch.testing.assert_close(output, unconditional + 3 * (conditional - unconditional))
    guided(counting, mixed, NULL, 1)(XT, T)
    assert evaluated == [3 + 3 - len(plain), 3]


def test_an_item_may_differ_by_a_mark_alone():
    """The U-Net of waves takes states, a mask, and which items are to be seen without them."""
    evaluated = []

    def net(xt: torch.Tensor, t: torch.Tensor, states: torch.Tensor, mask: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        evaluated.append(len(xt))
        return _net(xt, t, states, mask) * (~dropped)[:, None]

    dropped = torch.tensor([False, True, False])
    output = guided(net, (*TEXT, dropped), (*TEXT, torch.ones(3, dtype=torch.bool)), 3.0)(XT, T)
    torch.testing.assert_close(output, 3 * net(XT, T, *TEXT, dropped))
    assert evaluated[0] == 5


def test_a_step_reads_nothing_back():
    """On a GPU it would wait for all that was asked for before."""
    mixed = tuple(given.clone() for given in TEXT)
    for given, nothing in zip(mixed, NULL, strict=True):
        given[1] = nothing[1]
    answer = guided(_net, mixed, NULL, 3.0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        answer(XT, T)
    called = {event.key for event in profile.key_averages()}
    assert "aten::cat" in called
    assert not called & {"aten::nonzero", "aten::item", "aten::_local_scalar_dense"}
