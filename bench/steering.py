"""Prompt following of a text-to-sound checkpoint: sounds classified by YAMNet, compared with shuffled prompts.

One prompt for each family of bench/prompt_following.py, from the captions of the test clips of a prepared ESC-10 or ESC-50. Sounds
are generated with two guidance scales from the same noise. They are compared with the real clips of the prompts, and with these
clips encoded and decoded by the autoencoder, an upper bound for the model. KL is that of the evaluation, sound by sound, to a real
test clip of the same prompt.

SOUNDMILL_WEIGHTS=../shared/models python -m bench.steering data/models/tango --reference data
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import measure
from bench import prompt_following as following
from bench.picture import GRID, INK, MET, MISSED, MUTED
from bench.prompt_following import ClassScores
from soundmill import manifest, shards
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.evaluation import embedders, features
from soundmill.evaluation.divergence import paired_kl
from soundmill.evaluation.family import read_catalog, shards_of

if TYPE_CHECKING:
    from soundmill.models.tango.model import Tango

REAL, CODEC = "real clips", "through the codec"
SHOWN = 4  # generated sounds per prompt in the picture, next to a real one


def main() -> None:
    parser = measure.parser(__doc__, sounds=8, seed=0, replicates=10_000)
    parser.add_argument("checkpoint", type=Path, help="directory of a tango checkpoint")
    parser.add_argument(
        "--reference", type=Path, default=measure.ROOT / "data", help="data directory of a pipeline: clips/, catalog/"
    )
    parser.add_argument("--guidance", type=float, nargs=2, default=[3.0, 1.0], help="the two scales to compare (default: 3 1)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the checkpoint's)")
    args = parser.parse_args()

    from soundmill.models import generation, registry
    from soundmill.models.family import origin

    model = registry.family("tango").load(args.checkpoint)
    rate = model.sample_rate
    asked = prompts(args.reference, args.sounds)
    waves = {REAL: real_waves(args.reference, asked)}
    waves[CODEC] = decode_encoded(model, waves[REAL])
    seconds = {}
    with measure.workplace(args.work) as place:
        for scale in args.guidance:
            start = time.perf_counter()
            texts = [one.text for one in asked.values()]
            settings = [f"guidance_scale={scale}", *([f"num_steps={args.steps}"] if args.steps else [])]
            sounds = Path(place) / f"{scale:g}"
            paths = generation.generate_sounds(args.checkpoint, texts, args.sounds, args.seed, sounds, measure.ROOT, settings)
            seconds[guidance_name(scale)] = [time.perf_counter() - start]
            generated = iter(paths)
            waves[guidance_name(scale)] = {
                family: [decode.read_mono(next(generated), rate, features.MAX_SECONDS)[: len(real)] for real in waves[REAL][family]]
                for family in asked
            }
    classified = classify(waves, rate)
    found = classified.compare(guidance_name(args.guidance[0]), guidance_name(args.guidance[1]), args.replicates, args.seed)
    show(found)
    measure.write(
        "steering",
        args.results,
        args.sounds * len(asked),
        seconds,
        [],
        prompts={family: {"text": one.text, "clips": one.clips} for family, one in asked.items()},
        checkpoint=origin(args.checkpoint),
        steps=args.steps or model.params.sampling.num_steps,
        sampler=model.params.sampling.sampler,
        seed=args.seed,
        **found,
    )
    classified.draw(found, guidance_name(args.guidance[0]), args.results / "steering.png")
    draw_spectrograms(model, waves, guidance_name(args.guidance[0]), classified, asked, args.results / "steering_spectrograms.png")


def guidance_name(scale: float) -> str:
    return f"guidance {scale:g}"


@dataclass(frozen=True)
class Prompt:
    """A prompt and the real clips that it describes, as many as sounds; repeated if there are fewer."""

    text: str
    clips: list[str]


def prompts(reference: Path, count: int) -> dict[str, Prompt]:
    """For each family among the labels of the test clips, its caption and `count` clips."""
    columns = ["clip_id", "split", "labels", "captions"]
    rows = shards.read_table(reference / "catalog/default.parquet", manifest.CATALOG, columns).to_pylist()
    clips_of: dict[str, list[tuple[str, str]]] = {family: [] for family in following.FAMILIES}
    for row in sorted(rows, key=lambda row: row["clip_id"]):
        labels = row["labels"] or []
        if row["split"] == "test" and len(labels) == 1 and labels[0] in following.FAMILY_OF_LABEL:
            text = row["captions"][0] if row["captions"] else labels[0]
            clips_of[following.FAMILY_OF_LABEL[labels[0]]].append((row["clip_id"], text))
    asked = {
        family: Prompt(clips[0][1], [clips[number % len(clips)][0] for number in range(count)])
        for family, clips in clips_of.items()
        if clips
    }
    if len(asked) < 2:
        labels = ", ".join(sorted(following.FAMILY_OF_LABEL))
        raise UserError(f"{reference}: test clips of {len(asked)} families, but at least 2 are compared (labels: {labels})")
    return asked


def real_waves(reference: Path, asked: dict[str, Prompt]) -> dict[str, list[np.ndarray]]:
    clip_ids = {clip_id for prompt in asked.values() for clip_id in prompt.clips}
    by_shard = shards_of(read_catalog(reference / "catalog/default.parquet"), reference / "clips/default", clip_ids)
    waves = {clip_id: wave.mean(axis=0) for path, ids in by_shard.items() for clip_id, wave, _ in features.clips_of(path, ids)}
    return {family: [waves[clip_id] for clip_id in prompt.clips] for family, prompt in asked.items()}


def decode_encoded(model: Tango, waves: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    from soundmill.models import generation

    def back(wave: np.ndarray) -> np.ndarray:
        ((_, decoded),) = generation.reconstruct_each(model, [("", (wave[None], model.sample_rate))], how)
        return decoded[0].numpy()

    with generation.running(model, measure.ROOT) as how:
        return {family: [back(wave) for wave in clips] for family, clips in waves.items()}


@dataclass
class Classified:
    """YAMNet's scores by source (real clips, codec, each guidance scale) and requested family."""

    names: list[str]  # YAMNet's classes
    heard: dict[str, dict[str, list[ClassScores]]]
    scores: dict[str, np.ndarray] = field(init=False)  # [prompts, sounds, families]
    families: dict[str, dict[str, list[str]]] = field(init=False)  # highest-scoring of the requested families
    top: dict[str, dict[str, list[str | None]]] = field(init=False)  # family of the highest of all classes

    def __post_init__(self) -> None:
        self.scores, self.families, self.top = {}, {}, {}
        for source, by_family in self.heard.items():
            among = list(by_family)
            scores = [[following.family_scores(one, self.names, among) for one in sounds] for sounds in by_family.values()]
            self.scores[source] = np.array(scores)
            best = self.scores[source].argmax(axis=2)
            self.families[source] = {asked: [among[one] for one in row] for asked, row in zip(among, best, strict=True)}
            self.top[source] = {
                asked: [following.family_of_top_class(one, self.names) for one in sounds] for asked, sounds in by_family.items()
            }

    def compare(self, first: str, second: str, replicates: int, seed: int) -> dict[str, Any]:
        """Shares of matches with the true and with shuffled prompts, KL, and the differences of `first` and `second`."""

        def interval(values: np.ndarray) -> dict[str, float]:
            return following.mean_with_interval(values, replicates, seed)

        kl = {source: self._kl(source) for source in self.heard if source != REAL}
        above = {source: following.rank_above_others(scores) for source, scores in self.scores.items()}
        found: dict[str, Any] = {"matches": {}, "top_class_matches": {}}
        for key, table in (("matches", self.families), ("top_class_matches", self.top)):
            for source, heard in table.items():
                own, shuffled = following.matches(heard)
                found[key][source] = {
                    "own": interval(own),
                    "shuffled": interval(shuffled),
                    "difference": interval(own - shuffled),
                }
        found["heard_above_others"] = {source: interval(values) for source, values in above.items()}
        found["kl_yamnet"] = {source: interval(values) for source, values in kl.items()}
        found["kl_by_prompt"] = {
            asked: {source: float(values[row].mean()) for source, values in kl.items()}
            for row, asked in enumerate(self.heard[REAL])
        }
        found["heard"] = {
            source: {asked: dict(Counter(heard).most_common()) for asked, heard in table.items()}
            for source, table in self.families.items()
        }
        own_first, own_second = (following.matches(self.families[source])[0] for source in (first, second))
        found["differences"] = {
            f"matches, {first} − {second}": interval(own_first - own_second),
            f"heard_above_others, {first} − {second}": interval(above[first] - above[second]),
            f"kl_yamnet, {second} − {first}": interval(kl[second] - kl[first]),
        }
        return found

    def _kl(self, source: str) -> np.ndarray:
        """KL to the real clip of the same prompt and number, [prompts, sounds]."""
        rows = []
        for asked, sounds in self.heard[source].items():
            reference = {str(number): one.logits for number, one in enumerate(self.heard[REAL][asked])}
            values = paired_kl(reference, {str(number): one.logits for number, one in enumerate(sounds)})
            rows.append([values[str(number)] for number in range(len(sounds))])
        return np.array(rows)

    def draw(self, found: dict[str, Any], source: str, path: Path) -> None:
        """Shares with intervals, a confusion matrix, and KL by prompt."""
        from soundmill.drawing import Figure

        figure = Figure(figsize=(15, 5.2), layout="constrained")
        shares, table, divergences = figure.subplots(1, 3, width_ratios=[1.1, 1.1, 1])
        _draw_shares(shares, found)
        _draw_table(table, found["heard"][source], source)
        _draw_kl(divergences, found, [one for one in found["kl_yamnet"] if one != CODEC])
        figure.savefig(path, dpi=110)
        print(path)


