"""A family to throw away: an autoencoder of stereo waves at 22.05 kHz that only reconstructs (tests/test_graph.py installs it)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soundmill.audio.resample import resample
from soundmill.models.catalog import read_weights
from soundmill.models.components.waves.source import WaveCrops, gather_waves
from soundmill.models.family import Family, FamilyConfig, Prepared, Rehearsal, Run
from soundmill.models.params import FamilyTrainParams
from soundmill.models.trained import TrainedModel
from soundmill.params import StageParams
from soundmill.training.loader import Batch, Order, crop_places
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import HeldOut

RATE, CHANNELS, STRIDE = 22_050, 2, 8


class SamplingParams(StageParams):
    gain: float


class TrainParams(FamilyTrainParams):
    batch_size: int
    width: int
    sampling: SamplingParams

    @property
    def items(self) -> int:
        return self.batch_size


class Net(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.encoder = nn.Conv1d(CHANNELS, width, 2 * STRIDE, STRIDE, STRIDE // 2)
        self.decoder = nn.ConvTranspose1d(width, CHANNELS, 2 * STRIDE, STRIDE, STRIDE // 2)

    def forward(self, waves: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(waves)))


class Config(FamilyConfig):
    family: Literal["tiny_codec"] = "tiny_codec"
    params: TrainParams


@dataclass
class TinyCodec(TrainedModel):
    config, sample_rate, channels, num_samples = Config, RATE, CHANNELS, None

    @classmethod
    def build(cls, config: Config) -> Net:
        return Net(config.params.width)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        length = waves.shape[2]
        with torch.no_grad():
            output = self.net.cpu()(nn.functional.pad(waves, (0, -length % STRIDE)))
        return (run.sampling.gain * output[..., :length]).clamp(-1, 1)


class Module(TrainingModule):
    def loss(self, step: int, batch: Batch) -> Tensor:
        (waves,) = batch.values
        waves = torch.stack([torch.from_numpy(resample(wave[0].numpy(), 16_000, RATE)) for wave in waves.cpu()])
        stereo = waves[:, None].repeat(1, CHANNELS, 1)[..., : waves.shape[1] // STRIDE * STRIDE].to(self.device)
        return (self.net(stereo) - stereo).abs().mean()


def prepare(params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: TinyCodec | None) -> Prepared:
    splits = read_weights(catalog)
    clip_weights, unseen = splits["train"], list(splits["valid"])
    torch.manual_seed(params.seed)
    model = TinyCodec(params, Net(params.width))
    order = Order(params.seed, clip_weights, params.batch_size)
    rng = torch.Generator().manual_seed(params.seed)
    return Prepared(
        Module(model.net, params, params.steps or order.steps(params.epochs)),
        model,
        WaveCrops(gather_waves(clips, list(clip_weights), ctx.scratch), 8_000),
        order,
        partial(crop_places, params.seed, params.batch_size),
        8_000 / RATE,
        clip_ids=list(clip_weights),
        counts={},
        samples=0.1 * torch.randn(2, CHANNELS, RATE, generator=rng),
        columns=2,
        held_out=HeldOut(WaveCrops(gather_waves(clips, unseen, ctx.scratch), 8_000), len(unseen)) if unseen else None,
    )


def build_net(params: TrainParams, channels: int, num_labels: int) -> Net:
    return Net(params.width)


load = TinyCodec.load


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: Net, labels: int) -> Rehearsal:
    module = Module(net, params, steps=1)
    return Rehearsal(
        module, lambda step: Batch(step, None, (torch.randn(params.batch_size, 1, 8_000),)), params.batch_size, passes=1
    )


FAMILY = Family(
    name="tiny_codec",
    title="a tiny autoencoder of stereo waves",
    paper="none",
    train_params=TrainParams,
    commands=("reconstruct",),
    part="autoencoder",
)
