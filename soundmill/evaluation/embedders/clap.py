"""CLAP (Wu et al. 2023): embeddings of sounds and texts in one space, by transformers' ClapModel.

Weights of `clap` are read from safetensors only, which the pinned commit has and the repository's main branch lacks.
`clap_music_speech` is LAION's for music, speech and AudioSet's sounds: HTSAT-base and RoBERTa. Its checkpoint is laion_clap's, so
its tensors are renamed. Sounds and texts are prepared as for `clap`, with the files of that repository: its tokenizer is RoBERTa's.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from transformers import ClapConfig, ClapModel, ClapProcessor

from soundmill import hub
from soundmill.audio.resample import resample
from soundmill.errors import UserError
from soundmill.evaluation.embedders.base import HUB_FILES, Embedder, Embeddings
from soundmill.params import read_yaml
from soundmill.training import torch_weights
from soundmill.training.device import full_precision, pick_device

NAME = HUB_FILES["clap"].repository
SAMPLE_RATE = 48_000
WINDOWS_AT_ONCE = 8  # in a batch
WINDOW = 10 * SAMPLE_RATE  # samples of the network's input; transformers would crop longer sounds at random

# HTSAT (Chen et al. 2022), the network that hears sounds, in checkpoints with the names of its authors, as of other CLAPs.
HTSAT_FFT = 1024
HTSAT_FILTERS = "logmel_extractor.melW"
# Heads that only its training used, what comes before the network, and what follows from the sizes.
HTSAT_UNUSED = re.compile(r"(tscam_conv|head|spectrogram_extractor|logmel_extractor)\.|.*\.attn_mask$")
COUNTED = re.compile(r".*\.(num_batches_tracked|relative_position_index|position_ids|token_type_ids)$")  # by any net of these sizes
NAMES = read_yaml(Path(__file__).with_suffix(".yaml"))  # of their tensors → of transformers'

# Of the checkpoint of clap_music_speech, whose other sizes are transformers' defaults.
HTSAT_BASE = {"patch_embeds_hidden_size": 128, "depths": [2, 2, 12, 2], "hidden_size": 1024}
AUDIO_BRANCH = "audio_branch."
LAION_UNUSED = re.compile(r"(audio|text)_transform\.")  # of a checkpoint: layers that only its training used
# NumPy objects in the checkpoint: the best scores of its training.
LAION_NUMPY = (
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # its name in older versions
    np.dtype,
    type(np.dtype(np.float64)),
)


class ClapEmbedder(Embedder):
    """Embeddings of unit length, one per window of at most ten seconds, and of texts; not a classifier, so logits are [N, 0]."""

    sample_rate = SAMPLE_RATE
    longest_text: int | None = None  # tokens, if fewer than the network's input

    def __init__(self, directory: Path):
        local = {"local_files_only": True, "trust_remote_code": False}
        self._processor = load_processor(directory)
        with hub.loading(directory, "CLAP"):
            net, loading = ClapModel.from_pretrained(
                directory, **local, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        random = sorted(loading["missing_keys"])
        if random:
            raise UserError(f"{directory}: its weights lack {len(random)} of the network's tensors ({random[0]}, …); {hub.REMEDY}")
        self._net = net.eval().to(pick_device("auto"))

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        by_wave = [list(windows(wave)) for wave in waves]
        extract = partial(self._processor.feature_extractor, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        inputs = [extract(window) for parts in by_wave for window in parts]
        embeddings = [np.zeros((0, self._net.config.projection_dim), np.float32)]
        with torch.inference_mode(), full_precision():
            for start in range(0, len(inputs), WINDOWS_AT_ONCE):
                some = inputs[start : start + WINDOWS_AT_ONCE]
                sounds = torch.cat([one["input_features"] for one in some]).to(self._net.device)
                # With feature fusion the processor marks a random sound as longer than a window; none is.
                longer = torch.zeros_like(torch.cat([one["is_longer"] for one in some])).to(self._net.device)
                output = self._net.get_audio_features(input_features=sounds, is_longer=longer)
                embeddings.append(output.pooler_output.cpu().numpy())
        return Embeddings.of_parts(np.concatenate(embeddings), by_wave)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [N, D] float32 of texts, of unit length; texts longer than the network's input are truncated."""
        by_text = {}
        for text in sorted(set(texts)):  # one at a time, as padding would change last bits
            longest = self.longest_text or self._net.config.text_config.max_position_embeddings - 2
            tokens = self._processor.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
            inputs = {key: tokens[key].to(self._net.device) for key in ("input_ids", "attention_mask")}
            with torch.inference_mode(), full_precision():
                by_text[text] = self._net.get_text_features(**inputs).pooler_output[0].cpu().numpy()
        return np.stack([by_text[text] for text in texts]) if texts else np.zeros((0, self._net.config.projection_dim), np.float32)

    def similarity(self, texts: Sequence[str], waves: Sequence[np.ndarray]) -> np.ndarray:
        """Cosine [N] of each wave (the mean of its windows) and the text at the same index."""
        means = np.stack([part.mean(axis=0, dtype=np.float64) for part in self.embed(waves).frames])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        return (means * self.embed_texts(texts)).sum(axis=1)


