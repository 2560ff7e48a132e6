"""The family `rave`: a real-time codec of multiband waves, and a generative diffusion over its latents."""

from soundmill.models.family import Family
from soundmill.models.rave.params import GenerateParams, TrainParams

FAMILY = Family(
    name="rave",
    title="a codec of multiband waves that plays in real time, and diffusion over its latents: by label, caption or unconditional",
    paper="Caillon & Esling 2021, RAVE (arXiv:2111.05011), and its second version",
    train_params=TrainParams,
    generate_params=GenerateParams,
    model=f"{__name__}.model",
    weights="unet.safetensors",
    fixed=("condition", "text_width", "network", "path"),
)
