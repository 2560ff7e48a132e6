"""A model as TorchScript, with a script that runs it in plain torch: RAVE codecs, and waveform U-Nets without captions."""

import io
import json
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from soundmill.audio.tags import CHANGED, GENERATED, MadeBy
from soundmill.errors import UserError
from soundmill.models import live
from soundmill.models.family import Model, made_by, use_weights
from soundmill.models.waveform_unet.model import WaveformUNet
from soundmill.publishing.card import CODEC, NET

LOADER, TAGS = "load.py", "tags.bin"
SCRIPTS = Path(__file__).with_name("scripts")


def write(checkpoint: Path, model: Model, source: dict[str, str], directory: Path) -> str | None:
    """Write the network, the script and its tags into a directory, if the model can be exported; returns the network's name.

    `source` is the `origin` of the checkpoint.
    """
    if isinstance(model, WaveformUNet) and model.condition != "caption":
        use_weights(model, checkpoint, model.params.use)
        export_net(directory / NET, model)
        _write_script(directory, "generator.py", made_by(source, GENERATED))
        return NET
    return write_codec(checkpoint, directory)


def write_codec(checkpoint: Path, directory: Path) -> str | None:
    """Write the RAVE codec that a checkpoint is or has, its script and tags into a directory; returns the codec's name, if any."""
    try:
        codec = live.find(checkpoint)
    except UserError:
        return None
    live.export_streaming(directory / CODEC, codec)
    _write_script(directory, "codec.py", MadeBy(f"rave codec {codec.digest}", CHANGED))
    return CODEC


def _write_script(directory: Path, script: str, maker: MadeBy) -> None:
    shutil.copyfile(SCRIPTS / script, directory / LOADER)
    (directory / TAGS).write_bytes(maker.chunks)


class _Denoiser(nn.Module):
    """A waveform U-Net with the same inputs whether it has labels or not."""

    def __init__(self, model: WaveformUNet):
        super().__init__()
        self.net, self.by_label = model.net, model.condition == "labels"

    def forward(self, waves: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        return self.net(waves, level, labels) if self.by_label else self.net(waves, level)


def export_net(path: Path, model: WaveformUNet) -> None:
    """Write a waveform U-Net as TorchScript, for one sound (waves [1, C, T], level [1], label weights [1, labels]) → v."""
    labels = list(model.labels) if model.condition == "labels" else []
    sampling = model.params.sampling
    facts = {
        "sample_rate": model.sample_rate,
        "channels": model.channels,
        "samples": model.num_samples,
        "labels": labels,
        "deviation": model.sigma_data,
        "steps": sampling.num_steps,
        "guidance": sampling.guidance_scale,
    }
    example = torch.zeros(1, model.channels, model.num_samples), torch.full((1,), 0.5), torch.zeros(1, len(labels))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers torch.export, whose files need the torch that wrote them
        traced = torch.jit.trace(_Denoiser(model).eval(), example, check_trace=False)
    buffer = io.BytesIO()  # torch would store a file's name in its bytes
    torch.jit.save(traced, buffer, {live.ABOUT: json.dumps(facts, sort_keys=True)})
    path.write_bytes(buffer.getvalue())
