"""Held-out loss of one family's training under several optimisers and augmentations, and the processor time of a step.

python -m bench.optimisers ddpm_mel 200 'as set' 'rate 3e-3: learning_rate=3.0e-3' 'batch 8: batch_size=8' 'pitch: augment=pitch:2'

Reads what `dvc repro` made (`--project`). A variant is a name and the values to set: keys of the section `optimiser`, or of
`FAMILY.train` (`ema.decay=0.98`), or `augment`, which changes the training clips beyond what the family does. All variants see
the same noise, and those of one network start from the same weights. The loss is the averaged net's on all clips of the validation
and the test split.
"""

import argparse
import math
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from soundmill import params
from soundmill.models import registry
from soundmill.training.curve import Curve, Progress
from soundmill.training.loader import Loader, Source
from soundmill.training.loop import fit
from soundmill.training.monitoring import VALID, Validation


def pitch(log_mels: Tensor, labels: Tensor, rng: torch.Generator, most: float) -> tuple[Tensor, Tensor]:
    """Each clip up or down by at most `most` bands."""
    moves = torch.randint(-int(most), int(most) + 1, (len(log_mels),), generator=rng).tolist()
    bands = torch.arange(log_mels.shape[1])
    moved = [clip[(bands - move).clamp(0, len(bands) - 1)] for clip, move in zip(log_mels, moves, strict=True)]
    return torch.stack(moved), labels


def tempo(log_mels: Tensor, labels: Tensor, rng: torch.Generator, most: float) -> tuple[Tensor, Tensor]:
    """Each clip slower or faster by a share of at most `most`; what becomes shorter is repeated."""
    frames, stretched = log_mels.shape[2], []
    for clip, rate in zip(log_mels, (2 * torch.rand(len(log_mels), generator=rng) - 1) * most, strict=True):
        resized = F.interpolate(clip[None], size=round(frames * math.exp(rate)), mode="linear", align_corners=False)[0]
        stretched.append(resized.repeat(1, 2)[:, :frames])
    return torch.stack(stretched), labels


def colour(log_mels: Tensor, labels: Tensor, rng: torch.Generator, decibels: float) -> tuple[Tensor, Tensor]:
    """A smooth random gain over the bands, of this deviation: three cosines."""
    places = (torch.arange(log_mels.shape[1]) + 0.5) / log_mels.shape[1]
    curve = sum(torch.randn(len(log_mels), 1, generator=rng) * torch.cos(math.pi * turns * places) for turns in (1, 2, 3))
    return log_mels + (curve * decibels / math.sqrt(1.5) * math.log(10) / 10)[:, :, None], labels


def mix(log_mels: Tensor, labels: Tensor, rng: torch.Generator, share: float) -> tuple[Tensor, Tensor]:
    """A share of the clips together with another one of the batch at equal power, with the labels of both."""
    power = log_mels.logsumexp((1, 2), keepdim=True)
    other = (log_mels - power).roll(1, 0) + power
    mixed = torch.rand(len(log_mels), generator=rng) < share
    both = torch.logaddexp(log_mels, other) - math.log(2)
    labels_of_both = (labels + labels.roll(1, 0)).clamp_max(1)
    return torch.where(mixed[:, None, None], both, log_mels), torch.where(mixed[:, None], labels_of_both, labels)


AUGMENTATIONS = {"pitch": pitch, "tempo": tempo, "colour": colour, "mix": mix}  # of log-mels of power


class Augmented:
    """A source of clips that are changed; `how`: NAME:AMOUNT."""

    def __init__(self, source: Source, how: str):
        name, _, amount = how.partition(":")
        self.source, self.change, self.amount = source, AUGMENTATIONS[name], float(amount)

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        log_mels, labels = self.source.batch(items, drawn)
        return self.change(log_mels.float(), labels, torch.Generator().manual_seed(int(drawn.sum() * 2**40)), self.amount)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", help="to train; `augment` needs one that trains on log-mels")
    parser.add_argument("steps", type=int, help="of each training; its rate falls to zero over them")
    parser.add_argument("variants", nargs="+", help="NAME or NAME: KEY=VALUE …")
    parser.add_argument("--project", type=Path, default=Path())
    parser.add_argument("--every", type=int, default=50, help="steps between losses (default: %(default)s)")
    args = parser.parse_args()
    for variant in args.variants:
        name, _, settings = variant.partition(":")
        losses, seconds = trained(args, dict(one.split("=", 1) for one in settings.split()))
        cells = " | ".join(f"{loss:.4f}" for loss in losses)
        print(f"| {name} | {cells} | {seconds:.2f} |", flush=True)


def trained(args: argparse.Namespace, settings: dict[str, str]) -> tuple[list[float], float]:
    """The held-out losses and the processor seconds of a step."""
    document = params.read_yaml(args.project / "params.yaml")
    section = document[args.family]["train"]
    section |= {"steps": args.steps, "validate_batches": 1000}
    augment = settings.pop("augment", None)
    for key, value in settings.items():
        *outer, last = key.split(".")
        place = section["optimiser"] if key in section["optimiser"] else section
        for part in outer:
            place = place[part]
        place[last] = yaml.safe_load(value)
    kind, wiring = registry.family(args.family), document["families"][args.family]
    train = params.parse_section(document, f"{args.family}.train", kind.train_params)
    with tempfile.TemporaryDirectory() as scratch:
        ctx: Any = SimpleNamespace(scratch=Path(scratch), name=args.family, home=args.project, workers=1)
        catalog = ctx.scratch / "catalog.parquet"
        rows = pq.read_table(args.project / "data/catalog" / f"{wiring['trained_on']}.parquet")
        split = pc.replace_substring(rows["split"].cast("string"), "test", "valid").cast(rows.schema.field("split").type)
        pq.write_table(rows.set_column(rows.schema.get_field_index("split"), rows.schema.field("split"), split), catalog)
        inputs, parts, tagger = (args.project / wiring[part] for part in ("inputs", "parts", "tagger"))
        prepared = kind.prepare(train, ctx, inputs, parts, tagger, catalog, None)
        held_out, batch = prepared.held_out, prepared.order.batch_size
        validation = Validation(held_out, prepared.draw, batch, batches=-(-held_out.num_items // batch), every=args.every)
        source = Augmented(prepared.source, augment) if augment else prepared.source
        loader = Loader(source, prepared.order, prepared.draw, steps=args.steps, workers=0, pinned=False)
        clock = Clock(args.family, prepared.item_seconds)
        fit(
            prepared.module,
            loader,
            hardware=train.hardware,
            scratch=ctx.scratch / "training",
            curve=Curve(args.every),
            progress=clock,
            validation=validation,
        )
    return [point[VALID] for point in validation.points], statistics.median(b - a for a, b in pairwise(clock.times))


class Clock(Progress):
    """Processor seconds from one step to the next; held-out losses fall between few of them."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.times: list[float] = []

    def stepped(self, *args: Any) -> Any:
        self.times.append(time.process_time())
        return super().stepped(*args)


if __name__ == "__main__":
    main()
