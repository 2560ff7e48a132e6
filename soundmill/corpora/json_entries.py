"""Formats of JSON entries, one per recording or caption, that differ in their keys: one reader and a declaration for each."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from soundmill.corpora.audiocaps import split_of_file
from soundmill.corpora.class_names import MACHINE_ID, ClassNames
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.manifest_format import ManifestFormat
from soundmill.corpora.metadata import first_keys, read_entries
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format, keyword_in

JSON = re.compile(rb"\.(?:jsonl?|jsons|ndjson)(?:\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class JsonEntries(ManifestFormat):
    """A format of JSON entries with these keys."""

    FORMAT: Format
    keys: tuple[str, ...]  # patterns of keys of the first entry, for detection
    file: tuple[str, ...]  # keys of the path, file name or id; the first non-empty one is used
    captions: str  # pattern of keys with captions: a text or a list of texts
    looks: str
    remedy: str
    numbers: bool = False  # the file may be given as a number
    labels: str | None = None  # key of labels
    label_separator: str = ";"  # of several labels in one text
    unique: bool = False
    part: Callable[[bytes], str] = lambda name: ""  # manifest's name → word in the name of its recordings' folder
    parts: Mapping[str, str] | None = None  # all such words
    parts_of_videos: frozenset[str] = frozenset()  # parts whose files are YouTube videos
    clip: Callable[[str], tuple[str, float] | None] = lambda file: None  # file → (YouTube id, start in seconds)

    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        """Names of the JSON files whose first entries have these keys."""
        for name in filter(JSON.search, inventory.metadata):
            if (found := first_keys(inventory, name)) and all(any(re.fullmatch(key, one) for one in found) for key in self.keys):
                yield name

    def rows(
        self,
        inventory: Inventory,
        name: bytes,
        tables: CorpusTables,
        classes: ClassNames,
        of_video: bool = False,
        split: str | None = None,
    ) -> Iterator[ManifestRow]:
        """Rows of one manifest; an entry without a file is quarantined.

        `of_video`: files without a part are YouTube videos. `split`: of all rows; default: from the manifest's name.
        """
        split, part = split or split_of_file(name), self.part(name)
        for at, entry in read_entries(inventory, name):
            file = self._file(entry) if isinstance(entry, dict) else ""
            if not file:
                where = f"line {at}" if isinstance(at, int) else at
                tables.reject(name, "bad entry", f"{where}: no `{self.file[0]}`")
                continue
            yield ManifestRow(
                name,
                at,
                file,
                captions=[text for key, value in entry.items() if re.fullmatch(self.captions, key) for text in texts(value)],
                labels=self._labels(entry, classes) if self.labels else (),
                split=split,
                part=part,
                of_video=part in self.parts_of_videos or (of_video and not part),
                about=self.clip(file),
            )

    def _file(self, entry: dict[str, Any]) -> str:
        for value in map(entry.get, self.file):
            if isinstance(value, str) and value.strip():
                return value.strip()
            if self.numbers and isinstance(value, int) and not isinstance(value, bool):
                return str(value)
        return ""

    def _labels(self, entry: dict[str, Any], classes: ClassNames) -> list[str]:
        """Labels; machine ids, of which one label may contain several, become class names."""
        named = []
        for label in texts(entry.get(self.labels), self.label_separator):
            mids = [mid.strip() for mid in label.split(",")]
            named += classes.call(mids) if all(map(MACHINE_ID.fullmatch, mids)) else [label]
        return named


def texts(value: object, separator: str | None = None) -> list[str]:
    """The texts of a JSON value: a text, which is split at `separator` if given, or a list of texts."""
    if isinstance(value, str):
        value = value.split(separator) if separator else [value]
    return [text.strip() for text in value if isinstance(text, str) and text.strip()] if isinstance(value, list) else []


TANGO = JsonEntries(
    Format(
        name="tango_json",
        layout="`.json` or `.jsonl` files whose lines have `dataset,location,captions`",
        id="the YouTube id and start in the file's name, else a hash; the file is `location`, matched by name in any folder",
        caption="`captions`: a text or a list of texts",
        label="`labels`, if present: a list, or a text separated by `;`; comma-separated machine ids are looked up in AudioSet's "
        "class label csv (`mid,display_name`)",
        split="the manifest's name",
    ),
    keys=("captions", "location"),
    file=("location",),
    captions="captions",
    looks="JSON lines with captions and location",
    remedy="TANGO's manifests",
    labels="labels",
)


_UID = re.compile(r"Y?(?P<video>[A-Za-z0-9_-]{11})_(?P<start>[0-9]{1,9})_[0-9]{1,9}")


def _amphion_clip(uid: str) -> tuple[str, float] | None:
    match = _UID.fullmatch(uid)
    return (match["video"], int(match["start"]) / 1000) if match else None


AMPHION = JsonEntries(
    Format(
        name="amphion",
        layout="JSON lists of `Dataset,Uid,Caption`",
        id="the file is `Uid` with any extension, `{ytid}_{startms}_{endms}`",
        caption="`Caption`",
        label="none",
        split="the JSON's name",
    ),
    keys=("Uid", "Caption"),
    file=("Uid",),
    captions="Caption",
    looks="JSON list of `Uid` and `Caption`",
    remedy="Amphion's train.json",
    clip=_amphion_clip,
)


# Word in the JSON's name, else in its folders → word in the folder of its sounds; Freesound's and SoundBible's numbers overlap.
_SOURCES = {
    "freesound": "freesound",
    "fsd": "freesound",
    "bbc": "bbc",
    "soundbible": "soundbible",
    "sb": "soundbible",
    "audioset": "audioset",
    "as": "audioset",
}


WAVCAPS = JsonEntries(
    Format(
        name="wavcaps",
        layout='JSON with `id` and `caption`: `{"num_captions_per_audio": 1, "data": [{…}]}`, or the bare list',
        id="the file is `id` with any extension, in its source's folder (FreeSound, BBC, SoundBible, AudioSet); "
        "AudioSet: `Y{ytid}.wav`",
        caption="`caption`",
        label="none",
        split="the JSON's name; the published ones give none",
    ),
    keys=("id", "caption"),
    file=("id", "audio", "wav"),
    captions=r"captions?(?:_\d+)?",
    looks="JSON with entries of `id` and `caption`",
    remedy="WavCaps' json_files",
    numbers=True,  # Freesound's
    unique=True,
    part=lambda name: keyword_in(name, _SOURCES) or "",
    parts={source: source for source in _SOURCES.values()},  # also sources without a JSON, whose sounds belong to no other
    parts_of_videos=frozenset({"audioset"}),
)
