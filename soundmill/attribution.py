"""Whose sounds a checkpoint was trained on, under which terms: the table that goes with it, and what follows from it.

The table is made from the lists of training clips inside the checkpoint (manifest.TRAINED_ON) and the terms of the recordings.
It is not in the checkpoint, whose weights do not depend on the spelling of a name. In a published or registered model the table is
in the directory above the checkpoint; in a project it is in data/attribution/FAMILY.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from soundmill import csv_files, disk, manifest, shards
from soundmill.errors import UserError

UNKNOWN = "unknown"  # nothing is stated
UNCLEAR = "unclear"  # a licence is stated, but not which; `unknown` in manifest.RECORDINGS, where null is what is not stated
WHOLE = "model"  # what a checkpoint's own training is called, beside its parts
EARLIER = "earlier training"
CELL = 500  # characters of a cell
# Consequences of Creative Commons' licences, by a part of their SPDX id.
FACTS = {
    "BY": "attribution: the creators must be named",
    "SA": "share-alike: adaptations must have the same licence",
    "NC": "non-commercial: no commercial use",
    "ND": "no derivatives: adaptations must not be shared",
}
CC_ID = re.compile(r"CC-BY(-NC)?(-SA)?(-ND)?(-[1-4]\.[015](-[A-Z]{2,3}|-SCOTLAND)?)?")
NO_CONDITIONS = ("CC0-1.0", "CC-PDM-1.0", "PDDL-1.0", "Unlicense")


@dataclass(frozen=True)
class Credit:
    """One recording that weights were trained on; `recording` "": all that trained the parts in `used_for` is unknown."""

    recording: str  # its path in the corpus
    creator: str
    licence: str  # SPDX id, another name, `unknown` or `unclear`
    ai_terms: str  # allowed | with_disclosure | refused | unknown
    url: str
    clips: int
    seconds: float  # of the recording, each stretch counted once
    in_mixes: int  # mixes that contain a clip of it
    used_for: str  # `model`, its parts, and `earlier training`, separated by `; `


COLUMNS = [column.name for column in fields(Credit)]


@dataclass
class _Use:
    source: str
    clips: set[str] = field(default_factory=set)
    spans: set[tuple[float, float]] = field(default_factory=set)
    mixes: set[str] = field(default_factory=set)
    used_for: set[str] = field(default_factory=set)


def credits_of(checkpoint: Path, recordings: Path | None) -> list[Credit]:
    """Credits of a checkpoint, its parts and earlier trainings, as published beside it, else by `recordings` (None: unknown)."""
    if published := manifest.attribution_of(checkpoint):
        return read(published)
    parts = sorted(path.parent for path in checkpoint.rglob("config.json"))
    if not parts:
        raise UserError(f"{checkpoint}: not a checkpoint (no config.json)")
    uses: dict[tuple[str, bool], _Use] = {}
    of_others: list[Credit] = []
    unknown: list[str] = []
    for part in parts:
        name = WHOLE if part == checkpoint else part.relative_to(checkpoint).as_posix()
        table = part / manifest.TRAINED_ON_FILE
        rows = list(shards.read_rows(table, manifest.TRAINED_ON)) if table.is_file() else []
        if not rows:
            unknown.append(name)
        _collect(rows, name, uses)
        if (kept := part / manifest.EARLIER_ATTRIBUTION).is_file():
            of_others += read(kept)
    terms = _terms(recordings)
    refused = {(name, row["path"]) for name, row in terms.items() if row["ai_terms"] == "refused"}
    earlier = {credit.recording: credit for credit in of_others if credit.recording}
    found = []
    for (recording_id, is_earlier), use in uses.items():
        if is_earlier:
            other = earlier.get(_line(use.source))
            known = {**vars(other), "source_url": other.url} if other else {}
            if (recording_id, use.source) in refused:  # since then, or there under other terms
                known = {**known, "ai_terms": "refused"}
        else:
            known = terms.get(recording_id, {})
        found.append(_credit(use, known))
    unknown += [f"{EARLIER}: {credit.used_for}" for credit in of_others if not credit.recording]
    nowhere = [Credit("", "", UNKNOWN, UNKNOWN, "", 0, 0.0, 0, name) for name in unknown]
    return sorted([*found, *nowhere], key=lambda credit: (credit.recording, credit.used_for))


def credits_of_clips(rows: Iterable[Mapping[str, Any]], recordings: Path | None) -> list[Credit]:
    """The credits of clips (`clip_id`, `recording_id`, `source`, `start`, `seconds`, `digest`), by path of the recording."""
    uses: dict[tuple[str, bool], _Use] = {}
    _collect(({**row, "mix": None, "earlier": False} for row in rows), "clips", uses)
    terms = _terms(recordings)
    return sorted((_credit(use, terms.get(name, {})) for (name, _), use in uses.items()), key=lambda credit: credit.recording)


def _collect(rows: Iterable[Mapping[str, Any]], part: str, uses: dict[tuple[str, bool], _Use]) -> None:
    """Add the rows of one table by recording. An earlier training may have had another recording of the same id: only one with
    the same clip, byte for byte, is the same recording."""
    rows = list(rows)
    own = {(row["recording_id"], row["digest"]) for row in rows if not row["earlier"]}
    same = {row["recording_id"] for row in rows if row["earlier"] and (row["recording_id"], row["digest"]) in own}
    for row in rows:
        name = row["recording_id"] or row["clip_id"]
        use = uses.setdefault((name, row["earlier"] and name not in same), _Use(row["source"] or name))
        use.clips.add(row["clip_id"])
        if row["start"] is not None:
            use.spans.add((row["start"], row["start"] + (row["seconds"] or 0.0)))
        if row["mix"]:
            use.mixes.add(row["mix"])
        of_part = f" of its {part}" if part != WHOLE else ""
        use.used_for.add(f"{EARLIER}{of_part}" if row["earlier"] else part)


def _credit(use: _Use, terms: Mapping[str, Any]) -> Credit:
    licence, creator, url, ai_terms = (terms.get(name) for name in ("licence", "creator", "source_url", "ai_terms"))
    seconds, reached = 0.0, float("-inf")  # of the union of its spans
    for start, stop in sorted(use.spans):
        seconds += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return Credit(
        _line(use.source),
        _line(creator or ""),
        _line(licence or UNKNOWN),
        ai_terms or UNKNOWN,
        _line(url or ""),
        len(use.clips),
        round(seconds, 3),
        len(use.mixes),
        "; ".join(sorted(use.used_for)),
    )


def _terms(recordings: Path | None) -> dict[str, dict[str, Any]]:
    """Terms by recording id, an unclear licence as UNCLEAR; null in a table from before there were terms."""
    if recordings is None or not recordings.is_file():
        return {}
    table = shards.read_table(recordings, manifest.RECORDINGS, ["recording_id", "path", *manifest.TERMS])
    rows = ({**row, "licence": UNCLEAR} if row["licence"] == UNKNOWN else row for row in table.to_pylist())
    return {row["recording_id"]: row for row in rows}


def text(found: Iterable[Credit]) -> str:
    """The credits as CSV in which no cell is a formula, whatever a corpus says."""
    return csv_files.text(COLUMNS, ([getattr(credit, column) for column in COLUMNS] for credit in found))


def _line(value: str) -> str:
    """One printable line of limited length."""
    printable = "".join(char if char.isprintable() else " " for char in value)
    line = " ".join(printable.split())
    return line if len(line) <= CELL else line[: CELL - 1] + "…"


def write(found: Iterable[Credit], path: Path) -> None:
    disk.write_text(path, text(found))


def read(path: Path) -> list[Credit]:
    """The credits in a file; UserError if it is not such a table."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
        numbers = {"clips": int, "in_mixes": int, "seconds": float}
        found = [Credit(**{name: numbers.get(name, csv_files.value)(row[name]) for name in COLUMNS}) for row in rows]
        terms = ("allowed", "with_disclosure", "refused", UNKNOWN)
        if wrong := [one for one in found if one.ai_terms not in terms or not 0 <= one.seconds < float("inf")]:
            raise ValueError(f"ai_terms {wrong[0].ai_terms!r} or seconds {wrong[0].seconds}")
        return found
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a table of credits ({type(error).__name__}: {error}); publish the model again") from None


