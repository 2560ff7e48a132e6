"""The vocoder with an inverse STFT; the weights have the names of Vocos (Siuzdak 2024, arXiv:2306.00814, gemelo-ai/vocos).

Magnitudes are trained by maximum likelihood, waves against discriminators. A published Vocos is `config.yaml`, and weights in
`pytorch_model.bin` or `model.safetensors`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torchaudio.transforms import Spectrogram

from soundmill import hub
from soundmill import params as strict
from soundmill.audio.invert import corrected, griffin_lim, mel_to_linear, speckle
from soundmill.audio.mel import MelSpec, mel_filterbank
from soundmill.audio.pieces import pieces
from soundmill.errors import UserError
from soundmill.models.components import vocoding
from soundmill.models.components.contracts import LoadedParams, VocoderConfig, check_vocoder_spec, restore_vocoder
from soundmill.models.components.istft import IstftParams, NetworkParams, SamplingParams, edge
from soundmill.models.components.making import MadeComponent, check_published, compare, locate
from soundmill.models.components.vocoder_trainer import VocoderModule, VocoderTrainer
from soundmill.models.components.vocoding import FrameVocoder
from soundmill.training import checkpoint, torch_weights
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule
from soundmill.training.seeds import seed_of

KERNEL = 7  # frames
LOUDEST = 100.0  # the largest magnitude of Vocos

# The median of ln(|noise| / mean |noise|), whose magnitudes are Rayleigh-distributed, and the mean absolute deviation from it.
SPECKLE_MEDIAN = -0.5 * math.log(math.pi / (4 * math.log(2)))
SPECKLE_SPREAD = 0.4840
LARGEST_CHANGE = 7.0  # nepers by which the net may change a median or a spread


def ended(log_mel: Tensor) -> Tensor:
    """Log-mels with the last frame repeated: a frame is at the centre of its window, so sounds would fade out in it."""
    return torch.cat([log_mel, log_mel[..., -1:]], 2)


class ConvNeXtBlock(nn.Module):
    """A residual block (Liu et al. 2022): a depthwise convolution over time, and two layers applied to each frame."""

    def __init__(self, width: int, hidden: int, scale: float):
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, hidden)
        self.pwconv2 = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.dwconv(x).transpose(1, 2))
        return x + (self.gamma * self.pwconv2(gelu(self.pwconv1(inner)))).transpose(1, 2)


class Backbone(nn.Module):
    """Log-mels [B, n_mels, frames] to features [B, frames, width]."""

    def __init__(self, params: NetworkParams, n_mels: int):
        super().__init__()
        self.embed = nn.Conv1d(n_mels, params.width, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(params.width, eps=1e-6)
        blocks = [ConvNeXtBlock(params.width, params.hidden, 1 / params.layers) for _ in range(params.layers)]
        self.convnext = nn.ModuleList(blocks)
        self.final_layer_norm = nn.LayerNorm(params.width, eps=1e-6)
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d | nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, log_mel: Tensor) -> Tensor:
        x = self.norm(self.embed(log_mel).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x.transpose(1, 2))


class Head(nn.Module):
    """Features [B, frames, width] to two numbers of each bin, [B, bins, frames] each."""

    def __init__(self, width: int, bins: int):
        super().__init__()
        self.out = nn.Linear(width, 2 * bins)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.out(features).transpose(1, 2).chunk(2, 1)
        return first, second


class MagnitudeNet(nn.Module):
    """Log-mels [B, n_mels, frames] to the median of each bin's magnitude, and the spread of its logarithm, [B, bins, frames] each.

    The logarithm of the magnitude has a Laplace distribution; the spread is its mean absolute deviation from the median. An
    untrained net returns the magnitudes of `mel_to_linear` and the spread of noise. Bins outside all bands have median 0.
    """

    def __init__(self, params: NetworkParams, spec: MelSpec):
        super().__init__()
        self.spec = spec
        self.backbone, self.head = Backbone(params, spec.n_mels), Head(params.width, spec.n_fft // 2 + 1)
        nn.init.zeros_(self.head.out.weight)
        nn.init.zeros_(self.head.out.bias)

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        change, wider = (values.float().clamp(-LARGEST_CHANGE, LARGEST_CHANGE) for values in self.head(self.backbone(log_mel)))
        return mel_to_linear(log_mel.float(), self.spec) * change.exp(), SPECKLE_SPREAD * wider.exp()


class VocosNet(nn.Module):
    """Log-mels [B, n_mels, frames] to waves [B, (frames − 1) · hop_length], by the inverse STFT of magnitudes and phases."""

    def __init__(self, params: NetworkParams, spec: MelSpec):
        super().__init__()
        self.spec = spec
        self.backbone, self.head = Backbone(params, spec.n_mels), Head(params.width, spec.n_fft // 2 + 1)
        nn.init.trunc_normal_(self.head.out.weight, std=0.02)
        nn.init.zeros_(self.head.out.bias)

    def forward(self, log_mel: Tensor) -> Tensor:
        log_magnitude, phase = (values.float() for values in self.head(self.backbone(log_mel)))
        spectrum = torch.polar(log_magnitude.exp().clamp_max(LOUDEST), phase)
        spec = self.spec
        window = torch.hann_window(spec.win_length, device=spectrum.device)
        return torch.istft(spectrum, spec.n_fft, spec.hop_length, spec.win_length, window)


PHASE_SEED = 0  # the phases that Griffin-Lim starts from are the same for every clip


class IstftConfig(VocoderConfig):
    kind: Literal["istft"] = "istft"
    network: NetworkParams
    sampling: SamplingParams | None


@dataclass
class Istft(FrameVocoder):
    config = IstftConfig

    network: NetworkParams
    sampling: SamplingParams | None  # of magnitudes; None: the net makes waves

    @property
    def context(self) -> int:
        windows = 0 if self.sampling else -(-self.spec.n_fft // self.spec.hop_length)  # frames that the inverse STFT overlaps
        return super().context + windows

    @staticmethod
    def synthesise(net: nn.Module, log_mels: Tensor, hop_length: int) -> Tensor:
        return net(ended(log_mels))

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, frames · hop_length] of log-mels [N, n_mels, frames]; not clipped. `seed`: of the grain."""
        if self.sampling is None:
            return super().vocode(log_mels)
        num_samples = log_mels.shape[2] * self.spec.hop_length
        log_mels = ended(log_mels)
        magnitude, spread = self._magnitudes(log_mels)
        if self.sampling.grain:
            magnitude = drawn(magnitude, self.sampling.grain * spread, self.spec, seed_of(seed, "grain"))
        magnitude = corrected(magnitude, log_mels.cpu(), self.spec)
        iterations, momentum = self.sampling.iterations, self.sampling.momentum
        return griffin_lim(magnitude, self.spec, num_samples, iterations, momentum, PHASE_SEED)[:, None]

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """`vocode` in pieces; a single one if Griffin-Lim finds the phases, since it needs the whole sound."""
        return super().pieces(log_mels) if self.sampling is None else iter([self.vocode(log_mels)])

    @torch.no_grad()
    def _magnitudes(self, log_mels: Tensor) -> tuple[Tensor, ...]:
        """Medians and spreads [N, bins, frames] of log-mels [N, n_mels, frames], on the CPU."""
        parts = [
            [piece.inner(values).cpu() for values in self.net(piece.values)]
            for piece in pieces([log_mels], vocoding.PIECE_FRAMES, self.context)
        ]
        return tuple(torch.cat(values, 2) for values in zip(*parts, strict=True))


