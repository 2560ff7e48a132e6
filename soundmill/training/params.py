"""Parameters of every training: hardware, optimiser, weight average, logging."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from soundmill.params import Probability, Seconds, Seed, StageParams

# An override's 32 is a number.
Precision = Annotated[Literal["32", "bf16", "fp16"], BeforeValidator(lambda value: "32" if value == 32 else value)]
Interval = Literal["epoch"] | Annotated[int, Field(ge=1)]  # steps, or those of a pass over the training clips
Use = Literal["last", "best", "best_fad"] | Annotated[int, Field(ge=1)]


def check_precision(params: Any) -> None:
    if params.accelerator == "cpu" and params.precision == "fp16":
        raise ValueError("precision fp16 needs a GPU; on a CPU use bf16 or 32")


class HardwareParams(StageParams):
    """The hardware; each setting may change the last bits of the weights, so all of them are parameters.

    Machines come and go during a training, so their number and connection are no part of its identity: `model_dump` leaves them
    out, and a killed training resumes with others.
    """

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: int = Field(ge=1, description="of each machine; more than one: data parallel, the batch is split among them")
    precision: Precision = Field(description="fp16 needs a GPU; bf16 falls back to 32 on a CPU without bf16 instructions")
    threads: int = Field(ge=1, description="CPU threads of torch; the same number gives bit-identical weights")
    # The defaults are for checkpoints, which lack these keys.
    nodes: int = Field(1, ge=1, exclude=True, description="machines at most; the batch is split among all their devices")
    min_nodes: int = Field(1, ge=1, exclude=True, description="with fewer machines, the training waits")
    listen: str = Field(
        "127.0.0.1",
        pattern=r"^\d+\.\d+\.\d+\.\d+$",
        exclude=True,
        description="address of the machine whose stage trains, where the others join; 0.0.0.0: all that it has",
    )
    port: int = Field(29400, ge=1024, le=65535, exclude=True, description="at that address")
    copy_gb: float = Field(0.0, ge=0, exclude=True, description="features up to this size are copied to each machine first")

    @property
    def several(self) -> bool:
        """Whether a training takes more than one process."""
        return self.devices * self.nodes > 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_precision(self)
        if self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes {self.min_nodes} is more than nodes {self.nodes}")
        return self


class OptimiserParams(StageParams):
    """AdamW. The learning rate rises over `warmup_steps`, then stays (`none`) or decays by the last step: to zero
    (`linear`, `cosine`), exponentially to 4.5 % (`exponential`), linearly to a tenth (`tenth`) or to three quarters
    (`three_quarters`)."""

    learning_rate: float = Field(gt=0)
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(min_length=2, max_length=2)
    eps: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_steps: int = Field(ge=0, le=100_000_000)
    decay: Literal["none", "linear", "cosine", "exponential", "tenth", "three_quarters"]
    clip_norm: float | None = Field(gt=0, description="largest gradient norm; null: unbounded")


class DiffusersEmaParams(StageParams):
    """EMAModel of diffusers: copies the weights for `update_after_step` + 1 steps; n steps later its decay is
    max(min(decay, (1 + n) / (10 + n)), min_decay)."""

    kind: Literal["diffusers"]
    decay: Probability
    min_decay: Probability
    update_after_step: int = Field(ge=0)


class EmaPytorchParams(StageParams):
    """EMA of ema-pytorch: updates every `update_every` counts; copies the weights up to `update_after_step`, and n counts later
    its decay is min(max(1 − (1 + n / inv_gamma)^−power, min_decay), decay)."""

    kind: Literal["ema_pytorch"]
    counts: Literal["steps", "batches"] = Field(
        "steps",  # for checkpoints that lack this key
        description="when `update` is called: once after each optimiser step, or once for each batch of the step, before it",
    )
    decay: Probability = Field(description="`beta` of ema-pytorch")
    min_decay: Probability = Field(description="`min_value` of ema-pytorch")
    update_after_step: int = Field(ge=0)
    update_every: int = Field(ge=1)
    inv_gamma: float = Field(gt=0)
    power: float = Field(gt=0)


EmaParams = DiffusersEmaParams | EmaPytorchParams


class LoraParams(StageParams):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): a layer computes with W + alpha / rank · B A, where W is frozen."""

    rank: int = Field(ge=1, description="of B A; each layer gets rank · (inputs + outputs) weights")
    alpha: float = Field(gt=0, description="strength: B A is multiplied by alpha / rank")
    dropout: Probability = Field(description="share of the inputs of A that are dropped in training")
    targets: list[str] = Field(min_length=1, description="names of layers, or the ends of their names after a point")
    dora: bool = Field(description="also train the length of each column of weights (Liu et al. 2024, arXiv:2402.09353)")


def kept_steps(every: int, keep: int, step: int, steps: int) -> list[int]:
    """The steps, in order, whose weights are kept after step `step` of `steps`: each `every`-th but the last, the newest `keep`."""
    newest = min(step, steps - 1) // every
    return [every * number for number in range(max(1, newest - keep + 1), newest + 1)]


class TrainingParams(StageParams):
    """Parameters of every training except its length and hardware."""

    seed: Seed
    start_from: str | None = Field(min_length=1, description="directory of trained weights to start from; null: random weights")
    optimiser: OptimiserParams
    ema: EmaParams | None = Field(discriminator="kind", description="null: no average")
    log_every_steps: int = Field(ge=1)
    checkpoint_seconds: Seconds
    validate_every_steps: int | None = Field(ge=1, description="steps between held-out losses; null: only at the end")
    validate_batches: int = Field(ge=1, description="held-out batches each time; one costs a third of a training batch")
    # The defaults are for earlier checkpoints, which lack these two keys.
    keep_every_steps: Interval | None = Field(
        None, description="steps between averaged weights to keep; null: only the last and the best"
    )
    keep: int = Field(1, ge=1, description="how many of these to keep, the newest")
    use: Use = Field(
        description="last: the last weights; best: the lowest held-out loss; best_fad: the lowest FAD (families with "
        "score_every_steps); a number: that step, if its weights are kept"
    )
    samples_every_steps: Interval | None = Field(description="steps between samples for tracking; null: only at the end")

    def check_use(self, use: Use, steps: int | None, every: Interval | None) -> None:
        """ValueError if a training of `steps` (null: epochs say) that keeps the weights of `every` so many lacks those of `use`."""
        if use == "best_fad" and getattr(self, "score_every_steps", None) is None:
            raise ValueError(
                "`use` is `best_fad`, but nothing is scored while it trains; set score_every_steps, which only families have, or "
                "set `use` to `best`"
            )
        if isinstance(use, int) and getattr(self, "patience", None):
            raise ValueError("with patience the training may end before a step that `use` names; set use to `best` or `last`")
        if not isinstance(use, int) or not steps or every == "epoch":
            return
        kept = [*(kept_steps(every, self.keep, steps, steps) if every else ()), steps]
        if use not in kept:
            raise ValueError(
                f"`use` is step {use}, whose weights are not kept (those of {', '.join(map(str, kept))} are); change "
                "keep_every_steps and keep to keep them"
            )

    @model_validator(mode="after")
    def _used_weights_are_kept(self) -> Self:
        self.check_use(self.use, getattr(self, "steps", None), self.keep_every_steps)
        return self