def hours_by(found: Iterable[Credit], column: str) -> dict[str, float]:
    """Hours of recordings by `licence`, `ai_terms` or `creator`, most first."""
    hours: dict[str, float] = defaultdict(float)
    for credit in found:
        hours[getattr(credit, column)] += credit.seconds / 3600
    return dict(sorted(hours.items(), key=lambda item: (-item[1], item[0])))


def marks(found: Iterable[Credit]) -> list[str]:
    """`refused` and `unknown`, if any of the material is; an unclear licence is unknown."""
    found = list(found)
    refused = any(credit.ai_terms == "refused" for credit in found)
    unknown = any(credit.licence in (UNKNOWN, UNCLEAR) or credit.ai_terms == UNKNOWN for credit in found)
    return [name for name, holds in (("refused", refused), ("unknown", unknown)) if holds]


def summary(found: Sequence[Credit]) -> dict[str, Any]:
    """What pages show: `hours` by licence and by terms for AI, and `marks`."""
    hours = {"licence": hours_by(found, "licence"), "terms for AI": hours_by(found, "ai_terms")}
    return {"hours": hours, "marks": marks(found)}


def tags(found: Sequence[Credit]) -> dict[str, str]:
    """For a registered model: hours by licence and by AI terms, and whether any material is refused or unknown."""
    hours = {"licences": hours_by(found, "licence"), "ai_terms": hours_by(found, "ai_terms")}
    named = {key: ", ".join(f"{name} {value:.2f} h" for name, value in of.items()) for key, of in hours.items()}
    return named | {"training_material": material(marks(found))}


