"""Training and sampling steps of tiny-audio-diffusion's U-Net against audio-diffusion-pytorch, and the speed of sampling.

Steps: the net of 31,574,724 weights with the same weights on both sides, batch 1 of 32,768 stereo samples, float32, two threads, in
turns in one process. A training step includes the same AdamW, without EMA. Ratios are of CPU seconds, which other processes hardly
affect. Peak memory is measured in a new process for each, beyond the net; the tensors that autograd keeps of a batch are counted.

Speed: CPU seconds of one thread per second of sound in 50 steps, of which a few are timed, with random weights.

python -m bench.waveform waveform_unet.train.num_samples=16384 'waveform_unet.train.network.items=[1,1,1,1,1,1,1,1]'
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import measure
from bench.measure import Target
from soundmill import params
from soundmill.params import parse

THREADS = 2
PACKAGE = "audio-diffusion-pytorch"
KINDS = {"training step": 1, "sampling step": 2}


def main() -> None:
    parser = measure.parser(__doc__, repetitions=7, steps=3)
    parser.add_argument("overrides", nargs="*", help="overrides of the published net's parameters")
    args = parser.parse_args()
    found = measure.steps_in_turns(sides, KINDS, (args.overrides,), args.repetitions)
    pair = Pair(args.overrides)
    weights, kept = pair.memory()
    print(f"the published net: weights of {weights / 1e6:.0f} MB; {kept / 1e6:.0f} MB kept for the backward pass")
    speeds = {name: speed(choice, args.steps, args.repetitions) for name, choice in nets(args.overrides).items()}
    for name, seconds in speeds.items():
        print(f"{name}: {seconds:.3g} s per second of sound")
    measure.write(
        "waveform",
        args.results,
        pair.params.batch_size,
        found.seconds,
        [*found.targets(PACKAGE), Target("largest difference of outputs", pair.difference(), 1e-5, at_least=False, unit="")],
        cpu_seconds=found.cpu_seconds,
        peak_memory_bytes=found.peak_memory_bytes,
        weights_bytes=weights,
        kept_for_backward_bytes=kept,
        real_time_factors=speeds,
        threads=THREADS,
        overrides=args.overrides,
    )


def nets(overrides: Sequence[str]) -> dict[str, list[str]]:
    return {"laptop": ["scale=laptop"], "one_shots": ["waveform_unet=one_shots"], "published": ["scale=paper", *overrides]}


class Pair:
    """The package's model, ours with the same weights, and a batch for both."""

    def __init__(self, overrides: Sequence[str]):
        import torch
        from audio_diffusion_pytorch import DiffusionModel, UNetV0

        from soundmill.models.waveform_unet import published

        torch.set_num_threads(THREADS)
        torch.manual_seed(0)
        document = composed(nets(overrides)["published"])
        sizes, channels = document["waveform_unet"]["train"]["network"], clips_of(document)["channels"]
        self.theirs = DiffusionModel(
            net_t=UNetV0,
            in_channels=channels,
            **{name: sizes[name] for name in ("channels", "factors", "items")},
            attentions=[int(attends) for attends in sizes["attention"]],
            attention_heads=sizes["heads"],
            attention_features=sizes["head_width"],
            modulation_features=sizes["modulation"],
            resnet_groups=sizes["groups"],
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "published.ckpt"
            torch.save({"state_dict": {f"model.{name}": value for name, value in self.theirs.state_dict().items()}}, path)
            self.ours = published.read(path, document, "bench")[0]
        self.params = self.ours.params
        self.noise = torch.randn(self.params.batch_size, channels, self.params.num_samples)

    def difference(self) -> float:
        """Largest difference of both nets' outputs."""
        import torch

        level = torch.linspace(0, 1, len(self.noise) + 2)[1:-1]
        with torch.no_grad():
            return (self.ours.net(self.noise, level) - self.theirs.net(self.noise, level)).abs().max().item()

    def loss(self) -> Callable[[], Any]:
        """Our loss, as the family computes it."""
        import numpy as np

        from soundmill.models.waveform_unet.model import WaveformModule
        from soundmill.training.loader import Batch

        module, batch = WaveformModule(self.params, self.ours.net, 1), Batch(0, np.arange(len(self.noise)), (0.3 * self.noise,))
        return lambda: module.loss(0, batch)

    def memory(self) -> tuple[int, int]:
        """Bytes of our net's weights, and of other tensors that autograd keeps for the backward pass."""
        import torch

        weights = {weight.untyped_storage().data_ptr(): weight.nbytes for weight in self.ours.net.parameters()}
        kept: dict[int, int] = {}
        alive = []  # so that no address is reused

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            alive.append(tensor)
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.loss()()
        return sum(weights.values()), sum(size for place, size in kept.items() if place not in weights)


def sides(what: str, overrides: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Both sides' work on the same batch."""
    import torch

    from soundmill.diffusion import sampling, solvers

    pair = Pair(overrides)
    if what == "sampling step":
        steps = KINDS[what]

        def sample() -> None:
            with torch.no_grad():
                sampling.sample(solvers.velocity(steps), pair.ours.net, pair.noise)

        return {"soundmill": sample, PACKAGE: lambda: pair.theirs.sample(pair.noise, num_steps=steps)}

    def training(net: Any, loss: Callable[[], Any]) -> Callable[[], None]:
        chosen = pair.params.optimiser
        settings = {"lr": chosen.learning_rate, "betas": tuple(chosen.betas), "eps": chosen.eps}
        settings["weight_decay"] = chosen.weight_decay
        optimiser = torch.optim.AdamW(net.parameters(), **settings, fused=True)

        def step() -> None:
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()

        return step

    waves = 0.3 * pair.noise
    return {"soundmill": training(pair.ours.net, pair.loss()), PACKAGE: training(pair.theirs.net, lambda: pair.theirs(waves))}


def speed(choice: Sequence[str], steps: int, repetitions: int) -> float:
    """CPU seconds of one thread per second of sound with the configured steps; times `steps` of them, `repetitions` times."""
    import torch

    from soundmill.models.family import Request, Run
    from soundmill.models.waveform_unet import TrainParams
    from soundmill.models.waveform_unet.model import WaveformUNet, build_net

    torch.set_num_threads(1)
    document = composed(choice)
    trained, clips = parse(TrainParams, document["waveform_unet"]["train"], "waveform_unet.train"), clips_of(document)
    net = build_net(trained, clips["channels"], num_labels=1).eval()
    model = WaveformUNet(trained, net, clips["sample_rate"], clips["channels"], labels=["any"])

    def time_steps(count: int) -> float:
        sampling = trained.sampling.model_copy(update={"num_steps": count})
        start = time.process_time()
        model.generate([Request()], Run(sampling, torch.device("cpu"), "32", 1, measure.ROOT, measure.ROOT))
        return time.process_time() - start

    time_steps(1)
    seconds = statistics.median(time_steps(steps) for _ in range(repetitions))
    return seconds / steps * trained.sampling.num_steps * model.sample_rate / model.num_samples


def composed(choice: Sequence[str]) -> dict[str, Any]:
    return params.compose(measure.ROOT / "conf", ["model=waveform_unet", *choice])


def clips_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["clips"][document["families"]["waveform_unet"]["clips"]]


if __name__ == "__main__":
    main()
