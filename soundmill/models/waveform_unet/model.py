"""A trained waveform U-Net: the model and its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from soundmill.diffusion import solvers
from soundmill.diffusion.deviation import Deviation, on_unit_variance, scaled
from soundmill.diffusion.guidance import Condition, guided
from soundmill.diffusion.paths import Net
from soundmill.diffusion.sampling import Draw, Steps, inpaint, restyle, sample, slerp
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.noise import noise_of
from soundmill.models.family import FamilyConfig, Request, Run
from soundmill.models.params import read_clip_plan
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.trained import TrainedModel
from soundmill.models.waveform_unet.params import TrainParams

FAMILY = "waveform_unet"


class Config(FamilyConfig):
    family: Literal["waveform_unet"] = FAMILY
    params: TrainParams
    sample_rate: int
    channels: int = Field(ge=1, le=64)
    labels: list[str]
    text: TextConfig | None
    sigma_data: PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=2)] = 1.0  # earlier checkpoints lack it


@dataclass
class WaveformUNet(TrainedModel):
    """A `Model` (models/family.py)."""

    config, weights = Config, "unet.safetensors"

    params: TrainParams
    net: UNet1d
    sample_rate: int
    channels: int
    sigma_data: Deviation = 1.0  # of the waves, by which the net's input is divided

    @property
    def num_samples(self) -> int:
        return self.params.num_samples

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise → waves; a request without label or caption is unconditional."""

        def work(net: Net, part: Sequence[Request], waves: Tensor | None) -> Tensor:
            return sample(self._steps(run.sampling.num_steps), net, self._noise(part, run))

        return self._in_batches(work, requests, None, run)

    def transform(self, waves: Tensor, requests: Sequence[Request], run: Run) -> Tensor:
        """Restyle by `amount`, or if `keep` is set regenerate everything else; shorter waves are padded with silence."""
        sampling, length = run.sampling, waves.shape[2]

        def work(net: Net, part: Sequence[Request], waves: Tensor | None) -> Tensor:
            sounds = self._padded(waves).to(run.device)
            if sampling.keep is None:
                return restyle(self._steps(sampling.num_steps, sampling.amount), net, sounds, self._noise(part, run))
            kept = torch.zeros(self.num_samples, dtype=torch.bool)
            for start, stop in [*sampling.keep, [length, self.num_samples]]:
                kept[start:stop] = True
            draw = Draw.of_seeds([request.seed for request in part], self.sigma_data)
            return inpaint(self._steps(sampling.num_steps), net, sounds, kept.to(run.device), draw, sampling.resamples)

        return self._in_batches(work, requests, waves, run)[..., :length]

    def interpolate(self, ends: tuple[Request, Request], waves: Tensor | None, shares: Sequence[float], run: Run) -> Tensor:
        """See models/family.py; recordings are mixed, noised by `amount` and denoised."""
        first, second = noise_of(ends, self.channels, self.num_samples)
        noise = torch.stack([slerp(first, second, share) for share in shares])
        length = self.num_samples if waves is None else waves.shape[2]
        padded = torch.zeros_like(first).expand(2, -1, -1) if waves is None else self._padded(waves)
        amount = 1.0 if waves is None else run.sampling.amount
        starts = torch.stack([torch.stack([torch.lerp(*padded, share), one]) for share, one in zip(shares, noise, strict=True)])

        def work(net: Net, part: Sequence[Request], starts: Tensor | None) -> Tensor:
            sounds, noise = starts.to(run.device).unbind(1)
            return restyle(self._steps(run.sampling.num_steps, amount), net, sounds, scaled(noise, self.sigma_data))

        return self._in_batches(work, [ends[0]] * len(shares), starts, run)[..., :length]

    def _steps(self, num_steps: int, start: float = 1.0) -> Steps:
        return solvers.continuous(self.params.path, num_steps, start)

    def _noise(self, requests: Sequence[Request], run: Run) -> Tensor:
        return scaled(noise_of(requests, self.channels, self.num_samples).to(run.device), self.sigma_data)

    def _padded(self, waves: Tensor) -> Tensor:
        return torch.nn.functional.pad(waves, (0, self.num_samples - waves.shape[2]))

    def _in_batches(self, work: Any, requests: Sequence[Request], waves: Tensor | None, run: Run) -> Tensor:
        def in_batch(items: slice) -> Tensor:
            condition, null = self._conditions(requests[items], run)
            scale = run.sampling.guidance_scale if condition else 1.0
            denoise = on_unit_variance(in_precision(guided(self.net, condition, null, scale), run), self.sigma_data)
            return work(denoise, requests[items], None if waves is None else waves[items])

        return sampled(self.net, len(requests), run, in_batch)

    def _conditions(self, requests: Sequence[Request], run: Run) -> tuple[Condition, Condition]:
        """The conditions of the requests, and the null condition, as the network takes them."""
        if self.condition == "none":
            return (), ()
        if self.condition == "labels":
            weights = self.vectors(requests, run).to(run.device)
            return (weights,), (torch.zeros_like(weights),)
        captions = [request.caption for request in requests]
        if self.texts is not None:
            states = [self.texts.of(caption) for caption in captions]
        else:
            states = text_states.encode(self.text, captions, run.home, run.scratch, run.digests)
        values, mask = text_states.pad(states)
        text = values.float().to(run.device), mask.to(run.device)
        dropped = torch.tensor([not caption for caption in captions], device=run.device)
        return (*text, dropped), (*text, torch.ones_like(dropped))

    @classmethod
    def build(cls, config: Config) -> UNet1d:
        return build_net(config.params, config.channels, len(config.labels))


def build_net(params: TrainParams, channels: int, num_labels: int) -> UNet1d:
    """The network, initialised from torch's global generator."""
    text = {"text_width": params.text.width, "null_tokens": params.text.null_tokens} if params.condition == "caption" else {}
    labels = {"num_labels": num_labels} if params.condition == "label" else {}
    return UNet1d(params.network, params.transform, channels, channels, **labels, **text)


def net_in(document: dict[str, Any], params: TrainParams, num_labels: int) -> UNet1d:
    """See models/family.py."""
    return build_net(params, read_clip_plan(document, FAMILY)["channels"], num_labels)


load = WaveformUNet.load
