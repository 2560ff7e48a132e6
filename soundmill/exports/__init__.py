"""Prepared clips in the formats other tools read: audio and manifests side by side, so such a tool can be pointed at the directory.

Every format gets the same samples (16-bit, in the rate and channels of one variant of clips) and as much of captions, labels and
splits as it has a place for. A clip that a format cannot express (no caption, several labels) is left out, counted, and named in
`not_exported.tsv`.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from soundmill import clips, disk, manifest
from soundmill.audio.flac import flac_channels
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
    "audiofolder_csv": Layout(captioned.audiofolder_csv_place, captioned.write_audiofolder_csv, needs="nothing"),
    "audiofolder_parquet": packed.HuggingFaceParquet,
    "audioldm": Layout(named("audio", ".wav"), captioned.write_audioldm),
    "clotho": Layout(lambda clip: f"{captioned.CLOTHO[clip.split]}/{clip.clip_id}.wav", captioned.write_clotho),
    "esc": Layout(named("audio", ".wav"), classes.write_esc, needs="label"),
    "folder": classes.Folder,
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
    """Write all prepared clips (of one split) in the named format to a directory that is empty, or new and appears whole."""
    if name not in FORMATS:
        raise UserError(f"format {name!r} is not known{did_you_mean(name, list(FORMATS))} (formats: {', '.join(FORMATS)})")
    rows = {row["clip_id"]: row for row in clips.find(tables, split=split)}
    if not rows:
        raise UserError(f"{tables.catalog}: no clip" + (f" of the split {split}" if split else "") + " to export")
    with _in_the_making(directory) as (partial, final):
        target, result = FORMATS[name](partial, final), Export(directory)
        for stored in clips.with_audio(tables, set(rows)):
            row = rows[stored["clip_id"]]
            clips.check_rate(stored, sample_rate)
            clip = Clip(
                manifest.check_clip_id(row["clip_id"]),
                row["split"],
                tuple(row["captions"]),
                tuple(row["labels"]),
                row["group"] or row["recording_id"],
                row["source"],
                row["start"],
                stored["num_samples"],
                sample_rate,
                flac_channels(stored["audio"]["bytes"]),
            )
            try:
                target.add(clip, stored["audio"]["bytes"])
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
    return result


PARTIAL = ".soundmill-export"  # what an export is made in


@contextmanager
def _in_the_making(directory: Path) -> Iterator[tuple[Path, Path]]:
    """Where to write what shall lie in `directory`, which is new or empty, and `directory` resolved; put in place at the end.

    An empty directory that is there stays, for it may be a volume, or where somebody's shell is.
    """
    with _locked(directory) as (partial, final, lock):
        try:
            for path in partial.iterdir():  # of an export that was killed
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            yield partial, final
            _check_ours(partial, lock, directory)
            for path in partial.rglob("*"):
                if path.is_file():
                    disk.sync_file(path)
            if final.exists() and _left_in(final):
                raise UserError(f"{directory}: something else was written there meanwhile; remove it, and export again")
            if partial.parent == final:
                _move_up(partial, final)
            else:
                os.replace(partial, final)
            disk.sync_directory(partial.parent)
        except OSError as error:
            error.filename = error.filename or str(directory)  # a write that fails does not say of what
            raise
        finally:
            if _is_ours(partial, lock):
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[tuple[Path, Path, int]]:
    """(what an export to `directory` is made in, `directory` resolved, the lock on the first)."""
    try:
        final = directory.resolve()
        os.fspath(final).encode()
        inside = final.exists()
        partial = final / PARTIAL if inside else final.with_name(f"{PARTIAL}-{final.name}")
        if inside and (not final.is_dir() or _left_in(final)):
            raise UserError(f"{directory} is not empty; say a new directory, or remove it")
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except UnicodeEncodeError:
        raise UserError(f"{directory}: manifests cannot say this name, which is not UTF-8; say another directory") from None
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}; say a directory that can be made and written to") from None
    try:
        if not disk.try_lock(lock):
            raise UserError(f"{directory}: another export is writing there; wait for it, or say another directory")
        _check_ours(partial, lock, directory)
        yield partial, final, lock
    finally:
        os.close(lock)


def _check_ours(partial: Path, lock: int, directory: Path) -> None:
    if not _is_ours(partial, lock):
        raise UserError(f"{directory}: was moved or removed meanwhile; export again")


def _is_ours(partial: Path, lock: int) -> bool:
    """Whether the locked directory still bears its name: another export may have ended with it, or somebody moved it."""
    return partial.exists() and os.path.samestat(os.fstat(lock), os.stat(partial))


def _move_up(partial: Path, final: Path) -> None:
    """Put everything in place, or, if that is cut short, nothing."""
    moved: list[Path] = []
    try:
        for path in sorted(partial.iterdir()):
            os.replace(path, final / path.name)
            moved.append(path)
    except BaseException:
        for path in moved:
            os.replace(final / path.name, path)
        raise


def _left_in(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name != PARTIAL]
