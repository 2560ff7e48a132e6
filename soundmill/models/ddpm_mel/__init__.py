"""The family `ddpm_mel`: diffusion of mel-spectrogram pictures, unconditional, by label or by caption."""

from soundmill.models.ddpm_mel.params import TrainParams
from soundmill.models.family import Family

FAMILY = Family(
    name="ddpm_mel",
    title="diffusion on pictures of mel spectrograms, unconditional, by label or by caption; phases by Griffin-Lim",
    paper="Ho, Jain & Abbeel 2020, Denoising diffusion probabilistic models (arXiv:2006.11239)",
    train_params=TrainParams,
    model=f"{__name__}.model",
    fixed=("conditional", "text_width", "network", "picture", "diffusion.objective", "diffusion.num_timesteps"),
)
