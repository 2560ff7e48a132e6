"""Paths from sound to noise: at time t, xt = alpha·x0 + sigma·noise, and a net learns the path's target from (xt, t).

Three paths: the timesteps of a noise schedule (`Discrete`), the circle of v-diffusion (`Velocity`), straight lines (`Flow`). Of
each, `alpha_sigma` gives the scales of signal and noise at times, as numbers or tensors [B] like these, `target` what a net learns,
and `x0` the sound that an output of it implies. Times of the last two go from 0, the sound, to 1, pure noise. A schedule is a table
of alpha_bar over the training timesteps, in float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from soundmill.diffusion.params import DiffusionParams

OFFSET = 0.008  # of the cosine, s in Nichol & Dhariwal 2021, eq. 17
MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: keeps the last step from being singular


def linear(num_timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """alpha_bar [T] of betas evenly spaced from `beta_start` to `beta_end` (Ho et al. 2020, section 4)."""
    return betas_to_alpha_bar(torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64))


def alpha_bar(params: DiffusionParams) -> Tensor:
    """alpha_bar [T] of the schedule in `params`, whose unused parameters are ignored.

    Of `scaled_linear`, the square roots of betas are evenly spaced (Rombach et al. 2022). `cosine` is a squared cosine (Nichol &
    Dhariwal 2021, eq. 17); of `shifted_cosine`, the log-SNR of a cosine is moved by 2·ln(shift) (Hoogeboom et al. 2023, eq. 9): a
    shift below 1 spends more of the schedule at high noise, as large smooth pictures need. Of `rectified_flow`, noise and signal
    are as t to 1 − t (Liu et al. 2022), scaled to unit variance. Betas of these three are at most 0.999.
    """
    count = params.num_timesteps
    if params.schedule == "linear":
        return linear(count, params.beta_start, params.beta_end)
    if params.schedule == "scaled_linear":
        roots = torch.linspace(math.sqrt(params.beta_start), math.sqrt(params.beta_end), count, dtype=torch.float64)
        return betas_to_alpha_bar(roots.square())
    if params.schedule == "cosine":
        time = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        level = torch.cos((time + OFFSET) / (1 + OFFSET) * math.pi / 2).square()
        return betas_to_alpha_bar((1 - level[1:] / level[:-1]).clamp(max=MAX_BETA))
    time = torch.arange(1, count + 1, dtype=torch.float64) / count
    if params.schedule == "rectified_flow":
        log_snr = -2 * torch.logit(time.clamp(max=1 - 1e-9))
    else:
        log_snr = -2 * torch.log(torch.tan(time.clamp(max=1 - 1e-9) * math.pi / 2)) + 2 * math.log(params.shift)
    return betas_to_alpha_bar(alpha_bar_to_betas(torch.sigmoid(log_snr)).clamp(max=MAX_BETA))


def betas_to_alpha_bar(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, dim=0)


def alpha_bar_to_betas(table: Tensor) -> Tensor:
    """The betas [T] of alpha_bar `table` [T]."""
    before = torch.cat([torch.ones(1, dtype=table.dtype), table[:-1]])
    return 1 - table / before


Objective = Literal["eps", "x0", "v", "flow"]
Weighting = Literal["none", "min_snr", "min_snr_tango"]
Net = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Discrete:
    """The timesteps of a schedule: alpha_bar `table` [T]; those below `first` are not trained on."""

    table: Tensor
    objective: Objective = "eps"
    first: int = 0

    def alpha_sigma(self, t: Any) -> tuple[Any, Any]:
        """Timestep −1 is the sound."""
        if isinstance(t, Tensor):
            level = self.table.to(t.device)[t]
            return level.sqrt().float(), (1 - level).sqrt().float()
        level = float(self.table[int(t)]) if t >= 0 else 1.0
        return math.sqrt(level), math.sqrt(1 - level)

    def times(self, shares: Tensor) -> Tensor:
        """Times [B] at these shares, in [0, 1), of the times that are trained on."""
        span = len(self.table) - self.first
        return self.first + (shares * span).long().clamp(max=span - 1)

    def target(self, x0: Tensor, noise: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """v is alpha·noise − sigma·x0 (Salimans & Ho 2022, appendix D), flow is noise − x0 (Liu et al. 2022)."""
        targets = {"eps": lambda: noise, "x0": lambda: x0, "v": lambda: alpha * noise - sigma * x0, "flow": lambda: noise - x0}
        return targets[self.objective]()

    def x0(self, output: Tensor, xt: Tensor, alpha: Any, sigma: Any) -> Tensor:
        if self.objective == "eps":
            return (xt - sigma * output) / alpha
        if self.objective == "flow":
            return (xt - sigma * output) / (alpha + sigma)
        return output if self.objective == "x0" else alpha * xt - sigma * output

    def weights(self, t: Tensor, weighting: Weighting, gamma: float) -> Tensor:
        """Weights [B] of losses. Min-SNR weights the x0 error by min(SNR, gamma), converted to the error of the objective.

        Hang et al. 2023 divide by SNR for eps, by SNR + 1 for v, and not at all for x0; of flow it is (√SNR + 1)².
        `min_snr_tango` divides by SNR for all of them, as TANGO's code does: with v, this weights errors (SNR + 1) / SNR times as
        much, most of all at high noise.
        """
        snr = signal_to_noise(self.table, t)
        if weighting == "none":
            return torch.ones_like(snr)
        clipped = snr.clamp(max=gamma)
        if weighting == "min_snr_tango":
            return clipped / snr
        return clipped / {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr), "flow": (snr.sqrt() + 1) ** 2}[self.objective]


@dataclass(frozen=True)
class Velocity:
    """v-diffusion (Salimans & Ho 2022, appendix D): alpha and sigma are cosine and sine of tπ/2, the target alpha·noise − sigma·x0.

    The net works on x0 of unit variance: half of the times then have more signal than noise (`Deviation`).
    """

    def alpha_sigma(self, t: Any) -> tuple[Any, Any]:
        """Exactly (1, 0) at 0 and (0, 1) at 1."""
        if isinstance(t, Tensor):
            angle = t * (math.pi / 2)
            return angle.cos(), angle.sin()
        if t in (0.0, 1.0):
            return 1.0 - t, t
        return math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)

    def target(self, x0: Tensor, noise: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return alpha * noise - sigma * x0

    def x0(self, output: Tensor, xt: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return alpha * xt - sigma * output

    def noise(self, output: Tensor, xt: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return sigma * xt + alpha * output


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2022; Lipman et al. 2022): xt = (1 − t)·x0 + t·noise; the target is its derivative, noise − x0."""

    def alpha_sigma(self, t: Any) -> tuple[Any, Any]:
        return 1 - t, t

    def target(self, x0: Tensor, noise: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return noise - x0

    def x0(self, output: Tensor, xt: Tensor, alpha: Any, sigma: Any) -> Tensor:
        return xt - sigma * output


Path = Discrete | Velocity | Flow
PATHS: dict[str, Path] = {"v": Velocity(), "rectified_flow": Flow()}  # of continuous times


def error(path: Path, net: Net, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """net(xt, t) minus the path's target; all [B, …], t [B].

    The mean square of a net that outputs 0 is 1 for eps, (1 + Var x0) / 2 for `Velocity` at uniform times, and 1 + the mean square
    of x0 for `Flow`.
    """
    alpha, sigma = (one.reshape(-1, *[1] * (x0.ndim - 1)) for one in path.alpha_sigma(t))
    return net(alpha * x0 + sigma * noise, t).float() - path.target(x0, noise, alpha, sigma)


def scheduled_loss(
    path: Discrete, params: DiffusionParams, net: Net, x0: Tensor, t: Tensor, noise: Tensor, importance: Tensor | float = 1.0
) -> Tensor:
    """Mean squared error, weighted by timestep as `params` say.

    `importance`, broadcast over x0 and with mean 1, weights the errors of each channel; it does not change the optimal output.
    """
    losses = (error(path, net, x0, t, noise).square() * importance).flatten(1).mean(1)
    return (losses * path.weights(t, params.weighting, params.min_snr_gamma).to(losses.dtype)).mean()


def discrete(params: DiffusionParams, first: int = 0) -> Discrete:
    return Discrete(alpha_bar(params), params.objective, first)


def signal_to_noise(table: Tensor, t: Tensor) -> Tensor:
    """SNR [B] at timesteps t [B] of alpha_bar `table` [T], float64."""
    level = table.to(t.device)[t]
    return level / (1 - level)


def logit_normal(shares: Tensor) -> Tensor:
    """Times in (0, 1) whose logits are normal, of uniform shares (Esser et al. 2024, section 3.1).

    The middle of the path, where the velocity is hardest to predict, is drawn most often.
    """
    return torch.sigmoid(torch.special.ndtri(shares))


def length_shift(length: int, base_length: int) -> float:
    """The `shift` for sounds of `length` latents that gives each as much noise as `base_length` have at the same time: the square
    root of their ratio (Esser et al. 2024, section 5.3.2: at the same t, more values of one picture tell more of it)."""
    return math.sqrt(length / base_length)


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise if `shift` is above 1: shift·t / (1 + (shift − 1)·t) (Esser et al. 2024, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


# Sounds of other than unit variance (Karras et al. 2022, section 5): the noise is scaled to them, and the net sees both as of unit
# variance. With quiet waves and noise of unit variance, nearly all of a path would be noise. A deviation may also be a list: the
# standard deviations at frequencies from 0 to half the sample rate. Then the noise has the spectrum of the sounds, the net sees
# them whitened, and half of the times of v-diffusion have more signal than noise at every frequency.
Deviation = float | Sequence[float]


def normalised(waves: Tensor, deviation: Deviation) -> Tensor:
    """Waves [..., T] divided by their standard deviation; a list whitens them: a filter without delay, in a circle."""
    if isinstance(deviation, Sequence):
        return torch.fft.irfft(torch.fft.rfft(waves) / _gains(waves, deviation), n=waves.shape[-1])
    return waves / deviation


def scaled(waves: Tensor, deviation: Deviation) -> Tensor:
    """The inverse of `normalised`."""
    if isinstance(deviation, Sequence):
        return torch.fft.irfft(torch.fft.rfft(waves) * _gains(waves, deviation), n=waves.shape[-1])
    return deviation * waves


def on_unit_variance(net: Net, deviation: Deviation) -> Net:
    """The net for sounds of this deviation, of a net for those of unit variance; both predict v."""
    return lambda xt, t: scaled(net(normalised(xt, deviation), t).to(xt.dtype), deviation)


def _gains(waves: Tensor, deviation: Sequence[float]) -> Tensor:
    """At the frequencies of a Fourier transform of waves [..., T]: [T // 2 + 1]."""
    known = torch.tensor(deviation, device=waves.device, dtype=waves.dtype)
    bins = waves.shape[-1] // 2 + 1
    return torch.nn.functional.interpolate(known[None, None], bins, mode="linear", align_corners=True)[0, 0]
