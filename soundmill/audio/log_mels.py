"""Log-mel spectrograms in shards, as the stage `spectrogram` writes them; mel.py computes them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from soundmill import manifest, shards
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError

SPEC_KEY = b"mel_spec"  # in the schema metadata of every shard


def read_spec(directory: Path) -> MelSpec:
    """The spec of the shards below `directory`; UserError if they differ."""
    try:
        return MelSpec.model_validate_json(shards.common_metadata(directory, SPEC_KEY))
    except ValidationError as error:
        raise UserError(f"{directory}: mel spec not readable ({error.errors()[0]['msg']}); make it again: `dvc repro`") from None


def iterate_log_mels(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(clip id, log-mel float16 [n_mels, frames]) of every row below `directory`, shard by shard in bounded memory."""
    for path in shards.shard_paths(directory):
        for row in shards.read_rows(path, manifest.SPECTROGRAMS, ["clip_id", "log_mel", "num_mels", "num_frames"]):
            size = row["num_mels"], row["num_frames"]
            values = np.frombuffer(row["log_mel"], dtype="<f2")
            if len(values) != size[0] * size[1]:
                raise UserError(f"{path}: the spectrogram of clip {row['clip_id']!r} is not {size}; make it again: `dvc repro`")
            yield row["clip_id"], values.reshape(size)
