"""The family `audio_dit`: a transformer over a codec's latents, by caption, label and length."""

from soundmill.models.audio_dit.params import TrainParams
from soundmill.models.family import Family

FAMILY = Family(
    name="audio_dit",
    title="text, label and length to sound: a diffusion transformer over a codec's latents, by rectified flow or v-diffusion",
    paper="Evans, Parker, Carr, Zukowski, Taylor & Pons 2024, Stable Audio Open (arXiv:2407.14358)",
    train_params=TrainParams,
    model=f"{__name__}.model",
    published=f"{__name__}.published",
    weights="transformer.safetensors",
    part="transformer",
    adapted=True,
    longer=True,
    fixed=("network", "condition", "flow.objective"),
)
