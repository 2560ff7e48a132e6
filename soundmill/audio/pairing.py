"""Choosing pairs of clips to mix: deterministic, stable when clips are added, never two clips of one recording."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from soundmill import hashing

# Bounds of the search for a partner of another kind, before one of the same kind is used.
RECORDINGS_TRIED = 256
CLIPS_TRIED = 8  # per recording


@dataclass(frozen=True)
class Candidate:
    """A clip to mix, preferably with a clip that shares none of its `kinds`."""

    clip_id: str
    recording_id: str
    kinds: frozenset[str]


def plan_pairs(candidates: Sequence[Candidate], count: int, seed: int) -> list[tuple[Candidate, Candidate]]:
    """At most `count` distinct pairs (in either order), each of two recordings; fewer if there are not enough clips.

    Every clip is `first` equally often (±1). Clips and partners are chosen by hash, so the order of `candidates` does not matter,
    and an additional clip changes few other pairs.
    """
    turn = sorted(candidates, key=lambda one: (_hash(seed, "first", one.clip_id), one.clip_id))
    clips_of: dict[str, list[Candidate]] = {}
    for one in turn:
        clips_of.setdefault(one.recording_id, []).append(one)
    ring: list[tuple[int, str]] = []
    pairs: list[tuple[Candidate, Candidate]] = []
    used: set[frozenset[str]] = set()
    for index in range(count if len(clips_of) > 1 else 0):
        lap, place = divmod(index, len(turn))
        if not place:  # a new ring per lap: on a single ring, the recording after a wide gap would be chosen most often
            ring = sorted((_hash(seed, f"recording {lap}", name), name) for name in clips_of)
        first = turn[place]
        second = _partner(first, _hash(seed, f"second {lap}", first.clip_id), ring, clips_of, used)
        if second is not None:
            pairs.append((first, second))
            used.add(frozenset((first.clip_id, second.clip_id)))
    return pairs


def _partner(
    first: Candidate,
    point: int,
    ring: list[tuple[int, str]],
    clips_of: dict[str, list[Candidate]],
    used: set[frozenset[str]],
) -> Candidate | None:
    """The next clip on the ring from `point` that shares no kind with `first`, else the next allowed one."""
    start = bisect.bisect_left(ring, (point, ""))
    fallback = None
    for step in range(min(len(ring), RECORDINGS_TRIED)):
        _, name = ring[(start + step) % len(ring)]
        if name == first.recording_id:
            continue
        clips = clips_of[name]
        for turn in range(min(len(clips), CLIPS_TRIED)):
            second = clips[(point + turn) % len(clips)]
            if frozenset((first.clip_id, second.clip_id)) in used:
                continue
            if not first.kinds & second.kinds:
                return second
            fallback = fallback or second
    return fallback


def _hash(seed: int, role: str, key: str) -> int:
    return hashing.uint64(f"{seed}\0{role}\0{key}".encode())
