"""The served model of any family, run by the model registry: rows (`label`, `seed`) in, waves [N, channels, T] out.

MLflow executes this file; beside it lie safetensors and JSON only, so loading a registered model unpickles nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from soundmill import tracking
from soundmill.models import generation
from soundmill.models.family import family_of


def load(directory: Path) -> Path:
    """Check that this is a checkpoint; it is read anew for every call, so one served model holds no state."""
    family_of(directory)
    return directory


def predict(directory: Path, rows: Any) -> np.ndarray:
    """One sound per row; `label` may be empty (any sound) where the family knows labels, and is the prompt of one that reads text.

    `seed` makes it repeatable.
    """
    waves = []
    for label, seed in zip(rows["label"], rows["seed"], strict=True):
        with tempfile.TemporaryDirectory(prefix="soundmill-serve-") as folder:
            prompts = [label] if label else []
            (path,) = generation.generate_sounds(directory, prompts, 1, int(seed), Path(folder), home=directory)
            waves.append(soundfile.read(path, dtype="float32", always_2d=True)[0].T)
    return np.stack(waves)


tracking.serve(load, predict)
