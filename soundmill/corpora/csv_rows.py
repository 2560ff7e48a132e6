"""Formats of tables with one row per recording: csv files that differ in their columns, and LJSpeech's lines."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from soundmill.corpora.folder_names import SPLIT_NAMES
from soundmill.corpora.inventory import Inventory, composed
from soundmill.corpora.manifest_format import ClassNames, ManifestFormat
from soundmill.corpora.metadata import csv_columns, head_lines, read_csv, read_lines
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format, fold_number, seconds, split_of_file, video_id, whole_number

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
        return (name for name in inventory.csv_files() if self.columns <= set(csv_columns(inventory, name)))

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


DETECTION_LINES = 50  # lines of a `metadata.csv`, for detection of LJSpeech among other tables of this name
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
        lines = [line for line in head_lines(inventory, name)[:DETECTION_LINES] if line.strip()]
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
