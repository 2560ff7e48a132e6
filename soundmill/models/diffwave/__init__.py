"""The family `diffwave`: diffusion on waves, from log-mels, by label, by caption or unconditional."""

from soundmill.models.diffwave.params import TrainParams
from soundmill.models.family import Family

FAMILY = Family(
    name="diffwave",
    title="diffusion on waves in six steps: a vocoder (wave to log-mels and back), by label, by caption, or unconditional",
    paper="Kong, Ping, Huang, Zhao & Catanzaro 2021, DiffWave: a versatile diffusion model for audio synthesis (arXiv:2009.09761)",
    train_params=TrainParams,
    model=f"{__name__}.model",
    part="net",
    fixed=("condition", "text_width", "network", "noise"),
)
