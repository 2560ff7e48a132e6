"""The models of a bake-off: their parameters, and each training's share of the minutes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from flows.results_rows import Row, without_score
from flows.trials import Name, absolute_paths
from soundmill import params as parameters
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.params import StageParams, did_you_mean

FILE = Path("conf/bakeoff.yaml")
FILES = Path("conf/bakeoff")
SECTIONS = {"train": "{family}.train", "autoencoder": "{family}.autoencoder.weights", "vocoder": "vocoder.weights"}
CORPUS = "synthetic"  # by default
TIMED_STEPS = 15  # of each training, to estimate how many fit into its minutes
MAX_VALIDATIONS = 20  # per training; not counted in its minutes, and none during the timed steps
WARM_UP_STEPS = 3  # of the timed steps, not counted (soundmill/training/curve.py)
SCHEDULE = re.compile(r"(^|\.)(phase_1_steps|warmup_steps)$")  # parameters that scale with a training's steps


class Plan(StageParams):
    """conf/bakeoff.yaml, or a file of conf/bakeoff."""

    title: str
    overrides: list[str] = Field(description="for every family, as in `soundmill params`; `{family}` stands for its name")
    families: dict[Name, list[str]] = Field(description="overrides for one family")


@dataclass(frozen=True)
class Model:
    """A family in a bake-off: its overrides except steps and seed, and each training's share of the minutes."""

    family: str
    overrides: list[str]
    shares: dict[str, float]
    variant: str = "default"  # of the clips that it is scored against

    def document(self, home: Path, steps: dict[str, int], seed: int, timed: str | None = None) -> dict[str, Any]:
        """The content of params.yaml with these steps per training; schedules counted in steps are scaled with them.

        `timed` names the training that only times its steps: its schedules are scaled to the steps after the warm-up, and its
        sample grid is as small as possible.
        """
        composed = registry.compose(home / "conf", self.overrides)
        own = [f"{self.family}.generate.seed={seed}"]
        for stage, count in steps.items():
            section = SECTIONS[stage].format(family=self.family)
            values = parameters.section(composed, section, "params.yaml")
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
                    for key, value in _leaves(values)
                    if value and SCHEDULE.search(key)
                ]
        return registry.compose(home / "conf", [*self.overrides, *own])


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_plan(home: Path, name: str = "") -> Plan:
    """The plan of conf/bakeoff.yaml; with a name, combined with conf/bakeoff/NAME.yaml, which takes precedence."""

    def read(path: Path) -> Plan:
        return parameters.parse(Plan, parameters.read_yaml(path), str(path))

    shared, names = read(home / FILE), sorted(path.stem for path in (home / FILES).glob("*.yaml"))
    if not name:
        return shared
    if name not in names:
        raise UserError(f"no bake-off {name!r} in {home / FILES}{did_you_mean(name, names)} (there are: {', '.join(names)})")
    named = read(home / FILES / f"{name}.yaml")
    families = {
        family: [*shared.families.get(family, []), *named.families.get(family, [])] for family in shared.families | named.families
    }
    return Plan(title=named.title, overrides=[*shared.overrides, *named.overrides], families=families)


def choose_models(home: Path, plan: Plan, extra: Sequence[str], families: Sequence[str]) -> tuple[list[Model], list[Row]]:
    """The models that can take part, and rows with reasons for the others.

    An override in `extra` of one family's section applies to it alone. UserError if a family is unknown or none can take part.
    """
    all_families = sorted(path.stem for path in (home / "conf" / "model").glob("*.yaml"))
    for name in families:
        if name not in all_families:
            raise UserError(f"no family {name!r}{did_you_mean(name, all_families)} (families: {', '.join(all_families)})")
    if chosen := [override for override in extra if override.startswith("model=")]:
        raise UserError(
            f"{chosen[0]}: a bake-off sets `model` for each family; choose families with --families A,B (make: FAMILIES=A,B)"
        )
    # A family's defaults may name another corpus.
    corpus = [] if any(override.startswith("corpus=") for override in extra) else [f"corpus={CORPUS}"]
    models, excluded = [], []
    for family in [name for name in all_families if not families or name in families]:
        others = {name for name in all_families if name != family}
        own = [override for override in extra if others.isdisjoint(override.lstrip("+~").partition("=")[0].split("."))]
        shared = [override.replace("{family}", family) for override in plan.overrides]
        overrides = [f"model={family}", *corpus, *plan.families.get(family, []), *shared, *own]
        try:
            document = registry.compose(home / "conf", overrides)
            section = document["families"][family]
            if section.get("trainings") is None:
                raise UserError("does not generate sound from a request")
            shares = _shares(document, family, section["trainings"])
            model = Model(family, overrides + absolute_paths(document, home), shares, section["clips"])
            model.document(home, dict.fromkeys(shares, TIMED_STEPS), 0)
        except Exception as error:  # a mistake in one family's parameters must not stop the others
            excluded.append(without_score(family, in_a_line(error)))
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
