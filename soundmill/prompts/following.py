"""What a text-conditioned model does with sets of prompts: are its sounds what was asked for, and how often by chance?

A set is a YAML file of prompts, each with the kinds of sounds that it asks for.

A sound for a prompt of one kind is as asked if YAMNet scores no other kind higher; of several, the share of them among as many
highest kinds counts. By chance: the same sound with the set's prompts for other kinds. A weaker measure, fair to sounds that a
codec has blurred: the kind scores higher than in sounds of the set's other prompts (chance: one half).
"""

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field
from rich.markup import escape

from soundmill import clips, disk, hashing, page, params, terminal
from soundmill.audio.flac import decode_flac, flac_rate
from soundmill.audio.resample import resample
from soundmill.audio.tags import GENERATED
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.cache import facts_of
from soundmill.evaluation.embedders.yamnet import YamnetEmbedder, windows
from soundmill.evaluation.evaluator import open_console
from soundmill.evaluation.library import Progress, rounded
from soundmill.metrics.bootstrap import INTERVAL
from soundmill.models import generation, sounds
from soundmill.models.family import Model, Run, can, made_by
from soundmill.page.sounds import LONGEST_TITLE, Card, Chip, Section, Sound, draw_section
from soundmill.params import StageParams, did_you_mean

HERE = Path(__file__).parent
DIRECTORY = HERE / "sets"
ORDER = ("plain", "paraphrases", "negation", "counts", "order", "materials", "unknown", "empty", "long", "languages")
NAMES = tuple(sorted((path.stem for path in DIRECTORY.glob("*.yaml")), key=lambda name: (*ORDER, name).index(name)))
REPLICATES = 10_000
BLOCK = 100  # replicates at a time: bounds memory
REAL, CODEC = "real clips", "through the codec"
Wave = tuple[np.ndarray, int]  # [C, T], its rate
JUDGE = "yamnet"
FRAME_SECONDS = 0.01
LOUD_DB, SOFT_DB = -10.0, -20.0  # below the loudest frame: an event begins above the first and ends below the second
SILENT_DB = -60.0  # full scale; softer frames hold no event
_COLUMNS = params.read_yaml(Path(__file__).with_name("columns.yaml"))
COLUMNS, MEANINGS = ({key: column[text] for key, column in _COLUMNS.items()} for text in ("title", "meaning"))


def _joined(text: object) -> object:
    return " ".join(text) if isinstance(text, list) and all(isinstance(part, str) for part in text) else text


class Kind(StageParams):
    """A kind of sound: the AudioSet classes that count as it, and the labels of real clips of it."""

    classes: list[str] = Field(min_length=1)
    labels: list[str] = Field([])


class Prompt(StageParams):
    text: Annotated[str, BeforeValidator(_joined)] = Field(description="or a list of parts, joined by spaces")
    heard: list[str] = Field([], description="the kinds that it asks for, in their order; empty: none in particular")
    absent: list[str] = Field([], description="kinds that it names to be absent")
    count: int | None = Field(None, ge=1, description="the number of events that it asks for")


class PromptSet(StageParams):
    about: str
    prompts: list[Prompt] = Field(min_length=1)
    kinds: dict[str, Kind] = Field({}, description="further kinds than those of kinds.yaml, for this set alone")
    filler: str = Field("", description="text for YAML's anchors")


def kinds() -> dict[str, Kind]:
    path = HERE / "kinds.yaml"
    return {name: params.parse(Kind, kind, f"{path}: {name}") for name, kind in params.read_yaml(path).items()}


def load_sets(names: Sequence[str]) -> dict[str, PromptSet]:
    """Sets by name, of this package or YAML files, each with all kinds that it knows; UserError names file, key and remedy."""
    sets: dict[str, PromptSet] = {}
    common = kinds()
    for name in names:
        path = Path(name) if name.endswith(".yaml") else DIRECTORY / f"{name}.yaml"
        if not os.path.isfile(path):  # too long a name either
            raise UserError(
                f"no prompt set or file {name!r}{did_you_mean(name, list(NAMES))}; there are {', '.join(NAMES)}, "
                "or give a .yaml file"
            )
        if path.stem in sets:
            raise UserError(f"{name}: two prompt sets are called {path.stem!r}; rename a file")
        chosen = params.parse(PromptSet, params.read_yaml(path), f"{path}: prompt set")
        known = common | chosen.kinds
        for number, prompt in enumerate(chosen.prompts):
            for kind in (*prompt.heard, *prompt.absent):
                if kind not in known:
                    where = f"{path}: prompts.{number}: no kind {kind!r}{did_you_mean(kind, list(known))}"
                    raise UserError(f"{where}; there are {', '.join(known)}, or describe it under `kinds`")
        sets[path.stem] = chosen.model_copy(update={"kinds": known})
    return sets


