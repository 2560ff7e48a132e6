"""The family `diffusion_ae`: a diffusion autoencoder of waves, and a generative diffusion over its latents."""

from soundmill.models.diffusion_ae.params import TrainParams
from soundmill.models.family import Family

FAMILY = Family(
    name="diffusion_ae",
    title="diffusion over the latents of an autoencoder whose decoder is a diffusion of waves: by label, caption or unconditional",
    paper="Schneider, Kamal, Jin & Schölkopf 2023, Moûsai (arXiv:2301.11757); audio-diffusion-pytorch's DiffusionAE",
    train_params=TrainParams,
    model=f"{__name__}.model",
    weights="unet.safetensors",
    fixed=("condition", "text_width", "network", "path"),
)
