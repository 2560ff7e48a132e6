"""Convert checkpoints of tiny-audio-diffusion: the same network (from a-unet) with other tensor names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from soundmill import params as strict
from soundmill import terminal
from soundmill.errors import UserError
from soundmill.hashing import file_digest
from soundmill.models.components.unet1d.params import UNet1dParams
from soundmill.models.waveform_unet import TrainParams
from soundmill.models.waveform_unet import model as models
from soundmill.models.waveform_unet.model import FAMILY, WaveformUNet
from soundmill.training import torch_weights

REMEDY = (
    "download the file again; or, if it contains more than tensors, save it again with the program that wrote it: "
    "torch.save({'state_dict': old['state_dict'], 'global_step': old['global_step']}, FILE)"
)
AVERAGED, TRAINED = "model_ema.ema_model.net.", "model.net."  # prefixes of the averaged and of the raw weights
SUFFIX = ".ckpt"
SAMPLE_RATE, HEAD_WIDTH, GROUPS = 44_100, 64, 8  # of all published checkpoints; the tensors do not determine them
NAMES = strict.read_yaml(Path(__file__).with_suffix(".yaml"))


def read(path: Path, document: dict[str, Any], name: str) -> tuple[WaveformUNet, dict[str, Any], Callable[..., None]]:
    """The model in a Lightning checkpoint, with its averaged weights if it has them; facts, and the function that saves it.

    `document`, the content of a params.yaml, gives everything but the network; the facts call the file `name`. Reads only tensors
    and plain values. UserError for any other file or network.
    """
    params = strict.parse_section(document, f"{FAMILY}.train", TrainParams)
    contents = torch_weights.read_checkpoint(path, remedy=REMEDY)
    state = torch_weights.state_in(contents, path, "tiny-audio-diffusion", "state_dict", REMEDY)
    check_tensors(state, path)
    prefix = AVERAGED if any(name.startswith(AVERAGED) for name in state) else TRAINED
    theirs = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        net = Described.of(theirs)
        modulation, channels = theirs["blocks.0.to_out.weight"].shape[0], net.in_channels
    except (KeyError, IndexError, ValueError):
        raise UserError(f"{path}: contains no U-Net of tiny-audio-diffusion ({prefix}…); {REMEDY}") from None
    if not net.heads:
        raise UserError(f"{path}: its U-Net has no attention, unlike all published ones; only those can be imported")
    network = strict.parse(UNet1dParams, net.sizes | {"modulation": modulation}, str(path))
    params = params.model_copy(update={"network": network, "condition": "none", "path": "v", "unit_variance": False, "use": "last"})
    make = partial(models.build_net, params, channels, 0)
    loaded = torch_weights.built(make, renamed(theirs, NAMES["embedding"] | net.names), path, REMEDY)
    model = WaveformUNet(params, loaded, SAMPLE_RATE, channels)
    terminal.say(f"{path.name}: assuming {SAMPLE_RATE} Hz, as in all of tiny-audio-diffusion's models: the file does not state it")
    step = contents.get("global_step")
    step = step if isinstance(step, int) else 0
    facts = {"steps": step, "weights": {"last": {"step": step}}, "imported": {"name": name, "digest": file_digest(path)}}
    return model, facts, WaveformUNet.save


def check_tensors(state: Mapping[Any, Any], path: Path) -> None:
    """UserError unless all are named tensors, fully stored in the file, of finite real numbers."""
    for name, value in state.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not (isinstance(name, str) and dense and value.untyped_storage().nbytes() >= value.numel() * value.element_size()):
            raise UserError(f"{path}: {str(name)[:100]!r} is not a complete tensor; {REMEDY}")
        if value.is_complex() or (value.is_floating_point() and not value.isfinite().all()):
            raise UserError(f"{path}: {name[:100]!r} has values that are not finite real numbers; {REMEDY}")


def renamed(theirs: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors with our names; unknown names stay unchanged and fail when the weights are loaded.

    The embedding's second layer is stored twice, once for each use.
    """
    our_names = {theirs: ours for ours, theirs in names.items()}
    return {our_names.get(name, name): value for name, value in theirs.items() if not name.startswith("blocks.1.blocks.1.")}


@dataclass
class Described:
    """The sizes of a network, inferred from its tensors, and their names by ours."""

    in_channels: int
    heads: int = 0
    channels: list[int] = field(default_factory=list)
    factors: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    attention: list[bool] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, theirs: Mapping[str, Tensor]) -> Self:
        published, ours = "blocks.2.net.", "levels."
        described = cls(theirs[f"{published}block.blocks.0.block.weight"].shape[1])
        while published:
            inner = described._add(theirs, published, ours)
            published, ours = inner, f"{ours}inner."
        return described

    @property
    def sizes(self) -> dict[str, Any]:
        levels = {name: getattr(self, name) for name in ("channels", "factors", "items", "attention")}
        return {
            **levels,
            "text_attention": [False] * len(self.items),
            "heads": self.heads,
            "head_width": HEAD_WIDTH,
            "groups": GROUPS,
        }

    def _add(self, theirs: Mapping[str, Tensor], prefix: str, our_prefix: str) -> str:
        """Add the level whose tensor names start with `prefix`; returns the prefix of the level below, "" if there is none."""
        modules: dict[int, set[str]] = {}
        for name in theirs:
            if match := re.match(re.escape(prefix) + r"block\.blocks\.(\d+)\.(.*)", name):
                modules.setdefault(int(match[1]), set()).add(match[2].rpartition(".")[0])
        last = max(modules)
        inner = next((place for place, names in modules.items() if "skip.blocks.0.1" in names), None)
        width, _, factor = theirs[f"{prefix}block.blocks.0.block.weight"].shape
        self.channels.append(width)
        self.factors.append(factor)
        half = (last - 1) // 2
        before = range(1, 1 + half)
        items = self._items(theirs, f"{prefix}block.blocks.", f"{our_prefix}before.", before, modules)
        self._items(theirs, f"{prefix}block.blocks.", f"{our_prefix}after.", range(last - half, last), modules)
        self.items.append(items)
        self.attention.append(any("blocks.0.block.to_q" in modules[place] for place in before))
        self._name(f"{our_prefix}down", f"{prefix}block.blocks.0.block")
        self._name(f"{our_prefix}up", f"{prefix}block.blocks.{last}.block.1")
        self._name(f"{our_prefix}scale.1", f"{prefix}skip.blocks.0.1")
        self._name(f"{our_prefix}adapter", f"{prefix}skip_adapter.block")
        return "" if inner is None else f"{prefix}block.blocks.{inner}."

    def _items(
        self, theirs: Mapping[str, Tensor], prefix: str, our_prefix: str, places: range, modules: dict[int, set[str]]
    ) -> int:
        """Name the items whose modules are at `places`; returns their number."""
        number = -1
        for place in places:
            if "block.blocks.0.blocks.0.0" in modules[place]:
                number, names = number + 1, NAMES["residual"]
            elif "blocks.0.block.to_q" in modules[place]:
                names = NAMES["attention"]
                self.heads = theirs[f"{prefix}{place}.blocks.0.block.to_q.weight"].shape[0] // HEAD_WIDTH
            else:
                names = NAMES["modulation"]
            for ours, published in names.items():
                self._name(f"{our_prefix}{number}.{ours}", f"{prefix}{place}.{published}")
        return number + 1

    def _name(self, ours: str, published: str) -> None:
        self.names |= {f"{ours}.{kind}": f"{published}.{kind}" for kind in ("weight", "bias")}
