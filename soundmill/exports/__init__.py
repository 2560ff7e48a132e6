"""Prepared clips in the formats other tools read: audio and manifests side by side, so such a tool can be pointed at the directory.

Every format gets the same samples (16-bit, mono, the project's rate) and as much of captions, labels and splits as it has a place
for. A clip that a format cannot express (no caption, several labels) is left out, counted, and named in `not_exported.tsv`.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from soundmill import clips, manifest, shards
from soundmill.errors import UserError
from soundmill.exports import captioned, classes, packed
from soundmill.exports.target import Clip, Layout, NotExpressible, Target
from soundmill.params import did_you_mean

LEFT_OUT = "not_exported.tsv"


@dataclass
class Export:
    """What came of an export."""

    directory: Path
    written: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)  # clip id, reason


def named(folder: str, suffix: str) -> Callable[[Clip], str]:
    return lambda clip: f"{folder}/{clip.clip_id}{suffix}"


FORMATS: dict[str, Callable[[Path, Path], Target]] = {
    "amphion": Layout(captioned.amphion_place, captioned.write_amphion),
    "audiocaps": Layout(captioned.video_place, captioned.write_audiocaps),
    "audiocraft": Layout(named("audio", ".wav"), captioned.write_audiocraft),
    "audiofolder": Layout(captioned.audiofolder_place, captioned.write_audiofolder, needs="nothing"),
    "audiofolder_csv": Layout(captioned.audiofolder_place, captioned.write_audiofolder_csv, needs="nothing"),
    "audiofolder_parquet": packed.HuggingFaceParquet,
    "audioldm": Layout(named("audio", ".wav"), captioned.write_audioldm),
    "clotho": Layout(lambda clip: f"{captioned.CLOTHO[clip.split]}/{clip.clip_id}.wav", captioned.write_clotho),
    "esc": Layout(named("audio", ".wav"), classes.write_esc, needs="label"),
    "folder": Layout(classes.folder_place, classes.write_folder, needs="label"),
    "gtzan": classes.Gtzan,
    "lhotse": Layout(named("audio", ".flac"), captioned.write_lhotse, needs="nothing"),
    "musiccaps": Layout(captioned.video_place, captioned.write_musiccaps),
    "nsynth": Layout(classes.nsynth_place, classes.write_nsynth, needs="label"),
    "panns": Layout(lambda clip: f"audio/Y{clip.clip_id}.wav", captioned.write_panns),
    "stable_audio": Layout(lambda clip: f"{clip.split}/{clip.clip_id}.wav", captioned.write_stable_audio),
    "tango": Layout(named("audio", ".wav"), captioned.write_tango),
    "urbansound8k": Layout(classes.urbansound_place, classes.write_urbansound, needs="label"),
    "wavcaps": Layout(named("audio", ".flac"), captioned.write_wavcaps),
    "webdataset": packed.WebDataset,
}


def export(
    tables: clips.Tables,
    name: str,
    directory: Path,
    sample_rate: int,
    *,
    split: str | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> Export:
    """Write all prepared clips (of one split) to the new directory in the named format; it appears whole or not at all."""
    if name not in FORMATS:
        raise UserError(f"format {name!r} is not known{did_you_mean(name, list(FORMATS))} (formats: {', '.join(FORMATS)})")
    rows = {row["clip_id"]: row for row in clips.find(tables, split=split)}
    if not rows:
        raise UserError(f"{tables.catalog}: no clip" + (f" of the split {split}" if split else "") + " to export")
    final = directory.resolve()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError(f"{directory} is not empty; say a new directory, or remove it")
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}; say a directory that can be made") from None
    target, result = FORMATS[name](partial, final), Export(directory)
    try:
        for found in clips.with_audio(tables, set(rows)):
            row = rows[found["clip_id"]]
            clip = Clip(
                manifest.check_clip_id(row["clip_id"]),
                row["split"],
                tuple(row["captions"]),
                tuple(row["labels"]),
                row["recording_id"],
                row["source"],
                row["start"],
                found["num_samples"],
                sample_rate,
            )
            try:
                target.add(clip, found["audio"]["bytes"])
                result.written += 1
            except NotExpressible as reason:
                result.left_out.append((clip.clip_id, str(reason)))
            progress(1)
        if not result.written:
            reasons = Counter(reason for _, reason in result.left_out)
            raise UserError(
                f"{name}: none of {len(rows)} clips can be expressed ({reasons.most_common(1)[0][0]}); choose another format"
            )
        target.finish()
        if result.left_out:
            lines = ["clip_id\treason", *("\t".join(pair) for pair in sorted(result.left_out))]
            (partial / LEFT_OUT).write_text("\n".join(lines) + "\n", encoding="utf-8")
        for path in partial.rglob("*"):
            if path.is_file():
                shards.sync_file(path)
        if final.exists():
            final.rmdir()
        os.replace(partial, final)
        shards.sync_directory(final.parent)
    except OSError as error:
        error.filename = error.filename or str(directory)  # a write that fails does not say of what
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result
