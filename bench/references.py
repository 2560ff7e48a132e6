"""The originals of embedders, with random weights, without Soundmill's imports.

`python -m bench.references NET DIRECTORY` embeds the files of a directory and prints seconds and CPU seconds, without those
that making the net takes.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

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
RATES = {
    **dict.fromkeys(("vggish", "panns_cnn14_16k", "audiobox"), 16_000),
    **dict.fromkeys(("panns_cnn14_32k", "panns_wavegram_logmel", "passt"), 32_000),
    **{"msclap": 44_100, "openl3_env": 48_000, "clap_music_speech": 48_000},
}
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


# Of the values of a tensor, by the end of its name. Else norms have about one, biases about nothing, and others what keeps the
# loudness of what goes through, so that every layer is heard.
RANGES = (
    (r"(bn0|batch_normalization_1)\.running_mean$", -30, -10),  # log-mels are in decibels
    (r"(bn0|batch_normalization_1)\.running_var$", 100, 300),
    (r"running_mean$", -0.2, 0.2),
    (r"running_var$", 0.5, 1.5),
    (r"^head\.out\.weight$", -0.08, 0.08),  # logarithms of Vocos' magnitudes
    (r"^fc1\.weight$", -0.003, 0.003),  # embeddings of Cnn14
    (r"^fc_audioset\.weight$", -0.1, 0.1),
    (r"^audio_embedding_layer\.weight$", -0.007, 0.007),
    (r"layer_weights\.\w+$", -1.7, 1.7),
    (r"(token|embed|emb)$", -0.35, 0.35),
)
FIXED = re.compile(r"(stft|logmel_extractor|speclayer|mel_spec)\.|attn_mask$")  # what no training changes, in names of tensors


def random_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Weights from the bits of a PCG64, in the order of their names: the same with every version of every library."""
    source, weights = np.random.PCG64(0), {}
    for name, shape in sorted(shapes.items()):
        size = math.prod(shape)
        values = source.random_raw(-(-size // 4)).view(np.uint16)[:size].astype(np.float32) / 65_536
        limit = math.sqrt(6 / math.prod(shape[1:])) if len(shape) > 1 else 0.35
        low, high = (0.5, 1.5) if len(shape) == 1 and name.endswith(("weight", "gamma")) else (-limit, limit)
        low, high = next(((low, high) for pattern, low, high in RANGES if re.search(pattern, name)), (low, high))
        weights[name] = (low + (high - low) * values).astype(np.float32).reshape(shape)
    return weights


def filled(net: nn.Module) -> nn.Module:
    """The net with random weights, ready to be asked; one with two names goes by the first."""
    import torch

    state = net.state_dict()
    names = {values.data_ptr(): name for name, values in reversed(state.items())}
    shapes = {
        name: values.shape
        for name, values in state.items()
        if values.is_floating_point() and not FIXED.search(name) and names[values.data_ptr()] == name
    }
    net.load_state_dict({name: torch.from_numpy(values) for name, values in random_weights(shapes).items()}, strict=False)
    return net.eval()


def cnn14(name: str) -> nn.Module:
    """Cnn14 of panns_inference, or kadtk's Wavegram-Logmel-Cnn14."""
    if name == "panns_wavegram_logmel":
        return filled(module("kadtk.models.panns.models").Wavegram_Logmel_Cnn14(*CNN14[name]))
    return filled(module("panns_inference.models").Cnn14(*CNN14[name]))


def vggish() -> nn.Module:
    """VGG of torchvggish, without its PCA."""
    from torchvggish.torchvggish import VGG, make_layers

    return filled(VGG(make_layers(), False))


def openl3() -> nn.Module:
    from torchopenl3.models import PytorchOpenl3

    return filled(PytorchOpenl3(content_type="env", input_repr="mel256", embedding_size=512))


def passt() -> nn.Module:
    """PaSST of hear21passt with its front end: waves → logits and embeddings [N, 527 + 768]."""
    with standing_in("timm", "timm.models", "timm.models._hub"):
        from hear21passt import base
        from hear21passt.models.passt import get_model

    with redirect_stdout(None), mock.patch.object(base, "get_model_passt", lambda arch: get_model(arch=arch, pretrained=False)):
        model = base.get_basic_model(mode="all").eval()
    filled(model.net)
    return model


def music_speech_clap() -> nn.Module:
    """HTSAT-base of laion_clap and RoBERTa-base, with its projections: the parts of CLAP that embed sounds and texts."""
    import torch
    from torch import nn
    from transformers import RobertaConfig, RobertaModel

    with standing_in("h5py", "torchvision", "torchvision.ops", "torchvision.ops.misc"):
        htsat = module("laion_clap.clap_module.htsat")
    audio = {"mel_bins": 64, "sample_rate": 48_000, "window_size": 1024, "hop_size": 480, "fmin": 50, "fmax": 14_000}
    net = nn.Module()
    net.audio_branch = htsat.create_htsat_model(types.SimpleNamespace(**audio, class_num=527, model_name="base"))
    net.text_branch = RobertaModel(
        RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    )
    for name, width in (("audio", 1024), ("text", 768)):
        net.add_module(f"{name}_projection", nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 512)))
    net.logit_scale_a, net.logit_scale_t = (nn.Parameter(torch.tensor(2.0)) for _ in range(2))
    return filled(net)


