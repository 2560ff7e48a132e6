"""Codecs and vocoders in small: a row of each, as the contract suite makes them by the stages `autoencoder` and `vocoder`."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from soundmill import params
from soundmill.models.components.hifigan.vocoder import build_vocoder
from stages import autoencoder, vocoder
from tests.models.components import test_library_codecs, test_mel_autoencoder
from tests.models.components.test_mel_autoencoder import SPEC
from tests.models.components.test_vocoders import VOICE
from tests.stages import of_waves
from tests.stages.of_waves import ONE

LEVELS = "items: [1, 1], text_attention: [false, false], heads: 2, head_width: 4, groups: 2, modulation: 8"
WEIGHTS = ("batch_size=2", "log_every_steps=1", "checkpoint_seconds=0", "validate_every_steps=2")
NETWORK = "autoencoder.network"
REFUSALS = params.read_yaml(Path(__file__).with_name("refusals.yaml"))


@dataclass(frozen=True)
class Component:
    """A kind of codec or vocoder, and how it is made of clips of noise."""

    family: str
    choices: tuple[str, ...]  # of the real configuration
    sizes: tuple[str, ...]  # below its section
    other: tuple[str, str]  # one of them, and how a checkpoint of the sizes above is refused with it
    told: Mapping[str, object]  # metrics
    part: str = "autoencoder"
    steps: int = 4
    killed: tuple[int, ...] = (2,)  # steps that a training dies before
    rate: int = of_waves.RATE
    channels: int = 1
    spec: str | None = None  # of `spectrogram` that the mels are of; None: 16 bands

    @property
    def section(self) -> str:
        return f"{self.family}.autoencoder" if self.part == "autoencoder" else "vocoder"

    def composed(self, *changes: str, trained: bool = True) -> dict:
        """The real configuration, shrunk; changes below its section begin with a dot."""
        weights = [f"weights.{one}" for one in (*WEIGHTS, f"steps={self.steps}")] if trained else []
        own = [f"{self.section}.{one}" for one in (*weights, *self.sizes, f"hardware={ONE}")]
        return of_waves.composed([f"model={self.family}", *self.choices, "execution.workers=1", *own], self.section, changes)

    def loading(self, *changes: str) -> dict:
        """The same with the weights in the project's directory `published`."""
        document = self.composed(*changes, trained=False)
        section = document
        for key in self.section.split("."):
            section = section[key]
        section["weights"] = {"kind": "load", "name": "./published", "revision": None}
        return document

    def write(self, home: Path, level: float = 0.1) -> None:
        """Clips, and the log-mels that it takes."""
        of_waves.write(home, self.rate, self.channels, seconds=0.2, level=level)
        if self.spec:
            of_waves.write_spec(home, of_waves.spec_of(self.composed(), self.spec))
        elif self.channels == 1:
            of_waves.write_mels(home, SPEC)
        else:
            (home / "mels").mkdir()  # it takes none

    def make(self, home: Path, data: Path, document: dict) -> dict:
        """Run its stage in this process; returns its metrics."""
        (home / "inputs").mkdir(exist_ok=True, parents=True)
        params.write_yaml(document, home / "params.yaml")
        stage = autoencoder if self.part == "autoencoder" else vocoder
        stage.main(
            [
                "--family", self.family, "--clips", f"{data}/clips", "--mels", f"{data}/mels",
                "--catalog", f"{data}/catalog.parquet", f"--{self.part}", f"{home}/inputs/{self.part}",
                "--curves", f"{home}/curve.csv", "--grid", f"{home}/grid.png",
                "--metrics", f"{home}/metrics.json", "--params", f"{home}/params.yaml",
            ]
        )  # fmt: skip
        return json.loads((home / "metrics.json").read_text())


def _change(key: str, there: float, here: float) -> tuple[str, str]:
    """Another value of a key, and how a checkpoint with the first is refused."""
    return f".{key}={here}", re.escape(f"{key} is {there} there and {here} here")


def _rave(version: str, *sizes: str) -> Component:
    network = "{version: %s, bands: 4, channels: 4, ratios: [4, 2], dilations: [[1, 3], [1]], latent_channels: 6, %s}"
    noise = "noise: {ratios: %s, filters: 3}, causal: false, pca: true" % ("[4]" if version == "v2" else "[2, 2]")
    of_weights = ("phase_1_steps=3", "num_samples=1024", "scales=[512,128]", "discriminator_every=2")
    discriminators = ("channels=2", "layers=2", *(["periods=[]"] if version == "v1" else []))
    of_weights += tuple(f"discriminators.{one}" for one in discriminators)
    sizes = (f"network={network % (version, noise)}", *(f"weights.{one}" for one in of_weights), *sizes)
    other, told = _change("network.channels", 4, 8), {"phase": 2, "rank": 6, "latent_rate": 500}
    told["latent_values_per_second"], channels = 3000, 2 if version == "v2" else 1  # of which it takes the mean
    return Component("rave", (), sizes, other, told, steps=6, killed=(2, 4), channels=channels)


def _of_waves(codec: str, *sizes: str, other: tuple[str, str], told: dict[str, object], rate: int, channels: int) -> Component:
    choices = (f"codec@audio_dit.autoencoder={codec}",)
    return Component("audio_dit", choices, sizes, other, told, rate=rate, channels=channels)


def _vocoder(conf: str, other: tuple[str, str], *sizes: str, frames: int = 8) -> Component:
    sizes = (*sizes, f"weights.crop_frames={frames}", "griffin_lim_iterations=4")
    return Component("tango", (f"vocoder={conf}",), sizes, other, {"measured_clips": 1}, part="vocoder")


