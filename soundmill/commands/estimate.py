"""Estimate training time on this machine from a few steps, timed once per set of parameters, code and processors.

The steps run in a separate process, because torch takes a gigabyte of memory and the flow runs for hours after it."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soundmill import disk, lifetime
from soundmill.errors import UserError
from soundmill.models import cost


def training_seconds(root: Path, document: dict[str, Any], clips: dict[str, int], num_labels: int) -> float:
    """Training time in seconds of the families in `document` (a params.yaml); `clips` is each family's number of clips."""
    return sum(cost.seconds(_timing(root, name, document, num_labels), name, document, count) for name, count in clips.items())


def _timing(root: Path, family: str, document: dict[str, Any], num_labels: int) -> cost.Timing:
    import pooch

    path = Path(pooch.os_cache("soundmill")) / "timings" / f"{cost.timing_key(family, document, num_labels)}.json"
    with suppress(OSError, ValueError, TypeError):  # missing or damaged: time again
        return cost.Timing(**json.loads(path.read_text(encoding="utf-8")))
    done = subprocess.run(
        [sys.executable, "-m", cost.__name__],
        input=json.dumps({"family": family, "document": document, "num_labels": num_labels}),
        cwd=root,
        capture_output=True,
        text=True,
        preexec_fn=lifetime.with_this_process(),
    )
    if done.returncode:
        raise UserError(f"{family}: its training steps could not be timed: {done.stderr.strip()}")
    timing = cost.Timing(**json.loads(done.stdout))
    with suppress(OSError):  # without the file, the next estimate takes half a minute longer
        disk.write_atomically(path, lambda temporary: temporary.write_text(json.dumps(asdict(timing)), encoding="utf-8"))
    return timing
