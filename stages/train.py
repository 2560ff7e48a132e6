"""Train one model family on the training split, with the code of the family's package."""

from typing import Any

from soundmill import stage
from soundmill.models import registry, training
from soundmill.models.registry import code_by_name
from soundmill.params import StageParams
from soundmill.stage import Context, Input, Output, Shown
from soundmill.training import launcher


def run(
    params: StageParams,
    ctx: Context,
    inputs: Input,
    parts: Input,
    tagger: Input,
    clips: Input,
    catalog: Input,
    model: Output,
    curves: Output,
    grid: Shown,
) -> dict[str, Any]:
    """Train `--family` on the training split; writes the checkpoint, its curve (CSV) and samples (PNG)."""
    material = training.Material(inputs, parts, tagger, clips, catalog)
    return training.run(params, ctx, material, model, curves, grid)


def main(argv: list[str] | None = None) -> None:
    stage.main(run, "train", argv, lambda family, _: registry.family(family).train_params, code_by_name, launcher=launcher)


if __name__ == "__main__":
    main()
