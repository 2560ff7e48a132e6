"""The family `tango`: text to audio, by diffusion over latents of log-mels."""

from soundmill.models.family import Family
from soundmill.models.tango.params import TrainParams

FAMILY = Family(
    name="tango",
    title="text to sound: diffusion over latents of log-mels, conditioned on a frozen text encoder's states",
    paper=(
        "Ghosal, Majumder, Mehrish & Poria 2023, Text-to-audio generation using instruction-tuned LLM and latent diffusion model "
        "(arXiv:2304.13731)"
    ),
    train_params=TrainParams,
    model=f"{__name__}.model",
    published=f"{__name__}.published",
    weights="unet.safetensors",
    codec="vae",
    adapted=True,
    fixed=("network", "diffusion.objective", "diffusion.num_timesteps"),
)
