"""MusicCaps: a csv of YouTube ids, starts and captions by musicians."""

from __future__ import annotations

from collections.abc import Iterator

from soundmill.corpora.audiocaps import seconds
from soundmill.corpora.audioldm import ClassNames
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.join import join
from soundmill.corpora.metadata import csv_columns, read_csv
from soundmill.corpora.rows import Row
from soundmill.corpora.tables import CorpusTables, Format, video_id

FORMAT = Format(
    name="musiccaps",
    layout="a csv with `ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,…`",
    id="`ytid` and `start_s`; the file under any of AudioCaps' names",
    caption="`caption`",
    label="`audioset_positive_labels`, looked up in AudioSet's class label csv (`mid,display_name`), if present",
    split="`is_audioset_eval`: True is test, False train",
)
COLUMNS = {"ytid", "start_s", "caption"}


def detect(inventory: Inventory) -> bool:
    """Whether a csv has MusicCaps' columns."""
    return any(True for _ in _csv_files(inventory))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of MusicCaps. Its aspects are free text, thousands of them, and no classes: they are not taken for labels."""
    tables = CorpusTables()
    return join(inventory, list(_rows(inventory, tables)), num_shards, tables, unique=True)


def _csv_files(inventory: Inventory) -> Iterator[bytes]:
    return (name for name in inventory.csv_files() if set(csv_columns(inventory, name)) >= COLUMNS)


def _rows(inventory: Inventory, tables: CorpusTables) -> Iterator[Row]:
    names = list(_csv_files(inventory))
    if not names:
        raise inventory.lacks(f"csv with the columns {', '.join(sorted(COLUMNS))}", "put musiccaps-public.csv there")
    classes = ClassNames.of(inventory)
    for name in names:
        for line, cells in read_csv(inventory, name):
            video, start = video_id(cells["ytid"]), seconds(cells["start_s"])
            if not video:
                tables.reject(name, "bad id", f"line {line}: {cells['ytid']!r:.80} is no YouTube id")
            elif start is None:
                tables.reject(name, "bad start time", f"line {line}: {cells['start_s']!r:.80} is no number of seconds")
            else:
                labels = [label.strip() for label in cells.get("audioset_positive_labels", "").split(",") if label.strip()]
                yield Row(
                    name,
                    line,
                    video,
                    captions=[cells["caption"]],
                    labels=classes.call(labels),
                    start_time=start,
                    split={"true": "test", "false": "train"}.get(cells.get("is_audioset_eval", "").strip().lower()),
                )
    classes.remark(tables)
