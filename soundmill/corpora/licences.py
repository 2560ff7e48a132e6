"""Creative Commons' and public domain licences in texts, as SPDX ids (https://spdx.org/licenses)."""

import re
from collections.abc import Iterable

_GAP = r"[\s_/-]{0,3}"  # bounded, so that no text takes long
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
    if len(found) == 1:
        return found
    return [one for one in found if not any(other.startswith(f"{one}-") and other[len(one) + 1 :][:1].isdigit() for other in found)]


def strictest(found: Iterable[str]) -> str:
    """The licence with the most conditions; the first of several. Any but Creative Commons' may have any conditions.

    One that is `unknown` comes after others with any conditions, which are at least written.
    """
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
