"""Finding the files that a manifest's row names: by path, name or id, never by order. Ambiguities are reported, not guessed."""

import posixpath
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice, takewhile
from typing import Any, Literal
from urllib.parse import unquote

from soundmill.corpora.inventory import MEDIA, AudioFile, Inventory, composed
from soundmill.manifest import path_text

TOLERANCE = 0.5  # seconds between the starts of a row and its file: tools write 80, 80.0 or 79.999
MAX_FILES = 20  # files in a resolution, at most
MAX_KEY = 4096  # characters of a row's path, name or id

# `{id}`, `{id}_{start}`, `{id}_{start}_{end}` or `{id}_{start}-{end}`, optionally after `Y`. An id may itself start with `Y`, so it
# is dropped only if eleven characters remain. The match is unique: the id is followed by `_` and a digit.
_CLIP_NAME = re.compile(
    r"Y?(?P<video>[A-Za-z0-9_-]{11})(?:_(?P<start>[0-9]{1,9}(?:\.[0-9]{1,9})?)(?:[_-](?P<end>[0-9]{1,9}(?:\.[0-9]{1,9})?))?)?"
)
# `Title [{id}]`: a whole video by yt-dlp. `[{id}]`, `[{id}]-[{start}-{end}]`: clips by downloaders of MusicCaps.
_WHOLE = re.compile(r".* \[(?P<video>[A-Za-z0-9_-]{11})\]")
_PIECE = re.compile(r"\[(?P<video>[A-Za-z0-9_-]{11})\](?:-\[(?P<start>[0-9]{1,9})-[0-9]{1,9}\])?")
_WINDOW = re.compile(  # start and end, or a start with decimals
    r"_[0-9]+(?:\.[0-9]+)?_[0-9]+(?:\.[0-9]+)?$|_[0-9]+\.[0-9]+(?:-[0-9]+\.[0-9]+)?$|\]-\[[0-9]+-[0-9]+\]$"
)
# Extensions in manifests; a file's extension is anything with a letter.
_MEDIA = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(MEDIA)))})$", re.IGNORECASE)
_EXTENSION = re.compile(r"\.(?=[^.]*[A-Za-z])[A-Za-z0-9_~-]{1,12}$")


@dataclass(frozen=True, slots=True)
class Resolution:
    """The files that match a key: one, or several (at most MAX_FILES) if it is ambiguous."""

    files: tuple[AudioFile, ...]
    match: Literal["path", "name", "stem", "youtube id", "inside", "none"]
    same_clip: bool = False  # the files have one YouTube id and start, so any of them is right
    elsewhere: bool = False  # the file has the key's name but is in another folder


NOTHING = Resolution((), "none")
NO_FILES: tuple[list[float], list[AudioFile]] = ([], [])


def key_problem(key: str) -> str | None:
    """Why a manifest's path, name or id is rejected; None if it may be looked up. Keys are never opened as paths."""
    if not key.strip():
        return "empty"
    if len(key) > MAX_KEY:
        return f"{len(key)} characters"
    if not key.isprintable() and any(unicodedata.category(char) in ("Cc", "Cs") for char in key):
        return "has control characters"
    return None


def youtube_clip(key: str, of_video: bool = False) -> tuple[str, float | None] | None:
    """(YouTube id, start) of a manifest's path or file name, if it certainly has an id: one that looks random, or that is followed
    by a window. `thunderclap_2` has none.

    `of_video`: the name is known to be a video's.
    """
    stem = key_stem(composed(with_slashes(key)).rpartition("/")[2])
    clip = clip_of_name(stem)
    if clip and not of_video and _WHOLE.fullmatch(stem):
        return None  # `Dog [HD-Remaster]`
    if clip is None or of_video or _WINDOW.match(stem.partition(clip[0])[2]):
        return clip
    # Words followed by a start count as an id: a false group does less harm than a video split over groups.
    return clip if looks_random(clip[0]) and (clip[1] is not None or not like_words(clip[0])) else None


