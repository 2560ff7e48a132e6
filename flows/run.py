"""Bring the project up to date: `python -m flows.run`. DVC is asked first; Prefect starts only where there is something to do."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flows import dvc, lockfile
from flows.scores import closing_lines, read_scores
from flows.terminal import tell
from soundmill import dvc_recovery, ledger
from soundmill.errors import UserError
from soundmill.params import read_yaml


def up_to_date(root: Path, stages: list[str]) -> bool:
    """Whether `dvc status` finds nothing to do for `stages` and all they need (none named: the whole graph).

    False where it cannot tell, where changes were set aside, and where forgotten.yaml is out of date: the pipeline says what is
    wrong.
    """
    if not (root / "dvc.lock").exists() or lockfile.fault_of(root / "dvc.lock") or dvc_recovery.leftovers(root):
        return False
    try:
        return not ledger.missing(root) and not dvc.changed(root, stages)
    except UserError:
        return False


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.run", description="Bring the project up to date, recorded and watched.")
    parser.add_argument("stages", nargs="*", help="stages, with all they need (default: the whole graph)")
    parser.add_argument("--force", action="store_true", help="run them even if nothing changed")
    parser.add_argument("--retries", type=int, default=1, choices=range(4), help="for stages that are killed or locked out")
    parser.add_argument("--wait-minutes", type=float, default=0, help="how long to wait for somebody else's repro")
    args = parser.parse_args(argv)
    root = Path.cwd()
    if not (root / "dvc.yaml").exists():
        tell("pipeline: no dvc.yaml here; run it from the root of a Soundmill checkout")
        return 1
    if not args.force and up_to_date(root, args.stages):
        tell("Nothing has changed since the last run.")
        for line in closing_lines(root, read_scores(root)):
            tell(line)
        return 0
    try:
        read_yaml(root / "params.yaml")  # DVC would say it too, but after Prefect has started
        dvc.check_changes(root, lambda line: None)  # what does not stop it, the pipeline says
    except UserError as error:
        tell(f"pipeline: {error}")
        return 1
    from flows import pipeline

    flow = pipeline.pipeline
    return pipeline.run_to_end(
        "pipeline", "stages", lambda: flow(args.stages, args.force, args.retries, args.wait_minutes, return_state=True)
    )


if __name__ == "__main__":
    sys.exit(main())
