"""Estimate the time to train a family and generate with it on this machine, from a few training steps on noise.

`python -m soundmill.models.cost` times them: a JSON object with the arguments of `time_steps` on stdin, a Timing on stdout.
"""

import json
import math
import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from soundmill import hashing, terminal
from soundmill import params as strict
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.params import read_sections
from soundmill.shards import code

TIMED_STEPS = 3
SOUND_SECONDS = 0.5  # from a network's output to a wave; small next to the sampling steps


@dataclass(frozen=True)
class Timing:
    """The time for one batch of a family on this machine."""

    seconds: float  # wall time, the fastest of TIMED_STEPS
    clips: int  # per batch
    accumulate: int  # batches per step
    passes: int  # network evaluations per generated sound


def time_steps(family: str, document: dict[str, Any], num_labels: int) -> Timing:
    """Time training steps of a family on noise; `document` is the content of a params.yaml. Loads torch."""
    from soundmill.training.loop import rehearse

    kind = registry.family(family)
    train = strict.parse_section(document, f"{family}.train", kind.train_params)
    rehearsal = kind.rehearse(document, num_labels)
    if train.lora:
        rehearsal.module.adapt(train.lora, train.hardware)
    batch = min(rehearse(rehearsal.module, rehearsal.batch, train.hardware, TIMED_STEPS))
    return Timing(batch, rehearsal.clips, rehearsal.module.accumulate, rehearsal.passes)


def timing_key(family: str, document: dict[str, Any], num_labels: int) -> str:
    """Digest of everything that a Timing depends on: parameters, code, package versions, processors and GPUs."""
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
    """Seconds of wall time to train on `num_clips` clips and then generate; `document` is the content of a params.yaml.

    Excludes the stages before the training, such as latents and text states.
    """
    kind = registry.family(family)
    train, generate, _ = read_sections(document, family, kind.train_params, kind.generate_params)
    batches = train.steps * timing.accumulate if train.steps else math.ceil(train.epochs * num_clips / timing.clips)
    sounds = min(generate.count or num_clips, num_clips)
    forward = timing.seconds / 3  # backward costs about twice the forward pass
    validations = 1 + batches // (train.validate_every_steps * timing.accumulate) if train.validate_every_steps else 1
    held_out = validations * train.validate_batches * forward
    return batches * timing.seconds + held_out + sounds * (timing.passes * forward / train.items + SOUND_SECONDS)


if __name__ == "__main__":
    try:
        with redirect_stdout(sys.stderr):
            timing = time_steps(**strict.parse_json(sys.stdin.read()))
    except UserError as error:
        sys.exit(str(error))
    terminal.say(json.dumps(asdict(timing)))
