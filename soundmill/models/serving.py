"""Serve a model of any family from the model registry: rows (`label`, `seed`) in, waves [N, channels, T] out.

MLflow executes this file; its model consists of safetensors and JSON, so loading a registered model unpickles nothing.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from soundmill import tracking
from soundmill.models import generation
from soundmill.models.family import family_of


def load(directory: Path) -> Path:
    """Check that this is a checkpoint. Each call reads it again, so a served model has no state."""
    family_of(directory)
    return directory


def predict(directory: Path, rows: Any) -> np.ndarray:
    """One sound per row. `label` is a label (empty: unconditional) or, for a text-conditioned family, the prompt.

    The same `seed` gives the same sound.
    """
    waves = []
    for label, seed in zip(rows["label"], rows["seed"], strict=True):
        with tempfile.TemporaryDirectory(prefix="soundmill-serve-") as folder:
            prompts = [label] if label else []
            (path,) = generation.generate_sounds(directory, prompts, 1, int(seed), Path(folder), home=directory)
            waves.append(soundfile.read(path, dtype="float32", always_2d=True)[0].T)
    return np.stack(waves)


tracking.serve(load, predict)
