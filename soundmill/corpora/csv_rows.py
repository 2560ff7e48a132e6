"""Formats of tables with one row per recording or caption: csv files that differ in their columns, LJSpeech's lines, AudioSet's
segments, Clotho's and AudioCaps' captions."""

import csv
import html
import os
import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Any, ClassVar

from soundmill.corpora.csv_tables import csv_columns, csv_files_with, read_csv
from soundmill.corpora.inventory import Inventory, composed
from soundmill.corpora.join import DETECTED, MACHINE_ID, ManifestFormat
from soundmill.corpora.json_entries import texts
from soundmill.corpora.metadata import head_lines, read_lines
from soundmill.corpora.resolver import MAX_KEY, FileIndex, youtube_clip
from soundmill.corpora.tables import CorpusTables, ManifestRow, seconds, split_of_file, video_id, whole_number
from soundmill.errors import UserError
from soundmill.manifest import SPLIT_NAMES, escape_path

Cells = dict[str, str]  # a csv's row: column → text
ALIASES = {"ytid": "youtube_id", "youtubeid": "youtube_id"} | dict.fromkeys(("start_s", "start_seconds", "start"), "start_time")
COLUMNS = ("youtube_id", "start_time", "caption")
LABEL_COLUMNS = ("youtube_id", "start_time", "labels")


class VideoRows(ManifestFormat):
    """Csv files with a row for each caption, or list of labels, of a YouTube clip."""

    looks = f"csv with the columns {', '.join(COLUMNS)}"

    @abstractmethod
    def told(self, name: bytes, cells: Cells) -> dict[str, Any]:
        """Fields of ManifestRow, beside the clip and its caption."""

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
        for line, row in read_csv(inventory, name):
            cells = defaultdict(str, {ALIASES.get(column, column): text for column, text in row.items()})
            video, start = video_id(cells["youtube_id"]), seconds(cells["start_time"])
            if not video or start is None:
                reason, text = ("bad start time", cells["start_time"]) if video else ("bad id", cells["youtube_id"])
                tables.reject(name, reason, f"line {line}: {text!r:.80}")
            else:
                yield ManifestRow(name, line, video, [cells["caption"]], start_time=start, **self.told(name, cells))


class MusicCaps(VideoRows):
    """One caption per YouTube clip; its aspects are thousands of free texts, so they are not used as labels."""

    FORMAT = "musiccaps"
    remedy = "put musiccaps-public.csv there"
    columns = frozenset({"ytid", "start_s", "caption"})
    unique = True

    def told(self, name: bytes, cells: Cells) -> dict[str, Any]:
        split = {"true": "test", "false": "train"}.get(cells["is_audioset_eval"].strip().lower())
        return {"labels": texts(cells["audioset_positive_labels"], ","), "split": split}


_ID = re.compile(r"[^\s/\\]+")


class LjSpeech(ManifestFormat):
    """`id|transcript|normalised transcript`, without header and quotes."""

    FORMAT = "ljspeech"
    looks = "`metadata.csv` of lines `id|transcript|normalised transcript`"
    remedy = "put it beside its folder `wavs`"
    unique = True

    def manifests(self, inventory: Inventory) -> list[bytes]:
        return [name for name in inventory.metadata if os.path.basename(name) == b"metadata.csv"]

    def is_own(self, inventory: Inventory, name: bytes) -> bool:
        """Whether half of the first lines have an id and one or two texts, and one of these files exists or there is no audio."""
        lines = [line.split("|") for line in head_lines(inventory, name)[:DETECTED] if line.strip()]
        ids = [first for first, *spoken in lines if len(spoken) in (1, 2) and _ID.fullmatch(first)]
        folder = os.path.join(os.path.dirname(name), b"wavs")
        stems = {composed(file.stem) for file in inventory.audio if os.path.dirname(file.raw_path) == folder}
        return 2 * len(ids) >= len(lines) > 0 and (not inventory.audio or not stems.isdisjoint(map(composed, ids)))

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
        lines = [(line, text.split("|")) for line, text in read_lines(inventory, name)]
        usual = Counter(len(cells) for _, cells in lines).most_common(1)
        pieces: set[int] = set()
        for (before, first), (line, second) in pairwise(lines):
            if len(second) == 1 or (len(first) == len(second) == 2 and usual[0][0] == 3):
                pieces |= {before, line}
        for line, (key, *spoken) in lines:
            if len(spoken) not in (1, 2) or line in pieces:
                what = "a piece of a broken line" if line in pieces else f"{len(spoken)} `|`"
                tables.reject(name, "bad row", f"line {line}: {what}, expected `id|transcript|normalised transcript`")
            elif not key.strip():
                tables.reject(name, "bad id", f"line {line}: empty")
            else:
                captions = [text for text in reversed(spoken) if text.strip()][:1]
                yield ManifestRow(name, line, f"wavs/{key.strip()}", captions=captions)


