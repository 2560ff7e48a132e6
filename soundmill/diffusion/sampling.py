"""From noise to sound along any path: sampling, restyling, inpainting, guidance. solvers.py makes the steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from soundmill.diffusion.paths import Deviation, Net, scaled
from soundmill.errors import UserError


@dataclass(frozen=True)
class Draw:
    """Normal noise; each item's is from its own generator, on the CPU, so an item does not depend on its batch or on a GPU."""

    rngs: Sequence[torch.Generator] = ()
    deviation: Deviation = 1.0

    @classmethod
    def of_seeds(cls, seeds: Sequence[int], deviation: Deviation = 1.0) -> "Draw":
        return cls([torch.Generator().manual_seed(seed) for seed in seeds], deviation)

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """[B, *shape], of unit variance."""
        return torch.stack([torch.randn(shape, generator=rng) for rng in self.rngs])

    def like(self, xt: Tensor) -> Tensor:
        """Of the deviation of sounds, in the shape and on the device of xt."""
        return scaled(self.noise(xt.shape[1:]).to(xt), self.deviation)


@dataclass(frozen=True)
class Steps:
    """A way back from noise; make new ones for each batch, as some remember earlier steps."""

    levels: Sequence[float]  # that it visits, from noise to the sound
    alpha_sigma: Callable[[float], tuple[float, float]]  # signal and noise scale at a level
    step: Callable[[Net, Tensor, float, float, Draw], Tensor]  # xt of one level → xt of the next
    scale: float = 1.0  # of the initial noise
    remember: bool = False  # whether a step depends on those before, so that it can be taken only once

    def last(self, amount: float) -> "Steps":
        """Those from the first level with at most this amount of noise, 2/π · atan(sigma / alpha), for restyling; 0: none."""

        def fits(level: float) -> bool:
            alpha, sigma = self.alpha_sigma(level)
            return math.atan2(sigma, alpha) <= amount * math.pi / 2 + 1e-6

        start = next((place for place, level in enumerate(self.levels[:-1]) if fits(level)), -2)
        return replace(self, levels=self.levels[start if amount else -1 :])


def sample(steps: Steps, net: Net, noise: Tensor, draw: Draw = Draw()) -> Tensor:
    """Sounds of `noise` [B, …], of the deviation of sounds; `draw` is for solvers that add noise."""
    return _denoised(steps, net, steps.scale * noise, draw)


def restyle(steps: Steps, net: Net, sounds: Tensor, noise: Tensor, draw: Draw = Draw()) -> Tensor:
    """Add noise to sounds [B, …] up to the first level of `steps`, and denoise them (Meng et al. 2022); no step changes nothing."""
    alpha, sigma = steps.alpha_sigma(steps.levels[0])
    return _denoised(steps, net, alpha * sounds + sigma * noise, draw) if sigma and len(steps.levels) > 1 else sounds


def inpaint(steps: Steps, net: Net, sounds: Tensor, keep: Tensor, draw: Draw, resamples: int = 1) -> Tensor:
    """Regenerate sounds [B, …] where `keep` (boolean, broadcast) is false; the rest is unchanged, bit for bit.

    For a net that was not trained for it (RePaint: Lugmayr et al. 2022). At every level the kept part is the given sound with fresh
    noise. Each step is taken `resamples` times, with noise added in between, so that the parts fit together; UserError if it can be
    taken only once.
    """
    if resamples > 1 and steps.remember:
        raise UserError("sampling.resamples: this sampler takes each step once; set it to 1, or take another sampler")
    xt = steps.alpha_sigma(steps.levels[0])[1] * draw.like(sounds)
    for now, after in pairwise(steps.levels):
        alpha, sigma = steps.alpha_sigma(after)
        for turn in range(resamples):
            xt = torch.where(keep, alpha * sounds + sigma * draw.like(sounds), steps.step(net, xt, now, after, draw))
            if turn + 1 < resamples:
                alpha_now, sigma_now = steps.alpha_sigma(now)
                ratio = alpha_now / alpha
                xt = ratio * xt + math.sqrt(max(sigma_now**2 - (ratio * sigma) ** 2, 0.0)) * draw.like(sounds)
    return torch.where(keep, sounds, xt)


@dataclass(frozen=True)
class Given:
    """What sampling begins with beside noise that it draws; without any of it, it generates."""

    sounds: Tensor | None = None  # [N, …], to restyle, or to inpaint where `keep` is false
    amount: float = 1.0  # of noise to restyle by, see Steps.last
    keep: Tensor | None = None  # boolean, broadcast
    resamples: int = 1
    noise: Tensor | None = None  # [N, …], instead of drawn noise

    def steps(self, steps: Steps) -> Steps:
        """Those of `steps` that are taken."""
        return steps if self.sounds is None or self.keep is not None else steps.last(self.amount)

    def sample(self, items: slice, steps: Steps, net: Net, shape: tuple[int, ...], draw: Draw, device: torch.device) -> Tensor:
        """Sounds [items, *shape] by what `steps` returned."""
        sounds = None if self.sounds is None else self.sounds[items].to(device)
        if sounds is not None and self.keep is not None:
            return inpaint(steps, net, sounds, self.keep.to(device), draw, self.resamples)
        noise = draw.noise(shape)  # also if it is given, so that what is drawn later is the same
        noise = (noise if self.noise is None else self.noise[items]).to(device)
        return sample(steps, net, noise, draw) if sounds is None else restyle(steps, net, sounds, noise, draw)


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Spherical interpolation between two noises (Shoemake 1985); a `share` of 0 is the first, 1 the second."""
    angle = torch.arccos(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp(-1, 1))
    if angle < 1e-6:
        return torch.lerp(first, second, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)


def _denoised(steps: Steps, net: Net, xt: Tensor, draw: Draw) -> Tensor:
    for now, after in pairwise(steps.levels):
        xt = steps.step(net, xt, now, after, draw)
    return xt


Condition = tuple[Tensor, ...]  # each [B, …]: label weights, or text states and their mask


def guided(net: Callable[..., Tensor], condition: Condition, null: Condition, scale: float) -> Net:
    """Classifier-free guidance (Ho & Salimans 2022), with conditional and unconditional items in one batch.

    A net (xt [B, …], t [B]) → u + scale·(c − u), with c = net(xt, t, *condition) and u = net(xt, t, *null).

    `null` has the shapes of `condition`. With scale 1, and for items whose condition equals the null one, the result is c, so u is
    not computed. These items are found here, once for all steps, because reading them waits for the GPU.
    """
    if scale == 1:
        return lambda xt, t: net(xt, t, *condition)
    differing = [(c != u).reshape(len(c), -1).any(1) for c, u in zip(condition, null, strict=True)]
    items = torch.stack(differing).any(0).nonzero()[:, 0]
    count = len(condition[0])
    all_guided = len(items) == count
    both = [torch.cat([c, u if all_guided else u[items]]) for c, u in zip(condition, null, strict=True)]

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        guided_items = (xt, t) if all_guided else (xt[items], t[items])
        outputs = net(*[torch.cat(parts) for parts in zip((xt, t), guided_items, strict=True)], *both)
        conditional, unconditional = outputs[:count], outputs[count:]
        if all_guided:
            return unconditional + scale * (conditional - unconditional)
        return conditional.index_copy(0, items, unconditional + scale * (conditional[items] - unconditional))

    return predict
