"""AudioCaps: csv files of captions by YouTube id and start, and audio files under any of the common names."""

from collections.abc import Iterator

from soundmill.corpora.inventory import Inventory
from soundmill.corpora.join import join
from soundmill.corpora.metadata import csv_columns, read_csv
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format, seconds, split_of_file, video_id, whole_number
from soundmill.errors import UserError
from soundmill.manifest import escape_path

FORMAT = Format(
    name="audiocaps",
    layout="csv files (v1, v2) with `youtube_id,start_time,caption` and audio, anywhere below the root",
    id="`youtube_id` and `start_time`; the file: `{ytid}_{start}`, `Y{ytid}`, `{ytid}_{start}_{end}`, `{ytid}`, `{audiocap_id}`",
    caption="`caption`, at `start_time`",
    label="`labels` of a csv with `youtube_id,start_time,labels`, if present",
    split="the csv's name",
)
ALIASES = {"ytid": "youtube_id", "youtubeid": "youtube_id", "start_seconds": "start_time", "start": "start_time"}
COLUMNS = ("youtube_id", "start_time", "caption")
LABEL_COLUMNS = ("youtube_id", "start_time", "labels")


def detect(inventory: Inventory) -> bool:
    return any(set(COLUMNS) <= _columns(inventory, name) for name in inventory.csv_files())


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Tables of an AudioCaps corpus: csv files and audio anywhere below its root; each csv's name gives the split.

    A caption belongs to the recording of its video with the last start before it. Audio without a row is a recording without
    captions; captions without audio stay in the table, so that coverage can be computed.
    """
    tables = CorpusTables()
    with_captions, with_labels = _tables_of(inventory, tables)
    labels = {
        (video, start): [label for part in row["labels"].split(";") if (label := part.strip())]
        for name in with_labels
        for _, video, start, row in _windows(inventory, name, tables)
    }
    rows = [
        ManifestRow(
            name,
            line,
            video,
            captions=[row["caption"]],
            labels=labels.get((video, start), ()),
            start_time=start,
            split=split_of_file(name),
            number=whole_number(row.get("audiocap_id", "")),
        )
        for name in with_captions
        for line, video, start, row in _windows(inventory, name, tables)
    ]
    return join(inventory, rows, num_shards, tables)


def _columns(inventory: Inventory, name: bytes) -> set[str]:
    return {ALIASES.get(column, column) for column in csv_columns(inventory, name)}


def _tables_of(inventory: Inventory, tables: CorpusTables) -> tuple[list[bytes], list[bytes]]:
    """Names of the csv files with captions and of those with labels; a csv without a required column is a UserError.

    Other csv files, without `audiocap_id`, are ignored beside those: lists of failed downloads, AudioSet's segments.
    """
    with_captions, with_labels, other_csvs, lacking = [], [], [], []
    for name in inventory.csv_files():
        columns = _columns(inventory, name)
        path = escape_path(name)
        if set(COLUMNS) <= columns:
            with_captions.append(name)
        elif set(LABEL_COLUMNS) <= columns:
            with_labels.append(name)
        else:
            other_csvs.append(f"{path} ({', '.join(sorted(columns)) or 'no header'})")
            if len(columns & set(COLUMNS)) > 1:
                lacking.append((path, columns))
    lacking.sort(key=lambda table: "audiocap_id" not in table[1])
    if lacking and (not with_captions or "audiocap_id" in lacking[0][1]):
        path, columns = lacking[0]
        missing = ", ".join(column for column in COLUMNS if column not in columns)
        raise UserError(
            f"{path}: an AudioCaps csv needs the columns {', '.join(COLUMNS)}; {missing} missing "
            f"(found: {', '.join(sorted(columns))}); correct its header, or remove it from the corpus"
        )
    if not with_captions:
        others = "; ".join(other_csvs) or "none"
        raise UserError(
            f"corpus.path: no csv with the columns {', '.join(COLUMNS)} below {escape_path(bytes(inventory.root))} "
            f"(csv files: {others}); put AudioCaps' train.csv, val.csv, test.csv beside the audio, or use `corpus=folder`"
        )
    tables.count("other_csv", len(other_csvs))
    return with_captions, with_labels


def _windows(inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[tuple[int, str, float, dict[str, str]]]:
    """(line, YouTube id, start, row) of a csv; rows without an id or start are quarantined."""
    for line, row in read_csv(inventory, name):
        row = {ALIASES.get(column, column): text for column, text in row.items()}
        video, start = video_id(row["youtube_id"]), seconds(row["start_time"])
        if not video:
            tables.reject(name, "bad id", f"line {line}: {row['youtube_id']!r:.80} is not a YouTube id")
        elif start is None:
            tables.reject(name, "bad start time", f"line {line}: {row['start_time']!r:.80} is not a number of seconds")
        else:
            yield line, video, start, row
