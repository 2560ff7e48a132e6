"""Vocode log-mels with any vocoder, and what vocoders have in common that compute each frame from its neighbours."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec, log_mel
from soundmill.audio.pieces import pieces
from soundmill.errors import UserError
from soundmill.models.components.contracts import Saved, Vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.training.device import evaluating

PIECE_FRAMES = 1024  # that the net processes at once
WINDOW_SECONDS = 10.0


@dataclass
class FrameVocoder(Saved):
    """A `Vocoder` (components/contracts.py) whose net computes the samples of a frame from it and its neighbours, in one pass.

    The net is in evaluation mode and float32, without weight norms.
    """

    network: Any  # sizes of the net, with its `context`
    spec: MelSpec
    net: nn.Module

    @property
    def context(self) -> int:
        """Frames on either side that the samples of a frame depend on."""
        return self.network.context

    @staticmethod
    def synthesise(net: nn.Module, log_mels: Tensor, hop_length: int) -> Tensor:
        """Waves [N, frames · hop_length] of log-mels [N, n_mels, frames]."""
        return net(log_mels)

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, frames · hop_length] of log-mels [N, n_mels, frames]; not clipped."""
        return torch.cat(list(self.pieces(log_mels)), 2)

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """`vocode` piece by piece, each computed with its context."""
        for piece in pieces([log_mels], PIECE_FRAMES, self.context):
            with torch.no_grad():
                yield piece.inner(self.synthesise(self.net, piece.values, self.spec.hop_length)[:, None], self.spec.hop_length)


def to_waves(
    vocoder: Vocoder, log_mels: Tensor, device: torch.device, num_samples: int | None = None, seeds: Sequence[int] = ()
) -> Tensor:
    """Waves [N, C, T] in [−1, 1] on the CPU, at most `num_samples` long, of log-mels [N, n_mels, frames].

    Log-mels are vocoded one by one, so that results do not depend on the batch. `seeds` are for the vocoder's noise, of generated
    sounds: these are scaled to a peak of 1 if theirs is above it. Without `seeds`, all items use the same noise, and are clipped:
    a reconstruction is as loud as its recording.
    """
    if not torch.isfinite(log_mels).all():
        raise UserError("the model's log-mels are not finite; choose milder sampling settings, or retrain with `dvc repro`")
    vocoder = vocoder.to(device)
    pairs = zip(log_mels, seeds or [0] * len(log_mels), strict=True)
    with torch.no_grad():
        waves = torch.cat([vocoder.vocode(log_mel[None].to(device), seed).cpu()[..., :num_samples] for log_mel, seed in pairs])
    return waves / waves.abs().amax((1, 2), keepdim=True).clamp_min(1) if seeds else waves.clamp(-1, 1)


def vocoder_of(sampling: Any, trained: Vocoder | None, spec: MelSpec | None) -> Vocoder | None:
    """The vocoder that `sampling` asks for: Griffin-Lim or the `trained` one; None if latents become waves without one."""
    if spec is None:
        return None
    if sampling.vocoder == "griffin_lim" or (sampling.vocoder is None and trained is None):
        return GriffinLim(spec, sampling)
    if trained is None:
        raise UserError(
            "this checkpoint has no vocoder: set sampling.vocoder to `griffin_lim`, or train it with `vocoder=hifigan_laptop`"
        )
    return trained


class ByLogMels:
    """What models share that reconstruct a sound from log-mels of `params.mel` by their own net; `run` is of models/family.py."""

    params: Any
    net: nn.Module
    sample_rate: int
    vocoder: Any  # with the net

    @property
    def num_samples(self) -> int:
        """Length of a window; longer sounds are processed in several."""
        return round(WINDOW_SECONDS * self.sample_rate / self.params.mel.hop_length) * self.params.mel.hop_length

    def vocoder_for(self, run: Any) -> Any:
        return replace(self.vocoder, sampling=run.sampling)

    def rebuilt(self, waves: Tensor, run: Any) -> Tensor:
        return torch.from_numpy(log_mel(waves.flatten(0, 1).numpy(), self.params.mel))

    def reconstruct(self, waves: Tensor, run: Any) -> Tensor:
        """Wave → log-mel → wave, one channel at a time."""
        with evaluating(self.net):
            rebuilt = to_waves(self.vocoder_for(run), self.rebuilt(waves, run), run.device, waves.shape[2])
        return rebuilt.reshape(waves.shape)
