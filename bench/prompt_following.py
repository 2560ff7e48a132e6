"""Whether sounds follow their prompts, by YAMNet's classes.

AudioSet's classes are grouped into the ten families of sounds in ESC-10. A sound matches its prompt if the prompt's family has the
highest score among the requested families. A stricter measure: the highest of all 521 classes belongs to the prompt's family; even
most real clips fail it, because more general classes (Animal, Vehicle, Water) and Silence score higher. A weaker measure: the
prompt's family scores higher than in sounds of other prompts. Its chance level is one half, even if YAMNet favours some families
in sounds blurred by a codec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from soundmill.evaluation.bootstrap import INTERVAL
from soundmill.evaluation.embedders.yamnet import YamnetEmbedder, windows


@dataclass(frozen=True)
class Family:
    """A kind of sound: its labels in ESC-10's folders and ESC-50's table, and its AudioSet classes."""

    labels: tuple[str, ...]
    classes: tuple[str, ...]


# The label's class in AudioSet's ontology and its descendants; not its ancestors, which several families may share.
FAMILIES = {
    "dog": Family(("dog", "dog bark"), ("Dog", "Bark", "Yip", "Howl", "Bow-wow", "Growling", "Whimper (dog)")),
    "rain": Family(("rain",), ("Rain", "Raindrop", "Rain on surface")),
    "sea waves": Family(("sea waves",), ("Ocean", "Waves, surf")),
    "crying baby": Family(("crying baby", "baby cry"), ("Crying, sobbing", "Baby cry, infant cry", "Whimper")),
    "clock tick": Family(("clock tick",), ("Clock", "Tick", "Tick-tock")),
    "sneezing": Family(("sneezing", "person sneeze"), ("Sneeze",)),
    "helicopter": Family(("helicopter",), ("Helicopter",)),
    "chainsaw": Family(("chainsaw",), ("Chainsaw",)),
    "rooster": Family(("rooster",), ("Chicken, rooster", "Cluck", "Crowing, cock-a-doodle-doo")),
    "crackling fire": Family(("crackling fire", "fire crackling"), ("Fire", "Crackle")),
}
FAMILY_OF_LABEL = {label: name for name, family in FAMILIES.items() for label in family.labels}


@dataclass(frozen=True)
class ClassScores:
    """YAMNet's scores of one sound."""

    probabilities: np.ndarray  # [521] mean over windows, AudioSet's score of a clip
    logits: np.ndarray  # [521] mean over windows, as `kl_yamnet` takes them


def score_classes(embedder: YamnetEmbedder, wave: np.ndarray) -> ClassScores:
    """Class scores of a wave [T] at the embedder's rate."""
    logits = embedder.embed(list(windows(wave))).logits.astype(np.float64)
    return ClassScores((1 / (1 + np.exp(-logits))).mean(axis=0), logits.mean(axis=0))


def family_scores(scores: ClassScores, names: Sequence[str], families: Sequence[str]) -> np.ndarray:
    """Highest class score of each family, [families]; `names` lists all classes in order."""
    by_name = dict(zip(names, scores.probabilities, strict=True))
    return np.array([max(by_name[name] for name in FAMILIES[family].classes) for family in families])


def family_of_top_class(scores: ClassScores, names: Sequence[str]) -> str | None:
    """The family of the highest of all classes, if it belongs to one."""
    top = names[int(scores.probabilities.argmax())]
    return next((name for name, family in FAMILIES.items() if top in family.classes), None)


def matches(heard: Mapping[str, Sequence[str | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Two tables [families, sounds] from the recognised families, `heard`, by requested family: 1 for a match, and the share of the
    other prompts that would match, which is the expected match with shuffled prompts."""
    asked = list(heard)
    own = np.array([[float(one == family) for one in heard[family]] for family in asked])
    any_of_them = np.array([[float(one in asked) for one in heard[family]] for family in asked])
    return own, (any_of_them - own) / max(1, len(asked) - 1)


def rank_above_others(scores: np.ndarray) -> np.ndarray:
    """For scores [prompts, sounds, families], prompts and families in the same order: the share of other prompts' sounds in which
    the sound's family scores lower, ties counting half, [prompts, sounds]. The mean is the area under the ROC curve."""
    shares = []
    for family, own in enumerate(scores):
        others = np.delete(scores, family, axis=0)[:, :, family].ravel()
        ahead = own[:, family, None] - others
        shares.append((ahead > 0).mean(axis=1) + 0.5 * (ahead == 0).mean(axis=1))
    return np.array(shares)


def mean_with_interval(values: np.ndarray, replicates: int, seed: int) -> dict[str, float]:
    """Mean of values [prompts, sounds] and two 95 % bootstrap intervals: resampling prompts and their sounds (`low`, `high`), and
    resampling sounds of fixed prompts (`low_these`, `high_these`).

    Sounds of one prompt are correlated: the first interval generalises to other prompts, the second only to other seeds.
    """
    random = np.random.default_rng(seed)
    prompts, sounds = values.shape
    rows = random.integers(prompts, size=(replicates, prompts))
    columns = random.integers(sounds, size=(replicates, prompts, sounds))
    result = {"value": float(values.mean())}
    for ends, chosen in ((("low", "high"), rows), (("low_these", "high_these"), np.arange(prompts)[None])):
        result |= zip(ends, np.percentile(values[chosen[..., None], columns].mean(axis=(1, 2)), INTERVAL).tolist(), strict=True)
    return result
