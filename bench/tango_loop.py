"""Training steps of `tango` with cached latents and text states, against the same net with both encoders in the loop.

One process, one U-Net, the same clips and captions; a few steps of each in turn. Sizes are those of `--scale`; weights are random,
except those of a real text encoder. Decoding and spectrograms are not included. On a CPU the ratio is of CPU seconds, which other
processes hardly affect.

python -m bench.tango_loop text=minilm text.tango.encoder=../shared/models/all-MiniLM-L6-v2
"""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import measure, recordings
from bench.measure import Target, ratio
from soundmill import params, text
from soundmill.params import parse

CAPTIONS = ("a dog barks", "rain falls on a roof while a car passes by", "a crowd cheers and claps", "someone types on a keyboard")


def main() -> None:
    parser = measure.parser(__doc__, clips=32, steps=4, repetitions=5)
    parser.add_argument("--scale", choices=["laptop", "paper"], default="laptop")
    parser.add_argument("overrides", nargs="*", help="overrides of parameters: text=minilm tango.train.real_items=2")
    args = parser.parse_args()
    with measure.workplace(args.work) as place:
        found, what = recordings.find(args.audio, Path(place))
        training = Training(args.scale, args.overrides, found, args.clips, args.steps, Path(place))
        training.cached()  # the first steps choose kernels and fill caches
        training.in_the_loop()
        seconds: dict[str, list[float]] = {"cached": [], "in the loop": []}
        cpu_seconds: dict[str, list[float]] = {"cached": [], "in the loop": []}
        memory: dict[str, int] = {}
        sides = [("cached", training.cached), ("in the loop", training.in_the_loop)]
        for _, (name, run) in measure.turns(sides, args.repetitions):
            wall, cpu, memory[name] = training.timed(run)
            seconds[name].append(wall)
            cpu_seconds[name].append(cpu)
        for name, values in seconds.items():
            rate = args.steps / statistics.median(values)
            print(f"{name}: {rate:.3g} steps/s" + (f", {memory[name] / 1e9:.2f} GB of GPU memory" if memory[name] else ""))
        clock = seconds if training.device.type == "cuda" else cpu_seconds
        speed_up = ratio(clock["in the loop"], clock["cached"])
        measure.write(
            "tango_loop",
            args.results,
            args.steps,
            seconds,
            [Target(f"tango at {args.scale} scale: steps without encoders in the loop", speed_up, 2)],
            cpu_seconds=cpu_seconds,
            gpu_memory_bytes=memory,
            device=training.about,
            recordings=what,
        )


