"""Microsoft's CLAP of 2023 (Elizalde et al. 2023): embeddings of sounds and texts in one space, by HTSAT and GPT-2.

The checkpoint is msclap's, so its tensors are renamed. Texts need GPT-2's tokenizer, a file of one commit of a repository on the
Hugging Face hub, or of a directory with its name below `$SOUNDMILL_WEIGHTS`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import hub, pretrained
from soundmill.errors import UserError
from soundmill.evaluation.embedders import clap
from soundmill.evaluation.embedders.base import DeclarationWithFiles, Embeddings, in_batches
from soundmill.pretrained import Weights

SAMPLE_RATE = 44_100
WINDOW = 7 * SAMPLE_RATE  # samples of the network's input; msclap crops longer sounds at random
WINDOWS_AT_ONCE = 8
TOKENIZER = "openai-community/gpt2"
TOKENIZER_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
TOKENIZER_FILES = ("tokenizer.json",)
END, END_TOKEN, PADDING = "<|endoftext|>", 50_256, "!"
LONGEST_TEXT = 1024  # tokens of GPT-2's input
# Of a checkpoint: what scales similarities, and masks of GPT-2 that older versions of transformers stored.
UNUSED = re.compile(r"logit_scale$|caption_encoder\.base\.h\.\d+\.attn\.(bias|masked_bias)$")
HTSAT = "audio_encoder.base.htsat."
NAMES = {
    "audio_encoder.projection.": "audio_projection.",
    "caption_encoder.base.": "text_model.",
    "caption_encoder.projection.": "text_projection.",
}


class MsClapEmbedder:
    """1024-d embeddings, not of unit length, one per window of seven seconds, and of texts; no classifier, so logits are [N, 0].

    A shorter sound is repeated until it fills a window.
    """

    name = "msclap"
    sample_rate = SAMPLE_RATE
    channels = 1

    def __init__(self, path: Path):
        from accelerate import init_empty_weights

        from soundmill.evaluation.embedders import htsat
        from soundmill.evaluation.embedders.msclap_net import MsClap
        from soundmill.training import torch_weights
        from soundmill.training.device import pick_device

        self._tokenizer = load_tokenizer(tokenizer())
        state = torch_weights.read_state(path, "msclap", "model")
        with init_empty_weights(include_buffers=False):
            net = MsClap()
        torch_weights.load_state(net, {**htsat.counted(net), **dict(_renamed(state, path))}, path)
        self._device = pick_device("auto")
        self._net = net.eval().to(self._device)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        from soundmill.evaluation.embedders.msclap_net import DIMENSIONS

        by_wave = [[np.resize(part, WINDOW) for part in clap.windows(wave, WINDOW)] for wave in waves]
        windows = [window for parts in by_wave for window in parts]
        embeddings = in_batches(self._net.of_sounds, windows, WINDOWS_AT_ONCE, DIMENSIONS, self._device)
        return Embeddings.of_parts(embeddings, by_wave)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [N, 1024] float32 of texts; those longer than the network's input are truncated."""
        import torch

        from soundmill.evaluation.embedders.msclap_net import DIMENSIONS
        from soundmill.training.device import full_precision

        by_text = {}
        with torch.inference_mode(), full_precision():
            for text in sorted(set(texts)):
                tokens = self._tokenizer(f"{text} {END}")["input_ids"]
                cut = torch.tensor([*tokens[:-1][: LONGEST_TEXT - 1], END_TOKEN], device=self._device)
                by_text[text] = self._net.of_text(cut).cpu().numpy()
        return np.stack([by_text[text] for text in texts]) if texts else np.zeros((0, DIMENSIONS), np.float32)


def _renamed(state: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    from soundmill.evaluation.embedders import htsat
    from soundmill.training.torch_weights import without_transform

    of_sounds = {key.removeprefix(HTSAT): values for key, values in state.items() if key.startswith(HTSAT)}
    of_sounds = without_transform(of_sounds, htsat.TRANSFORM, htsat.FFT, path)
    if htsat.FILTERS in of_sounds:  # else loading names what is missing
        yield "filters", of_sounds.pop(htsat.FILTERS)
    for name, values in htsat.renamed(of_sounds):
        yield f"audio_model.audio_encoder.{name}", values
    for key, values in state.items():
        if not key.startswith(HTSAT) and not UNUSED.match(key):
            prefix = next((prefix for prefix in NAMES if key.startswith(prefix)), "")
            yield NAMES.get(prefix, "") + key.removeprefix(prefix), values


def tokenizer() -> Path:
    """The directory of GPT-2's tokenizer, downloaded if necessary; a UserError says where it belongs."""
    remedies = (
        f"put tokenizer.json of {TOKENIZER} at {TOKENIZER_REVISION[:7]} into the directory ${pretrained.VARIABLE}/{TOKENIZER}"
    )
    return hub.find(TOKENIZER, TOKENIZER_REVISION, pretrained.directory(), TOKENIZER_FILES, _missing, remedies)[0]


def _missing(directory: Path) -> str | None:
    return next((name for name in TOKENIZER_FILES if not (directory / name).is_file()), None)


def load_tokenizer(directory: Path) -> Any:
    """GPT-2's tokenizer; a UserError if the file cannot be read or is another one's."""
    from transformers import PreTrainedTokenizerFast

    path = directory / TOKENIZER_FILES[0]
    try:
        loaded = PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path}: cannot be read as a tokenizer ({' '.join(str(error).split())[:300]})") from None
    if loaded.convert_tokens_to_ids([PADDING, END]) != [0, END_TOKEN] or len(loaded) != END_TOKEN + 1:
        raise UserError(f"{path}: this is not the tokenizer of {TOKENIZER}")
    return loaded


_COMMIT = "c47d441165daa21986ead0850660917636a81775"

EMBEDDERS = {
    "msclap": DeclarationWithFiles(
        MsClapEmbedder,
        Weights(
            name="msclap",
            file="CLAP_weights_2023.pth",
            url=f"https://huggingface.co/microsoft/msclap/resolve/{_COMMIT}/CLAP_weights_2023.pth",
            num_bytes=689_950_036,
            sha256="2cef4016d47d00eb28d153d522f397222057f95000e9bad6b9583c631284a1e6",
            licence="MS-PL",
            source="Elizalde et al. 2023, arXiv:2309.05767; github.com/microsoft/CLAP",
        ),
        classifier=False,
        patches=False,
        texts=True,
        find_files=tokenizer,
        files=TOKENIZER_FILES,
    )
}
