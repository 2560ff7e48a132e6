"""RAVE outside of this program, and sounds sent through it: exported for live use and to ONNX, or read as others published it."""

from __future__ import annotations

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

from soundmill import disk
from soundmill.audio.pieces import pieces
from soundmill.errors import UserError
from soundmill.models.components.contracts import read_codec
from soundmill.models.components.rave import codec as codecs
from soundmill.models.components.rave.codec import RaveCodec
from soundmill.models.components.rave.editing import edited, parse_edits
from soundmill.models.components.rave.network import RaveNet
from soundmill.models.family import is_checkpoint
from soundmill.models.generation import through_windows

ABOUT = "soundmill.json"  # in an exported TorchScript file: plain facts
PUBLISHED = ".ts"
WINDOW_SECONDS = 30.0
BLOCK = 1 << 18  # samples of a sound that a published model is given at once, or a little more
OPSET = 18


def find(path: Path) -> RaveCodec:
    """The RAVE codec in a directory that the stage `autoencoder` made, or in the checkpoint of a family over one."""
    directory = path / "autoencoder" if is_checkpoint(path) else path
    if not directory.is_dir():
        raise UserError(f"{path}: no RAVE codec here; name data/rave/autoencoder, or a checkpoint of the family `rave`")
    kind = read_codec(directory).kind
    if kind != codecs.KIND:
        raise UserError(f"{directory}: an autoencoder of kind {kind!r}, and this is for those of kind {codecs.KIND!r}")
    return codecs.load(directory)


def offered(codec: RaveCodec) -> int:
    """Latents of an exported model: those that fidelity keeps, rounded up to a power of two."""
    return min(codec.network.latent_channels, 2 ** math.ceil(math.log2(codec.rank)))


def export_streaming(path: Path, codec: RaveCodec) -> dict[str, Any]:
    """Write a codec as TorchScript with cached convolutions, for programs that play nn~ models; returns facts."""
    from soundmill.models.components.rave.streaming import scripted

    model = scripted(codec, offered(codec))
    facts = {
        "sample_rate": codec.sample_rate,
        "latents": offered(codec),
        "block": codec.samples_per_latent,
        "latency": model.get_latency(),
        "causal": codec.network.causal,
        "phase": codec.phase,
        "codec": codec.digest,
    }
    contents = {ABOUT: json.dumps(facts, sort_keys=True)}
    buffer = io.BytesIO()  # in a file, its name would be in the bytes
    torch.jit.save(model, buffer, contents)
    disk.write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return facts


