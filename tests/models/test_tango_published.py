"""A model in the layout of declare-lab/tango is imported: random weights, compared with diffusers' and transformers' modules."""

import json

import pytest
import torch
from safetensors.torch import save_file

from soundmill import params
from soundmill.errors import UserError
from soundmill.models import importing
from soundmill.models.components import registry
from soundmill.models.components.hifigan import NetworkParams
from soundmill.models.components.hifigan.vocoder import build_vocoder
from soundmill.models.components.mel_autoencoder.autoencoder import build_autoencoder
from soundmill.models.tango import TrainParams, published
from soundmill.models.tango.model import Tango, build_net
from tests.imports import ROOT

HALVES = ("encoder", "decoder")
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
STFT = {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "n_mel_channels": 64, "sampling_rate": 16_000}


def first_name(key: str, levels: int) -> str:
    """The name of a weight of diffusers' AutoencoderKL in AudioLDM's code."""
    half, *rest = key.split(".")
    if half not in HALVES or not rest[0].endswith(("blocks", "block")):
        return key.replace("conv_norm_out", "norm_out")
    if rest[0] == "mid_block":
        *_, kind = rest
        if rest[1] == "attentions":
            return f"{half}.mid.attn_1.{ATTENTION['.'.join(rest[3:-1])]}.{kind}"
        return ".".join([half, "mid", f"block_{int(rest[2]) + 1}", *rest[3:]])
    level = int(rest[1]) if half == "encoder" else levels - 1 - int(rest[1])
    inside = [{"resnets": "block", "downsamplers": "downsample", "upsamplers": "upsample"}[rest[2]], *rest[3:]]
    inside = inside if inside[0] == "block" else [inside[0], *inside[2:]]
    return ".".join([half, rest[0].removesuffix("_blocks"), str(level), *inside]).replace("conv_shortcut", "nin_shortcut")


@pytest.fixture
def tango(tmp_path, shared):
    """(params, directory, its three nets) of a small model."""
    document = params.compose(ROOT / "conf", ["model=tango", "scale=paper", "text=minilm"])
    section = document["tango"]
    section["train"]["network"] |= {"widths": [16, 32], "heads": [2, 4], "text_levels": [0], "blocks": 1, "groups": 8}
    section["autoencoder"]["network"] |= {"widths": [16, 16, 32], "blocks": 1, "groups": 8}
    section["latents"]["num_samples"] = 160 * 64
    document["vocoder"]["network"] |= {"channels": 64}
    torch.manual_seed(0)
    unet = build_net(TrainParams.model_validate(section["train"]), registry.latent_shape(document, "tango")).unet.eval()
    vae = build_autoencoder(registry.codec_params(document, "tango").network).eval()
    vocoder = build_vocoder(NetworkParams.model_validate(document["vocoder"]["network"]), 64, 16_000).eval()
    for weight in [weight for net in (unet, vae, vocoder) for weight in net.parameters()]:
        weight.data += 0.05 * torch.randn(weight.shape)  # no bias is zero
    path = tmp_path / "theirs"
    path.mkdir()
    main = {f"unet.{key}": value for key, value in unet.state_dict().items()} | {"text_encoder.shared.weight": torch.zeros(2, 2)}
    state = {
        first_name(key, 3): value[..., None, None] if ".attentions." in key and value.ndim == 2 else value
        for key, value in vae.state_dict().items()
    }
    state |= {
        f"vocoder.{key.replace('upsampler.', 'ups.')}": value
        for key, value in vocoder.state_dict().items()
        if key not in ("mean", "scale")
    }
    torch.save(main, path / "pytorch_model_main.bin")
    torch.save(state, path / "pytorch_model_vae.bin")
    encoder = {"text_encoder_name": str(shared / "models/all-MiniLM-L6-v2"), "unet_model_config_path": "configs/x.json"}
    configs = {"main": encoder, "vae": {"scale_factor": 1}, "stft": STFT | {"mel_fmin": 0, "mel_fmax": 8000}}
    for name, values in configs.items():
        (path / f"{name}_config.json").write_text(json.dumps(values))
    return document, path, (unet, vae, vocoder)


@torch.no_grad()
def check(model: Tango, unet, vae, vocoder) -> None:
    xt, states, t = torch.randn(2, 8, 16, 16), torch.randn(2, 5, 384), torch.tensor([3, 700])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    picture, log_mels, codec = torch.randn(1, 1, 64, 64), torch.randn(1, 64, 20), model.autoencoder.net
    for found, expected in (
        (model.net(xt, t, states, mask), unet(xt, t, encoder_hidden_states=states, encoder_attention_mask=mask).sample),
        (codec.encode(picture).latent_dist.mean, vae.encode(picture).latent_dist.mean),
        (codec.decode(xt).sample, vae.decode(xt).sample),
        (model.vocoder.synthesise(model.vocoder.net, log_mels, 160), vocoder(log_mels.transpose(1, 2))[:, : 20 * 160]),
    ):
        assert expected.std() > 1e-3
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bin", "safetensors", "pth"])
def test_the_nets_are_those_of_diffusers_and_transformers(tango, tmp_path, kind):
    document, path, nets = tango
    for file in path.glob("*.bin"):
        if kind == "safetensors":
            save_file({key: value.contiguous() for key, value in torch.load(file).items()}, file.with_suffix(".safetensors"))
            file.unlink()
        else:
            file.rename(file.with_suffix(f".{kind}"))
    model, facts, save = published.read(path, document, "theirs")
    save(model, tmp_path / "ours", facts=facts)
    again = Tango.load(tmp_path / "ours")
    for one in (model, again):
        check(one, *nets)
        assert (one.autoencoder.scaling_factor, one.frames, one.text.max_tokens) == (1.0, 64, 256)


class Command:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("pytorch_model_main.bin", {"unet.x": Command()}, "main.bin: cannot be read as weights"),
        ("pytorch_model_vae.bin", {}, "vae.bin: not the weights of AutoencoderKL"),
        ("pytorch_model_vae.bin", None, "has no pytorch_model_vae.safetensors or"),
        ("pytorch_model_vae.safetensors", "cut", "vae.safetensors: weights cannot be read"),
        ("vae_config.json", "{}", "scale_factor must be a number above 0, found None"),
        ("stft_config.json", '{"filter_length": 512}', "filter_length is 512, which is not"),
        ("main_config.json", '{"text_encoder_name": "a/b"}', "text_encoder_name is 'a/b', must be"),
    ],
)
def test_what_is_no_such_model_is_named(tango, capfd, name, content, says):
    document, path, _ = tango
    (path / name).unlink(missing_ok=True)
    if isinstance(content, str):
        (path / name).write_text(content)
    elif content is not None:
        torch.save(content, path / name)
    with pytest.raises(UserError, match=says):
        published.read(path, document, "theirs")
    assert "run" not in capfd.readouterr().out


def test_a_directory_is_read_by_the_family_that_knows_its_files(tango, tmp_path):
    """At the published sizes, which these weights do not have."""
    with pytest.raises(UserError, match=r"pytorch_model_main\.bin: not the weights of TextUNet"):
        importing.import_published(str(tango[1]), tmp_path / "new", lambda: ROOT / "conf")
    with pytest.raises(UserError, match=r"main\.bin: is a part of a model"):
        importing.import_published(str(tango[1] / "pytorch_model_main.bin"), tmp_path / "new", lambda: ROOT / "conf")
