"""Find clips, play them, and trace them to their recording and offset."""

import filecmp
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from soundmill import manifest, params, shards
from soundmill.audio import flac
from soundmill.errors import UserError


@dataclass(frozen=True)
class Tables:
    """Paths of the prepared clips and their catalog."""

    clips: Path  # shards with audio
    catalog: Path  # names, captions, labels, splits

    @classmethod
    def of(cls, data: Path, variant: str) -> Self:
        return cls(data / "clips" / variant, data / "catalog" / f"{variant}.parquet")


def of_family(root: Path, family: str) -> Tables:
    """The clips of a family's section in params.yaml; those of the variant `default` if it has none."""
    path = root / "params.yaml"
    try:
        variant = ((params.read_yaml(path).get("families") or {}).get(family) or {}).get("clips", "default")
    except AttributeError:
        raise UserError(f"{path}: families.{family}: expected a section of parameters; compose it with `make params`") from None
    return Tables.of(root / "data", variant)


def find(tables: Tables, *, split: str | None = None, label: str | None = None, text: str | None = None) -> list[dict[str, Any]]:
    """Catalog rows that match split, label (exact) and text (in a caption, the id or the source path; case ignored)."""
    if not tables.catalog.exists():
        raise UserError(f"{tables.catalog}: no clips prepared yet; run `dvc repro` (or `make demo`)")
    rows = shards.read_table(tables.catalog, manifest.CATALOG).to_pylist()
    if split is not None and split not in manifest.SPLITS:
        raise UserError(f"--split {split}: must be one of {', '.join(manifest.SPLITS)}")
    if label is not None:
        labels = sorted({name for row in rows for name in row["labels"]})
        if label not in labels:
            listed = ", ".join(labels) or "none"
            raise UserError(f"--label {label}: no clip has it{params.did_you_mean(label, labels)}; labels: {listed}")
    needle = text.casefold() if text else ""

    def matches(row: dict[str, Any]) -> bool:
        haystack = " ".join([row["clip_id"], row["source"], *row["captions"]]).casefold()
        return (split is None or row["split"] == split) and (label is None or label in row["labels"]) and needle in haystack

    return [row for row in rows if matches(row)]


def named(tables: Tables, clip_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Catalog rows of the clips with these ids."""
    rows = {row["clip_id"]: row for row in find(tables)}
    for clip_id in clip_ids:
        if clip_id not in rows:
            raise UserError(f"no clip {clip_id!r}{params.did_you_mean(clip_id, list(rows))}; `soundmill clips list` shows all")
    return [rows[clip_id] for clip_id in clip_ids]


def get(tables: Tables, clip_id: str) -> dict[str, Any]:
    """The catalog row of one clip, with its audio (FLAC bytes), digest and level."""
    return {**named(tables, [clip_id])[0], **next(with_audio(tables, {clip_id}))}


def with_audio(tables: Tables, clip_ids: set[str]) -> Iterator[dict[str, Any]]:
    """Rows of manifest.CLIPS for these ids of the catalog, in shard order; other row groups are not read."""
    catalog = shards.read_table(tables.catalog, manifest.CATALOG, ["clip_id", "shard"])
    by_shard: dict[int, set[str]] = {}
    for clip_id, shard in zip(catalog["clip_id"].to_pylist(), catalog["shard"].to_pylist(), strict=True):
        if clip_id in clip_ids:
            by_shard.setdefault(shard, set()).add(clip_id)
    for shard, ids in sorted(by_shard.items()):
        path = tables.clips / shards.shard_name(shard)
        numbers = {}
        if path.exists():
            rows = shards.read_rows(path, manifest.CLIPS, ["clip_id"])
            numbers = {row["clip_id"]: number for number, row in enumerate(rows) if row["clip_id"] in ids}
        if missing := sorted(ids - numbers.keys()):
            raise UserError(f"{path}: clip {missing[0]!r} is in the catalog but not in the shard; run `dvc repro`")
        yield from shards.read_rows(path, manifest.CLIPS, rows=numbers.values())


def check_rate(row: dict[str, Any], sample_rate: int) -> None:
    """UserError if the rate of a clip (a row of manifest.CLIPS) differs from the one in params.yaml."""
    rate = flac.flac_rate(row["audio"]["bytes"])
    if rate != sample_rate:
        what = f"clip {row['clip_id']!r} has {rate} Hz, but `clips` in params.yaml says {sample_rate}"
        raise UserError(f"{what}; rebuild the clips with `dvc repro`, or restore the parameter")


def export(tables: Tables, clip_ids: list[str], directory: Path, sample_rate: int) -> list[Path]:
    """Write clips as `{clip_id}.wav` (16-bit PCM), beside no other sound of that name; returns the paths in order of the shards."""
    written = []
    for row in with_audio(tables, set(clip_ids)):
        check_rate(row, sample_rate)
        if not written:  # not before the rate is checked
            directory.mkdir(parents=True, exist_ok=True)
        path, wave = directory / f"{manifest.check_clip_id(row['clip_id'])}.wav", flac.decode_flac(row["audio"]["bytes"])
        if path.exists():
            with tempfile.TemporaryDirectory() as place:
                flac.write_wav(same := Path(place) / path.name, wave, sample_rate)
                if not filecmp.cmp(path, same, shallow=False):
                    raise UserError(f"{path}: is there, and is not this clip; choose another --output")
        else:
            flac.write_wav(path, wave, sample_rate)
        written.append(path)
    return written
