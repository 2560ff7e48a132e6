"""The demo's wall time with stages at the same time, and one after the other (`python -m bench.side_by_side`)."""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from bench import checkout

SETTINGS = {
    "one after the other": [],
    "side by side": ["execution.slots.cpu=2", "execution.workers=1", "execution.devices=2"],
}


def timed(root: Path) -> float:
    """Seconds of the demo from nothing."""
    for name in ("data", ".dvc/cache", ".dvc/tmp", "dvc.lock"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return checkout.run([sys.executable, "-m", "flows.run"], root).seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3, help="of both, in turn")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of both, as in `soundmill params`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soundmill-bench-") as place:
        projects = {name: checkout.Checkout(Path(place) / name.replace(" ", "-")) for name in SETTINGS}
        for name, project in projects.items():
            checkout.copy_code(project.root, [*args.overrides, *SETTINGS[name]])
            checkout.commit(project.root)
        seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for _ in range(args.repetitions):
            for name, project in projects.items():
                seconds[name].append(timed(project.root))
                print(f"{name}: {seconds[name][-1]:.0f} s", flush=True)
        one, two = (project.digests() for project in projects.values())
    ratios = [two / one for one, two in zip(*seconds.values(), strict=True)]
    print(f"ratio, median of {args.repetitions}: {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
    differing = [name for name in one.keys() | two.keys() if one.get(name) != two.get(name) and name != "pipeline.log"]
    print(f"files that differ: {', '.join(sorted(differing)) or 'none'} of {len(one)}")


if __name__ == "__main__":
    main()
