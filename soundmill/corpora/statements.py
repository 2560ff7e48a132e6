"""What a source says of the terms of a recording, and which terms hold if several sources say something."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soundmill.corpora import licences

UNKNOWN = "unknown"
AI_TERMS = ("allowed", "with_disclosure", "refused", UNKNOWN)  # from the least strict
MAX_CELL = 4096  # characters
# Names of columns, keys and tags in corpora; the first with a value is used.
LICENCE = ("licence", "license", "licence_url", "license_url", "licenseurl", "license_name", "license_ccurl")
COPYRIGHT = ("copyright", "rights")
CREATOR = ("creator", "author", "artist", "artist_name", "uploader", "username", "manufacturer", "recordist")
SOURCE = ("source_url", "sound_link", "webpage_url", "href", "url", "link", "freesound_url", "download_link")
NAMES = frozenset((*LICENCE, *COPYRIGHT, *CREATOR, *SOURCE, "ai_terms"))
_NOTHING = frozenset(("", "-", "?", "n/a", "na", "nan", "none", "null", "other", "not found", UNKNOWN))
_URL = re.compile(r"https?://[^\s<>\"]+", re.IGNORECASE)
_ON_FREESOUND = re.compile(r"/people/[^/\s<>\"]+/sounds/\d+/?")  # WavCaps has paths
_RESERVED = re.compile(r"\brights reserved\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Statement:
    """The terms that one source states; None: not stated."""

    found: str  # the source: a file, and line or key, or what else
    licence: str | None = None
    creator: str | None = None
    source_url: str | None = None
    ai_terms: str | None = None


@dataclass
class Reader:
    """Makes statements of values from outside."""

    too_long: int = 0  # texts left out
    first_too_long: str = ""
    _known: dict[str, str] = field(default_factory=dict)  # one object for each text

    def of(self, values: Mapping[str, Any], found: str) -> Statement | None:
        """What the columns, keys or tags of one recording state; None if nothing."""
        values = about_terms(values)
        named = [licences.spdx(text) for text in self._texts(values, LICENCE, found)]
        named += [text for one in self._texts(values, COPYRIGHT, found) if (text := of_copyright(one))]
        creators = self._texts(values, CREATOR, found)
        links = [text if text[0] != "/" else f"https://freesound.org{text}" for text in self._texts(values, SOURCE, found)]
        ai_terms = [text for text in self._texts(values, ("ai_terms",), found) if text in AI_TERMS]
        licence = licences.strictest(named) if named else None
        url = next((text for text in links if _URL.fullmatch(text)), None)
        if not (licence or creators or url or ai_terms):
            return None
        return Statement(found, self.once(licence), creators[0] if creators else None, url, ai_terms[0] if ai_terms else None)

    def once(self, text: str | None) -> str | None:
        return text if text is None else self._known.setdefault(text, text)

    def _texts(self, values: Mapping[str, Any], names: Sequence[str], found: str) -> list[str]:
        """The texts under these names that are more than a placeholder."""
        texts = []
        for name in names:
            if not (value := values.get(name)):
                continue
            if len(value) > MAX_CELL:
                self.too_long += 1
                self.first_too_long = self.first_too_long or found
            elif (text := clean(value)) and text.lower() not in _NOTHING:
                if names is not SOURCE or text[0] != "/" or _ON_FREESOUND.fullmatch(text):
                    texts.append(self.once(text))
        return texts


def about_terms(values: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of a row that a Reader looks at, names in lower case; long ones are cut, so that it still leaves them out."""
    named = ((str(name).strip().lower(), value) for name, value in values.items())
    named = ((name, value[0] if isinstance(value, list) and len(value) == 1 else value) for name, value in named)
    return {name: value[: MAX_CELL + 1] for name, value in named if name in NAMES and isinstance(value, str)}


def clean(text: str) -> str:
    """A text as one line of printable characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def of_copyright(text: str) -> str | None:
    """The licence that a copyright notice names, or the notice if it reserves rights. A name and a year are no licence."""
    named = licences.named_in(text)
    return named[0] if len(named) == 1 else text if _RESERVED.search(text) else None


def combine(levels: Iterable[Sequence[Statement]]) -> dict[str, str | None]:
    """The terms (columns manifest.TERMS) by statements of several levels, the most specific first.

    Each column is that of the first level that states it. In one level, the strictest licence and AI terms hold, all creators are
    named, and the first address is taken. `terms_found` has the sources, and what each says if they contradict each other.
    """
    row: dict[str, str | None] = dict.fromkeys(("licence", "creator", "source_url", "ai_terms"))
    sources: dict[str, list[str]] = {}  # → what it says, if another contradicts it
    for level in levels:
        for column in [column for column, value in row.items() if value is None]:
            first: dict[str, Statement] = {}  # that has this value
            for one in level:
                if value := getattr(one, column):
                    first.setdefault(value, one)
            if not first:
                continue
            values = list(first)
            if column == "licence":
                row[column] = licences.strictest(values)
                contradict = len(licences.distinct(values)) > 1
            elif column == "ai_terms":
                row[column] = max(values, key=AI_TERMS.index)
                contradict = len(values) > 1
            else:
                values = values if column == "creator" else values[:1]
                row[column], contradict = "; ".join(values)[:MAX_CELL], False
            for value in values:
                said = sources.setdefault(first[value].found, [])
                if contradict:
                    said.append(value if len(value) <= 80 else f"{value[:79]}…")
    found = "; ".join(f"{source} ({', '.join(said)})" if said else source for source, said in sources.items())
    return {**row, "terms_found": found[:MAX_CELL] or None}
