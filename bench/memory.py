"""Batch size that fits one GPU and steps per day of each training: the numbers in conf/FAMILY/gpu.yaml.

Peak memory is measured on a CPU, in a new process that trains on noise for a few steps with the configured precision, with one and
with two items. The difference is the memory of an item, the rest that of weights, gradients, optimiser and EMA. The margin covers
what a GPU needs beyond that, but TANGO took three times as much there (docs/benchmarks.md).

Steps per day are the counted multiply-adds of a step over an assumed rate, not a measured one.

python -m bench.memory                                  # every family at scale=gpu
python -m bench.memory rave --card 16 rave.autoencoder.network.channels=32
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench import measure
from soundmill import params
from soundmill.models import registry
from soundmill.models.components import registry as components

SECTIONS = {"train": "{family}.train", "autoencoder": "{family}.autoencoder.weights"}
MIN_ITEMS = {"projected_gan": 4}  # its discriminators compare groups of four
LABELS = 50
STEPS = 3  # covers RAVE's two phases and both optimisers of the second
RATE = 5e12  # multiply-adds per second in bfloat16: about a seventh of an RTX 3090's peak
DAY = 86400


@dataclass(frozen=True)
class Cost:
    """Memory and multiply-adds of one training."""

    fixed_bytes: int
    item_bytes: int
    item_macs: int  # of a training step, forward and backward

    def batch(self, card_bytes: float) -> int:
        return max(0, int((card_bytes - self.fixed_bytes) / self.item_bytes))

    def steps(self, items: int, seconds: float) -> int:
        return int(seconds * RATE / (self.item_macs * items))


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("family", nargs="*", help="families (default: all), and overrides of their parameters")
    parser.add_argument("--scale", default="gpu")
    parser.add_argument("--card", type=float, default=24, help="GB")
    parser.add_argument("--margin", type=float, default=0.15, help="share of the memory that is left free")
    args = parser.parse_intermixed_args()
    overrides = [one for one in args.family if "=" in one]
    families = [one for one in args.family if "=" not in one] or registry.FAMILIES
    costs = {}
    for family in families:
        chosen = [f"model={family}", f"scale={args.scale}", *overrides]
        document = params.compose(measure.ROOT / "conf", chosen)
        for training, share in trainings(family, document).items():
            costs[f"{family}.{training}"] = cost = measure.in_fresh_process(measured, family, training, chosen)
            section = params.section(document, SECTIONS[training].format(family=family), "params.yaml")
            items, batches = items_of(section), section.get("accumulate", 1)
            fits, seconds = cost.batch(1e9 * args.card * (1 - args.margin)), DAY * share
            print(
                f"{family}.{training}: {cost.fixed_bytes / 1e9:.2f} GB and {cost.item_bytes / 1e9:.3f} GB per item: {fits} fit, "
                f"configured {items}; {cost.item_macs / 1e9:.3g} GMAC per item: {cost.steps(items * batches, seconds):,} steps of "
                f"{items * batches} in {seconds / 3600:.3g} hours, configured {section['steps']}",
                flush=True,
            )
    measure.write("memory", args.results, 1, {}, [], needs={name: asdict(cost) for name, cost in costs.items()}, rate=RATE)


def trainings(family: str, document: dict[str, Any]) -> dict[str, float]:
    """Trainings of a family at these parameters, except vocoders, with the share of a day for each."""

    def is_trained(name: str) -> bool:
        return name in SECTIONS and "steps" in params.section(document, SECTIONS[name].format(family=family), "params.yaml")

    shares = document["families"][family]["trainings"] or {"train": 1.0}
    trained = {name: share for name, share in shares.items() if is_trained(name)}
    return {name: share / sum(trained.values()) for name, share in trained.items()}


def items_of(section: dict[str, Any]) -> int:
    return section["batch_size"] if "batch_size" in section else section["real_items"] + section["mixed_items"]


def batch_overrides(family: str, training: str, count: int) -> list[str]:
    """Overrides for a batch of `count` items."""
    section = SECTIONS[training].format(family=family)
    if (family, training) == ("tango", "train"):
        return [f"{section}.real_items={count}", f"{section}.mixed_items=0"]
    return [f"{section}.batch_size={count}"]


def measured(family: str, training: str, chosen: Sequence[str]) -> Cost:
    """The cost, measured in this process, which must be new."""
    fewest = MIN_ITEMS.get(family, 1)
    sizes = [[*chosen, *batch_overrides(family, training, count)] for count in (fewest, 2 * fewest)]
    macs = macs_of(family, training, sizes[0])  # first, because it imports modules and needs memory itself
    one, two = (peak_of(family, training, size) for size in sizes)
    item = max(1, (two - one) // fewest)
    return Cost(max(0, one - fewest * item), item, macs // fewest)


def peak_of(family: str, training: str, overrides: Sequence[str]) -> int:
    """Peak memory in bytes of building the nets and training."""
    document, steps = _composed(family, training, overrides)
    return measure.peak_memory(lambda: rehearsing(family, training, document)(steps))


def macs_of(family: str, training: str, overrides: Sequence[str]) -> int:
    """Mean multiply-adds of a step."""
    from torch.utils.flop_counter import FlopCounterMode

    document, steps = _composed(family, training, overrides)
    with FlopCounterMode(display=False) as counter:
        rehearsing(family, training, document)(steps)
    return counter.get_total_flops() // 2 // steps


def _composed(family: str, training: str, overrides: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Parameters with one batch per step, and a number of steps that covers all phases."""
    section = SECTIONS[training].format(family=family)
    document = params.compose(measure.ROOT / "conf", list(overrides))
    values = params.section(document, section, "params.yaml")
    if "accumulate" in values:
        values["accumulate"] = 1
    if "phase_1_steps" in values:
        values["phase_1_steps"] = 1
    return document, STEPS if "phase_1_steps" in values else 1


