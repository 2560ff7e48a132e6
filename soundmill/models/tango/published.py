"""Convert a model of declare-lab/tango: its U-Net, and AudioLDM's autoencoder and HiFi-GAN, under the names that these had first.
AudioLDM itself is in `audioldm.py`.

The sizes are the published ones: its json files do not have them all. Files of torch.save are read as tensors alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from soundmill import hub, text
from soundmill import params as strict
from soundmill.audio.mel import SpectrogramParams
from soundmill.errors import UserError
from soundmill.models.components import registry
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.tango import TrainParams, audioldm
from soundmill.models.tango.audioldm import REMEDY
from soundmill.models.tango.model import FAMILY, Tango, build_net
from soundmill.training import checkpoint, torch_weights

SUFFIX = "/"  # a directory
CODEC, VOCODER = "mel_autoencoder", "hifigan"  # by name: no stage that runs this family with others depends on them
MAIN, VAE, STFT = "main_config.json", "vae_config.json", "stft_config.json"
INDICES = (MAIN, audioldm.UNET)  # one is in every directory that can be read
WEIGHTS = ("{}.safetensors", "{}.bin", "{}.pth")
FILES = (MAIN, VAE, STFT, *(name.format("pytorch_model_*") for name in WEIGHTS))

OF_VAE = strict.read_yaml(Path(__file__).with_suffix(".yaml"))["autoencoder"]


def read(path: Path, document: dict[str, Any], name: str) -> tuple[Tango, dict[str, Any], Callable[..., None]]:
    """The model in a directory; facts, and the function that saves it.

    `document`, the content of a params.yaml, gives its sizes and how it is trained on; the facts call the model `name`. UserError
    names the file that is missing or of another size.
    """
    path = path.resolve()
    if (path / audioldm.UNET).is_file():
        return audioldm.read(path, document, name)
    section, spec = document[FAMILY], strict.parse(SpectrogramParams, document["spectrogram"][FAMILY], f"{path}: spectrogram").spec
    params = strict.parse(TrainParams, section["train"] | {"use": "last"}, f"{path}: {FAMILY}.train")
    network, shape = registry.codec_params(document, FAMILY).network, registry.latent_shape(document, FAMILY)
    sizes = strict.parse(registry.params_of_vocoder(document["vocoder"]), document["vocoder"], f"{path}: vocoder").network
    codecs, vocoders = registry.codec(CODEC).module, registry.vocoder(VOCODER).module
    of_stft = {"filter_length": "n_fft", "hop_length": "hop_length", "win_length": "win_length", "n_mel_channels": "n_mels"}
    of_stft |= {"sampling_rate": "sample_rate", "mel_fmin": "f_min", "mel_fmax": "f_max"}
    stft = hub.read_config(path / STFT)
    for key, ours in of_stft.items():
        if stft.get(key) != getattr(spec, ours):
            raise UserError(
                f"{path / STFT}: {key} is {stft.get(key)!r}, which is not supported; it must be {getattr(spec, ours)!r}"
            )
    scaling = codecs.scaling_in(path / VAE, hub.read_config(path / VAE), "scale_factor")

    file, main = _tensors(path, "pytorch_model_main")
    frames = section["latents"]["num_samples"] // spec.hop_length
    unet = {key: value for key, value in main.items() if key.startswith("unet.")}  # its frozen text encoder is found by its id
    net = torch_weights.built(lambda: build_net(params, shape), unet, file, REMEDY).eval()
    file, of_vae = _tensors(path, "pytorch_model_vae")
    sounding = {key.removeprefix("vocoder."): value for key, value in of_vae.items() if key.startswith("vocoder.")}
    of_vae = {key: value for key, value in of_vae.items() if not key.startswith("vocoder.")}
    from_last = (r"^decoder\.up\.(\d+)", lambda found: f"decoder.up_blocks.{len(network.widths) - 1 - int(found[1])}")
    named = _renamed(of_vae, [from_last, *OF_VAE])  # the levels of its decoder are numbered from the last on
    vae = torch_weights.built(lambda: codecs.build_autoencoder(network), named, file, REMEDY)
    build = partial(vocoders.build_vocoder, sizes, spec.n_mels, spec.sample_rate)
    constants = {key: value for key, value in build().state_dict().items() if key in ("mean", "scale")}  # of transformers alone
    vocoder = torch_weights.built(build, constants | _renamed(sounding, [(r"^ups\.", "upsampler.")]), file, REMEDY)

    autoencoder = codecs.Autoencoder(network, spec, vae.eval(), 0.0, 1.0, scaling, residual=[0.0] * spec.n_mels)
    encoder, vocoder = _text_encoder(path / MAIN, document["text"][FAMILY]), vocoders.HifiGan(sizes, spec, vocoder.eval())
    model = Tango(params, net, autoencoder, frames, vocoder, text=encoder)
    imported = {"name": name, "digest": hub.digest(path, FILES), "licence": None}
    return model, {"steps": 0, "weights": {"last": {"step": 0}}, "imported": imported}, audioldm.save


def _tensors(path: Path, stem: str) -> tuple[Path, dict[str, Tensor]]:
    """The file of weights called `stem`, and its tensors in float32."""
    file = next((path / name.format(stem) for name in WEIGHTS if (path / name.format(stem)).is_file()), None)
    if file is None:
        raise UserError(f"{path}: has no {' or '.join(name.format(stem) for name in WEIGHTS)}; {REMEDY}")
    state = checkpoint.read_weights(file) if file.suffix == ".safetensors" else torch_weights.read_state(file, "declare-lab/tango")
    tensors = {key: value.float() for key, value in state.items() if isinstance(value, Tensor)}
    if broken := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise UserError(f"{file}: {broken[0]!r} has values that are not finite; {REMEDY}")
    return file, tensors


def _renamed(state: Mapping[str, Tensor], renaming: Sequence[tuple[str, Any]]) -> dict[str, Tensor]:
    """The tensors under new names; those of attention are matrices, not convolutions of one sample."""
    found = {}
    for key, value in state.items():
        key = torch_weights.renamed(key, renaming)
        found[key] = value[..., 0, 0] if ".attentions." in key and value.ndim == 4 else value
    return found


def _text_encoder(file: Path, section: dict[str, Any]) -> TextConfig:
    """The encoder that `text_encoder_name` names: the published id, at the commit of conf/text/, or a directory."""
    name = hub.read_config(file).get("text_encoder_name")
    given = isinstance(name, str) and hub.is_directory(name, Path())
    if not given and name != section["encoder"]:
        raise UserError(f"{file}: text_encoder_name is {name!r}, must be {section['encoder']!r} or a directory with its files")
    found = text.find(str(Path(name).resolve()) if given else name, None if given else section["revision"], Path())
    return TextConfig(**found.identity(), max_tokens=section["max_tokens"], scratch=None)
