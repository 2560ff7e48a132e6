"""Models in the layouts of declare-lab/tango and of diffusers' AudioLDMPipeline are imported: random weights; nets and sounds are
those of diffusers and transformers."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

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
from soundmill.models.components.text_states.states import pad
from soundmill.models.family import Request, Run
from soundmill.models.tango import TrainParams, published
from soundmill.models.tango.model import Tango, build_net
from tests.imports import ROOT
from tests.lost_bits import Code
from tests.models.test_published import tokenizer
from tests.prepared import edit

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


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("pytorch_model_main.bin", {"unet.x": Code()}, "main.bin: cannot be read as weights"),
        ("pytorch_model_vae.bin", {}, "vae.bin: not the weights of AutoencoderKL"),
        ("pytorch_model_vae.bin", None, "has no pytorch_model_vae.safetensors or"),
        ("pytorch_model_vae.safetensors", "cut", "vae.safetensors: weights cannot be read"),
        ("vae_config.json", "{}", "scale_factor must be a number above 0, found None"),
        ("stft_config.json", '{"filter_length": 512}', "filter_length is 512, which is not"),
        ("pytorch_model_main.bin", {0: torch.ones(1)}, "main.bin: not a checkpoint of declare-lab/tango"),
        ("main_config.json", '{"text_encoder_name": "~/gone"}', f"no such directory .{Path.home() / 'gone'}"),
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
    assert "it ran" not in capfd.readouterr().out


def test_a_directory_is_read_by_the_family_that_knows_its_files(tango, audioldm, tmp_path):
    """At the published sizes, which these weights do not have."""
    with pytest.raises(UserError, match=r"pytorch_model_main\.bin: not the weights of TextUNet"):
        importing.import_published(str(tango[1]), tmp_path / "new", lambda: ROOT / "conf")
    with pytest.raises(UserError, match=r"theirs/vae/config\.json: block_out_channels is \[16, 16, 32\]"):
        importing.import_published(str(audioldm[1]), tmp_path / "new", lambda: ROOT / "conf")
    with pytest.raises(UserError, match=r"main\.bin: is a part of a model"):
        importing.import_published(str(tango[1] / "pytorch_model_main.bin"), tmp_path / "new", lambda: ROOT / "conf")


@pytest.fixture(scope="module")
def audioldm(tmp_path_factory):
    """(params, directory, pipeline) of a small model, whose last sampling step reaches alpha_bar 1, as ours does."""
    from diffusers import AudioLDMPipeline, DDIMScheduler, UNet2DConditionModel
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    document = params.compose(ROOT / "conf", ["model=tango", "scale=paper"])
    section = document["tango"]
    section["autoencoder"]["network"] |= {"widths": [16, 16, 32], "blocks": 1, "groups": 8}
    section["latents"]["num_samples"] = 160 * 64
    document["vocoder"]["network"] |= {"channels": 64}
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "projection_dim": 12}
    clap = ClapTextModelWithProjection(ClapTextConfig(vocab_size=7, pad_token_id=0, max_position_embeddings=7, **sizes))
    unet = UNet2DConditionModel(
        in_channels=8,
        out_channels=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=(16, 32),
        norm_num_groups=8,
        attention_head_dim=4,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=12,
        class_embeddings_concat=True,
    )
    vae = build_autoencoder(registry.codec_params(document, "tango").network)
    vae.register_to_config(scaling_factor=0.75)
    vocoder = build_vocoder(NetworkParams.model_validate(document["vocoder"]["network"]), 64, 16_000)
    for weight in [weight for net in (clap, unet, vae, vocoder) for weight in net.parameters()]:
        weight.data += 0.1 * torch.randn(weight.shape)  # no bias is zero
    noise = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
    scheduler = DDIMScheduler(**noise, set_alpha_to_one=True)
    pipeline = AudioLDMPipeline(vae.eval(), clap.eval(), tokenizer(), unet.eval(), scheduler, vocoder.eval())
    path = tmp_path_factory.mktemp("audioldm") / "theirs"
    pipeline.save_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return document, path, pipeline


@torch.no_grad()
def test_its_net_and_its_sounds_are_the_pipeline_s(audioldm, tmp_path):
    """At equal noise and steps, to 1e-5, which guidance multiplies as it does all rounding."""
    document, path, pipeline = audioldm
    model, facts, save = published.read(path, deepcopy(document), "theirs")
    save(model, tmp_path / "ours", facts=facts)
    assert model.params.sampling.num_steps == 200
    model = Tango.load(tmp_path / "ours")
    assert (model.autoencoder.scaling_factor, model.frames, model.text.max_tokens) == (0.75, 64, 6)
    run = Run(model.params.sampling.model_copy(update={"num_steps": 5}), torch.device("cpu"), "32", 2, tmp_path, tmp_path)
    requests = [Request(caption="a dog barks", seed=3), Request(caption="rain", seed=4)]
    sounds, xt, t, outputs = model.generate(requests, run), torch.randn(1, *model.encoded_shape), torch.tensor([700]), []
    for wave, request in zip(sounds, requests, strict=True):
        states, mask = pad(model.states([request.caption], run))
        tokens = pipeline.tokenizer(request.caption, return_tensors="pt").input_ids
        vector = torch.nn.functional.normalize(pipeline.text_encoder(tokens).text_embeds, dim=1)
        outputs.append(pipeline.unet(xt, t, encoder_hidden_states=None, class_labels=vector).sample)
        torch.testing.assert_close(model.net(xt, t, states, mask), outputs[-1], atol=1e-5, rtol=1e-5)
        noise = torch.randn(xt.shape, generator=torch.Generator().manual_seed(request.seed))
        steps = {"num_inference_steps": 5, "guidance_scale": 2.5, "latents": noise, "audio_length_in_s": 0.64}
        theirs = pipeline(request.caption, **steps, output_type="pt").audios
        assert theirs.std() > 1e-3
        torch.testing.assert_close(wave[:, : theirs.shape[1]], theirs.clamp(-1, 1), atol=2.5e-5, rtol=1e-5)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3  # the text matters


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("model_index.json", {"_class_name": "AudioLDM2Pipeline"}, "_class_name is not AudioLDMPipeline"),
        ("unet/config.json", {"class_embeddings_concat": False}, "unet"),
        ("unet/config.json", {"layers_per_block": 10**5}, r"unet/config\.json\.layers_per_block is 100000: .*far larger"),
        ("unet/config.json", {"act_fn": "gelu"}, "act_fn is gelu, this program has silu"),
        ("text_encoder/config.json", {"projection_hidden_act": "gelu"}, "projection_hidden_act is gelu"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, r"diffusion\.schedule"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor must be a number above 0, found 0"),
        ("unet/diffusion_pytorch_model.safetensors", {}, "unet: cannot be loaded"),  # pickles are not read
        ("vocoder/config.json", {"normalize_before": True}, "normalised by the vocoder's constants"),
    ],
)
def test_what_is_no_such_pipeline_is_named(audioldm, tmp_path, file, changes, says):
    document, path = deepcopy(audioldm[0]), tmp_path / "other"
    shutil.copytree(audioldm[1], path)
    if changes:
        edit(path / file, **changes)
    else:
        (path / file).rename((path / file).with_suffix(".bin"))
    with pytest.raises(UserError, match=says):
        published.read(path, document, "theirs")