@dataclass(frozen=True)
class Rehearsing:
    """A training on noise; called with a number of batches, it trains on so many more and returns their seconds."""

    module: Any
    batch: Callable[[int], Any]
    hardware: Any

    def __call__(self, count: int) -> list[float]:
        from soundmill.training.loop import rehearse

        return rehearse(self.module, self.batch, self.hardware, count)


def rehearsing(family: str, training: str, document: dict[str, Any]) -> Rehearsing:

    if training == "train":
        module = registry.family(family)
        rehearsal = module.rehearse(document, LABELS)
        trained = params.parse(module.train_params, document[family]["train"], family)
        hardware = trained.hardware
        if trained.lora:
            rehearsal.module.adapt(trained.lora, hardware)
        return Rehearsing(rehearsal.module, rehearsal.batch, hardware)
    codec = components.codec_params(document, family)
    module, batch = codec_training(codec, document, family)
    return Rehearsing(module, batch, codec.hardware)


def codec_training(codec: Any, document: dict[str, Any], family: str) -> tuple[Any, Callable[[int], Any]]:
    """The training of an autoencoder of waves, and noise for it."""
    import numpy as np
    import torch

    from soundmill.training.loader import Batch

    channels = 1
    if codec.kind == "rave":
        from soundmill.models.components.rave.network import RaveNet
        from soundmill.models.components.rave.phases import RaveModule

        module = RaveModule(codec.weights, RaveNet(codec.network).with_norms())
    else:
        from soundmill.audio.mel import SpectrogramParams
        from soundmill.models.components.unet1d.codec.codec import AutoencoderModule, AutoencoderNet

        channels = document["clips"][document["families"][family]["clips"]]["channels"]
        spec = params.parse(SpectrogramParams, document["spectrogram"][family], family).spec
        module = AutoencoderModule(AutoencoderNet(codec, spec, channels), codec.weights, codec.weights.steps)
    size, length = codec.weights.batch_size, codec.weights.num_samples

    def batch(step: int) -> Batch:
        waves = 0.1 * torch.randn(size, channels, length, generator=torch.Generator().manual_seed(step))
        return Batch(step, np.zeros(size, np.int64), (waves,))

    return module, batch


if __name__ == "__main__":
    main()
