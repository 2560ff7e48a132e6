"""Convert AudioLDM (Liu et al. 2023, arXiv:2301.12503) from the layout of diffusers' AudioLDMPipeline.

Its text encoder is CLAP's, a RoBERTa. The layers that make a vector of the text's first state become part of the net. Weights are
read from safetensors only.
"""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from soundmill import hub, terminal, text
from soundmill import params as strict
from soundmill.audio.mel import SpectrogramParams
from soundmill.errors import UserError
from soundmill.models.components import making, registry
from soundmill.models.components.contracts import LoadedParams, save_codec, save_vocoder
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.tango import TrainParams
from soundmill.models.tango.model import FAMILY, Tango, build_net
from soundmill.models.trained import TEXT_ENCODER
from soundmill.training import torch_weights

INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
PARTS = ("unet", "vae", "vocoder", "text_encoder", "tokenizer", "scheduler")
FILES = (INDEX, *(f"{part}/{pattern}" for part in PARTS for pattern in text.FILES))
OBJECTIVES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULE = {"schedule": "beta_schedule", "beta_start": "beta_start", "beta_end": "beta_end", "num_timesteps": "num_train_timesteps"}
SAMPLING = {"sampler": "ddim", "num_steps": 200, "guidance_scale": 2.5, "spacing": "leading"}  # as published
VECTOR = {0: "text_model.pooler.dense", 2: "text_projection.linear1", 4: "text_projection.linear2"}  # layers of `TextUNet.vector`
OF_ROBERTA = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
OF_ROBERTA += ("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id")
REMEDY = "download it again"


def read(path: Path, document: dict[str, Any], name: str) -> tuple[Tango, dict[str, Any], Callable[..., None]]:
    """As `published.read`; the sizes of the U-Net and the noise schedule are those of the directory."""
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
    autoencoder, _ = registry.codec(codec.kind).module.load_published(weights, codec.network, spec, path)
    autoencoder.residual = [0.0] * spec.n_mels  # not measured: its sounds are published without grain
    sounding = strict.parse(registry.params_of_vocoder(document["vocoder"]), document["vocoder"], f"{path}: vocoder")
    vocoder, _ = registry.vocoder(sounding.kind).module.load_published(weights, sounding.network, spec, path)

    frames = section["latents"]["num_samples"] // spec.hop_length
    layers = clap.state_dict()
    state = {f"unet.{key}": value for key, value in unet.state_dict().items()}
    state |= {f"vector.{at}.{kind}": layers[f"{key}.{kind}"] for at, key in VECTOR.items() for kind in ("weight", "bias")}
    net = torch_weights.built(lambda: build_net(params, autoencoder.latent_shape(frames)), state, path / "unet", REMEDY).eval()
    ours = {key: making.plain(value) for key, value in net.unet.config.items()}
    same = [key for key in ours if not key.startswith("_") and key != "sample_size"]
    making.compare(path / "unet", {key: (theirs[key], ours[key]) for key in same}, "this program")
    making.compare(path / "text_encoder", {"projection_hidden_act": (clap.config.projection_hidden_act, "relu")}, "this program")
    terminal.say(f"{name}: {making.LICENCE}")
    imported = {"name": name, "digest": hub.digest(path, FILES), "licence": None}
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