def clip_of_name(stem: str) -> tuple[str, float | None] | None:
    """(YouTube id, start in seconds or None) of a file name without extension; None if it has no id.

    Two integers at least 1000 apart are milliseconds (`{id}_30000_40000`), others seconds (`{id}_30_40`, `{id}_30.0_40.0`).
    """
    if stem.endswith("]"):
        if match := _PIECE.fullmatch(stem):
            return match["video"], float(match["start"]) if match["start"] else None
        return (match["video"], 0.0) if (match := _WHOLE.fullmatch(stem)) else None
    if (match := _CLIP_NAME.fullmatch(stem)) is None:
        return None
    if match["start"] is None:
        return match["video"], None
    start = float(match["start"])
    if match["end"] and "." not in match["start"] + match["end"] and float(match["end"]) - start >= 1000:
        start /= 1000
    return match["video"], start


class _Files(dict[Any, AudioFile | list[AudioFile]]):
    """Files by a common key. A list (90 bytes) is stored only for several files."""

    def add(self, key: Any, file: AudioFile) -> None:
        there = self.setdefault(key, file)
        if isinstance(there, list):
            there.append(file)
        elif there is not file:
            self[key] = [there, file]

    def of(self, key: Any) -> list[AudioFile]:
        there = self.get(key, [])
        return there if isinstance(there, list) else [there]


