"""Encode and decode a WAV with the codec beside this script, in plain torch: `python load.py INPUT.wav OUTPUT.wav`.

Mono, 16 bits, at the codec's sample rate. It needs torch and numpy, not Soundmill. A TorchScript file is a program: run it only if
you trust its author.
"""

import json
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import torch

CODEC = Path(__file__).with_name("codec.ts")


def main(source: str, target: str) -> None:
    extra = {"soundmill.json": ""}
    codec = torch.jit.load(CODEC, map_location="cpu", _extra_files=extra).eval()
    facts = json.loads(extra["soundmill.json"])
    with wave.open(source) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, facts["sample_rate"]):
            sys.exit(f"{source}: must be mono, 16 bits, {facts['sample_rate']} Hz")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    length, block, latency = len(samples), facts["block"], facts["latency"]
    padded = np.pad(samples, (0, latency + -(length + latency) % block))
    torch.manual_seed(0)
    with torch.no_grad():
        decoded = codec.decode(codec.encode(torch.from_numpy(padded)[None, None]))[0, 0, latency : latency + length].clamp(-1, 1)
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(facts["sample_rate"])
        file.writeframes((decoded.numpy() * 32767).round().astype("<i2").tobytes())
    content = Path(target).read_bytes() + Path(__file__).with_name("tags.bin").read_bytes()  # what made the sound
    Path(target).write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
