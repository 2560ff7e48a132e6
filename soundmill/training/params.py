"""Parameters of every training: hardware, optimiser, average of the weights, logging."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from soundmill.params import Probability, Seconds, Seed, StageParams

Precision = Literal["32", "bf16", "fp16"]
Use = Literal["last", "best"] | Annotated[int, Field(ge=1)]


class HardwareParams(StageParams):
    """What the training runs on; each of these may change the last bits of the weights, so they are parameters."""

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: int = Field(ge=1, description="more than one: data parallel, each takes its share of the batch")
    precision: Precision = Field(description="fp16 wants a GPU; bf16 is 32 on a CPU that has no instructions for it")
    threads: int = Field(ge=1, description="CPU threads of torch; weights are bit-equal for the same number")

    @model_validator(mode="after")
    def _precision_exists(self) -> HardwareParams:
        if self.accelerator == "cpu" and self.precision == "fp16":
            raise ValueError("precision fp16 is a GPU's; on a CPU take bf16 or 32")
        return self


class OptimiserParams(StageParams):
    """AdamW, its rate raised over `warmup_steps` and then held or lowered: to zero at the last step (`linear`, `cosine`),
    exponentially to 4.5 %, linearly to a tenth, or linearly to three quarters."""

    learning_rate: float = Field(gt=0)
    betas: list[Probability] = Field(min_length=2, max_length=2)
    eps: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_steps: int = Field(ge=0)
    decay: Literal["none", "linear", "cosine", "exponential", "tenth", "three_quarters"]
    clip_norm: float | None = Field(gt=0, description="largest gradient norm; null: unbounded")


class DiffusersEmaParams(StageParams):
    """As EMAModel of diffusers: copies the weights for `update_after_step` + 1 steps; n steps later it decays by
    max(min(decay, (1 + n) / (10 + n)), min_decay)."""

    kind: Literal["diffusers"]
    decay: Probability
    min_decay: Probability
    update_after_step: int = Field(ge=0)


class EmaPytorchParams(StageParams):
    """As EMA of ema-pytorch: goes on every `update_every` counts; copies the weights up to `update_after_step`, and n counts later
    decays by min(max(1 − (1 + n / inv_gamma)^−power, min_decay), decay)."""

    kind: Literal["ema_pytorch"]
    counts: Literal["steps", "batches"] = Field(
        "steps",  # as checkpoints did that do not say it
        description="calls of its `update`: after each step of the optimiser, or on each batch that a step adds up, before it",
    )
    decay: Probability = Field(description="its `beta`")
    min_decay: Probability = Field(description="its `min_value`")
    update_after_step: int = Field(ge=0)
    update_every: int = Field(ge=1)
    inv_gamma: float = Field(gt=0)
    power: float = Field(gt=0)


EmaParams = DiffusersEmaParams | EmaPytorchParams


class TrainingParams(StageParams):
    """Parameters of every training beside its length and hardware."""

    seed: Seed
    start_from: str | None = Field(min_length=1, description="directory of trained weights to start from; null: random ones")
    optimiser: OptimiserParams
    ema: EmaParams | None = Field(discriminator="kind", description="null: no average")
    log_every_steps: int = Field(ge=1)
    checkpoint_seconds: Seconds
    validate_every_steps: int | None = Field(ge=1, description="measure the held-out loss so often; null: only at the end")
    validate_batches: int = Field(ge=1, description="held-out batches each time; one costs a third of a trained one")
    # With defaults, since earlier checkpoints do not have these two keys.
    keep_every_steps: int | None = Field(
        None, ge=1, description="keep the averaged weights so often; null: the last and best alone"
    )
    keep: int = Field(1, ge=1, description="how many of these, the newest")
    use: Use = Field(description="last: the last weights; best: those of the lowest held-out loss; a number: of that step, if kept")
    samples_every_steps: int | None = Field(ge=1, description="samples for tracking so often; null: only at the end")
