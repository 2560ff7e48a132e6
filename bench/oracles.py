"""Where a latent model's distance to real clips arises: FAD (YAMNet) of sounds of which a growing part is the model's.

python -m bench.oracles workspaces/NAME

Test clips through the codec; with noise in their latents that the model removes, or that is only scaled away, as for normally
distributed latents; generated sounds as they are, and at the level of the real clips; noise with the real clips' mean spectrum and
envelope. All are compared with the same clips.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch
from torch import Tensor

from bench.distances import frechet_of_rows
from soundmill.diffusion import sampling, solvers
from soundmill.evaluation import embedders
from soundmill.models.audio_dit import model as audio_dit
from soundmill.models.catalog import read_labels
from soundmill.models.components.latents.store import iterate_posteriors
from soundmill.models.family import Request, Run

TIMES = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)  # share of noise, of rectified flow
BATCH = 16
WINDOW = 400  # samples of an envelope: 25 ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, help="where audio_dit was trained by rectified flow and its sounds were made")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = args.workspace / "data"
    embedder = embedders.load("yamnet", None)
    generated = {
        path.stem: soundfile.read(path, dtype="float32")[0] for path in sorted((data / "generated/audio_dit").glob("*.wav"))
    }
    labels = read_labels(data / "catalog/default.parquet")
    label_of = {name: tuple(one) for split in labels.values() for name, one in split.items()}
    real = {name: soundfile.read(data / "audiocaps/audio" / f"{name}.wav", dtype="float32")[0] for name in generated}
    names = list(generated)
    reference = np.concatenate(embedder.embed([*real.values()]).frames)

    def report(what: str, sounds: Sequence[np.ndarray]) -> None:
        fad = frechet_of_rows(np.concatenate(embedder.embed(sounds).frames), reference)
        print(json.dumps({"sounds": what, "fad_yamnet": round(float(fad), 2)}), flush=True)

    pairs = [(generated[name], real[name]) for name in names]
    report("generated", [one for one, _ in pairs])
    report("generated, at the real clip's level", [one * level(other) / level(one) for one, other in pairs])
    rng = np.random.default_rng(0)
    report("noise with the real clip's spectrum and envelope", [shaped(rng.standard_normal(len(one)), one) for _, one in pairs])
    model = audio_dit.load(data / "models/audio_dit")
    posteriors = dict(iterate_posteriors(data / "audio_dit/latents/clips"))
    scale = model.autoencoder.scaling_factor
    x0 = torch.cat([model.layout.fold(scale * torch.from_numpy(posteriors[name][:1].astype(np.float32))) for name in names])
    with tempfile.TemporaryDirectory() as scratch:
        drawn = model.params.sampling.model_copy(update={"guidance_scale": 2.0})
        run = Run(drawn, torch.device("cpu"), "32", BATCH, Path.cwd(), Path(scratch))
        report("real, through the codec", decoded(model, x0, run))
        for time in TIMES:
            if time <= 0.4:
                noise = sampling.Draw.of_seeds(range(len(x0))).noise(x0.shape[1:])
                scaled = ((1 - time) * x0 + time * noise) / (time**2 + (1 - time) ** 2) ** 0.5
                report(f"{time:.0%} noise, scaled away", decoded(model, scaled, run))
            restored = restyled(model, x0, time, [label_of[name] for name in names], run)
            report(f"{time:.0%} noise, removed by the model", decoded(model, restored, run))


def level(wave: np.ndarray) -> float:
    return float(np.sqrt(np.square(wave, dtype=np.float64).mean() + 1e-12))


def shaped(noise: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Noise [T] with the mean spectrum and the envelope of a wave [T]."""
    _, power = scipy.signal.welch(like, nperseg=1024)
    filtered = scipy.signal.fftconvolve(noise, scipy.signal.firwin2(1025, np.linspace(0, 1, 513), np.sqrt(power)), mode="same")
    envelopes = [np.sqrt(np.convolve(wave**2, np.ones(WINDOW) / WINDOW, mode="same") + 1e-12) for wave in (like, filtered)]
    return (filtered * envelopes[0] / envelopes[1]).astype(np.float32)


def restyled(model: audio_dit.AudioDiT, x0: Tensor, time: float, labels: Sequence[tuple[str, ...]], run: Run) -> Tensor:
    """Latents [N, channels, frames] to which noise was added up to `time` and of which the model removed it in 8 midpoint steps."""
    restored, steps = [], replace(solvers.flow(8, "midpoint"), levels=torch.linspace(time, 0, 9).tolist())
    for start in range(0, len(x0), BATCH):
        part = x0[start : start + BATCH]
        requests = [Request(labels=one) for one in labels[start : start + BATCH]]
        told = model.conditions(requests, [model.num_samples / model.sample_rate] * len(part), run)
        net = sampling.guided(model.net.eval(), told, audio_dit.hidden(told), run.sampling.guidance_scale)
        noise = sampling.Draw.of_seeds(range(start, start + len(part))).noise(part.shape[1:])
        with torch.no_grad():
            restored.append(sampling.restyle(steps, net, part, noise))
    return torch.cat(restored)


def decoded(model: audio_dit.AudioDiT, x0: Tensor, run: Run) -> list[np.ndarray]:
    codec = model.codec(run, x0.shape[2] * (model.frames // model.latent_frames))
    waves = []
    for start in range(0, len(x0), BATCH):
        part = x0[start : start + BATCH]
        waves += [*codec.decode(model.layout.unfold(part), range(start, start + len(part)))[:, 0, : model.num_samples].numpy()]
    return waves


if __name__ == "__main__":
    main()
