"""What a source says of the terms of a recording, and which terms hold if several sources say something.

Creative Commons' and public domain licences are named by SPDX ids (https://spdx.org/licenses).
"""

import functools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UNKNOWN = "unknown"
AI_TERMS = ("allowed", "with_disclosure", "refused", UNKNOWN)  # from the least strict
MAX_CELL = 4096  # characters
# Names of columns, keys and tags in corpora; the first with a value is used.
LICENCE = ("licence", "license", "licence_url", "license_url", "licenseurl", "license_name", "license_ccurl")
COPYRIGHT = ("copyright", "rights")
CREATOR = ("creator", "author", "artist", "artist_name", "uploader", "username", "manufacturer", "recordist")
SOURCE = ("source_url", "sound_link", "webpage_url", "href", "url", "link", "freesound_url", "download_link")
_KINDS = {"licence": LICENCE, "copyright": COPYRIGHT, "creator": CREATOR, "source_url": SOURCE, "ai_terms": ("ai_terms",)}
_RANKS = {name: (rank, kind) for kind, names in _KINDS.items() for rank, name in enumerate(names)}  # the first of a kind is used
NAMES = frozenset(_RANKS)
NOTHING = frozenset(("", "-", "?", "n/a", "na", "nan", "none", "null", "other", "not found", "unclear", UNKNOWN))
_URL = re.compile(r"https?://[^\s<>\"]+", re.IGNORECASE)
_ON_FREESOUND = re.compile(r"/people/[^/\s<>\"]+/sounds/\d+/?")  # WavCaps has paths
_RESERVED = re.compile(r"\brights reserved\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Statement:
    """The terms that one source states; None: not stated."""

    found: str  # the source: a file, and line or key, or what else
    licence: str | None = None  # `unknown`: stated, but not usable, so that no less specific source is asked
    creator: str | None = None
    source_url: str | None = None
    ai_terms: str | None = None


@dataclass
class Reader:
    """Makes statements of values from outside."""

    too_long: list[str] = field(default_factory=list)  # places of texts left out
    unclear_ai_terms: list[str] = field(default_factory=list)

    def of(self, values: Mapping[str, Any], found: str) -> Statement | None:
        """What the columns, keys or tags of one recording state; None if nothing."""
        texts = about_terms(values)
        said: dict[str, str] = {}
        named: list[str] = []
        other = False
        for name in sorted(texts, key=lambda name: _RANKS[name][0]):
            text, (_, kind) = texts[name], _RANKS[name]
            if len(text) > MAX_CELL:
                self.too_long.append(found)
                if kind in ("licence", "copyright"):
                    named.append(UNKNOWN)
            elif (text := clean(text)).lower() in NOTHING:
                other |= kind == "licence" and text.lower() in ("other", "unclear")
            elif kind in ("licence", "copyright"):
                if licence := spdx(text) if kind == "licence" else of_copyright(text):
                    named.append(sys.intern(licence))
            elif kind == "source_url":
                if _ON_FREESOUND.fullmatch(text):
                    text = f"https://freesound.org{text}"
                if _URL.fullmatch(text):
                    said.setdefault(kind, sys.intern(text))
            elif kind != "ai_terms":
                said.setdefault(kind, sys.intern(text))
            elif text.lower() in AI_TERMS:
                said[kind] = sys.intern(text.lower())
            else:
                self.unclear_ai_terms.append(f"{found}: {text[:40]!r}")
        if named or other:
            said["licence"] = strictest(named or [UNKNOWN])
        return Statement(found, **said) if said else None


def about_terms(values: Mapping[str, Any]) -> dict[str, str]:
    """Texts that a Reader looks at, by name in lower case, cut if too long; of a list the strictest licence, or all creators."""
    found = {}
    for name, value in values.items():
        if (name := name.strip().lower()) in _RANKS:
            if isinstance(value, list):
                value = _of_list(_RANKS[name][1], [one for one in value if isinstance(one, str)])
            if isinstance(value, str):
                found[name] = value[: MAX_CELL + 1]
    return found


def _of_list(kind: str, texts: list[str]) -> str | None:
    if len(texts) < 2:
        return texts[0] if texts else None
    if kind == "licence":
        long = [text for text in texts if len(text) > MAX_CELL]
        return long[0] if long else strictest(map(spdx, map(clean, texts)))
    if kind == "ai_terms":
        return max((clean(text).lower() for text in texts), key=lambda text: AI_TERMS.index(text) if text in AI_TERMS else -1)
    return "; ".join(texts) if kind == "creator" else " / ".join(texts) if kind == "copyright" else None


def clean(text: str) -> str:
    """A text as one line of printable characters."""
    printable = text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())


