"""What a training needs of a card: counted and measured on nets whose need is known."""

import pytest

from bench import measure, memory
from soundmill import params
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
