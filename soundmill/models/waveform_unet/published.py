"""Checkpoints of tiny-audio-diffusion (a net of a-unet's) as models of ours: the same net under other names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundmill import params as strict
from soundmill.errors import UserError
from soundmill.models.components.unet1d.params import UNet1dParams
from soundmill.models.waveform_unet import model as models
from soundmill.models.waveform_unet.model import FAMILY, WaveformUNet
from soundmill.models.waveform_unet.params import TrainParams
from soundmill.training import weights

REMEDY = (
    "get the file anew; or, where it holds more than tensors, save it again with the program that wrote it: "
    "torch.save({'state_dict': old['state_dict'], 'global_step': old['global_step']}, FILE)"
)
AVERAGED, TRAINED = "model_ema.ema_model.net.", "model.net."  # prefixes of the weights that are sampled from, and of the others
SUFFIX = ".ckpt"
SAMPLE_RATE, HEAD_WIDTH, GROUPS = 44_100, 64, 8  # of all that was published; the tensors do not tell them
EMBEDDING = {
    "embedding.frequencies": "blocks.0.weights",
    "embedding.first.weight": "blocks.0.to_out.weight",
    "embedding.first.bias": "blocks.0.to_out.bias",
    "embedding.second.weight": "blocks.1.blocks.0.0.weight",
    "embedding.second.bias": "blocks.1.blocks.0.0.bias",
}
RESIDUAL = {
    "block.0": "block.blocks.0.blocks.0.0",
    "block.2": "block.blocks.0.blocks.0.2",
    "block.3": "block.blocks.0.blocks.1.0",
    "block.5": "block.blocks.0.blocks.1.2",
}
MODULATION = {"modulation.1": "blocks.0.block.blocks.0.1"}
ATTENTION = {
    "attention.norm": "blocks.0.block.norm",
    "attention.norm_context": "blocks.0.block.norm_context",
    "attention.to_q": "blocks.0.block.to_q",
    "attention.to_kv": "blocks.0.block.to_kv",
    "attention.to_out": "blocks.0.block.attention.blocks.0",
}


def read(path: Path, document: dict[str, Any]) -> tuple[WaveformUNet, dict[str, Any], Callable[..., None]]:
    """The model in a Lightning checkpoint, with the weights that it sampled from; facts, and what saves it.

    All but its net is as the content of a params.yaml has it. Tensors and plain values are read of the file and nothing else; what
    is no such file, or of another net, is a UserError.
    """
    params = strict.parse_section(document, f"{FAMILY}.train", TrainParams)
    found = weights.read_checkpoint(path, remedy=REMEDY)
    state = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not what tiny-audio-diffusion's training writes: `state_dict` is not in it")
    check_tensors(state, path)
    prefix = AVERAGED if any(name.startswith(AVERAGED) for name in state) else TRAINED
    theirs = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        net = Described.of(theirs)
        modulation, channels = theirs["blocks.0.to_out.weight"].shape[0], net.in_channels
    except (KeyError, IndexError, ValueError):
        raise UserError(f"{path}: no U-Net of tiny-audio-diffusion's is in it ({prefix}…); {REMEDY}") from None
    if not net.heads:
        raise UserError(f"{path}: its U-Net has no attention, so it is none of the published ones; nothing else is imported")
    network = strict.parse(UNet1dParams, net.sizes | {"modulation": modulation}, str(path))
    params = params.model_copy(update={"network": network, "condition": "none", "use": "last"})
    tensors = renamed(theirs, EMBEDDING | net.names)
    with torch.device("meta"):  # before memory is taken for what the shapes claim
        weights.load_state(models.build_net(params, channels, 0), tensors, path, REMEDY)
    model = WaveformUNet(params, models.build_net(params, channels, 0), SAMPLE_RATE, channels, [])
    weights.load_state(model.net, tensors, path, REMEDY)
    print(f"{path.name}: taken to make sounds of {SAMPLE_RATE} Hz, as all of tiny-audio-diffusion's do: the file does not tell")
    step = found.get("global_step")
    step = step if isinstance(step, int) else 0
    return model, {"steps": step, "weights": {"last": {"step": step}}}, models.save


def check_tensors(state: Mapping[Any, Any], path: Path) -> None:
    """UserError where not all are finite floating-point numbers that are in the file, each by a name."""
    for name, value in state.items():
        whole = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not (isinstance(name, str) and whole and value.untyped_storage().nbytes() >= value.numel() * value.element_size()):
            raise UserError(f"{path}: {str(name)[:100]!r} is no tensor that is whole; {REMEDY}")
        if value.is_complex() or (value.is_floating_point() and not value.isfinite().all()):
            raise UserError(f"{path}: {name[:100]!r} has values that are no real numbers; {REMEDY}")


def renamed(theirs: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by our names; those that are unknown keep theirs, and are refused with what does not fit.

    The embedding's second layer is there twice, once for each time that it is used.
    """
    ours = {there: here for here, there in names.items()}
    return {ours.get(name, name): value for name, value in theirs.items() if not name.startswith("blocks.1.blocks.1.")}


