"""Make the vocoder with an inverse STFT: train it on the training clips, or load it.

Magnitudes are trained by maximum likelihood, waves against discriminators. A published Vocos (gemelo-ai/vocos) is `config.yaml`,
and weights in `pytorch_model.bin` or `model.safetensors`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.transforms import Spectrogram

from soundmill import hub
from soundmill import params as strict
from soundmill.audio.mel import MelSpec, mel_filterbank
from soundmill.errors import UserError
from soundmill.models.components.contracts import check_vocoder_spec
from soundmill.models.components.istft import IstftParams, NetworkParams, edge, vocoder
from soundmill.models.components.istft.vocoder import Istft, VocosNet, ended
from soundmill.models.components.loaded import LoadedParams, compare
from soundmill.models.components.making import MadeComponent
from soundmill.models.components.vocoder_adversary import Discriminators, VocoderModule
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.training import checkpoint, torch_weights
from soundmill.training.device import use_threads
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule, hinge_discriminator_loss, hinge_generator_loss, rebuilt

QUIETEST = 1e-4  # magnitude, below the rounding noise of 16 bits
CONFIG = "config.yaml"
FILES = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read
FLOOR = 1e-7  # of its log-mels
FEATURES = "vocos.feature_extractors.MelSpectrogramFeatures"
FILTERS = "feature_extractor.mel_spec.mel_scale.fb"
WINDOWS = ("feature_extractor.mel_spec.spectrogram.window", "head.istft.window")
REMEDY = "fetch it again, or train one (`vocoder=vocos`)"


def make(params: IstftParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    trainer, weights = VocoderTrainer.of(params, ctx, clips, mels, catalog), params.weights
    spec = trainer.spec
    use_threads(params.hardware.threads)
    if isinstance(weights, LoadedParams):
        fitted = None
        model, facts = load_published(weights, params.network, spec, ctx.home, ctx.digests)
    else:
        torch.manual_seed(weights.seed)
        build = partial(vocoder.build, params.network, spec)
        model = Istft(params.network, spec, build(), params.sampling)
        started_from = trainer.start(model, vocoder.load)
        if params.sampling:
            module = LikelihoodModule(weights, model.net, spec)
        else:
            module = against_discriminators(weights, model.net, build, spec)
        fitted, facts = trainer.train(module, model, started_from)
        model.net.eval()
    return trainer.result(model, facts, fitted)


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


class WaveModule(VocoderModule):
    """Trained as HiFi-GAN is, but without weight norms."""

    def __reduce__(self) -> Any:
        return rebuilt, (_module, self.arguments, self.state_dict())


def _module(params: Any, build: Callable[[], nn.Module], *others: Any) -> WaveModule:
    return WaveModule(params, build(), build, *others)


def against_discriminators(params: Any, net: nn.Module, build: Callable[[], nn.Module], spec: MelSpec) -> WaveModule:
    """Hinge, feature maps and log-mels (Siuzdak 2024, sec. 3.3), against HiFi-GAN's discriminators; `build` makes another `net`."""
    discriminators = Discriminators(params.discriminator_width)
    return WaveModule(params, net, build, spec, synthesise, discriminators, hinge_discriminator_loss, hinge_generator_loss)


def synthesise(net: nn.Module, log_mel: Tensor, hop_length: int) -> Tensor:
    """Waves [B, frames · hop_length] of log-mels [B, n_mels, frames]."""
    return net(ended(log_mel))


def load_published(
    source: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path, digests: Path | None = None
) -> tuple[Istft, dict[str, Any]]:
    """Load the vocoder that `source` names; also returns the identity of its files.

    UserError if its sizes differ from `network`, or the spec of its log-mels from `spec`.
    """
    directory, commit = _locate(source, home)
    _check_config(directory, network, spec)
    path = next(directory / file for file in FILES if (directory / file).is_file())
    tensors = checkpoint.read_weights(path) if path.suffix == ".safetensors" else torch_weights.read_checkpoint(path, remedy=REMEDY)
    net = VocosNet(network, spec)
    torch_weights.load_state(net, _of_net(tensors, spec, path), path, REMEDY)
    facts = {"name": source.name, "revision": commit, "digest": hub.digest(directory, (CONFIG, path.name), digests)}
    return Istft(network, spec, net.eval(), None), facts


def check(source: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path) -> None:
    """UserError as `load_published`, from the configuration alone."""
    _check_config(_locate(source, home)[0], network, spec)


def _locate(source: LoadedParams, home: Path) -> tuple[Path, str | None]:
    remedies = f"put {CONFIG} and {FILES[1]} into a directory and set vocoder.weights.name to that, or train one (`vocoder=vocos`)"
    return hub.find(source.name, source.revision, home, (CONFIG, *FILES), _missing, remedies)


def _missing(directory: Path) -> str | None:
    if not (directory / CONFIG).is_file():
        return CONFIG
    return None if any((directory / file).is_file() for file in FILES) else " or ".join(FILES)


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


def _of_net(tensors: Mapping[str, Tensor], spec: MelSpec, path: Path) -> dict[str, Tensor]:
    """The tensors without mel filters and windows; UserError if these differ from those of `spec`."""
    filters, window = mel_filterbank(spec), torch.hann_window(spec.win_length)
    for name, expected in ((FILTERS, filters), *((name, window) for name in WINDOWS)):
        found = tensors.get(name)
        if found is not None and not (found.shape == expected.shape and torch.allclose(found.float(), expected, atol=1e-5)):
            raise UserError(f"{path}: {name} differs from that of the spectrogram; {REMEDY}")
    return {name: value for name, value in tensors.items() if name not in {FILTERS, *WINDOWS}}