def drawn(median: Tensor, spread: Tensor, spec: MelSpec, seed: int) -> Tensor:
    """Magnitudes [B, bins, frames] drawn with these medians and spreads.

    They follow the STFT of white noise, so that neighbouring bins and frames are correlated as in sounds; with the spread of noise,
    they are the magnitudes of noise.
    """
    grain = speckle(spec, median.shape[2], seed).clamp_min(1e-6).log()
    return median * (spread * ((grain - SPECKLE_MEDIAN) / SPECKLE_SPREAD)).exp()


def build(params: NetworkParams, spec: MelSpec) -> nn.Module:
    """The net, initialised from torch's global generator."""
    return MagnitudeNet(params, spec) if params.head == "magnitude" else VocosNet(params, spec)


def network(params: IstftParams, spec: MelSpec, channels: int) -> nn.Module:
    return build(params.network, spec)


load = partial(restore_vocoder, Istft, network)


QUIETEST = 1e-4  # magnitude, below the rounding noise of 16 bits
CONFIG = "config.yaml"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read
FILES = (CONFIG, " or ".join(WEIGHTS))
FLOOR = 1e-7  # of its log-mels
FEATURES = "vocos.feature_extractors.MelSpectrogramFeatures"
FILTERS = "feature_extractor.mel_spec.mel_scale.fb"
WINDOWS = ("feature_extractor.mel_spec.spectrogram.window", "head.istft.window")
REMEDY = "fetch it again, or train one (`vocoder=vocos`)"


