"""Model families by name: each is a package beside this file, imported only when it is asked for.

A family offers
- `TITLE` and `PAPER`: what it is, and where it comes from, a line each;
- `TrainParams`, `GenerateParams`: the parameters (StageParams) of `<family>.train` and `<family>.generate`;
- `train`, `generate`: what the two stages run; `generate_sounds`: sounds from its checkpoint, as below;
- `seconds(document, num_clips, num_labels)`: what both stages will take on this machine, by the content of a params.yaml;
- `networks(document)`: its nets by part (`unet`), freshly initialised, for the content of a params.yaml. Called where tensors
  have no memory (torch's meta device), so that sizes of any scale can be told; it must not read a weight's value.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from soundmill import shards
from soundmill.errors import UserError
from soundmill.params import StageParams, compose, did_you_mean
from soundmill.stage import tree_digest


def names() -> list[str]:
    """The families there are: the packages beside this module."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg)


def family(name: str) -> ModuleType:
    """The package of a family; an unknown name is an error that lists the known ones."""
    known = names()
    if name not in known:
        raise UserError(f"no model family {name!r}{did_you_mean(name, known)} (families: {', '.join(known)})")
    return importlib.import_module(f"soundmill.models.{name}")


def train_params(name: str) -> type[StageParams]:
    return family(name).TrainParams


def generate_params(name: str) -> type[StageParams]:
    return family(name).GenerateParams


def estimate_seconds(name: str, document: dict[str, Any], num_clips: int, num_labels: int) -> float:
    """Seconds that training and generating will take here, by the parameters in a whole params.yaml's content."""
    return family(name).seconds(document, num_clips, num_labels)


def parameter_counts(name: str, document: dict[str, Any]) -> dict[str, int]:
    """Number of trained or loaded parameters of each part of a family, as the content of a params.yaml has it."""
    import torch

    with torch.device("meta"):
        parts = family(name).networks(document)
    return {part: sum(weight.numel() for weight in net.parameters()) for part, net in parts.items()}


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


def checkpoint_config(directory: Path, expected: str | None = None) -> dict[str, Any]:
    """`config.json` of a checkpoint; UserError when there is none, it is unreadable, or of another family than `expected`."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{directory}: no checkpoint here (config.json is missing); `dvc repro` trains one") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}; retrain with `dvc repro`") from None
    found = config.get("family") if isinstance(config, dict) else None
    if found is None:
        raise UserError(f"{path}: not a checkpoint of Soundmill's: it names no `family`")
    if expected is not None and found != expected:
        raise UserError(f"{directory}: a checkpoint of family {found!r}, not {expected!r}; use `--family {found}` or retrain")
    return config


def comments(checkpoint_dir: Path, prompts: list[str], seed: int) -> list[str]:
    """What the WAVs made of `prompts`, one each, say of themselves: JSON of family, checkpoint, prompt, seed and number."""
    family_and_digest = {"family": checkpoint_config(checkpoint_dir)["family"], "checkpoint": tree_digest(checkpoint_dir)}
    return [
        json.dumps({**family_and_digest, "prompt": prompt, "seed": seed, "number": number}, ensure_ascii=False)
        for number, prompt in enumerate(prompts, start=1)
    ]


def generate_sounds(
    checkpoint_dir: Path,
    prompts: list[str],
    count: int,
    seed: int,
    output_dir: Path,
    home: Path,
    steps: int | None = None,
    guidance: float | None = None,
) -> list[Path]:
    """Make `count` sounds of `prompts` (none: unconditional) with a trained checkpoint of any family.

    Of a family that knows labels the prompts are labels, mixed in every sound; an unknown one is a UserError that lists the
    known. Of one that reads text, each prompt gets `count` sounds. Writes WAVs, whose comment says what they are, and a picture,
    `spectrograms.png`, into `output_dir`; returns the WAVs. `home` is where relative paths of text encoders start. `steps`
    and `guidance` replace the checkpoint's own sampling.
    """
    config = checkpoint_config(checkpoint_dir)
    return family(config["family"]).generate_sounds(checkpoint_dir, prompts, count, seed, output_dir, home, steps, guidance)
