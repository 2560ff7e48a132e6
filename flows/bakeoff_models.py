"""The models of a bake-off: their parameters, and each training's share of the minutes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from flows import trials
from flows.results_rows import Row, without_score
from flows.trials import Name
from soundmill import params as parameters
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.params import did_you_mean

FILE = Path("conf/bakeoff.yaml")
FILES = Path("conf/bakeoff")
SECTIONS = {"train": "{family}.train", "autoencoder": "{family}.autoencoder.weights", "vocoder": "vocoder.weights"}
MODEL = "model="  # the override that chooses a family
CORPUS = "synthetic"  # by default
TIMED_STEPS = 15  # of each training, to estimate how many fit into its minutes
MAX_VALIDATIONS = 20  # per training; not counted in its minutes, and none during the timed steps
WARM_UP_STEPS = 3  # of the timed steps, not counted (soundmill/training/curve.py)
SCHEDULE = re.compile(r"(^|\.)(phase_1_steps|warmup_steps)$")  # parameters that scale with a training's steps


class BakeOff(trials.Plan):
    """conf/bakeoff.yaml, or a file of conf/bakeoff."""

    points: dict[Name, list[str]] = Field({}, description="the rows, each with its `model=FAMILY` ({}: a row for every family)")
    families: dict[Name, list[str]] = Field(description="overrides for one family")

    @field_validator("points")
    @classmethod
    def _each_is_of_a_family(cls, points: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, overrides in points.items():
            models = [override.partition("=")[2] for override in overrides if trials.key_of(override) == "model"]
            if len(models) != 1 or not re.fullmatch(trials.NAME, models[0]):
                raise ValueError(f"{name}: names no family, or several; give one, as `model=FAMILY`")
        return points


@dataclass(frozen=True)
class Model(trials.Trial):
    """A family, or a combination, in a bake-off, without steps and seed; and each training's share of the minutes."""

    family: str
    shares: dict[str, float]

    @property
    def variant(self) -> str:
        """The variant of the clips that it is scored against."""
        return self.document["families"][self.family]["clips"]

    def params(self, home: Path, steps: dict[str, int], seed: int, timed: str | None = None) -> dict[str, Any]:
        """The content of params.yaml with these steps per training; schedules counted in steps are scaled with them.

        `timed` names the training that only times its steps: its schedules are scaled to the steps after the warm-up, and its
        sample grid is as small as possible.
        """
        own = [f"{self.family}.generate.seed={seed}"]
        for stage, count in steps.items():
            section = SECTIONS[stage].format(family=self.family)
            values = parameters.section(self.document, section, "params.yaml")
            own += [
                f"{section}.steps={count}",
                f"{section}.seed={seed}",
                f"{section}.validate_every_steps={max(TIMED_STEPS, count // MAX_VALIDATIONS)}",
            ]
            if "epochs" in values:
                own.append(f"{section}.epochs=null")
            if stage == timed and "grid" in values:  # drawing samples would take longer than the steps
                own += [f"{section}.grid.columns=1", f"{section}.grid.rows=1"]
            if values["steps"]:  # null if the training is counted in epochs
                uncounted = WARM_UP_STEPS if stage == timed else 0
                share = (count - uncounted) / values["steps"]
                own += [
                    f"{section}.{key}={max(1, uncounted + round(value * share))}"
                    for key, value in trials.leaves(values)
                    if value and SCHEDULE.search(key)
                ]
        return registry.compose(home / "conf", [*self.overrides, *own])


def read_plan(home: Path, name: str = "") -> BakeOff:
    """The plan of conf/bakeoff.yaml; with a name, that of conf/bakeoff/NAME.yaml, after the overrides of the first."""
    shared = trials.read_file(BakeOff, home / FILE)
    if not name:
        return shared
    named = trials.read(BakeOff, home / FILES, name, "bake-off")
    families = {
        family: [*shared.families.get(family, []), *named.families.get(family, [])] for family in shared.families | named.families
    }
    return named.model_copy(update={"overrides": [*shared.overrides, *named.overrides], "families": families})


