"""Formats of JSON with an entry for each recording or caption: TANGO, Amphion, WavCaps, PANNs (also csv), AudioLDM, NSynth; and
with a JSON file beside each recording: audiocraft's, which also has manifests, and that of stable-audio-tools."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from soundmill.corpora import metadata
from soundmill.corpora.csv_tables import read_csv
from soundmill.corpora.folder import layout_of
from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.join import DETECTED, MACHINE_ID, ManifestFormat, join
from soundmill.corpora.metadata import first_keys, read_entries, read_head, read_json, read_sidecar
from soundmill.corpora.resolver import FileIndex, youtube_clip
from soundmill.corpora.statements import Statement
from soundmill.corpora.tables import CorpusTables, ManifestRow, keyword_in, split_of_file
from soundmill.errors import UserError
from soundmill.manifest import SPLIT_NAMES, SPLITS, escape_path, path_text
from soundmill.params import parse_json

JSON = re.compile(rb"\.(?:jsonl?|jsons|ndjson)(?:\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class JsonEntries(ManifestFormat):
    """A format of JSON entries with these keys."""

    FORMAT: str
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
    parts_of_videos: frozenset[str] = frozenset()  # parts whose files are YouTube videos; "": without a part
    clip: Callable[[str], tuple[str, float] | None] = lambda file: None  # file → (YouTube id, start in seconds)

    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        for name in filter(JSON.search, inventory.metadata):
            if (found := first_keys(inventory, name)) and all(any(re.fullmatch(key, one) for one in found) for key in self.keys):
                yield name

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables, split: str | None = None) -> Iterator[ManifestRow]:
        """Rows; an entry without a file is quarantined. `split`: of all rows."""
        part = self.part(name)
        of_manifest = {"split": split or split_of_file(name), "part": part, "of_video": part in self.parts_of_videos}
        for at, entry in read_entries(inventory, name):
            if not (file := self._file(entry) if isinstance(entry, dict) else ""):
                where = f"line {at}" if isinstance(at, int) else at
                tables.reject(name, "bad entry", f"{where}: no `{self.file[0]}`")
                continue
            captions = [text for key, value in entry.items() if re.fullmatch(self.captions, key) for text in texts(value)]
            labels = self._labels(entry) if self.labels else ()
            yield ManifestRow(name, at, file, captions, labels, about=self.clip(file), **of_manifest)

    def _file(self, entry: dict[str, Any]) -> str:
        for value in map(entry.get, self.file):
            if isinstance(value, str) and value.strip():
                return value.strip()
            if self.numbers and isinstance(value, int) and not isinstance(value, bool):
                return str(value)
        return ""

    def _labels(self, entry: dict[str, Any]) -> list[str]:
        """Labels; a text may be several machine ids."""
        labels = []
        for label in texts(entry.get(self.labels), self.label_separator):
            mids = [mid.strip() for mid in label.split(",")]
            labels += mids if all(map(MACHINE_ID.fullmatch, mids)) else [label]
        return labels


def texts(value: object, separator: str | None = None) -> list[str]:
    """The texts of a JSON value: a text, which is split at `separator` if given, or a list of texts."""
    if isinstance(value, str):
        value = value.split(separator) if separator else [value]
    return [text.strip() for text in value if isinstance(text, str) and text.strip()] if isinstance(value, list) else []


TANGO = JsonEntries(
    "tango_json",
    keys=("captions", "location"),
    file=("location",),
    captions="captions",
    looks="JSON lines with captions and location",
    remedy="put TANGO's manifests there",
    labels="labels",
)

_UID = re.compile(r"Y?(?P<video>[A-Za-z0-9_-]{11})_(?P<start>[0-9]{1,9})_[0-9]{1,9}")

AMPHION = JsonEntries(
    "amphion",
    keys=("Uid", "Caption"),
    file=("Uid",),
    captions="Caption",
    looks="JSON list of `Uid` and `Caption`",
    remedy="put Amphion's train.json there",
    clip=lambda uid: (match["video"], int(match["start"]) / 1000) if (match := _UID.fullmatch(uid)) else None,
)

# Word in the JSON's name, else in its folders → word in the folder of its sounds; Freesound's and SoundBible's numbers overlap.
_SOURCES = {name: name for name in ("freesound", "bbc", "soundbible", "audioset")}
_SOURCES |= {"fsd": "freesound", "sb": "soundbible", "as": "audioset"}

WAVCAPS = JsonEntries(
    "wavcaps",
    keys=("id", "caption"),
    file=("id", "audio", "wav"),
    captions=r"captions?(?:_\d+)?",
    looks="JSON with entries of `id` and `caption`",
    remedy="put WavCaps' json_files there",
    numbers=True,  # Freesound's
    unique=True,
    part=lambda name: keyword_in(name, _SOURCES) or "",
    parts={source: source for source in _SOURCES.values()},  # also sources without a JSON, whose sounds belong to no other
    parts_of_videos=frozenset({"audioset"}),
)

_PREFIXED = re.compile(r"Y[A-Za-z0-9_-]{11}\.wav$")
# JSON as in WavCaps, but with several captions per entry; other files may have one caption per entry.
FIVE_CAPTIONS = replace(WAVCAPS, keys=("id", "caption_1"))
ANY_CAPTIONS = replace(WAVCAPS, keys=("id", r"caption\w*"), parts_of_videos=frozenset({"", "audioset"}))


class Panns(ManifestFormat):
    """AudioCaps as in PANNs' lists and WavCaps' code: csv or JSON with five captions per `Y{ytid}.wav`."""

    FORMAT = "panns"
    looks = "csv with `file_name,caption_1` and no JSON with `id` and `caption_1`"
    remedy = "put one there"
    columns = frozenset({"file_name", "caption_1"})
    unique = needs_rows = True
    parts = WAVCAPS.parts

    def detect(self, inventory: Inventory) -> bool:
        return super().detect(inventory) or FIVE_CAPTIONS.detect(inventory)

    def is_own(self, inventory: Inventory, name: bytes) -> bool:
        if b"clotho" in name.rpartition(b"/")[2].lower():  # its file names are free text
            return False
        keys = [cells["file_name"] for _, cells in islice(read_csv(inventory, name), DETECTED)]
        return 2 * sum(youtube_clip(key) is not None or _PREFIXED.match(key) is not None for key in keys) > len(keys)

    def all_rows(self, inventory: Inventory, names: Iterable[bytes], tables: CorpusTables) -> Iterator[ManifestRow]:
        """Also of JSON files with one caption per entry."""
        yield from super().all_rows(inventory, names, tables)
        yield from ANY_CAPTIONS.all_rows(inventory, ANY_CAPTIONS.manifests(inventory), tables)

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
        split = split_of_file(name)
        for line, cells in read_csv(inventory, name):
            captions = [text for column, text in cells.items() if re.fullmatch(r"caption(?:_\d+)?", column)]
            yield ManifestRow(name, line, cells["file_name"].strip(), captions=captions, split=split, of_video=True)


class AudioLdm(JsonEntries):
    """A root json lists the json files of each split, whose entries have `wav`, `labels` and captions."""

    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        return (name for name in inventory.metadata if self._listed(inventory, name) is not None)

    def all_rows(self, inventory: Inventory, names: Iterable[bytes], tables: CorpusTables) -> Iterator[ManifestRow]:
        """A listed json that is missing is quarantined."""
        # Paths in the root json are relative to the directory of training, so they are resolved like recordings.
        manifests = FileIndex(Inventory(inventory.root, audio=[AudioFile(name, 0, "") for name in inventory.metadata]))
        for root in names:
            inventory.opened.add(root)
            for key, path in [item for splits in self._listed(inventory, root).values() for item in splits.items()]:
                split = SPLIT_NAMES.get(key.lower())
                if split is None or not isinstance(path, str) or not path:
                    continue
                files = manifests.resolve(path, root.rpartition(b"/")[0]).files
                if len(files) == 1:
                    yield from self.rows(inventory, files[0].raw_path, tables, split=split)
                else:
                    what = f"{len(files)} files of this name" if files else "is not below the corpus"
                    tables.reject(root, "missing manifest", f"{key}: {path!r:.200}: {what}")

    @staticmethod
    def _listed(inventory: Inventory, name: bytes) -> dict[str, dict[str, Any]] | None:
        """{dataset: {split: path}} of a root json; None for any other file."""
        if not name.lower().endswith(b".json") or b'"metadata"' not in (head := read_head(inventory, name)):
            return None
        try:
            listed = parse_json(head)["metadata"]["path"]
        except (ValueError, KeyError, TypeError):
            return None
        return listed if isinstance(listed, dict) and all(isinstance(splits, dict) for splits in listed.values()) else None


AUDIOLDM = AudioLdm(
    "audioldm",
    keys=("wav",),
    file=("wav",),
    captions=".*caption.*",
    looks='json with AudioLDM\'s splits (`{"metadata": {"path": {dataset: {"train": …}}}}`)',
    remedy="put its dataset_root.json there",
    labels="labels",
    label_separator=",",
)


class NSynth(ManifestFormat):
    """`examples.json` with pitch, instrument and qualities of each note, beside a folder of audio."""

    FORMAT = "nsynth"
    looks = "`examples.json` of NSynth's notes"
    remedy = "put it beside its folder `audio`"
    # Terms of the corpus as it is published, and the names of its notes: `{instrument}_{source}_{number}-{pitch}-{velocity}`.
    STATEMENT = Statement("published with NSynth", "CC-BY-4.0", "Google Inc.", "https://magenta.tensorflow.org/datasets/nsynth")
    NOTE = re.compile(rb"[a-z_]+_(?:acoustic|electronic|synthetic)_\d{3}-\d{3}-\d{3}\.\w+")

    def manifests(self, inventory: Inventory) -> list[bytes]:
        names = (name for name in inventory.metadata if re.search(rb"(?:^|/)examples\.json$", name))
        return [name for name in names if b'"instrument_family' in read_head(inventory, name)]

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
        """Captions are made of the fields; notes of one instrument are a group."""
        examples = read_json(inventory, name)
        if not isinstance(examples, dict):
            raise UserError(f"{escape_path(name)}: expected an object of notes by name, as in NSynth")
        # If the corpus is one split of NSynth, the split is in the name of the corpus directory.
        folder = (os.path.dirname(name) or os.path.basename(os.path.realpath(bytes(inventory.root)))).decode("utf-8", "replace")
        split = next((word for word in re.split(r"[^a-z]+", folder.lower()) if word in SPLITS), None)
        for note, fields in examples.items():
            if not isinstance(fields, dict) or not isinstance(fields.get("instrument_family_str"), str):
                tables.reject(name, "bad entry", f"{note!r:.80}: no `instrument_family_str`")
                continue
            family, group = fields["instrument_family_str"].replace("_", " "), fields.get("instrument_str")
            source, qualities = fields.get("instrument_source_str"), fields.get("qualities_str")
            words = qualities if isinstance(qualities, list) else []
            words = [word.replace("_", " ") for word in words if isinstance(word, str)]
            caption = ", ".join([f"{source} {family}" if isinstance(source, str) else family, *words])
            group = group if isinstance(group, str) and group else None
            at = note.encode("utf-8", "replace").decode()  # JSON allows lone surrogates, tables do not
            yield ManifestRow(name, at, f"audio/{note}", [caption], [family], split=split, group=group)


NSYNTH = NSynth()


class Audiocraft(ManifestFormat):
    """Manifests of JSON lines give recordings and splits, the json beside a recording its description."""

    FORMAT = "audiocraft"
    looks = "manifest of JSON lines with duration, path, sample_rate"
    remedy = "put audiocraft's data.jsonl.gz there"

    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        keys = {"path", "duration", "sample_rate"}
        return (name for name in filter(JSON.search, inventory.metadata) if keys <= first_keys(inventory, name))

    def all_rows(self, inventory: Inventory, names: Iterable[bytes], tables: CorpusTables) -> Iterator[ManifestRow]:
        index = FileIndex(inventory)
        for row in super().all_rows(inventory, names, tables):
            files = index.resolve(row.key, row.source.rpartition(b"/")[0]).files
            beside = inventory.beside(os.path.splitext(files[0].raw_path)[0], b".json") if len(files) == 1 else None
            about = (_object(inventory, beside, tables) if beside else None) or {}
            row.captions = texts(about.get("captions")) or texts(about.get("description"))
            labels = texts(about.get("genre"), ",") or texts(about.get("keywords"), ",")  # lists, or separated by commas
            row.labels = [label.lower() for label in labels]
            yield row

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
        split = keyword_in(name, {**SPLIT_NAMES, "generate": "test"})
        for line, entry in read_entries(inventory, name):
            if isinstance(entry, dict) and isinstance(entry.get("path"), str):
                yield ManifestRow(name, line, entry["path"], split=split, bare=True)
            else:
                tables.reject(name, "bad entry", f"{line}: no `path`")


KEYS = ("prompt", "text")  # the first non-empty one is used


class StableAudio:
    """A `.json` (or `.txt`) with the prompt beside each recording; LAION-CLAP's key is `text`."""

    FORMAT = "stable_audio"

    def detect(self, inventory: Inventory) -> bool:
        """Whether most of the first jsons beside recordings have a prompt or a text."""
        pairs = list(islice((name for _, name in _pairs(inventory, b".json")), DETECTED))
        return 2 * sum(any(b'"%s"' % key.encode() in read_head(inventory, name) for key in KEYS) for name in pairs) > len(pairs)

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Tables of such a corpus: the prompt of each recording that has one."""
        tables = CorpusTables()
        if not (rows := list(_rows(inventory, tables))):
            raise inventory.lacks('json with a "prompt" beside a recording of its name', "put them there")
        tables = join(inventory, rows, num_shards, tables)
        layout, files = layout_of(inventory.audio), {file.raw_path: file for file in inventory.audio}
        for recording in tables.recordings:
            recording["split"] = layout.split_and_label(files[recording["raw_path"]])[0]
        return tables


def _pairs(inventory: Inventory, extension: bytes) -> Iterator[tuple[AudioFile, bytes]]:
    for file in inventory.audio:
        if name := inventory.beside(os.path.splitext(file.raw_path)[0], extension):
            yield file, name


def _rows(inventory: Inventory, tables: CorpusTables) -> Iterator[ManifestRow]:
    described = dict(_pairs(inventory, b".json"))
    paired, keys = set(described.values()), set(KEYS)
    for file, name in described.items():
        value = _object(inventory, name, tables)
        keys.update(value or {})
        if value is not None and not _prompts(value):
            tables.reject(name, "empty caption", "no `prompt` and no `text`")
        if prompts := _prompts(value or {}):
            yield ManifestRow(name, "prompt", path_text(file.raw_path), captions=prompts, at_root=True)
    for name in inventory.metadata:
        # A json with only the keys of sidecars has lost its recording; others are not sidecars.
        if name.lower().endswith(b".json") and name not in paired:
            with suppress(ValueError):
                value = parse_json(read_head(inventory, name, metadata.MAX_TEXT_BYTES))
                if isinstance(value, dict) and (prompts := _prompts(value)) and value.keys() <= keys:
                    inventory.opened.add(name)
                    yield ManifestRow(name, "prompt", path_text(os.path.splitext(name)[0]), captions=prompts, at_root=True)
    for file, name in _pairs(inventory, b".txt"):
        if file not in described and (text := read_sidecar(inventory, name, tables.reject)):
            yield ManifestRow(name, 1, path_text(file.raw_path), captions=[text], at_root=True)


def _object(inventory: Inventory, name: bytes, tables: CorpusTables) -> dict[str, Any] | None:
    """The json beside a recording, empty if it is no object; None if it cannot be read."""
    text = read_sidecar(inventory, name, tables.reject)
    try:
        value = parse_json(text) if text else {}
    except ValueError:
        return tables.reject(name, "unreadable caption", "not JSON")
    return None if text is None else value if isinstance(value, dict) else {}


def _prompts(value: dict[str, Any]) -> list[str]:
    return next(filter(None, (texts(value.get(key)) for key in KEYS)), [])
