"""The family `projected_gan`: one-bar loops by a GAN on mel pictures, with discriminators on frozen features."""

from soundmill.models.family import Family
from soundmill.models.projected_gan.params import TrainParams

FAMILY = Family(
    name="projected_gan",
    title="one-bar loops: a StyleGAN2 on mel pictures, its discriminators on frozen features; unconditional or by label",
    paper="Sauer, Chitta, Müller & Geiger 2021, Projected GANs converge faster (arXiv:2111.01007), on loops as pjloop-gan",
    train_params=TrainParams,
    model=f"{__name__}.model",
    part="generator",
    fixed=("conditional", "fit", "generator"),
    tagger=True,
    loops=True,
)
