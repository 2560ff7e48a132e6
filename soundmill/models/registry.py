"""Model families by name: each is a package beside this file, and its modules are imported only when they are asked for.

A family is
- the package itself: `TITLE` and `PAPER`, what it is and where it comes from, a line each;
- params.py: `TrainParams` and `GenerateParams` of `<family>.train` and `<family>.generate`, made of models/params.py's;
- training.py: `prepare(params, ctx, inputs, catalog)`, whose result models/training.py trains;
- checkpoint.py: `load(directory)`, a trained model, whose `params` are the training's; `networks(document)`, its nets by part
  (`unet`), freshly initialised, for the content of a params.yaml. Called where tensors have no memory (torch's meta device), so
  that sizes of any scale can be told; it must not read a weight's value;
- generation.py: what models/generation.py asks of it, to make sounds for clips and for prompts;
- cost.py: a `Probe` for models/cost.py, which tells what both stages will take.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from soundmill import shards
from soundmill.errors import UserError
from soundmill.params import P, StageParams, compose, did_you_mean, parse, section
from soundmill.stage import tree_digest

CONFIG = "config.json"  # of a checkpoint


def names() -> list[str]:
    """The families there are: the packages beside this module."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg)


def family(name: str) -> ModuleType:
    """The package of a family; an unknown name is an error that lists the known ones."""
    known = names()
    if name not in known:
        raise UserError(f"no model family {name!r}{did_you_mean(name, known)} (families: {', '.join(known)})")
    return importlib.import_module(f"soundmill.models.{name}")


def part(name: str, module: str) -> ModuleType:
    """A module of a family's package: `params`, `training` …"""
    return importlib.import_module(f"{family(name).__name__}.{module}")


def train_params(name: str) -> type[StageParams]:
    return part(name, "params").TrainParams


def generate_params(name: str) -> type[StageParams]:
    return part(name, "params").GenerateParams


def check(document: dict[str, Any]) -> None:
    """Raise UserError where the content of a params.yaml has something that training or generating would refuse, hours later."""
    for name in document["families"]:
        for stage, model in (("train", train_params(name)), ("generate", generate_params(name))):
            parse(model, section(document, f"{name}.{stage}", "parameters"), f"{name}.{stage}")


def estimate_seconds(name: str, document: dict[str, Any], num_clips: int, num_labels: int) -> float:
    """Seconds that training and generating will take here, by the parameters in a whole params.yaml's content."""
    from soundmill.models import cost

    return cost.seconds(name, document, num_clips, num_labels)


def parameter_counts(name: str, document: dict[str, Any]) -> dict[str, int]:
    """Number of trained or loaded parameters of each part of a family, as the content of a params.yaml has it."""
    import torch

    with torch.device("meta"):
        parts = part(name, "checkpoint").networks(document)
    return {which: sum(weight.numel() for weight in net.parameters()) for which, net in parts.items()}


def describe(conf: Path) -> dict[str, dict[str, Any]]:
    """Every family: `what` it is, its `source`, and for each scale below `conf` (Hydra's groups) its parameters by part.

    So `["ddpm_mel"]["paper"]["unet"]` is the size of that net as it was published.
    """
    scales = sorted(path.stem for path in (conf / "scale").glob("*.yaml"))
    return {
        name: {
            "what": family(name).TITLE,
            "source": family(name).PAPER,
            **{scale: parameter_counts(name, compose(conf, [f"model={name}", f"scale={scale}"])) for scale in scales},
        }
        for name in names()
    }


def write_json(described: dict[str, dict[str, Any]], path: Path) -> None:
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    shards.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_config(directory: Path, name: str, params: StageParams, facts: dict[str, Any], **values: Any) -> None:
    """`config.json` of a checkpoint: its family, the training's parameters, what else it is built from, facts for people."""
    from soundmill.training import weights

    weights.write_json({"family": name, "params": params.model_dump(mode="json"), **values, **facts}, directory / CONFIG)


def checkpoint_part(model: type[P], config: dict[str, Any], key: str, directory: Path) -> P:
    return parse(model, config[key], f"{directory / CONFIG}: {key}")


def checkpoint_config(directory: Path, expected: str | None = None, keys: Sequence[str] = ()) -> dict[str, Any]:
    """`config.json` of a checkpoint.

    UserError when there is none, it is unreadable, of another family than `expected`, or lacks some of `keys`.
    """
    from soundmill.training import weights

    path = directory / CONFIG
    config = weights.read_json(path, "checkpoint")
    found = config.get("family") if isinstance(config, dict) else None
    if found is None:
        raise UserError(f"{path}: not a checkpoint of Soundmill's: it names no `family`")
    if expected is not None and found != expected:
        raise UserError(f"{directory}: a checkpoint of family {found!r}, not {expected!r}; use `--family {found}` or retrain")
    missing = [key for key in keys if key not in config]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing: not a whole checkpoint; retrain with `dvc repro`")
    return config


def origin(checkpoint_dir: Path) -> dict[str, str]:
    """The family of a checkpoint, and the digest that tells it from others."""
    return {"family": checkpoint_config(checkpoint_dir)["family"], "checkpoint": tree_digest(checkpoint_dir)}