@dataclass
class Described:
    """What the tensors tell of a net: sizes of its levels, and its tensors' names by ours."""

    in_channels: int
    heads: int = 0
    channels: list[int] = field(default_factory=list)
    factors: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    attention: list[bool] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, theirs: Mapping[str, Tensor]) -> Described:
        there, here = "blocks.2.net.", "levels."
        described = cls(theirs[f"{there}block.blocks.0.block.weight"].shape[1])
        while there:
            inner = described._add(theirs, there, here)
            there, here = inner, f"{here}inner."
        return described

    @property
    def sizes(self) -> dict[str, Any]:
        of_levels = {name: getattr(self, name) for name in ("channels", "factors", "items", "attention")}
        return {
            **of_levels,
            "text_attention": [False] * len(self.items),
            "heads": self.heads,
            "head_width": HEAD_WIDTH,
            "groups": GROUPS,
        }

    def _add(self, theirs: Mapping[str, Tensor], there: str, here: str) -> str:
        """Note the level whose tensors' names begin with `there`; returns how those of the one below begin, "" for none."""
        modules: dict[int, set[str]] = {}
        for name in theirs:
            if match := re.match(re.escape(there) + r"block\.blocks\.(\d+)\.(.*)", name):
                modules.setdefault(int(match[1]), set()).add(match[2].rpartition(".")[0])
        last = max(modules)
        inner = next((place for place, names in modules.items() if "skip.blocks.0.1" in names), None)
        width, _, factor = theirs[f"{there}block.blocks.0.block.weight"].shape
        self.channels.append(width)
        self.factors.append(factor)
        half = (last - 1) // 2
        before = range(1, 1 + half)
        items = self._items(theirs, f"{there}block.blocks.", f"{here}before.", before, modules)
        self._items(theirs, f"{there}block.blocks.", f"{here}after.", range(last - half, last), modules)
        self.items.append(items)
        self.attention.append(any("blocks.0.block.to_q" in modules[place] for place in before))
        self._name(f"{here}down", f"{there}block.blocks.0.block")
        self._name(f"{here}up", f"{there}block.blocks.{last}.block.1")
        self._name(f"{here}scale.1", f"{there}skip.blocks.0.1")
        self._name(f"{here}adapter", f"{there}skip_adapter.block")
        return "" if inner is None else f"{there}block.blocks.{inner}."

    def _items(self, theirs: Mapping[str, Tensor], there: str, here: str, places: range, modules: dict[int, set[str]]) -> int:
        """Name the items whose modules lie at `places`; returns their number."""
        number = -1
        for place in places:
            if "block.blocks.0.blocks.0.0" in modules[place]:
                number, known = number + 1, RESIDUAL
            elif "blocks.0.block.to_q" in modules[place]:
                known = ATTENTION
                self.heads = theirs[f"{there}{place}.blocks.0.block.to_q.weight"].shape[0] // HEAD_WIDTH
            else:
                known = MODULATION
            for mine, its in known.items():
                self._name(f"{here}{number}.{mine}", f"{there}{place}.{its}")
        return number + 1

    def _name(self, mine: str, its: str) -> None:
        self.names |= {f"{mine}.{kind}": f"{its}.{kind}" for kind in ("weight", "bias")}