def msclap_wrapper() -> Any:
    """msclap's own of its CLAP of 2023; what it would download is replaced."""
    import torch
    from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model

    wrapper = module("msclap.CLAPWrapper").CLAPWrapper
    with (
        mock.patch.object(AutoModel, "from_pretrained", return_value=GPT2Model(GPT2Config())),
        mock.patch.object(AutoTokenizer, "from_pretrained"),
        mock.patch.object(torch, "load", return_value={"model": {}}),
    ):
        made = wrapper("CLAP_weights_2023.pth", "2023")
    filled(made.clap)
    return made


def audiobox() -> nn.Module:
    """AesMultiOutput of audiobox_aesthetics, as published but for its weights; it rates batches of padded windows."""
    return filled(module("audiobox_aesthetics.model.aes").AesMultiOutput(proj_num_layer=5, proj_ln=True))


ORIGINALS: dict[str, Callable[[], nn.Module]] = {  # of embedders; their states have the names of the published files
    "vggish": vggish,
    **{name: partial(cnn14, name) for name in CNN14},
    "openl3_env": openl3,
    "passt": lambda: passt().net,
    "clap_music_speech": music_speech_clap,
    "msclap": lambda: msclap_wrapper().clap,
    "audiobox": audiobox,
}


def write_published(name: str, state: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in the format of the published file."""
    import torch

    if name == "audiobox":
        from safetensors.torch import save_file

        save_file(dict(state), path)
    elif name == "clap_music_speech":  # of a module in parallel, with a score of its training
        content = {"state_dict": {f"module.{key}": values for key, values in state.items()}}
        _save_as_before({"epoch": 15, "name": "x", **content, "best": np.float64(0.9)}, path)
    elif name in CNN14:  # with a sampler's arrays
        _save_as_before({"iteration": 1, "model": dict(state), "sampler": {"indexes": np.arange(5), "pointers": [1, 2]}}, path)
    elif name == "msclap":  # all as floats, with the masks of GPT-2 in older versions of transformers
        masks = {
            f"caption_encoder.base.h.{layer}.attn.{kind}": torch.ones(1) for layer in range(12) for kind in ("bias", "masked_bias")
        }
        torch.save({"model": {key: values.float() for key, values in state.items()} | masks}, path)
    else:
        torch.save(dict(state), path)


def _save_as_before(checkpoint: dict[str, Any], path: Path) -> None:
    """Of the older format, with NumPy's older names in it."""
    import torch

    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    if content.count(b"numpy._core.multiarray") != 1:
        raise RuntimeError("numpy's name is not in the file once")
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


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


def write_random_weights(name: str, path: Path) -> None:
    write_published(name, ORIGINALS[name]().state_dict(), path)


def embedder(name: str) -> Callable[[Sequence[np.ndarray]], Any]:
    """A function that embeds mono waves of RATES, as many as BATCHES says, as the original does."""
    import torch

    if name == "vggish":
        from torchvggish.vggish_input import waveform_to_examples

        net = vggish()
        net.embeddings = net.embeddings[:-1]  # a ReLU, which ours leaves out
        return lambda waves: net(waveform_to_examples(waves[0].astype(np.float64), RATES[name]))
    if name == "audiobox":
        net, infer = audiobox(), module("audiobox_aesthetics.infer")

        def rate(waves: Sequence[np.ndarray]) -> Any:
            windows, masks, _, _ = infer.make_inference_batch([torch.from_numpy(wave)[None] for wave in waves])
            return net({"wav": torch.stack(windows), "mask": torch.stack(masks)})

        return rate
    if name == "clap_music_speech":
        net = music_speech_clap()
        return lambda waves: net.audio_projection(net.audio_branch({"waveform": _repeated(waves, 480_000)})["embedding"])
    if name == "msclap":
        net = msclap_wrapper().clap
        return lambda waves: net.audio_encoder(_repeated(waves, 7 * 44_100))[0]
    if name == "openl3_env":
        from torchopenl3 import get_audio_embedding

        net = openl3()
        return lambda waves: get_audio_embedding(waves[0], RATES[name], net, hop_size=OPENL3_HOP)
    net = passt().get_scene_embeddings if name == "passt" else cnn14(name)

    def embed(waves: Sequence[np.ndarray]) -> Any:
        with redirect_stdout(None):
            return net(torch.from_numpy(waves[0])[None])

    return embed


def _repeated(waves: Sequence[np.ndarray], size: int) -> Tensor:
    """Waves [N, size], each repeated until it fills them."""
    import torch

    return torch.from_numpy(np.stack([np.resize(wave, size) for wave in waves]))


def main() -> None:
    import librosa
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=PACKAGES)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    paths = sorted(args.directory.iterdir())
    with torch.no_grad():
        ask, resampling = embedder(args.net), "kaiser_best" if args.net == "vggish" else "soxr_hq"  # as torchvggish

        def embed(some: Sequence[Path]) -> None:
            ask([librosa.load(path, sr=RATES[args.net], res_type=resampling)[0] for path in some])

        embed(paths[:1])  # numba compiles
        start, cpu = time.perf_counter(), time.process_time()
        size = BATCHES.get(args.net, 1)
        for first in range(0, len(paths), size):
            embed(paths[first : first + size])
        print(time.perf_counter() - start, time.process_time() - cpu)


if __name__ == "__main__":
    main()