def rows_of(home: Path, plan: BakeOff, chosen: Sequence[str] = ()) -> dict[str, tuple[str, list[str]]]:
    """The family of each row and its other overrides; `chosen` names families or rows (none: all). An unknown one: UserError."""
    points = plan.points or {family: [MODEL + family] for family in trials.files(home / "conf" / "model")}
    rows = {}
    for name, point in points.items():
        (family,) = (override.removeprefix(MODEL) for override in point if override.startswith(MODEL))
        rows[name] = family, [override for override in point if not override.startswith(MODEL)]
    known = list(dict.fromkeys([*rows, *(family for family, _ in rows.values())]))
    for name in chosen:
        if name not in known:
            raise UserError(f"no family or row {name!r}{did_you_mean(name, known)} (there are: {', '.join(known)})")
    return {name: row for name, row in rows.items() if not chosen or {name, row[0]} & set(chosen)}


def choose_models(home: Path, plan: BakeOff, extra: Sequence[str], families: Sequence[str]) -> tuple[list[Model], list[Row]]:
    """The models that can take part, and rows with reasons for the others; `families` names families or points (none: all).

    An override in `extra` of one family's section applies to it alone. UserError if a family is unknown or none can take part.
    """
    all_families = list(trials.files(home / "conf" / "model"))
    rows = rows_of(home, plan, families)
    if chosen := [override for override in extra if override.startswith(MODEL)]:
        raise UserError(
            f"{chosen[0]}: a bake-off sets `model` for each family; choose families with --families A,B (make: FAMILIES=A,B)"
        )
    # A family's defaults may name another corpus.
    corpus = [] if any(override.startswith("corpus=") for override in extra) else [f"corpus={CORPUS}"]
    models, excluded = [], []
    for name, (family, combined) in rows.items():
        trials.refuse_varied({row: own for row, (_, own) in rows.items()}, [family], extra, "--families")
        others = {other for other in all_families if other != family}
        own = [override for override in extra if others.isdisjoint(trials.key_of(override).split("."))]
        overrides = [MODEL + family, *corpus, *plan.families.get(family, []), *plan.overrides, *combined, *own]
        try:
            trial = trials.compose(home, name, overrides, [family])
            trainings = trial.document["families"][family].get("trainings")
            if trainings is None:
                raise UserError("does not generate sound from a request")
            model = Model(**vars(trial), family=family, shares=_shares(trial.document, family, trainings))
            model.params(home, dict.fromkeys(model.shares, TIMED_STEPS), 0)
        except Exception as error:  # a mistake in one family's parameters must not stop the others
            excluded.append(without_score(name, in_a_line(error)))
            continue
        models.append(model)
    if not models:
        raise UserError("no family can take part:" + "".join(f"\n  {row.name}: {row.why_not}" for row in excluded))
    return models, excluded


def _shares(document: dict[str, Any], family: str, trainings: dict[str, float]) -> dict[str, float]:
    """Each training's share of the minutes; components that are loaded, absent or of a closed form leave theirs to the others."""
    shares = {stage: share for stage, share in trainings.items() if share > 0 and _is_trained(document, family, stage)}
    if not shares:
        raise UserError("nothing to train: its components are loaded, or of a closed form")
    return {stage: share / sum(shares.values()) for stage, share in shares.items()}


def _is_trained(document: dict[str, Any], family: str, stage: str) -> bool:
    if stage == "vocoder" and family not in document["vocoder_families"]:
        return False
    section = SECTIONS[stage].format(family=family)
    steps = parameters.section(document, section, "params.yaml").get("steps", 0)  # null if counted in epochs
    closed_form = 1 if stage == "autoencoder" else 0  # one step: a codec's principal components alone
    return steps is None or steps > closed_form


def in_a_line(error: Exception) -> str:
    """An error's message in one line, with its type unless it is a UserError."""
    return " ".join(str(error).split()) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
