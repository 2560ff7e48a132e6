"""Hidden states of captions from a text encoder: a model of the Hugging Face hub, of a directory, or with random weights.

Weights are read from safetensors only, and code that comes with a model is never run.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from soundmill import hub
from soundmill.errors import UserError

SCRATCH = "byt5-scratch"
ENCODER_KEY = b"text_encoder"  # in the schema metadata of every shard of states

FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # of a model: configuration, tokenizer and weights


@dataclass(frozen=True)
class Encoder:
    """A text encoder in a local directory, with its digest."""

    directory: Path
    name: str
    revision: str | None
    digest: str  # of its FILES
    pretrained: bool

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision, "digest": self.digest, "pretrained": self.pretrained}


def find(name: str, revision: str | None, home: Path, digests: Path | None = None) -> Encoder:
    """The encoder called `name`: a directory (relative to `home`), or an id of the hub at commit `revision`.

    A model of the hub comes from its local cache or is downloaded; UserError, with the remedies, if neither works. `digests` is the
    cache of hashing.file_digests.
    """
    directory, revision = _locate(name, revision, home)
    return Encoder(directory, name, revision, hub.digest(directory, FILES, digests), pretrained=True)


def check(name: str, revision: str | None, home: Path) -> None:
    """UserError if `name` is a directory that is missing or has no encoder; models of the hub are checked when they are loaded."""
    if name != SCRATCH and hub.is_directory(name, home):
        _locate(name, revision, home)


def width(name: str, scratch: dict[str, Any], home: Path | None) -> int | None:
    """Width of an encoder's states; None if only loading it would tell."""
    if name == SCRATCH:
        return scratch["width"]
    if home is None or not hub.is_directory(name, home):
        return None
    config = hub.read_config(hub.directory_of(name, home) / "config.json")
    return config.get("d_model", config.get("hidden_size"))


def _locate(name: str, revision: str | None, home: Path) -> tuple[Path, str | None]:
    remedies = (
        f"put its files ({', '.join(FILES)}) into a directory and set `encoder` to it (`encoder: ../models/{Path(name).name}`), "
        f"or set `encoder: {SCRATCH}` (random weights, which need no files)"
    )
    return hub.find(name, revision, home, FILES, _missing_files, remedies)


def make_scratch(directory: Path, *, width: int, layers: int, heads: int, seed: int) -> Encoder:
    """Write a byte-level T5 encoder with random weights into `directory`; its states distinguish captions but not their meaning.

    It needs no files, and the same seed gives the same states.
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
    hub.quieten()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        T5EncoderModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Encoder(directory, SCRATCH, None, hub.digest(directory, FILES), pretrained=False)


class States(NamedTuple):
    """Hidden states of a caption."""

    values: np.ndarray  # [num_tokens, width] float32
    truncated: bool


class TextEncoder:
    """A tokenizer and the encoder's network, in float32 on the CPU.

    Captions are encoded one at a time: padding and batch size would change last bits.
    """

    def __init__(self, directory: Path, max_tokens: int):
        """Load the model in `directory`; captions are truncated to `max_tokens` tokens."""
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

        local = {"local_files_only": True, "trust_remote_code": False}
        with hub.loading(directory, "a text encoder"):
            config = AutoConfig.from_pretrained(directory, **local)
            # For a model with a decoder, such as T5, the class for text encoding is the encoder only.
            kind = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
            net, loading = kind.from_pretrained(
                directory, **local, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            self.tokenizer = AutoTokenizer.from_pretrained(directory, **local)
        random = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))  # the pooler is not used
        if random:
            raise UserError(f"{directory}: its weights lack {len(random)} of the network's tensors ({random[0]}, …); {hub.REMEDY}")
        ours = {re.sub(r"\d+", "0", name) for name in net.state_dict()}
        unread = [name.removeprefix(f"{net.base_model_prefix}.") for name in loading["unexpected_keys"]]
        if more := sorted(name for name in unread if re.sub(r"\d+", "0", name) in ours):
            raise UserError(f"{directory}: its weights have more layers than config.json says ({more[0]}, …); {hub.REMEDY}")
        hub.check_finite(net, directory)
        longest = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or max_tokens)
        if max_tokens > longest:
            raise UserError(f"{directory}: this encoder reads at most {longest} tokens, but max_tokens is {max_tokens}; lower it")
        self.net, self.max_tokens = net.eval(), max_tokens

    def __call__(self, caption: str) -> States:
        import torch

        tokens = self.tokenizer(caption, verbose=False)["input_ids"]
        if not tokens:
            raise UserError(f"this text encoder's tokenizer returns no tokens for {caption!r}; use another encoder")
        truncated = len(tokens) > self.max_tokens
        if truncated:
            tokens = self.tokenizer(caption, truncation=True, max_length=self.max_tokens)["input_ids"]
        with torch.no_grad():
            ids = torch.tensor([tokens])
            states = self.net(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        return States(states.numpy(), truncated)


@lru_cache(maxsize=1)
def load(encoder: Encoder, max_tokens: int) -> TextEncoder:
    """The encoder, loaded once per process."""
    return TextEncoder(encoder.directory, max_tokens)


def _missing_files(directory: Path) -> str | None:
    if not (directory / "config.json").is_file():
        return "config.json"
    if not any(directory.glob("*.safetensors")):
        return "*.safetensors (weights in other formats can run code and are not read)"
    return None
