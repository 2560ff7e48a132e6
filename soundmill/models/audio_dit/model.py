"""A trained transformer: the model and its checkpoint, which contains its codec and vocoder, and its text encoder if imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from soundmill.errors import UserError
from soundmill.models.audio_dit import windows
from soundmill.models.audio_dit.latents import Layout
from soundmill.models.audio_dit.params import TrainParams
from soundmill.models.components import registry
from soundmill.models.components.choice import latent_components, vocoder_of
from soundmill.models.components.contracts import Codec, Kind, LatentCodec, Vocoder
from soundmill.models.components.dit.network import Conditions, DiT, padded
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.family import MAX_FRAMES, FamilyConfig, Request, Run
from soundmill.models.trained import TrainedModel, label_weights
from soundmill.training import checkpoint

FAMILY = "audio_dit"
TEXT_ENCODER = "text_encoder"  # in imported checkpoints


class Config(FamilyConfig):
    family: Literal["audio_dit"] = FAMILY
    params: TrainParams
    frames: int = Field(ge=1, le=MAX_FRAMES)
    seconds: float | None = Field(None, gt=0)  # of the longest training clip; null: unknown, as in earlier checkpoints
    labels: list[str]
    text: TextConfig | None
    mean: list[float]  # of each channel of the latents
    deviation: list[float]


@dataclass
class AudioDiT(TrainedModel):
    """A `Model` (models/family.py). It makes sounds of any length; `num_samples` is that of the longest training clip, and longer
    sounds are made of windows that continue each other."""

    config, weights = Config, "transformer.safetensors"

    params: TrainParams
    net: DiT
    kind: Kind  # of the autoencoder
    autoencoder: LatentCodec
    frames: int  # of the sounds whose latents the net is trained on: of log-mels, or of latents if the codec has none
    seconds: float | None  # of the longest training clip; None: unknown, taken for as long as the latents
    layout: Layout
    vocoder: Vocoder | None = None  # None: Griffin-Lim

    @property
    def mean(self) -> list[float]:
        return self.layout.mean.tolist()

    @property
    def deviation(self) -> list[float]:
        return self.layout.deviation.tolist()

    @property
    def sample_rate(self) -> int:
        return self.autoencoder.sample_rate

    @property
    def channels(self) -> int:
        return self.autoencoder.channels

    @property
    def num_samples(self) -> int:
        """The latents may be longer than any clip: what follows a clip in them was silence, and its length is told."""
        held = self.frames * self.autoencoder.samples_per_frame
        return min(held, round(self.seconds * self.sample_rate)) if self.seconds else held

    @property
    def latent_frames(self) -> int:
        return self.autoencoder.latent_shape(self.frames)[1]

    @property
    def samples_per_latent(self) -> int:
        return self.frames * self.autoencoder.samples_per_frame // self.latent_frames

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise and conditions → latents → waves, as long as the longest request; shorter ones end with silence."""
        lengths = [self._length(request, run) for request in requests]
        waves = torch.zeros(len(requests), self.channels, max(lengths))
        for start in range(0, len(requests), run.batch_size):
            part = slice(start, start + run.batch_size)
            latents = windows.sample(self, requests[part], lengths[part], run)
            for wave, x0, request, length in zip(waves[part], latents, requests[part], lengths[part], strict=True):
                codec = self.codec(run, x0.shape[1])
                wave[:, :length] = codec.decode(self.layout.unfold(x0[None]), [request.seed])[0, :, :length]
            run.progress(len(latents))
        return waves

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → latent → wave."""
        codec = self.codec(run, self.latent_frames)
        return codec.decode(codec.encode(waves))[..., : waves.shape[2]]

    def vocoder_for(self, run: Run) -> Vocoder | None:
        return vocoder_of(run.sampling, self.vocoder, self.autoencoder.spec)

    def rebuilt(self, waves: Tensor, run: Run) -> Tensor:
        codec = self.codec(run, self.latent_frames)
        return codec.to_log_mels(codec.encode(waves))

    def conditions(self, requests: Sequence[Request], seconds: Sequence[float], run: Run) -> Conditions:
        """What the net is told of sounds that start at 0 and last `seconds`, on the run's device."""
        network = self.params.network
        captions = [request.caption for request in requests]
        states = text_states.states_of(self.text, self.texts, captions, run) if self.text else [None] * len(requests)
        ends = torch.tensor(seconds)
        conditions = Conditions(
            *padded(states, network.text_tokens, network.text_width),
            torch.stack([label_weights(request.labels, self.labels) for request in requests]),
            torch.stack([torch.zeros_like(ends), ends], 1),
            torch.ones(len(requests), 2, dtype=torch.bool),
        )
        return Conditions(*(value.to(run.device) for value in conditions))

    def codec(self, run: Run, latent_frames: int) -> Codec:
        """The autoencoder for sounds of `latent_frames` latents, with the vocoder of the run if it needs one."""
        frames = latent_frames * (self.frames // self.latent_frames)
        return self.kind.sound(self.autoencoder, self.vocoder_for(run), frames, run.sampling.grain, run.device)

    def _length(self, request: Request, run: Run) -> int:
        """Length in samples that a request asks for."""
        seconds = request.seconds or run.sampling.seconds
        return max(1, round(seconds * self.sample_rate)) if seconds else self.num_samples

    @classmethod
    def components(cls, config: Config, directory: Path, whole: Path) -> dict[str, Any]:
        found = latent_components(config.params.sampling, directory, whole)
        autoencoder, text = found["autoencoder"], config.text
        channels, _, bands = autoencoder.latent_shape(config.frames)
        if {len(config.mean), len(config.deviation)} != {channels * bands}:
            raise UserError(
                f"{directory / checkpoint.CONFIG}: mean and deviation must have {channels * bands} values, one a channel"
            )
        layout = Layout(bands, torch.tensor(config.mean), torch.tensor(config.deviation), autoencoder.scaling_factor)
        if text and (whole / TEXT_ENCODER).is_dir():
            text = text.model_copy(update={"name": str((whole / TEXT_ENCODER).resolve())})
        return {**found, "layout": layout, "text": text}

    @classmethod
    def build(cls, config: Config, autoencoder: LatentCodec, **others: Any) -> DiT:
        return build_net(config.params, autoencoder.latent_shape(config.frames), len(config.labels))


def build_net(params: TrainParams, latent_shape: tuple[int, int, int], num_labels: int) -> DiT:
    """The transformer over latents [channels, frames, bands], initialised from torch's global generator."""
    channels, frames, bands = latent_shape
    return DiT(params.network, channels * bands, frames, num_labels)


def net_in(document: dict[str, Any], params: TrainParams, num_labels: int) -> DiT:
    """See models/family.py."""
    return build_net(params, registry.latent_shape(document, FAMILY), num_labels)


load = AudioDiT.load