def classify(waves: dict[str, dict[str, list[np.ndarray]]], rate: int) -> Classified:
    """YAMNet's scores of all sounds; UserError if its weights are missing."""
    from soundmill.audio.resample import resample

    network = embedders.load("yamnet", Path())
    heard = {
        source: {
            family: [
                following.score_classes(network, wave if rate == network.sample_rate else resample(wave, rate, network.sample_rate))
                for wave in sounds
            ]
            for family, sounds in by_family.items()
        }
        for source, by_family in waves.items()
    }
    return Classified(network.classes, heard)


def show(found: dict[str, Any]) -> None:
    for source, row in found["matches"].items():
        own, shuffled = row["own"], row["shuffled"]
        top, above = found["top_class_matches"][source]["own"], found["heard_above_others"][source]
        print(
            f"{source}: {own['value']:.1%} ({own['low']:.1%} to {own['high']:.1%}; for these prompts {own['low_these']:.1%} to "
            f"{own['high_these']:.1%}) match their prompt, with prompts shuffled "
            f"{shuffled['value']:.1%} ({shuffled['low']:.1%} to {shuffled['high']:.1%}); by the top class {top['value']:.1%}; "
            f"their family scores higher than in {above['value']:.1%} ({above['low']:.1%} to {above['high']:.1%}) of other sounds"
        )
    for what, row in [*found["kl_yamnet"].items(), *found["differences"].items()]:
        print(
            f"{what if ',' in what else f'kl_yamnet, {what}'}: {row['value']:.3g} ({row['low']:.3g} to {row['high']:.3g}; "
            f"for these prompts {row['low_these']:.3g} to {row['high_these']:.3g})"
        )


