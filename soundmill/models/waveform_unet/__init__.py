"""The family `waveform_unet`: v-diffusion on waves by a 1-D U-Net, unconditional, by label or by caption."""

from soundmill.models.family import Family
from soundmill.models.waveform_unet.params import TrainParams

FAMILY = Family(
    name="waveform_unet",
    title="diffusion or rectified flow on short stereo waves: by label, caption or unconditional; restyles and inpaints recordings",
    paper="Schneider, Kamal, Jin & Schölkopf 2023, Moûsai (arXiv:2301.11757), at the size of tiny-audio-diffusion",
    train_params=TrainParams,
    model=f"{__name__}.model",
    weights="unet.safetensors",
    published=f"{__name__}.published",
    fixed=("condition", "transform", "network", "text", "path"),
)