OOBLECK = "network={channels: 4, ratios: [2, 4], multiples: [1, 2], latent_channels: 3, audio_channels: 2, sample_rate: 44100}"
CODECS = {
    "mel_autoencoder": Component(
        "tango",
        (),
        ("network={widths: [8, 16], blocks: 1, latent_channels: 4, groups: 4, pca: false}", "weights.crop_frames=8"),
        _change("network.blocks", 1, 2),
        {},
    ),
    "unet1d": Component(
        "diffusion_ae",
        ("clips.default.channels=2", "spectrogram.diffusion_ae.n_mels=8", "spectrogram.diffusion_ae.hop_length=16"),
        (
            "encoder={channels: 8, blocks: 1, factor: 2, latent_channels: 3, groups: 2}",
            f"network={{channels: [4, 8], factors: [2, 16], attention: [false, false], {LEVELS}}}",
            *("latents_at=1", "weights.num_samples=1024", "decoding.num_steps=2"),
        ),
        _change("encoder.blocks", 1, 2),
        {"latent_rate": 500, "latent_values_per_second": 1500},
        channels=2,
        spec="diffusion_ae",
    ),
    "rave_v2": _rave("v2"),
    "rave_v1": _rave("v1", "weights.features={weight: 10.0, relative: false, skip: 0}"),
    "oobleck": _of_waves(
        "oobleck_laptop",
        OOBLECK,
        "weights.num_samples=4096",
        other=_change("network.latent_channels", 3, 4),
        told={"latent_rate": 44_100 / 8, "latent_values_per_second": 3 * 44_100 / 8},
        rate=44_100,
        channels=2,
    ),
}
VOCODERS = {
    "hifigan": _vocoder(
        "hifigan_laptop",
        _change("network.channels", 32, 16),
        "network={channels: 32, rates: [8, 5, 4], kernels: [16, 11, 8], resblock_kernels: [3], resblock_dilations: [[1, 3]]}",
    ),
    "melgan": _vocoder(
        "melgan_laptop", _change("network.residual_layers", 1, 2), "network={channels: 4, rates: [8, 5, 4], residual_layers: 1}"
    ),
    "istft": _vocoder(
        "istft_laptop", _change("network.layers", 2, 3), "network={head: magnitude, layers: 2, width: 16, hidden: 32}", frames=12
    ),
    "vocos": _vocoder(
        "vocos",
        _change("network.layers", 2, 3),
        "network={head: wave, layers: 2, width: 16, hidden: 32}",
        "weights.discriminator_width=4",
    ),
    "upscaler": _vocoder(
        "upscaler",
        _change("network.layers", 1, 2),
        "network={height: 4, columns_per_second: 20.0, exponent: 0.25, channels: 4, layers: 1}",
    ),
    "diffwave": _vocoder(
        "diffwave_laptop", _change("noise.beta_end", 0.05, 0.06), "network={layers: 4, channels: 16, dilation_cycle: 4}"
    ),
    "unet1d_vocoder": _vocoder(
        "diffusion_laptop",
        _change("network.modulation", 16, 8),
        "network={channels: [8, 16], factors: [1, 4], items: [1, 1], attention: [false, false], text_attention: [false, false], "
        "heads: 1, head_width: 8, groups: 4, modulation: 16}",
    ),
}
ROWS = CODECS | VOCODERS


@dataclass(frozen=True)
class Published:
    """Weights of others, and what takes them."""

    row: Component
    choices: tuple[str, ...]
    publish: Callable[[Path], object]
    told: Mapping[str, object] = field(default_factory=dict)


def _braced(sizes: dict) -> str:
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in sizes.items()) + "}"


_OOBLECK = _of_waves("oobleck", OOBLECK, other=CODECS["oobleck"].other, told={}, rate=44_100, channels=2)
_ENCODEC = _of_waves(
    "encodec",
    f"network={_braced(test_library_codecs.ENCODEC.model_dump())}",
    "bandwidth=8.0",
    other=(
        ".network.sample_rate=4000",
        r"clips has 1 channels at 8000 Hz, but autoencoder\.network has 1 channels at 4000 Hz; make them",
    ),
    told={},
    rate=8000,
    channels=1,
)
PUBLISHED = {
    "mel_autoencoder": Published(CODECS["mel_autoencoder"], (), test_mel_autoencoder.publish, {"scaling_factor": 0.93}),
    "oobleck": Published(_OOBLECK, (), test_library_codecs.publish_oobleck, {"latent_rate": 44_100 / 8}),
    "encodec": Published(
        _ENCODEC, (), test_library_codecs.publish_encodec, {"latent_rate": 1000, "latent_values_per_second": 8000, "bandwidth": 8.0}
    ),
    "hifigan": Published(
        VOCODERS["hifigan"],
        (f".network={_braced(VOICE.model_dump())}",),
        lambda home: build_vocoder(VOICE, SPEC.n_mels, SPEC.sample_rate).save_pretrained(home / "vocoder"),
    ),
}


class Components:
    """Data of rows, and what was made of it, each once a session."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.metrics: dict[str, dict] = {}

    def data(self, name: str) -> Path:
        home = self.home / f"data-{name}"
        if not home.exists():
            ROWS[name].write(home)
        return home

    def made(self, name: str) -> Path:
        """A directory with the component in `inputs`."""
        home = self.home / name
        if name not in self.metrics:
            self.metrics[name] = ROWS[name].make(home, self.data(name), ROWS[name].composed())
        return home
