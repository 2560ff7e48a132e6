"""Run the pipeline on a schedule, with a running Prefect server; `python -m flows.serve --cron "0 3 * * *"`."""

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
LOCAL = "http://127.0.0.1:4200/api"  # the server of `make server`


def deployment(root: Path, cron: str, wait_minutes: float, retries: int, push: bool = False) -> RunnerDeployment:
    """The pipeline at the times of `cron`, one run at a time; a run also waits for a manual `dvc repro`."""
    try:
        return pipeline.to_deployment(
            name=NAME,
            cron=cron,
            # One at a time, even if a second `flows.serve` runs somewhere; later runs queue.
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
            parameters={"project": str(root), "wait_minutes": wait_minutes, "retries": retries, "push": push},
            description="The whole pipeline; unchanged stages are not run.",
            tags=["soundmill"],
        )
    except ValueError as error:
        raise UserError(
            f"--cron {cron!r}: not a cron schedule ({' '.join(str(error).split())[:200]}); give five fields, such as `0 3 * * *`"
        ) from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description="Run the pipeline on a schedule, until stopped.")
    parser.add_argument("--cron", default="0 3 * * *", help="when to run (default: every night at three)")
    parser.add_argument("--wait-minutes", type=float, default=120, help="how long a run waits for a manual `dvc repro`")
    parser.add_argument("--retries", type=int, default=1, choices=range(4), help="for stages that were killed or found DVC locked")
    parser.add_argument("--push", action="store_true", help="copy the results to DVC's default remote")
    args = parser.parse_args(argv)
    url = server.address() or LOCAL
    try:
        if not Path("dvc.yaml").exists():
            raise UserError("no dvc.yaml here; run it from the root of a Soundmill checkout")
        server.check(url)
        planned = deployment(Path.cwd(), args.cron, args.wait_minutes, args.retries, args.push)
    except UserError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    print(f"pipeline/{NAME} at {args.cron!r}, one run at a time, on {url}; stop it with Ctrl-C", flush=True)
    with temporary_settings({PREFECT_API_URL: url}):
        serve(planned, limit=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
