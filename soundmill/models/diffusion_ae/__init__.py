"""The family `diffusion_ae`: a diffusion autoencoder of waves, and a generative diffusion over its latents."""

from pydantic import Field

from soundmill.models.components.unet1d.params import SamplingParams as DecodingParams
from soundmill.models.components.unet1d.prior import PriorSamplingParams, PriorTrainParams
from soundmill.models.family import Family


class SamplingParams(PriorSamplingParams):
    decoding: DecodingParams = Field(description="from latents to sound")


class TrainParams(PriorTrainParams):
    sampling: SamplingParams = Field(description="how the grid, and the commands that make sound, sample the checkpoint")


FAMILY = Family(
    name="diffusion_ae",
    title="diffusion over the latents of an autoencoder whose decoder is a diffusion of waves: by label, caption or unconditional",
    paper="Schneider, Kamal, Jin & Schölkopf 2023, Moûsai (arXiv:2301.11757); audio-diffusion-pytorch's DiffusionAE",
    train_params=TrainParams,
    commands=("generate", "reconstruct"),
    weights="unet.safetensors",
    fixed=("condition", "text_width", "network", "path"),
)
