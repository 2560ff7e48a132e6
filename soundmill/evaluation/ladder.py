"""The ladder: scores of real sounds degraded in known ways, which show what a metric hears and between which a model stands.

The floor's real sounds are degraded, so each rung differs from the floor in one thing. All rungs and the model are compared with
the floor's reference, with equally many clips each (CLIPS at most, an even number), so their distances have about the same bias.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soundmill import hashing
from soundmill.evaluation.degradations import DEGRADATIONS
from soundmill.evaluation.library import Members
from soundmill.evaluation.score_rows import BETTER, SHORT_TITLES, number, rows_of

CLIPS = 20  # of each rung, at most, so that the ladder takes less than a fifth of the time of an evaluation of a hundred sounds
FEWEST = 8  # clips
GENERATED, REAL, MISSING_CLASS, REPEATED = "generated", "real", "missing_class", "repeated"
RUNGS = {REAL: "real sounds"} | {kind: one.title for kind, one in DEGRADATIONS.items()}
RUNGS |= {MISSING_CLASS: "one class missing", REPEATED: "half of the clips twice"}
HEARD = 0.1  # relative to the score of the intact sounds: a metric is deaf to what changes it for the worse by no more than this

Sides = tuple[Members, Members]  # sounds, and the sounds or prompts that they are compared with


@dataclass(frozen=True)
class Ladder:
    """The clips that are degraded, and the metrics that are measured on them; `classes` may be empty."""

    metrics: Sequence[str]
    clips: Members  # some of the floor
    seed: int
    classes: Mapping[str, str] = field(default_factory=dict)  # by name of a clip

    @property
    def missing_class(self) -> str | None:
        """The class with most of the clips; None if there are fewer than two."""
        counts = Counter(self.classes[name] for name in self.clips.ids.values() if self.classes.get(name))
        return min(counts, key=lambda name: (-counts[name], name)) if len(counts) > 1 else None

    def sides(self, floor: Sides, generated: Sides, paired: bool) -> Iterator[tuple[str, Sides]]:
        """(rung, its sounds and what they are compared with) for one kind of comparison."""
        real, reference = floor
        ids = [clip_id for clip_id, name in real.ids.items() if name in set(self.clips.ids.values())]
        own = real.only(ids)
        against = reference.only(ids) if paired else reference
        shown = hashing.hash_order(generated[0].ids, "ladder", self.seed)[: len(ids)]
        yield GENERATED, (generated[0].only(shown), generated[1].only(shown) if paired else reference)
        yield REAL, (own, against)
        for kind in DEGRADATIONS:
            yield kind, (Members(kind, own.ids), against)
        if not paired:  # a repeated clip has no partner of its own
            if self.missing_class is not None:
                kept = [clip_id for clip_id in ids if self.classes.get(own.ids[clip_id]) != self.missing_class]
                yield MISSING_CLASS, (_repeated(own, kept, len(ids)), against)
            kept = hashing.hash_order(ids, "repeated", self.seed)[: len(ids) // 2]
            yield REPEATED, (_repeated(own, kept, len(ids)), against)

    def document(self, scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """The ladder as part of a result: values by score and rung; empty if no score has been measured."""
        whole = {key: dict(values) for key, values in scores.items() if {GENERATED, REAL} <= values.keys()}
        missing = {"missing_class": self.missing_class} if self.missing_class else {}
        return {"clips": len(self.clips), **missing, "scores": whole} if whole else {}

    def why_not(self) -> str:
        if not self.clips.ids:
            return f"it needs at least {FEWEST} generated and {FEWEST} real sounds besides those that they are compared with"
        return f"none of its metrics ({', '.join(self.metrics)}) can be measured with a floor"


def choose(floor: Members, generated: int, metrics: Sequence[str], classes: Mapping[str, str], seed: int) -> Ladder | None:
    """The ladder over some of the floor's clips, over none if there are too few; None if no metric is wanted."""
    count = min(CLIPS, len(floor), generated) // 2 * 2
    chosen = hashing.hash_order(floor.ids, "ladder", seed)[: count if count >= FEWEST else 0]
    return Ladder(metrics, floor.only(chosen), seed, classes) if metrics else None


def _repeated(members: Members, ids: Sequence[str], count: int) -> Members:
    """`count` sounds: these clips, in turn."""
    turns = ((ids[turn % len(ids)], turn // len(ids)) for turn in range(count))
    return Members(members.role, {f"{clip_id}\0{again}" if again else clip_id: members.ids[clip_id] for clip_id, again in turns})


@dataclass(frozen=True)
class Climbed:
    """One score on the ladder: the model's value, and the rungs' by name, each of so many clips."""

    key: str
    metric: str
    embedder: str
    clips: int
    value: float
    rungs: Mapping[str, float]

    @property
    def title(self) -> str:
        return f"{SHORT_TITLES[self.metric]} ({self.embedder}, {self.clips} sounds)"

    def worse(self, value: float, than: float) -> float:
        return value - than if BETTER[self.metric] == "lower" else than - value

    def heard(self, rung: str) -> bool:
        return self.worse(self.rungs[rung], self.rungs[REAL]) > HEARD * abs(self.rungs[REAL])

    @property
    def deaf_to(self) -> list[str]:
        return [rung for rung in RUNGS if rung in self.rungs and rung != REAL and not self.heard(rung)]

    def place(self) -> str:
        """A sentence: between which rungs the model stands. Rungs that the metric is deaf to are no marks."""
        marks = {rung: value for rung, value in self.rungs.items() if rung == REAL or self.heard(rung)}
        better = [rung for rung in marks if self.worse(self.value, marks[rung]) >= 0]
        below = max(better, key=lambda rung: self.worse(marks[rung], marks[REAL]), default=None)
        above = min(marks.keys() - better, key=lambda rung: (self.worse(marks[rung], marks[REAL]), rung), default=None)

        def named(rung: str) -> str:
            return f"{RUNGS[rung]} ({number(self.metric, marks[rung])})"

        if below is None:
            where = f"no worse than {named(REAL)}"
        elif above is None:
            where = f"worse than all rungs, the last of them {named(below)}"
        else:
            where = f"between {named(below)} and {named(above)}"
        return f"{self.title} {number(self.metric, self.value)}: {where}"

    def sentence(self) -> str:
        return self.place() + (f"; deaf to {', '.join(RUNGS[rung] for rung in self.deaf_to)}" if self.deaf_to else "")


def climbed(metrics: Mapping[str, Any]) -> list[Climbed]:
    """The scores of a result that were measured on the ladder, in the order of its rows."""
    found = []
    for row in rows_of(metrics):
        values = metrics.get("ladder", {}).get("scores", {}).get(row.key)
        if values:
            rungs = {rung: values[rung] for rung in RUNGS if rung in values}
            found.append(Climbed(row.key, row.metric, row.embedder, metrics["ladder"]["clips"], values[GENERATED], rungs))
    return found


def add_sentences(metrics: dict[str, Any]) -> None:
    """Add to a result where the model stands by each score that ranks models, for those who read only the result."""
    places = {one.key: one.place() for one in climbed(metrics) if one.key not in metrics["unranked"]}
    if places:
        metrics["ladder"]["sentences"] = places
