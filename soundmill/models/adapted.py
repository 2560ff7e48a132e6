"""Checkpoints of adapters: a directory with peft's two files beside a family's `config.json`; the base stays where it is.

`adapter_config.json` names the base's directory and, as its `revision`, the base's digest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundmill import disk, terminal
from soundmill import params as strict
from soundmill.errors import UserError
from soundmill.hashing import tree_digest
from soundmill.training import checkpoint
from soundmill.training.params import LoraParams

if TYPE_CHECKING:
    from torch import nn

ONE = "default"  # peft's name of the only adapters in a net
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REMEDY = "copy that base to this path, below the project or another directory above the adapters"
ABOUT = ("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "base_model_name_or_path", "revision")
OURS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_dora")


@dataclass(frozen=True)
class Adapters:
    """What `adapter_config.json` says."""

    params: LoraParams
    base: str | None  # directory of the base, as the training named it
    digest: str | None  # of the base; None if another program wrote the file


def are_in(directory: Path) -> bool:
    return (directory / CONFIG).is_file()


def read(directory: Path) -> Adapters:
    """The adapters in a directory; UserError if they are none, or of a kind that is not supported."""
    from peft import LoraConfig

    path = directory / CONFIG
    if not path.is_file():
        raise UserError(f"{directory}: no adapters here ({CONFIG} is missing); train some with `lora` (docs/models.md)")
    config = strict.read_json(path, "copy the adapters again")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path}: not the configuration of LoRA adapters of peft; name another directory")
    plain = LoraConfig().to_dict()
    for key, value in config.items():
        if key == "init_lora_weights" and value in (False, "gaussian"):  # how they began, not what they are
            continue
        if key not in (*ABOUT, *OURS) and value and value != plain.get(key):
            raise UserError(f"{path}: {key} is {value!r}, which is not supported; train the adapters without it")
    values = {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "dropout": config.get("lora_dropout", 0.0),
        "targets": config.get("target_modules"),
        "dora": config.get("use_dora", False),
    }
    base, digest = config.get("base_model_name_or_path"), config.get("revision")
    if not all(value is None or (isinstance(value, str) and "\0" not in value) for value in (base, digest)):
        raise UserError(f"{path}: base_model_name_or_path and revision must be text or null")
    return Adapters(strict.parse(LoraParams, values, str(path)), base, digest)


def base_of(directory: Path) -> Path:
    """The checkpoint that adapters were trained on, found by its path and its digest; UserError if it is missing.

    A relative path starts at `directory` or at one above it, such as the project.
    """
    adapters = read(directory)
    if adapters.base is None or adapters.digest is None:
        raise UserError(f"{directory / CONFIG}: names no base; use it by `soundmill generate --lora DIR --checkpoint BASE`")
    here = directory.resolve()
    places = dict.fromkeys((start / adapters.base).resolve() for start in (here, *here.parents))
    found = [place for place in places if (place / checkpoint.CONFIG).is_file()]
    for place in found:
        if tree_digest(place) == adapters.digest:
            return place
    expected = f"the base {adapters.base} of the adapters in {directory} (digest {adapters.digest[:12]}…)"
    if found:
        others = ", ".join(f"{place} has digest {tree_digest(place)[:12]}…" for place in found)
        raise UserError(f"{expected} is another one now: {others}; {REMEDY}")
    raise UserError(f"{expected} is missing; {REMEDY}")


def compare_parts(name: str, family: str, before: Any, now: Any) -> None:
    """Print which parts of a model over latents changed since the training that this one starts from.

    UserError for adapters, which cannot go with other parts than their base's.
    """
    weights = f"{family}.autoencoder.weights"
    remedies = {
        "text": f"set text.{family}.encoder to {before.text.name}" if before.text else "",
        "autoencoder": (
            f"set {weights}.start_from to its `autoencoder` and {weights}.steps to 0 or, if {weights}.kind is load, "
            f"{weights}.name to where that is from"
        ),
    }
    for part, title in {"text": "text encoder", "autoencoder": "autoencoder"}.items():
        theirs, ours = getattr(before, part), getattr(now, part)
        if not (theirs and ours) or theirs.digest == ours.digest:
            continue
        if now.params.lora:
            raise UserError(
                f"lora: the {title} is not that of {now.params.start_from}, to which adapters cannot add another; {remedies[part]}"
            )
        names = f" from {theirs.name} to {ours.name}" if part == "text" else ""
        terminal.say(f"{name}: the {title} changed{names}: the network must adapt to it")


def write(net: nn.Module, directory: Path, params: LoraParams, base: str, digest: str) -> None:
    """Write the adapters in `net` as peft does; also with what diffusers needs to know of them."""
    from peft import LoraConfig

    from soundmill.training import adapters

    config = LoraConfig(**adapters.settings(params), base_model_name_or_path=base, revision=digest, inference_mode=True).to_dict()
    config["target_modules"] = sorted(params.targets)  # peft has a set, whose order differs between processes
    plain: dict[str, Any] = {key: value for key, value in config.items() if key not in ("runtime_config", "peft_version")}
    disk.write_json(directory / CONFIG, plain, ensure_ascii=True, allow_nan=True)
    known = {f"{adapters.PREFIX[:-1]}.{key}": value for key, value in plain.items()}
    metadata = {"lora_adapter_metadata": json.dumps(known, sort_keys=True)}  # diffusers' key
    checkpoint.write_weights(adapters.weights_of(net), directory / WEIGHTS, metadata)


def load(net: nn.Module, directory: Path, found: Adapters, name: str) -> None:
    """Put the adapters of a directory into `net`, as the adapter `name`; UserError if they do not fit."""
    from soundmill.training import adapters

    try:
        adapters.attach(net, found.params, name)
    except UserError as error:
        raise UserError(f"{directory / CONFIG}: {error}") from None
    checkpoint.load_weights(net, directory / WEIGHTS, name)
