"""A training as a stage runs it: `python -m tests.training.doubling PROJECT OPTIONS`, a JSON object.

A small net learns to double numbers. Reports are in PROJECT/told, results in PROJECT/trained.pt.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from soundmill import manifest, shards
from soundmill.errors import UserError
from soundmill.models.components.log_mels.source import Crops, gather_log_mels
from soundmill.tracking import StageRun
from soundmill.training import launcher
from soundmill.training.curve import Curve, Progress
from soundmill.training.loader import Batch, Loader, Order
from soundmill.training.loop import fit
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import HeldOut, Kept, Sampling, Scoring, Validation
from soundmill.training.params import DiffusersEmaParams, HardwareParams, OptimiserParams, TrainingParams

STEPS, BATCH = 60, 8
PARAMS = TrainingParams(
    seed=5,
    start_from=None,
    optimiser=OptimiserParams(
        learning_rate=0.01, betas=[0.9, 0.99], eps=1e-8, weight_decay=0.01, warmup_steps=3, decay="cosine", clip_norm=1.0
    ),
    ema=DiffusersEmaParams(kind="diffusers", decay=0.9, min_decay=0.0, update_after_step=0),
    log_every_steps=5,
    checkpoint_seconds=0.0,
    validate_every_steps=20,
    validate_batches=2,
    use="last",
    samples_every_steps=None,
)


class Doubling(TrainingModule):
    """Takes `slow` seconds a step, fails at step `fails`, and the second process dies at `dies`. Each lists its items in a file."""

    def __init__(self, project: Path, slow: float = 0.0, fails: int | None = None, dies: int | None = None):
        torch.manual_seed(0)
        super().__init__(torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)), PARAMS, STEPS)
        self.project, self.slow, self.fails, self.dies = project, slow, fails, dies

    def loss(self, step, batch):
        time.sleep(self.slow)
        if step == self.fails:
            raise UserError("the loss is no longer a number")
        if step == self.dies and self.rank:
            os._exit(1)
        if step >= 0:
            with (self.project / f"items-{self.rank}-of-{self.world_size}").open("a") as file:
                file.write(json.dumps([step, batch.items.tolist()]) + "\n")
        x = batch.values[0][..., 0].float()
        x = x + self.noise_like(x, self.rng("x", step)) * self.uniform(len(x), self.rng("level", step))[:, None]
        return (self.net(x) - 2 * x).square().mean()


def make_loader(project: Path, steps: int = STEPS) -> Loader:
    """Over twenty spectrograms."""
    ids = [f"clip-{item:02d}" for item in range(20)]
    values = np.random.default_rng(0).standard_normal((20, 4, 6)).astype("<f2")
    size = {"num_mels": 4, "num_frames": 6, "digest": ""}
    rows = [{"clip_id": clip_id, "log_mel": one.tobytes(), **size} for clip_id, one in zip(ids, values, strict=True)]
    if not launcher.rank:
        shards.write_rows(rows, project / "mels" / "shard-00000.parquet", manifest.SPECTROGRAMS)
    log_mels = gather_log_mels(project / "mels", ids, project / "flat")
    return Loader(Crops(log_mels, 1, 0.0), Order(5, dict.fromkeys(ids, 1.0), BATCH), places, steps=steps)


def places(step: int) -> torch.Tensor:
    return torch.rand(BATCH, generator=torch.Generator().manual_seed(step))


def tell(project: Path, *values) -> None:
    with (project / "told").open("a") as file:
        file.write(json.dumps(values) + "\n")


def score(project: Path, module: Doubling, step: int) -> tuple[dict[str, float], int]:
    with module.ema.applied(module.net):
        value = abs(step - 40) + float(module.net[0].weight.detach().sum()) / 100
    tell(project, "scored", step, value)
    return {"score/fad": value}, 0


def train(project: Path, hardware: HardwareParams, **options) -> None:
    (project / "mels").mkdir(parents=True, exist_ok=True)
    module, loader, curve, progress = Doubling(project, **options), make_loader(project), Curve(5), Progress("train/doubling", 0.0)
    validation = Validation(HeldOut(loader.source, 20), places, BATCH, batches=2, every=20)
    scoring = Scoring(20, partial(score, project))
    fit(
        module,
        loader,
        hardware=hardware,
        scratch=project / "scratch",
        curve=curve,
        progress=progress,
        validation=validation,
        kept=Kept(project / "scratch", 25, 2),
        sampling=Sampling(20, lambda module, step: tell(project, "sampled", step, float(module.net[0].weight.detach().sum()))),
        scoring=scoring,
        report=partial(tell, project, "reported"),
    )
    values = {"net": module.net.state_dict(), "ema": module.ema.shadow, "step": module.step, "curve": curve.points}
    values |= {"valid": validation.points, "scored": scoring.points, "best_fad": scoring.weights, "pace": progress.seconds_per_step}
    torch.save(values, project / "trained.pt")


class Killed(BaseException):
    """A training dies as a killed process does, between two batches."""


def die_before(patch, step: int) -> None:
    """Let every training of this process die when it is handed batch `step`."""
    batches = Loader.__iter__

    def until(self: Loader) -> Iterator[Batch]:
        for batch in batches(self):
            if batch.step == step:
                raise Killed
            yield batch

    patch.setattr(Loader, "__iter__", until)


def main(argv: list[str]) -> None:
    project, options = Path(argv[0]).resolve(), json.loads(argv[1])
    hardware = HardwareParams(**{"accelerator": "cpu", "precision": "32", "threads": 1, **options.pop("hardware")})
    if launcher.place:
        launcher.agree({"code": os.environ.get("SOUNDMILL_TEST_CODE", "")}, project)
    elif hardware.devices * hardware.nodes > 1:
        launcher.launch(hardware, "train/doubling", __name__, argv, StageRun())
        return
    train(project, hardware, **options)


if __name__ == "__main__":
    from tests.training import doubling  # its classes are pickled under this name

    try:
        doubling.main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
