"""What an adapter reads and returns: rows of manifests; rows of RECORDINGS and CAPTIONS, and reports."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soundmill import hashing, shards
from soundmill.corpora import sound_tags
from soundmill.corpora.inventory import AudioFile, Inventory, composed
from soundmill.corpora.resolver import MAX_KEY, with_slashes, youtube_clip
from soundmill.corpora.statements import MAX_CELL, NOTHING, clean
from soundmill.errors import UserError
from soundmill.manifest import FILE_TAGS, RECORDINGS, SPLIT_NAMES, VIDEO_ID, escape_path, words_of_name
from soundmill.params import parse_json

# Words for a missing value, as programs write it. A folder may be called so; a class in a table may be `unknown` or `other`.
_MISSING = frozenset(r"nan none null nil na n/a n.a NaT \n #n/a #name #value! #ref! #div/0! #num! #null!".split())
_NO_CAPTION = frozenset((*NOTHING, "unk", "undefined", "missing", "not available", "no description"))
_AROUND = "\"'()[]{}<>?.…,;:_*-–—― \t\r\n"  # around such a word, or alone
OPENING = r"[\"'“‘¿¡(]*[^\W\d_]"  # of a text in words
BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters of Hangul and a pattern of Braille that show nothing
BY_MODELS = re.compile(
    r"(?:^|[\W_])(?:scores?|confidence|relevance|prob(?:ability|s)?|pred(?:iction|icted)?s?|results?|logits?|generated|asr)(?:$|[\W_])"
)
_NOTES = re.compile(
    r"(?:^|[\W_])(?:logs?|errors?|failed|missing|skipped|sources?|attributions?|credits?|authors?|urls?|licen[cs]es?|notes?|comments?|"
    r"todo|tracklist|playlist|titles?|artists?|speakers?|hyps?|phonemes|events?)(?:$|[\W_])"
)
MAX_CAPTION = 1 << 16  # characters
MAX_TEXT = 1 << 28  # characters of captions and labels in memory: some two million clips


@dataclass(slots=True)
class ManifestRow:
    """One row of a manifest; it describes one recording."""

    source: bytes  # the manifest's name in the inventory
    at: int | str  # line or key in the manifest
    key: str  # path, file name or id of the recording; a YouTube id if `start_time` is given
    captions: Sequence[str] = ()
    labels: Sequence[str] = ()
    start_time: float | None = None  # seconds into the YouTube video; None: the row describes the whole recording
    split: str | None = None
    fold: int | None = None
    group: str | None = None  # recordings of one group share a split; a YouTube video is a group
    number: str = ""  # `audiocap_id`, after which the file may be named
    part: str = ""  # a word in the name of its file's folder, to tell files of one name apart
    of_video: bool = False  # the key is a YouTube id even if it looks like words
    at_root: bool = False  # the key is relative to the corpus, not to the manifest
    about: tuple[str, float | None] | None = None  # YouTube id and start from columns beside the key
    bare: bool = False  # a row without captions and labels is allowed

    def __post_init__(self) -> None:
        self.key = self.key[: MAX_KEY + 1]  # a longer one is rejected, and must not fill memory before it is

    @property
    def origin(self) -> str:
        return f"{escape_path(self.source)}:{self.at}"

    @property
    def clip(self) -> tuple[str, float | None] | None:
        """(YouTube id, start) if the row describes a YouTube clip."""
        return self.about or ((self.key, self.start_time) if self.start_time is not None else youtube_clip(self.key, self.of_video))

    @property
    def may_be_anywhere(self) -> bool:
        """Whether its file may be in any folder: the key is neither a YouTube clip nor a path from the root."""
        return self.start_time is None and not self.at_root and self.clip is None and not with_slashes(self.key).startswith("/")


@dataclass
class CorpusTables:
    """Rows in stable order. Captions of missing recordings stay, so that coverage can be computed.

    Paths in reports are escaped and relative to the corpus; an `origin` is a metadata file and its line or key.
    """

    format: str = ""
    recordings: list[dict[str, Any]] = field(default_factory=list)
    captions: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)  # rows of manifest.QUARANTINE
    matched: list[dict[str, Any]] = field(default_factory=list)  # listed clips with a file: id, path, start_time, captions
    missing: list[dict[str, Any]] = field(default_factory=list)  # without: id, youtube_id, start_time, captions, origins
    orphans: list[dict[str, Any]] = field(default_factory=list)  # files without a row: path
    collisions: list[dict[str, Any]] = field(default_factory=list)  # an id of several files (paths) or rows (origins)
    ambiguous: list[dict[str, Any]] = field(default_factory=list)  # names with several meanings, and the one chosen (taken)
    counts: Counter[str] = field(default_factory=Counter)  # of the adapter, for the metrics
    named: set[str] = field(default_factory=set)  # ids of listed recordings without captions and labels
    # By id of an embedded recording: (row, columns about terms, or tags of the file); see `with_stated`.
    stated: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # problems of metadata that did not prevent reading it
    _ids: dict[str, str] = field(default_factory=dict)  # recording_id → path
    _held: int = 0  # characters
    _nothing: dict[str, str] = field(default_factory=dict)  # captions or labels → the first that is a word for a missing value

    @property
    def labels(self) -> list[str]:
        return sorted({label for row in (*self.recordings, *self.captions) for label in row["labels"]})

    def hold(self, texts: Iterable[str], raw_path: bytes) -> None:
        """Count text of a table, which may unpack to far more than its size; UserError, naming it, beyond MAX_TEXT."""
        self._held += sum(map(len, texts))
        if self._held > MAX_TEXT:
            what = f"captions and labels of more than {MAX_TEXT} characters, too many for memory"
            raise UserError(f"{escape_path(raw_path)}: {what}; remove it from the corpus, or divide the corpus")

    def said(self, texts: Iterable[str], origin: str, labels: bool = False) -> list[str]:
        """The texts, composed, without empty ones and words for a missing value (`nan`), which are counted; label `3.0` as `3`."""
        kept = []
        for text in map(composed, texts):
            if all(char in BLANK or unicodedata.category(char) in "Cc Cf Mn Zl Zp Zs" for char in text):
                continue
            has_words = any(char.isalnum() or unicodedata.category(char) == "So" for char in text)  # or a sign such as `♪`
            if is_missing(text) or not (labels or (has_words and text.strip(_AROUND).lower() not in _NO_CAPTION)):
                what = "labels" if labels else "captions"
                self.counts[f"{what}_that_say_nothing"] += 1
                self._nothing.setdefault(what, f"{origin}: {text.strip()}")
            else:
                kept.append(re.sub(r"^(-?\d{1,18})\.0+$", r"\1", text.strip()) if labels else text)
        return kept

    def reject(self, raw_path: bytes, reason: str, detail: str = "") -> None:
        self.rejected.append({"path": escape_path(raw_path), "reason": reason, "detail": detail})

    def add_recording(
        self,
        file: AudioFile,
        num_shards: int,
        *,
        recording_id: str | None = None,
        start_time: float = 0.0,
        labels: Iterable[str] = (),
        fold: int | None = None,
        split: str | None = None,
        group: str | None = None,
    ) -> str:
        """Add a recording and return its id: the given one if it is free, else a hash of the path."""
        recording_id = self.take_id(recording_id, file.raw_path, file.path)
        row: dict[str, Any] = dict.fromkeys(RECORDINGS.names)  # terms: see terms.py; `file_tags`: see `fill_file_tags`
        row |= {name: getattr(file, name) for name in ("path", "raw_path", "size", "digest")}
        row |= {"recording_id": recording_id, "start_time": float(start_time), "fold": fold, "split": split}
        row |= {"shard": shards.shard_of(file.shard_key, num_shards), "corpus": "", "weight": 1.0}
        row["labels"] = list(dict.fromkeys(map(_clean, labels)))
        row["group"] = _clean(group) if group else None
        self.recordings.append(row)
        return recording_id

    def take_id(self, recording_id: str | None, raw_path: bytes, path: str) -> str:
        """The given id if it is free, else a hash of the path; an id in use is a collision."""
        if recording_id in self._ids:
            self.collisions.append({"id": recording_id, "paths": [self._ids[recording_id], path]})
            recording_id = None
        while recording_id is None:
            # Hashed again if another path has the same hash (10⁻⁹ at 500 files).
            hashed, raw_path = hashing.short_digest(raw_path), raw_path + b"\0"
            recording_id = hashed if hashed not in self._ids else None
        self._ids[recording_id] = path
        return recording_id

    def add_caption(
        self, recording_id: str, caption: str, origin: str, start_time: float | None = None, labels: Iterable[str] = ()
    ) -> None:
        of_text = {"recording_id": recording_id, "start_time": start_time, "caption": _clean(caption), "origin": origin}
        self.captions.append({**of_text, "labels": [_clean(label) for label in labels]})

    def with_stated(self, inventory: Inventory) -> Iterator[tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]]:
        """Each recording, and what is stated of it: (row, columns of its table), then the tags of its file."""
        tags = {file.raw_path: file.tags for file in inventory.audio if file.tags}
        for row in self.recordings:
            stated = [*self.stated.get(row["recording_id"], ())]
            if row["raw_path"] in tags:
                stated.append((sound_tags.FOUND, parse_json(tags[row["raw_path"]])))
            yield row, stated

    def fill_file_tags(self, inventory: Inventory) -> None:
        """Set `file_tags` of the recordings, each as one line of printable characters; those beyond MAX_CELL are left out."""
        long = []
        for row, stated in self.with_stated(inventory):
            tags = [values for found, values in stated if found == sound_tags.FOUND]
            found = {name: text for values in tags for name, text in values.items() if name in FILE_TAGS}
            long += [row["path"] for text in found.values() if len(text) > MAX_CELL]
            texts = {name: clean(text) for name, text in found.items() if len(text) <= MAX_CELL}
            known = {name: text for name, text in texts.items() if text.lower() not in NOTHING}
            row["file_tags"] = {name: known.get(name) for name in FILE_TAGS} if known else None
        self.remark(long, f"titles, genres or descriptions in files have more than {MAX_CELL} characters and are left out")

    def remark(self, places: Sequence[str], what: str, then: str = "") -> None:
        """Note a problem of these places that did not prevent reading; `then`: what follows from it."""
        if places:
            self.remarks.append(f"{len(places)} {what} (first: {places[0]}){then}")

    def remove(self, gone: set[str]) -> None:
        """Remove everything about the recordings with these ids."""
        paths = {row["path"] for row in self.recordings if row["recording_id"] in gone}
        self.recordings = [row for row in self.recordings if row["recording_id"] not in gone]
        self.captions = [row for row in self.captions if row["recording_id"] not in gone]
        self.matched = [row for row in self.matched if row["id"] not in gone]
        self.missing = [row for row in self.missing if row["id"] not in gone]
        self.orphans = [row for row in self.orphans if row["path"] not in paths]

    def settle(self, corpus: str) -> None:
        """After reading: set each recording's corpus, and fill `matched` and `orphans`."""
        self.format = corpus
        for what, first in self._nothing.items():
            count = self.counts[f"{what}_that_say_nothing"]
            self.remarks.append(f"{count} {what} are words for a missing value and are left out (first: {first})")
        self._nothing = {}
        self._train_on_valid()
        described: dict[tuple[str, float | None], dict[str, Any]] = {}
        paths = {row["recording_id"]: row["path"] for row in self.recordings}
        for row in self.captions:
            if (recording_id := row["recording_id"]) in paths:
                start = row["start_time"]
                clip = {"id": recording_id, "path": paths[recording_id], "start_time": start, "captions": 0}
                described.setdefault((recording_id, start), clip)["captions"] += 1
        with_captions = {recording_id for recording_id, _ in described}
        reported = {path for entry in self.collisions + self.ambiguous for path in entry.get("paths", ())}
        self.matched, self.orphans = list(described.values()), []
        for row in self.recordings:
            row["corpus"] = row["corpus"] or corpus
            if (row["labels"] or row["recording_id"] in self.named) and row["recording_id"] not in with_captions:
                self.matched.append({"id": row["recording_id"], "path": row["path"], "start_time": None, "captions": 0})
            elif row["recording_id"] not in with_captions and row["path"] not in reported:
                self.orphans.append({"path": row["path"]})

    def _train_on_valid(self) -> None:
        """If only valid and test are given, valid is for training, which keeps the test; unless others with descriptions are."""
        rows, captioned = self.recordings, {row["recording_id"] for row in self.captions}
        described = [row for row in rows if row["labels"] or row["recording_id"] in captioned] or rows
        if {row["split"] for row in rows} - {None} == {"valid", "test"} and all(row["split"] for row in described):
            valid = [row for row in rows if row["split"] == "valid"]
            for row in valid:
                row["split"] = "train"
            self.remark([row["path"] for row in valid], "recordings of the validation set are for training: no other is given")


