"""Captions as hidden states of a text encoder: a model of the Hugging Face hub, one in a directory, or one with random weights.

Weights come from safetensors only, and no code that comes with a model is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from soundmill import hub
from soundmill.errors import UserError

SCRATCH = "byt5-scratch"
ENCODER_KEY = b"text_encoder"  # in the schema metadata of every shard of states

FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # of a model: configuration, tokenizer, weights


@dataclass(frozen=True)
class Encoder:
    """An encoder in a directory of this machine, with its digest."""

    directory: Path
    name: str
    revision: str | None
    digest: str  # of its FILES
    pretrained: bool

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision, "digest": self.digest, "pretrained": self.pretrained}


def find(name: str, revision: str | None, home: Path, digests: Path | None = None) -> Encoder:
    """The encoder called `name`: a directory (relative: from `home`), else an id of the hub at commit `revision`.

    A model of the hub is taken from its cache, or downloaded. One that is not to be had is a UserError that says what to do.
    `digests` is a cache of file digests, as hashing.file_digests takes it.
    """
    directory, revision = hub.find(name, revision, home, FILES, _missing_files, _remedies(name))
    return Encoder(directory, name, revision, hub.digest(directory, FILES, digests), pretrained=True)


def make_scratch(directory: Path, *, width: int, layers: int, heads: int, seed: int) -> Encoder:
    """Write a T5 encoder over bytes with random weights into `directory`: it has learnt nothing, captions only differ.

    It needs no files, and says the same of the same caption for the same seed.
    """
    import torch
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    tokenizer = ByT5Tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // heads,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    _be_quiet()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        T5EncoderModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Encoder(directory, SCRATCH, None, hub.digest(directory, FILES), pretrained=False)


class States(NamedTuple):
    """Hidden states of a caption."""

    values: np.ndarray  # [num_tokens, width] float16
    truncated: bool


class TextEncoder:
    """A tokenizer and the encoder's net, in float32 on the CPU.

    Captions are encoded one at a time: padding to the length of others and the others themselves would change last bits.
    """

    def __init__(self, directory: Path, max_tokens: int):
        """Load the model in `directory`; a caption of more than `max_tokens` tokens is cut there."""
        import torch
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

        _be_quiet()
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(directory, **local)
            # Of a model with a decoder, such as T5, the class for text encoding is the encoder alone.
            kind = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
            net, loading = kind.from_pretrained(
                directory, **local, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            self.tokenizer = AutoTokenizer.from_pretrained(directory, **local)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{directory}: cannot be loaded as a text encoder ({type(error).__name__}: {reason})") from None
        random = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))  # the pooler is not used
        if random:
            raise UserError(
                f"{directory}: its weights lack {len(random)} of the net's, the first {random[0]!r}; they would be random. "
                "Its files do not belong together: get it anew"
            )
        longest = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or max_tokens)
        if max_tokens > longest:
            raise UserError(f"{directory}: this encoder reads {longest} tokens at most, max_tokens is {max_tokens}; lower it")
        self.net, self.max_tokens = net.eval(), max_tokens

    def __call__(self, caption: str) -> States:
        import torch

        tokens = self.tokenizer(caption, verbose=False)["input_ids"]
        if not tokens:
            raise UserError(f"this text encoder's tokenizer makes no token of {caption!r}; take another encoder")
        truncated = len(tokens) > self.max_tokens
        if truncated:
            tokens = self.tokenizer(caption, truncation=True, max_length=self.max_tokens)["input_ids"]
        with torch.no_grad():
            ids = torch.tensor([tokens])
            states = self.net(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        values = states.numpy().astype("<f2")
        if not np.isfinite(values).all():
            raise UserError(f"the text encoder's states of {caption!r} do not fit into float16; take another encoder")
        return States(values, truncated)


@lru_cache(maxsize=1)
def load(encoder: Encoder, max_tokens: int) -> TextEncoder:
    """The encoder's net, once in every process, with one thread: others would give other last bits."""
    import torch

    torch.set_num_threads(1)
    return TextEncoder(encoder.directory, max_tokens)


def _remedies(name: str) -> str:
    return (
        f"put its files ({', '.join(FILES)}) into a directory and set `encoder` to that (`encoder: ../models/{Path(name).name}`), "
        f"or set `encoder: {SCRATCH}`, random weights that need no files, to go on without what it knows"
    )


def _missing_files(directory: Path) -> str | None:
    if not (directory / "config.json").is_file():
        return "config.json"
    if not any(directory.glob("*.safetensors")):
        return "*.safetensors (weights in other formats can run code, and are not read)"
    return None


def _be_quiet() -> None:
    """Switch off progress bars and transformers' warnings; what matters of them is checked and an error."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
