"""A model in the layout of diffusers' AudioLDMPipeline is imported: random weights; its sounds are the pipeline's."""

import shutil
from copy import deepcopy

import pytest
import torch

from soundmill import params
from soundmill.errors import UserError
from soundmill.models import importing
from soundmill.models.components import registry
from soundmill.models.components.hifigan import NetworkParams
from soundmill.models.components.hifigan.vocoder import build_vocoder
from soundmill.models.components.mel_autoencoder.autoencoder import build_autoencoder
from soundmill.models.components.text_states.states import pad
from soundmill.models.family import Request, Run
from soundmill.models.tango import published
from soundmill.models.tango.model import Tango
from tests.imports import ROOT
from tests.models.test_published import tokenizer
from tests.prepared import edit


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
    sounds, xt, t, outputs = model.generate(requests, run), torch.randn(1, *model.latent_shape), torch.tensor([700]), []
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
def test_what_is_not_supported_is_named(audioldm, tmp_path, file, changes, says):
    document, path = deepcopy(audioldm[0]), tmp_path / "other"
    shutil.copytree(audioldm[1], path)
    if changes:
        edit(path / file, **changes)
    else:
        (path / file).rename((path / file).with_suffix(".bin"))
    with pytest.raises(UserError, match=says):
        published.read(path, document, "theirs")


def test_its_directory_is_read_by_this_family(audioldm, tmp_path):
    """At the published sizes, which these weights do not have."""
    with pytest.raises(UserError, match=r"theirs/vae/config\.json: block_out_channels is \[16, 16, 32\]"):
        importing.import_published(str(audioldm[1]), tmp_path / "new", lambda: ROOT / "conf")
