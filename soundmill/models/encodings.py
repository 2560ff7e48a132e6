"""What models share that denoise encodings of waves: pictures of log-mels, or a codec's latents."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from soundmill.audio.mel import MelSpec, gain_of
from soundmill.diffusion.sampling import Draw, Given, slerp
from soundmill.models.components.contracts import Codec, LatentCodec, Vocoder
from soundmill.models.components.vocoding import vocoder_of
from soundmill.models.family import Request, Run
from soundmill.models.sounds import mask_of, spans_of

AUDIBLE = 1e-3  # peak of what is heard
JOIN_SECONDS = 0.01  # over which a made part fades in


class OfEncodings(ABC):
    """What models share that denoise encodings of waves: restyling, inpainting, interpolation.

    Encodings and what goes with them, such as levels, are on the CPU, items first.
    """

    sample_rate: int
    spec: MelSpec | None  # of the encoded log-mels, whose gain is taken back; None: waves are encoded
    encoded_shape: tuple[int, ...]  # of one item
    encoded_samples: int  # of the waves, silence behind them included
    time_axis: int  # of encodings of several items

    @abstractmethod
    def encoded(self, waves: Tensor, run: Run) -> tuple[Tensor, ...]:
        """The encodings of waves [N, channels, T], and what goes with them."""

    @abstractmethod
    def made(self, requests: Sequence[Request], run: Run, given: Given, length: int, *along: Tensor) -> Tensor:
        """Waves [N, channels, `length` or more] of what `given` begins with and `along` what goes with it."""

    def drawn(self, requests: Sequence[Request], run: Run) -> tuple[Tensor, ...]:
        """What goes with the encodings of generated sounds."""
        return ()

    def draws(self, requests: Sequence[Request]) -> Draw:
        """The noise of generated sounds."""
        return Draw.of_seeds([request.seed for request in requests])

    def length(self, run: Run) -> int:
        """Samples of a sound between two seeds."""
        return self.num_samples

    def transform(self, waves: Tensor, requests: Sequence[Request], run: Run) -> Tensor:
        """Restyle by `amount`; or, if `keep` is set, make everything else anew from the kept part alone.

        The result is as loud as the waves; beside silence, as loud as generated sounds.
        """
        sampling, length = run.sampling, waves.shape[2]
        kept = None if sampling.keep is None else mask_of(sampling.keep, length)
        known = waves if kept is None else waves * kept
        encoded, *along = self.encoded(known, run)
        gains = gains_of(known, self.spec)
        if kept is not None:  # silence says nothing of how loud the rest is
            silent = known.abs().amax((1, 2)) < AUDIBLE
            along = [torch.where(silent, *both) for both in zip(self.drawn(requests, run), along, strict=True)]
            gains = torch.where(silent[:, None, None], 1.0, gains)
        keep = None if kept is None else self._kept_frames(kept, encoded)
        requests = [replace(request, seed=request.window_seed) for request in requests]
        made = self.made(requests, run, Given(encoded, sampling.amount, keep, sampling.resamples), length, *along)
        made = made[..., :length] / gains
        return made if kept is None else joined(waves, made, sampling.keep, self.sample_rate)

    def interpolate(self, ends: tuple[Request, Request], waves: Tensor | None, shares: Sequence[float], run: Run) -> Tensor:
        """See models/family.py; encodings of recordings are mixed, noised by `amount` and denoised."""

        def between(both: Tensor) -> Tensor:
            return torch.stack([torch.lerp(*both, share) for share in shares])

        first, second = self.draws(ends).noise(self.encoded_shape)
        noise = torch.stack([slerp(first, second, share) for share in shares])
        if waves is None:
            given, along, length, gains = Given(noise=noise), self.drawn(ends, run), self.length(run), torch.ones(())
        else:
            encoded, *along = self.encoded(waves, run)
            given, length = Given(between(encoded), run.sampling.amount, noise=noise), waves.shape[2]
            gains = between(gains_of(waves, self.spec))
        made = self.made([ends[share > 0.5] for share in shares], run, given, length, *map(between, along))
        return made[..., :length] / gains

    def _kept_frames(self, kept: Tensor, encoded: Tensor) -> Tensor:
        """Which frames see kept samples alone (`kept` [T]), in a shape to broadcast; those of log-mels see half a window around."""
        removed = F.pad(~kept, (0, self.encoded_samples - len(kept))).float()[None]
        margin = self.spec.win_length // 2 if self.spec else 0
        removed = F.max_pool1d(removed, 2 * margin + 1, 1, margin)
        frames = F.adaptive_max_pool1d(removed, encoded.shape[self.time_axis])[0] == 0
        return frames.reshape(-1, *[1] * (encoded.ndim - self.time_axis - 1))


class OfLatents(OfEncodings):
    """What models of a codec's latents share."""

    autoencoder: LatentCodec
    frames: int  # of log-mels, or of latents if the codec has no log-mels
    vocoder: Vocoder | None  # None: Griffin-Lim
    time_axis = 2

    @property
    def sample_rate(self) -> int:
        return self.autoencoder.sample_rate

    @property
    def spec(self) -> MelSpec | None:
        return self.autoencoder.spec

    @property
    def encoded_samples(self) -> int:
        return self.frames * self.autoencoder.samples_per_frame

    def encoded(self, waves: Tensor, run: Run) -> tuple[Tensor]:
        return (self.codec(run).encode(waves),)

    def codec(self, run: Run, frames: int | None = None) -> Codec:
        """The autoencoder for sounds of so many frames, with the vocoder of the run if it needs one."""
        return self.autoencoder.sounding(self.vocoder_for(run), frames or self.frames, run.sampling.grain, run.device)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → latent → wave."""
        codec = self.codec(run)
        return codec.decode(codec.encode(waves))[..., : waves.shape[2]]

    def rebuilt(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → latent → log-mel."""
        codec = self.codec(run)
        return codec.to_log_mels(codec.encode(waves))

    def vocoder_for(self, run: Run) -> Vocoder | None:
        return vocoder_of(run.sampling, self.vocoder, self.autoencoder.spec)


def gains_of(waves: Tensor, spec: MelSpec | None) -> Tensor:
    """[N, 1, 1]: by what log-mels are louder than their waves [N, C, T]."""
    return torch.tensor([gain_of(wave.mean(0).numpy(), spec) if spec else 1.0 for wave in waves])[:, None, None]


def joined(waves: Tensor, made: Tensor, keep: Sequence[Sequence[int]], sample_rate: int) -> Tensor:
    """`waves` [N, C, T] in the spans `keep` and `made` elsewhere, faded in while the mirrored end of what is kept fades out."""
    kept = mask_of(keep, waves.shape[2])
    result = torch.where(kept, waves, made)
    gaps = spans_of(~kept)
    for (_, before), (start, stop), (after, _) in zip([[0, 0], *gaps], gaps, [*gaps[1:], [len(kept)] * 2], strict=False):
        for edge, room, forward in ((start, start - before, 1), (stop - 1, after - stop, -1)):
            count = min(round(JOIN_SECONDS * sample_rate), room, (stop - start) // 2)
            steps = torch.arange(count)
            angle = (steps + 0.5) / max(1, count) * math.pi / 2
            inside, mirrored = edge + forward * steps, edge - forward * (1 + steps)
            result[..., inside] = angle.cos() * waves[..., mirrored] + angle.sin() * made[..., inside]
    return result