@functools.lru_cache(maxsize=4096)
def of_copyright(text: str) -> str | None:
    """The licence in a notice, or the notice if it reserves rights; `unknown` for several. A name and a year are no licence."""
    named = named_in(text)
    if len(named) == 1:
        return named[0]
    return text if _RESERVED.search(text) else UNKNOWN if named else None


def combine(levels: Iterable[Sequence[Statement]]) -> dict[str, str | None]:
    """The terms (columns manifest.TERMS) by statements of several levels, the most specific first.

    Each column is that of the first level that states it; null if none does. In one level, the strictest licence and AI terms hold
    (an unclear licence, `unknown`, is stricter than Creative Commons'), all creators are named, and the first address is taken.
    `terms_found` has the source; of several, each with its columns, and what it says if another contradicts it:
    `creator, source_url: a/list.csv:2; licence: a/LICENSE`.
    """
    row: dict[str, str | None] = dict.fromkeys(("licence", "creator", "source_url", "ai_terms"))
    sources: dict[str, tuple[list[str], list[str]]] = {}  # → its columns; what it says, if another contradicts it
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
                row[column] = strictest(values)
                contradict = len(distinct(values)) > 1
            elif column == "ai_terms":
                row[column] = max(values, key=AI_TERMS.index)
                contradict = len(values) > 1
            else:
                values = values if column == "creator" else values[:1]
                row[column], contradict = "; ".join(values)[:MAX_CELL], False
            for value in values:
                columns, said = sources.setdefault(first[value].found, ([], []))
                if column not in columns:  # a source may state several values in one level
                    columns.append(column)
                if contradict:
                    said.append(value if len(value) <= 80 else f"{value[:79]}…")
    parts = [
        (f"{', '.join(columns)}: " if len(sources) > 1 else "") + source + (f" ({', '.join(said)})" if said else "")
        for source, (columns, said) in sources.items()
    ]
    return {**row, "terms_found": "; ".join(parts)[:MAX_CELL] or None}


