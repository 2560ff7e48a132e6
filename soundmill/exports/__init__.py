"""Prepared clips in other tools' formats: a directory with audio and manifests.

Every format has the same samples (16 bits, with the rate and channels of one variant of clips), and captions, labels and splits as
far as it supports them. Clips that a format cannot express (no caption, several labels) are listed in `not_exported.tsv`.
"""

import io
import json
import os
import re
import shutil
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa

from soundmill import clips, disk, hashing, manifest, shards
from soundmill.audio.flac import flac_channels
from soundmill.errors import UserError
from soundmill.exports import captioned
from soundmill.exports.captioned import ExportClip, Files, NotExpressible, Placed, Target
from soundmill.params import choose

FOLDER_CHARACTERS = frozenset("_ .,()&'+-")  # allowed in a folder's name, with letters, marks and digits of any script
LONGEST_NAME = 200  # bytes; file systems allow 255, and a number may follow


def folder_of(label: str) -> str:
    """A label as a folder name, which cannot leave the directory or be hidden."""
    characters = (char if char in FOLDER_CHARACTERS or unicodedata.category(char)[0] in "LMN" else "_" for char in label)
    folder = "".join(characters).strip(" .") or "_"
    if len(folder.encode()) > LONGEST_NAME:
        raise NotExpressible(f"label {label[:40]!r} … of more than {LONGEST_NAME} bytes is too long for a folder name")
    return folder


def _fold(clip: ExportClip, count: int) -> int:
    """The last fold is test, the one before it valid; the others are assigned by a hash of `group`."""
    if clip.split == "test":
        return count
    if clip.split == "valid":
        return count - 1
    return 1 + shards.shard_of(clip.group, count - 2)


def _name(clip: ExportClip) -> str:
    return clip.labels[0].replace(" ", "_")


def _numbers(placed: Placed) -> dict[str, int]:
    return {name: number for number, name in enumerate(sorted({_name(clip) for clip, _ in placed}))}


def write_esc(placed: Placed, directory: Path, final: Path) -> None:
    targets = _numbers(placed)
    rows = [
        {
            "filename": Path(place).name,
            "fold": _fold(clip, 5),
            "target": targets[_name(clip)],
            "category": _name(clip),
            "esc10": False,
            "src_file": clip.group,
            "take": "A",
        }
        for clip, place in placed
    ]
    captioned.write_table(directory / "meta/esc50.csv", rows)


def write_urbansound(placed: Placed, directory: Path, final: Path) -> None:
    targets = _numbers(placed)
    rows = [
        {
            "slice_file_name": Path(place).name,
            "fsID": clip.group,
            "start": captioned.plain_number(clip.start),
            "end": captioned.plain_number(clip.start + clip.seconds),
            "salience": 1,
            "fold": _fold(clip, 10),
            "classID": targets[_name(clip)],
            "class": _name(clip),
        }
        for clip, place in placed
    ]
    captioned.write_table(directory / "metadata/UrbanSound8K.csv", rows)


class Folder(Files):
    """`train/dog/x.wav`: a folder for each label, with captions as text files."""

    def __init__(self, directory: Path, final: Path):
        super().__init__(self._place, write_folder, directory, final, needs="label")
        self._label_of: dict[str, str] = {}

    def _place(self, clip: ExportClip) -> str:
        label = clip.labels[0]
        folder = folder_of(label)
        if len(clip.captions) > 1:
            raise NotExpressible(f"{len(clip.captions)} captions, but the format has one text")
        if self._label_of.setdefault(folder.casefold(), label) != label:  # `Dog` and `dog` are the same folder on some systems
            folder = f"{folder} {hashing.digest(label)[:8]}"
        return f"{clip.split}/{folder}/{clip.clip_id}.wav"


def write_folder(placed: Placed, directory: Path, final: Path) -> None:
    """A text file next to each clip with a caption."""
    for clip, place in placed:
        if clip.captions:
            (directory / place).with_suffix(".txt").write_text(clip.captions[0] + "\n", encoding="utf-8")


CLIPS_PER_TAR = 1000


@dataclass
class WebDataset(Target):
    """Tar files of CLIPS_PER_TAR clips: `<id>.flac`, `<id>.json` (captions, the first also as `text`; labels; source) and
    `<id>.txt` (the first caption, or an empty text)."""

    counts: Counter[str] = field(default_factory=Counter)
    open: dict[str, tarfile.TarFile] = field(default_factory=dict)

    def add(self, clip: ExportClip, flac: bytes) -> None:
        number, place = divmod(self.counts[clip.split], CLIPS_PER_TAR)
        if place == 0:
            if clip.split in self.open:
                self.open.pop(clip.split).close()
            path = self.directory / f"{clip.split}-{number:06d}.tar"
            self.open[clip.split] = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)
        self.counts[clip.split] += 1
        # A sample's key ends at the first dot of its file names.
        key = clip.clip_id.replace(".", "p")
        captions = clip.captions or [""]
        metadata = {
            "clip_id": clip.clip_id,
            "text": captions[0],  # read by LAION-CLAP and stable-audio-tools
            "captions": captions,
            "labels": clip.labels or [""],
            "source": clip.source,
            "start": clip.start,
            "seconds": clip.seconds,
            "sample_rate": clip.sample_rate,
        }
        # `datasets` requires the same files of the same types in every sample.
        members = {"flac": flac, "json": json.dumps(metadata, ensure_ascii=False).encode(), "txt": captions[0].encode()}
        for suffix, data in members.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size, member.mode = len(data), 0o644
            self.open[clip.split].addfile(member, io.BytesIO(data))

    def finish(self) -> None:
        for archive in self.open.values():
            archive.close()


