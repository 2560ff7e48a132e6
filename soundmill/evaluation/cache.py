"""A cache of embeddings, and of facts of sounds that no score shows: Parquet files keyed by the sounds' content, one directory per
embedder configuration.

Files appear complete and never change, so any number of processes may read and add at once. An embedding that two processes
compute at the same time is stored twice and read once. A file's name is the digest of its bytes; `drop_damaged` removes those that
differ.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from soundmill import disk, hashing, shards
from soundmill.audio.flac import to_pcm16

EMBEDDINGS = pa.schema(
    [
        ("key", pa.string()),  # digest of the sound's content
        ("num_samples", pa.int64()),  # of the sound before resampling for the embedder, at
        ("sample_rate", pa.int32()),
        ("silent", pa.bool_()),
        ("clipped", pa.bool_()),
        ("digest", pa.string()),  # of its 16-bit samples
        ("patches", pa.int32()),
        ("frames", pa.binary()),  # float32 [patches, size], little-endian
        ("logits", pa.binary()),  # float32 [classes]
    ]
)
FACTS = [name for name in EMBEDDINGS.names if name not in ("frames", "logits")]
ROWS_PER_GROUP = 16  # read together to access one sound
GROUPS_HELD = 16  # in memory
UNFINISHED = ".adding-"
LAYOUT = 2  # version of the directory's layout; part of its key
SILENT_PEAK = 10 ** (-60 / 20)  # −60 dBFS
FULL_SCALE = 0.999
CLIPPED_SHARE = 0.001  # of the samples at full scale; a single peak is not clipping


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of a sound, which are read without its embedding."""

    num_samples: int
    sample_rate: int  # of `num_samples`
    silent: bool
    clipped: bool
    digest: str  # of its 16-bit samples
    patches: int = 0

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate


def facts_of(wave: np.ndarray, sample_rate: int) -> Facts:
    """Facts of a wave [T] or [C, T] in [−1, 1]."""
    level = np.abs(wave)
    return Facts(
        num_samples=wave.shape[-1],
        sample_rate=sample_rate,
        silent=bool(level.max(initial=0.0) <= SILENT_PEAK),
        clipped=bool((level >= FULL_SCALE).mean() > CLIPPED_SHARE) if wave.size else False,
        digest=hashing.digest(to_pcm16(wave).tobytes()),
    )


def shares(sounds: Iterable[Facts]) -> dict[str, float]:
    """Shares of sounds that are silent, clipped, or equal to another one sample by sample."""
    sounds = list(sounds)
    distinct = len({sound.digest for sound in sounds})
    total = max(len(sounds), 1)
    return {
        "silent": sum(sound.silent for sound in sounds) / total,
        "clipped": sum(sound.clipped for sound in sounds) / total,
        "duplicate": (len(sounds) - distinct) / total,
    }


@dataclass(frozen=True, slots=True)
class Embedding:
    """An embedder's output for one sound, and facts of the wave."""

    key: str
    facts: Facts
    frames: np.ndarray  # [P, D]
    logits: np.ndarray  # [K]


def add(directory: Path, embeddings: Iterable[Embedding]) -> None:
    """Add embeddings as one file, atomically; nothing is written if there are none."""
    directory.mkdir(parents=True, exist_ok=True)
    with disk.opened(directory) as handle:
        disk.lock(handle, shared=True)  # exclusive in `remove_unfinished`
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=directory) as place:
            path = Path(place) / "new"
            with shards.ShardWriter(path, EMBEDDINGS, ROWS_PER_GROUP) as writer:
                for embedding in embeddings:
                    facts = asdict(embedding.facts) | {"patches": len(embedding.frames)}
                    frames = np.ascontiguousarray(embedding.frames, "<f4").tobytes()
                    logits = np.ascontiguousarray(embedding.logits, "<f4").tobytes()
                    writer.write({"key": embedding.key, **facts, "frames": frames, "logits": logits})
            if writer.num_rows:
                disk.sync_file(path)
                os.replace(path, directory / f"{hashing.file_digest(path)}.parquet")


def remove_unfinished(directory: Path) -> None:
    """Remove unfinished files of killed runs, unless another process is adding at the moment."""
    unfinished = list(directory.glob(f"{UNFINISHED}*"))
    if unfinished:
        with disk.opened(directory) as handle:
            if disk.try_lock(handle):
                for place in unfinished:
                    shutil.rmtree(place, ignore_errors=True)


def drop_damaged(directory: Path, workers: int) -> list[str]:
    """Remove files whose bytes changed after they were written, which Parquet notices only in part; returns their names."""
    paths = sorted(directory.glob("*.parquet"))
    digests = hashing.file_digests([bytes(path) for path in paths], workers=workers)
    # A file that has disappeared was removed by another run.
    damaged = [path for path, digest in zip(paths, digests, strict=True) if digest != path.stem and path.exists()]
    for path in damaged:
        path.unlink(missing_ok=True)
    return [path.name for path in damaged]


class Embedded:
    """The sounds with these keys that a directory has; embeddings are read from disk at each access."""

    def __init__(self, directory: Path, keys: set[str]):
        self.facts: dict[str, Facts] = {}
        self._places: dict[str, tuple[str, int, int]] = {}  # file, row group, row within
        for path in sorted(directory.glob("*.parquet")):
            try:
                with shards.open_parquet(path) as file:
                    rows = file.read(FACTS).to_pylist()
            except FileNotFoundError:  # dropped by another run
                continue
            for row, facts in enumerate(rows):
                if (key := facts.pop("key")) in keys and key not in self.facts:
                    self.facts[key] = Facts(**facts)
                    self._places[key] = (str(path), *divmod(row, ROWS_PER_GROUP))

    def __contains__(self, key: str) -> bool:
        return key in self.facts

    def frames(self, key: str) -> np.ndarray:
        """Patches [P, D] float32 of a sound; [0, 0] if it was too short for one."""
        flat = np.frombuffer(self._cell(key, "frames"), "<f4")
        patches = self.facts[key].patches
        return flat.reshape(patches, -1) if patches else flat.reshape(0, 0)

    def logits(self, key: str) -> np.ndarray:
        """Logits [K] float32 of a sound."""
        return np.frombuffer(self._cell(key, "logits"), "<f4")

    def _cell(self, key: str, column: str) -> bytes:
        path, group, row = self._places[key]
        return _read_group(path, group)[column][row].as_py()


@lru_cache(maxsize=GROUPS_HELD)
def _read_group(path: str, group: int) -> pa.Table:
    with shards.open_parquet(path) as file:
        return file.read_row_group(group, columns=["frames", "logits"])
