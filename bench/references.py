"""Reference implementations of embedders, with random weights, without Soundmill's imports.

`python -m bench.references NET WEIGHTS DIRECTORY` embeds the files of a directory and prints seconds and CPU seconds, without
loading the net.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from torch import nn

PACKAGES = {
    "vggish": "torchvggish",
    "panns_cnn14_16k": "panns_inference",
    "panns_cnn14_32k": "panns_inference",
    "panns_wavegram_logmel": "kadtk",
    "openl3_env": "torchopenl3",
    "passt": "hear21passt",
    "clap_music_speech": "laion_clap",
    "msclap": "msclap",
    "audiobox": "audiobox_aesthetics",
}
BATCHES = {"clap_music_speech": 8, "msclap": 8, "audiobox": 2}  # files at once, as in Soundmill; the others take one
ORACLES = f"{sys.prefix}/oracles"  # packages that cannot be installed beside ours
OPENL3_HOP = 0.5  # seconds
CNN14 = {  # sample rate, window, hop, bands, lowest and highest frequency, classes
    "panns_cnn14_16k": (16_000, 512, 160, 64, 50, 8_000, 527),
    "panns_cnn14_32k": (32_000, 1024, 320, 64, 50, 14_000, 527),
    "panns_wavegram_logmel": (32_000, 1024, 320, 64, 50, 14_000, 527),
}


def module(name: str) -> types.ModuleType:
    """A module without its packages' own code, which imports or downloads what is not needed here."""
    parents, path = name.split(".")[:-1], None
    for depth in range(1, len(parents) + 1):
        parent = ".".join(parents[:depth])
        if parent not in sys.modules:
            package = types.ModuleType(parent)
            spec = PathFinder.find_spec(parent, path) or PathFinder.find_spec(parent, [ORACLES])
            package.__path__ = list(spec.submodule_search_locations)
            sys.modules[parent] = package
        path = sys.modules[parent].__path__
    return importlib.import_module(name)


@contextmanager
def standing_in(*names: str) -> Iterator[None]:
    """Stand-ins for modules that an original imports without need; gone afterwards, as other libraries would take them for real."""
    missing = [name for name in names if name not in sys.modules and PathFinder.find_spec(name.partition(".")[0]) is None]
    sys.modules.update({name: mock.MagicMock() for name in missing})
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def cnn14(name: str, seed: int = 0) -> nn.Module:
    """Cnn14 of panns_inference, or kadtk's Wavegram-Logmel-Cnn14, with random BatchNorm statistics, as after training."""
    import torch
    from torch import nn

    rate, *sizes = CNN14[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "panns_wavegram_logmel":
            net = module("kadtk.models.panns.models").Wavegram_Logmel_Cnn14(rate, *sizes).eval()
        else:
            net = module("panns_inference.models").Cnn14(rate, *sizes).eval()
        randomise_norms(net)
        nn.init.uniform_(net.bn0.running_mean, -30, -10)  # log-mels are in decibels
        nn.init.uniform_(net.bn0.running_var, 100, 300)
    return net


def randomise_norms(net: nn.Module) -> None:
    from torch import nn

    for norm in [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]:
        for values, low, high in (
            (norm.running_mean, -0.2, 0.2),
            (norm.running_var, 0.5, 1.5),
            (norm.weight, 0.5, 1.5),
            (norm.bias, -0.2, 0.2),
        ):
            nn.init.uniform_(values, low, high)


def vggish(seed: int = 0) -> nn.Module:
    """VGG of torchvggish, without its PCA."""
    import torch
    from torchvggish.torchvggish import VGG, make_layers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VGG(make_layers(), False).eval()


def openl3(seed: int = 0) -> nn.Module:
    """OpenL3 of torchopenl3, with weights and BatchNorm statistics that keep activations in range, as after training."""
    import torch
    from torch import nn
    from torchopenl3.models import PytorchOpenl3

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PytorchOpenl3(content_type="env", input_repr="mel256", embedding_size=512).eval()
        for convolution in [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.uniform_(convolution.bias, -0.2, 0.2)
        net.audio_embedding_layer.weight.data /= 5  # embeddings of a few units
        randomise_norms(net)
        nn.init.constant_(net.batch_normalization_1.running_mean, -30)  # log-mels are in decibels
        nn.init.constant_(net.batch_normalization_1.running_var, 300)
    return net


def passt(seed: int = 0) -> nn.Module:
    """PaSST of hear21passt with its front end: waves → logits and embeddings [N, 527 + 768]."""
    import torch

    with standing_in("timm", "timm.models", "timm.models._hub"):
        from hear21passt import base
        from hear21passt.models.passt import get_model

    with (
        torch.random.fork_rng(devices=[]),
        redirect_stdout(None),
        mock.patch.object(base, "get_model_passt", lambda arch: get_model(arch=arch, pretrained=False)),
    ):
        torch.manual_seed(seed)
        model = base.get_basic_model(mode="all").eval()
        enliven(model.net)
    return model


def enliven(net: nn.Module) -> None:
    """Larger weights than those that a training of transformers begins with, by which blocks change next to nothing."""
    from torch import nn

    for name, values in net.named_parameters():
        if not values.requires_grad:  # a spectrogram's
            continue
        if name.endswith("bias") or "token" in name or "embed" in name:
            nn.init.normal_(values, std=0.2)
        elif values.ndim > 1:
            nn.init.normal_(values, std=values[0].numel() ** -0.5)


def music_speech_clap(seed: int = 0) -> nn.Module:
    """HTSAT-base of laion_clap and RoBERTa-base, with its projections: the parts of CLAP that embed sounds and texts."""
    import torch
    from torch import nn
    from transformers import RobertaConfig, RobertaModel

    with standing_in("h5py", "torchvision", "torchvision.ops", "torchvision.ops.misc"):
        htsat = module("laion_clap.clap_module.htsat")
    audio = {"mel_bins": 64, "sample_rate": 48_000, "window_size": 1024, "hop_size": 480, "fmin": 50, "fmax": 14_000}
    sizes = types.SimpleNamespace(**audio, class_num=527, model_name="base")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Module()
        net.audio_branch = htsat.create_htsat_model(sizes)
        net.text_branch = RobertaModel(
            RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
        )
        for name, width in (("audio", 1024), ("text", 768)):
            net.add_module(f"{name}_projection", nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 512)))
        net.logit_scale_a, net.logit_scale_t = (nn.Parameter(torch.tensor(2.0)) for _ in range(2))
        enliven(net.audio_branch)
        randomise_norms(net)
        nn.init.uniform_(net.audio_branch.bn0.running_mean, -30, -10)  # log-mels are in decibels
        nn.init.uniform_(net.audio_branch.bn0.running_var, 100, 300)
    return net.eval()


