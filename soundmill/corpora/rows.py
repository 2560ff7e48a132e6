"""A row of a manifest, and the state of joining a corpus's rows with its files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from soundmill.corpora.inventory import AudioFile
from soundmill.corpora.resolver import is_absolute, youtube_clip
from soundmill.corpora.tables import CorpusTables
from soundmill.manifest import escape_path

MAX_CAPTION = 1 << 16  # characters


@dataclass(slots=True)
class ManifestRow:
    """One row of a manifest: the description of one recording."""

    source: bytes  # the manifest, by its name in the inventory
    at: int | str  # line or key in it
    key: str  # path, file name or id of the recording; a bare YouTube id where `start_time` is given
    captions: Sequence[str] = ()
    labels: Sequence[str] = ()
    start_time: float | None = None  # seconds into the YouTube video; None: the row holds for the whole recording
    split: str | None = None
    fold: int | None = None
    group: str | None = None  # recordings of one group never part; a YouTube video is one by itself
    number: str = ""  # AudioCaps' own id of the row, after which some name the file
    part: str = ""  # a word in the folder of its file, which files of the same name in other folders lack
    of_video: bool = False  # the key is named after a YouTube video, though its id may look like words
    at_root: bool = False  # the key is a path in the corpus, not one from the manifest's folder
    about: tuple[str, float | None] | None = None  # the YouTube id and start in other columns than the key's
    bare: bool = False  # the format may list recordings without captions and labels

    @property
    def origin(self) -> str:
        return f"{escape_path(self.source)}:{self.at}"

    @property
    def clip(self) -> tuple[str, float | None] | None:
        """(YouTube id, start) where the row describes a video."""
        return self.about or ((self.key, self.start_time) if self.start_time is not None else youtube_clip(self.key, self.of_video))

    @property
    def may_be_anywhere(self) -> bool:
        """Whether its file may lie in any folder: it is named by neither a video nor a path from the corpus's root."""
        return self.start_time is None and self.clip is None and not self.at_root and not is_absolute(self.key)


@dataclass
class JoinState:
    """What joining has decided so far; rows are known by their numbers."""

    tables: CorpusTables
    owners: dict[int, bytes] = field(default_factory=dict)  # row number → raw path of its file
    claims: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))  # raw path → numbers of rows
    starts: dict[str, set[float]] = field(default_factory=lambda: defaultdict(set))  # YouTube id → starts that rows give
    absent: list[int] = field(default_factory=list)
    twins: dict[bytes, tuple[str, float | None]] = field(default_factory=dict)  # further files of a claimed clip
    reported: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)  # entries of `ambiguous`
    strays: dict[int, AudioFile] = field(default_factory=dict)  # row number → file in another folder than the row names
    whole: list[str] = field(default_factory=list)  # paths of files whose start only their rows have
    inside: list[str] = field(default_factory=list)  # origins of rows for a later second than any file begins at
    by_number: list[str] = field(default_factory=list)  # origins of rows whose file is named by their `audiocap_id` alone
    homes: dict[bytes, bytes] = field(default_factory=dict)  # manifest named like one of `_local_manifests` → its folder

    def disown(self, lost: list[int], numbers: list[int]) -> None:
        """Take rows from those (`numbers`) of a file."""
        for number in lost:
            del self.owners[number]
        numbers[:] = [number for number in numbers if number in self.owners]

    def report_ambiguous(
        self, key: str, files: Sequence[AudioFile], origins: list[str], reason: str, taken: str | None = None, clips: int = 1
    ) -> None:
        """Report an ambiguity and its resolution (`taken`); rows of one key share an entry. `clips`: see Report of check.py;
        without a resolution they count as described and not found."""
        paths = [file.path for file in files]
        entry = {"id": key, "paths": paths, "origins": [], "reason": reason, "taken": taken}
        if (known := self.reported.setdefault((key, reason, *paths), entry)) is entry:
            self.tables.ambiguous.append(entry)
            if taken is None:
                self.tables.count("undecided_clips", clips)
        known["origins"].extend(origins)
