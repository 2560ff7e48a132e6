"""Formats of tables with one row per recording: csv files that differ in their columns, LJSpeech's lines, and Clotho's captions."""

import html
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, ClassVar

from soundmill.corpora.inventory import Inventory, composed
from soundmill.corpora.manifest_format import DETECTED, ClassNames, ManifestFormat
from soundmill.corpora.metadata import csv_files_with, head_lines, read_csv, read_lines
from soundmill.corpora.resolver import MAX_KEY, FileIndex, youtube_clip
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format, fold_number, seconds, split_of_file, video_id, whole_number
from soundmill.manifest import SPLIT_NAMES

Cells = dict[str, str]  # a csv's row: column → text


class BadRowError(Exception):
    """A row that describes no recording; has the reason and detail for quarantine."""


@dataclass(frozen=True)
class CsvRows(ManifestFormat):
    """A format of csv files with these columns."""

    FORMAT: Format
    columns: frozenset[str]
    remedy: str
    row: Callable[[Cells], dict[str, Any]]  # fields of ManifestRow; raises BadRowError
    unique = True

    @property
    def looks(self) -> str:
        return f"csv with the columns {', '.join(sorted(self.columns))}"

    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        """Names of the csv files with these columns."""
        return csv_files_with(inventory, self.columns)

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables, classes: ClassNames) -> Iterator[ManifestRow]:
        for line, cells in read_csv(inventory, name):
            try:
                values = self.row(cells)
            except BadRowError as error:
                reason, detail = error.args
                tables.reject(name, reason, f"line {line}: {detail}")
            else:
                of_file = {"split": split_of_file(name), **values, "labels": classes.call(values.get("labels", ()))}
                yield ManifestRow(name, line, **of_file)


def _musiccaps(cells: Cells) -> dict[str, Any]:
    video, start = video_id(cells["ytid"]), seconds(cells["start_s"])
    if not video:
        raise BadRowError("bad id", f"{cells['ytid']!r:.80} is not a YouTube id")
    if start is None:
        raise BadRowError("bad start time", f"{cells['start_s']!r:.80} is not a number of seconds")
    return {
        "key": video,
        "captions": [cells["caption"]],
        "labels": [label.strip() for label in cells.get("audioset_positive_labels", "").split(",") if label.strip()],
        "start_time": start,
        "split": {"true": "test", "false": "train"}.get(cells.get("is_audioset_eval", "").strip().lower()),
    }


# Aspects are thousands of free texts, so they are not used as labels.
MUSICCAPS = CsvRows(
    Format(
        name="musiccaps",
        layout="a csv with `ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,…`",
        id="`ytid` and `start_s`; the file under any of AudioCaps' names",
        caption="`caption`",
        label="`audioset_positive_labels`, looked up in AudioSet's class label csv (`mid,display_name`), if present",
        split="`is_audioset_eval`: True is test, False train",
    ),
    columns=frozenset({"ytid", "start_s", "caption"}),
    remedy="put musiccaps-public.csv there",
    row=_musiccaps,
)


def _urbansound8k(cells: Cells) -> dict[str, Any]:
    fold, label = fold_number(cells["fold"]), cells["class"].replace("_", " ").strip().lower()
    if fold is None:
        raise BadRowError("bad fold", f"{cells['fold']!r:.80} is not a fold number")
    if not label:
        raise BadRowError("empty category", f"{cells['slice_file_name']:.80}")
    return {
        "key": f"fold{fold}/{cells['slice_file_name'].strip()}",
        "labels": [label],
        "fold": fold,
        "group": whole_number(cells["fsid"]) or cells["fsid"].strip() or None,
    }


URBANSOUND8K = CsvRows(
    Format(
        name="urbansound8k",
        layout="`metadata/UrbanSound8K.csv` with `slice_file_name,fsID,start,end,salience,fold,classID,class`; "
        "`audio/fold1/*.wav` …",
        id="hash of the path; the file is `slice_file_name`, in the folder of its fold",
        caption="none (made from the label)",
        label="`class`",
        split="`fold` (1 to 10); group: `fsID`, the Freesound original",
    ),
    columns=frozenset({"slice_file_name", "fsid", "fold", "class"}),
    remedy="put UrbanSound8K.csv there",
    row=_urbansound8k,
)


def _fsd50k(cells: Cells) -> dict[str, Any]:
    labels = [label.replace("_", " ").strip() for label in cells["labels"].split(",")]
    split = SPLIT_NAMES.get(cells.get("split", "").strip().lower())
    return {"key": cells["fname"].strip(), "labels": labels, **({"split": split} if split else {})}


FSD50K = CsvRows(
    Format(
        name="fsd50k",
        layout="`FSD50K.ground_truth/{dev,eval}.csv` with `fname,labels,…`; `FSD50K.dev_audio/*.wav`, `FSD50K.eval_audio/*.wav`",
        id="hash of the path; the file is `fname` with any extension",
        caption="none (made from the labels)",
        label="`labels`, separated by commas",
        split="`split`, else the csv's name (eval is test)",
    ),
    columns=frozenset({"fname", "labels"}),
    remedy="put FSD50K.ground_truth there",
    row=_fsd50k,
)


_ID = re.compile(r"[^\s/\\]+")