def msclap(seed: int = 0) -> nn.Module:
    """CLAP of msclap in the sizes of 2023."""
    import torch
    import yaml
    from torch import nn
    from transformers import AutoModel, GPT2Config, GPT2Model

    with mock.patch.object(AutoModel, "from_pretrained", return_value=GPT2Model(GPT2Config())):
        models = module("msclap.models.clap")
        text = Path(models.__file__).parents[1].joinpath("configs/config_2023.yml").read_text()
        names = ("audioenc_name", "window_size", "hop_size", "mel_bins", "fmin", "fmax", "out_emb", "text_model")
        sizes = yaml.safe_load(text)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = models.CLAP(
                **{name: sizes[name] for name in (*names, "transformer_embed_dim", "d_proj")},
                sample_rate=sizes["sampling_rate"],
                classes_num=sizes["num_classes"],
            ).eval()
            enliven(net)
            randomise_norms(net)
            nn.init.uniform_(net.audio_encoder.base.htsat.bn0.running_mean, -30, -10)  # log-mels are in decibels
            nn.init.uniform_(net.audio_encoder.base.htsat.bn0.running_var, 100, 300)
    return net


def write_msclap(net: nn.Module, path: Path) -> None:
    """Write the net as the published file has it: all as floats, with the masks of GPT-2 in older versions of transformers.

    So written, it is 689,920,291 bytes long; the published file has 29,745 more (0.004 %), of another version's container.
    """
    import torch

    state = {name: values.float() for name, values in net.state_dict().items()}
    mask = torch.ones(1, 1, 1024, 1024).tril()
    for layer in range(12):
        prefix = f"caption_encoder.base.h.{layer}.attn."
        state |= {f"{prefix}bias": mask.clone(), f"{prefix}masked_bias": torch.tensor(-10_000.0)}
    torch.save({"model": state}, path)


