"""Adapters in a net: what trains, what is stored, and that peft and diffusers read it."""

import json

import pytest
import torch
from diffusers import StableAudioDiTModel
from peft import PeftModel
from torch import nn

from soundmill.errors import UserError
from soundmill.models import adapted
from soundmill.models.tango import UNetParams
from soundmill.models.tango.model import TextUNet
from soundmill.training import adapters, checkpoint
from soundmill.training.params import LoraParams

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
SIZES = {"widths": [16, 32], "heads": [2, 4], "text_levels": [1], "blocks": 1, "groups": 8, "text_width": 12}
LORA = LoraParams(rank=3, alpha=6.0, dropout=0.0, targets=sorted(ATTENTION), dora=False)
DORA = LORA.model_copy(update={"dora": True})


def unet() -> TextUNet:
    torch.manual_seed(0)
    return TextUNet(UNetParams(**SIZES, gradient_checkpointing=False), 8).eval()


def inputs() -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    xt, states = torch.randn(2, 8, 16, 8, generator=rng), torch.randn(2, 5, 12, generator=rng)
    return xt, torch.tensor([3, 700]), states, torch.ones(2, 5, dtype=torch.bool)


def answer(net: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return net(*inputs())


def changed(net: nn.Module, params: LoraParams, seed: int = 2, name: str = adapters.ONE) -> nn.Module:
    """The net with adapters, each moved at random as a training would."""
    torch.manual_seed(seed)
    adapters.attach(net, params, name)
    with torch.no_grad():
        for key, weight in adapters.trained(net).items():
            if f".{name}." in key:
                weight.add_(0.3 * torch.randn_like(weight))
    return net


@pytest.mark.parametrize("params", [LORA, DORA], ids=["lora", "dora"])
def test_new_adapters_change_nothing_and_are_all_that_trains(params):
    net, before = unet(), answer(unet())
    before_names = set(net.state_dict())
    adapters.attach(net, params)
    torch.testing.assert_close(answer(net), before, atol=1e-5, rtol=1e-5)
    trained = adapters.trained(net)
    assert {name for name, weight in net.named_parameters() if weight.requires_grad} == set(trained)
    # Four blocks have two attentions each, over 32 values and over 12 of the text; DoRA also trains a length for each output.
    inputs_and_outputs = 8 * 64 - 2 * (32 - 12)
    assert sum(weight.numel() for weight in trained.values()) == 4 * (3 * inputs_and_outputs + params.dora * 8 * 32)
    assert adapters.weights_of(net).keys().isdisjoint(before_names)
    net.train()(*inputs()).square().mean().backward()
    moved = {name for name, weight in net.named_parameters() if weight.grad is not None}
    assert moved == set(trained)


@pytest.mark.parametrize("params", [LORA, DORA], ids=["lora", "dora"])
def test_peft_and_diffusers_load_what_is_saved_and_a_merged_net_answers_alike(tmp_path, params):
    net = changed(unet(), params)
    expected = answer(net)
    assert not torch.allclose(expected, answer(unet()), atol=1e-2)
    adapted.write(net, tmp_path, params, "../base", "0" * 64)

    xt, t, states, mask = inputs()
    by_peft = PeftModel.from_pretrained(unet().unet, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(by_peft(xt, t, states, encoder_attention_mask=mask).sample, expected, atol=1e-5, rtol=1e-5)

    by_diffusers = unet().unet
    by_diffusers.load_lora_adapter(tmp_path, prefix=adapters.PREFIX[:-1], weight_name=adapted.WEIGHTS)
    with torch.no_grad():
        torch.testing.assert_close(by_diffusers(xt, t, states, encoder_attention_mask=mask).sample, expected, atol=1e-5, rtol=1e-5)

    ours = unet()
    adapted.load(ours, tmp_path, adapted.read(tmp_path), adapters.ONE)
    assert torch.equal(answer(ours), expected)
    adapters.merge(net)  # then it is a whole one
    assert not adapters.are_in(net)
    assert list(net.state_dict()) == list(unet().state_dict())
    torch.testing.assert_close(answer(net), expected, atol=1e-5, rtol=1e-5)


def test_several_adapters_add_up_by_their_shares():
    """Against the weights themselves: W + 0.7 · 2 · B A + 0.3 · 2 · B' A'."""
    net = unet()
    changed(net, LORA, 2, "a0")
    changed(net, LORA, 3, "a1")
    adapters.scale(net, "a0", 0.7)
    adapters.scale(net, "a1", 0.3)
    by_hand, tensors = unet(), net.state_dict()
    weights = by_hand.state_dict()
    for key in [key for key in tensors if key.endswith(".base_layer.weight")]:
        layer = key.removesuffix(".base_layer.weight")
        for name, share in (("a0", 0.7), ("a1", 0.3)):
            product = tensors[f"{layer}.lora_B.{name}.weight"] @ tensors[f"{layer}.lora_A.{name}.weight"]
            weights[f"{layer}.weight"] += share * (LORA.alpha / LORA.rank) * product
    by_hand.load_state_dict(weights)
    torch.testing.assert_close(answer(net), answer(by_hand), atol=1e-5, rtol=1e-5)


def test_stable_audio_s_transformer_takes_the_same_adapters(tmp_path):
    sizes = {"sample_size": 8, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    sizes |= {"num_key_value_attention_heads": 1, "out_channels": 4, "cross_attention_dim": 6, "time_proj_dim": 8}
    sizes |= {"global_states_input_dim": 12, "cross_attention_input_dim": 6}

    def dit() -> StableAudioDiTModel:
        torch.manual_seed(0)
        return StableAudioDiTModel(**sizes).eval()

    def listen(net: nn.Module) -> torch.Tensor:
        rng = torch.Generator().manual_seed(1)
        x, states = torch.randn(1, 4, 8, generator=rng), torch.randn(1, 3, 6, generator=rng)
        with torch.no_grad():
            return net(x, torch.tensor([0.5]), states, torch.ones(1, 1, 12)).sample

    for params in (LORA, DORA):
        directory = tmp_path / str(params.dora)
        directory.mkdir()
        net = changed(dit(), params)
        adapted.write(net, directory, params, "../base", "0" * 64)
        expected = listen(net)
        assert not torch.allclose(expected, listen(dit()), atol=1e-3)
        torch.testing.assert_close(listen(PeftModel.from_pretrained(dit(), directory).eval()), expected, atol=1e-5, rtol=1e-5)


def test_convolutions_are_adapted_too():
    net, x = nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.GroupNorm(1, 6)), torch.randn(2, 2, 9)
    plain = net(x).detach()
    changed(net, LORA.model_copy(update={"targets": ["0"]}))
    assert not torch.allclose(net(x), plain, atol=1e-2)


def test_a_norm_has_no_adapter():
    message = r"lora\.targets: 'norm1' names .*norm1, a (Group|Layer)Norm; name linear layers or convolutions"
    with pytest.raises(UserError, match=message):
        adapters.attach(unet(), LORA.model_copy(update={"targets": ["norm1"]}))


def test_files_with_other_layers_shapes_or_settings_are_refused(tmp_path):
    net = changed(unet(), LORA)
    adapted.write(net, tmp_path, LORA, "../base", "0" * 64)
    found = adapted.read(tmp_path)
    assert (found.params, found.base, found.digest) == (LORA, "../base", "0" * 64)
    config = json.loads((tmp_path / adapted.CONFIG).read_text())
    tensors = checkpoint.read_weights(tmp_path / adapted.WEIGHTS)

    first = next(iter(tensors))
    checkpoint.write_weights({**tensors, first: tensors[first][:1]}, tmp_path / adapted.WEIGHTS)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: .*is \[1, 32\] there and \[3, 32\] in"):
        adapted.load(unet(), tmp_path, found, adapters.ONE)
    checkpoint.write_weights({key: value for key, value in tensors.items() if key != first}, tmp_path / adapted.WEIGHTS)
    with pytest.raises(UserError, match=r"is absent there"):
        adapted.load(unet(), tmp_path, found, adapters.ONE)
    (tmp_path / adapted.WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: weights cannot be read"):
        adapted.load(unet(), tmp_path, found, adapters.ONE)

    def refused(message: str, **changes: object) -> None:
        (tmp_path / adapted.CONFIG).write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=message):
            adapted.read(tmp_path)

    refused("use_rslora is True, which is not supported", use_rslora=True)
    refused("rank_pattern is .*which is not supported", rank_pattern={"to_q": 4})
    refused("not the configuration of LoRA adapters", peft_type="LOHA")
    refused(r"targets: Input should be a valid list", target_modules=".*to_q")
    refused(r"rank: Input should be greater than or equal to 1", r=0)
    (tmp_path / adapted.CONFIG).unlink()
    with pytest.raises(UserError, match=r"no adapters here \(adapter_config\.json is missing\)"):
        adapted.read(tmp_path)
