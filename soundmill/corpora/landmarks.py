"""Landmarks of fingerprints: the keys of a clip in the index, and the keys to look up for it (probes).

A key is made of two frames of a fingerprint. Uncertain bits are looked up with both values.
"""

import numpy as np

from soundmill.audio import fingerprint

KEY_LATER = 4  # frames between the two frames of a key
KEY_BITS = np.uint32(0x00FFFFFF)  # of the first frame: bands below 3.7 kHz, which remain after resampling to 8 kHz
KEY_BITS_LATER = np.uint32(0x0000FF00)
QUIET_FRAMES = 2  # before and after a frame in which a silent band is certain
KEYS_FRAMES = 312  # about five seconds; keys are spread evenly over such stretches
KEYS, KEYS_PER_SECOND = 64, 16  # of a clip in the index: a constant, and more for each second
MIN_ACTIVE = 8  # certain bits in active bands of a key
MOST_UNCERTAIN = 12  # uncertain bits of a key in the index
PROBES, PROBES_PER_SECOND = 256, 64  # keys looked up for a clip
MOST_FLIPPED = 7  # uncertain bits of a probe that are looked up with both values
MIN_KEYS = 2  # of a clip in the index, and in common for a comparison
LANDMARK = np.dtype([("key", "<u4"), ("frame", "<u4")])


def landmarks(words: np.ndarray) -> dict[str, bytes]:
    """A fingerprint uint32 [frames, 2] with its landmarks; none if it has too few certain bits or keys."""
    keys, uncertain, frames = certain_keys(words)
    if fingerprint.num_certain(words) < fingerprint.MIN_BITS or len(keys) < MIN_KEYS:
        keys, uncertain, frames = keys[:0], uncertain[:0], frames[:0]
    seconds = len(words) / fingerprint.FRAMES_PER_SECOND
    most = KEYS + int(KEYS_PER_SECOND * seconds)
    probes = probes_of(keys, uncertain, frames, PROBES + int(PROBES_PER_SECOND * seconds))
    return {
        "fingerprint": words.astype("<u4").tobytes(),
        "keys": records(LANDMARK, keys[:most], frames[:most]).tobytes(),
        "probes": records(LANDMARK, *probes).tobytes(),
    }


def certain_keys(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys uint32 [n] of a fingerprint, their uncertain bits uint32 [n] and frames int32 [n], fewest uncertain bits first."""
    count = max(0, len(words) - KEY_LATER)
    signs, certain = words.T
    near = np.zeros(len(words) + 2 * QUIET_FRAMES, dtype=np.uint32)
    near[QUIET_FRAMES : QUIET_FRAMES + len(words)] = signs | certain
    active = np.bitwise_or.reduce([near[shift : shift + len(words)] for shift in range(2 * QUIET_FRAMES + 1)])
    # A band that is silent this long is silent in a copy, too.
    keys, loud, certain = (
        word[:count] & KEY_BITS | (word[KEY_LATER : KEY_LATER + count] & KEY_BITS_LATER) << np.uint32(16)
        for word in (signs, certain, certain | ~active)
    )
    number = np.bitwise_count(~certain)
    usable = (number <= MOST_UNCERTAIN) & (np.bitwise_count(loud) >= MIN_ACTIVE)
    usable[1:] &= keys[1:] != keys[:-1]  # equal consecutive keys count once
    frames = np.flatnonzero(usable).astype(np.int32)
    frames = frames[np.argsort(number[frames], kind="stable")]
    stretches = max(1, round(len(words) / KEYS_FRAMES))  # stretches of equal length
    frames = frames[_round_robin(frames * stretches // max(1, len(words)))]
    return keys[frames], ~certain[frames], frames


def _round_robin(groups: np.ndarray) -> np.ndarray:
    """Row numbers: the first row of every group, then the second of every group …"""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    turns = np.empty(len(groups), np.int64)
    turns[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return np.argsort(turns, kind="stable")


def probes_of(keys: np.ndarray, uncertain: np.ndarray, frames: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` probes uint32 [n] and their frames int32 [n]: the first keys (see certain_keys), with both values of uncertain
    bits. Codecs change few other bits, so most keys of a copy are found.
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


def records(dtype: np.dtype, *columns: np.ndarray) -> np.ndarray:
    """A structured array [n] from its columns [n]."""
    rows = np.empty(len(columns[0]), dtype=dtype)
    for name, column in zip(dtype.names, columns, strict=True):
        rows[name] = column
    return rows
