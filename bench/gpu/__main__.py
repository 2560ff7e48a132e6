"""Measure one GPU; see `bench.gpu`. `python -m bench.gpu PACK OUT [PART …]`"""

import argparse
import copy
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import memory
from bench.measure import ROOT
from soundmill import params
from soundmill.models import registry
from soundmill.training.device import autocast

FAST = [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5]  # DiffWave's schedule of six steps
WARM_UP = 4  # batches for which kernels are chosen
CASES = ["gpu/configured", "gpu/compiled", "gpu/channels_last", "gpu/32", "paper/configured"]  # scale and variant
ENVIRONMENT = {"SOUNDMILL_TRACKING": "off", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path, help="made by bench.gpu.pack")
    parser.add_argument("out", type=Path, help="directory of the results")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=240, help="of the part `presets`: what comes later is left out")
    parser.add_argument("--minutes", type=float, default=3, help="of each training")
    parser.add_argument("--sound", type=int, default=10, help="seconds of the sounds of the part `speed`")
    parser.add_argument("--matrix", type=int, default=8192, help="side of the product that is the roof")
    parser.add_argument(
        "--families", nargs="*", default=[*registry.FAMILIES], help="of the parts `presets` and `training` (default: all)"
    )
    parser.add_argument("--cases", nargs="*", default=CASES, help="of the part `presets`, in this order (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in args.parts or PARTS:
        start = time.monotonic()
        try:
            PARTS[part](args)
        except Exception:  # a fault in one part must not cost the time on the card of the others
            failed.append(part)
            note(args, part, "failed.txt", traceback.format_exc())
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see {args.out}")


def note(args: argparse.Namespace, part: str, name: str, text: str) -> None:
    (args.out / f"{part}_{name}").write_text(text)
    print(text[-1500:], flush=True)


def write(args: argparse.Namespace, name: str, values: Any) -> None:
    (args.out / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], repetitions: int = 5) -> float:
    """Median seconds, after one call that is not counted."""
    taken = []
    for _ in range(repetitions + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def roofs(side: int) -> dict[str, float]:
    """FLOP/s of a product of matrices in each precision, and bytes/s of a copy, read and written."""
    found = {}
    for name, kind, precision in (("bf16", torch.bfloat16, "ieee"), ("tf32", torch.float32, "tf32"), ("32", torch.float32, "ieee")):
        torch.backends.cuda.matmul.fp32_precision = precision
        a, b = (torch.randn(side, side, device=device(), dtype=kind) for _ in range(2))
        found[name] = 2 * side**3 / seconds_of(partial(torch.matmul, a, b))
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    big = torch.empty(side, side, 16, device=device())
    other = torch.empty_like(big)
    found["copy"] = 2 * big.nbytes / seconds_of(lambda: other.copy_(big))
    return found


# (a) Every preset: batches per second, peak memory, share of the roof.


def presets(args: argparse.Namespace) -> None:
    documents = json.loads((args.pack / "presets.json").read_text())
    roof, end = roofs(args.matrix), time.monotonic() + args.seconds
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows: list[dict[str, Any]] = []
    print(card, {name: f"{value:.3g}" for name, value in roof.items()}, flush=True)
    for scale, family, training, variant, document in cases(documents, args):
        row: dict[str, Any] = {"scale": scale, "family": family, "training": training, "variant": variant}
        if time.monotonic() > end:
            row["left_out"] = "out of time"
        else:
            try:
                row |= measured(family, training, document, variant, roof)
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {error}"[:300]
                with (args.out / "presets_failed.txt").open("a") as file:
                    file.write(f"{row}\n{traceback.format_exc()}\n")
        rows.append(row)
        write(args, "presets", {"card": card, "torch": torch.__version__, "roofs": roof, "rows": rows})
        print({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}, flush=True)


def cases(documents: dict[str, Any], args: argparse.Namespace) -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
    """(scale, family, training, variant, parameters)"""
    for scale, variant in (case.split("/") for case in args.cases):
        for family in args.families:
            for training in memory.trainings(family, documents[scale][family]):
                yield scale, family, training, variant, copy.deepcopy(documents[scale][family])


def measured(family: str, training: str, document: dict[str, Any], variant: str, roof: dict[str, float]) -> dict[str, Any]:
    """What a training on noise needs, in this process."""
    from torch.utils.flop_counter import FlopCounterMode

    section = params.section(document, memory.SECTIONS[training].format(family=family), "params.yaml")
    hardware = (section if training == "train" else document[family]["autoencoder"])["hardware"]
    if variant == "32":
        hardware["precision"] = "32"
    elif variant in ("compiled", "channels_last"):
        hardware["precision"] = "bf16"
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rehearsed = memory.rehearsing(family, training, document)
    module = rehearsed.module
    module.steps = 1000
    if variant == "compiled":
        module.net.compile()
    elif variant == "channels_last":
        module.net.to(memory_format=torch.channels_last)
    start = time.perf_counter()
    rehearsed(WARM_UP)
    warm_up = time.perf_counter() - start
    taken = rehearsed(2)
    taken = rehearsed(max(2, min(30, int(2 / statistics.mean(taken)))))
    seconds, flops = statistics.mean(taken), None
    if variant != "compiled":  # the counter sees no operations in compiled code
        with FlopCounterMode(display=False) as counter:
            rehearsed(1)
        flops = counter.get_total_flops()
    precision = "tf32" if hardware["precision"] == "32" else hardware["precision"]
    return {
        "precision": precision,
        "items": memory.items_of(section),
        "accumulate": module.accumulate,
        "batches_per_second": 1 / seconds,
        "warm_up_seconds": warm_up,
        "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "flops": flops,
        "share_of_roof": flops and flops / seconds / roof.get(precision, roof["bf16"]),
        "parameters": sum(weight.numel() for weight in module.net.parameters()),
    }


# (b) Trainings of a few minutes on real recordings: sounds back.


def training(args: argparse.Namespace) -> None:
    for name, stage in stages(args):
        family = name.partition("@")[2]
        if not name.startswith("train@") or family not in args.families:
            continue
        project = args.out.parent / f"{args.out.name}-work" / family
        shutil.copytree(args.pack / "project", project, dirs_exist_ok=True)
        document = params.read_yaml(project / "params.yaml")
        train = document[family]["train"]
        rehearsed = memory.rehearsing(family, "train", copy.deepcopy(document))
        rehearsed.module.steps = 1000
        rehearsed(WARM_UP)
        seconds = statistics.median(rehearsed(20)) * train.get("accumulate", 1)
        del rehearsed
        steps = max(10, int(60 * args.minutes / seconds))
        print(f"{name}: {seconds:.4f} s a step: {steps} steps", flush=True)
        train |= {
            "steps": steps,
            "validate_every_steps": max(1, steps // 30),
            "samples_every_steps": None,
            "checkpoint_seconds": 1e6,
        }
        train["log_every_steps"] = max(1, steps // 200)
        document[family]["generate"] |= {"count": None, "codec_count": 1}
        params.write_yaml(document, project / "params.yaml")
        taken = {"steps": steps, "rehearsed_seconds_per_step": seconds, "train": run(args, project, name, stage)}
        generate = dict(stages(args))[f"generate@{family}"]
        for use in ("last", "best"):
            document[family]["generate"]["use"] = use
            params.write_yaml(document, project / "params.yaml")
            taken[f"generate_{use}"] = run(args, project, f"generate@{family}", generate)
            os.rename(project / "data/generated" / family, project / "data" / use)
        write(args, f"training_{family}", taken)
        for use in ("last", "best"):
            pack(args.out / f"{family}_{use}.tar", project, [f"data/{use}"])
        pack(
            args.out / f"{family}.tar", project, ["data/plots", "data/metrics", "params.yaml", f"data/models/{family}/config.json"]
        )


def pack(path: Path, project: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(project / name, name)


def stages(args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    return [(stage["name"], stage) for stage in json.loads((args.pack / "stages.json").read_text())]


def run(args: argparse.Namespace, project: Path, name: str, stage: dict[str, Any]) -> float:
    """Run a stage in `project` as DVC does, untracked; returns its seconds."""
    start = time.monotonic()
    with (args.out / "stages.log").open("a") as log:
        log.write(f"{name}\n")
        log.flush()
        done = subprocess.run(
            [sys.executable, *stage["arguments"]], cwd=project, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log
        )
    if done.returncode:
        raise RuntimeError(f"{name} failed: {(args.out / 'stages.log').read_text()[-1500:]}")
    return time.monotonic() - start


# (c) Seconds of sound per second.


def speed(args: argparse.Namespace) -> None:
    documents = json.loads((args.pack / "presets.json").read_text())["paper"]
    factors = {**rave_factors(documents["rave"], args.sound), **diffwave_factors(documents["diffwave"], args.sound)}
    write(args, "speed", factors)
    print({name: f"{value:.4g}" for name, value in factors.items()}, flush=True)


@torch.inference_mode()
def rave_factors(document: dict[str, Any], seconds: int) -> dict[str, float]:
    from soundmill.models.components.rave import RaveParams
    from soundmill.models.components.rave.codec import RaveCodec
    from soundmill.models.components.rave.network import RaveNet

    network = params.parse_section(document, "rave.autoencoder", RaveParams).network
    rate, factors = 48_000, {}
    codec = RaveCodec(network, rate, RaveNet(network).eval(), 1, 1.0, network.latent_channels).to(device())
    for batch in (1, 16):
        waves = 0.1 * torch.randn(batch, 1, seconds * rate // 2048 * 2048, device=device())
        latents = codec.encode(waves)
        sound = batch * waves.shape[2] / rate
        factors[f"RAVE v1, encode {batch} × {seconds} s"] = sound / seconds_of(partial(codec.encode, waves))
        factors[f"RAVE v1, decode {batch} × {seconds} s"] = sound / seconds_of(partial(codec.decode, latents))
    return factors


@torch.inference_mode()
def diffwave_factors(document: dict[str, Any], seconds: int) -> dict[str, float]:
    from soundmill.models.components.diffwave.vocoder import DiffWave
    from soundmill.models.diffwave import TrainParams
    from soundmill.models.diffwave.model import build_net

    factors = {}
    for channels in (64, 128):
        document["diffwave"]["train"]["network"]["channels"] = channels
        train = params.parse_section(document, "diffwave.train", TrainParams)
        net = build_net(train, 1, 0).eval().to(device())
        log_mels = torch.full((1, train.mel.n_mels, seconds * train.mel.sample_rate // train.mel.hop_length), -3.0)
        sound = log_mels.shape[2] * train.mel.hop_length / train.mel.sample_rate
        for steps, betas in (("6", FAST), ("50", "trained")):
            sampling = train.sampling.model_copy(update={"betas": betas})
            vocoder = DiffWave(train.network, train.noise, sampling, train.mel, net)
            for precision in ("32", "bf16"):
                name = f"DiffWave {channels}, {steps} steps, {precision}, 1 × {seconds} s"
                with autocast(device(), precision):
                    factors[name] = sound / seconds_of(partial(vocoder.vocode, log_mels.to(device())), 2)
    return factors


# (d) Two runs on one seed.


def seeds(args: argparse.Namespace) -> None:
    """Distance of the weights of two trainings with one seed; and with another, for comparison."""
    from safetensors.torch import load_file

    stage, found = dict(stages(args))["train@ddpm_mel"], {}
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        project = args.out.parent / f"{args.out.name}-work" / name
        shutil.copytree(args.pack / "project", project, dirs_exist_ok=True)
        document = params.read_yaml(project / "params.yaml")
        document["ddpm_mel"]["train"] |= {"steps": 200, "seed": seed, "validate_every_steps": None, "samples_every_steps": None}
        document["ddpm_mel"]["train"]["validate_batches"] = 4
        params.write_yaml(document, project / "params.yaml")
        run(args, project, "train@ddpm_mel", stage)
        weights = load_file(project / "data/models/ddpm_mel" / registry.family("ddpm_mel").weights)
        found[name] = torch.cat([one.flatten().double() for one in weights.values() if one.is_floating_point()])
        shutil.copy(project / "data/metrics/train/ddpm_mel.json", args.out / f"seeds_{name}.json")
    first = found["first"]
    values = {name: float((found[name] - first).norm() / first.norm()) for name in ("second", "other")}
    values["equal_share"] = float((found["second"] == first).double().mean())
    write(args, "seeds", values)
    print(values, flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "presets": presets,
    "speed": speed,
    "training": training,
    "seeds": seeds,
}

if __name__ == "__main__":
    main()