def load_processor(directory: Path) -> Any:
    """The preparation of sounds and texts; a UserError if the files cannot be read or belong to another model."""
    with hub.loading(directory, "CLAP"):
        processor = ClapProcessor.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    extractor = processor.feature_extractor
    if (extractor.sampling_rate, extractor.nb_max_samples) != (SAMPLE_RATE, WINDOW):
        raise UserError(
            f"{directory}: its input has {extractor.nb_max_samples} samples at {extractor.sampling_rate} Hz, "
            f"not {WINDOW} at {SAMPLE_RATE} Hz: this is not {NAME}"
        )
    return processor


def windows(wave: np.ndarray, length: int = WINDOW) -> Iterator[np.ndarray]:
    """The fewest windows of `length` samples that cover the wave, evenly spaced; a shorter wave is one window, unpadded."""
    wave = np.asarray(wave, dtype=np.float32)
    count = math.ceil(len(wave) / length)
    for start in np.linspace(0, max(0, len(wave) - length), count).round().astype(int):
        yield wave[start : start + length]


def best_of(candidates: int) -> Callable[[Sequence[str], Sequence[np.ndarray], int], list[int]]:
    """A function (texts, waves [C, T] generated for them, sample rate) → the index of the best wave in each group of `candidates`.

    CLAP is loaded immediately, so missing weights raise UserError before anything is generated.
    """
    embedder = ClapEmbedder(HUB_FILES["clap"].find())

    def choose(texts: Sequence[str], waves: Sequence[np.ndarray], sample_rate: int) -> list[int]:
        scores = embedder.similarity(texts, [resample(wave.mean(0), sample_rate, embedder.sample_rate) for wave in waves])
        return [int(row.argmax()) + number * candidates for number, row in enumerate(scores.reshape(-1, candidates))]

    return choose


def htsat_renamed(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tensors of the network by their names in `ClapAudioModel`'s `audio_encoder`."""
    for key, values in state.items():
        if HTSAT_UNUSED.match(key) or COUNTED.match(key):
            continue
        name = torch_weights.renamed(key, NAMES["htsat"])
        if ".self.qkv." in name:
            for part, third in zip(("query", "key", "value"), values.chunk(3), strict=True):
                yield name.replace(".self.qkv.", f".self.{part}."), third
        else:
            yield name, values


def counted(net: Any) -> dict[str, Any]:
    """The net's own indices and counts; checkpoints lack them or have them as floats."""
    return {name: values for name, values in net.state_dict().items() if COUNTED.match(name)}


class MusicSpeechClap(ClapEmbedder):
    """As `ClapEmbedder`; texts are truncated to 77 tokens, as in laion_clap."""

    longest_text = 77

    def __init__(self, path: Path):
        self._processor = load_processor(HUB_FILES["clap_music_speech"].find())
        state = torch_weights.read_state(path, "laion_clap", "state_dict", LAION_NUMPY)
        with init_empty_weights(include_buffers=False):
            net = ClapModel(ClapConfig(text_config={"layer_norm_eps": 1e-5}, audio_config=HTSAT_BASE))
        torch_weights.load_state(net, {**counted(net), **dict(self._renamed(state))}, path)
        self._net = net.eval().to(pick_device("auto"))

    def _renamed(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """The tensors without the spectrogram, which is that of the processor."""
        named = {key.removeprefix("module."): values for key, values in state.items()}
        of_sounds = {key.removeprefix(AUDIO_BRANCH): values for key, values in named.items() if key.startswith(AUDIO_BRANCH)}
        for name, values in htsat_renamed(of_sounds):
            yield f"audio_model.audio_encoder.{name}", values
        for key, values in named.items():
            if not (key.startswith(AUDIO_BRANCH) or LAION_UNUSED.match(key) or COUNTED.match(key)):
                yield torch_weights.renamed(key, NAMES["laion"]), values