def write_gpt2_tokenizer(directory: Path) -> None:
    """Write a tokenizer as GPT-2's, but every byte is a token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.pre_tokenizers import ByteLevel

    words = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    words |= {f"unused {number}": number for number in range(len(words), 50_256)} | {"<|endoftext|>": 50_256}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=True)])
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))


def write_clap_processor(directory: Path, fusion: bool = False, max_length_s: int = 10) -> int:
    """Write the files that prepare sounds and texts for CLAP; every byte is a token. Returns the number of tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import ClapFeatureExtractor, ClapProcessor, RobertaTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    truncation = "fusion" if fusion else "rand_trunc"
    extractor = ClapFeatureExtractor(truncation=truncation, max_length_s=max_length_s, frequency_min=50)
    tokenizer = RobertaTokenizerFast(vocab={word: number for number, word in enumerate(words)}, merges=[])
    ClapProcessor(extractor, tokenizer).save_pretrained(directory)
    return len(words)


def audiobox(seed: int = 0) -> nn.Module:
    """AesMultiOutput of audiobox_aesthetics, as published but for its weights; it rates batches of padded windows."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = module("audiobox_aesthetics.model.aes").AesMultiOutput(proj_num_layer=5, proj_ln=True)
        for values in net.layer_weights.values():
            torch.nn.init.normal_(values)
    return net.eval()


def write_random_weights(name: str, path: Path) -> None:
    """Write random weights in the published file format."""
    import torch

    if name == "msclap":
        write_msclap(msclap(), path)
    elif name == "audiobox":
        from safetensors.torch import save_file

        save_file(audiobox().state_dict(), path)
    else:
        torch.save(_published(name), path)


def _published(name: str) -> dict[str, Any]:
    if name.startswith("panns"):
        return {"model": cnn14(name).state_dict()}
    if name == "passt":
        return passt().net.state_dict()
    if name == "clap_music_speech":
        return {"state_dict": {f"module.{key}": values for key, values in music_speech_clap().state_dict().items()}}
    return (vggish() if name == "vggish" else openl3()).state_dict()


def embedder(name: str, weights: Path) -> Callable[[list[Path]], Any]:
    """A function that embeds files, as many as BATCHES says."""
    import torch

    if name == "vggish":
        from torchvggish.vggish_input import wavfile_to_examples

        net = vggish()
        net.load_state_dict(torch.load(weights, weights_only=True))
        return lambda paths: net(wavfile_to_examples(str(paths[0])))

    import librosa

    if name == "audiobox":
        from safetensors.torch import load_file

        net, infer = audiobox(), module("audiobox_aesthetics.infer")
        net.load_state_dict(load_file(weights))

        def rate(paths: list[Path]) -> Any:
            sounds = [torch.from_numpy(librosa.load(path, sr=16_000)[0])[None] for path in paths]
            waves, masks, _, _ = infer.make_inference_batch(sounds)
            return net({"wav": torch.stack(waves), "mask": torch.stack(masks)})

        return rate
    state = torch.load(weights, weights_only=True)
    if name == "clap_music_speech":
        net = music_speech_clap()
        net.load_state_dict({key.removeprefix("module."): values for key, values in state["state_dict"].items()})
        return lambda paths: net.audio_projection(net.audio_branch({"waveform": _filled(paths, 48_000, 10)})["embedding"])
    if name == "msclap":
        net = msclap()
        net.load_state_dict(state["model"], strict=False)
        return lambda paths: net.audio_encoder(_filled(paths, 44_100, 7))[0]
    if name.startswith("openl3"):
        from torchopenl3 import get_audio_embedding

        net = openl3()
        net.load_state_dict(state)
        return lambda paths: get_audio_embedding(librosa.load(paths[0], sr=48_000)[0], 48_000, net, hop_size=OPENL3_HOP)
    if name == "passt":
        net = passt()
        net.net.load_state_dict(state)

        def embed(paths: list[Path]) -> Any:
            with redirect_stdout(None):
                return net.get_scene_embeddings(torch.from_numpy(librosa.load(paths[0], sr=32_000)[0])[None])

        return embed
    net = cnn14(name)
    net.load_state_dict(state["model"])
    rate = CNN14[name][0]
    return lambda paths: net(torch.from_numpy(librosa.load(paths[0], sr=rate, mono=True)[0])[None])


def _filled(paths: list[Path], rate: int, seconds: int) -> Any:
    """Waves [N, T], each repeated until it fills `seconds`."""
    import librosa
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.resize(librosa.load(path, sr=rate)[0], rate * seconds) for path in paths]))


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
        embed(paths[:1])  # numba compiles
        start, cpu = time.perf_counter(), time.process_time()
        size = BATCHES.get(args.net, 1)
        for first in range(0, len(paths), size):
            embed(paths[first : first + size])
        print(time.perf_counter() - start, time.process_time() - cpu)


if __name__ == "__main__":
    main()