class LjSpeech(ManifestFormat):
    """`id|transcript|normalised transcript`, without header and quotes."""

    FORMAT = Format(
        name="ljspeech",
        layout="`metadata.csv` without header: id, transcript, normalised transcript, separated by vertical bars; `wavs/{id}.wav`",
        id="hash of the path; the file is `id` in `wavs`",
        caption="the normalised transcript, else the plain one",
        label="none",
        split="none",
    )
    looks = "`metadata.csv` of lines `id|transcript|normalised transcript`"
    remedy = "put it beside its folder `wavs`"
    unique = True

    def manifests(self, inventory: Inventory) -> list[bytes]:
        return [name for name in inventory.metadata if os.path.basename(name) == b"metadata.csv"]

    def is_own(self, inventory: Inventory, name: bytes) -> bool:
        """Whether half of the first lines have an id and one or two texts, and one of these files exists or there is no audio."""
        ids = []
        lines = [line for line in head_lines(inventory, name)[:DETECTED] if line.strip()]
        for line in lines:
            first, *texts = line.split("|")
            if len(texts) in (1, 2) and _ID.fullmatch(first):
                ids.append(first)
        folder = os.path.join(os.path.dirname(name), b"wavs")
        stems = {composed(file.stem) for file in inventory.audio if os.path.dirname(file.raw_path) == folder}
        return 2 * len(ids) >= len(lines) > 0 and (not inventory.audio or not stems.isdisjoint(map(composed, ids)))

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables, classes: ClassNames) -> Iterator[ManifestRow]:
        lines = [(line, text.split("|")) for line, text in read_lines(inventory, name)]
        usual = Counter(len(cells) for _, cells in lines).most_common(1)
        pieces: set[int] = set()
        for (before, first), (line, second) in pairwise(lines):
            if len(second) == 1 or (len(first) == len(second) == 2 and usual[0][0] == 3):
                pieces |= {before, line}
        for line, (key, *texts) in lines:
            if len(texts) not in (1, 2) or line in pieces:
                what = "a piece of a broken line" if line in pieces else f"{len(texts)} `|`"
                tables.reject(name, "bad row", f"line {line}: {what}, expected `id|transcript|normalised transcript`")
            elif not key.strip():
                tables.reject(name, "bad id", f"line {line}: empty")
            else:
                captions = [text for text in reversed(texts) if text.strip()][:1]
                yield ManifestRow(name, line, f"wavs/{key.strip()}", captions=captions)


LJSPEECH = LjSpeech()


class Clotho(ManifestFormat):
    """Csv files with five captions per recording, file names of free text, and a folder of audio for each split."""

    FORMAT = Format(
        name="clotho",
        layout="`clotho_captions_{development,validation,evaluation}.csv` with `file_name,caption_1..5`; `development/*.wav` …",
        id="hash of the path; the file is `file_name`, free text, found in the folder of its csv's split",
        caption="`caption_1` … `caption_5`",
        label="none",
        split="the csv's name (development means train, validation valid, evaluation test); for a file in no csv, its folder's; "
        "group: `sound_id` of `clotho_metadata_*.csv`",
    )
    looks = "csv with the columns caption_1, file_name"
    remedy = "put `clotho_captions_development.csv` beside the folders of audio"
    unique = True
    SPLITS: ClassVar[dict[str, str]] = {"development": "train", **SPLIT_NAMES}

    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        return csv_files_with(inventory, {"file_name", "caption_1"})

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

    def all_rows(
        self, inventory: Inventory, names: Iterable[bytes], tables: CorpusTables, classes: ClassNames
    ) -> Iterator[ManifestRow]:
        """Five captions per recording, its split, and the Freesound original as its group."""
        originals, index, splits = dict(_originals(inventory)), FileIndex(inventory), self.parts_of(names)
        for row in super().all_rows(inventory, names, tables, classes):
            row.split, row.group = splits.get(row.part), originals.get((row.part, _decoded(row.key)))
            row.key = _key(row.key, index)
            yield row

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables, classes: ClassNames) -> Iterator[ManifestRow]:
        part = self.part_of(name)
        if not part:
            tables.count("csv_without_split")
        for line, cells in read_csv(inventory, name):
            captions = [text for column, text in cells.items() if re.fullmatch(r"caption_\d+", column) and text.strip()]
            yield ManifestRow(name, line, cells["file_name"], captions=captions, part=part)

    def completed(self, tables: CorpusTables, inventory: Inventory, parts: Mapping[str, str]) -> CorpusTables:
        """Recordings of the test set have no captions, and are not for training."""
        folders = {file.raw_path: file.folders for file in inventory.audio}
        for recording in tables.recordings:
            if recording["split"] is None and folders[recording["raw_path"]]:
                recording["split"] = parts.get(self.part_of(folders[recording["raw_path"]][-1]))
        return tables


def _key(written: str, index: FileIndex) -> str:
    """The name in a csv as written or decoded, whichever a file has."""
    if index.resolve(written).files:
        return written
    return decoded if index.resolve(decoded := _decoded(written)).files else written


def _decoded(name: str) -> str:
    """A name without HTML entities (`&#39;`) and surrounding spaces; not decoded if too long for a key."""
    return html.unescape(name).strip() if len(name) <= MAX_KEY else name


def _originals(inventory: Inventory) -> Iterator[tuple[tuple[str, str], str]]:
    """((word for the split, file name), Freesound number) from the metadata tables, which are in Latin-1."""
    for name in csv_files_with(inventory, {"file_name", "sound_id"}):
        for _, cells in read_csv(inventory, name):
            if number := whole_number(cells["sound_id"]):
                yield (Clotho.part_of(name), _decoded(cells["file_name"])), number


CLOTHO = Clotho()
