"""A trained RAVE codec for other programs: exported for live use and to ONNX, or applied to sounds, as a published model can be."""

import copy
import io
import json
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soundmill import disk, hashing
from soundmill.audio.pieces import pieces
from soundmill.errors import UserError
from soundmill.models.components import registry as components
from soundmill.models.components.rave import codec as codecs
from soundmill.models.components.rave import network
from soundmill.models.components.rave.codec import RaveCodec, edited, parse_edits
from soundmill.models.family import is_checkpoint
from soundmill.models.sounds import stream_windows
from soundmill.models.streaming import scripted

ABOUT = "soundmill.json"  # metadata inside an exported TorchScript file
PUBLISHED = ".ts"
WINDOW_SECONDS = 30.0
BLOCK = 1 << 18  # samples per call of a published model, rounded up to its ratio
OPSET = 18


def find(path: Path) -> RaveCodec:
    """The RAVE codec in the output of the stage `autoencoder`, or in the checkpoint of a family that uses one."""
    directory = path / "autoencoder" if is_checkpoint(path) else path
    if not directory.is_dir():
        raise UserError(f"{path}: no RAVE codec here; name data/rave/autoencoder, or a checkpoint of the family `rave`")
    what, kind = components.kind_in(directory)
    if kind != "rave":
        raise UserError(f"{directory}: a {what} of kind {kind!r}; only kind 'rave' is supported here")
    return codecs.load(directory)


def exported_latents(codec: RaveCodec) -> int:
    """Number of latents of an exported model: the codec's rank, rounded up to a power of two."""
    return min(codec.network.latent_channels, 2 ** math.ceil(math.log2(codec.rank)))


def export_streaming(path: Path, codec: RaveCodec) -> dict[str, Any]:
    """Write a codec as TorchScript with cached convolutions, for programs that play nn~ models; returns its metadata."""
    model = scripted(codec, exported_latents(codec))
    facts = {
        "sample_rate": codec.sample_rate,
        "latents": exported_latents(codec),
        "block": codec.samples_per_frame,
        "latency": model.get_latency(),
        "causal": codec.network.causal,
        "phase": codec.phase,
        "codec": codec.digest,
    }
    contents = {ABOUT: json.dumps(facts, sort_keys=True)}
    buffer = io.BytesIO()  # torch would store a file's name in its bytes
    torch.jit.save(model, buffer, contents)
    disk.write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return facts


