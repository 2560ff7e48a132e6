"""Generate a sound with the network beside this script, in plain torch: `python load.py OUTPUT.wav [--label NAME] [--seed N]`.

It needs torch and numpy, not Soundmill, which makes the same sound of the same seed, up to rounding. A TorchScript file is a
program: run it only if you trust its author.
"""

import argparse
import hashlib
import json
import math
import struct
import wave
from itertools import pairwise
from pathlib import Path

import torch

HERE = Path(__file__).parent


def main() -> None:
    extra = {"soundmill.json": ""}
    net = torch.jit.load(HERE / "net.ts", map_location="cpu", _extra_files=extra).eval()
    facts = json.loads(extra["soundmill.json"])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--label", action="append", default=[], choices=facts["labels"], help="may be given several times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=1, help="of the sounds with this seed, from 1 on")
    parser.add_argument("--steps", type=int, default=facts["steps"])
    parser.add_argument("--guidance", type=float, default=facts["guidance"], help="1: none")
    asked = parser.parse_args()
    key = "\0".join(map(str, (asked.seed, *asked.label, asked.number - 1))).encode()
    seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
    noise = torch.randn(1, facts["channels"], facts["samples"], generator=torch.Generator().manual_seed(seed))
    weights = torch.tensor([[float(name in asked.label) for name in facts["labels"]]])
    weights = weights / weights.sum().clamp_min(1)

    def predict(waves: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        conditional = net(waves, level, weights)
        if asked.guidance == 1 or not asked.label:
            return conditional
        unconditional = net(waves, level, torch.zeros_like(weights))
        return unconditional + asked.guidance * (conditional - unconditional)

    with torch.no_grad():
        write(asked.output, denoise(predict, noise, asked.steps, facts["deviation"], facts["path"]), facts["sample_rate"])


def denoise(predict, noise: torch.Tensor, steps: int, deviation: float | list[float], path: str) -> torch.Tensor:
    """In even steps from level 1 to 0: v-diffusion by DDIM, xt = cos(level · π/2) · sound + sin(level · π/2) · noise, or rectified
    flow by Euler's method, xt = (1 − level) · sound + level · noise.

    The sound is of unit variance until the end, where it is multiplied by its standard deviation, one or one per frequency.
    """
    waves = noise
    for now, after in pairwise((steps - step) / steps for step in range(steps + 1)):
        v = predict(waves, torch.full((1,), now))
        if path == "rectified_flow":
            waves = waves + (after - now) * v
            continue
        (alpha, sigma), (to_alpha, to_sigma) = (scales(level) for level in (now, after))
        waves = to_alpha * (alpha * waves - sigma * v) + to_sigma * (sigma * waves + alpha * v)
    if not isinstance(deviation, list):
        return deviation * waves[0]
    bins = noise.shape[-1] // 2 + 1
    gains = torch.nn.functional.interpolate(torch.tensor([[deviation]]), bins, mode="linear", align_corners=True)[0, 0]
    return torch.fft.irfft(torch.fft.rfft(waves[0]) * gains, n=noise.shape[-1])


def scales(level: float) -> tuple[float, float]:
    return (1.0 - level, level) if level in (0.0, 1.0) else (math.cos(level * math.pi / 2), math.sin(level * math.pi / 2))


def write(path: Path, waves: torch.Tensor, rate: int) -> None:
    """16 bits, with the tags that name the checkpoint and say that a model made the sound."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(waves))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((32768 * waves.T).round().clamp(-32768, 32767).numpy().astype("<i2").tobytes())
    content = path.read_bytes() + (HERE / "tags.bin").read_bytes()
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])


if __name__ == "__main__":
    main()
