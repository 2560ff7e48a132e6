"""Do prompts steer? What YAMNet hears in sounds, against what they were asked to be.

AudioSet's classes are grouped into the ten families that ESC-10 is of. A sound matches its prompt when, of the families asked for,
the one heard most in it is the prompt's. Stricter, and told beside it: the strongest of all 521 classes is of the prompt's family,
which even most real clips fail, as classes above a family's own (Animal, Vehicle, Water), and Silence, outweigh it. Kinder: its
prompt's family is heard more in it than in sounds of other prompts. That is even (one half) where prompts do nothing, however
readily YAMNet hears one family or another in sounds that are blurred by a codec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from soundmill.evaluation.bootstrap import INTERVAL
from soundmill.evaluation.embedders.yamnet import YamnetEmbedder, windows


@dataclass(frozen=True)
class Family:
    """A kind of sound: how ESC-10's folders and ESC-50's table call it, and the classes of AudioSet that are heard in it."""

    labels: tuple[str, ...]
    classes: tuple[str, ...]


# Of AudioSet's ontology the class that is the label's, and all below it; nothing above it, which others of the ten may share.
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
class Heard:
    """What YAMNet says of one sound."""

    classes: np.ndarray  # [521] mean probability over windows, AudioSet's score of a clip
    logits: np.ndarray  # [521] mean over windows, as `kl_yamnet` takes them


def hear(embedder: YamnetEmbedder, wave: np.ndarray) -> Heard:
    """Class scores of a wave [T] at the embedder's rate."""
    logits = embedder.embed(list(windows(wave))).logits.astype(np.float64)
    return Heard((1 / (1 + np.exp(-logits))).mean(axis=0), logits.mean(axis=0))


def family_scores(heard: Heard, names: Sequence[str], families: Sequence[str]) -> np.ndarray:
    """Of each family the score of its strongest class, [families]; `names` are those of all classes, in order."""
    score = dict(zip(names, heard.classes, strict=True))
    return np.array([max(score[name] for name in FAMILIES[family].classes) for family in families])


def family_of_top_class(heard: Heard, names: Sequence[str]) -> str | None:
    """The family of the strongest of all classes; None: it is in no family."""
    top = names[int(heard.classes.argmax())]
    return next((name for name, family in FAMILIES.items() if top in family.classes), None)


def matches(heard: Mapping[str, Sequence[str | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Of families heard in the sounds of each family asked for, two tables [families, sounds]: 1 where they agree; and what is to
    be expected of that when prompts are shuffled so that none keeps its own: the share of the other prompts that would agree."""
    asked = list(heard)
    own = np.array([[float(one == family) for one in heard[family]] for family in asked])
    any_of_them = np.array([[float(one in asked) for one in heard[family]] for family in asked])
    return own, (any_of_them - own) / max(1, len(asked) - 1)


def rank_above_others(scores: np.ndarray) -> np.ndarray:
    """Of scores [prompts, sounds, families], prompts and families in one order: for every sound the share of other prompts' sounds
    in which its family scores less, ties half. The mean is the area under the ROC curve, [prompts, sounds]."""
    shares = []
    for family, own in enumerate(scores):
        others = np.delete(scores, family, axis=0)[:, :, family].ravel()
        ahead = own[:, family, None] - others
        shares.append((ahead > 0).mean(axis=1) + 0.5 * (ahead == 0).mean(axis=1))
    return np.array(shares)


def mean_with_interval(values: np.ndarray, replicates: int, seed: int) -> dict[str, float]:
    """Mean of values [prompts, sounds] and its 95 % bootstrap intervals: of prompts drawn again, and sounds within each (`low`,
    `high`), and of sounds of these very prompts alone (`low_these`, `high_these`).

    Sounds of one prompt are alike: the first tells what other prompts would have given, the second what other seeds.
    """
    random = np.random.default_rng(seed)
    prompts, sounds = values.shape
    rows = random.integers(prompts, size=(replicates, prompts))
    columns = random.integers(sounds, size=(replicates, prompts, sounds))
    found = {"value": float(values.mean())}
    for ends, chosen in ((("low", "high"), rows), (("low_these", "high_these"), np.arange(prompts)[None])):
        found |= zip(ends, np.percentile(values[chosen[..., None], columns].mean(axis=(1, 2)), INTERVAL).tolist(), strict=True)
    return found
