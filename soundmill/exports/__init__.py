"""Prepared clips in other tools' formats: a directory with audio and manifests.

Every format has the same samples (16 bits, with the rate and channels of one variant of clips), and captions, labels and splits as
far as it supports them. Clips that a format cannot express (no caption, several labels) are listed in `not_exported.tsv`.
"""

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
from soundmill.exports.target import ExportClip, Layout, NotExpressible, Target
from soundmill.params import did_you_mean

LEFT_OUT = "not_exported.tsv"


@dataclass
class Export:
    """The result of an export."""

    directory: Path
    written: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)  # clip id, reason


def clip_path(folder: str, suffix: str) -> Callable[[ExportClip], str]:
    return lambda clip: f"{folder}/{clip.clip_id}{suffix}"


FORMATS: dict[str, Callable[[Path, Path], Target]] = {
    "amphion": Layout(captioned.amphion_place, captioned.write_amphion),
    "audiocaps": Layout(captioned.video_place, captioned.write_audiocaps),
    "audiocraft": Layout(clip_path("audio", ".wav"), captioned.write_audiocraft),
    "audiofolder": Layout(captioned.audiofolder_place, captioned.write_audiofolder, needs="nothing"),
    "audiofolder_csv": Layout(captioned.audiofolder_csv_place, captioned.write_audiofolder_csv, needs="nothing"),
    "audiofolder_parquet": packed.HuggingFaceParquet,
    "audioldm": Layout(clip_path("audio", ".wav"), captioned.write_audioldm),
    "clotho": Layout(lambda clip: f"{captioned.CLOTHO[clip.split]}/{clip.clip_id}.wav", captioned.write_clotho),
    "esc": Layout(clip_path("audio", ".wav"), classes.write_esc, needs="label"),
    "folder": classes.Folder,
    "gtzan": classes.Gtzan,
    "lhotse": Layout(clip_path("audio", ".flac"), captioned.write_lhotse, needs="nothing"),
    "musiccaps": Layout(captioned.video_place, captioned.write_musiccaps),
    "nsynth": Layout(classes.nsynth_place, classes.write_nsynth, needs="label"),
    "panns": Layout(lambda clip: f"audio/Y{clip.clip_id}.wav", captioned.write_panns),
    "stable_audio": Layout(lambda clip: f"{clip.split}/{clip.clip_id}.wav", captioned.write_stable_audio),
    "tango": Layout(clip_path("audio", ".wav"), captioned.write_tango),
    "urbansound8k": Layout(classes.urbansound_place, classes.write_urbansound, needs="label"),
    "wavcaps": Layout(clip_path("audio", ".flac"), captioned.write_wavcaps),
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
    """Write all prepared clips (of one split) in a format to an empty or new directory, which appears only when complete."""
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}{did_you_mean(name, list(FORMATS))} (formats: {', '.join(FORMATS)})")
    rows = {row["clip_id"]: row for row in clips.find(tables, split=split)}
    if not rows:
        raise UserError(f"{tables.catalog}: no clip" + (f" of the split {split}" if split else "") + " to export")
    with new_directory(directory) as (partial, final):
        target, result = FORMATS[name](partial, final), Export(directory)
        for stored in clips.with_audio(tables, set(rows)):
            row = rows[stored["clip_id"]]
            clips.check_rate(stored, sample_rate)
            clip = ExportClip(
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


PARTIAL = ".soundmill-export"  # directory of an unfinished export


@contextmanager
def new_directory(directory: Path) -> Iterator[tuple[Path, Path]]:
    """A temporary directory whose content is moved to `directory`, new or empty, at the end; and `directory` resolved.

    An existing empty directory is not replaced: it may be a mounted volume or a shell's working directory.
    """
    with _locked(directory) as (partial, final, lock):
        try:
            for path in partial.iterdir():  # left by a killed export
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            yield partial, final
            _check_ours(partial, lock, directory)
            for path in partial.rglob("*"):
                if path.is_file():
                    disk.sync_file(path)
            if final.exists() and _content(final):
                raise UserError(f"{directory}: files were written there during the export; remove them and export again")
            if partial.parent == final:
                _move_up(partial, final)
            else:
                os.replace(partial, final)
            disk.sync_directory(partial.parent)
        except OSError as error:
            error.filename = error.filename or str(directory)  # a failed write does not name the file
            raise
        finally:
            if _is_ours(partial, lock):
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[tuple[Path, Path, int]]:
    """The temporary directory of an export to `directory`, `directory` resolved, and the lock on the former."""
    try:
        final = directory.resolve()
        os.fspath(final).encode()
        inside = final.exists()
        partial = final / PARTIAL if inside else final.with_name(f"{PARTIAL}-{final.name}")
        if inside and (not final.is_dir() or _content(final)):
            raise UserError(f"{directory} is not empty; name a new directory, or remove it")
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except UnicodeEncodeError:
        raise UserError(f"{directory}: manifests cannot contain this name, which is not UTF-8; name another directory") from None
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}; name a directory that can be created and written to") from None
    try:
        if not disk.try_lock(lock):
            raise UserError(f"{directory}: another export is writing there; wait for it, or name another directory")
        _check_ours(partial, lock, directory)
        yield partial, final, lock
    finally:
        os.close(lock)


def _check_ours(partial: Path, lock: int, directory: Path) -> None:
    if not _is_ours(partial, lock):
        raise UserError(f"{directory}: was moved or removed during the export; export again")


def _is_ours(partial: Path, lock: int) -> bool:
    """Whether the locked directory still has its name: another export may have removed it, or someone may have moved it."""
    return partial.exists() and os.path.samestat(os.fstat(lock), os.stat(partial))


def _move_up(partial: Path, final: Path) -> None:
    """Move all files to `final`; if one fails, move all back."""
    moved: list[Path] = []
    try:
        for path in sorted(partial.iterdir()):
            os.replace(path, final / path.name)
            moved.append(path)
    except BaseException:
        for path in moved:
            os.replace(final / path.name, path)
        raise


def _content(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name != PARTIAL]
