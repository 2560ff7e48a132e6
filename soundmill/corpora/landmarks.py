"""Landmarks of fingerprints: keys that copies of a sound have in common, and the keys to look up for a clip.

Two successive moments of a fingerprint make a key. Bits that are uncertain are looked up both ways.
"""

from __future__ import annotations

import numpy as np

from soundmill.audio import fingerprint
from soundmill.corpora.partitions import records

KEY_LATER = 4  # frames between the two moments of a key
KEY_BITS = np.uint32(0x00FFFFFF)  # of the first: bands below 3.7 kHz, which sound once sampled at 8 kHz has too
KEY_BITS_LATER = np.uint32(0x0000FF00)
QUIET_FRAMES = 2  # before and after one in which a band is silent, and not just undecided
KEYS_FRAMES = 312  # about five seconds, each of which has its share of the keys: one loud minute must not have those of an hour
KEYS, KEYS_PER_SECOND = 64, 16  # of a clip in the index: so many in all and so many more for each second
MIN_ACTIVE = 8  # bits of a key that are certain because something moves
MOST_UNCERTAIN = 12  # bits of a key in the index
PROBES, PROBES_PER_SECOND = 256, 64  # keys looked up for a clip
MOST_FLIPPED = 7  # uncertain bits of a key that is looked up both ways
MIN_KEYS = 2  # that a clip must have to be in the index, and a pair in common to be compared
LANDMARK = np.dtype([("key", "<u4"), ("frame", "<u4")])


def landmarks(words: np.ndarray) -> dict[str, bytes]:
    """A fingerprint uint32 [frames, 2] with its landmarks for the index: none where it has too few certain bits or keys."""
    keys, uncertain, frames = certain_keys(words)
    if fingerprint.num_certain(words) < fingerprint.MIN_BITS or len(keys) < MIN_KEYS:
        keys, uncertain, frames = keys[:0], uncertain[:0], frames[:0]
    seconds = len(words) / fingerprint.FRAMES_PER_SECOND
    most = KEYS + int(KEYS_PER_SECOND * seconds)
    probes = turned(keys, uncertain, frames, PROBES + int(PROBES_PER_SECOND * seconds))
    return {
        "fingerprint": words.astype("<u4").tobytes(),
        "keys": records(LANDMARK, keys[:most], frames[:most]).tobytes(),
        "probes": records(LANDMARK, *probes).tobytes(),
    }


def certain_keys(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys uint32 [n] of a fingerprint, their uncertain bits uint32 [n] and frames int32 [n], those with the fewest first."""
    count = max(0, len(words) - KEY_LATER)
    signs, certain = words.T
    near = np.zeros(len(words) + 2 * QUIET_FRAMES, dtype=np.uint32)
    near[QUIET_FRAMES : QUIET_FRAMES + len(words)] = signs | certain
    active = np.bitwise_or.reduce([near[shift : shift + len(words)] for shift in range(2 * QUIET_FRAMES + 1)])
    # A band that is silent for so long is silent in a copy too.
    keys, loud, certain = (
        word[:count] & KEY_BITS | (word[KEY_LATER : KEY_LATER + count] & KEY_BITS_LATER) << np.uint32(16)
        for word in (signs, certain, certain | ~active)
    )
    number = np.bitwise_count(~certain)
    usable = (number <= MOST_UNCERTAIN) & (np.bitwise_count(loud) >= MIN_ACTIVE)
    usable[1:] &= keys[1:] != keys[:-1]  # what stands still is in the index once
    frames = np.flatnonzero(usable).astype(np.int32)
    frames = frames[np.argsort(number[frames], kind="stable")]
    stretches = max(1, round(len(words) / KEYS_FRAMES))  # of one length, or a rest of a few frames had as much as the others
    frames = frames[_by_turns(frames * stretches // max(1, len(words)))]
    return keys[frames], ~certain[frames], frames


def _by_turns(groups: np.ndarray) -> np.ndarray:
    """Numbers of the rows, the first of every group, then the second of every one …"""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    turns = np.empty(len(groups), np.int64)
    turns[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return np.argsort(turns, kind="stable")


def turned(keys: np.ndarray, uncertain: np.ndarray, frames: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys uint32 [n] to look up and their frames int32 [n]: of these (see certain_keys) the first, uncertain bits both ways.

    A coder changes few bits but uncertain ones, so most keys of a copy are in the index as they are. `most` in all.
    """
    bits = np.bitwise_count(uncertain)
    count = int(np.searchsorted(np.cumsum(1 << bits[bits <= MOST_FLIPPED].astype(np.int64)), most, side="right"))
    keys, uncertain, frames = keys[:count], uncertain[:count], frames[:count]
    for _ in range(MOST_FLIPPED):
        rest = uncertain & (uncertain - np.uint32(1))
        either = uncertain != 0
        keys = np.concatenate([keys, (keys ^ uncertain ^ rest)[either]])
        frames = np.concatenate([frames, frames[either]])
        uncertain = np.concatenate([rest, rest[either]])
    return keys, frames
