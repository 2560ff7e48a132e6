"""v-diffusion on the half circle against its closed forms: a perfect net, a net that knows nothing, what is kept."""

import math

import pytest
import torch

from soundmill.diffusion import velocity

X0 = 0.3 * torch.randn(3, 2, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def perfect(x0: torch.Tensor):
    """The net that knows x0: of a noisy sound it tells the noise, and so v."""

    def net(xt: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        alpha, sigma = velocity.alpha_sigma(float(level[0]))
        noise = (xt - alpha * x0) / sigma
        return alpha * noise - sigma * x0

    return net


def blind(xt: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(xt)


def rngs(seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + item) for item in range(len(X0))]


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_circle(level):
    alpha, sigma = velocity.alpha_sigma(level)
    assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-15)
    assert math.atan2(sigma, alpha) == pytest.approx(level * math.pi / 2, abs=1e-15)
    assert (velocity.alpha_sigma(0.0), velocity.alpha_sigma(1.0)) == ((1.0, 0.0), (0.0, 1.0))


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_a_perfect_net_finds_the_sound(num_steps):
    found = velocity.sample(perfect(X0), torch.randn_like(X0), num_steps)
    assert (found - X0).abs().max() < 1e-14


def test_a_net_that_knows_nothing_has_half_of_one_and_the_variance():
    x0 = 0.5 * torch.randn(400, 1, 1000, generator=torch.Generator().manual_seed(0))
    noise, level = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 1, len(x0))
    assert float(velocity.loss(blind, x0, level, noise)) == pytest.approx((1 + float(x0.var())) / 2, rel=5e-3)
    assert float(velocity.loss(lambda xt, t: perfect(x0[:1])(xt, t), x0[:1], level[200:201], noise[:1])) < 1e-9


def test_restyling_goes_from_nothing_to_everything():
    noise = torch.randn_like(X0)
    assert torch.equal(velocity.restyle(perfect(-X0), X0, noise, 4, 0.0), X0)
    assert torch.equal(velocity.restyle(perfect(-X0), X0, noise, 4, 1.0), velocity.sample(perfect(-X0), noise, 4))
    # What the net is sure of it makes at any amount; one that answers 0 only turns the circle back, and keeps the sound's share.
    assert (velocity.restyle(perfect(-X0), X0, noise, 4, 0.3) + X0).abs().max() < 1e-13
    left = velocity.restyle(blind, X0, torch.zeros_like(X0), 1, 0.5)
    torch.testing.assert_close(left, X0 / 2)


@pytest.mark.parametrize("resamples", [1, 3])
def test_inpainting_keeps_what_it_is_told_to_bit_for_bit(resamples):
    keep, other = torch.zeros(500, dtype=torch.bool), -X0
    keep[100:300] = True
    output = velocity.inpaint(perfect(other), X0, keep, rngs(), 5, resamples)
    assert torch.equal(output[..., keep], X0[..., keep])
    assert (output[..., ~keep] - other[..., ~keep]).abs().max() < 1e-13
    assert torch.equal(output, velocity.inpaint(perfect(other), X0, keep, rngs(), 5, resamples))


