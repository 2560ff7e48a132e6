"""A model in the layout of declare-lab/tango is imported: random weights, compared with the modules that they are of."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from soundmill import params
from soundmill.errors import UserError
from soundmill.models import importing
from soundmill.models.tango import published
from soundmill.models.tango.model import Tango
from tests.imports import ROOT

RESNET = ("norm1", "conv1", "norm2", "conv2")
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
STFT = {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "n_mel_channels": 64, "sampling_rate": 16_000}


def first_names(levels: int, blocks: int) -> dict[str, str]:
    """Modules of diffusers' AutoencoderKL → their names in AudioLDM's code."""
    names = {f"{half}.conv_in": f"{half}.conv_in" for half in ("encoder", "decoder")} | {"quant_conv": "quant_conv"}
    names |= {f"{half}.conv_out": f"{half}.conv_out" for half in ("encoder", "decoder")} | {"post_quant_conv": "post_quant_conv"}
    resnets = {}
    for half in ("encoder", "decoder"):
        names[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        resnets |= {f"{half}.mid_block.resnets.{at}": f"{half}.mid.block_{at + 1}" for at in (0, 1)}
        names |= {f"{half}.mid_block.attentions.0.{new}": f"{half}.mid.attn_1.{old}" for new, old in ATTENTION.items()}
    for level in range(levels):
        up = levels - 1 - level
        resnets |= {f"encoder.down_blocks.{level}.resnets.{at}": f"encoder.down.{level}.block.{at}" for at in range(blocks)}
        resnets |= {f"decoder.up_blocks.{level}.resnets.{at}": f"decoder.up.{up}.block.{at}" for at in range(blocks + 1)}
        names[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        names[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{up}.upsample.conv"
    names |= {f"{new}.{part}": f"{old}.{part}" for new, old in resnets.items() for part in RESNET}
    return names | {f"{new}.conv_shortcut": f"{old}.nin_shortcut" for new, old in resnets.items()}


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return net.eval()


@pytest.fixture
def tango(tmp_path, shared):
    """(params, directory, its three nets) of a small model."""
    document = params.compose(ROOT / "conf", ["model=tango", "scale=paper", "text=minilm"])
    section = document["tango"]
    section["train"]["network"] |= {"widths": [16, 32], "heads": [2, 4], "text_levels": [0], "blocks": 1, "groups": 8}
    section["autoencoder"]["network"] |= {"widths": [16, 16, 32], "blocks": 1, "groups": 8}
    section["latents"]["num_samples"] = 160 * 64
    document["vocoder"]["network"] |= {"channels": 64}
    unet = UNet2DConditionModel(
        in_channels=8,
        out_channels=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=384,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[16, 16, 32],
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
    )
    own = document["vocoder"]["network"]
    config = SpeechT5HifiGanConfig(
        model_in_dim=64,
        sampling_rate=16_000,
        upsample_initial_channel=64,
        upsample_rates=own["rates"],
        upsample_kernel_sizes=own["kernels"],
        resblock_kernel_sizes=own["resblock_kernels"],
        resblock_dilation_sizes=own["resblock_dilations"],
        normalize_before=False,
    )
    nets = [randomised(net) for net in (unet, vae, SpeechT5HifiGan(config))]
    write(tmp_path / "theirs", *nets)
    main = {"text_encoder_name": str(shared / "models/all-MiniLM-L6-v2"), "scheduler_name": "stabilityai/stable-diffusion-2-1"}
    for name, values in {
        "main": main,
        "vae": {"scale_factor": 0.9227914},
        "stft": STFT | {"mel_fmin": 0, "mel_fmax": 8000},
    }.items():
        (tmp_path / f"theirs/{name}_config.json").write_text(json.dumps(values))
    return document, tmp_path / "theirs", nets


def write(path: Path, unet, vae, vocoder) -> None:
    path.mkdir()
    main = {f"unet.{key}": value for key, value in unet.state_dict().items()} | {"text_encoder.shared.weight": torch.zeros(2, 2)}
    torch.save(main, path / "pytorch_model_main.bin")
    names, state = first_names(3, 1), {}
    for key, value in vae.state_dict().items():
        module, _, kind = key.rpartition(".")
        matrix = ".attentions." in module and value.ndim == 2
        state[f"{names[module]}.{kind}"] = value[..., None, None] if matrix else value
    for key, value in vocoder.state_dict().items():
        if key not in ("mean", "scale"):
            state[f"vocoder.{key.replace('upsampler.', 'ups.')}"] = value
    torch.save(state, path / "pytorch_model_vae.bin")


@torch.no_grad()
def check(model: Tango, unet, vae, vocoder) -> None:
    noise = torch.Generator().manual_seed(1)
    xt, states, t = torch.randn(2, 8, 16, 16, generator=noise), torch.randn(2, 5, 384, generator=noise), torch.tensor([3, 700])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    expected = unet(xt, t, encoder_hidden_states=states, encoder_attention_mask=mask).sample
    torch.testing.assert_close(model.net(xt, t, states, mask), expected, atol=1e-5, rtol=1e-5)
    picture = torch.randn(1, 1, 64, 64, generator=noise)
    torch.testing.assert_close(
        model.autoencoder.net.encode(picture).latent_dist.mean, vae.encode(picture).latent_dist.mean, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(model.autoencoder.net.decode(xt).sample, vae.decode(xt).sample, atol=1e-5, rtol=1e-5)
    log_mels = torch.randn(1, 64, 20, generator=noise)
    waves = vocoder(log_mels.transpose(1, 2))[:, : 20 * 160]
    torch.testing.assert_close(model.vocoder.synthesise(log_mels), waves, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bin", "safetensors", "pth"])
def test_the_nets_are_those_of_diffusers_and_transformers(tango, tmp_path, kind):
    document, path, nets = tango
    for file in path.glob("*.bin"):
        if kind == "safetensors":
            save_file({key: value.contiguous() for key, value in torch.load(file).items()}, file.with_suffix(".safetensors"))
            file.unlink()
        file.exists() and file.rename(file.with_suffix(f".{kind}"))
    model, facts, save = published.read(path, document, "theirs")
    check(model, *nets)
    assert (model.autoencoder.scaling_factor, model.frames, facts["imported"]["name"]) == (0.9227914, 64, "theirs")
    save(model, tmp_path / "ours", facts=facts)
    again = Tango.load(tmp_path / "ours")
    check(again, *nets)
    assert again.text == model.text
    assert again.text.pretrained


class Command:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: torch.save({"unet.x": Command()}, path / "pytorch_model_main.bin"), "main.bin: cannot be read as weights"),
        (lambda path: torch.save({}, path / "pytorch_model_vae.bin"), "vae.bin: not the weights of AutoencoderKL"),
        (lambda path: (path / "pytorch_model_vae.bin").unlink(), "has no pytorch_model_vae.safetensors or"),
        (lambda path: (path / "vae_config.json").write_text("{}"), "scale_factor must be a number above 0, found None"),
        (lambda path: (path / "stft_config.json").write_text('{"filter_length": 512}'), "filter_length is 512, which is not"),
        (
            lambda path: (path / "main_config.json").write_text('{"text_encoder_name": "a/b"}'),
            "text_encoder_name is 'a/b', must be",
        ),
    ],
)
def test_what_is_no_such_model_is_named(tango, capfd, harm, says):
    document, path, _ = tango
    harm(path)
    with pytest.raises(UserError, match=says):
        published.read(path, document, "theirs")
    assert "run" not in capfd.readouterr().out


def test_a_directory_is_read_by_the_family_that_knows_its_files(tango, tmp_path):
    """At the published sizes, which these weights do not have."""
    with pytest.raises(UserError, match=r"pytorch_model_main\.bin: not the weights of TextUNet"):
        importing.import_published(str(tango[1]), tmp_path / "new", lambda: ROOT / "conf")
    assert not (tmp_path / "new").exists()