def _draw_shares(axes: Any, found: dict[str, Any]) -> None:
    matches = found["matches"]
    for place, source in enumerate(matches):
        rows = [(matches[source]["own"], MET), (matches[source]["shuffled"], MUTED), (found["heard_above_others"][source], INK)]
        for (one, colour), offset in zip(rows, (-0.2, 0, 0.2), strict=True):
            axes.plot([one["low"], one["high"]], [place + offset] * 2, color=colour, linewidth=1.5, solid_capstyle="round")
            axes.plot([one["low_these"], one["high_these"]], [place + offset] * 2, color=colour, linewidth=4)
            axes.plot(one["value"], place + offset, "o", color=colour, markersize=7)
            axes.annotate(f"{one['value']:.0%}", (one["high"], place + offset), (6, 0), textcoords="offset points", va="center")
    labels = ("matches its prompt", "prompts shuffled", "scores higher than in sounds of other prompts (chance: 50 %)")
    for colour, label in zip((MET, MUTED, INK), labels, strict=True):
        axes.plot([], [], "o-", color=colour, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=1, frameon=False)
    axes.set_yticks(range(len(matches)), list(matches))
    axes.set_ylim(len(matches) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.15)
    axes.set_xticks(np.arange(0, 1.01, 0.25), ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="x", color=GRID)
    axes.set_title("Matches by YAMNet", loc="left", color=INK)
    axes.set_xlabel("95 % intervals over other seeds (thick) and over other prompts (thin)", color=MUTED, fontsize=9)


