"""Bring the project up to date: `python -m flows.run`. Prefect starts only if `dvc status` finds something to do."""

import argparse
import re
import sys
from pathlib import Path

from flows import dvc, locks, remote
from flows.scores import closing_lines, read_scores
from flows.terminal import tell
from soundmill import ledger
from soundmill.errors import UserError, fault_of_disk, show_what_the_terminal_can
from soundmill.params import check_urls, read_yaml


def up_to_date(root: Path, stages: list[str]) -> bool:
    """Whether `dvc status` finds nothing to do for `stages` (none: all); not if it fails, or forgotten.yaml is out of date."""
    if not (root / "dvc.lock").exists() or dvc.fault_of_lock(root / "dvc.lock"):
        return False
    try:
        return not ledger.missing(root) and not dvc.changed(root, stages)
    except UserError:
        return False


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None, wait_minutes: float) -> argparse.Namespace:
    """The arguments of a command that runs the pipeline, now or on a schedule; `wait_minutes` is its default."""
    parser.add_argument("--retries", type=int, default=1, choices=range(4), help="for stages that were killed or found DVC locked")
    parser.add_argument("--wait-minutes", type=float, default=wait_minutes, help="how long to wait for another `dvc repro`")
    parser.add_argument("--push", action="store_true", help="copy the results to DVC's default remote")
    args = parser.parse_args(argv)
    if not 0 <= args.wait_minutes <= locks.MOST_MINUTES:
        parser.error(f"--wait-minutes {args.wait_minutes:g}: give 0 to {locks.MOST_MINUTES}")
    return args


def main(argv: list[str] | None = None) -> int:
    show_what_the_terminal_can()
    parser = argparse.ArgumentParser(
        prog="python -m flows.run", description="Run all stages that are out of date, recorded in MLflow and shown in Prefect."
    )
    parser.add_argument("stages", nargs="*", help="stages to run, with their dependencies (default: all)")
    parser.add_argument("--force", action="store_true", help="run stages even if nothing changed")
    args = parsed(parser, argv, wait_minutes=0)
    root = Path.cwd()
    try:
        dvc.check_here(root)
        check_urls(document := read_yaml(root / "params.yaml"), "params")  # before Prefect starts, which takes seconds
        if wrong := next((name for name in args.stages if not re.match(dvc.STAGE_NAME, name)), None):
            raise UserError(f"{wrong}: stages are names such as train@audio_dit; to change settings, `soundmill params KEY=VALUE`")
        nothing_to_do = not args.force and not (args.push and not remote.is_pushed(root)) and up_to_date(root, args.stages)
        if nothing_to_do:  # otherwise the pipeline checks
            dvc.check_changes(root, tell)
        else:
            dvc.check_sections(root, document)  # also before Prefect starts
    except (UserError, OSError) as error:
        tell(f"pipeline: {fault_of_disk(error, root) if isinstance(error, OSError) else error}")
        return 1
    if nothing_to_do:
        tell("Nothing has changed since the last run.")
        for line in closing_lines(root, {} if args.stages else read_scores(root)):
            tell(line)
        return 0
    from flows import pipeline

    chosen = (args.stages, args.force, args.retries, args.wait_minutes, args.push)
    return pipeline.run_to_end("pipeline", "stages", lambda: pipeline.pipeline(*chosen, return_state=True))


if __name__ == "__main__":
    sys.exit(main())