def make(params: IstftParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    trainer, weights = VocoderTrainer.of(params, ctx, clips, mels, catalog), params.weights
    spec = trainer.spec
    if isinstance(weights, LoadedParams):
        return trainer.result(*load_published(weights, params.network, spec, ctx.home, ctx.digests))
    model = Istft(params.network, spec, build(params.network, spec), params.sampling)
    if params.sampling:
        return trainer.made(model, load, lambda: LikelihoodModule(weights, model.net, spec))
    # By hinge, feature maps and log-mels, against HiFi-GAN's discriminators (Siuzdak 2024, sec. 3.3).
    return trainer.made(model, load, lambda: VocoderModule(weights, model, norms=False))


class LikelihoodModule(TrainingModule):
    """A batch: log-mels of crops [B, n_mels, frames] and their waves [B, frames · hop_length].

    The loss is the mean of −ln p − ln 2 over log-magnitudes, where p is a Laplace distribution. Silence, whose density would grow
    without bound, and bins outside all bands are left out, as are the frames at the ends of a crop, whose windows reach beyond it.
    """

    def __init__(self, params: Any, net: nn.Module, spec: MelSpec):
        super().__init__(net, params, params.steps)
        self.hop, self.ends = spec.hop_length, edge(spec)
        self.spectrogram = Spectrogram(spec.n_fft, spec.win_length, spec.hop_length, power=1.0)

    def loss(self, step: int, batch: Batch) -> Tensor:
        log_mel, wave = batch.values
        inner = slice(self.ends, log_mel.shape[2] - self.ends)
        with torch.autocast(wave.device.type, enabled=False):
            real = self.spectrogram(wave.float())[..., inner]
        median, spread = (values[..., inner] for values in self.net(log_mel.float()))
        counted = (real > QUIETEST) & (median > 0)
        distance = (real.clamp_min(QUIETEST).log() - median.clamp_min(1e-12).log()).abs() / spread + spread.log()
        return torch.where(counted, distance, 0).sum() / counted.sum().clamp_min(1)


def load_published(
    source: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path, digests: Path | None = None
) -> tuple[Istft, dict[str, Any]]:
    """Load the vocoder that `source` names; also returns the identity of its files.

    UserError if its sizes differ from `network`, or the spec of its log-mels from `spec`.
    """
    directory, commit = locate(source, FILES, "vocoder", home)
    _check_config(directory, network, spec)
    path = next(directory / file for file in WEIGHTS if (directory / file).is_file())
    tensors = checkpoint.read_weights(path) if path.suffix == ".safetensors" else torch_weights.read_checkpoint(path, remedy=REMEDY)
    net = VocosNet(network, spec)
    torch_weights.load_state(net, _of_net(tensors, spec, path), path, REMEDY)
    facts = {"name": source.name, "revision": commit, "digest": hub.digest(directory, (CONFIG, path.name), digests)}
    return Istft(network, spec, net.eval(), None), facts


def _check_config(directory: Path, network: NetworkParams, spec: MelSpec) -> None:
    """UserError if the configuration is of a net with other sizes, or for other log-mels."""
    path = directory / CONFIG
    config = strict.read_yaml(path)
    try:
        features, backbone, head = (config[part]["init_args"] for part in ("feature_extractor", "backbone", "head"))
        kind = config["feature_extractor"]["class_path"]
        sizes = {key: backbone[name] for key, name in (("layers", "num_layers"), ("width", "dim"), ("hidden", "intermediate_dim"))}
        n_fft, hop, bands, rate = (features[key] for key in ("n_fft", "hop_length", "n_mels", "sample_rate"))
        fits = (n_fft, hop, bands, sizes["width"]) == (head["n_fft"], head["hop_length"], backbone["input_channels"], head["dim"])
        padding = {features["padding"], head["padding"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: no configuration of Vocos ({type(error).__name__}: {error}); {REMEDY}") from None
    if kind != FEATURES or padding != {"center"} or not fits:
        raise UserError(f"{path}: only a Vocos for log-mels with centred windows can be loaded (vocos-mel-24khz is one); {REMEDY}")
    required = {"sample_rate": rate, "n_fft": n_fft, "win_length": n_fft, "hop_length": hop, "n_mels": bands}
    required |= {"f_min": 0.0, "f_max": rate / 2, "mel_scale": "htk", "norm": "none", "power": 1.0, "floor": FLOOR, "peak": None}
    check_vocoder_spec(str(directory), required, spec)
    here = network.model_dump()
    compare(path, {key: (value, here[key]) for key, value in ({"head": "wave"} | sizes).items()}, "vocoder.network")


check = partial(check_published, "vocoder", FILES, _check_config, None)


def _of_net(tensors: Mapping[str, Tensor], spec: MelSpec, path: Path) -> dict[str, Tensor]:
    """The tensors without mel filters and windows; UserError if these differ from those of `spec`."""
    filters, window = mel_filterbank(spec), torch.hann_window(spec.win_length)
    for name, expected in ((FILTERS, filters), *((name, window) for name in WINDOWS)):
        found = tensors.get(name)
        if found is not None and not (found.shape == expected.shape and torch.allclose(found.float(), expected, atol=1e-5)):
            raise UserError(f"{path}: {name} differs from that of the spectrogram; {REMEDY}")
    return {name: value for name, value in tensors.items() if name not in {FILTERS, *WINDOWS}}
