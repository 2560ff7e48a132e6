"""The pipeline on a schedule, against a running Prefect server; `python -m flows.serve --cron "0 3 * * *"`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import server
from flows.pipeline import pipeline
from soundmill.errors import UserError

NAME = "scheduled"
LOCAL = "http://127.0.0.1:4200/api"  # of `make server`


def deployment(root: Path, cron: str, wait_minutes: float, retries: int) -> RunnerDeployment:
    """The pipeline at the times of `cron`, one run at a time: the next one waits for its turn, and for a hand-typed `dvc repro`."""
    try:
        return pipeline.to_deployment(
            name=NAME,
            cron=cron,
            # One at a time even if a second `flows.serve` runs somewhere; a run that finds the place taken queues.
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
            parameters={"project": str(root), "wait_minutes": wait_minutes, "retries": retries},
            description="The whole pipeline; what did not change is not run.",
            tags=["soundmill"],
        )
    except ValueError as error:
        raise UserError(
            f"--cron {cron!r}: not a schedule ({' '.join(str(error).split())[:200]}); five fields, e.g. `0 3 * * *`"
        ) from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description="Run the pipeline on a schedule, until stopped.")
    parser.add_argument("--cron", default="0 3 * * *", help="when (default: every night at three)")
    parser.add_argument("--wait-minutes", type=float, default=120, help="how long a run waits for somebody's own `dvc repro`")
    parser.add_argument("--retries", type=int, default=1, choices=range(4), help="for stages that are killed or locked out")
    args = parser.parse_args(argv)
    url = server.address() or LOCAL
    try:
        if not Path("dvc.yaml").exists():
            raise UserError("no dvc.yaml here; run it from the root of a Soundmill checkout")
        server.check(url)
        planned = deployment(Path.cwd(), args.cron, args.wait_minutes, args.retries)
    except UserError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    print(f"pipeline/{NAME} at {args.cron!r}, one run at a time, on {url}; Ctrl-C ends it", flush=True)
    with temporary_settings({PREFECT_API_URL: url}):
        serve(planned, limit=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
