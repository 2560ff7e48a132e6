"""Groups of generated sounds that are scored separately: by events in the prompt, number of labels, or kind of sound."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from soundmill.evaluation.categories import category_of
from soundmill.evaluation.sets import CatalogClip, Sets

# Words of prompts that describe several events (Ghosal et al. 2023).
SEVERAL = re.compile(r"\b(while|before|after|then|followed)\b", re.IGNORECASE)
FEWEST = 2  # sounds needed to score a group


def events(clip: CatalogClip) -> str | None:
    """By the words of the first caption, which is the prompt."""
    if not clip.captions:
        return None
    return "several events" if SEVERAL.search(clip.captions[0]) else "one event"


def labels(clip: CatalogClip) -> str | None:
    """By the number of labels."""
    count = len(set(clip.labels))
    return {0: None, 1: "1 label", 2: "2 labels"}.get(count, "3 or more labels")


def categories(clip: CatalogClip) -> str | None:
    """By the categories of the labels; labels without a known category are ignored."""
    kinds = {category_of(label) for label in clip.labels} - {None}
    return " and ".join(sorted(kinds)) or None


GROUPINGS: dict[str, Callable[[CatalogClip], str | None]] = {"events": events, "labels": labels, "categories": categories}


def groups(clips: Iterable[CatalogClip], grouping: str) -> dict[str, set[str]]:
    """Ids of the clips of each group, by its name; a clip may be in none."""
    by_name: dict[str, set[str]] = {}
    for clip in clips:
        name = GROUPINGS[grouping](clip)
        if name is not None:
            by_name.setdefault(name, set()).add(clip.clip_id)
    return dict(sorted(by_name.items()))


def within(sets: Sets, ids: set[str]) -> Sets:
    """The same comparison restricted to these clips; the linear probe remains that of all clips."""

    of_ids = ("reference", "generated", "floor", "floor_reference", "codec", "codec_reference")
    kept = {field: tuple(clip_id for clip_id in getattr(sets, field) if clip_id in ids) for field in of_ids}
    kept |= {field: tuple(pair for pair in getattr(sets, field) if pair[0] in ids) for field in ("partners", "requested")}
    return replace(sets, **kept)


def can_be_scored(sets: Sets) -> bool:
    return min(len(sets.generated), len(sets.reference)) >= FEWEST
