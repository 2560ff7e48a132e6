"""RAVE at the published v1 size: real-time factor, live blocks and training step, against acids-rave if available.

Real-time factor: encoding and decoding mono at 48 kHz with one thread and random weights, seconds of sound per CPU second. Training
step: CPU seconds of phase 1, crops of 131,072 samples, float32, one thread. Live: the exported TorchScript of phase 2 with seven of
eight latents and the noise drawn at random, one thread, wall time of each block of 2,048 samples (42.7 ms) of `--seconds` of sound,
causal and non-causal.

acids-rave (CC BY-NC, so not a dependency) runs in its own environment, whose Python is given by `--peer`:

python3.11 -m venv ../rave-peer && ../rave-peer/bin/pip install acids-rave==2.3.1 numpy==1.26.4 torch==2.11 torchaudio==2.11
python -m bench.rave --peer ../rave-peer/bin/python
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import measure
from bench.measure import Target
from soundmill import params

BLOCK, RATE = 2048, 48_000
PEER = "acids-rave"
KEPT = 8  # one of this many latents is kept for live playing


def main() -> None:
    parser = measure.parser(__doc__, repetitions=5, seconds=60, sound=8, batch=1, steps=3)
    parser.add_argument("--peer", type=Path, help="Python of an environment with acids-rave")
    parser.add_argument("overrides", nargs="*", help="overrides of the published net's parameters, without a comparison")
    args = parser.parse_args()
    if args.peer and args.overrides:
        parser.error("acids-rave has only the published size: omit the overrides or --peer")
    ours = {
        "codec": lambda: measure.in_fresh_process(codec, args.overrides, args.sound),
        "training step": lambda: measure.in_fresh_process(training_step, args.overrides, args.batch, args.steps),
    }
    theirs = {"codec": ["codec", args.sound], "training step": ["step", args.batch, samples_of(args.overrides), args.steps]}
    seconds: dict[str, list[float]] = {}
    for number in range(args.repetitions):
        for what, work in ours.items():
            sides: list[tuple[str, Callable[[], float]]] = [(f"soundmill, {what}", work)]
            if args.peer:
                sides.append((f"{PEER}, {what}", lambda what=what: run_peer(args.peer, theirs[what])))
            for name, side in sides if number % 2 == 0 else sides[::-1]:
                seconds.setdefault(name, []).append(side())
                print(f"round {number + 1}/{args.repetitions}: {name} {seconds[name][-1]:.3g} CPU s", flush=True)
    targets = []
    if args.peer:
        for what in ours:
            ratio = measure.ratio(seconds[f"{PEER}, {what}"], seconds[f"soundmill, {what}"])
            targets.append(Target(f"{what} against {PEER}", ratio, 1))
    factors = {name: [args.sound / value for value in values] for name, values in seconds.items() if name.endswith("codec")}
    for name, values in factors.items():
        print(f"{name}: {sorted(values)[len(values) // 2]:.3g} times real time")
    live = {}
    for name, causal in (("causal", "true"), ("non-causal", "false")):
        change = f"rave.autoencoder.network.causal={causal}"
        live[name] = measure.in_fresh_process(time_blocks, [*args.overrides, change], args.seconds)
        timing = live[name]
        kinds = {
            "median": "median_ms",
            "99th percentile": "p99_ms",
            "worst": "worst_ms",
            "99th percentile of CPU time": "cpu_p99_ms",
        }
        times = ", ".join(f"{kind} {timing[key]:.3g} ms" for kind, key in kinds.items())
        print(f"{name}: latency {timing['latency']} samples; block of {timing['block_ms']:.3g} ms: {times}", flush=True)
        share = timing["p99_ms"] / timing["block_ms"]
        targets.append(Target(f"{name}, 99th percentile of a block against its length", share, 1 / 3, at_least=False))
    more = {"real_time_factors": factors, "live": live, "overrides": args.overrides}
    measure.write("rave", args.results, args.batch, seconds, targets, **more)


def run_peer(python: Path, arguments: list[Any]) -> float:
    """CPU seconds of its fastest repetition: the first one chooses kernels."""
    command = [
        str(python),
        "-P",  # so that `import rave` does not find this directory
        str(measure.ROOT / "bench" / "rave_peer.py"),
        *map(str, arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""})
    if done.returncode:
        raise SystemExit(f"{python}: acids-rave failed: {done.stderr[-2000:]}")
    return min(json.loads(done.stdout.strip().splitlines()[-1]))


def sizes(overrides: list[str]) -> Any:
    from soundmill.models.components.rave import RaveParams

    document = params.compose(measure.ROOT / "conf", ["model=rave", "scale=paper", *overrides])
    return params.parse(RaveParams, document["rave"]["autoencoder"], "rave.autoencoder")


def samples_of(overrides: list[str]) -> int:
    return sizes(overrides).weights.num_samples


def build_codec(overrides: list[str], phase: int) -> Any:
    """The codec with random weights and all latents; in phase 1 it draws no noise."""
    import torch

    from soundmill.models.components.rave.codec import RaveCodec
    from soundmill.models.components.rave.network import RaveNet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = sizes(overrides).network
    return RaveCodec(network, RATE, RaveNet(network).eval(), phase, 1.0, network.latent_channels)


def codec(overrides: list[str], seconds: int) -> float:
    """CPU seconds of encoding and decoding."""
    import torch

    model = build_codec(overrides, phase=1)  # acids-rave draws no noise, too
    for length in (RATE, seconds * RATE):
        wave = 0.1 * torch.randn(1, 1, round(length / BLOCK) * BLOCK)
        start = time.process_time()
        model.decode(model.encode(wave))
        taken = time.process_time() - start
    return taken


def training_step(overrides: list[str], items: int, count: int) -> float:
    """CPU seconds of the fastest of `count` steps of phase 1."""
    import numpy as np
    import torch

    from soundmill.models.components.rave.network import RaveNet
    from soundmill.models.components.rave.phases import RaveModule
    from soundmill.training.loader import Batch

    torch.set_num_threads(1)
    chosen = sizes(overrides)
    net = RaveNet(chosen.network).with_norms()
    module, settings = RaveModule(chosen.weights, net), chosen.weights.optimiser
    optimiser = torch.optim.AdamW(
        net.parameters(), settings.learning_rate, tuple(settings.betas), settings.eps, settings.weight_decay, fused=True
    )
    seconds = []
    for step in range(count):
        batch = Batch(step, np.arange(items), (0.1 * torch.randn(items, 1, chosen.weights.num_samples),))
        start = time.process_time()
        optimiser.zero_grad()
        module.represent(step, batch).backward()
        optimiser.step()
        seconds.append(time.process_time() - start)
    return min(seconds)


def time_blocks(overrides: list[str], seconds: int) -> dict[str, float]:
    """Times of blocks that the exported codec processes as in live use: with noise, and with latents drawn at random."""
    import statistics

    import torch

    from soundmill.models.streaming import scripted

    codec = build_codec(overrides, phase=2)
    model, block = scripted(codec, max(1, codec.network.latent_channels // KEPT)), max(BLOCK, codec.samples_per_frame)
    wave = 0.1 * torch.randn(1, 1, round(seconds * RATE / block) * block)
    wall, cpu = [], []
    with torch.inference_mode():
        for _ in range(20):  # the first compile
            model(wave[..., :block])
        for part in wave.split(block, 2):
            start, before = time.perf_counter(), time.process_time()
            model(part)
            cpu.append(1000 * (time.process_time() - before))
            wall.append(1000 * (time.perf_counter() - start))
    ordered, last = sorted(wall), min(len(wall) - 1, round(0.99 * len(wall)))
    return {
        "blocks": len(wall),
        "block_ms": 1000 * block / RATE,
        "median_ms": statistics.median(wall),
        "p99_ms": ordered[last],
        "cpu_p99_ms": sorted(cpu)[last],  # less affected by other processes
        "worst_ms": ordered[-1],
        "latency": model.get_latency(),
        "drawn_latents": model.left_out,
        "noise": model.noise is not None,
    }


if __name__ == "__main__":
    main()
