"""Composes parameters for pipelines that run at the same time in threads: Hydra's state is global."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from soundmill import params

_one_at_a_time = threading.Lock()


def compose(conf: Path, overrides: list[str]) -> dict[str, Any]:
    """`soundmill.params.compose`, one call at a time."""
    with _one_at_a_time:
        return params.compose(conf, overrides)
