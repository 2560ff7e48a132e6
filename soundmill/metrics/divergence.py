"""KL divergence between a classifier's outputs for a real clip and for the generated sound of the same id; the inception score."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from scipy import special

from soundmill.errors import UserError, first_of
from soundmill.metrics.bootstrap import Influence, SetInfluence

EPSILON = 1e-6  # added to the generated sound's probabilities, as in audioldm_eval
INCEPTION_SPLITS = 10  # of the sounds, as the inception score has them
FEWEST_IN_SPLIT = 10  # sounds; with fewer, all sounds are one split
CHUNK = 256  # sounds whose probabilities are in memory


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64."""
    return special.softmax(np.asarray(logits, np.float64), axis=-1)


def kl_divergence(reference: np.ndarray, generated: np.ndarray, epsilon: float) -> np.ndarray:
    """KL(reference ‖ generated) = Σ p·ln(p / (q + ε)) over the last axis of two sets of probabilities, in nats."""
    check_classes(reference, generated)
    return special.rel_entr(np.asarray(reference, np.float64), np.asarray(generated, np.float64) + epsilon).sum(axis=-1)


def check_classes(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape[-1] != second.shape[-1]:
        raise UserError(
            f"probabilities over {first.shape[-1]} and {second.shape[-1]} classes cannot be compared: use one classifier for both"
        )


def smoothed(reference: np.ndarray, generated: np.ndarray) -> float:
    """KL(reference ‖ generated) of the softmaxed logits, with ε added to the generated sound's probabilities."""
    return float(kl_divergence(softmax(reference), softmax(generated), EPSILON))


def reverse(reference: np.ndarray, generated: np.ndarray) -> float:
    """KL(generated ‖ reference) of the softmaxed logits, with ε added to the reference's probabilities."""
    return float(kl_divergence(softmax(generated), softmax(reference), EPSILON))


def exact(reference: np.ndarray, generated: np.ndarray) -> float:
    """KL(reference ‖ generated) of the softmaxed logits, without ε."""
    check_classes(reference, generated)
    p, q = (special.log_softmax(np.asarray(logits, np.float64)) for logits in (reference, generated))
    return float((np.exp(p) * (p - q)).sum())


def paired_kl(
    reference: Mapping[str, np.ndarray],
    generated: Mapping[str, np.ndarray],
    divergence: Callable[[np.ndarray, np.ndarray], float] = smoothed,
) -> dict[str, float]:
    """A divergence of logits (reference, generated) by clip id, sorted; an id without its partner raises UserError."""
    check_pairs(reference, generated)
    return {clip_id: divergence(reference[clip_id], generated[clip_id]) for clip_id in sorted(generated)}


def check_pairs(reference: Collection[str], generated: Collection[str]) -> None:
    """Raise UserError, naming ids, unless both sets have the same clip ids, and at least one."""
    unpaired = sorted(set(generated) - set(reference))
    missing = sorted(set(reference) - set(generated))
    if unpaired:
        raise UserError(f"no reference clip for generated {names_of(unpaired)}; pairs are never skipped")
    if missing:
        raise UserError(f"no generated sound for reference {names_of(missing)}; pairs are never skipped")
    if not generated:
        raise UserError("no pairs of reference and generated sounds to compare")


def names_of(ids: Sequence[str]) -> str:
    """Ids of clips in a message."""
    return f"{'clip' if len(ids) == 1 else 'clips'} {first_of(ids)}"


def inception_influence(logits: Mapping[str, np.ndarray]) -> Influence:
    """Influence of each sound on the score of all sounds together."""
    entropies, sums = _gather(logits, np.zeros(len(logits), int), 1)
    mean = np.maximum(sums[0] / len(logits), np.finfo(np.float64).tiny)
    score = _score(entropies, sums[0])
    return Influence(SetInfluence.of(score * (entropies - np.concatenate([p @ np.log(mean) for p in _probabilities(logits)]))))


def inception_score(logits: Mapping[str, np.ndarray], seed: int) -> tuple[float, float, int]:
    """The inception score (Salimans et al. 2016): high if a classifier is certain of each sound and the classes vary.

    Mean and standard deviation of the scores of ten splits of the sounds, shuffled by the seed, and the number of splits.

    A score is exp of the mean KL(p ‖ mean p), with p the softmaxed logits [K]; it lies between 1 and K, and cannot exceed the
    number of sounds. With fewer than a hundred sounds there is one split.
    """
    if not len(logits):
        raise UserError("no logits of generated sounds: an inception score needs a classifier")
    splits = INCEPTION_SPLITS if len(logits) >= INCEPTION_SPLITS * FEWEST_IN_SPLIT else 1
    shuffled = np.random.default_rng(seed).permutation(len(logits))
    part = np.empty(len(logits), int)  # split of each sound
    for number, members in enumerate(np.array_split(shuffled, splits)):
        part[members] = number
    entropies, sums = _gather(logits, part, splits)
    scores = [_score(entropies[part == number], sums[number]) for number in range(splits)]
    return float(np.mean(scores)), float(np.std(scores)), splits


def _score(entropies: np.ndarray, total: np.ndarray) -> float:
    """Score of sounds with these Σ p·ln p [n], whose p sum to `total` [K]."""
    return float(np.exp(entropies.mean() - _negative_entropy(total / len(entropies))))


def _gather(logits: Mapping[str, np.ndarray], part: np.ndarray, splits: int) -> tuple[np.ndarray, np.ndarray]:
    """Σ p·ln p of every sound [N], and the sum of p of each split [splits, K]; `part` [N] is the split of each sound."""
    entropies, sums, start = [], 0, 0
    for p in _probabilities(logits):
        entropies.append(_negative_entropy(p))
        chosen = part[start : start + len(p)] == np.arange(splits)[:, None]
        sums = sums + chosen.astype(np.float64) @ p
        start += len(p)
    return np.concatenate(entropies), sums


def _probabilities(logits: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Softmaxed logits of all sounds in order, in chunks [≤ CHUNK, K]."""
    ids = list(logits)
    for start in range(0, len(ids), CHUNK):
        yield softmax(np.stack([logits[clip_id] for clip_id in ids[start : start + CHUNK]]))


def _negative_entropy(p: np.ndarray) -> np.ndarray:
    """Σ p·ln p over the last axis, with 0·ln 0 = 0."""
    return -special.entr(p).sum(axis=-1)