def test_an_inpainting_s_noise_has_the_level_s_strength():
    """At every call of the net, whatever came before: what is kept and what is not have the variance of that level."""
    silence, keep, seen = torch.zeros(64, 1, 4000), torch.arange(4000) < 2000, []

    def net(xt: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        alpha, sigma = velocity.alpha_sigma(float(level[0]))
        seen.append((sigma, float(xt[..., keep].std()), float(xt[..., ~keep].std())))
        return alpha / max(sigma, 1e-9) * xt  # of silence

    velocity.inpaint(net, silence, keep, [torch.Generator().manual_seed(seed) for seed in range(64)], 5, 3)
    assert len(seen) == 15
    for sigma, kept, output in seen:
        assert kept == pytest.approx(sigma, rel=0.02)
        assert output == pytest.approx(sigma, rel=0.02)


SCALE = 0.088  # of waves, as quiet as ESC-10's


def net_of_x0(xt: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    return xt.tanh() * level.reshape(-1, 1, 1) - 0.1


@pytest.mark.parametrize("deviation", [SCALE, [SCALE] * 9, [0.3, 0.1, 0.02, 0.01]])
def test_scaled_waves_are_those_of_unit_variance(deviation):
    """A net on waves of standard deviation σ is one of unit variance on waves / σ: the same loss, and samples σ times as large."""
    noise, level = torch.randn_like(X0), torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    waves = velocity.scaled(X0, deviation)
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(velocity.normalised(waves, deviation), X0, **close)
    torch.testing.assert_close(
        velocity.loss(net_of_x0, waves, level, noise, deviation), velocity.loss(net_of_x0, X0, level, noise), **close
    )
    for larger, unit in [
        (velocity.sample(net_of_x0, noise, 5, deviation), velocity.sample(net_of_x0, noise, 5)),
        (velocity.restyle(net_of_x0, waves, noise, 5, 0.6, deviation), velocity.restyle(net_of_x0, X0, noise, 5, 0.6)),
    ]:
        torch.testing.assert_close(larger, velocity.scaled(unit, deviation), **close)


@pytest.mark.parametrize("deviation", [SCALE, [SCALE] * 9])
def test_inpainting_of_scaled_waves_is_that_of_unit_variance(deviation):
    waves, keep = SCALE * X0, torch.arange(500) < 200
    found = velocity.inpaint(net_of_x0, waves, keep, rngs(), 5, 2, deviation)
    torch.testing.assert_close(found, SCALE * velocity.inpaint(net_of_x0, X0, keep, rngs(), 5, 2), rtol=1e-12, atol=1e-14)
    assert torch.equal(found[..., keep], waves[..., keep])


def test_inpainting_of_whitened_waves_sees_nothing_of_what_it_regenerates():
    """Although a filter has no borders: what is kept stays bit for bit, and the rest depends on it alone."""
    keep, deviation = torch.arange(500) < 200, [0.3, 0.1, 0.02, 0.01]
    found = velocity.inpaint(net_of_x0, X0, keep, rngs(), 5, 2, deviation)
    assert torch.equal(found[..., keep], X0[..., keep])
    assert torch.equal(found, velocity.inpaint(net_of_x0, torch.where(keep, X0, 7.0), keep, rngs(), 5, 2, deviation))
    assert not torch.equal(found, velocity.inpaint(net_of_x0, torch.where(keep, -X0, X0), keep, rngs(), 5, 2, deviation))


def test_noise_has_the_spectrum_of_the_sounds():
    """A deviation that falls from 1 to 0.1 along the frequencies, as seen by the power of the start of a sampling in eighths."""
    noise = torch.randn(64, 1, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    power = torch.fft.rfft(velocity.scaled(noise, [1.0, 0.1])).abs().square().mean((0, 1))[:2048] / 4096
    expected = torch.linspace(1, 0.1, 2049, dtype=torch.float64)[:2048].square()
    torch.testing.assert_close(power.unflatten(0, (8, -1)).mean(1), expected.unflatten(0, (8, -1)).mean(1), rtol=0.03, atol=0)


def test_a_perfect_net_of_scaled_waves_finds_them():
    found = velocity.sample(perfect(X0 / 0.3), torch.randn_like(X0), 10, 0.3)
    assert (found - X0).abs().max() < 1e-14


def test_a_scale_of_one_changes_no_bit():
    noise = torch.randn(X0.shape, generator=torch.Generator().manual_seed(3))
    level = torch.tensor([0.05, 0.4, 0.9])
    x0 = X0.float()
    angle = level.reshape(-1, 1, 1) * (math.pi / 2)
    v = net_of_x0(angle.cos() * x0 + angle.sin() * noise, level)
    published = (v - (angle.cos() * noise - angle.sin() * x0)).square().mean()
    assert torch.equal(velocity.loss(net_of_x0, x0, level, noise, 1.0), published)
    xt = noise
    for now, after in [(1.0, 0.5), (0.5, 0.0)]:
        v = net_of_x0(xt, torch.full((len(xt),), now))
        (alpha, sigma), (to_alpha, to_sigma) = velocity.alpha_sigma(now), velocity.alpha_sigma(after)
        xt = to_alpha * (alpha * xt - sigma * v) + to_sigma * (sigma * xt + alpha * v)
    assert torch.equal(velocity.sample(net_of_x0, noise, 2), xt)


def test_half_of_the_levels_have_more_signal_than_noise():
    """SNR = 1 lies at level 0.5 for scaled waves, and at 0.056 for waves of ESC-10's median without scale."""
    for sigma_data, expected in ((1.0, 0.5), (SCALE, 0.056)):
        levels = torch.linspace(1e-4, 1 - 1e-4, 9999, dtype=torch.float64) * (math.pi / 2)
        snr = sigma_data * levels.cos() / levels.sin()
        assert float((snr > 1).double().mean()) == pytest.approx(expected, abs=1e-3)
