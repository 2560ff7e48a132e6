"""Estimate the time to train a family and generate with it on this machine, from a few training steps on noise.

They are timed once per set of parameters, code and processors, by `python -m soundmill.models.cost`: a JSON object with the
arguments of `time_steps` on stdin, a Timing on stdout. Torch takes a gigabyte of memory, and the flow runs for hours after it.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from soundmill import disk, hashing, lifetime, terminal
from soundmill import params as strict
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.params import read_sections
from soundmill.shards import code

TIMED_STEPS = 6
FEWEST_STEPS = 50  # that are worth a training
GAIN = 0.95  # of the time of a step; what saves less may be noise
SOUND_SECONDS = 0.5  # from a network's output to a wave; small next to the sampling steps


@dataclass(frozen=True)
class Timing:
    """The time for one batch of a family on this machine."""

    seconds: float  # wall time, the fastest of TIMED_STEPS
    clips: int  # per batch
    accumulate: int  # batches per step
    passes: int  # network evaluations per generated sound
    device: str  # cpu or cuda


def training_seconds(root: Path, document: dict[str, Any], clips: dict[str, int], num_labels: int) -> float:
    """Training time in seconds of the families in `document` (a params.yaml); `clips` is each family's number of clips."""
    return sum(seconds(_timing(root, name, document, num_labels), name, document, count) for name, count in clips.items())


def steps_in(total: float, root: Path, family: str, document: dict[str, Any], num_clips: int, num_labels: int) -> tuple[int, float]:
    """The steps of training that, with the sounds of `document`, take `total` seconds; and the seconds without training."""
    timing = _timing(root, family, document, num_labels)

    def taken(steps: int) -> float:
        train = {**document[family]["train"], "steps": steps} | ({"epochs": None} if "epochs" in document[family]["train"] else {})
        return seconds(timing, family, {**document, family: {**document[family], "train": train}}, num_clips)

    many = 100_000
    least, most = taken(1), taken(many)
    return int((total - least) / (most - least) * many), least


def fastest_hardware(root: Path, family: str, compose: Callable[[list[str]], dict[str, Any]], num_labels: int) -> list[str]:
    """The overrides of threads and precision with which a training step takes the shortest time on this machine.

    `compose` gives the document of such overrides. More threads are tried only for a training on one CPU.
    """
    document, key = compose([]), f"{family}.train.hardware"
    given, chosen, best = document[family]["train"]["hardware"], [], _timing(root, family, document, num_labels)
    cores = len(os.sched_getaffinity(0)) if best.device == "cpu" and given["devices"] == given["nodes"] == 1 else 1
    threads = given["threads"]
    while (threads := 2 * threads) <= cores:
        tried = [f"{key}.threads={threads}"]
        if (timing := _timing(root, family, compose(tried), num_labels)).seconds < GAIN * best.seconds:
            chosen, best = tried, timing
    tried = [*chosen, f"{key}.precision=bf16"]
    return tried if _timing(root, family, compose(tried), num_labels).seconds < GAIN * best.seconds else chosen


def _timing(root: Path, family: str, document: dict[str, Any], num_labels: int) -> Timing:
    import pooch

    path = Path(pooch.os_cache("soundmill")) / "timings" / f"{timing_key(family, document, num_labels)}.json"
    with suppress(OSError, ValueError, TypeError):  # missing or damaged: time again
        return Timing(**strict.parse_json(path.read_text(encoding="utf-8")))
    hardware = document[family]["train"]["hardware"]
    terminal.say(f"timing      a few steps of {family}, threads={hardware['threads']} precision={hardware['precision']}")
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps({"family": family, "document": document, "num_labels": num_labels}),
        cwd=root,
        capture_output=True,
        text=True,
        preexec_fn=lifetime.with_this_process(),
    )
    if done.returncode:
        raise UserError(f"{family}: its training steps could not be timed: {done.stderr.strip()}")
    timing = Timing(**strict.parse_json(done.stdout))
    with suppress(OSError):  # without the file, the next estimate takes half a minute longer
        disk.write_text(path, json.dumps(asdict(timing)))
    return timing


def time_steps(family: str, document: dict[str, Any], num_labels: int) -> Timing:
    """Time training steps of a family on noise; `document` is the content of a params.yaml. Loads torch."""
    from soundmill.training.device import pick_device
    from soundmill.training.loop import rehearse

    kind = registry.family(family)
    train = strict.parse_section(document, f"{family}.train", kind.train_params)
    rehearsal = kind.rehearse(document, num_labels)
    if train.lora:
        rehearsal.module.adapt(train.lora, train.hardware)
    batch = min(rehearse(rehearsal.module, rehearsal.batch, train.hardware, TIMED_STEPS))
    device = pick_device(train.hardware.accelerator).type
    return Timing(batch, rehearsal.clips, rehearsal.module.accumulate, rehearsal.passes, device)


def timing_key(family: str, document: dict[str, Any], num_labels: int) -> str:
    """Digest of everything that a Timing depends on: parameters, code, package versions, processors and GPUs."""
    train = {name: value for name, value in document[family]["train"].items() if name not in ("steps", "epochs")}
    sections = {name: document[name] for name in ("clips", "families", "spectrogram", "vocoder")}
    return hashing.digest(
        {**document[family], "train": train},
        sections,
        num_labels,
        code.code_identity(*registry.code_by_name(family, {}, document), __name__),
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
    item = document["families"][family]
    with_mixes = num_clips * (1 + document["mixup"]["ratio"] * (item["trained_on"] != item["clips"]))
    batches = train.steps * timing.accumulate if train.steps else math.ceil(train.epochs * with_mixes / timing.clips)
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
