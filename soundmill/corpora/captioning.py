"""Captions of recordings that have none, from what is known of them: labels, tags in the file, names of file and folder, tempo,
key, zero-shot tags."""

import os
import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from soundmill.audio.tempo import NAMED
from soundmill.manifest import CONTAINERS, FILE_TAGS, SPLIT_NAMES, unescape_path

FIELDS = ("label", *FILE_TAGS, "file", "folder", "tempo", "key", "tags")
# `Am`, `C#min`, `F major`; a note alone may be a word.
KEY = re.compile(r"(?<![A-Za-z#])(?P<note>[A-G])(?P<sign>#|b)?[ _-]?(?P<mode>[Mm]aj(?:or)?|[Mm]in(?:or)?|m)(?![A-Za-z])")
SIGNS = {"#": " sharp", "b": " flat", None: ""}
JOINED = re.compile(r"[A-Za-z]?[a-z]{2,}(?:[A-Z][a-z]{2,})+")  # HeavyKick; a random id has other letters


def fields_of(template: str) -> list[str]:
    """The names in braces; ValueError if there is none, or another."""
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{template!r}: {error}") from None
    if not parts or any(name not in FIELDS or form or conversion for _, name, form, conversion in parts):
        raise ValueError(
            f"{template!r} must contain {', '.join(f'{{{name}}}' for name in FIELDS)} or several of them, and no others"
        )
    return [name for _, name, _, _ in parts]


def choose(templates: Sequence[str], facts: Mapping[str, str]) -> str | None:
    """The first template all of whose fields are known; None if there is none. Its caption is `template.format_map(facts)`."""
    return next((template for template in templates if facts.keys() >= set(fields_of(template))), None)


def facts_of(recording: Mapping[str, Any], labels: Sequence[str], tags: Sequence[str] = ()) -> dict[str, str]:
    """Fields by name, without the unknown ones, of a row of manifest.RECORDINGS (`path`, perhaps `file_tags`); its `bpm`, if it has
    that key, is the tempo, else one in the name is."""
    *folders, file = unescape_path(recording["path"]).decode("utf-8", "replace").split("/")
    name = os.path.splitext(file)[0]
    named = NAMED.search(name)
    tempo = recording["bpm"] if "bpm" in recording else named and float(named[1] or named[2])
    found = {
        "label": join_words(labels) if labels else None,
        **(recording.get("file_tags") or {}),
        "file": words_of(name),
        "folder": next(filter(None, map(_folder_words, reversed(folders))), None),
        "tempo": f"{tempo:.4g}" if tempo else None,
        "key": key_of(name),
        "tags": join_words(tags) if tags else None,
    }
    return {field: value for field, value in found.items() if value}


def words_of(name: str) -> str | None:
    """The words in a name, without tempo, key and numbers; None if it has none, or looks like an id."""
    words = []
    key = _key(name)
    rest = name.replace(key[0], " ") if key else name
    for part in re.split(r"[\W_]+", NAMED.sub(" ", rest)):
        word = part.rstrip("0123456789")
        if word.lower() != word and word[1:].lower() != word[1:] and word.upper() != word and not JOINED.fullmatch(word):
            return None
        if word and not word.isalpha() and len(part) > 3:  # not `3d`
            return None
        words += re.sub(r"(?<=[a-z])(?=[A-Z])", " ", word).lower().split() if len(word) > 1 else []
    return " ".join(words) or None


def _folder_words(name: str) -> str | None:
    is_class = name.lower() not in SPLIT_NAMES and name.lower().encode() not in CONTAINERS
    return words_of(name) if is_class else None


def key_of(name: str) -> str | None:
    """The musical key in a name: `A minor`, `C sharp major`. `m` alone counts only between `_`, `-` and the ends."""
    if (match := _key(name)) is None:
        return None
    return f"{match['note']}{SIGNS[match['sign']]} {'major' if match['mode'].lower().startswith('maj') else 'minor'}"


def _key(name: str) -> re.Match[str] | None:
    for match in KEY.finditer(name):
        around = name[max(0, match.start() - 1) : match.start()] + name[match.end() : match.end() + 1]
        if match["mode"] != "m" or not re.search(r"[^_-]", around):
            return match
    return None


def join_words(words: Sequence[str]) -> str:
    """`rain`, `rain and wind`, `rain, wind and bell`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
