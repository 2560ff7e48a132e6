"""Convert models of declare-lab/tango, and AudioLDM (Liu et al. 2023, arXiv:2301.12503) from the layout of diffusers'
AudioLDMPipeline. Weights are read from safetensors, or as tensors alone from files of torch.save.

TANGO's directory has its U-Net, and AudioLDM's autoencoder and HiFi-GAN under the names that these had first. Its sizes are the
published ones: its json files do not have them all.

AudioLDM's text encoder is CLAP's, a RoBERTa. The layers that make a vector of the text's first state become part of the net.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from soundmill import hub, text
from soundmill import params as strict
from soundmill.audio.mel import SpectrogramParams
from soundmill.errors import UserError
from soundmill.models.components import making, registry
from soundmill.models.components.contracts import LoadedParams, save_codec, save_vocoder
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.tango import TrainParams
from soundmill.models.tango.model import FAMILY, Tango, build_net
from soundmill.models.trained import TEXT_ENCODER
from soundmill.training import checkpoint, torch_weights

INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
PARTS = ("unet", "vae", "vocoder", "text_encoder", "tokenizer", "scheduler")
AUDIOLDM_FILES = (INDEX, *(f"{part}/{pattern}" for part in PARTS for pattern in text.FILES))
OBJECTIVES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULE = {"schedule": "beta_schedule", "beta_start": "beta_start", "beta_end": "beta_end", "num_timesteps": "num_train_timesteps"}
SAMPLING = {"sampler": "ddim", "num_steps": 200, "guidance_scale": 2.5, "spacing": "leading"}  # as published
VECTOR = {0: "text_model.pooler.dense", 2: "text_projection.linear1", 4: "text_projection.linear2"}  # layers of `TextUNet.vector`
OF_ROBERTA = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
OF_ROBERTA += ("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id")
REMEDY = "download it again"

SUFFIX = "/"  # a directory
CODEC, VOCODER = "mel_autoencoder", "hifigan"  # by name: no stage that runs this family with others depends on them
MAIN, VAE, STFT = "main_config.json", "vae_config.json", "stft_config.json"
INDICES = (MAIN, UNET)  # one is in every directory that can be read
WEIGHTS = ("{}.safetensors", "{}.bin", "{}.pth")
FILES = (MAIN, VAE, STFT, *(name.format("pytorch_model_*") for name in WEIGHTS))

OF_VAE = strict.read_yaml(Path(__file__).with_suffix(".yaml"))["autoencoder"]


def read(path: Path, document: dict[str, Any], name: str) -> tuple[Tango, dict[str, Any], Callable[..., None]]:
    """The model in a directory; facts, and the function that saves it.

    `document`, the content of a params.yaml, gives its sizes and how it is trained on; the facts call the model `name`. UserError
    names the file that is missing or of another size.
    """
    path = path.resolve()
    if (path / UNET).is_file():
        return _read_audioldm(path, document, name)
    section, spec = document[FAMILY], strict.parse(SpectrogramParams, document["spectrogram"][FAMILY], f"{path}: spectrogram").spec
    params = strict.parse(TrainParams, section["train"] | {"use": "last"}, f"{path}: {FAMILY}.train")
    network, shape = registry.codec_params(document, FAMILY).network, registry.latent_shape(document, FAMILY)
    sizes = strict.parse(registry.kind_of("vocoder", document["vocoder"]).params, document["vocoder"], f"{path}: vocoder").network
    codecs, vocoders = registry.kind_of("autoencoder", CODEC).module, registry.kind_of("vocoder", VOCODER).module
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
    imported = {"name": name, "digest": hub.digest(path, FILES)}
    return model, {"steps": 0, "weights": {"last": {"step": 0}}, "imported": imported}, save


def _tensors(path: Path, stem: str) -> tuple[Path, dict[str, Tensor]]:
    """The file of weights called `stem`, and its tensors in float32."""
    file = next((path / name.format(stem) for name in WEIGHTS if (path / name.format(stem)).is_file()), None)
    if file is None:
        raise UserError(f"{path}: has no {' or '.join(name.format(stem) for name in WEIGHTS)}; {REMEDY}")
    state = checkpoint.read_weights(file) if file.suffix == ".safetensors" else torch_weights.read_state(file, "declare-lab/tango")
    return file, {key: value.float() for key, value in state.items() if isinstance(value, Tensor)}


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
    directory = hub.directory_of(name, Path()).resolve()
    found = text.find(str(directory) if given else name, None if given else section["revision"], Path())
    return TextConfig(**found.identity(), max_tokens=section["max_tokens"], scratch=None)


def _read_audioldm(path: Path, document: dict[str, Any], name: str) -> tuple[Tango, dict[str, Any], Callable[..., None]]:
    """As `read`; the sizes of the U-Net and the noise schedule are those of the directory."""
    from diffusers import UNet2DConditionModel
    from transformers import ClapTextModelWithProjection

    if hub.read_config(path / INDEX).get("_class_name") != "AudioLDMPipeline":
        raise UserError(f"{path / INDEX}: its _class_name is not AudioLDMPipeline, which is not supported")
    unet = making.pretrained(UNet2DConditionModel, path / "unet")
    clap = making.pretrained(ClapTextModelWithProjection, path / "text_encoder")
    theirs = {key: making.plain(value) for key, value in unet.config.items()}
    levels, heads = len(theirs["block_out_channels"]), theirs["attention_head_dim"]
    theirs["attention_head_dim"] = heads if isinstance(heads, list) else [heads] * levels
    section = document[FAMILY]
    train = section["train"] | {"use": "last"}
    train["network"] |= {
        "widths": theirs["block_out_channels"],
        "heads": theirs["attention_head_dim"],
        "text_levels": [level for level, kind in enumerate(theirs["down_block_types"]) if kind.startswith("CrossAttn")],
        "blocks": theirs["layers_per_block"],
        "groups": theirs["norm_num_groups"],
        "text_width": clap.config.hidden_size,
        "class_width": clap.config.projection_dim,
    }
    scheduler = hub.read_config(path / SCHEDULER)
    train["diffusion"] |= {ours: scheduler.get(key) for ours, key in SCHEDULE.items()}
    train["diffusion"]["objective"] = OBJECTIVES.get(scheduler.get("prediction_type"))
    train["sampling"] |= SAMPLING
    params = strict.parse(TrainParams, train, f"{path}: {FAMILY}.train")

    spec = strict.parse(SpectrogramParams, document["spectrogram"][FAMILY], f"{path}: spectrogram").spec
    weights, codec = LoadedParams(kind="load", name=str(path), revision=None), registry.codec_params(document, FAMILY)
    autoencoder, _ = registry.kind_of("autoencoder", codec.kind).module.load_published(weights, codec.network, spec, path)
    autoencoder.residual = [0.0] * spec.n_mels  # not measured: its sounds are published without grain
    sounding = strict.parse(registry.kind_of("vocoder", document["vocoder"]).params, document["vocoder"], f"{path}: vocoder")
    vocoder, _ = registry.kind_of("vocoder", sounding.kind).module.load_published(weights, sounding.network, spec, path)

    frames = section["latents"]["num_samples"] // spec.hop_length
    layers = clap.state_dict()
    state = {f"unet.{key}": value for key, value in unet.state_dict().items()}
    state |= {f"vector.{at}.{kind}": layers[f"{key}.{kind}"] for at, key in VECTOR.items() for kind in ("weight", "bias")}
    net = torch_weights.built(lambda: build_net(params, autoencoder.latent_shape(frames)), state, path / "unet", REMEDY).eval()
    ours = {key: making.plain(value) for key, value in net.unet.config.items()}
    same = [key for key in ours if not key.startswith("_") and key != "sample_size"]
    making.compare(path / "unet", {key: (theirs[key], ours[key]) for key in same}, "this program")
    making.compare(path / "text_encoder", {"projection_hidden_act": (clap.config.projection_hidden_act, "relu")}, "this program")
    imported = {"name": name, "digest": hub.digest(path, AUDIOLDM_FILES)}
    model = Tango(params, net, autoencoder, frames, vocoder)
    facts = {"steps": 0, "weights": {"last": {"step": 0}}, "imported": imported}
    return model, facts, partial(save, encoder=partial(_write_encoder, path, clap))


def save(model: Tango, directory: Path, facts: dict[str, Any], encoder: Callable[[Path], TextConfig] | None = None) -> None:
    """Write the checkpoint with its components, and the text encoder that `encoder` writes into a directory."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        parts = [Path(folder) / name for name in (registry.AUTOENCODER, registry.VOCODER)]
        source = {"kind": "load", **facts["imported"]}
        save_codec(model.autoencoder, parts[0], source)
        save_vocoder(model.vocoder, parts[1], source)
        if encoder:
            parts.append(Path(folder) / TEXT_ENCODER)
            model.text = encoder(parts[-1])
        model.save(directory, facts, parts=parts)


def _write_encoder(path: Path, clap: Any, directory: Path) -> TextConfig:
    """CLAP's text encoder as the RoBERTa that it is, with its tokenizer."""
    from transformers import RobertaConfig, RobertaModel

    net = RobertaModel(RobertaConfig(**{key: getattr(clap.config, key) for key in OF_ROBERTA}))
    torch_weights.load_state(net, dict(clap.text_model.named_parameters()), path / "text_encoder", REMEDY)
    net.save_pretrained(directory)
    for file in sorted({file for pattern in text.FILES for file in (path / "tokenizer").glob(pattern)}):
        shutil.copyfile(file, directory / file.name)
    longest = clap.config.max_position_embeddings - clap.config.pad_token_id - 1
    text.TextEncoder(directory, longest)
    digest = hub.digest(directory, text.FILES)
    return TextConfig(name=TEXT_ENCODER, revision=None, digest=digest, pretrained=True, max_tokens=longest, scratch=None)