class AudioSet(ManifestFormat):
    """Csv files of segments whose header is a comment, with a space after each comma; labels are machine ids."""

    FORMAT = "audioset"
    form = '`YTID, start, end, "labels"`'
    looks = f"csv of lines {form}"
    remedy = "put balanced_train_segments.csv there"

    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        """Those of whose first lines most are segments."""
        for name in inventory.csv_files():
            lines = [cells for line in head_lines(inventory, name)[:DETECTED] if (cells := self._cells(line))]
            if 2 * sum(len(cells) > 3 and self._is_segment(cells) for cells in lines) > len(lines):
                yield name

    def _is_segment(self, cells: list[str]) -> bool:
        return bool(MACHINE_ID.fullmatch(cells[3].split(",")[0].strip()))

    def _told(self, name: bytes, cells: list[str]) -> dict[str, Any]:
        """Labels and split of a segment, as fields of its row."""
        return {"labels": [label.strip() for label in ",".join(cells[3:]).split(",")], "split": split_of_file(name)}

    @staticmethod
    def _cells(line: str) -> list[str]:
        """The cells of a segment; empty for a comment, a header and an empty line; the whole line if it is no csv."""
        try:
            cells = next(csv.reader([line], skipinitialspace=True), [])
        except csv.Error:  # a cell too long
            cells = [line]
        return [] if not cells or cells[0].startswith("#") or cells[0].strip().lower() == "ytid" else cells

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
        """A file is one segment. It is named by the id, perhaps with the start, and its labels are those of the whole recording."""
        for line, text in read_lines(inventory, name):
            if not (cells := self._cells(text)):
                continue
            video, start = video_id(cells[0]), seconds(cells[1]) if len(cells) > 3 else None
            if not video or start is None:
                reason = "bad start time" if video else "bad id"
                tables.reject(name, reason, f"line {line}: {text!r:.80}, expected {self.form}")
                continue
            told = self._told(name, cells)
            yield ManifestRow(name, line, f"{video}_{start:g}", **told, of_video=True, about=(video, start), bare=True)


class VggSound(AudioSet):
    """Csv files of segments without header, each with one label and its split."""

    FORMAT = "vggsound"
    form = '`YTID,start,"label",train` (or test)'
    looks = f"csv of lines {form}"
    remedy = "put vggsound.csv there"

    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        for name in super().manifests(inventory):
            first = next(filter(None, map(self._cells, head_lines(inventory, name))))  # not a header
            if len(first) > 3 and self._is_segment(first):
                yield name

    def _is_segment(self, cells: list[str]) -> bool:
        is_split = cells[-1].strip().lower() in SPLIT_NAMES
        return is_split and bool(video_id(cells[0])) and cells[1].strip().isdecimal() and not cells[2].strip().isdecimal()

    def _told(self, name: bytes, cells: list[str]) -> dict[str, Any]:
        return {"labels": [",".join(cells[2:-1]).strip()], "split": SPLIT_NAMES.get(cells[-1].strip().lower())}