class Decoder(nn.Module):
    """Waves of latents; all that is drawn comes in."""

    def __init__(self, net: RaveNet):
        super().__init__()
        self.net = net

    def forward(self, latents: Tensor, left_out: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        whole = latents if left_out is None else torch.cat([latents, left_out], 1)
        bands = self.net.decoder(self.net.latents_of(whole), noise)
        return self.net.pqmf.synthesis(bands).clamp(-1, 1)


def export_onnx(path: Path, codec: RaveCodec) -> dict[str, list[Any]]:
    """Write a codec's decoder as ONNX, for whole sounds; returns its inputs' names and sizes."""
    try:
        import onnxscript  # noqa: F401  what torch writes ONNX with
    except ImportError:
        raise UserError("ONNX is written with packages of their own: pip install 'soundmill[export]'") from None
    frames, kept = 4, offered(codec)
    latents = torch.zeros(1, codec.network.latent_channels, frames)
    noise = codec.net.draw_noise(latents, torch.Generator().manual_seed(0)) if codec.phase == 2 else None
    given = {"latents": latents[:, :kept], "left_out": latents[:, kept:], "noise": noise}
    given = {name: value for name, value in given.items() if value is not None and value.numel()}
    length = torch.export.Dim("frames", min=1, max=1 << 20)
    each = 0 if noise is None else noise.shape[1] // frames
    shapes = {name: {1: each * length} if name == "noise" else {2: length} for name in given}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of operators of packages that are not there

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
    names = {name: "frames" if name != "noise" else f"{each} · frames" for name in given}
    return {
        name: [names[name] if place in shapes[name] else size for place, size in enumerate(value.shape)]
        for name, value in given.items()
    }


@dataclass
class Trained:
    """A codec that this program trained; it knows no length, and takes long sounds in windows."""

    codec: RaveCodec
    edits: Sequence[str]
    seed: int = 0  # of the latents left out, and of noise
    channels: int = 1

    def __post_init__(self) -> None:
        self.parsed = parse_edits(self.edits, self.codec.rank)

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def num_samples(self) -> int:
        """Of a window: some thirty seconds."""
        stride = self.codec.samples_per_latent
        return max(1, round(WINDOW_SECONDS * self.sample_rate / stride)) * stride

    def through(self, waves: Tensor, start: int = 0) -> Tensor:
        """Waves [N, 1, T] of a sound from sample `start` on, as long as they were; latents lie where the whole sound's do."""
        before = start % self.codec.samples_per_latent
        return self.codec.through(nn.functional.pad(waves, (before, 0)), self.parsed, self.seed)[..., before:]

    def stream(self, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        """Blocks [1, n] of a whole sound, as long as it was, in windows."""
        return through_windows(self.through, blocks, length, self)


@dataclass
class Published:
    """A TorchScript file for nn~, this program's or another's; it remembers what it heard, so it takes a sound block by block, and
    each sound gets a fresh copy."""

    path: Path
    model: torch.jit.ScriptModule
    edits: Sequence[str]
    sample_rate: int
    seed: int = 0  # of torch's generator, which some draw from

    def __post_init__(self) -> None:
        params = {name: self._numbers(name) for name in ("encode", "decode", "forward")}
        if self.edits and not (params["encode"] and params["decode"]):
            raise UserError(f"{self.path}: it has no `encode` and `decode`, so its latents cannot be edited; leave --latent out")
        whole = params["forward"] or params["encode"]
        if not whole:
            raise UserError(f"{self.path}: neither `forward` nor `encode` of nn~ is in it: no model for sounds")
        self.channels = whole[0]
        coded = params["encode"]
        self.ratio = coded[3] if coded else whole[3]
        self.parsed = parse_edits(self.edits, coded[2]) if coded else []
        self.latency = self.model.get_latency() if hasattr(self.model, "get_latency") else 0

    def _numbers(self, method: str) -> list[int] | None:
        """Channels and ratio in, channels and ratio out, of one of its methods."""
        numbers = getattr(self.model, f"{method}_params", None)
        return numbers.tolist() if isinstance(numbers, Tensor) and numbers.numel() == 4 else None

    def stream(self, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        """Blocks [channels, n] of a whole sound, as long as it was; late, if the model does not tell its latency."""
        more = self.latency + -(length + self.latency) % self.ratio  # silence, for the last of the sound to come out
        size = -(-BLOCK // self.ratio) * self.ratio
        model, drawn = copy.deepcopy(self.model), torch.Generator().manual_seed(self.seed).get_state()
        for piece in pieces(chain(blocks, [torch.zeros(self.channels, more)]), size):
            made, drawn = self._block(model, piece.values[None], drawn)
            yield made[0, :, max(0, self.latency - piece.start) : max(0, self.latency + length - piece.start)].clamp(-1, 1)

    @torch.no_grad()
    def _block(self, model: torch.jit.ScriptModule, block: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """What the model makes of a block [1, channels, n], given the state of torch's generator; and that state after it."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(drawn)
                made = model.decode(edited(model.encode(block), self.parsed)) if self.parsed else model(block)
                return made, torch.get_rng_state()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-300:]
            raise UserError(f"{self.path}: it failed on this sound ({reason})") from None


def read(path: Path, edits: Sequence[str], trust: bool, sample_rate: int | None, seed: int = 0) -> Trained | Published:
    """What sounds are to be sent through: a codec's directory, a checkpoint with one, or (with `trust`) a published file.

    `sample_rate` is for a file that does not tell it; `seed` is of what is drawn: latents that were left out, and noise.
    """
    if path.suffix != PUBLISHED:
        return Trained(find(path), edits, seed)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not trust:
        raise UserError(f"{path}: a TorchScript file is a program, and it would be run: add --trust if you know who made it")
    try:
        model = torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{path}: cannot be read as TorchScript ({reason})") from None
    rate = sample_rate or _rate_of(model)
    if rate is None:
        raise UserError(f"{path}: it does not tell its sample rate; say it by --sample-rate")
    return Published(path, model, edits, rate, seed)


def _rate_of(model: torch.jit.ScriptModule) -> int | None:
    told = (
        model.get_sample_rate()
        if hasattr(model, "get_sample_rate")
        else getattr(model, "sr", getattr(model, "sampling_rate", None))
    )
    return int(told) if told is not None and int(told) > 0 else None
