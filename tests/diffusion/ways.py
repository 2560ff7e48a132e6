"""Every way from noise to sound, with the path that its net is trained on, and nets whose answer is known."""

from collections.abc import Callable

import torch

from soundmill.diffusion import paths, solvers
from soundmill.diffusion.paths import Discrete, Flow, Net, Path, Velocity
from soundmill.diffusion.sampling import Steps

CPU = torch.device("cpu")
TABLES = {
    "linear": paths.linear(1000, 1e-4, 0.02),
    "cosine": paths.cosine(1000),
    "tango": paths.scaled_linear(1000, 0.00085, 0.012),
}
SAMPLERS = ["ddpm", "ddim", "dpm++", "unipc"]
FAST = torch.tensor([1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5], dtype=torch.float64)


def scheduled(path: Discrete, sampler: str, **more: object) -> Callable[[int], Steps]:
    return lambda num_steps: solvers.scheduled(path, sampler, num_steps, CPU, **more)


CONTINUOUS: dict[str, tuple[Path, Callable[[int], Steps]]] = {
    "velocity": (Velocity(), solvers.velocity),
    **{solver: (Flow(), lambda num_steps, solver=solver: solvers.flow(num_steps, solver)) for solver in solvers.PASSES},
    "dpm++_sde": (Velocity(), lambda num_steps: solvers.stable_audio(num_steps + 1, CPU)),
}
PATHS = {(objective, table): Discrete(TABLES[table], objective) for objective in ("eps", "x0", "v") for table in TABLES}
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
