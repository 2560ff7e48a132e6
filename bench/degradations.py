"""Scores of increasingly degraded sounds, by every embedder whose weights are available.

Folds 1 and 2 of ESC-10 are the reference. Fold 3 is scored: unchanged, which is near the floor; with increasing noise, low-passed,
clipped; replaced by silence and by noise.

SOUNDMILL_WEIGHTS=../shared/models python -m bench.degradations
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from bench import measure
from soundmill import hashing
from soundmill.audio.resample import resample
from soundmill.decoding.decode import read_mono
from soundmill.errors import UserError
from soundmill.evaluation import embedders, features, protocols
from soundmill.evaluation.features import MAX_SECONDS
from soundmill.metrics import scores

RATE = 16_000
METRICS = ("fad", "mmd", "kl")
PARTS = ((3,), (1, 2))  # folds that are scored, folds of the reference
SECONDS = 5

Damage = Callable[[np.ndarray, str], np.ndarray]


def add_noise(decibels: float) -> Damage:
    """Add white noise, this many dB below the mean level of the sound's loudest second."""

    def damage(wave: np.ndarray, name: str) -> np.ndarray:
        random = np.random.default_rng(int(hashing.digest("noise", name), 16))
        seconds = [np.mean(np.square(part)) for part in np.array_split(wave, SECONDS)]
        level = np.sqrt(max(seconds)) * 10 ** (-decibels / 20)
        return wave + (level * random.standard_normal(len(wave))).astype(np.float32)

    return damage


def low_pass(hertz: float) -> Damage:
    def damage(wave: np.ndarray, _: str) -> np.ndarray:
        from scipy import signal

        return signal.sosfiltfilt(signal.butter(8, hertz, fs=RATE, output="sos"), wave).astype(np.float32)

    return damage


def clipped(share: float) -> Damage:
    """Clip this share of the samples, at unchanged level."""

    def damage(wave: np.ndarray, _: str) -> np.ndarray:
        edge = max(float(np.quantile(np.abs(wave), 1 - share)), 1e-4)
        return np.clip(wave, -edge, edge)

    return damage


def silent(wave: np.ndarray, _: str) -> np.ndarray:
    return np.zeros_like(wave)


def only_noise(wave: np.ndarray, name: str) -> np.ndarray:
    random = np.random.default_rng(int(hashing.digest("alone", name), 16))
    return (0.1 * random.standard_normal(len(wave))).astype(np.float32)


# Each kind in increasing strength, with which scores should grow.
DAMAGES: dict[str, dict[str, Damage]] = {
    "unchanged": {"": lambda wave, _: wave},
    "noise": {f"{level} dB softer": add_noise(level) for level in (30, 20, 10, 0)},
    "low-pass": {f"{hertz} Hz": low_pass(hertz) for hertz in (6000, 3000, 1500, 750)},
    "clipping": {f"{share:.0%} of the samples": clipped(share) for share in (0.05, 0.2, 0.5)},
    "silence": {"": silent},
    "white noise": {"": only_noise},
}


def folds(corpus: Path, numbers: Iterable[int]) -> list[tuple[str, Path]]:
    """(name, file) of ESC-10's recordings of these folds; names begin with the fold."""
    prefixes = {str(number) for number in numbers}
    return [(path.stem, path) for path in sorted(corpus.rglob("*.ogg")) if path.name.partition("-")[0] in prefixes]


def score(corpus: Path, embedder: features.EmbedderConfig, every: int = 1) -> dict[str, dict[str, float]]:
    """Scores by set ("noise 30 dB softer") and key, from every `every`-th recording; KL is relative to the unchanged sounds."""
    test, reference = (
        {name: read_mono(path, RATE, MAX_SECONDS) for name, path in folds(corpus, numbers)[::every]} for numbers in PARTS
    )
    if not test or not reference:
        raise UserError(f"{corpus}: no recordings of folds 1 to 3 (1-100032-A.ogg …); give the directory of ESC-10")
    network = embedder.load()

    def embed(waves: dict[str, np.ndarray]) -> scores.EmbeddingSet:
        at_rate = [resample(np.clip(wave, -1, 1), RATE, network.sample_rate) for wave in waves.values()]
        embeddings = network.embed(at_rate)
        frames, logits = (dict(zip(waves, rows, strict=True)) for rows in (embeddings.frames, embeddings.logits))
        return scores.EmbeddingSet.of(frames, logits)

    whole, results = embed(reference), {}
    unchanged = embed(test)
    metrics = [metric for metric in METRICS if protocols.supports(embedder.name, metric)]
    for kind, steps in DAMAGES.items():
        for step, damage in steps.items():
            side = embed({name: damage(wave, name) for name, wave in test.items()})
            results[f"{kind} {step}".strip()] = {
                f"{metric}_{embedder.name}": _value(metric, side, unchanged if scores.METRICS[metric].paired else whole)
                for metric in metrics
            }
            print(f"{kind} {step}".strip(), results[f"{kind} {step}".strip()], flush=True)
    return results


def _value(metric: str, first: scores.EmbeddingSet, second: scores.EmbeddingSet) -> float:
    return scores.compute(metric, first, second, seed=0, replicates=0)["value"]


def rows(found: dict[str, dict[str, float]]) -> str:
    """A Markdown table."""
    keys = list(found["unchanged"])
    lines = ["| fold 3 | " + " | ".join(keys) + " |", "|---|" + "--:|" * len(keys)]
    for name, of in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{of[key]:.4g}" if key in of else "–" for key in keys) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=measure.ROOT.parent / "shared" / "data" / "esc10", help="ESC-10")
    parser.add_argument("--tagger", type=Path, help="directory of a pipeline's tagger, used as another embedder")
    args = parser.parse_args()
    names = [name for name in embedders.NAMES if name != "tagger" and embedders.unavailable(name) is None]
    chosen = [features.EmbedderConfig(name) for name in names]
    if args.tagger:
        chosen.append(features.EmbedderConfig("tagger", args.tagger))
    results: dict[str, dict[str, float]] = {}
    for embedder in chosen:
        for name, values in score(args.corpus, embedder).items():
            results.setdefault(name, {}).update(values)
    print(rows(results))


if __name__ == "__main__":
    main()
