"""Do scores follow damage? Real sounds against others, whole and ever more damaged, by every embedder whose weights are here.

Folds 1 and 2 of ESC-10 are the reference; fold 3 is scored, first as it is, which is near the floor, then in more and more noise,
low-passed, clipped, and at last as silence or noise alone.

SOUNDMILL_WEIGHTS=../shared/models python -m bench.degradations
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from bench import measure
from soundmill import shards
from soundmill.audio.resample import resample
from soundmill.decoding.decode import read_mono
from soundmill.errors import UserError
from soundmill.evaluation import embedders, features, protocols, scores
from soundmill.evaluation.features import MAX_SECONDS

RATE = 16_000
METRICS = ("fad", "mmd", "kl")
PARTS = ((3,), (1, 2))  # folds that are scored, and those of the reference
SECONDS = 5

Damage = Callable[[np.ndarray, str], np.ndarray]


def in_noise(decibels: float) -> Damage:
    """White noise, so many decibels softer than the sound is on average over its loudest second."""

    def damage(wave: np.ndarray, name: str) -> np.ndarray:
        random = np.random.default_rng(int(shards.digest("noise", name), 16))
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
    """So loud that this share of the samples lies beyond full scale, and as loud as before."""

    def damage(wave: np.ndarray, _: str) -> np.ndarray:
        edge = max(float(np.quantile(np.abs(wave), 1 - share)), 1e-4)
        return np.clip(wave, -edge, edge)

    return damage


def silent(wave: np.ndarray, _: str) -> np.ndarray:
    return np.zeros_like(wave)


def only_noise(wave: np.ndarray, name: str) -> np.ndarray:
    random = np.random.default_rng(int(shards.digest("alone", name), 16))
    return (0.1 * random.standard_normal(len(wave))).astype(np.float32)


# What grows from one to the next; of each kind scores should grow as well.
DAMAGES: dict[str, dict[str, Damage]] = {
    "as it is": {"": lambda wave, _: wave},
    "noise": {f"{level} dB softer": in_noise(level) for level in (30, 20, 10, 0)},
    "low-pass": {f"{hertz} Hz": low_pass(hertz) for hertz in (6000, 3000, 1500, 750)},
    "clipping": {f"{share:.0%} of the samples": clipped(share) for share in (0.05, 0.2, 0.5)},
    "silence": {"": silent},
    "white noise": {"": only_noise},
}


def folds(corpus: Path, numbers: Iterable[int]) -> list[tuple[str, Path]]:
    """(name, file) of ESC-10's recordings of these folds, which their names begin with."""
    wanted = {str(number) for number in numbers}
    return [(path.stem, path) for path in sorted(corpus.rglob("*.ogg")) if path.name.partition("-")[0] in wanted]


def score(corpus: Path, config: features.EmbedderConfig, every: int = 1) -> dict[str, dict[str, float]]:
    """By set ("noise 30 dB softer") its scores by key; KL is to the same sounds undamaged. Takes every so many-th recording."""
    test, reference = (
        {name: read_mono(path, RATE, MAX_SECONDS) for name, path in folds(corpus, numbers)[::every]} for numbers in PARTS
    )
    if not test or not reference:
        raise UserError(f"{corpus}: no recordings of folds 1 to 3 (1-100032-A.ogg …); give the directory of ESC-10")
    network = config.load()

    def hear(waves: dict[str, np.ndarray]) -> scores.EmbeddingSet:
        at_rate = [resample(np.clip(wave, -1, 1), RATE, network.sample_rate) for wave in waves.values()]
        found = network.embed(at_rate)
        return scores.EmbeddingSet.of(dict(zip(waves, found.frames, strict=True)), dict(zip(waves, found.logits, strict=True)))

    whole, found = hear(reference), {}
    as_it_is = hear(test)
    metrics = [metric for metric in METRICS if protocols.supports(config.name, metric)]
    for kind, steps in DAMAGES.items():
        for step, damage in steps.items():
            side = hear({name: damage(wave, name) for name, wave in test.items()})
            found[f"{kind} {step}".strip()] = {
                f"{metric}_{config.name}": _value(metric, side, as_it_is if scores.METRICS[metric].paired else whole)
                for metric in metrics
            }
            print(f"{kind} {step}".strip(), found[f"{kind} {step}".strip()], flush=True)
    return found


def _value(metric: str, first: scores.EmbeddingSet, second: scores.EmbeddingSet) -> float:
    return scores.compute(metric, first, second, seed=0, replicates=0)["value"]


def rows(found: dict[str, dict[str, float]]) -> str:
    """A Markdown table."""
    keys = list(found["as it is"])
    lines = ["| fold 3 | " + " | ".join(keys) + " |", "|---|" + "--:|" * len(keys)]
    for name, of in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{of[key]:.4g}" if key in of else "–" for key in keys) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=measure.ROOT.parent / "shared" / "data" / "esc10", help="ESC-10")
    parser.add_argument("--tagger", type=Path, help="directory of a pipeline's tagger, to score with it as well")
    args = parser.parse_args()
    names = [name for name in embedders.NAMES if name != "tagger" and embedders.unavailable(name) is None]
    configs = [features.EmbedderConfig(name) for name in names] + (
        [features.EmbedderConfig("tagger", args.tagger)] if args.tagger else []
    )
    found: dict[str, dict[str, float]] = {}
    for config in configs:
        for name, of in score(args.corpus, config).items():
            found.setdefault(name, {}).update(of)
    print(rows(found))


if __name__ == "__main__":
    main()
