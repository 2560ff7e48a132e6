"""Parameters common to trained codecs of latents."""

from typing import Literal, Self

from pydantic import Field, model_validator

from soundmill.training.params import TrainingParams


class CodecTrainingParams(TrainingParams):
    """Train the codec on the training clips, or take one that was trained."""

    kind: Literal["train"]
    batch_size: int = Field(ge=1, le=65_536)
    steps: int = Field(ge=0, le=100_000_000, description="0: take the weights of `start_from` as they are")

    @model_validator(mode="after")
    def _taken_from_somewhere(self) -> Self:
        if not self.steps and not self.start_from:
            raise ValueError("steps: 0 steps take the weights of start_from, which is null")
        return self
