"""KL divergence between a classifier's outputs for a real clip and for the sound generated in its place, over pairs by clip id."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from soundmill.errors import UserError

EPSILON = 1e-6  # added to the generated sound's probabilities, as audioldm_eval does


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in float64, stable for any size of logit."""
    logits = np.asarray(logits, dtype=np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def kl_divergence(reference: np.ndarray, generated: np.ndarray, epsilon: float) -> np.ndarray:
    """KL(reference ‖ generated) = Σ p·(ln p − ln(q + ε)) over the last axis of two sets of probabilities, in nats."""
    p, q = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if p.shape[-1] != q.shape[-1]:
        raise UserError(f"probabilities over {p.shape[-1]} and {q.shape[-1]} classes cannot be compared: one classifier for both")
    terms = np.zeros(np.broadcast_shapes(p.shape, q.shape))
    p = np.broadcast_to(p, terms.shape)
    held = p > 0  # 0·ln 0 = 0
    terms[held] = p[held] * (np.log(p[held]) - np.log(np.broadcast_to(q, terms.shape)[held] + epsilon))
    return terms.sum(axis=-1)


def paired_kl(reference: Mapping[str, np.ndarray], generated: Mapping[str, np.ndarray]) -> dict[str, float]:
    """KL(ref ‖ gen) of the softmaxed logits of every clip id, sorted by id; an id without its partner raises UserError."""
    check_pairs(reference, generated)
    divergences, bad = {}, {"reference": [], "generated": []}
    for clip_id in sorted(generated):
        pair = {"reference": reference[clip_id], "generated": generated[clip_id]}  # once: they may be read from disk
        wrong = [name for name, logits in pair.items() if not np.isfinite(logits).all()]
        for name in wrong:
            bad[name].append(clip_id)
        if not wrong:
            divergences[clip_id] = float(kl_divergence(softmax(pair["reference"]), softmax(pair["generated"]), EPSILON))
    for name, ids in bad.items():
        if ids:
            raise UserError(f"classifier logits of {name} {names_of(ids)} are not finite; the sound or the weights are at fault")
    return divergences


def check_pairs(reference: Mapping[str, object], generated: Mapping[str, object]) -> None:
    """Raise UserError, naming ids, unless both sides hold the same clip ids, and at least one."""
    lonely = sorted(set(generated) - set(reference))
    missing = sorted(set(reference) - set(generated))
    if lonely:
        raise UserError(f"no reference clip for generated {names_of(lonely)}; a pair is never skipped")
    if missing:
        raise UserError(f"no generated sound for reference {names_of(missing)}; a pair is never skipped")
    if not generated:
        raise UserError("no pairs of reference and generated sounds to compare")


def names_of(ids: list[str]) -> str:
    """Of clips, for people."""
    shown = ", ".join(ids[:10])
    return f"clip {shown}" if len(ids) == 1 else f"clips {shown}{f' and {len(ids) - 10} more' if len(ids) > 10 else ''}"
