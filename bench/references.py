"""Reference implementations of embedders, with random weights, without Soundmill's imports.

`python -m bench.references NET WEIGHTS DIRECTORY` embeds the files of a directory one after the other and prints seconds and CPU
seconds, without loading the net.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import types
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

PACKAGES = {"vggish": "torchvggish", "panns_cnn14_16k": "panns_inference", "panns_cnn14_32k": "panns_inference"}
CNN14 = {  # sample rate, window, hop, bands, lowest and highest frequency, classes
    "panns_cnn14_16k": (16_000, 512, 160, 64, 50, 8_000, 527),
    "panns_cnn14_32k": (32_000, 1024, 320, 64, 50, 14_000, 527),
}


def panns_models() -> types.ModuleType:
    """`panns_inference.models` without importing its package, which downloads a table with wget."""
    if "panns_inference" not in sys.modules:
        package = types.ModuleType("panns_inference")
        package.__path__ = list(PathFinder.find_spec("panns_inference").submodule_search_locations)
        sys.modules["panns_inference"] = package
    return importlib.import_module("panns_inference.models")


def cnn14(name: str, seed: int = 0) -> nn.Module:
    """Cnn14 of panns_inference with random BatchNorm statistics, as after training."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = panns_models().Cnn14(*CNN14[name]).eval()
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
    """VGG of torchvggish, without its PCA."""
    import torch
    from torchvggish.torchvggish import VGG, make_layers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VGG(make_layers(), False).eval()


def write_random_weights(name: str, path: Path) -> None:
    """Write random weights in the published file format."""
    import torch

    torch.save(vggish().state_dict() if name == "vggish" else {"model": cnn14(name).state_dict()}, path)


def embedder(name: str, weights: Path) -> Callable[[Path], Any]:
    """A function that embeds one file."""
    import torch

    state = torch.load(weights, weights_only=True)
    if name == "vggish":
        from torchvggish.vggish_input import wavfile_to_examples

        net = vggish()
        net.load_state_dict(state)
        return lambda path: net(wavfile_to_examples(str(path)))

    import librosa

    net = cnn14(name)
    net.load_state_dict(state["model"])
    rate = CNN14[name][0]
    return lambda path: net(torch.from_numpy(librosa.load(path, sr=rate, mono=True)[0])[None])


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=PACKAGES)
    parser.add_argument("weights", type=Path)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    paths = sorted(args.directory.iterdir())
    with torch.no_grad():
        embed = embedder(args.net, args.weights)
        embed(paths[0])  # numba compiles
        start, cpu = time.perf_counter(), time.process_time()
        for path in paths:
            embed(path)
        print(time.perf_counter() - start, time.process_time() - cpu)


if __name__ == "__main__":
    main()
