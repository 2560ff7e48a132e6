"""Training and sampling steps of DiffWave's vocoder net against the package `diffwave`, and the speed of sampling.

Steps: 30 layers of 64 channels, the same weights and batch (crops of 62 frames of noise), float32, two threads, in turns in one
process. A training step includes Adam; a sampling step is a sixth of the fast schedule. Ratios are of CPU seconds, which other
processes hardly affect. Peak memory is measured in a new process for each, beyond the net.

Speed: CPU seconds of one thread per second of sound at 22.05 kHz, in 6 and in 50 steps, for nets of three sizes with random
weights.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import measure
from soundmill import params
from soundmill.params import parse

THREADS = 2
FRAMES = 62  # of a crop, as published
FAST = [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5]


def main() -> None:
    parser = measure.parser(__doc__, batch=2, repetitions=7, layers=30, frames=10)
    args = parser.parse_args()
    kinds = {"training step": 1, "sampling step": len(FAST)}
    measured = measure.steps_in_turns(sides, kinds, (args.layers, args.batch), args.repetitions)
    speeds = {name: speed(network, args.frames) for name, network in networks(args.layers).items()}
    for name, of in speeds.items():
        print(f"{name}: " + ", ".join(f"{steps} steps {seconds:.3g} s per second of sound" for steps, seconds in of.items()))
    measure.write(
        "diffwave",
        args.results,
        args.batch,
        measured.seconds,
        measured.targets("diffwave"),
        cpu_seconds=measured.cpu_seconds,
        peak_memory_bytes=measured.peak_memory_bytes,
        real_time_factors=speeds,
        threads=THREADS,
        layers=args.layers,
    )


def sides(what: str, layers: int, batch: int) -> dict[str, Callable[[], Any]]:
    """Both sides' work on the same batch, with the same weights."""
    import torch
    from diffwave import inference
    from diffwave.model import DiffWave as TheirNet
    from diffwave.params import AttrDict
    from diffwave.params import params as published

    from soundmill.models.components.diffwave.published import renamed

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    theirs = TheirNet(AttrDict(published, residual_layers=layers))
    ours = vocoder(network_of(layers, 64), FAST)
    ours.net.load_state_dict(renamed(theirs.state_dict(), Path("diffwave")))
    mel = torch.rand(batch, 80, FRAMES)
    if what == "sampling step":
        inference.models["bench"] = theirs.eval()
        log_mels = (5 * mel - 3).float()

        def sample() -> None:
            inference.predict(mel, "bench", device=torch.device("cpu"), fast_sampling=True)

        return {"soundmill": lambda: ours.vocode(log_mels), "diffwave": sample}

    from soundmill.diffusion.paths import linear
    from soundmill.models.components.diffwave.vocoder import noise_loss

    waves, noise, t = 0.3 * torch.randn(batch, FRAMES * 256), torch.randn(batch, FRAMES * 256), torch.randint(50, (batch,))
    table, level = linear(50, 1e-4, 0.05), linear(50, 1e-4, 0.05).float()[t][:, None]

    def our_loss() -> Any:
        losses = noise_loss(lambda xt, t: ours.net(xt, t, mel), table, waves[:, None], t, noise[:, None], "l1")
        return losses.mean()

    def their_loss() -> Any:
        predicted = theirs(level.sqrt() * waves + (1 - level).sqrt() * noise, mel, t)
        return torch.nn.functional.l1_loss(noise, predicted.squeeze(1))

    def training(net: Any, loss: Callable[[], Any]) -> Callable[[], None]:
        optimiser = torch.optim.Adam(net.parameters(), lr=2e-4)

        def step() -> None:
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()

        return step

    return {"soundmill": training(ours.net, our_loss), "diffwave": training(theirs, their_loss)}


def network_of(layers: int, channels: int) -> Any:
    from soundmill.models.components.diffwave import NetworkParams

    return NetworkParams(layers=layers, channels=channels, dilation_cycle=10)


def networks(layers: int) -> dict[str, Any]:
    """The laptop-scale net and the two published ones, by name."""
    from soundmill.models.components.diffwave import DiffWaveParams

    document = params.compose(measure.ROOT / "conf", ["model=tango", "vocoder=diffwave_laptop"])["vocoder"]
    laptop = parse(DiffWaveParams, document, "vocoder").network
    return {"laptop": laptop, **{f"{layers} × {channels}": network_of(layers, channels) for channels in (64, 128)}}


def vocoder(network: Any, betas: Any) -> Any:
    """A DiffWave for the published log-mels."""
    import torch

    from soundmill.models.components.diffwave import NoiseParams, SamplingParams
    from soundmill.models.components.diffwave.vocoder import DiffWave, DiffWaveNet

    torch.manual_seed(0)
    spec = published_spec()
    noise, sampling = NoiseParams(num_timesteps=50, beta_start=1e-4, beta_end=0.05), SamplingParams(betas=betas, seed=0)
    return DiffWave(network, noise, sampling, spec, DiffWaveNet(network, spec).eval())


def published_spec() -> Any:
    from diffwave.params import params as published

    from soundmill.models.components.diffwave.published import Published

    return Published(**published).spec


def speed(network: Any, frames: int) -> dict[str, float]:
    """CPU seconds of one thread per second of sound, in 6 steps and in the 50 of the training."""
    import torch

    torch.set_num_threads(1)
    log_mels, seconds = torch.full((1, 80, frames), -3.0), frames * 256 / 22_050
    costs = {}
    for steps, betas in (("6", FAST), ("50", "trained")):
        sampler = vocoder(network, betas)
        start = time.process_time()
        sampler.vocode(log_mels)
        costs[steps] = (time.process_time() - start) / seconds
    return costs


if __name__ == "__main__":
    main()
