"""The family `rave`: a real-time codec of multiband waves, and a generative diffusion over its latents."""

from pydantic import Field

from soundmill.models.components.unet1d.prior import PriorSamplingParams, PriorTrainParams
from soundmill.models.family import Family
from soundmill.models.params import FamilyGenerateParams
from soundmill.params import Seed


class SamplingParams(PriorSamplingParams):
    seed: Seed = Field(description="seed of the components left out by fidelity, and of the decoder's noise")
    latent: list[str] = Field(description="latent edits for the report's transfers: DIM=VALUE, DIM=+VALUE or DIM=*VALUE")


class TrainParams(PriorTrainParams):
    sampling: SamplingParams = Field(description="how the grid, and the commands that make sound, sample the checkpoint")


class GenerateParams(FamilyGenerateParams):
    transfer_count: int = Field(
        ge=0, description="number of clips excluded by `catalog.only` to transfer to the codec's timbre for the report"
    )

    @property
    def transfers(self) -> int:
        return self.transfer_count


FAMILY = Family(
    name="rave",
    title="a codec of multiband waves that plays in real time, and diffusion over its latents: by label, caption or unconditional",
    paper="Caillon & Esling 2021, RAVE (arXiv:2111.05011), and its second version",
    train_params=TrainParams,
    commands=("generate", "reconstruct"),
    generate_params=GenerateParams,
    weights="unet.safetensors",
    fixed=("condition", "text_width", "network", "path"),
)
