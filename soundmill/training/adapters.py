"""Low-rank adapters (LoRA, DoRA) inside a net, by peft: only they are trained, the weights around them stay those of the base.

The net may wrap a model of diffusers. Adapters are put into that model, and their weights are named as peft names them there, so
peft and diffusers load them into the same model of their own.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from soundmill.errors import UserError
from soundmill.training.params import LoraParams

PREFIX = "base_model.model."  # of every name in peft's files
ONE = "default"  # peft's name of the only adapter
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
SHOWN = 3  # names in an error
LAST_WORD = re.compile(r"[^.]+(\.\d+)*$")  # of a layer's name, with the number that follows it


def attach(net: nn.Module, params: LoraParams, name: str = ONE) -> None:
    """Put adapters into the layers that `params.targets` names, drawn from torch's global generator, and freeze everything else.

    They change nothing before they are trained. UserError if they do not fit the net. Adapters of another `name` stay active.
    """
    from peft import LoraConfig, inject_adapter_in_model

    check(net, params)
    model = adapted_model(net)
    net.requires_grad_(False)
    config = LoraConfig(**settings(params))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is meant
        inject_adapter_in_model(config, model, name)
    for weight in trained(net).values():
        weight.data = weight.data.float()  # peft gives them the base's type
    for layer in _layers(model).values():
        layer.set_adapter(list(layer.r))  # peft leaves only the newest adapters active
    net.requires_grad_(False)
    for weight in trained(net).values():
        weight.requires_grad_(True)


def settings(params: LoraParams) -> dict[str, Any]:
    """Arguments of peft's LoraConfig."""
    return {
        "r": params.rank,
        "lora_alpha": params.alpha,
        "lora_dropout": params.dropout,
        "target_modules": sorted(params.targets),
        "use_dora": params.dora,
    }


def check(net: nn.Module, params: LoraParams) -> None:
    """UserError if a target names no layer of `net`, or one that cannot be adapted or is smaller than the rank."""
    layers = {
        name: module.get_base_layer() if hasattr(module, "get_base_layer") else module
        for name, module in adapted_model(net).named_modules()
    }
    small: dict[str, int] = {}
    for target in params.targets:
        matched = {name: layer for name, layer in layers.items() if name == target or name.endswith(f".{target}")}
        if not matched:
            known = sorted({LAST_WORD.search(name)[0] for name, layer in layers.items() if isinstance(layer, LAYERS)})
            raise UserError(f"lora.targets: no layer of the net is named {target!r}; its layers end in {', '.join(known)}")
        other = next((name for name, layer in matched.items() if not isinstance(layer, LAYERS)), None)
        if other:
            raise UserError(
                f"lora.targets: {target!r} names {other}, a {type(matched[other]).__name__}; name linear layers or convolutions"
            )
        ranks = {name: min(layer.weight.shape[0], layer.weight[0].numel()) for name, layer in matched.items()}  # the largest
        small |= {name: rank for name, rank in ranks.items() if rank < params.rank}
    if small:
        named = ", ".join(f"{name} ({size})" for name, size in list(small.items())[:SHOWN])
        raise UserError(
            f"lora.rank: {params.rank} is above the size of {len(small)} layers, such as {named}; set it to at most "
            f"{min(small.values())}, or leave these layers out of lora.targets"
        )


def adapted_model(net: nn.Module) -> nn.Module:
    """The largest model of diffusers within `net`, or `net` itself."""
    from diffusers import ModelMixin

    models = [module for module in net.modules() if isinstance(module, ModelMixin)]
    return max(models, key=lambda model: sum(weight.numel() for weight in model.parameters()), default=net)


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that a training changes, by name: the adapters', or all if the net has none."""
    named = dict(net.named_parameters())
    return {name: weight for name, weight in named.items() if _is_adapter(name)} or named


def are_in(net: nn.Module) -> bool:
    return any(_is_adapter(name) for name, _ in net.named_parameters())


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or name.startswith("lora_")


def changing(module: nn.Module) -> dict[str, Tensor]:
    """The state of a training module, without the weights of a base that its `net` leaves as they are."""
    state = module.state_dict()
    if not are_in(module.net):
        return state
    return {name: value for name, value in state.items() if not name.startswith("net.") or _is_adapter(name)}


def restore(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `changing` returned."""
    own = module.state_dict() if are_in(module.net) else {}
    module.load_state_dict({**own, **state})


def weights_of(net: nn.Module, name: str = ONE) -> dict[str, Tensor]:
    """The weights that a checkpoint stores: a whole net's, or the adapters' by their names in peft's files."""
    if not are_in(net):
        return net.state_dict()
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(adapted_model(net), adapter_name=name, save_embedding_layers=False)
    return {f"{PREFIX}{key}": value for key, value in own.items()}


def give_weights(net: nn.Module, weights: Mapping[str, Tensor], name: str = ONE) -> None:
    """Load what `weights_of` returns; RuntimeError names a tensor that the net lacks, or that it has in another shape."""
    if not are_in(net):
        net.load_state_dict(weights)
        return
    own = weights_of(net, name)
    for key in {**own, **weights}:
        shapes = [list(tensors[key].shape) if key in tensors else "absent" for tensors in (weights, own)]
        if shapes[0] != shapes[1]:
            raise RuntimeError(f"{key} is {shapes[0]} there and {shapes[1]} in the net")
        with torch.no_grad():
            own[key].copy_(weights[key])


def scale(net: nn.Module, name: str, share: float) -> None:
    """Multiply what the adapter `name` adds by `share`."""
    for layer in _layers(net).values():
        layer.set_scale(name, share)


def merge(net: nn.Module) -> None:
    """Add the adapters to the weights of the base, and remove them: the net is a whole one again."""
    for name, layer in _layers(net).items():
        layer.merge()
        net.set_submodule(name, layer.get_base_layer())
    net.requires_grad_(True)


def _layers(net: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in net.named_modules() if isinstance(module, BaseTunerLayer)}
