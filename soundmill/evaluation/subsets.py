"""Groups of generated sounds that are scored by themselves: by several events in the prompt, number of labels, kind of sound."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from soundmill.evaluation.categories import category_of
from soundmill.evaluation.sets import Clip, Sets

# A prompt with one of them describes several events (Ghosal et al. 2023).
SEVERAL = re.compile(r"\b(while|before|after|then|followed)\b", re.IGNORECASE)
FEWEST = 2  # sounds of a group that can be scored


def events(clip: Clip) -> str | None:
    """By the words of the caption that is the prompt, the first one."""
    if not clip.captions:
        return None
    return "several events" if SEVERAL.search(clip.captions[0]) else "one event"


def labels(clip: Clip) -> str | None:
    """By the number of labels."""
    count = len(set(clip.labels))
    return {0: None, 1: "1 label", 2: "2 labels"}.get(count, "3 or more labels")


def categories(clip: Clip) -> str | None:
    """By the kinds of sound that the labels are of; a label of no known kind counts for nothing."""
    kinds = {category_of(label) for label in clip.labels} - {None}
    return " and ".join(sorted(kinds)) or None


GROUPINGS: dict[str, Callable[[Clip], str | None]] = {"events": events, "labels": labels, "categories": categories}


def groups(clips: Iterable[Clip], grouping: str) -> dict[str, set[str]]:
    """Ids of the clips in each group, by the group's name; a clip may be in none."""
    by_name: dict[str, set[str]] = {}
    for clip in clips:
        name = GROUPINGS[grouping](clip)
        if name is not None:
            by_name.setdefault(name, set()).add(clip.clip_id)
    return dict(sorted(by_name.items()))


def within(sets: Sets, ids: set[str]) -> Sets:
    """The same comparison among these clips alone; the linear probe stays the one of all clips."""

    def kept(listed: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(clip_id for clip_id in listed if clip_id in ids)

    return replace(
        sets,
        reference=kept(sets.reference),
        generated=kept(sets.generated),
        floor=kept(sets.floor),
        floor_reference=kept(sets.floor_reference),
        codec=kept(sets.codec),
        codec_reference=kept(sets.codec_reference),
        partners=tuple(pair for pair in sets.partners if pair[0] in ids),
        wanted=tuple(pair for pair in sets.wanted if pair[0] in ids),
    )


def can_be_scored(sets: Sets) -> bool:
    return min(len(sets.generated), len(sets.reference)) >= FEWEST
