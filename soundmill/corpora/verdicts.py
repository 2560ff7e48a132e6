"""Comparing the measures of clips with quality limits, and distributions of the measures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from soundmill import manifest, shards
from soundmill.errors import UserError

MEASURES = tuple(column.name for column in manifest.QUALITY)
PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
COLUMNS = ["clip_id", "source", "start", "recording_id", "quality"]  # read of the shards
CLIPS_AT_ONCE = 8192
SIGNED = ("dc_offset",)  # limited on both sides of zero


@dataclass(frozen=True)
class Limit:
    """An active rule: `min_<measure>` or `max_<measure>`."""

    name: str
    value: float

    @property
    def measure(self) -> str:
        return self.name.partition("_")[2]

    def excess(self, measures: Mapping[str, np.ndarray]) -> np.ndarray:
        """By how much each clip [N] exceeds the limit: positive if it breaks it, infinite for the level of digital silence."""
        values = measures[self.measure]
        if self.measure == "level_db":
            values = np.nan_to_num(values, nan=-np.inf, neginf=-np.inf)
        elif self.measure in SIGNED:
            values = np.abs(values)
        beyond = self.value - values if self.name.startswith("min_") else values - self.value
        return np.nan_to_num(beyond, nan=-np.inf, posinf=np.inf, neginf=-np.inf)  # no value, no violation

    def describe(self, value: float) -> str:
        """The measured value beside the limit: `clipping_ratio 0.31 > max_clipping_ratio 0.1`."""
        sign = "<" if self.name.startswith("min_") else ">"
        what = f"|{self.measure}|" if self.measure in SIGNED else self.measure
        number = "of digital silence" if np.isnan(value) else f"{abs(value) if self.measure in SIGNED else value:.5g}"
        return f"{what} {number} {sign} {self.name} {self.value:g}"


@dataclass
class ClipQuality:
    """Measures and verdicts of all clips, in the order of the shards: 70 bytes per clip, without ids."""

    limits: list[Limit]
    shards: list[Path]
    corpora: list[str]
    starts: list[int] = field(default_factory=lambda: [0])  # number of the first clip of each shard
    measures: dict[str, np.ndarray] = field(default_factory=dict)  # [N] each; NaN: no value
    corpus: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # [N], into `corpora`
    rejected: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))  # [N], into `limits`; -1: kept

    def __len__(self) -> int:
        return self.starts[-1]

    def broken(self) -> dict[str, int]:
        """Number of clips that break each limit; a clip may break several."""
        return {limit.name: int((limit.excess(self.measures) > 0).sum()) for limit in self.limits}

    def rejected_for(self) -> dict[str, int]:
        """Number of clips by the first limit that they break."""
        return {limit.name: int((self.rejected == number).sum()) for number, limit in enumerate(self.limits)}

    def spread(self) -> dict[str, dict[str, float]]:
        """Percentiles of every measure, and the number of clips without a value, if any."""
        percentiles: dict[str, dict[str, float]] = {}
        for name, values in self.measures.items():
            measured = values[~np.isnan(values)]
            found = np.round(np.percentile(measured, PERCENTILES), 6).tolist() if len(measured) else ()
            percentiles[name] = {f"p{p}": value for p, value in zip(PERCENTILES, found, strict=False)}
            if len(measured) < len(values):
                percentiles[name]["none"] = len(values) - len(measured)
        return percentiles

    def worst(self, limit: Limit, count: int) -> list[int]:
        """Numbers of the clips that exceed a limit most, worst first."""
        excess = limit.excess(self.measures)
        broken = np.flatnonzero(excess > 0)
        return broken[np.argsort(-excess[broken], kind="stable")[:count]].tolist()

    def places(self, numbers: Sequence[int]) -> list[tuple[Path, int]]:
        """Shard and row of each of these clips."""
        starts = np.array(self.starts)
        shard_of = np.searchsorted(starts, numbers, side="right") - 1
        rows = np.asarray(numbers, int) - starts[shard_of]
        return [(self.shards[shard], row) for shard, row in zip(shard_of.tolist(), rows.tolist(), strict=True)]


def apply_rules(
    clips: Path, recordings: pa.Table, limits: Iterable[Limit], verdicts: Path
) -> tuple[ClipQuality, list[dict[str, str]]]:
    """Write manifest.VERDICTS of the clips in the shards below `clips`; returns their quality, and the rejected as rows of
    manifest.QUARANTINE. Reads only ids and measures. `recordings` has `recording_id` and `corpus`.
    """
    quality = ClipQuality(list(limits), shards.shard_paths(clips), sorted(pc.unique(recordings["corpus"]).to_pylist()))
    collected: dict[str, list[np.ndarray]] = {name: [] for name in (*MEASURES, "rejected")}
    owners: list[pa.Array] = []
    rows: list[dict[str, str]] = []
    with shards.ShardWriter(verdicts, manifest.VERDICTS) as writer:
        for tables in shards.read_tables(quality.shards, manifest.CLIPS, COLUMNS, CLIPS_AT_ONCE):
            for some in tables:
                quality.starts.append(len(quality) + some.num_rows)
            table = pa.concat_tables(tables)
            measures = _measures(table, clips)
            broken = np.stack([limit.excess(measures) > 0 for limit in quality.limits] or [np.zeros(table.num_rows, bool)])
            first = np.where(broken.any(axis=0), broken.argmax(axis=0), -1)
            details: list[str | None] = [None] * table.num_rows
            for row in np.flatnonzero(first >= 0).tolist():
                reasons = [
                    limit.describe(measures[limit.measure][row])
                    for limit, hit in zip(quality.limits, broken[:, row], strict=True)
                    if hit
                ]
                details[row] = "; ".join(reasons)
                clip_id, source = table["clip_id"][row].as_py(), table["source"][row].as_py()
                reason = quality.limits[first[row]].name
                rows.append({"path": source, "reason": reason, "detail": f"{details[row]}, clip {clip_id}"})
            names = [quality.limits[number].name if number >= 0 else None for number in first.tolist()]
            verdict = table.append_column("rejected", pa.array(names, pa.string())).append_column(
                "detail", pa.array(details, pa.string())
            )
            writer.write_table(verdict)
            for name, values in measures.items():
                collected[name].append(values)
            owners += table["recording_id"].chunks
            collected["rejected"].append(first.astype(np.int16))
    joined = {name: np.concatenate(parts) for name, parts in collected.items()}
    quality.rejected, quality.measures = joined.pop("rejected"), joined
    quality.corpus = _corpus_numbers(pa.chunked_array(owners, pa.string()), recordings, quality.corpora, clips)
    return quality, rows


def _corpus_numbers(owners: pa.ChunkedArray, recordings: pa.Table, corpora: list[str], clips: Path) -> np.ndarray:
    """The number int32 [N] of each clip's corpus."""
    # One look-up for all clips: each builds a hash table of all recordings.
    owner_rows = pc.index_in(owners, recordings["recording_id"].combine_chunks())
    if owner_rows.null_count:
        stray = owners.filter(pc.is_null(owner_rows))[0]
        raise UserError(f"{clips}: a clip's recording {stray} does not exist; make them again: `dvc repro -f resample`")
    return pc.index_in(recordings["corpus"], pa.array(corpora, pa.string())).take(owner_rows).to_numpy().astype(np.int32)


def _measures(table: pa.Table, clips: Path) -> dict[str, np.ndarray]:
    quality = table["quality"].combine_chunks()
    if quality.null_count:
        first = table["clip_id"][pc.index(pc.is_null(quality), True).as_py()]
        raise UserError(f"{clips}: clips without measures (first: {first}); make them again: `dvc repro -f resample`")
    return {name: pc.struct_field(quality, name).to_numpy(zero_copy_only=False).astype(np.float64) for name in MEASURES}
