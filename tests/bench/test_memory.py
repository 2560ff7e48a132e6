"""What a training needs of a card: counted and measured on nets whose need is known."""

import pytest
import torch
from torch import nn

from bench import lora_memory, measure, memory
from soundmill import params
from soundmill.training.params import LoraParams
from tests.bench.test_measurements import bench
from tests.bench.test_waveform import SMALL


def test_multiply_adds_of_a_training_step_are_counted() -> None:
    """The upsampler's 1-D U-Net, twice as long: twice as many, and three times those of a forward pass."""
    choice = ["model=upsampler", "upsampler.train.batch_size=1", "upsampler.train.num_samples={}"]
    short, long = (memory.macs_of("upsampler", "train", [*choice[:2], choice[2].format(size)]) for size in (4096, 8192))
    assert long == pytest.approx(2 * short, rel=0.02)


@pytest.mark.parametrize(
    ("family", "small"),
    [
        (
            "rave",
            ["network.channels=8", "network.latent_channels=8", "weights.discriminators.channels=4", "weights.num_samples=16384"],
        ),
        ("diffusion_ae", ["encoder.channels=16", "encoder.blocks=1", "network.channels=[4,4,4,4,8,8,8,8,8]", "network.groups=2"]),
    ],
)
def test_the_autoencoders_of_a_card_take_all_their_kinds_of_steps_in_bfloat16(family, small) -> None:
    choice = [f"model={family}", "scale=gpu", f"{family}.autoencoder.weights.batch_size=1"]
    choice += [f"{family}.autoencoder.{one}" for one in small]
    if family == "diffusion_ae":
        choice += ["diffusion_ae.autoencoder.weights.num_samples=16384", "diffusion_ae.autoencoder.encoder.groups=2"]
    assert params.compose(measure.ROOT / "conf", choice)[family]["autoencoder"]["hardware"]["precision"] == "bf16"
    assert memory.macs_of(family, "autoencoder", choice) > 0


def test_every_training_of_a_family_is_named_with_its_share_of_a_day() -> None:
    def shares(*overrides: str) -> dict[str, float]:
        document = params.compose(measure.ROOT / "conf", list(overrides))
        return memory.trainings(overrides[0].removeprefix("model="), document)

    assert shares("model=rave", "scale=gpu") == pytest.approx({"autoencoder": 0.7, "train": 0.3})
    assert shares("model=tango", "scale=gpu") == {"train": 1.0}  # what is loaded is not trained
    assert shares("model=upsampler", "scale=gpu") == {"train": 1.0}


def test_the_measurement(root, tmp_path) -> None:
    document = bench(root, tmp_path, "memory", "waveform_unet", *SMALL, "waveform_unet.train.hardware.precision='32'")
    need = document["needs"]["waveform_unet.train"]
    assert 0 < need["item_bytes"] < 1e9
    assert need["item_macs"] > 0


def test_what_the_backward_pass_needs_is_counted_once() -> None:
    """A linear layer keeps its input, a GELU its own: 4 · 8 and twice 4 · 16 values in float32."""
    with torch.device("meta"):
        net, x = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2)), torch.empty(4, 8)
    assert lora_memory.kept(net, lambda: net(x)) == 4 * (4 * 8 + 4 * 16 + 4 * 16)


def test_adapters_of_the_open_model_fit_a_card_of_eight_gigabytes() -> None:
    needs = lora_memory.count(LoraParams(rank=16, alpha=16.0, dropout=0.0, targets=lora_memory.TARGETS, dora=False))
    assert needs["base, bfloat16"] == pytest.approx(2 * 1.057e9, rel=0.01)
    # 24 blocks, two attentions of 1,536 values; keys and values have half as many heads in the second, of 768 of text.
    queries_and_outputs, keys_and_values = 4 * (1536 + 1536), 2 * (1536 + 1536) + 2 * (768 + 768)
    assert needs["adapters, float32"] == 4 * 16 * 24 * (queries_and_outputs + keys_and_values)
    assert needs["AdamW's two moments"] == 2 * needs["adapters, float32"]
    assert needs["total"] < 0.5 * lora_memory.CARD
    assert needs["activations without checkpointing"] > 5 * sum(size for name, size in needs.items() if "checkpointed:" in name)