def _clean(text: str) -> str:
    """Composed text as one line; lone surrogates, which JSON allows and UTF-8 does not, become `?`."""
    return " ".join(composed(text).split()).encode("utf-8", "replace").decode()


def is_missing(text: str) -> bool:
    """Whether a cell says that there is no value (`nan`, `"None"`, `(null)`, `—`)."""
    word = text.strip(_AROUND)
    return not word or not _MISSING.isdisjoint((word, word.lower()))


def is_no_description(name: bytes) -> bool:
    """Whether a file's name, or its folder's, says that it has notes, or what models say, instead of descriptions."""
    shown = "/".join(escape_path(name).lower().split("/")[-2:])
    return bool(BY_MODELS.search(shown) or _NOTES.search(shown))


def whole_number(text: str) -> str:
    """The digits of an integer, also if written as `5.0`; empty for anything else."""
    return match[1] if (match := re.fullmatch(r"([0-9]{1,18})(?:\.0{1,9})?", text.strip())) else ""


def fold_number(text: str) -> int | None:
    """A fold number of at most four digits, see `whole_number`; None for anything else."""
    number = whole_number(text)
    return int(number) if 0 < len(number) <= 4 else None


def keyword_in(path: bytes, meanings: Mapping[str, str]) -> str | None:
    """The meaning of the words in the last part of a path that has exactly one meaning; None if no part has."""
    for part in reversed(path.split(b"/")):
        words = words_of_name(part) | words_of_name(part.lower())  # `AudioSet` is one word here
        found = {meanings[word] for word in words if word in meanings}
        if len(found) == 1:
            return found.pop()
    return None


def split_of(path: bytes) -> str | None:
    """The split in the last part of a path that has one (`train-00000-of-00001.parquet`, `bal_train/00.parquet`)."""
    return keyword_in(path, SPLIT_NAMES)


def video_id(text: str) -> str:
    """A YouTube id, also as spreadsheets escape a leading dash (`'-0abc`, `="-0abc"`); empty for anything else."""
    text = text.strip().lstrip("'=").strip('"')
    return text if VIDEO_ID.fullmatch(text) else ""


def split_of_file(name: bytes) -> str | None:
    """The split in a file's name (`train.csv`, `audiocaps_val.csv`); None if there is none or several."""
    return split_of(name.rpartition(b"/")[2])


def seconds(written: Any) -> float | None:
    """Seconds, from 0 to 1e6; None for anything else."""
    try:
        value = float(written)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and 0 <= value < 1e6 else None
