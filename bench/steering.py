"""Do prompts steer? Sounds of a trained text-to-sound checkpoint, judged by YAMNet, against the same sounds with prompts shuffled.

One prompt for each kind of sound that bench/prompt_following.py knows, as captions of the test clips of a prepared ESC-10
or ESC-50 have it; sounds of each by the family's own `generate`, under two guidance scales from the same noise. Beside them the
real clips that the prompts are of, and those through the family's autoencoder and back: no sound of the family's can be expected
to be heard better. KL is that of the evaluation: to a real test clip of the same prompt, sound by sound.

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
from bench.prompt_following import Heard
from soundmill import manifest, shards
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.evaluation import embedders, features
from soundmill.evaluation.divergence import paired_kl
from soundmill.evaluation.family import Source, read_catalog
from soundmill.evaluation.folders import About

if TYPE_CHECKING:
    from soundmill.models.tango.model import Tango

REAL, CODEC = "real clips", "through the codec"
SHOWN = 4  # generated sounds of each prompt in the picture, beside a real one


def main() -> None:
    parser = measure.parser(__doc__, sounds=8, seed=0, replicates=10_000)
    parser.add_argument("checkpoint", type=Path, help="directory of a tango checkpoint")
    parser.add_argument(
        "--reference", type=Path, default=measure.ROOT / "data", help="data directory of a pipeline: clips/, catalog/"
    )
    parser.add_argument("--guidance", type=float, nargs=2, default=[3.0, 1.0], help="the two that are compared (default: 3 1)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the checkpoint's)")
    args = parser.parse_args()

    from soundmill.models import generation, registry
    from soundmill.models.family import origin

    model = registry.family("tango").load(args.checkpoint)
    rate = model.sample_rate
    asked = prompts(args.reference, args.sounds)
    waves = {REAL: real_waves(args.reference, asked)}
    waves[CODEC] = through_codec(model, waves[REAL])
    seconds = {}
    with measure.workplace(args.work) as place:
        for scale in args.guidance:
            start = time.perf_counter()
            texts = [one.text for one in asked.values()]
            settings = [f"guidance_scale={scale}", *([f"num_steps={args.steps}"] if args.steps else [])]
            sounds = Path(place) / f"{scale:g}"
            paths = generation.generate_sounds(args.checkpoint, texts, args.sounds, args.seed, sounds, measure.ROOT, settings)
            seconds[who(scale)] = [time.perf_counter() - start]
            made = iter(paths)
            waves[who(scale)] = {
                family: [decode.read_mono(next(made), rate, features.MAX_SECONDS)[: len(real)] for real in waves[REAL][family]]
                for family in asked
            }
    judged = judge(waves, rate)
    found = judged.compare(who(args.guidance[0]), who(args.guidance[1]), args.replicates, args.seed)
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
    judged.draw(found, who(args.guidance[0]), args.results / "steering.png")
    draw_spectrograms(model, waves, who(args.guidance[0]), judged, asked, args.results / "steering_spectrograms.png")


def who(scale: float) -> str:
    return f"guidance {scale:g}"


@dataclass(frozen=True)
class Prompt:
    """What is asked for, and the real clips that it describes: as many as there are sounds, in turn where there are fewer."""

    text: str
    clips: list[str]


def prompts(reference: Path, count: int) -> dict[str, Prompt]:
    """For each kind of sound among the labels of the test clips its caption, and `count` clips."""
    columns = ["clip_id", "split", "labels", "captions"]
    rows = shards.read_table(reference / "catalog/default.parquet", manifest.CATALOG, columns).to_pylist()
    found: dict[str, list[tuple[str, str]]] = {family: [] for family in following.FAMILIES}
    for row in sorted(rows, key=lambda row: row["clip_id"]):
        labels = row["labels"] or []
        if row["split"] == "test" and len(labels) == 1 and labels[0] in following.FAMILY_OF_LABEL:
            text = row["captions"][0] if row["captions"] else labels[0]
            found[following.FAMILY_OF_LABEL[labels[0]]].append((row["clip_id"], text))
    kept = {
        family: Prompt(clips[0][1], [clips[number % len(clips)][0] for number in range(count)])
        for family, clips in found.items()
        if clips
    }
    if len(kept) < 2:
        labels = ", ".join(sorted(following.FAMILY_OF_LABEL))
        raise UserError(f"{reference}: test clips of {len(kept)} kinds of sound, at least 2 are compared (labels: {labels})")
    return kept


def real_waves(reference: Path, asked: dict[str, Prompt]) -> dict[str, list[np.ndarray]]:
    wanted = {clip_id for prompt in asked.values() for clip_id in prompt.clips}
    catalog = read_catalog(reference / "catalog/default.parquet")
    lying = Source(catalog, reference / "clips/default", {}, {}, About()).shards_of(set(wanted))
    found = {clip_id: wave.mean(axis=0) for path, ids in lying.items() for clip_id, wave, _ in features.clips_of(path, ids)}
    return {family: [found[clip_id] for clip_id in prompt.clips] for family, prompt in asked.items()}


def through_codec(model: Tango, waves: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    from soundmill.models import generation

    def back(wave: np.ndarray) -> np.ndarray:
        ((_, made),) = generation.reconstruct_each(model, [("", (wave[None], model.sample_rate))], how)
        return made[0].numpy()

    with generation.running(model, measure.ROOT) as how:
        return {family: [back(wave) for wave in clips] for family, clips in waves.items()}


@dataclass
class Judged:
    """What YAMNet heard in sounds of whom (real clips, the codec, each guidance) by the family asked for."""

    names: list[str]  # of YAMNet's classes
    heard: dict[str, dict[str, list[Heard]]]
    scores: dict[str, np.ndarray] = field(init=False)  # [prompts, sounds, families]
    families: dict[str, dict[str, list[str]]] = field(init=False)  # heard most of those asked for
    top: dict[str, dict[str, list[str | None]]] = field(init=False)  # of the strongest of all classes

    def __post_init__(self) -> None:
        self.scores, self.families, self.top = {}, {}, {}
        for whose, by_family in self.heard.items():
            among = list(by_family)
            scores = [[following.family_scores(one, self.names, among) for one in sounds] for sounds in by_family.values()]
            self.scores[whose] = np.array(scores)
            most = self.scores[whose].argmax(axis=2)
            self.families[whose] = {asked: [among[one] for one in row] for asked, row in zip(among, most, strict=True)}
            self.top[whose] = {
                asked: [following.family_of_top_class(one, self.names) for one in sounds] for asked, sounds in by_family.items()
            }

    def compare(self, first: str, second: str, replicates: int, seed: int) -> dict[str, Any]:
        """Shares of matches with prompts as they are and shuffled, KL, and how `first` and `second` differ in both."""

        def interval(values: np.ndarray) -> dict[str, float]:
            return following.mean_with_interval(values, replicates, seed)

        kl = {whose: self._kl(whose) for whose in self.heard if whose != REAL}
        above = {whose: following.rank_above_others(scores) for whose, scores in self.scores.items()}
        found: dict[str, Any] = {"matches": {}, "top_class_matches": {}}
        for key, table in (("matches", self.families), ("top_class_matches", self.top)):
            for whose, heard in table.items():
                own, shuffled = following.matches(heard)
                found[key][whose] = {
                    "own": interval(own),
                    "shuffled": interval(shuffled),
                    "difference": interval(own - shuffled),
                }
        found["heard_above_others"] = {whose: interval(values) for whose, values in above.items()}
        found["kl_yamnet"] = {whose: interval(values) for whose, values in kl.items()}
        found["kl_by_prompt"] = {
            asked: {whose: float(values[row].mean()) for whose, values in kl.items()} for row, asked in enumerate(self.heard[REAL])
        }
        found["heard"] = {
            whose: {asked: dict(Counter(heard).most_common()) for asked, heard in table.items()}
            for whose, table in self.families.items()
        }
        own_first, own_second = (following.matches(self.families[whose])[0] for whose in (first, second))
        found["differences"] = {
            f"matches, {first} − {second}": interval(own_first - own_second),
            f"heard_above_others, {first} − {second}": interval(above[first] - above[second]),
            f"kl_yamnet, {second} − {first}": interval(kl[second] - kl[first]),
        }
        return found

    def _kl(self, whose: str) -> np.ndarray:
        """To the real clip of the same prompt and number, [prompts, sounds]."""
        rows = []
        for asked, sounds in self.heard[whose].items():
            reference = {str(number): one.logits for number, one in enumerate(self.heard[REAL][asked])}
            values = paired_kl(reference, {str(number): one.logits for number, one in enumerate(sounds)})
            rows.append([values[str(number)] for number in range(len(sounds))])
        return np.array(rows)

    def draw(self, found: dict[str, Any], whose: str, path: Path) -> None:
        """Shares with their intervals, what was heard when what was asked for, and KL by prompt."""
        from soundmill.drawing import Figure

        figure = Figure(figsize=(15, 5.2), layout="constrained")
        shares, table, divergences = figure.subplots(1, 3, width_ratios=[1.1, 1.1, 1])
        _draw_shares(shares, found)
        _draw_table(table, found["heard"][whose], whose)
        _draw_kl(divergences, found, [one for one in found["kl_yamnet"] if one != CODEC])
        figure.savefig(path, dpi=110)
        print(path)


def judge(waves: dict[str, dict[str, list[np.ndarray]]], rate: int) -> Judged:
    """By YAMNet; where its weights are not, a UserError says where they belong."""
    from soundmill.audio.resample import resample

    network = embedders.load("yamnet", Path())
    heard = {
        whose: {
            family: [
                following.hear(network, wave if rate == network.sample_rate else resample(wave, rate, network.sample_rate))
                for wave in sounds
            ]
            for family, sounds in by_family.items()
        }
        for whose, by_family in waves.items()
    }
    return Judged(network.classes, heard)


def show(found: dict[str, Any]) -> None:
    for whose, row in found["matches"].items():
        own, shuffled = row["own"], row["shuffled"]
        top, above = found["top_class_matches"][whose]["own"], found["heard_above_others"][whose]
        print(
            f"{whose}: {own['value']:.1%} ({own['low']:.1%} to {own['high']:.1%}; of these very prompts {own['low_these']:.1%} to "
            f"{own['high_these']:.1%}) are heard as their prompt, with prompts shuffled "
            f"{shuffled['value']:.1%} ({shuffled['low']:.1%} to {shuffled['high']:.1%}); by the top class {top['value']:.1%}; "
            f"their family is heard more than in {above['value']:.1%} ({above['low']:.1%} to {above['high']:.1%}) of other sounds"
        )
    for what, row in [*found["kl_yamnet"].items(), *found["differences"].items()]:
        print(
            f"{what if ',' in what else f'kl_yamnet, {what}'}: {row['value']:.3g} ({row['low']:.3g} to {row['high']:.3g}; "
            f"of these very prompts {row['low_these']:.3g} to {row['high_these']:.3g})"
        )


def _draw_shares(axes: Any, found: dict[str, Any]) -> None:
    matches = found["matches"]
    for place, whose in enumerate(matches):
        rows = [(matches[whose]["own"], MET), (matches[whose]["shuffled"], MUTED), (found["heard_above_others"][whose], INK)]
        for (one, colour), offset in zip(rows, (-0.2, 0, 0.2), strict=True):
            axes.plot([one["low"], one["high"]], [place + offset] * 2, color=colour, linewidth=1.5, solid_capstyle="round")
            axes.plot([one["low_these"], one["high_these"]], [place + offset] * 2, color=colour, linewidth=4)
            axes.plot(one["value"], place + offset, "o", color=colour, markersize=7)
            axes.annotate(f"{one['value']:.0%}", (one["high"], place + offset), (6, 0), textcoords="offset points", va="center")
    labels = ("heard as its prompt", "prompts shuffled", "heard more than in others' sounds (even: 50 %)")
    for colour, label in zip((MET, MUTED, INK), labels, strict=True):
        axes.plot([], [], "o-", color=colour, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=1, frameon=False)
    axes.set_yticks(range(len(matches)), list(matches))
    axes.set_ylim(len(matches) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.15)
    axes.set_xticks(np.arange(0, 1.01, 0.25), ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="x", color=GRID)
    axes.set_title("Sounds by what YAMNet hears in them", loc="left", color=INK)
    axes.set_xlabel("95 % intervals: thick, other seeds of these prompts; thin, other prompts", color=MUTED, fontsize=9)


def _draw_table(axes: Any, heard: dict[str, dict[str, int]], whose: str) -> None:
    asked = list(heard)
    counts = np.array([[heard[row].get(column, 0) for column in asked] for row in asked])
    axes.imshow(counts, cmap="Blues", vmin=0)
    for row, column in zip(*np.nonzero(counts), strict=True):
        light = counts[row, column] > counts.max() / 2
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color="white" if light else INK)
    axes.set_xticks(range(len(asked)), asked, rotation=45, ha="right")
    axes.set_yticks(range(len(asked)), asked)
    axes.set_ylabel("asked for")
    axes.set_xlabel("heard")
    axes.set_title(f"What was heard in {counts.sum()} sounds, {whose}", loc="left", color=INK)


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
    whose: str,
    judged: Judged,
    asked: dict[str, Prompt],
    path: Path,
) -> None:
    """A row for each prompt: a real clip, then sounds, each under what is heard in it."""
    from soundmill.audio import figures

    sounds, titles = [], []
    shown = min(SHOWN, len(next(iter(waves[whose].values()))))
    for family, prompt in asked.items():
        sounds += [(wave[None], model.sample_rate) for wave in [waves[REAL][family][0], *waves[whose][family][:shown]]]
        titles += [f"real: “{prompt.text}”", *(f"heard: {name}" for name in judged.families[whose][family][:shown])]
    figure = figures.draw_waves(sounds, titles, 1 + shown, whose)
    figures.save_png(figure, path)
    print(path)


if __name__ == "__main__":
    main()