def material(marked: Sequence[str]) -> str:
    """The `marks` of training material in words."""
    return ", ".join(marked) or "all terms known, none refused"


def statements(found: list[Credit]) -> Iterator[tuple[str, str]]:
    """What the terms say of the use of a model, each with the reason, as facts."""
    of: dict[str, list[str]] = defaultdict(list)
    for licence in hours_by(found, "licence"):
        if licence == UNKNOWN:
            of["undisclosed: the licence is unknown"].append(licence)
        elif licence == UNCLEAR:
            of["undisclosed: a licence is stated, but unclear"].append(licence)
        elif facts := facts_of(licence):
            for fact in facts:
                of[fact].append(licence)
        elif licence not in NO_CONDITIONS:
            of["conditions that Soundmill does not know: read the licence"].append(licence)
    for fact, licences in of.items():
        names = "" if licences in ([UNKNOWN], [UNCLEAR]) else f" ({', '.join(licences)})"
        yield fact, _amount(credit for credit in found if credit.licence in licences) + names
    meanings = {
        "refused": "refused: the creators refuse the use for generative AI",
        "with_disclosure": "disclosure: the creators ask that the use is disclosed",
        UNKNOWN: "undisclosed: the creators' terms for AI are unknown",
    }
    for ai_terms, meaning in meanings.items():
        if some := [credit for credit in found if credit.ai_terms == ai_terms]:
            yield meaning, _amount(some)


def facts_of(licence: str) -> list[str]:
    """What a licence of Creative Commons requires, by its SPDX id; empty for others, also for an id with further words."""
    parts = licence.upper().split("-")
    return [fact for part, fact in FACTS.items() if part in parts] if CC_ID.fullmatch(licence.upper()) else []


def _amount(some: Iterable[Credit]) -> str:
    some = list(some)
    named = sum(bool(credit.recording) for credit in some)
    parts = [credit.used_for for credit in some if not credit.recording]
    hours = sum(credit.seconds for credit in some) / 3600
    words = [f"{named} recording{'' if named == 1 else 's'}, {hours:.2f} h"] if named else []
    return "; ".join([*words, *(f"all of its {part}" for part in parts)])