_GAP = r"[\s_/\-\u2010-\u2015\u2212]{0,3}"  # bounded, so that no text takes long
_CC = r"(?:\bcc|\bcreative\s?commons(?:\.org/licen[cs]es)?)"
_ATTRIBUTION = re.compile(
    rf"{_CC}{_GAP}(?:by|attribution)(?![a-z])"
    rf"(?:{_GAP}(?:(?P<nc>nc|non{_GAP}commercial)|(?P<sa>sa|share{_GAP}alike)"
    rf"|(?P<nd>nd|no{_GAP}deriv(?:ative)?s?(?:{_GAP}works)?))(?![a-z])){{0,3}}"
    rf"(?:{_GAP}v?(?P<version>[1-4]\.[015])(?!\.?\d)(?:/(?P<port>[a-z]{{2,3}}|scotland)(?![a-z]))?)?",
    re.IGNORECASE,
)
_OTHERS = {
    "CC0-1.0": rf"(?:\bcc|\bcreative\s?commons){_GAP}(?:0|zero)(?!\.?\d|[a-z])(?:{_GAP}v?1\.0)?"
    r"|creativecommons\.org/publicdomain/zero/1\.0",
    "CC-PDM-1.0": rf"\bcc-pdm-1\.0|\bpublic{_GAP}domain{_GAP}mark(?:{_GAP}1\.0)?|creativecommons\.org/publicdomain/mark/1\.0",
    "PDDL-1.0": rf"\bpddl(?:{_GAP}v?1\.0)?|\bopen data commons public domain dedication and licen[cs]e",
    "Unlicense": r"\bunlicense\b|\bfree and unencumbered software released into the public domain",
}
_OTHER = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _OTHERS.items()}
# The texts of Creative Commons' licences are themselves under CC0, and say so.
_OF_LICENCE_TEXTS = re.compile(
    r"creative commons public licenses is dedicated to the public domain under the \W?CC0 "
    r"public domain dedication(?:\W{1,4}https?://creativecommons\.org/publicdomain/zero/1\.0)?",
    re.IGNORECASE,
)
_FILLERS = frozenset(
    "http https www the license licence licensed under international unported generic universal public domain dedication deed en "
    "legalcode reuse allowed".split()
)
NO_CONDITIONS = ("CC0-1.0", "CC-PDM-1.0", "PDDL-1.0", "Unlicense")
_ID = re.compile(
    r"CC-BY(-NC)?(-SA)?(-ND)?(-[1-4]\.[015](-[A-Z]{2,3}|-SCOTLAND)?)?|CC0-1\.0|CC-PDM-1\.0|(?!CC)[A-Za-z0-9][A-Za-z0-9.+-]*"
)


def is_id(licence: str) -> bool:
    """Whether a licence is written as an SPDX id, without further words, which may be conditions."""
    return bool(_ID.fullmatch(licence))


@functools.lru_cache(maxsize=4096)
def spdx(text: str) -> str:
    """The SPDX id of a licence in a common spelling, without a version if it has none (`CC-BY`); any other text as it is."""
    full = f"Creative Commons {text}" if text[:11].lower() == "attribution" else text
    ids, rest = _ids(full)
    return ids[0] if len(ids) == 1 and not set(re.findall(r"\w+", rest.lower())) - _FILLERS else text


def named_in(text: str) -> list[str]:
    """The SPDX ids of the licences that a text (such as a LICENSE file) names, sorted."""
    return _ids(_OF_LICENCE_TEXTS.sub(" ", " ".join(text.split())))[0]


def without_names(text: str) -> str:
    """A text without the names of licences in it, on one line."""
    return _ids(" ".join(text.split()))[1]


def _ids(text: str) -> tuple[list[str], str]:
    """The ids of all licences named in a text, and the text without them."""
    found = set()

    def attribution(match: re.Match[str]) -> str:
        parts = ["CC-BY", *(part.upper() for part in ("nc", "sa", "nd") if match[part])]
        found.add("-".join([*parts, *filter(None, (match["version"], (match["port"] or "").upper()))]))
        return " "

    text = _ATTRIBUTION.sub(attribution, text)
    for name, pattern in _OTHER.items():
        text, count = pattern.subn(" ", text)
        found |= {name} if count else set()
    return sorted(distinct(found)), text


def distinct(found: Iterable[str]) -> list[str]:
    """The licences of several that are not the same: `CC-BY` beside `CC-BY-4.0` is."""
    found = list(dict.fromkeys(found))
    return [one for one in found if not any(other.startswith(f"{one}-") and other[len(one) + 1 :][:1].isdigit() for other in found)]


def strictest(found: Iterable[str]) -> str:
    """The strictest licence, the first of several: others than Creative Commons', which may have any conditions, then `unknown`."""
    found = distinct(found)
    return max(found, key=_strictness) if len(found) > 1 else found[0]


def _strictness(licence: str) -> int:
    if licence in NO_CONDITIONS:
        return 0
    if licence == "unknown":
        return 8
    parts = licence.split("-")
    weights = {"SA": 1, "ND": 2, "NC": 4}
    return 1 + sum(weights.get(part, 0) for part in parts) if parts[:2] == ["CC", "BY"] and is_id(licence) else 9
