"""Run the pipeline on a schedule, with a running Prefect server; `python -m flows.serve --cron "0 3 * * *"`."""

import argparse
import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import tzlocal
from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.server.schemas.schedules import CronSchedule

from flows import dvc, server
from flows.pipeline import pipeline
from flows.run import parsed
from soundmill import terminal
from soundmill.errors import UserError

NAME = "scheduled"
LOCAL = f"http://127.0.0.1:{server.PORT}/api"  # the server of `make server`


def next_times(cron: str, timezone: str) -> list[str]:
    """The next three times of a schedule, as a clock in this time zone shows them."""
    try:
        times = asyncio.run(CronSchedule(cron=cron, timezone=timezone).get_dates(3))
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--cron {cron!r} --timezone {timezone!r}: not a cron schedule in a time zone ({reason}); "
            "give five fields, such as `0 3 * * *`, and a name, such as `America/Los_Angeles`"
        ) from None
    return [time.strftime("%a %Y-%m-%d %H:%M:%S %Z") for time in times]


def deployment(
    root: Path, cron: str, timezone: str, wait_minutes: float, retries: int, push: bool = False, active: bool = True
) -> RunnerDeployment:
    """The pipeline at the times of `cron` (unless not `active`), one run at a time; a run also waits for a manual `dvc repro`."""
    return pipeline.to_deployment(
        name=NAME,
        schedule=Cron(cron, timezone=timezone, active=active),
        # One at a time, even if a second `flows.serve` runs somewhere; later runs queue.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        parameters={"project": str(root), "wait_minutes": wait_minutes, "retries": retries, "push": push},
        description="The whole pipeline; unchanged stages are not run.",
        tags=["soundmill"],
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description="Run the pipeline on a schedule, until stopped.")
    parser.add_argument("--cron", default="0 3 * * *", help="when to run (default: every night at three)")
    parser.add_argument("--timezone", help="of --cron, such as America/Los_Angeles (default: that of this machine)")
    parser.add_argument("--off", action="store_true", help="run only on demand; the server's page switches the schedule on")
    args = parsed(parser, argv, wait_minutes=120)
    url = server.address() or LOCAL
    try:
        dvc.check_here(Path.cwd())
        timezone = args.timezone
        with suppress(LookupError, OSError, ValueError):
            timezone = timezone or tzlocal.get_localzone_name()
        if not timezone:
            raise UserError("this machine's time zone has no IANA name; give one, such as --timezone America/Los_Angeles")
        times = next_times(args.cron, timezone)
        with server.use(url):
            terminal.say(f"pipeline/{NAME} at {args.cron!r} in {timezone}, one run at a time, on {url}; stop it with Ctrl-C")
            terminal.say("the schedule is off" if args.off else f"next: {', '.join(times)}")
            of_cron = (args.cron, timezone, args.wait_minutes, args.retries, args.push, not args.off)
            serve(deployment(Path.cwd(), *of_cron), limit=1)
    except UserError as error:
        terminal.say(f"serve: {error}", error=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
