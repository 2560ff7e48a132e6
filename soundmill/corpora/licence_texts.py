"""Licences that texts beside recordings name: licence files, a readme, credits, the card of a data set."""

import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAMLError

from soundmill.corpora import statements
from soundmill.corpora.inventory import LICENCES, Inventory
from soundmill.corpora.metadata import read_head
from soundmill.corpora.statements import UNKNOWN, Statement, named_in
from soundmill.corpora.tables import CorpusTables
from soundmill.manifest import escape_path
from soundmill.params import parse_yaml

_LICENCE_FILE = re.compile(rb"(licen[cs]e|copying)([-_. ].*)?", re.IGNORECASE)
_ABOUT = re.compile(rb"(.*[-_. ])?(readme|credits|attribution)([-_. ].*)?", re.IGNORECASE)
_TABLE = (b".csv", b".tsv", b".json", b".jsonl")
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n\s*[-*|#]\s*")
_HEADING = re.compile(r"^(#+ [^\n]*)\n\s*", re.MULTILINE)  # belongs to the sentence below it
_LICENSES = re.compile(r"licen[cs]|public domain|released|dedicated|available under|shared under", re.IGNORECASE)
# Words that make a text unclear: other licences, exceptions.
_OTHER = re.compile(
    r"\b(MIT|BSD|[AL]?GPL\w*|Apache|MPL|proprietary|copyrighted|all rights reserved|depends|individual(ly)?|various|different"
    r"|some of|non[- ]?commercial(ly)? (use|purposes?)|(academic|research|educational) (use|purposes?)"
    r"|each (clip|file|sound|track|recording))\b",
    re.IGNORECASE,
)
_RESERVED = re.compile(r"(?<!no )(?<!some )\brights reserved\b|\bproprietary\b", re.IGNORECASE)
# The end of a licence's name: elsewhere NC, SA and ND are places, companies, other languages.
_AFTER = r"(?:\b(?:cc\W?by|attribution|international|unported|generic|nc|sa|nd)|\d\.\d)[^\w.]{1,4}"
_CONDITIONS = {
    "-NC": re.compile(rf"{_AFTER}nc\b|\bnon\W?commercial(ly)?\b", re.IGNORECASE),
    "-SA": re.compile(rf"{_AFTER}sa\b|\bshare\W{{0,3}}alike\b", re.IGNORECASE),
    "-ND": re.compile(rf"{_AFTER}nd\b|\bno\W{{0,3}}deriv\w*", re.IGNORECASE),
}
_FOR_AI = re.compile(
    r"\b(AI|artificial intelligence|machine[- ]learning|generative)\b"
    r"|\b(no|not|never|without|forbid\w*|prohibit\w*|permission|consent)\b[^.!?]{0,80}\btrain(ing|ed)?\b"
    r"|\btrain(ing|ed)?\b[^.!?]{0,80}\b(not|forbid\w*|prohibit\w*|requires?|only|permission|consent)\b",
    re.IGNORECASE,
)
SHORT = 2000  # characters of a licence file that is not the text of a licence
_EXCEPT = re.compile(
    r"\b(not|isn't|aren't|no longer|except|unless|unlike|other than|was|were|formerly|metadata|annotations?|captions?|code)\b",
    re.IGNORECASE,
)


def read_texts(tables: CorpusTables, inventory: Inventory) -> dict[bytes, list[Statement]]:
    """Statements by folder that has such texts. Texts of one kind that name several licences state none, and are remarked.

    The licence is `unknown` if a folder has a licence file or a text about licences, but nothing that is clear.
    """
    named: dict[bytes, dict[bytes, dict[str, str]]] = {}  # folder → kind → licence → file that names it first
    first: dict[bytes, str] = {}  # folder → file
    for path in sorted(inventory.metadata):
        folder, name = os.path.split(path)
        if name.lower().endswith(_TABLE) or path == LICENCES:
            continue
        is_licence = bool(_LICENCE_FILE.fullmatch(name))
        if not is_licence and not _ABOUT.fullmatch(name):
            continue
        text = read_head(inventory, path).decode("utf-8", "replace")
        found = named_by_licence(text) if is_licence else named_by(text)
        names_one = bool(named_in(text))
        if names_one and not found:
            what = "it names a licence, but not without conditions or exceptions, so none is taken"
            tables.remarks.append(f"{escape_path(path)}: {what}")
        # What is unclear blocks the texts of folders above.
        if is_licence or found or names_one or _RESERVED.search(text) or _of_card(text) == []:
            first.setdefault(folder, escape_path(path))
            kind = b"licence" if is_licence else b"about"
            of_kind = named.setdefault(folder, {}).setdefault(kind, {})
            for licence in found:
                of_kind.setdefault(licence, escape_path(path))
    stated: dict[bytes, list[Statement]] = {}
    for folder, kinds in named.items():
        stated[folder] = []
        for kind, found in sorted(kinds.items(), reverse=True):
            if len(found) == 1:
                ((licence, file),) = found.items()
                stated[folder].append(Statement(file, sys.intern(licence)))
            elif found:
                where, what = escape_path(folder) or "the corpus", "licence files" if kind == b"licence" else "texts"
                tables.remarks.append(
                    f"{where}: its {what} name several licences ({', '.join(sorted(found))}), so none is taken; "
                    f"state the licence of each recording in {LICENCES.decode()}"
                )
        if not stated[folder]:
            stated[folder] = [Statement(first[folder], UNKNOWN)]
    return stated


def named_by(text: str) -> list[str]:
    """The licence in the front matter of a data set's card, or the one that a readme clearly names; several if it names several.

    Clearly: no other licence or condition is mentioned, and each sentence with the licence says without exception that it applies.
    """
    if (stated := _of_card(text)) is not None:
        return stated
    found = named_in(text)
    if len(found) != 1:
        return found
    with_headings = _HEADING.sub(r"\1: ", text)
    sentences = [sentence for sentence in _SENTENCE.split(with_headings) if named_in(sentence)]
    clear = bool(sentences) and any(map(_LICENSES.search, sentences)) and not any(map(_EXCEPT.search, sentences))
    return found if clear and not _OTHER.search(text) and not _adds_conditions(text, found[0]) else []


def named_by_licence(text: str) -> list[str]:
    """The licences that a licence file names; none if it is short and has reserved rights or conditions, or is about metadata."""
    found = named_in(text)
    short = len(text) < SHORT and len(found) == 1
    limited = _RESERVED.search(text) or re.search(r"\bmetadata\b", text, re.IGNORECASE)
    unclear = short and (limited or _adds_conditions(text, found[0]))
    return [] if unclear else found


def _adds_conditions(text: str, licence: str) -> bool:
    """Whether a text has conditions beside those of its licence: of other licences, no training of models."""
    others = any(part not in licence and words.search(text) for part, words in _CONDITIONS.items())
    return others or bool(_FOR_AI.search(statements.without_names(text)))


def _of_card(text: str) -> list[str] | None:
    """The licences in a card's front matter, by `license` and, for others than the hub lists, `license_name`.

    Empty if one is `other` without a name; None if there is no such text, or it states no licence.
    """
    if not (match := _FRONT_MATTER.match(text)):
        return None
    try:
        card: Any = parse_yaml(match[1])
    except (YAMLError, ValueError):
        return None
    if not isinstance(card, Mapping):
        return None
    stated = card.get("license", card.get("licence"))
    stated = stated if isinstance(stated, list) else [stated]
    if other := any(isinstance(one, str) and one.lower() == "other" for one in stated):
        stated = [card.get("license_name")]
    texts = [one for one in stated if isinstance(one, str) and 0 < len(one) <= 100 and one.lower() not in ("other", "unknown")]
    return [statements.spdx(one) for one in texts] or ([] if other else None)
