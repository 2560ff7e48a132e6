"""Train the vocoder of a family that generates log-mels on the corpus's training clips, or load it."""

from typing import Any

from soundmill import stage
from soundmill.models.components.making import publish
from soundmill.models.components.registry import kind_of
from soundmill.params import StageParams
from soundmill.stage import Context, Input, Output, Shown
from soundmill.training import launcher


def run(
    params: StageParams, ctx: Context, clips: Input, mels: Input, catalog: Input, vocoder: Output, curves: Output, grid: Shown
) -> dict[str, Any]:
    """Write the vocoder, its curve (empty if it was loaded) and a picture of clips beside its output."""
    trained = kind_of("vocoder", params.kind).module.make(params, ctx, clips, mels, catalog)
    return publish(trained, params, ctx, catalog, vocoder, curves, grid)


def code_by_name(family: str | None, section: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    return [kind_of("vocoder", section).package]


def main(argv: list[str] | None = None) -> None:
    stage.main(run, "vocoder", argv, lambda _, section: kind_of("vocoder", section).params, code_by_name, launcher=launcher)


if __name__ == "__main__":
    main()