class Clotho(ManifestFormat):
    """Csv files with five captions per recording, file names of free text, and a folder of audio for each split."""

    FORMAT = "clotho"
    looks = "csv with the columns caption_1, file_name"
    remedy = "put `clotho_captions_development.csv` beside the folders of audio"
    unique = True
    columns = frozenset({"file_name", "caption_1"})
    SPLITS: ClassVar[dict[str, str]] = {**SPLIT_NAMES, "development": "train"}

    def is_own(self, inventory: Inventory, name: bytes) -> bool:
        """Whether its names are not YouTube ids: lists of YouTube clips have the same columns."""
        if self.part_of(name) in ("development", "validation", "evaluation"):
            return True
        keys = [cells["file_name"] for _, cells in islice(read_csv(inventory, name), DETECTED)]
        return 2 * sum(youtube_clip(key) is not None for key in keys) < len(keys)

    @staticmethod
    def part_of(name: bytes) -> str:
        """The word for the split in a csv's name; empty if there is none."""
        words = re.split(r"[^a-z]+", name.rpartition(b"/")[2].decode("utf-8", "replace").lower())
        return next((word for word in Clotho.SPLITS if word in words), "")

    def parts_of(self, names: Iterable[bytes]) -> dict[str, str]:
        named = {self.SPLITS[part] for part in map(self.part_of, names) if part not in ("", "dev")}
        # In Clotho `dev` means development, if there is another validation set and no other training set.
        return {**self.SPLITS, "dev": "train" if "valid" in named and "train" not in named else self.SPLITS["dev"]}

    def all_rows(self, inventory: Inventory, names: Iterable[bytes], tables: CorpusTables) -> Iterator[ManifestRow]:
        """Five captions per recording, its split, and the Freesound original as its group."""
        originals = {
            (self.part_of(name), _decoded(cells["file_name"])): number
            for name in csv_files_with(inventory, {"file_name", "sound_id"})  # in Latin-1
            for _, cells in read_csv(inventory, name)
            if (number := whole_number(cells["sound_id"]))
        }
        index, splits = FileIndex(inventory), self.parts_of(names)
        for row in super().all_rows(inventory, names, tables):
            decoded = _decoded(row.key)
            row.split, row.group = splits.get(row.part), originals.get((row.part, decoded))
            if not index.resolve(row.key).files and index.resolve(decoded).files:
                row.key = decoded
            yield row

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
        part = self.part_of(name)
        for line, cells in read_csv(inventory, name):
            captions = [text for column, text in cells.items() if re.fullmatch(r"caption_\d+", column) and text.strip()]
            yield ManifestRow(name, line, cells["file_name"], captions=captions, part=part)


def _decoded(name: str) -> str:
    """A name without HTML entities (`&#39;`) and surrounding spaces; not decoded if too long for a key."""
    return html.unescape(name).strip() if len(name) <= MAX_KEY else name


CLOTHO = Clotho()


class AudioCaps(VideoRows):
    """Csv files of captions by YouTube id and start, and audio files under any of the common names."""

    FORMAT = "audiocaps"
    remedy = "put train.csv, val.csv and test.csv there"

    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        return (name for name in inventory.csv_files() if _columns(inventory, name).issuperset(COLUMNS))

    def all_rows(self, inventory: Inventory, names: Iterable[bytes], tables: CorpusTables) -> Iterator[ManifestRow]:
        """Rows of all csv files; a caption belongs to the recording of its video with the last start before it."""
        labelled = super().all_rows(inventory, self._tables_of_labels(inventory, list(names), tables), tables)
        labels = {(row.key, row.start_time): row.labels for row in labelled}
        for row in super().all_rows(inventory, names, tables):
            row.labels = labels.get((row.key, row.start_time), ())
            yield row

    def told(self, name: bytes, cells: Cells) -> dict[str, Any]:
        number, labels = whole_number(cells["audiocap_id"]), texts(cells["labels"], ";")
        return {"number": number, "labels": labels, "split": split_of_file(name)}

    def _tables_of_labels(self, inventory: Inventory, with_captions: list[bytes], tables: CorpusTables) -> list[bytes]:
        """Names of csv files with labels; a list of captions that lacks a column is a UserError, other lists are ignored."""
        rest = {name: _columns(inventory, name) for name in inventory.csv_files() if name not in with_captions}
        with_labels = [name for name, columns in rest.items() if columns.issuperset(LABEL_COLUMNS)]
        others = {escape_path(name): columns for name, columns in rest.items() if name not in with_labels}
        for path, columns in others.items():
            if len(columns & set(COLUMNS)) > 1 and (not with_captions or "audiocap_id" in columns):
                missing = ", ".join(column for column in COLUMNS if column not in columns)
                raise UserError(
                    f"{path}: an AudioCaps csv needs the columns {', '.join(COLUMNS)}; {missing} missing "
                    f"(found: {', '.join(sorted(columns))}); correct its header, or remove it from the corpus"
                )
        if not with_captions:
            found = "; ".join(f"{path} ({', '.join(sorted(columns)) or 'no header'})" for path, columns in others.items()) or "none"
            raise inventory.lacks(f"{self.looks} (csv files: {found})", self.remedy)
        tables.counts["other_csv"] += len(others)
        return with_labels


AUDIOCAPS = AudioCaps()


def _columns(inventory: Inventory, name: bytes) -> set[str]:
    return {ALIASES.get(column, column) for column in csv_columns(inventory, name)}
