"""The family `upsampler`: v-diffusion of the band missing at a lower sample rate."""

from soundmill.models.family import Family
from soundmill.models.upsampler.params import TrainParams

FAMILY = Family(
    name="upsampler",
    title="v-diffusion of the upper band: recordings of a low rate at a multiple of it (down and up again)",
    paper="Schneider, Kamal, Jin & Schölkopf 2023, Moûsai (arXiv:2301.11757); audio-diffusion-pytorch's DiffusionUpsampler",
    train_params=TrainParams,
    model=f"{__name__}.model",
    weights="unet.safetensors",
    fixed=("factor", "network"),
)