class Training:
    """A net trained in both ways on the same clips."""

    def __init__(self, scale: str, overrides: list[str], found: list[Path], count: int, steps: int, work: Path):
        import torch

        from soundmill.audio.mel import SpectrogramParams
        from soundmill.models.components.contracts import LatentsParams
        from soundmill.models.components.mel_autoencoder import AutoencoderNetParams
        from soundmill.models.components.mel_autoencoder.autoencoder import Autoencoder, build_autoencoder
        from soundmill.models.tango import TrainParams
        from soundmill.models.tango.model import build_net
        from soundmill.training.device import pick_device, use_threads

        document = params.compose(measure.ROOT / "conf", ["model=tango", f"scale={scale}", *overrides])
        encoding = document["text"]["tango"]
        if encoding["encoder"] == text.SCRATCH:
            encoder = text.make_scratch(work / "encoder", **encoding["scratch"])
        else:
            encoder = text.find(encoding["encoder"], encoding["revision"], measure.ROOT)
        self.encoder = text.TextEncoder(encoder.directory, 64)
        width = self.encoder("a dog").values.shape[1]
        section = document["tango"]
        section["train"]["network"]["text_width"] = width
        self.params = parse(TrainParams, section["train"], "tango.train")
        network = parse(AutoencoderNetParams, section["autoencoder"]["network"], "tango.autoencoder.network")
        use_threads(self.params.hardware.threads)
        self.device = pick_device(self.params.hardware.accelerator)
        self.steps, self.items = steps, self.params.real_items + self.params.mixed_items

        torch.manual_seed(0)
        spec = SpectrogramParams(**document["spectrogram"]["tango"]).spec
        self.frames = parse(LatentsParams, section["latents"], "tango.latents").num_samples // spec.hop_length
        constants = {"mean": -5.0, "deviation": 3.0, "scaling_factor": 0.5}
        self.autoencoder = Autoencoder(network, spec, build_autoencoder(network).eval(), **constants).to(self.device)
        self.encoder.net.to(self.device)
        self.net = build_net(self.params, self.autoencoder.latent_shape(self.frames)).to(self.device)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=1e-5, fused=True)
        self.log_mels = torch.stack([self._log_mel(found[index % len(found)]) for index in range(min(count, len(found)))])
        self.source = self._source(work)
        self.about = (
            f"{self.device.type}, {self.params.hardware.precision}, {self.items} items, autoencoder {network.widths}, "
            f"text {width} wide of {encoder.directory.name if encoder.pretrained else encoder.name}"
        )

    def _log_mel(self, path: Path) -> Any:
        import torch

        from soundmill.audio.mel import log_mel
        from soundmill.decoding.decode import read_mono

        spec = self.autoencoder.spec
        values = torch.from_numpy(log_mel(read_mono(path, spec.sample_rate, 60.0), spec))[:, : self.frames]
        return torch.nn.functional.pad(values, (0, self.frames - values.shape[1]), value=self.autoencoder.silence)

    def _source(self, work: Path) -> Any:
        """Latents and states in flat files, as the training reads them."""
        from soundmill.models.components.latents.store import Posteriors
        from soundmill.models.components.text_states.states import Texts
        from soundmill.models.preparing import Captioned
        from soundmill.training.loader import Described, gather

        def flat(arrays: list[np.ndarray], name: str) -> Any:
            described = [Described(str(number), array.shape, "") for number, array in enumerate(arrays)]
            ids = [one.id for one in described]
            return gather(lambda: described, partial(zip, ids, arrays, strict=True), ids, work / name, name)

        posteriors = [
            np.stack([half[0].cpu().numpy() for half in self.autoencoder.encode(log_mel[None].to(self.device))]).astype("<f2")
            for log_mel in self.log_mels
        ]
        self.encoder.net.cpu()
        states = [self.encoder(caption).values for caption in CAPTIONS]
        self.encoder.net.to(self.device)
        captions = [[item % len(CAPTIONS)] for item in range(len(posteriors))]
        texts = Texts(flat(states, "states"), states[0])
        return Captioned(Posteriors(flat(posteriors, "latents")), captions, texts.padded)

    def _batches(self) -> Iterator[np.ndarray]:
        for step in range(self.steps):
            yield (np.arange(self.items) + step * self.items) % len(self.log_mels)

    def cached(self) -> None:
        """Steps as in the stage: posteriors and states are read, latents are drawn from the posterior."""
        import torch

        from soundmill.models.components.latents.store import drawn

        rng = torch.Generator(self.device).manual_seed(0)
        for items in self._batches():
            posterior, states, mask = (value.to(self.device) for value in self.source.batch(items, np.zeros((self.items, 2))))
            noise = torch.empty_like(posterior[:, 0].float()).normal_(generator=rng)
            self._step(self.autoencoder.scaling_factor * drawn(posterior, noise), states.float(), mask)

    def in_the_loop(self) -> None:
        """Steps as in the original: the autoencoder and the text encoder process every batch."""
        import torch

        from soundmill.models.components.latents.store import drawn
        from soundmill.training.device import autocast

        rng = torch.Generator(self.device).manual_seed(0)
        for items in self._batches():
            captions = [CAPTIONS[item % len(CAPTIONS)] for item in items]
            with torch.no_grad(), autocast(self.device, self.params.hardware.precision):
                mean, log_variance = self.autoencoder.encode(self.log_mels[items].to(self.device))
                tokens = self.encoder.tokenizer(captions, padding=True, return_tensors="pt").to(self.device)
                inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
                states = self.encoder.net(**inputs).last_hidden_state.float()
            noise = torch.empty_like(mean).normal_(generator=rng)
            x0 = self.autoencoder.scaling_factor * drawn(torch.stack([mean, log_variance], 1), noise)
            self._step(x0, states, tokens["attention_mask"].bool())

    def _step(self, x0: Any, states: Any, mask: Any) -> None:
        import torch

        from soundmill.diffusion.paths import discrete, error
        from soundmill.training.device import autocast

        path = discrete(self.params.diffusion)
        t = torch.arange(len(x0), device=self.device) * 100
        with autocast(self.device, self.params.hardware.precision):
            answer = partial(_answer, self.net, states, mask)
            loss = error(path, answer, x0, t, torch.randn_like(x0)).square().mean()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()

    def timed(self, run: Any) -> tuple[float, float, int]:
        """Wall seconds, CPU seconds and peak GPU memory."""
        import torch

        on_gpu = self.device.type == "cuda"
        if on_gpu:
            place = self.device if run == self.in_the_loop else torch.device("cpu")  # its memory should be that of the net only
            self.autoencoder.to(place)
            self.encoder.net.to(place)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start, cpu = time.perf_counter(), time.process_time()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated() if on_gpu else 0
        return time.perf_counter() - start, time.process_time() - cpu, memory


def _answer(net: Any, states: Any, mask: Any, xt: Any, t: Any) -> Any:
    return net(xt, t, states, mask)


if __name__ == "__main__":
    main()