@dataclass(frozen=True)
class Heard:
    """One sound: scores of the kinds for the whole sound [kinds] and by window [windows, kinds], the number
    of events, and whether it is silent."""

    scores: np.ndarray
    by_window: np.ndarray
    events: int
    silent: bool

    def highest(self, count: int) -> np.ndarray:
        return np.argsort(-self.scores, kind="stable")[:count]

    def centre(self, kind: int) -> float:
        """The mean time of a kind's scores above their lowest, in windows."""
        weights = self.by_window[:, kind] - self.by_window[:, kind].min()
        return float(weights @ np.arange(len(weights)) / weights.sum()) if weights.sum() else (len(weights) - 1) / 2


class Ears:
    """YAMNet and the kinds to listen for; UserError if its weights are missing or it has no such class."""

    def __init__(self, kinds: Mapping[str, Kind]):
        self.kinds = list(kinds)
        self._network: YamnetEmbedder = embedders.load(JUDGE, None)
        place = {name: number for number, name in enumerate(self._network.classes)}
        for name, kind in kinds.items():
            if unknown := [one for one in kind.classes if one not in place]:
                raise UserError(f"kind {name!r}: AudioSet has no class {unknown[0]!r}; `classes` are names of YAMNet's classes")
        self._classes = [[place[one] for one in kind.classes] for kind in kinds.values()]

    def hear(self, wave: np.ndarray, rate: int) -> Heard:
        """What is heard in a wave [C, T]."""
        mono = resample(wave.mean(axis=0), rate, self._network.sample_rate)
        logits = self._network.embed(list(windows(mono))).logits.astype(np.float64)
        probabilities = 1 / (1 + np.exp(-logits))
        mean = probabilities.mean(axis=0)  # AudioSet's score of a clip
        scores = np.array([mean[some].max() for some in self._classes])
        by_window = np.stack([probabilities[:, some].max(axis=1) for some in self._classes], axis=1)
        rate = self._network.sample_rate
        return Heard(scores, by_window, count_events(mono, rate), facts_of(mono, rate).silent)