def _draw_table(axes: Any, heard: dict[str, dict[str, int]], source: str) -> None:
    asked = list(heard)
    counts = np.array([[heard[row].get(column, 0) for column in asked] for row in asked])
    axes.imshow(counts, cmap="Blues", vmin=0)
    for row, column in zip(*np.nonzero(counts), strict=True):
        light = counts[row, column] > counts.max() / 2
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color="white" if light else INK)
    axes.set_xticks(range(len(asked)), asked, rotation=45, ha="right")
    axes.set_yticks(range(len(asked)), asked)
    axes.set_ylabel("requested")
    axes.set_xlabel("recognised")
    axes.set_title(f"Families recognised in {counts.sum()} sounds, {source}", loc="left", color=INK)


def _draw_kl(axes: Any, found: dict[str, Any], compared: list[str]) -> None:
    by_prompt = found["kl_by_prompt"]
    for place, row in enumerate(by_prompt.values()):
        axes.plot([row[one] for one in compared], [place] * 2, color=GRID, linewidth=3, zorder=1)
        for one, colour in zip(compared, (MET, MISSED), strict=True):
            axes.plot(row[one], place, "o", color=colour, markersize=8, label=one if place == 0 else None)
        axes.plot(row[CODEC], place, "|", color=MUTED, markersize=14, label=CODEC if place == 0 else None)
    axes.set_yticks(range(len(by_prompt)), list(by_prompt))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x", color=GRID)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    means = ", ".join(f"{one} {found['kl_yamnet'][one]['value']:.2f}" for one in compared)
    axes.set_title(f"KL to real clips: {means}", loc="left", color=INK, fontsize=10)


def draw_spectrograms(
    model: Tango,
    waves: dict[str, dict[str, list[np.ndarray]]],
    source: str,
    classified: Classified,
    asked: dict[str, Prompt],
    path: Path,
) -> None:
    """A row for each prompt: a real clip and generated sounds, titled with the family heard."""
    from soundmill.audio import figures

    sounds, titles = [], []
    shown = min(SHOWN, len(next(iter(waves[source].values()))))
    for family, prompt in asked.items():
        sounds += [(wave[None], model.sample_rate) for wave in [waves[REAL][family][0], *waves[source][family][:shown]]]
        titles += [f"real: “{prompt.text}”", *(f"heard: {name}" for name in classified.families[source][family][:shown])]
    figure = figures.draw_waves(sounds, titles, 1 + shown, source)
    figures.save_png(figure, path)
    print(path)


if __name__ == "__main__":
    main()