class FileIndex:
    """Recordings by path, name, stem and YouTube id, each in constant time."""

    def __init__(self, inventory: Inventory) -> None:
        self._files = inventory.audio
        self._paths, self._names, self._stems = _Files(), _Files(), _Files()
        self._bare = _Files()  # by YouTube id, names without a start
        timed: dict[str, list[tuple[float, bytes, AudioFile]]] = defaultdict(list)
        for file in inventory.audio:
            path = composed(path_text(file.raw_path))
            name = path.rpartition("/")[2]
            stem = file_stem(name)
            self._paths.add(path, file)
            self._names.add(name, file)
            self._stems.add(stem, file)
            if clip := clip_of_name(stem):
                video, start = clip
                if start is None:
                    self._bare.add(video, file)
                else:
                    timed[video].append((start, file.raw_path, file))
        # Sorted by start: one video may be thousands of clips.
        self._timed = {
            video: ([start for start, _, _ in clips], [file for _, _, file in clips])
            for video, clips in ((video, sorted(clips, key=lambda clip: clip[:2])) for video, clips in timed.items())
        }

    def _by(self, key: Callable[[AudioFile], Any]) -> _Files:
        """The files that have a key, by it."""
        files = _Files()
        for file in self._files:
            if own := key(file):
                files.add(own, file)
        return files

    @cached_property
    def _nested(self) -> _Files:
        """By last folder and stem; needed if many files have one name."""
        return self._by(lambda file: ("".join(_folders(file)[-1:]), file_stem(_name(file))))

    @cached_property
    def _versions(self) -> _Files:
        """Excerpts, smaller copies and microphones by the stem of what is listed."""
        return self._by(lambda file: whole_of(file_stem(_name(file))))

    @cached_property
    def _folded(self) -> _Files:
        """By stem in small letters, as Windows and macOS compare names. YouTube ids differ by case."""
        return self._by(lambda file: None if clip_of_name(stem := file_stem(_name(file))) else stem.casefold())

    @cached_property
    def _folder_names(self) -> set[str]:
        return {path_text(folder) for file in self._files for folder in file.folders}

    def resolve(self, key: str, base: bytes = b"", of_video: bool = False) -> Resolution:
        """Files that match a path (relative to the corpus or to `base`, the manifest's folder), a file name or an id.

        The first match in this order: the path; its name with this or any extension; an excerpt or smaller copy; the name in
        other case; the YouTube id (and start) in the name; the same without surrounding spaces or percent-encoding
        (`rain%20on.wav`). Of several with one name, those that agree best with the key's folders and extension. A key that leaves
        the corpus matches nothing. `of_video`: see youtube_clip.
        """
        return next((resolution for one in _spellings(key) if (resolution := self._resolve(one, base, of_video)).files), NOTHING)

    def _resolve(self, key: str, base: bytes, of_video: bool) -> Resolution:
        if key_problem(key):
            return NOTHING
        path = composed(with_slashes(key))
        places = [posixpath.normpath(posixpath.join(start, path)) for start in dict.fromkeys((composed(path_text(base)), ""))]
        for place in places:
            if files := self._paths.of(place):
                return Resolution(tuple(files), "path")
        if ".." in path.split("/"):
            return Resolution(tuple(files), "stem") if (files := self._at(places[0])) else NOTHING
        *folders, name = [part for part in path.split("/") if part not in ("", ".")] or [""]
        stem = key_stem(name)
        clip = youtube_clip(key, of_video)
        if files := _nearest(self._namesakes(name, stem, folders), folders, name):
            same = len(files) > 1 and clip is not None
            # The folders of another machine's path count only if the last one exists here.
            has_folder = not path.startswith("/") or bool(folders and folders[-1] in self._folder_names)
            stray = len(files) == 1 and clip is None and has_folder and not compatible(files[0], folders)
            return Resolution(tuple(files), "name" if _name(files[0]) == name else "stem", same, stray)
        return self.resolve_clip(*clip) if clip else NOTHING

    def at(self, key: str, base: bytes) -> list[AudioFile]:
        """The files at a key, as a path relative to the manifest's folder `base`, with this or any extension."""
        start = composed(path_text(base))
        places = (posixpath.normpath(posixpath.join(start, composed(with_slashes(one)))) for one in _spellings(key))
        return next((files for place in places if (files := self._at(place))), [])

    def has_name_of(self, key: str) -> bool:
        """Whether any file has the key's name, with this or any extension."""
        names = [composed(with_slashes(one)).rpartition("/")[2] for one in _spellings(key)]
        indices = self._names, self._stems, self._versions
        return any({name, key_stem(name)} & files.keys() for name in names for files in indices) or any(
            key_stem(name).casefold() in self._folded for name in names
        )

    def _at(self, path: str) -> list[AudioFile]:
        """The files at a path in the corpus, with this or any extension."""
        *folders, name = path.split("/")
        return self._paths.of(path) or [
            file for file in self._namesakes(name, key_stem(name), folders) if _folders(file) == folders
        ]

    def _namesakes(self, name: str, stem: str, folders: list[str]) -> list[AudioFile]:
        """Files of this name with any extension, else excerpts; beyond MAX_FILES, those in the key's last folder or the root."""
        stem = name if name in self._stems else stem
        files = dict.fromkeys(islice(chain(self._names.of(name), self._stems.of(stem)), MAX_FILES + 1))
        if len(files) > MAX_FILES and folders:
            near = chain(self._nested.of((folders[-1], stem)), self._nested.of(("", stem)))
            files = dict.fromkeys(islice(near, MAX_FILES)) or files
        return list(files)[:MAX_FILES] or (self._versions.of(stem) or self._folded.of(stem.casefold()))[:MAX_FILES]

    def resolve_clip(self, video: str, start: float | None = None) -> Resolution:
        """Files of a YouTube video that start at `start`, else those without a start; all if `start` is None."""
        starts, files = self._timed.get(video, NO_FILES)
        bare = self._bare.of(video)
        if start is None:
            return _resolution(bare + files[:MAX_FILES], same_clip=not (bare and files) and len(set(starts[:1] + starts[-1:])) < 2)
        first, end = bisect_left(starts, start - TOLERANCE), bisect_right(starts, start + TOLERANCE)
        end = min(end, first + 50 * MAX_FILES)
        distances = [abs(other - start) for other in starts[first:end]]
        closest = min(distances, default=0.0)
        near = [file for distance, file in zip(distances, files[first:end], strict=True) if distance == closest]
        return _resolution(near or bare, same_clip=True)

    def resolve_inside(self, video: str, start: float) -> Resolution:
        """The file of a YouTube video with the last start before `start`; it contains that second if it is long enough."""
        starts, files = self._timed.get(video, NO_FILES)
        end = bisect_right(starts, start)
        first = bisect_left(starts, starts[end - 1]) if end else 0
        return replace(_resolution(files[first : min(end, first + MAX_FILES)], same_clip=True), match="inside")