TEXTS = pa.list_(pa.string())
_TEXT = {"dtype": "string", "_type": "Value"}
_TEXTS = {"feature": _TEXT, "_type": "Sequence"}  # a list, under the name that datasets 3 and later read
_FEATURES = {"info": {"features": {"clip_id": _TEXT, "audio": {"_type": "Audio"}, "captions": _TEXTS, "labels": _TEXTS}}}
PARQUET = pa.schema(
    {"clip_id": pa.string(), "audio": manifest.AUDIO, "captions": TEXTS, "labels": TEXTS}, {"huggingface": json.dumps(_FEATURES)}
)


@dataclass
class HuggingFaceParquet(Target):
    """`data/<split>-*.parquet` with the audio embedded, as `datasets.load_dataset(directory)` reads it."""

    writers: dict[str, shards.ShardWriter] = field(default_factory=dict)
    open: ExitStack = field(default_factory=ExitStack)

    def add(self, clip: ExportClip, flac: bytes) -> None:
        split = captioned.HUGGING_FACE[clip.split]
        if split not in self.writers:
            path = self.directory / f"data/{split}-00000-of-00001.parquet"
            self.writers[split] = self.open.enter_context(shards.ShardWriter(path, PARQUET))
        audio = {"bytes": flac, "path": f"{clip.clip_id}.flac"}
        self.writers[split].write({"clip_id": clip.clip_id, "audio": audio, "captions": clip.captions, "labels": clip.labels})

    def finish(self) -> None:
        self.open.close()


LEFT_OUT = "not_exported.tsv"


@dataclass
class Export:
    written: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)  # clip id, reason


def clip_path(suffix: str) -> Callable[[ExportClip], str]:
    return lambda clip: f"audio/{clip.clip_id}{suffix}"


FORMATS: dict[str, Callable[[Path, Path], Target]] = {
    "amphion": partial(Files, captioned.amphion_place, captioned.write_amphion),
    "audiocaps": partial(Files, captioned.video_place, captioned.write_audiocaps),
    "audiocraft": partial(Files, clip_path(".wav"), captioned.write_audiocraft),
    "audiofolder": partial(Files, captioned.audiofolder_place, captioned.write_audiofolder, needs="nothing"),
    "audiofolder_csv": partial(Files, captioned.audiofolder_csv_place, captioned.write_audiofolder_csv, needs="nothing"),
    "audiofolder_parquet": HuggingFaceParquet,
    "audioldm": partial(Files, clip_path(".wav"), captioned.write_audioldm),
    "clotho": partial(Files, lambda clip: f"{captioned.CLOTHO[clip.split]}/{clip.clip_id}.wav", captioned.write_clotho),
    "esc": partial(Files, clip_path(".wav"), write_esc, needs="label"),
    "folder": Folder,
    "lhotse": partial(Files, clip_path(".flac"), captioned.write_lhotse, needs="nothing"),
    "musiccaps": partial(Files, captioned.video_place, captioned.write_musiccaps),
    "panns": partial(Files, lambda clip: f"audio/Y{clip.clip_id}.wav", captioned.write_panns),
    "stable_audio": partial(Files, lambda clip: f"{clip.split}/{clip.clip_id}.wav", captioned.write_stable_audio),
    "tango": partial(Files, clip_path(".wav"), captioned.write_tango),
    "urbansound8k": partial(Files, lambda clip: f"audio/fold{_fold(clip, 10)}/{clip.clip_id}.wav", write_urbansound, needs="label"),
    "wavcaps": partial(Files, clip_path(".flac"), captioned.write_wavcaps),
    "webdataset": WebDataset,
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
    format = choose(FORMATS, name, "format")
    if not (rows := {row["clip_id"]: row for row in clips.find(tables, split=split)}):
        raise UserError(f"{tables.catalog}: no clip" + (f" of the split {split}" if split else "") + " to export")
    with new_directory(directory) as (partial, final):
        target, result = format(partial, final), Export()
        for stored in clips.with_audio(tables, set(rows)):
            row = rows[stored["clip_id"]]
            clips.check_rate(stored, sample_rate)
            manifest.check_clip_id(row["clip_id"])
            flac, group = stored["audio"]["bytes"], row["group"] or row["recording_id"]
            told = {name: row[name] for name in ("clip_id", "split", "captions", "labels", "source", "start")}
            sound = {"num_samples": stored["num_samples"], "sample_rate": sample_rate, "channels": flac_channels(flac)}
            clip = ExportClip(**told, **sound, group=group)
            try:
                target.add(clip, flac)
                result.written += 1
            except NotExpressible as reason:
                result.left_out.append((clip.clip_id, str(reason)))
            progress(1)
        if not result.written:
            ((reason, _),) = Counter(reason for _, reason in result.left_out).most_common(1)
            raise UserError(f"{name}: none of {len(rows)} clips can be expressed ({reason}); choose another format")
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
            fault = "is not empty" if final.is_dir() else "is a file"
            raise UserError(f"{directory} {fault}; name a new directory, or remove it")
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