def count_events(wave: np.ndarray, rate: int) -> int:
    """Number of bursts in a wave [T]: times at which its level rises to the loudest's neighbourhood after a soft moment."""
    size = max(1, round(FRAME_SECONDS * rate))
    frames = np.asarray(wave[: len(wave) // size * size], np.float64).reshape(-1, size)
    if not len(frames):
        return 0
    smooth = np.convolve((frames**2).mean(axis=1), np.ones(3) / 3, mode="same")
    levels = 10 * np.log10(np.maximum(smooth, 1e-12))
    loud, soft = levels > max(levels.max() + LOUD_DB, SILENT_DB), levels < levels.max() + SOFT_DB
    turns = loud.astype(int)[loud | soft]  # 1 where it is loud, 0 where it is soft; between, an event goes on, or none does
    return int((np.diff(turns, prepend=0) == 1).sum())


@dataclass(frozen=True)
class Following:
    """The result: `document` for JSON, and the first sound of each prompt by set."""

    document: dict[str, Any]
    examples: Mapping[str, Sequence[Wave]]


def follow(
    checkpoint: Path,
    sets: Mapping[str, PromptSet],
    count: int,
    seed: int,
    home: Path,
    settings: Sequence[str],
    real: clips.Tables | None,
    progress: Progress,
) -> Following:
    """Generate `count` sounds for each prompt with a checkpoint of a text-conditioned family, and classify them.

    `settings` override the checkpoint's sampling. With a project's `real` clips, test clips of the kinds are classified as well, as
    they are and encoded and decoded by the model.
    """
    model, origin = generation.load(checkpoint, "generate")
    if model.condition != "caption":
        raise UserError(
            f"{checkpoint}: this model of the family {origin['family']!r} is not conditioned on text; give one of `tango`, or of "
            "`audio_dit` or `waveform_unet` trained with captions"
        )
    ears = {name: Ears(chosen.kinds) for name, chosen in sets.items()}
    scored, examples = {}, {}
    with generation.running(model, home, settings) as run:
        baselines = _baselines(model, run, real, count, seed) if real else {}
        total = count * sum(len(chosen.prompts) for chosen in sets.values())
        with progress(total, "prompts", "sound") as tick:
            for name, chosen in sets.items():
                wanted = sounds.of_prompts(model, [prompt.text for prompt in chosen.prompts], count, seed)
                waves = ((wave.numpy(), model.sample_rate) for wave in sounds.generate_each(model, wanted, run))
                heard: list[list[Heard]] = [[] for _ in chosen.prompts]
                examples[name] = []
                for number, wave in enumerate(waves):
                    examples[name] += [wave] if number % count == 0 else []
                    heard[number // count].append(ears[name].hear(*wave))
                    tick(1)
                scored[name] = {"about": chosen.about, **_score(chosen.prompts, heard, ears[name].kinds, seed)}
    document = {
        **origin,
        "sampling": run.sampling.model_dump(mode="json"),
        "seed": seed,
        "sounds_per_prompt": count,
        "judge": {JUDGE: embedders.find(JUDGE).digest(None)},
        "kinds": {name: {kind: one.classes for kind, one in chosen.kinds.items()} for name, chosen in sets.items()},
        "sets_digest": hashing.digest({name: chosen.model_dump(mode="json") for name, chosen in sets.items()}),
        "sets": scored,
        "baselines": baselines,
    }
    return Following(document, examples)


def _baselines(model: Model, run: Run, real: clips.Tables, count: int, seed: int) -> dict[str, dict[str, Any]]:
    """Scores of test clips of the kinds, `count` of each (repeated if there are fewer), and of these through the model's codec."""
    known = kinds()
    ears = Ears(known)
    kind_of = {label: name for name, kind in known.items() for label in kind.labels}
    ids: dict[str, list[str]] = {}
    for row in sorted(clips.find(real, split="test"), key=lambda row: row["clip_id"]):
        names = {kind_of[label] for label in row["labels"] if label in kind_of}
        if len(row["labels"]) == len(names) == 1:
            ids.setdefault(*names, []).append(row["clip_id"])
    if len(ids) < 2:
        return {}
    chosen = {name: [some[number % len(some)] for number in range(count)] for name, some in sorted(ids.items())}
    wanted = {clip_id for some in chosen.values() for clip_id in some}
    flacs = {row["clip_id"]: row["audio"]["bytes"] for row in clips.with_audio(real, wanted)}
    waves = {clip_id: (decode_flac(data), flac_rate(data)) for clip_id, data in flacs.items()}
    sources = {REAL: waves}
    if can(model, "reconstruct"):
        rebuilt = sounds.reconstruct_each(model, waves.items(), run)
        sources[CODEC] = {clip_id: (wave.numpy(), model.sample_rate) for clip_id, wave in rebuilt}
    prompts = [Prompt(text=name, heard=[name]) for name in chosen]
    scored = {}
    for source, by_id in sources.items():
        heard = {clip_id: ears.hear(*wave) for clip_id, wave in by_id.items()}
        rows = [[heard[clip_id] for clip_id in some] for some in chosen.values()]
        scored[source] = _score(prompts, rows, ears.kinds, seed)
    return scored


def _score(prompts: Sequence[Prompt], heard: Sequence[Sequence[Heard]], kinds: Sequence[str], seed: int) -> dict[str, Any]:
    """Shares with intervals, and what was heard for each prompt."""
    tables = {
        **_asked(prompts, heard, kinds),
        "absent": _absent(prompts, heard, kinds),
        "ordered": _ordered(prompts, heard, kinds),
        "counted": _counted(prompts, heard),
        "silent": [[float(one.silent) for one in row] for row in heard],
    }
    lines = []
    for prompt, row in zip(prompts, heard, strict=True):
        recognised = Counter(kinds[int(one.highest(1)[0])] for one in row if not one.silent)
        lines.append({**prompt.model_dump(mode="json"), "recognised": dict(recognised.most_common())})
        lines[-1]["events"] = rounded(float(np.mean([one.events for one in row])))
    return {
        "sounds": sum(map(len, heard)),
        "scores": {name: mean_over_prompts(np.array(rows), REPLICATES, seed) for name, rows in tables.items() if len(rows)},
        "prompts": lines,
    }


def _asked(prompts: Sequence[Prompt], heard: Sequence[Sequence[Heard]], kinds: Sequence[str]) -> dict[str, list[list[float]]]:
    """`asked`, `shuffled`, their difference and `above_others`, each [prompts that ask for something, sounds]."""
    pairs = [([kinds.index(one) for one in prompt.heard], row) for prompt, row in zip(prompts, heard, strict=True) if prompt.heard]
    found: dict[str, list[list[float]]] = {name: [] for name in ("asked", "shuffled", "difference", "above_others")}
    for wanted, row in pairs:
        own = [_match(one, wanted) for one in row]
        found["asked"].append(own)
        others = [numbers for numbers, _ in pairs if set(numbers) != set(wanted)]
        apart = [one for numbers, sounds_of in pairs if not set(numbers) & set(wanted) for one in sounds_of]
        if others:
            shuffled = [float(np.mean([_match(one, numbers) for numbers in others])) for one in row]
            found["shuffled"].append(shuffled)
            found["difference"].append([a - b for a, b in zip(own, shuffled, strict=True)])
        if apart:
            ranked = np.sort([one.scores[wanted] for one in apart], axis=0)
            found["above_others"].append([_ahead(one.scores[wanted], ranked) for one in row])
    return found


def _match(sound: Heard, wanted: Sequence[int]) -> float:
    """The share of these kinds among the sound's as many highest; 0 for a silent sound."""
    return 0.0 if sound.silent else float(np.isin(wanted, sound.highest(len(wanted))).mean())


def _ahead(scores: np.ndarray, ranked: np.ndarray) -> float:
    """The share of other sounds with lower scores [sounds, kinds], `ranked` by kind, than these [kinds]; ties count half."""
    pairs = [*zip(ranked.T, scores, strict=True)]
    return float(np.mean([np.searchsorted(*pair, side) for pair in pairs for side in ("left", "right")]) / len(ranked))


def _absent(prompts: Sequence[Prompt], heard: Sequence[Sequence[Heard]], kinds: Sequence[str]) -> list[list[float]]:
    """Of the prompts with absent kinds: whether one of these scores higher than all that were asked for."""
    rows = []
    for prompt, row in zip(prompts, heard, strict=True):
        if prompt.absent:
            absent, wanted = ([kinds.index(name) for name in names] for names in (prompt.absent, prompt.heard))
            others = wanted or [number for number in range(len(kinds)) if number not in absent]
            rows.append([float(not one.silent and one.scores[absent].max() > one.scores[others].max()) for one in row])
    return rows


def _ordered(prompts: Sequence[Prompt], heard: Sequence[Sequence[Heard]], kinds: Sequence[str]) -> list[list[float]]:
    """Of the prompts for several kinds: the share of neighbouring pairs whose scores have their centres in the order asked for."""
    rows = []
    for prompt, row in zip(prompts, heard, strict=True):
        if len(prompt.heard) > 1:
            centres = [[one.centre(kinds.index(kind)) for kind in prompt.heard] for one in row]
            rows.append([float(np.mean([_later(*pair) for pair in itertools.pairwise(some)])) for some in centres])
    return rows


def _counted(prompts: Sequence[Prompt], heard: Sequence[Sequence[Heard]]) -> list[list[float]]:
    """Of pairs of prompts for different counts of the same kind: whether the sound for the larger count has more events."""
    with_count = [(prompt, row) for prompt, row in zip(prompts, heard, strict=True) if prompt.count is not None]
    rows = []
    for (first, few), (second, many) in itertools.permutations(with_count, 2):
        if first.heard == second.heard and first.count < second.count:
            rows.append([_later(one.events, other.events) for one, other in zip(few, many, strict=True)])
    return rows


def _later(first: float, second: float) -> float:
    return float(second > first) + 0.5 * (second == first)


def mean_over_prompts(values: np.ndarray, replicates: int, seed: int) -> dict[str, float]:
    """Mean of values [prompts, sounds] and two 95 % bootstrap intervals: resampling prompts and their sounds (`low`, `high`), and
    resampling sounds of fixed prompts (`low_these`, `high_these`).

    Sounds of one prompt are correlated: the first interval generalises to other prompts, the second only to other seeds.
    """
    random = np.random.default_rng(seed)
    prompts, count = values.shape
    means = np.empty((2, replicates))
    for start in range(0, replicates, BLOCK):
        here = slice(start, min(start + BLOCK, replicates))
        rows = random.integers(prompts, size=(here.stop - start, prompts))
        columns = random.integers(count, size=(*rows.shape, count))
        for number, chosen in enumerate((rows, np.arange(prompts)[None])):
            means[number, here] = values[chosen[..., None], columns].mean(axis=(1, 2))
    ends = np.percentile(means, INTERVAL, axis=1).T.ravel()
    names = ("value", "low", "high", "low_these", "high_these")
    return {name: rounded(float(value)) for name, value in zip(names, (values.mean(), *ends), strict=True)}


def rows(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, in %: a row for each baseline and set, a column for each share that any of them has."""
    parts = {**document["baselines"], **document["sets"]}
    found = [part["scores"] for part in parts.values()]
    keys = [key for key in COLUMNS if any(key in scores and (key != "silent" or scores[key]["value"]) for scores in found)]
    head = ["%", *(COLUMNS[key] for key in keys)]

    def share(score: Mapping[str, float]) -> str:
        return "{:.0f} ({:.0f}–{:.0f})".format(*(100 * score[key] for key in ("value", "low", "high"))).replace("-", "−")

    scores = {name: part["scores"] for name, part in parts.items()}
    return head, [[name, *(share(of[key]) if of.get(key) else "–" for key in keys)] for name, of in scores.items()]


def show(document: Mapping[str, Any]) -> None:
    head, lines = rows(document)
    console = open_console()
    console.print(
        f"[bold]{escape(document['family'])}[/bold]  {escape(document['weights'])}; 95 % intervals over prompts and seeds"
    )
    table = terminal.table(*head)
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)


def write_page(found: Following, path: Path) -> None:
    """Write the page: one file with the table and a sound of each prompt."""
    document, faults = found.document, []
    sections = [draw_section(_section(found, name), faults) for name in document["sets"]]
    head, lines = rows(document)
    used = [key for key, title in COLUMNS.items() if title in head]
    text = page.render(
        "soundmill.prompts",
        "prompts.html",
        title=f"What {document['family']} does with prompts",
        document=document,
        head=head,
        rows=lines,
        terms=[(COLUMNS[key], MEANINGS[key]) for key in used],
        sections=sections,
        faults=faults,
    )
    disk.write_text(path, text)
    for fault in faults:
        terminal.say(f"{path}: {fault}", error=True)


def _section(found: Following, name: str) -> Section:
    part, count = found.document["sets"][name], found.document["sounds_per_prompt"]
    cards, maker = [], made_by(found.document, GENERATED)
    for number, (line, (wave, rate)) in enumerate(zip(part["prompts"], found.examples[name], strict=True), 1):
        asked, absent = line["heard"], line["absent"]
        wanted = [*asked, *(f"no {kind}" for kind in absent)]
        good = dict.fromkeys(asked, True) | dict.fromkeys(absent, False)
        chips = [Chip(f"{kind} {times} of {count}", good.get(kind)) for kind, times in line["recognised"].items()]
        if line["count"] is not None:
            chips.append(Chip(f"{line['events']:.2g} events instead of {line['count']}"))
        half, text = (LONGEST_TITLE - 3) // 2, line["text"]
        title = text if len(text) <= LONGEST_TITLE else f"{text[:half]} … {text[-half:]}"
        note = f"asks for: {', '.join(wanted)}" if wanted else "asks for no kind in particular"
        sound = Sound(f"1 of {count}", wave, rate, made_by=maker)
        cards.append(Card(f"{name} {number}", title or "(no text)", note, (sound,), tuple(chips)))
    return Section(name, part["about"], tuple(cards))