def _resolution(files: list[AudioFile], same_clip: bool) -> Resolution:
    return Resolution(tuple(files[:MAX_FILES]), "youtube id", same_clip) if files else NOTHING


def looks_random(video: str) -> bool:
    """Whether eleven characters look like a random YouTube id, not a word; 99.1 % of AudioCaps' ids do."""
    mixed = any(map(str.isupper, video)) and any(map(str.islower, video))
    return mixed and not re.fullmatch(r"[A-Z][a-z_-]+", video)


_WORDS = re.compile(r"[A-Za-z][a-z]+(?:[A-Z][a-z]+|[_-]+[A-Za-z][a-z]+)*[_-]*[0-9]*")


def like_words(video: str) -> bool:
    """Whether eleven characters look like words: `RainAtNight`, `GlassBreak1`, `Dog_bark_01`; 0.6 % of AudioCaps' ids do."""
    return _WORDS.fullmatch(video) is not None


def file_stem(name: str) -> str:
    """A file name without extension; decimals (`…_80.000_90.000`) are not an extension."""
    return _EXTENSION.sub("", name) or name


def whole_of(stem: str) -> str | None:
    """What is listed of a file: `12` of Song Describer's `12.2min`, MTG-Jamendo's `12.low`; `p1_2` of VCTK's `p1_2_mic1`; `song` of
    MagnaTagATune's `song-30-59`."""
    version = re.fullmatch(r"(\d+)\.(?:\d+min|low)|(.+)_mic\d|(.+)-(\d{1,4})-(\d{1,4})", stem)
    if version and version[3] and int(version[5]) - int(version[4]) != 29:
        return None
    return version and (version[1] or version[2] or version[3])


def key_stem(name: str) -> str:
    """A manifest's file name without its audio or video extension."""
    return _MEDIA.sub("", name) or name


def clip_of_file(file: AudioFile) -> tuple[str, float | None] | None:
    """(YouTube id, start) in the name of a file."""
    return clip_of_name(file_stem(path_text(file.name)))


def folders_of_key(key: str) -> list[str]:
    """The folders of a key and its name without extension."""
    *folders, name = [part for part in composed(with_slashes(unquote(key).strip())).split("/") if part not in ("", ".")] or [""]
    return [*folders, key_stem(name)]


def _spellings(key: str) -> Iterable[str]:
    """A key as written, then without surrounding spaces and percent-encoding (`rain%20on.wav`)."""
    return dict.fromkeys((key, unquote(key).strip()))


def with_slashes(key: str) -> str:
    """A path with `/`, also if written on Windows."""
    drive = key[1:2] == ":" and re.match(r"[A-Za-z]:[\\/]", key)
    if not drive and ("\\" not in key or "/" in key):
        return key
    path = re.sub(r"^[A-Za-z]:", "", key).replace("\\", "/")
    return re.sub(r"^/+", "/", path)


def _folders(file: AudioFile) -> list[str]:
    return [path_text(folder) for folder in file.folders]


def shared_folders(file: AudioFile, folders: Sequence[str]) -> int:
    """How many of the last folders of file and key are the same."""
    pairs = zip(reversed(_folders(file)), reversed(folders), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _nearest(files: list[AudioFile], folders: Sequence[str], name: str) -> list[AudioFile]:
    """The files that agree best with a key: by compatible folders, then name and extension, then number of shared folders."""
    if len(files) < 2:
        return files
    ranks = [(compatible(file, folders), _name(file) == name, shared_folders(file, folders)) for file in files]
    return [file for file, rank in zip(files, ranks, strict=True) if rank == max(ranks)]


def _name(file: AudioFile) -> str:
    return composed(path_text(file.name))


def compatible(file: AudioFile, folders: Sequence[str]) -> bool:
    """Whether key and file agree in all folders that both have."""
    return shared_folders(file, folders) == min(len(file.folders), len(folders))
