"""The embedders of others that ours are held to, of the real architectures and with random weights; imports nothing of ours."""

from __future__ import annotations

import importlib
import sys
import types
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def panns_models() -> types.ModuleType:
    """`panns_inference.models` without its package's own start, which downloads a table with wget."""
    if "panns_inference" not in sys.modules:
        package = types.ModuleType("panns_inference")
        package.__path__ = list(PathFinder.find_spec("panns_inference").submodule_search_locations)
        sys.modules["panns_inference"] = package
    return importlib.import_module("panns_inference.models")


def cnn14(sample_rate: int, window: int, hop: int, highest: int, seed: int = 0) -> nn.Module:
    """Cnn14 of panns_inference whose BatchNorms have seen something, as they have after training."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = panns_models().Cnn14(sample_rate, window, hop, 64, 50, highest, 527).eval()
        for norm in [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]:
            for values, low, high in (
                (norm.running_mean, -0.2, 0.2),
                (norm.running_var, 0.5, 1.5),
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.2, 0.2),
            ):
                nn.init.uniform_(values, low, high)
        nn.init.uniform_(net.bn0.running_mean, -30, -10)  # log-mels are in decibels
        nn.init.uniform_(net.bn0.running_var, 100, 300)
    return net


def vggish(seed: int = 0) -> nn.Module:
    """VGG of torchvggish, without the PCA that follows it there."""
    import torch
    from torchvggish.torchvggish import VGG, make_layers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VGG(make_layers(), False).eval()
