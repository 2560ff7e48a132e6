"""Scores by sampling steps and seconds: which samplers are as good as 200 steps of DDPM, and how much faster?

Every sampler and number of steps generates sounds for the same test clips, from their first captions and the same noise. Each set
is scored by the evaluation's protocol against all real clips. As good means within the interval of DDPM's 200 steps, or better.
Seconds are those of sampling; decoding takes the same time for all and is reported separately.

SOUNDMILL_WEIGHTS=../shared/models python -m bench.samplers data/models/tango --reference data --prompts 40
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench import measure
from bench.picture import GRID, INK, MUTED
from soundmill.audio.flac import write_wav
from soundmill.diffusion.sampling import Given
from soundmill.errors import UserError
from soundmill.evaluation import embedders, family, folders, protocols
from soundmill.evaluation.library import Setup

if TYPE_CHECKING:
    from soundmill.models.tango.model import Tango

EMBEDDERS = ("yamnet", "tagger")
COLOURS = {"ddpm": "#8a6fb0", "ddim": "#c8553d", "dpm++": "#2a78b0", "unipc": "#3d8f62"}
STEPS = {
    "ddpm": (25, 50, 100, 200),
    "ddim": (5, 10, 25, 50, 100),
    "dpm++": (5, 10, 15, 25, 50),
    "unipc": (5, 10, 15, 25, 50),
}
REFERENCE = "ddpm"  # at its largest number of steps
CODEC_CLIPS = 16
PROBE_CLIPS = 1000


def main() -> None:
    parser = measure.parser(__doc__, prompts=40, seed=0, bootstrap=200)
    parser.add_argument("checkpoint", type=Path, help="directory of a tango checkpoint")
    parser.add_argument(
        "--reference",
        type=Path,
        default=measure.ROOT / "data",
        help="data directory of a pipeline: clips/, catalog/, tagger/",
    )
    for sampler, default in STEPS.items():
        parser.add_argument(f"--{sampler}", type=int, nargs="+", default=default, metavar="STEPS", help=f"default: {default}")
    args = parser.parse_args()
    steps = {sampler: sorted(getattr(args, sampler)) for sampler in STEPS}
    with measure.workplace(args.work) as place:
        generated = make(args.checkpoint, args.reference, steps, args.prompts, args.seed, Path(place))
        scores = score(generated, args.reference, args.bootstrap, args.seed, Path(place))
    against = Run(REFERENCE, steps[REFERENCE][-1])
    clock = "cpu" if generated.about["device"] == "cpu" else "wall"  # other processes hardly affect CPU seconds
    as_good = {
        metric: fastest(scores, generated.seconds, clock, metric, against)
        for metric in sorted(scores[against])
        if metric != "baselines"
    }
    for run, row in scores.items():
        summary = ", ".join(f"{metric} {row[metric]['value']:.3g}" for metric in as_good)
        print(f"{run}: {generated.seconds[run]['wall']:.3g} s, {generated.seconds[run]['cpu']:.3g} CPU s; {summary}")
    for metric, best in as_good.items():
        faster = best["times_faster"]
        print(f"{metric} as good as {against}: {best['run']}, {faster[clock]:.3g}× faster in {clock} seconds")
    measure.write(
        "samplers",
        args.results,
        generated.prompts,
        {str(run): [seconds["wall"]] for run, seconds in generated.seconds.items()},
        [],
        cpu_seconds={str(run): [seconds["cpu"]] for run, seconds in generated.seconds.items()},
        seconds_to_sound=generated.to_sound,
        scores={str(run): row for run, row in scores.items()},
        against=str(against),
        as_good=as_good,
        **generated.about,
    )
    for_one = {run: seconds[clock] / generated.prompts for run, seconds in generated.seconds.items()}
    draw(scores, for_one, f"{clock} seconds", generated.prompts, against, args.results / "samplers.png")


class Run(NamedTuple):
    sampler: str
    steps: int

    def __str__(self) -> str:
        return f"{self.sampler} {self.steps}"


@dataclass(frozen=True)
class Generated:
    """Files of every run (`<clip id>.wav`), and their cost."""

    files: dict[Run, list[Path]]
    codec: list[Path]
    seconds: dict[Run, dict[str, float]]  # wall and cpu, of sampling
    to_sound: float  # median wall seconds of decoding, for all prompts
    sample_rate: int
    about: dict[str, Any]

    @property
    def prompts(self) -> int:
        return len(next(iter(self.files.values())))


def make(checkpoint_dir: Path, data: Path, steps: dict[str, list[int]], count: int, seed: int, work: Path) -> Generated:
    from soundmill.models import catalog as catalogs
    from soundmill.models import registry, sounds
    from soundmill.models.components.text_states import states as text_states
    from soundmill.models.family import Run as FamilyRun
    from soundmill.models.family import origin
    from soundmill.training.device import pick_device, use_threads

    model = registry.family("tango").load(checkpoint_dir)
    use_threads(model.params.hardware.threads)
    labels = catalogs.read_labels(data / "catalog/default.parquet")["test"]
    clip_ids = catalogs.choose_balanced(labels, count)
    if len(clip_ids) < 2:
        raise UserError(f"{data}: {len(clip_ids)} test clips, but scores need at least 2")
    asked = sounds.of_clips(model, data / "catalog/default.parquet", clip_ids, seed)
    device, rate = pick_device("auto"), model.sample_rate
    lengths = {
        clip_id: round(seconds * rate) for clip_id, seconds in catalogs.durations_of(data / "clips/default", clip_ids).items()
    }
    *states, empty = text_states.encode(model.text, [*(request.caption for request in asked.values()), ""], measure.ROOT, work)
    null = text_states.null_of(model.params.null_text, empty)
    train = model.params
    how = FamilyRun(train.sampling, device, train.hardware.precision, train.items, measure.ROOT, work)

    sampler = Sampler(model, dict(zip(clip_ids, states, strict=True)), null, [request.seed for request in asked.values()], how)
    sampler(Run(REFERENCE, 1))  # the first run chooses kernels and fills caches
    files, seconds, to_sound = {}, {}, []
    for run in [Run(name, number) for name, numbers in steps.items() for number in numbers]:
        latents, seconds[run] = sampler(run)
        start = time.perf_counter()
        files[run] = sampler.write(latents, lengths, work / str(run))
        to_sound.append(time.perf_counter() - start)
        print(f"{run}: {seconds[run]['wall']:.3g} s for {len(clip_ids)} sounds", flush=True)
    codec = []
    (work / "codec").mkdir()
    for clip_id, wave in sounds.reconstruct_each(
        model, catalogs.waves_of(data / "clips/default", set(clip_ids[:CODEC_CLIPS])), how
    ):
        codec.append(work / "codec" / f"{clip_id}.wav")
        write_wav(codec[-1], wave.numpy(), rate)
    sampling = model.params.sampling.model_dump(exclude={"sampler", "num_steps"})
    about = {
        "checkpoint": origin(checkpoint_dir),
        "device": device.type,
        "sampling": sampling,
        "seed": seed,
    }
    return Generated(files, sorted(codec), seconds, statistics.median(to_sound), rate, about)


@dataclass(frozen=True)
class Sampler:
    """A model with fixed texts and noise, sampled in different ways."""

    model: Tango
    states: dict[str, np.ndarray]  # by clip id
    null: np.ndarray
    seeds: list[int]
    how: Any  # models/family.py: Run

    def __call__(self, run: Run) -> tuple[Any, dict[str, float]]:
        from soundmill.models.tango.model import sample_latents

        sampling = self.how.sampling.model_copy(update={"sampler": run.sampler, "num_steps": run.steps})
        wall, cpu = time.perf_counter(), time.process_time()
        states = list(self.states.values())
        latents = sample_latents(self.model, states, self.null, self.seeds, replace(self.how, sampling=sampling), Given())
        # The latents are on the CPU, so a GPU has finished.
        return latents, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    def write(self, latents: Any, lengths: dict[str, int], directory: Path) -> list[Path]:
        directory.mkdir()
        waves = self.model.codec(self.how).decode(latents)
        paths = [directory / f"{clip_id}.wav" for clip_id in self.states]
        for path, wave in zip(paths, waves, strict=True):
            write_wav(path, wave[:, : lengths[path.stem]].numpy(), self.model.sample_rate)
        return paths


def score(generated: Generated, data: Path, replicates: int, seed: int, work: Path) -> dict[Run, dict[str, Any]]:
    """By run `fad_<embedder>`, `kl_<embedder>` and, for clips with one label, `label_accuracy_<embedder>`; and `baselines`.

    Embedders without weights are skipped.
    """
    names = [name for name in EMBEDDERS if embedders.unavailable(name) is None]
    if missing := [f"{name} ({embedders.unavailable(name)})" for name in EMBEDDERS if name not in names]:
        print(f"skipped: {', '.join(missing)}")
    protocol = protocols.load("project").with_embedders(names)
    chosen = [score for score in protocol.scores if score.metric in ("fad", "kl")]
    protocol = protocol.model_copy(update={"scores": chosen, "replicates": replicates, "seed": seed})
    setup = Setup(protocol, work / "embeddings", measure.WORKERS, data / "tagger")
    catalog = family.read_catalog(data / "catalog/default.parquet")
    options = protocols.EvaluateParams.model_construct(reference="all", probe_clips=PROBE_CLIPS, training_clips=0, subsets=[])
    scores = {}
    for run, files in generated.files.items():
        sounds, codec = ({path.stem: path for path in paths} for paths in (files, generated.codec))
        source = family.Source(catalog, data / "clips/default", sounds, codec, folders.About())
        metrics = family.evaluate(setup, source, options, {}).metrics
        scores[run] = {
            f"{metric}_{name}": {end: metrics[key] for end, key in _keys(f"{metric}_{name}") if key in metrics}
            for name in names
            for metric in ("fad", "kl", "label_accuracy")
            if metrics.get(f"{metric}_{name}") is not None
        }
        scores[run]["baselines"] = {
            name: {metric: metrics["baselines"].get(f"{metric}_{name}", {}) for metric in ("fad", "kl", "label_accuracy")}
            for name in names
        }
    return scores


def _keys(key: str) -> list[tuple[str, str]]:
    return [("value", key), ("low", f"{key}_low"), ("high", f"{key}_high")]


def fastest(
    scores: dict[Run, dict[str, Any]], seconds: dict[Run, dict[str, float]], clock: str, metric: str, against: Run
) -> dict[str, Any]:
    """The fastest run that is as good as `against`: no worse than the worse end of its interval."""
    bar = scores[against][metric]
    if metric.startswith("label_accuracy"):
        equal = [run for run in scores if scores[run][metric]["value"] >= bar.get("low", bar["value"])]
    else:
        equal = [run for run in scores if scores[run][metric]["value"] <= bar.get("high", bar["value"])]
    best = min(equal, key=lambda run: seconds[run][clock])
    faster = {name: seconds[against][name] / seconds[best][name] for name in ("wall", "cpu")}
    return {"run": str(best), "steps": best.steps, "times_faster": faster, "all": [str(run) for run in equal]}


def draw(scores: dict[Run, dict[str, Any]], seconds: dict[Run, float], clock: str, prompts: int, against: Run, path: Path) -> None:
    """Each metric over steps and over seconds per sound; the band is the interval of `against`."""
    from matplotlib.ticker import LogFormatter

    from soundmill.drawing import Figure

    metrics = [metric for metric in scores[against] if metric.startswith(("fad", "kl_yamnet"))]
    figure = Figure(figsize=(4.8 * len(metrics), 7.5), layout="constrained")
    axes = figure.subplots(2, len(metrics), squeeze=False, sharey="col")
    steps = {run: float(run.steps) for run in scores}
    for column, metric in enumerate(metrics):
        kind, embedder = metric.split("_")
        bar, codec = scores[against][metric], scores[against]["baselines"][embedder][kind]["codec"]
        values = {run: row[metric] for run, row in scores.items()}
        for axis, places, label in zip(
            axes[:, column], (steps, seconds), ("sampling steps", f"{clock} of sampling per sound"), strict=True
        ):
            axis.axhspan(bar.get("low", bar["value"]), bar.get("high", bar["value"]), color=GRID, alpha=0.6, linewidth=0)
            axis.axhline(codec, color=MUTED, linestyle=":", label="through the codec")
            for sampler, colour in COLOURS.items():
                _line(axis, sampler, {run: places[run] for run in scores if run.sampler == sampler}, values, colour)
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(LogFormatter())  # plain numbers
            axis.xaxis.set_minor_formatter(LogFormatter())
            axis.set_xlabel(label, color=MUTED)
            axis.grid(color=GRID, linewidth=0.6)
            axis.set_axisbelow(True)
        axes[0, column].set_title(metric, loc="left", color=INK)
        axes[0, column].set_ylim(bottom=0)
    axes[0, -1].legend(frameon=False)
    figure.suptitle(f"{prompts} prompts, the same noise; grey: the 95 % interval of {against}", color=INK)
    figure.savefig(path, dpi=110)
    print(path)


def _line(axis: Any, label: str, places: dict[Run, float], values: dict[Run, dict[str, float]], colour: str) -> None:
    for run, place in places.items():
        one = values[run]
        axis.plot([place, place], [one.get("low", one["value"]), one.get("high", one["value"])], color=colour, linewidth=1)
    heights = [values[run]["value"] for run in places]
    axis.plot(list(places.values()), heights, "o-", color=colour, markersize=5, linewidth=1.5, label=label)


if __name__ == "__main__":
    main()
