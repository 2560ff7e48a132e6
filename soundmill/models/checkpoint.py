"""`config.json` of a checkpoint of any family: who made it, by which parameters, and what else it is rebuilt from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soundmill.errors import UserError
from soundmill.hashing import tree_digest
from soundmill.params import P, StageParams, parse
from soundmill.training.params import Use

CONFIG = "config.json"


def write_config(directory: Path, family: str, params: StageParams, facts: dict[str, Any], **values: Any) -> None:
    """Its family, the training's parameters, `values` that it is built from, `facts` for people."""
    from soundmill.training import weights

    weights.write_json({"family": family, "params": params.model_dump(mode="json"), **values, **facts}, directory / CONFIG)


def read_config(directory: Path, expected: str | None = None, keys: Sequence[str] = ()) -> dict[str, Any]:
    """UserError when there is none, it is unreadable, of another family than `expected`, or lacks some of `keys`."""
    from soundmill.training import weights

    path = directory / CONFIG
    config = weights.read_json(path, "checkpoint")
    stored = config.get("family") if isinstance(config, dict) else None
    if stored is None:
        raise UserError(f"{path}: not a checkpoint of Soundmill's: it names no `family`")
    if expected is not None and stored != expected:
        raise UserError(f"{directory}: a checkpoint of family {stored!r}, not {expected!r}; use `--family {stored}` or retrain")
    missing = [key for key in keys if key not in config]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing: not a whole checkpoint; retrain with `dvc repro`")
    return config


def is_one(directory: Path) -> bool:
    """Whether a directory says that it is the checkpoint of a family."""
    from soundmill.training import weights

    config = weights.read_json(directory / CONFIG, "checkpoint") if (directory / CONFIG).is_file() else None
    return isinstance(config, dict) and "family" in config


def read_part(model: type[P], config: dict[str, Any], key: str, directory: Path) -> P:
    """A part of what `read_config` gave, as `model`; one that does not fit this version of the code is a UserError."""
    path = directory / CONFIG
    try:
        return parse(model, config[key], f"{path}: {key}")
    except UserError as error:
        raise UserError(
            f"{error}\nThe checkpoint does not fit this version of Soundmill. Train it anew, or edit {path}: remove the keys that "
            "are unknown, and add the missing ones with the values it was trained with"
        ) from None


def use(model: Any, directory: Path, which: Use) -> str:
    """Give a model that was loaded from `directory` its best weights or those of a step, where `which` says so.

    Returns in words what it has now; weights that the checkpoint has not are a UserError.
    """
    from soundmill.training import weights

    known = read_config(directory, keys=("weights",))["weights"]
    if which == "best" and "best" not in known:
        raise UserError(f"{directory}: no clip was held out from this training, so it has no best weights; set `use` to `last`")
    name = next((one for one in (str(which), "last", "best") if one in known and which in (one, known[one]["step"])), None)
    if name is None:
        steps = ", ".join(str(step) for step in sorted({its["step"] for its in known.values()}))
        raise UserError(f"{directory}: has no weights of step {which}; it has those of steps {steps} (keep_every_steps keeps more)")
    its = known[name]
    if name != "last":
        weights.fill(model.net, directory / (weights.BEST if name == "best" else weights.of_step(its["step"])))
    loss = f", held-out loss {its['valid_loss']:.4g}" if "valid_loss" in its else ""
    return f"{name} weights (step {its['step']}{loss})" if name in ("last", "best") else f"weights of step {name}{loss}"


def origin(directory: Path) -> dict[str, str]:
    """The family of a checkpoint, and the digest that tells it from others."""
    return {"family": read_config(directory)["family"], "checkpoint": tree_digest(directory)}