class Decoder(nn.Module):
    """Decodes latents to waves; random values are inputs."""

    def __init__(self, net: network.RaveNet):
        super().__init__()
        self.net = net

    def forward(self, latents: Tensor, left_out: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        components = latents if left_out is None else torch.cat([latents, left_out], 1)
        bands = self.net.decoder(self.net.latents_of(components), noise)
        return self.net.pqmf.synthesis(bands).clamp(-1, 1)


def export_onnx(path: Path, codec: RaveCodec) -> dict[str, list[Any]]:
    """Write a codec's decoder as ONNX, for whole sounds; returns the names and shapes of its inputs."""
    try:
        import onnxscript  # noqa: F401  used by torch.onnx
    except ImportError:
        raise UserError("ONNX export needs more packages: pip install 'soundmill[export]'") from None
    frames, kept = 4, exported_latents(codec)
    latents = torch.zeros(1, codec.network.latent_channels, frames)
    noise = codec.net.draw_noise(latents, torch.Generator().manual_seed(0)) if codec.noisy else None
    given = {"latents": latents[:, :kept], "left_out": latents[:, kept:], "noise": noise}
    given = {name: value for name, value in given.items() if value is not None and value.numel()}
    length = torch.export.Dim("frames", min=1, max=1 << 20)
    per_latent = 0 if noise is None else noise.shape[1] // frames
    shapes = {name: {1: per_latent * length} if name == "noise" else {2: length} for name in given}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of missing packages

    def write(temporary: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Decoder(codec.net.eval()).eval(),
                kwargs=given,
                f=str(temporary),
                input_names=list(given),
                output_names=["waves"],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                external_data=False,
                dynamo=True,
                verbose=False,
            )

    disk.write_atomically(path, write)
    names = {name: "frames" if name != "noise" else f"{per_latent} · frames" for name in given}
    return {
        name: [names[name] if place in shapes[name] else size for place, size in enumerate(value.shape)]
        for name, value in given.items()
    }


@dataclass
class Trained:
    """A codec trained by this package; it has no fixed length and processes long sounds in windows."""

    codec: RaveCodec
    edits: Sequence[str]
    seed: int = 0  # for the components left out and the noise
    channels: int = 1

    def __post_init__(self) -> None:
        self.parsed = parse_edits(self.edits, self.codec.rank)

    @property
    def weights(self) -> str:
        """For the tags of its sounds."""
        return f"rave codec {self.codec.digest}"

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def num_samples(self) -> int:
        """Length of a window, about thirty seconds."""
        stride = self.codec.samples_per_frame
        return max(1, round(WINDOW_SECONDS * self.sample_rate / stride)) * stride

    def process(self, waves: Tensor, start: int = 0) -> Tensor:
        """Process waves [N, 1, T] that start at sample `start` of a sound, on the latent grid of the whole sound; same length."""
        before = start % self.codec.samples_per_frame
        return self.codec.edit(nn.functional.pad(waves, (before, 0)), self.parsed, self.seed)[..., before:]

    def stream(self, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        """Process a whole sound in windows; yields blocks [1, n] of the same total length."""
        return stream_windows(self.process, blocks, length, self)


@dataclass
class Published:
    """A TorchScript model for nn~, from this package or another.

    It is stateful: it processes a sound block by block, and each sound gets a fresh copy.
    """

    path: Path
    model: torch.jit.ScriptModule
    edits: Sequence[str]
    sample_rate: int
    seed: int = 0  # of torch's generator, which some models use

    @property
    def weights(self) -> str:
        """For the tags of its sounds."""
        return f"TorchScript model {hashing.file_digest(self.path)}"

    def __post_init__(self) -> None:
        params = {name: self._numbers(name) for name in ("encode", "decode", "forward")}
        if self.edits and not (params["encode"] and params["decode"]):
            raise UserError(f"{self.path}: no `encode` and `decode`, so latents cannot be edited; leave --latent out")
        method = params["forward"] or params["encode"]
        if not method:
            raise UserError(f"{self.path}: no nn~ method `forward` or `encode`: not a model of sounds")
        self.channels = method[0]
        encode = params["encode"]
        self.ratio = encode[3] if encode else method[3]
        self.parsed = parse_edits(self.edits, encode[2]) if encode else []
        self.latency = self.model.get_latency() if hasattr(self.model, "get_latency") else 0

    def _numbers(self, method: str) -> list[int] | None:
        """Input channels and ratio, output channels and ratio of a method; None if it is missing."""
        numbers = getattr(self.model, f"{method}_params", None)
        return numbers.tolist() if isinstance(numbers, Tensor) and numbers.numel() == 4 else None

    def stream(self, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        """Process a whole sound; yields blocks [channels, n] of the same total length.

        The output is delayed if the model does not report its latency.
        """
        padding = self.latency + -(length + self.latency) % self.ratio  # silence that flushes the end of the sound
        size = -(-BLOCK // self.ratio) * self.ratio
        model, state = copy.deepcopy(self.model), torch.Generator().manual_seed(self.seed).get_state()
        for piece in pieces(chain(blocks, [torch.zeros(self.channels, padding)]), size):
            output, state = self._block(model, piece.values[None], state)
            yield output[0, :, max(0, self.latency - piece.start) : max(0, self.latency + length - piece.start)].clamp(-1, 1)

    @torch.no_grad()
    def _block(self, model: torch.jit.ScriptModule, block: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The model's output for a block [1, channels, n], and the state of torch's generator, which starts from `state`."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                output = model.decode(edited(model.encode(block), self.parsed)) if self.parsed else model(block)
                return output, torch.get_rng_state()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-300:]
            raise UserError(f"{self.path}: the model failed on this sound ({reason})") from None


def read(path: Path, edits: Sequence[str], trust: bool, sample_rate: int | None, seed: int = 0) -> Trained | Published:
    """Read a codec's directory, a checkpoint that contains one, or (with `trust`) a published TorchScript file.

    `sample_rate` is for a file that does not state it; `seed` is for the components left out and the noise.
    """
    if path.suffix != PUBLISHED:
        return Trained(find(path), edits, seed)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not trust:
        raise UserError(f"{path}: a TorchScript file runs code when loaded; add --trust if you trust its author")
    try:
        model = torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{path}: cannot be read as TorchScript ({reason}); copy or export it again") from None
    stated = getattr(model, "sr", getattr(model, "sampling_rate", None))
    rate = sample_rate or int((model.get_sample_rate() if hasattr(model, "get_sample_rate") else stated) or 0)
    if rate <= 0:
        raise UserError(f"{path}: the file does not state its sample rate; give --sample-rate")
    return Published(path, model, edits, rate, seed)
