"""An estimate of the time to train a family and generate with it on this machine: a few steps of its own loss on noise.

`python -m soundmill.models.cost` times them: a JSON object with the arguments of `time_steps` on stdin, a Timing on stdout.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from soundmill import hashing
from soundmill import params as strict
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.params import FamilyGenerateParams, FamilyTrainParams
from soundmill.shards import code

TIMED_STEPS = 3
SOUND_SECONDS = 0.5  # from what a net makes to a wave; small beside its steps


@dataclass(frozen=True)
class Timing:
    """A family's batch on this machine."""

    seconds: float  # of wall time, of the fastest of TIMED_STEPS
    clips: int  # in it
    accumulate: int  # of it to a step
    passes: int  # of the net for one generated sound


def time_steps(family: str, document: dict[str, Any], num_labels: int) -> Timing:
    """Time steps of a family by its sections in the content of a params.yaml. It loads torch, and trains on noise."""
    from soundmill.training.loop import rehearse

    its = registry.family(family)
    train: FamilyTrainParams = strict.parse_section(document, f"{family}.train", its.train_params)
    rehearsal = its.rehearse(document, num_labels)
    batch = min(rehearse(rehearsal.module, rehearsal.batch, train.hardware, TIMED_STEPS))
    return Timing(batch, rehearsal.clips, rehearsal.module.accumulate, rehearsal.passes)


def timing_key(family: str, document: dict[str, Any], num_labels: int) -> str:
    """Digest of all that decides a Timing: parameters, code, versions of packages, processors and GPUs."""
    train = {name: value for name, value in document[family]["train"].items() if name not in ("steps", "epochs")}
    sections = {name: document[name] for name in ("clips", "families", "spectrogram", "vocoder")}
    return hashing.digest(
        {**document[family], "train": train},
        sections,
        num_labels,
        code.code_identity(*registry.code(family, document), __name__),
        re.findall(r"^model name.*$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE),
        len(os.sched_getaffinity(0)),
        [str(path) for path in sorted(Path("/dev").glob("nvidia*"))],
        os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def seconds(timing: Timing, family: str, document: dict[str, Any], num_clips: int) -> float:
    """Seconds of wall time for training on `num_clips` clips and generating after it.

    By a family's sections in the content of a params.yaml. What other stages make for it (latents, text states) is not in it.
    """
    its = registry.family(family)
    train: FamilyTrainParams = strict.parse_section(document, f"{family}.train", its.train_params)
    generate: FamilyGenerateParams = strict.parse_section(document, f"{family}.generate", its.generate_params)
    batches = train.steps * timing.accumulate if train.steps else math.ceil(train.epochs * num_clips / timing.clips)
    sounds = min(generate.count or num_clips, num_clips)
    forward = timing.seconds / 3  # backward costs about twice the forward pass
    looks = 1 + batches // (train.validate_every_steps * timing.accumulate) if train.validate_every_steps else 1
    held_out = looks * train.validate_batches * forward
    return batches * timing.seconds + held_out + sounds * (timing.passes * forward / train.items + SOUND_SECONDS)


if __name__ == "__main__":
    try:
        with redirect_stdout(sys.stderr):
            timing = time_steps(**strict.parse_json(sys.stdin.read()))
    except UserError as error:
        sys.exit(str(error))
    print(json.dumps(asdict(timing)))
