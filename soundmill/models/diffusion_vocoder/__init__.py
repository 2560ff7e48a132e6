"""The family `diffusion_vocoder`: v-diffusion from log-mels to waves."""

from soundmill.models.diffusion_vocoder.params import TrainParams
from soundmill.models.family import Family

FAMILY = Family(
    name="diffusion_vocoder",
    title="v-diffusion from log-mels to waves: a vocoder (wave to log-mels and back)",
    paper="Schneider, Kamal, Jin & Schölkopf 2023, Moûsai (arXiv:2301.11757); audio-diffusion-pytorch's DiffusionVocoder",
    train_params=TrainParams,
    model=f"{__name__}.model",
    part="net",
    fixed=("mel", "network"),
)
