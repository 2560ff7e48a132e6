"""Held-out loss of one family's training under several optimisers, and the processor time of a step.

python -m bench.optimisers ddpm_mel 200 'as set' 'rate 3e-3: learning_rate=3.0e-3' 'batch 8: batch_size=8'

Reads what `dvc repro` made (`--project`). A variant is a name and the values to set: keys of the section `optimiser`, or of
`FAMILY.train` (`ema.decay=0.98`). All variants start from the same weights and see the same noise; the loss is that of the
averaged net on all clips of the validation and the test split.
"""

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from soundmill import params
from soundmill.models import registry
from soundmill.training.curve import Curve, Progress
from soundmill.training.loader import Loader
from soundmill.training.loop import fit
from soundmill.training.monitoring import VALID, Validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", help="one that trains on log-mels")
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
    for key, value in settings.items():
        *outer, last = key.split(".")
        place = section["optimiser"] if key in section["optimiser"] else section
        for part in outer:
            place = place[part]
        place[last] = yaml.safe_load(value)
    kind, data = registry.family(args.family), args.project / "data"
    train = params.parse_section(document, f"{args.family}.train", kind.train_params)
    inputs = data / f"spectrograms/clips/{args.family}"
    with tempfile.TemporaryDirectory() as scratch:
        ctx: Any = SimpleNamespace(scratch=Path(scratch), name=args.family, home=args.project, workers=1)
        catalog = ctx.scratch / "catalog.parquet"
        rows = pq.read_table(data / "catalog/default.parquet")
        split = pc.replace_substring(rows["split"].cast("string"), "test", "valid").cast(rows.schema.field("split").type)
        pq.write_table(rows.set_column(rows.schema.get_field_index("split"), rows.schema.field("split"), split), catalog)
        prepared = kind.prepare(train, ctx, inputs, inputs, data / "tagger", catalog, None)
        held_out, batch = prepared.held_out, prepared.order.batch_size
        validation = Validation(held_out, prepared.draw, batch, batches=-(-held_out.num_items // batch), every=args.every)
        loader = Loader(prepared.source, prepared.order, prepared.draw, steps=args.steps, workers=0, pinned=False)
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
