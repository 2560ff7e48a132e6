"""Text conditions: stored states of captions, or states of prompts encoded by the same encoder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards, terminal, text
from soundmill.errors import UserError
from soundmill.params import StageParams, parse, parse_json
from soundmill.training.device import torch_threads
from soundmill.training.loader import Arrays, Described, gather

LENGTHS = 8  # states are padded to a multiple of this, to limit the number of shapes on a GPU
Condition = tuple[Tensor, Tensor]  # states float32 [B, L, width], mask boolean [B, L]


class TextConfig(StageParams):
    """The text encoder that a model was trained with."""

    name: str
    revision: str | None
    digest: str
    pretrained: bool
    max_tokens: int
    scratch: dict[str, int] | None  # sizes and seed of an encoder with random weights


def read_config(directory: Path) -> TextConfig:
    """The encoder of all shards below `directory`; UserError if they differ."""
    try:
        return parse(TextConfig, parse_json(shards.common_metadata(directory, text.ENCODER_KEY)), str(directory))
    except ValueError as error:
        raise UserError(f"{directory}: the encoder's description is not JSON: {error}; remake it: `dvc repro`") from None


@dataclass(frozen=True)
class Texts:
    """States of captions by number, and of the null text."""

    states: Arrays
    null: np.ndarray  # [tokens, width]

    def of(self, caption: str) -> np.ndarray:
        """States [tokens, width] of a caption; "" gives the null text."""
        return self.states.read(self.states.ids.index(caption)) if caption else self.null

    def padded(self, numbers: Sequence[int | None]) -> Condition:
        """Padded states of captions by number (None: the null text), in float16 as stored."""
        return pad([self.null if number is None else self.states.read(number) for number in numbers])

    def vectors(self, width: int, numbers: Sequence[int | None]) -> tuple[Tensor]:
        """`vectors` of captions by number (None: no text), read one by one: a table of all would grow with the corpus."""
        return (vectors((None if number is None else self.states.read(number) for number in numbers), width),)


def read_texts(directory: Path, captions: Sequence[str], null_text: str, width: int, key: str, scratch: Path) -> Texts:
    """States of `captions` (without ""), in that order, copied to `scratch`. UserError if their width is not `train.KEY`."""

    def index() -> Iterator[Described]:
        for row in shards.rows_below(directory, manifest.TEXT_STATES, ["digest", "caption", "num_tokens", "width"]):
            yield Described(row["caption"], (row["num_tokens"], row["width"]), row["digest"])

    def contents() -> Iterator[tuple[str, np.ndarray]]:
        for row in shards.rows_below(directory, manifest.TEXT_STATES, ["caption", "states"]):
            yield row["caption"], np.frombuffer(row["states"], "<f2")

    states = gather(index, contents, [*captions, ""], scratch / "text-states", f"{directory}: the state of caption")
    stored = int(states.shapes[0, 1])
    if stored != width:
        raise UserError(f"{directory}: text states are {stored} wide; set train.{key} to that, it is {width}")
    return Texts(states, null_of(null_text, states.read(len(captions))))


def vectors(states: Iterable[np.ndarray | None], width: int) -> Tensor:
    """The mean of each text's states as a vector of length 1 [B, width], as sentence encoders are used; zero for no text."""
    means = [torch.zeros(width) if one is None else torch.from_numpy(one.astype(np.float32)).mean(0) for one in states]
    return torch.nn.functional.normalize(torch.stack(means), dim=1)


def null_of(null_text: str, empty: np.ndarray) -> np.ndarray:
    """States of the null text, given those of the empty caption [tokens, width]."""
    return empty if null_text == "empty" else np.zeros((1, empty.shape[1]), empty.dtype)


def pad(states: Sequence[np.ndarray]) -> Condition:
    """States [tokens, width] padded to [B, L, width], and the mask of tokens [B, L]."""
    longest = -(-max(len(one) for one in states) // LENGTHS) * LENGTHS
    values = np.zeros((len(states), longest, states[0].shape[1]), states[0].dtype)
    for row, one in zip(values, states, strict=True):
        row[: len(one)] = one
    return torch.from_numpy(values), torch.arange(longest) < torch.tensor([len(one) for one in states])[:, None]


def encode(config: TextConfig, prompts: Sequence[str], home: Path, scratch: Path, digests: Path | None = None) -> list[np.ndarray]:
    """States float32 [tokens, width] of each prompt; UserError if the encoder is not the one of the training.

    Relative names of encoders start at `home`; an encoder with random weights is rebuilt below `scratch`.
    """
    with torch_threads(1):  # more threads change the last bits
        read = _reader(config.model_dump_json(), home, scratch, digests)
        by_prompt = {prompt: read(prompt) for prompt in dict.fromkeys(prompts)}
    for prompt, states in by_prompt.items():
        if states.truncated:
            terminal.say(f"a prompt is longer than {config.max_tokens} tokens and is truncated: {prompt[:60]!r}…")
    return [by_prompt[prompt].values for prompt in prompts]


@lru_cache(maxsize=1)  # reused for all batches of prompts
def _reader(config_json: str, home: Path, scratch: Path, digests: Path | None) -> Callable[[str], text.States]:
    config = TextConfig.model_validate_json(config_json)
    if config.pretrained:
        encoder = text.find(config.name, config.revision, home, digests)
    else:
        encoder = text.make_scratch(scratch / "encoder", **(config.scratch or {}))
    if encoder.digest != config.digest:
        raise UserError(
            f"the text encoder {config.name!r} is not the one this model was trained with (its files differ): "
            "restore that encoder, or encode the captions again and retrain: `dvc repro`"
        )
    return text.load(encoder, config.max_tokens)
