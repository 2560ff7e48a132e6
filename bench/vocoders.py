"""Comparison of vocoders: real clips reconstructed from their log-mels, scored against the originals.

Every directory holds a vocoder for the same log-mels. A DiffWave is run with the steps configured in its directory and with all
steps of its training. Griffin-Lim (32 iterations) is included, with and without speckle. FAD and KL are those of YAMNet. Speed is
in CPU seconds of one thread per second of sound.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import measure
from soundmill.audio.flac import write_wav
from soundmill.errors import UserError
from soundmill.evaluation import embedders, evaluator, protocols
from soundmill.evaluation.library import Setup

if TYPE_CHECKING:
    from soundmill.audio.mel import MelSpec
    from soundmill.models.components.contracts import Vocoder
    from soundmill.models.transforming import LogMel

GRIFFIN_LIM = {"griffin_lim_iterations": 32, "griffin_lim_momentum": 0.99}
SCORES = ("fad_yamnet", "kl_yamnet", "mrstft", "lsd")


def main() -> None:
    args = arguments()
    if why := embedders.unavailable("yamnet"):
        raise UserError(f"yamnet: {why}")
    named = vocoders(args.vocoders, args.fast_only)
    with measure.workplace(args.work) as place:
        work = Path(place)
        log_mels = read(args.reference, next(iter(named.values())).spec, args.clips, args.seconds, work / "real")
        seconds, scores = {}, {}
        for number, (name, vocoder) in enumerate(named.items()):
            seconds[name] = make(vocoder, log_mels, work / str(number))
            scores[name] = score(work, str(number), args.bootstrap)
            print(
                f"{name}: {seconds[name]:.3g} CPU s per second of sound; {', '.join(map(describe, scores[name].items()))}",
                flush=True,
            )
    numbers = {name: [value] for name, value in seconds.items()}
    measure.write("vocoders", args.results, len(log_mels), numbers, [], scores=scores, clip_seconds=args.seconds)


def arguments() -> argparse.Namespace:
    parser = measure.parser(__doc__, clips=60, bootstrap=200)
    parser.add_argument("vocoders", type=Path, nargs="+", help="directories of vocoders for the same log-mels")
    parser.add_argument("--seconds", type=float, default=2.0, help="from the start of each test clip (default: 2)")
    parser.add_argument("--fast-only", action="store_true", help="run a DiffWave only with its configured steps")
    reference = "data directory of a pipeline: clips/, catalog/ (default: the project's)"
    parser.add_argument("--reference", type=Path, default=measure.ROOT / "data", help=reference)
    return parser.parse_args()


def vocoders(directories: list[Path], fast_only: bool) -> dict[str, Vocoder]:
    """Vocoders by name; UserError if they are for different log-mels."""
    from soundmill.models import transforming
    from soundmill.models.components.contracts import GriffinLimParams
    from soundmill.models.components.diffwave.vocoder import DiffWave
    from soundmill.models.components.griffin_lim.vocoder import GriffinLim

    named: dict[str, Vocoder] = {}
    spec = None
    for directory in directories:
        vocoder = transforming.load_vocoder(directory, spec, None, False)
        spec = vocoder.spec
        if not isinstance(vocoder, DiffWave):
            named[str(directory)] = vocoder
            continue
        ways = [vocoder.sampling.betas] if fast_only else [vocoder.sampling.betas, "trained"]
        for betas in ways:
            steps = vocoder.noise.num_timesteps if betas == "trained" else len(betas)
            named[f"{directory}, {steps} steps"] = replace(vocoder, sampling=vocoder.sampling.model_copy(update={"betas": betas}))
    grains = {"Griffin-Lim": "none", "Griffin-Lim, speckle": "speckle"}
    return named | {
        name: GriffinLim(spec, GriffinLimParams(**GRIFFIN_LIM, griffin_lim_grain=grain)) for name, grain in grains.items()
    }


def read(data: Path, spec: MelSpec, count: int, seconds: float, real: Path) -> list[LogMel]:
    """Log-mels of the first seconds of test clips, balanced over labels; their waves are written as `<real>/<clip id>.wav`."""
    from soundmill.audio import mel
    from soundmill.models import catalog as catalogs
    from soundmill.models.transforming import LogMel

    clip_ids = catalogs.choose_balanced(catalogs.read_labels(data / "catalog/default.parquet")["test"], count)
    real.mkdir()
    log_mels = []
    for clip_id, (wave, rate) in catalogs.waves_of(data / "clips/default", set(clip_ids)):
        if rate != spec.sample_rate:
            raise UserError(f"{data}: clips of {rate} Hz, but these vocoders are for {spec.sample_rate} Hz")
        mono = mel.levelled(wave.mean(0)[: round(seconds * rate)], spec)
        write_wav(real / f"{clip_id}.wav", mono[None], rate)
        log_mels.append(LogMel(clip_id, mel.log_mel(mono, spec), len(mono)))
    return log_mels


def make(vocoder: Vocoder, log_mels: list[LogMel], output: Path) -> float:
    """Write a sound for every log-mel; returns CPU seconds of one thread per second of sound."""
    from soundmill.models.transforming import write_sounds
    from soundmill.training.device import use_threads

    use_threads(1)
    before = time.process_time()
    _, timing = write_sounds(vocoder, log_mels, output)
    return (time.process_time() - before) / timing.sound


def score(work: Path, name: str, replicates: int) -> dict[str, dict[str, float]]:
    """Scores with `value` and the ends of the 95 % interval, `low` and `high`."""
    protocol = protocols.load("project").with_embedders(["yamnet"])
    chosen = [score for score in protocol.scores if score.key in SCORES]
    protocol = protocol.model_copy(update={"scores": chosen, "replicates": replicates})
    setup = Setup(protocol, work / "embeddings", measure.WORKERS)
    metrics = evaluator.evaluate(setup, work / name, work / "real", reconstructions=True).metrics
    ends = {"value": "", "low": "_low", "high": "_high"}
    keys = [key for key in SCORES if metrics[key] is not None]  # FAD needs 50 clips
    return {key: {end: metrics[f"{key}{suffix}"] for end, suffix in ends.items() if f"{key}{suffix}" in metrics} for key in keys}


def describe(score: tuple[str, dict[str, float]]) -> str:
    key, ends = score
    return f"{key} {ends['value']:.4g}" + (f" ({ends['low']:.4g}–{ends['high']:.4g})" if "low" in ends else "")


if __name__ == "__main__":
    main()
