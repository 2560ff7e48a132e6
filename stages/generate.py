"""Generate sounds for test clips with a trained family, and reconstruct real clips with its codec."""

from typing import Any

from soundmill import stage
from soundmill.models import generation, registry
from soundmill.models.registry import code_by_name
from soundmill.params import StageParams
from soundmill.stage import Context, Input, Output


def run(
    params: StageParams, ctx: Context, model: Input, clips: Input, catalog: Input, generated: Output, codec: Output
) -> dict[str, Any]:
    """Load `--family` from its checkpoint; writes `<clip_id>.wav` generated for test clips, and reconstructions."""
    return generation.run(params, ctx, model, clips, catalog, generated, codec)


def main(argv: list[str] | None = None) -> None:
    stage.main(run, "generate", argv, lambda family, _: registry.family(family).generate_params, code_by_name)


if __name__ == "__main__":
    main()
