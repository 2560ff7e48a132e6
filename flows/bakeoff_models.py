"""Who takes part in a bake-off, with which parameters, and what share of the minutes each training gets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from flows.bakeoff_table import Row
from flows.sweep_points import absolute_paths
from soundmill import params as parameters
from soundmill.errors import UserError
from soundmill.params import StageParams, did_you_mean

FILE = Path("conf/bakeoff.yaml")
FILES = Path("conf/bakeoff")
SECTIONS = {"train": "{family}.train", "autoencoder": "{family}.autoencoder.weights", "vocoder": "vocoder.weights"}
CORPUS = "synthetic"  # where none is named
TIMED_STEPS = 15  # of each training, to tell how many fit into its minutes
LOOKS = 20  # at the held-out loss in each training, at most; they come on top of its minutes, and none among the timed steps
WARM_UP_STEPS = 3  # the first of these are not counted (soundmill/training/curve.py)
SCHEDULE = re.compile(r"(^|\.)(phase_1_steps|warmup_steps|kl\.steps)$")  # what is a share of a training's steps
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")]


class Plan(StageParams):
    """conf/bakeoff.yaml, or a file of conf/bakeoff."""

    title: str
    overrides: list[str] = Field(description="of every family, as after `soundmill params`; `{family}` stands for its name")
    families: dict[Name, list[str]] = Field(description="overrides of one family")


@dataclass(frozen=True)
class Model:
    """A family that takes part: its parameters but for steps and seed, and what share of the minutes each training gets."""

    family: str
    overrides: list[str]
    shares: dict[str, float]
    variant: str = "default"  # of clips, that it is scored against

    def document(self, home: Path, steps: dict[str, int], seed: int, timed: bool = False) -> dict[str, Any]:
        """The content of params.yaml; parts of a training that are counted in steps keep their share.

        `timed`: their share of the steps that are counted, and as few samples as can be.
        """
        uncounted = WARM_UP_STEPS if timed else 0
        composed = parameters.compose(home / "conf", self.overrides)
        own = [f"{self.family}.generate.seed={seed}"]
        for stage, count in steps.items():
            section = SECTIONS[stage].format(family=self.family)
            values = parameters.section(composed, section, "params.yaml")
            own += [
                f"{section}.steps={count}",
                f"{section}.seed={seed}",
                f"{section}.validate_every_steps={max(TIMED_STEPS, count // LOOKS)}",
            ]
            if "epochs" in values:
                own.append(f"{section}.epochs=null")
            if timed and "grid" in values:  # else the pictures of samples take longer than the steps
                own += [f"{section}.grid.columns=1", f"{section}.grid.rows=1"]
            if values["steps"]:  # else what it was meant for is counted in epochs
                share = (count - uncounted) / values["steps"]
                own += [
                    f"{section}.{key}={max(1, uncounted + round(value * share))}"
                    for key, value in _leaves(values)
                    if value and SCHEDULE.search(key)
                ]
        return parameters.compose(home / "conf", [*self.overrides, *own])


def _leaves(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def read_plan(home: Path, name: str = "") -> Plan:
    """What conf/bakeoff.yaml says of every bake-off, and above it what conf/bakeoff/NAME.yaml says of one."""

    def read(path: Path) -> Plan:
        return parameters.parse(Plan, parameters.read_yaml(path), str(path))

    every, known = read(home / FILE), sorted(path.stem for path in (home / FILES).glob("*.yaml"))
    if not name:
        return every
    if name not in known:
        raise UserError(f"no bake-off {name!r} in {home / FILES}{did_you_mean(name, known)} (there are: {', '.join(known)})")
    one = read(home / FILES / f"{name}.yaml")
    families = {
        family: [*every.families.get(family, []), *one.families.get(family, [])] for family in every.families | one.families
    }
    return Plan(title=one.title, overrides=[*every.overrides, *one.overrides], families=families)


def choose_models(home: Path, plan: Plan, extra: Sequence[str], families: Sequence[str]) -> tuple[list[Model], list[Row]]:
    """Who takes part, and rows of those that cannot. An override in `extra` of one family's section is for it alone.

    UserError where a family is not known, or an override is wrong for all.
    """
    known = sorted(path.stem for path in (home / "conf" / "model").glob("*.yaml"))
    for name in families:
        if name not in known:
            raise UserError(f"no family {name!r}{did_you_mean(name, known)} (families: {', '.join(known)})")
    if chosen := [override for override in extra if override.startswith("model=")]:
        raise UserError(f"{chosen[0]}: each family takes part with its own; for a few of them say FAMILIES=A,B (--families A,B)")
    corpus = [] if any(override.startswith("corpus=") for override in extra) else [f"corpus={CORPUS}"]  # a family may name its own
    models, excluded = [], []
    for family in [name for name in known if not families or name in families]:
        others = {name for name in known if name != family}
        mine = [override for override in extra if others.isdisjoint(override.lstrip("+~").partition("=")[0].split("."))]
        given = [override.replace("{family}", family) for override in plan.overrides]
        overrides = [f"model={family}", *corpus, *plan.families.get(family, []), *given, *mine]
        try:
            document = parameters.compose(home / "conf", overrides)
            its = document["families"][family]
            if its.get("trainings") is None:
                raise UserError("makes no sound from a request")
            shares = _shares(document, family, its["trainings"])
            model = Model(family, overrides + absolute_paths(document, home), shares, its["clips"])
            model.document(home, dict.fromkeys(shares, TIMED_STEPS), 0)
        except Exception as error:  # of one family's parameters: the others go on
            excluded.append(Row(family, why_not=in_a_line(error)))
            continue
        models.append(model)
    if not models:
        raise UserError("no family can take part:" + "".join(f"\n  {row.name}: {row.why_not}" for row in excluded))
    return models, excluded


def _shares(document: dict[str, Any], family: str, trainings: dict[str, float]) -> dict[str, float]:
    """What share of the minutes each training gets; parts that are loaded or absent leave theirs to the others."""
    shares = {stage: share for stage, share in trainings.items() if share > 0 and _is_trained(document, family, stage)}
    if not shares:
        raise UserError("nothing of it is trained here")
    return {stage: share / sum(shares.values()) for stage, share in shares.items()}


def _is_trained(document: dict[str, Any], family: str, stage: str) -> bool:
    if stage == "vocoder" and family not in document["vocoder_families"]:
        return False
    section = SECTIONS[stage].format(family=family)
    return "steps" in parameters.section(document, section, "params.yaml")


def in_a_line(error: Exception) -> str:
    """What an error says, with its kind where it is nobody's own words."""
    return " ".join(str(error).split()) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
