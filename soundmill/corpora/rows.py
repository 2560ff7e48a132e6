"""Rows of manifests, and the state of joining them with files."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from soundmill.corpora.inventory import AudioFile
from soundmill.corpora.resolver import MAX_KEY, is_absolute, youtube_clip
from soundmill.corpora.tables import CorpusTables
from soundmill.manifest import escape_path

MAX_CAPTION = 1 << 16  # characters


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
        return self.start_time is None and not self.at_root and self.clip is None and not is_absolute(self.key)


@dataclass
class JoinState:
    """Intermediate results of a join; rows are referred to by number."""

    tables: CorpusTables
    owners: dict[int, bytes] = field(default_factory=dict)  # row number → raw path of its file
    claims: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))  # raw path → row numbers
    starts: dict[str, set[float]] = field(default_factory=lambda: defaultdict(set))  # YouTube id → starts in rows
    absent: list[int] = field(default_factory=list)  # rows without a file
    twins: dict[bytes, tuple[str, float | None]] = field(default_factory=dict)  # further files of a claimed clip
    reported: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)  # entries of `ambiguous`
    strays: dict[int, AudioFile] = field(default_factory=dict)  # row number → file in another folder than the row says
    whole: list[str] = field(default_factory=list)  # paths of files without a start in their name
    inside: list[str] = field(default_factory=list)  # origins of rows that start inside a file
    by_number: list[str] = field(default_factory=list)  # origins of rows matched by `audiocap_id`
    homes: dict[bytes, bytes] = field(default_factory=dict)  # manifest with the name of a local manifest → its folder

    def disown(self, lost: list[int], numbers: list[int]) -> None:
        """Remove `lost` from the rows (`numbers`) of a file."""
        for number in lost:
            del self.owners[number]
        numbers[:] = [number for number in numbers if number in self.owners]

    def report_ambiguous(
        self, key: str, files: Sequence[AudioFile], origins: list[str], reason: str, taken: str | None = None, clips: int = 1
    ) -> None:
        """Report an ambiguity and the file chosen for it (`taken`); rows of one key share an entry.

        Without a chosen file, `clips` count as listed and not found.
        """
        paths = [file.path for file in files]
        entry = {"id": key, "paths": paths, "origins": [], "reason": reason, "taken": taken}
        if (reported := self.reported.setdefault((key, reason, *paths), entry)) is entry:
            self.tables.ambiguous.append(entry)
            if taken is None:
                self.tables.count("undecided_clips", clips)
        reported["origins"].extend(origins)
