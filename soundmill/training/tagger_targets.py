"""The classes that the tagger learns: labels; words of captions if a corpus has no labels; clusters if it has neither."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

ROUNDS = 50  # of k-means, at most
# Words that name no sound.
FUNCTION_WORDS = frozenset(
    """
    about above after again all along also and another are around away back background before behind being below between both but
    can close couple distance distant down during each eventually far few first followed following for from front further had has
    have her him his into its itself just keep kind like lot lots making many more most much multiple nearby next not nothing off
    once one ones only onto other others out over own same several she slight slightly some someone something soon sound sounding
    sounds such than that the their them then there these they this those three through throughout time times together twice two
    under until upon various very was way well were what when where which while with within
    """.split()
)


@dataclass(frozen=True)
class Targets:
    """Names of the classes and, for every clip that has a target, a distribution over them (rows sum to 1)."""

    kind: Literal["labels", "caption words", "clusters"]
    classes: list[str]
    of_clip: Mapping[str, np.ndarray]  # float32 [K]


def from_names(
    names: Mapping[str, Sequence[str]], training: Sequence[str], kind: Literal["labels", "caption words"]
) -> Targets | None:
    """Targets that split each clip's weight evenly among its names; None if the training clips have fewer than two classes."""
    classes = sorted({name for clip_id in training for name in names[clip_id]})
    if len(classes) < 2:
        return None
    index_of = {name: index for index, name in enumerate(classes)}
    of_clip = {}
    for clip_id, clip_names in names.items():
        indices = sorted({index_of[name] for name in clip_names if name in index_of})
        if indices:
            of_clip[clip_id] = np.zeros(len(classes), np.float32)
            of_clip[clip_id][indices] = 1 / len(indices)
    return Targets(kind, classes, of_clip)


def caption_words(captions: Mapping[str, Sequence[str]], training: Sequence[str], count: int) -> dict[str, list[str]]:
    """The content words of each clip's captions: of the `count` most frequent in training clips, without near-universal ones."""
    words = {
        clip_id: sorted({word for text in texts for word in re.findall(r"[^\W\d_]{3,}", text.lower())} - FUNCTION_WORDS)
        for clip_id, texts in captions.items()
    }
    frequency = Counter(word for clip_id in training for word in words[clip_id])
    # A word of a single clip cannot be learnt; one of nearly every clip distinguishes nothing.
    ranked = [(-number, word) for word, number in frequency.items() if 2 <= number <= 0.9 * len(training)]
    kept = {word for _, word in sorted(ranked)[:count]}
    return {clip_id: [word for word in own if word in kept] for clip_id, own in words.items()}


def cluster(statistics: Mapping[str, np.ndarray], training: Sequence[str], count: int) -> Targets:
    """k-means on standardised statistics [F] of clips; initialised by farthest points, so nothing is random."""
    ids = sorted(training)
    points = np.stack([statistics[clip_id] for clip_id in ids]).astype(np.float64)
    mean, deviation = points.mean(0), points.std(0)
    points = (points - mean) / np.where(deviation > 1e-6, deviation, 1)
    centres = points[[np.argmin((points**2).sum(1))]]
    while len(centres) < count:
        distance = ((points[:, None] - centres[None]) ** 2).sum(2).min(1)
        if distance.max() <= 1e-12:  # fewer distinct sounds than clusters
            break
        centres = np.vstack([centres, points[distance.argmax()]])
    for _ in range(ROUNDS):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        moved = np.stack([points[nearest == k].mean(0) if (nearest == k).any() else centre for k, centre in enumerate(centres)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    of_clip = {}
    for clip_id, values in statistics.items():
        point = (values - mean) / np.where(deviation > 1e-6, deviation, 1)
        of_clip[clip_id] = np.eye(len(centres), dtype=np.float32)[((point - centres) ** 2).sum(1).argmin()]
    return Targets("clusters", [f"cluster {index}" for index in range(len(centres))], of_clip)
