"""How large a batch of each training fits one card, and how many steps it takes a day: the numbers in conf/FAMILY/gpu.yaml.

Peak memory: of a new process that trains on noise for a few steps with the precision of the parameters, beyond what it held before
it built the nets, with one item and then with two: their difference is an item's, the rest that of weights, gradients, optimiser
and average. On a CPU, without what a card takes for itself: the margin is for that.

Steps: multiplications and additions of a step, counted, over a rate that is assumed, not measured: no card was at hand.

python -m bench.memory                                  # every family at scale=gpu
python -m bench.memory rave --card 16 rave.autoencoder.network.channels=32
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench import measure
from soundmill import params
from soundmill.models import registry
from soundmill.models.components import registry as components

SECTIONS = {"train": "{family}.train", "autoencoder": "{family}.autoencoder.weights"}
LEAST = {"projected_gan": 4}  # items: its discriminators compare as many
LABELS = 50
STEPS = 3  # RAVE's two phases and both turns of the second are among these
RATE = 5e12  # multiply-adds a second in bfloat16, about a seventh of what an RTX 3090's tensor cores do at most
DAY = 86400


@dataclass(frozen=True)
class Need:
    """Of one training."""

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
    parser.add_argument("--margin", type=float, default=0.15, help="share of the card that is left free")
    args = parser.parse_args()
    overrides = [one for one in args.family if "=" in one]
    families = [one for one in args.family if "=" not in one] or sorted(registry.FAMILIES)
    found = {}
    for family in families:
        chosen = [f"model={family}", f"scale={args.scale}", *overrides]
        document = params.compose(measure.ROOT / "conf", chosen)
        for training, share in trainings(family, document).items():
            found[f"{family}.{training}"] = need = measure.in_fresh_process(measured, family, training, chosen)
            section = params.section(document, SECTIONS[training].format(family=family), "params.yaml")
            items, batches = items_of(section), section.get("accumulate", 1)
            fits, seconds = need.batch(1e9 * args.card * (1 - args.margin)), DAY * share
            print(
                f"{family}.{training}: {need.fixed_bytes / 1e9:.2f} GB and {need.item_bytes / 1e9:.3f} GB an item: {fits} fit, "
                f"it has {items}; {need.item_macs / 1e9:.3g} GMAC an item: {need.steps(items * batches, seconds):,} steps of "
                f"{items * batches} in {seconds / 3600:.3g} hours, it has {section['steps']}",
                flush=True,
            )
    measure.write("memory", args.results, 1, {}, [], needs={name: asdict(need) for name, need in found.items()}, rate=RATE)


def trainings(family: str, document: dict[str, Any]) -> dict[str, float]:
    """What a family trains at these parameters, but for a vocoder, and the share of a day that each has."""

    def is_trained(name: str) -> bool:
        return name in SECTIONS and "steps" in params.section(document, SECTIONS[name].format(family=family), "params.yaml")

    shares = document["families"][family]["trainings"] or {"train": 1.0}
    trained = {name: share for name, share in shares.items() if is_trained(name)}
    return {name: share / sum(trained.values()) for name, share in trained.items()}


def items_of(section: dict[str, Any]) -> int:
    return section["batch_size"] if "batch_size" in section else section["real_items"] + section["mixed_items"]


def of_items(family: str, training: str, count: int) -> list[str]:
    """Overrides that give a batch so many items."""
    section = SECTIONS[training].format(family=family)
    if (family, training) == ("tango", "train"):
        return [f"{section}.real_items={count}", f"{section}.mixed_items=0"]
    return [f"{section}.batch_size={count}"]


def measured(family: str, training: str, chosen: Sequence[str]) -> Need:
    """In this process, which should have held nothing else."""
    least = LEAST.get(family, 1)
    sizes = [[*chosen, *of_items(family, training, count)] for count in (least, 2 * least)]
    macs = macs_of(family, training, sizes[0])  # first, for it takes memory of its own, and imports what there is to import
    one, two = (peak_of(family, training, size) for size in sizes)
    item = max(1, (two - one) // least)
    return Need(max(0, one - least * item), item, macs // least)


def peak_of(family: str, training: str, overrides: Sequence[str]) -> int:
    """The most that this process holds while it trains, beyond what it held before it built the nets."""
    document, steps = _composed(family, training, overrides)
    return measure.peak_memory(lambda: rehearsing(family, training, document)(steps))


def macs_of(family: str, training: str, overrides: Sequence[str]) -> int:
    """Multiply-adds of a step, the mean of as many as were rehearsed."""
    from torch.utils.flop_counter import FlopCounterMode

    document, steps = _composed(family, training, overrides)
    with FlopCounterMode(display=False) as counter:
        rehearsing(family, training, document)(steps)
    return counter.get_total_flops() // 2 // steps


def _composed(family: str, training: str, overrides: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Parameters with one batch a step, and steps that see all phases of a training."""
    section = SECTIONS[training].format(family=family)
    document = params.compose(measure.ROOT / "conf", list(overrides))
    values = params.section(document, section, "params.yaml")
    if "accumulate" in values:
        values["accumulate"] = 1
    if "phase_1_steps" in values:
        values["phase_1_steps"] = 1
    return document, STEPS if "phase_1_steps" in values else 1


def rehearsing(family: str, training: str, document: dict[str, Any]) -> Callable[[int], Any]:
    """Trains on noise for a number of steps."""
    from soundmill.training.loop import rehearse

    if training == "train":
        its = registry.family(family)
        rehearsal = its.rehearse(document, LABELS)
        hardware = params.parse(its.train_params, document[family]["train"], family).hardware
        return lambda steps: rehearse(rehearsal.module, rehearsal.batch, hardware, steps)
    codec = components.codec_params(document, family)
    module, batch = codec_training(codec, document, family)
    return lambda steps: rehearse(module, batch, codec.hardware, steps)


def codec_training(codec: Any, document: dict[str, Any], family: str) -> tuple[Any, Callable[[int], Any]]:
    """The training of an autoencoder of waves, and noise for it."""
    import numpy as np
    import torch

    from soundmill.training.loader import Batch

    channels = 1
    if codec.kind == "rave":
        from soundmill.models.components.rave.network import RaveNet
        from soundmill.models.components.rave.training import RaveModule

        module = RaveModule(codec.weights, RaveNet(codec.network).with_norms())
    else:
        from soundmill.audio.mel import SpectrogramParams
        from soundmill.models.components.unet1d.codec.making import AutoencoderModule
        from soundmill.models.components.unet1d.codec.network import AutoencoderNet

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
