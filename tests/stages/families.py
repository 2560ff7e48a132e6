"""Families in small: a row for each way to train one, as the contract suite does, and what it trains on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from soundmill import params, shards, stage, text
from stages import spectrogram
from stages.encode_text import encode_shard
from tests.stages import of_waves, tango_inputs
from tests.stages.components import CODECS, PUBLISHED, Components
from tests.stages.of_waves import LABELS, ONE, RATE

STEPS = 4
TRAIN = {
    "steps": STEPS, "batch_size": 2, "log_every_steps": 1, "checkpoint_seconds": 0, "validate_every_steps": 2,
    "validate_batches": 1, "grid": "{columns: 2, rows: 1}", "hardware": ONE, "sampling.num_steps": 2,
    "sampling.griffin_lim_iterations": 2,
}  # fmt: skip
LORA = "{rank: 2, alpha: 4.0, dropout: 0.1, targets: [to_q, to_k, to_v, to_out.0], dora: %s}"
QUICK = ("optimiser.learning_rate=0.1", "optimiser.warmup_steps=0")  # to be heard after four steps


@dataclass(frozen=True)
class Row:
    """A way to train a family, what its training tells, and what the model then is."""

    family: str
    write: Callable[[Path, Row, Components], None]  # what it trains on
    choices: tuple[str, ...]  # of the real configuration
    sizes: tuple[str, ...]  # below `train`; of what the configuration lacks, with a plus
    told: dict[str, int]  # metrics of a training
    model: tuple[int, int, int]  # sample rate, channels, samples of a sound
    can: set[str]
    prompt: str = ""  # what it is asked for
    labels: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()  # keys of TRAIN
    test_clips: tuple[str, str] = ("clip-6.wav", "clip-7.wav")
    frames: int | None = None  # samples of these; None: as the model's
    rounding: int = 1  # of 16 bits, where it makes one sound at a time or two
    base: str | None = None  # row whose checkpoint is adapted
    killed_before: int | None = 2  # batch; None: another row of the family is killed
    parts: tuple[str, ...] = ()  # of a checkpoint, beside weights and what all have
    catalog: str = "catalog"

    def composed(self, *changes: str) -> dict:
        """The real configuration, shrunk; changes below `train` begin with a dot."""
        lacks = (*self.lacks, *(() if self.mels else ("sampling.griffin_lim_iterations",)))
        train = [f"{key}={value}" for key, value in TRAIN.items() if key not in lacks]
        named = [f"{'+' * one.startswith('+')}{self.family}.train.{one.lstrip('+')}" for one in (*train, *self.sizes)]
        generate = [f"{self.family}.generate.{one}" for one in ("count=2", "batch_size=2", "codec_count=1", "precision='32'")]
        clips = f"families.{self.family}.clips=default"
        overrides = [f"model={self.family}", "execution.workers=1", *self.choices, clips, *named, *generate]
        return of_waves.composed(overrides, f"{self.family}.train", changes)

    @property
    def mels(self) -> bool:
        """Whether Griffin-Lim makes its sounds."""
        return self.write in (pictures, loops, mel_latents)


def waves(home: Path, row: Row, components: Components) -> None:
    rate, channels, _ = row.model
    of_waves.write(home, rate, channels)
    if "text" in row.composed() and row.family in row.composed()["text"]:
        of_waves.make_texts(row.family, home, row.composed(), "parts/text")


def _log_mels(home: Path, row: Row, seconds: float, short: float) -> None:
    of_waves.write(home, seconds=seconds, short=short)
    document = row.composed()
    if row.family in document["text"]:
        of_waves.make_texts(row.family, home, document, "parts/text")
    params.write_yaml(document, home / "params.yaml")
    arguments = ["--variant", row.family, "--audio", f"{home}/clips", "--spectrograms", f"{home}/inputs"]
    stage.main(spectrogram.run, "spectrogram", [*arguments, "--params", f"{home}/params.yaml"])


def pictures(home: Path, row: Row, components: Components) -> None:
    _log_mels(home, row, 0.3, 0.15)


def loops(home: Path, row: Row, components: Components) -> None:
    _log_mels(home, row, 1.36, 1.36)  # 136 frames, for pictures of 128


def mel_latents(home: Path, row: Row, components: Components) -> None:
    tango_inputs.write(home)


def latents_of(codec: str) -> Callable[[Path, Row, Components], None]:
    def write(home: Path, row: Row, components: Components) -> None:
        """Of a codec that is trained here, or loaded."""
        if codec in CODECS:
            shutil.copytree(components.data(codec), home)
            shutil.copytree(components.made(codec) / "inputs/autoencoder", home / "inputs/autoencoder")
        else:
            published = PUBLISHED[codec]
            published.row.write(home)
            published.publish(home / "published")
            published.row.make(home, home, published.row.loading(*published.choices))
        of_waves.make_latents(row.family, home, row.composed())
        if row.prompt.startswith("a "):
            encoder = text.make_scratch(home / "encoder", **tango_inputs.SCRATCH)
            (home / "inputs/text").mkdir()
            config = {**encoder.identity(), "max_tokens": 64, "scratch": tango_inputs.SCRATCH}
            captions = ["", *(f"a {label} rings" for label in LABELS)]
            encode_shard(captions, encoder, config, home / "inputs/text" / shards.shard_name(0))

    return write


def _unet(attention: str = "true", texts: str = "false") -> str:
    levels = f"channels: [4, 8], factors: [1, 4], attention: [false, {attention}], text_attention: [false, {texts}]"
    return f"network={{{levels}, items: [1, 1], heads: 2, head_width: 4, groups: 2, modulation: 8}}"


def _waveform(condition: str, path: str = "v", **more: object) -> Row:
    choice = "captions" if condition == "caption" else "one_shots"
    sizes = ("num_samples=4096", f"condition={condition}", f"path={path}", _unet(texts="true"))
    scratch = ("text.waveform_unet.scratch.width=16",) if condition == "caption" else ()
    choices, able = (f"waveform_unet={choice}", *scratch), {"generate", "transform", "interpolate"}
    return Row("waveform_unet", waves, choices, sizes, model=(44_100, 2, 4096), can=able, frames=4096, **more)


def _diffwave(condition: str, **more: object) -> Row:
    sizes = ("crop_seconds=0.1", f"condition={condition}", "network={layers: 3, channels: 4, dilation_cycle: 3}", "mel.n_mels=8")
    choice = {"mel": "laptop", "caption": "captions"}.get(condition, "sc09_laptop")
    scratch = ("text.diffwave.scratch.width=16",) if condition == "caption" else ()
    able = {"reconstruct"} if condition == "mel" else {"generate"}
    model = (RATE, 1, 160_000 if condition == "mel" else 1600)
    sizes = (*sizes, "sampling.betas=[0.01,0.3]")
    return Row(
        "diffwave", waves, (f"diffwave={choice}", *scratch), sizes, model=model, can=able, frames=1600,
        lacks=("sampling.num_steps",), **more,
    )  # fmt: skip


def _tango(*sizes: str, **more: object) -> Row:
    net = ("network.widths=[8,16]", "network.heads=[2,2]", "network.text_levels=[1]", "real_items=2")
    return Row(
        "tango", more.pop("write", mel_latents), ("text.tango.scratch.width=16", *more.pop("choices", ())), (*net, *sizes),
        lacks=("batch_size",), can={"generate", "reconstruct", "transform", "interpolate"}, **more,
    )  # fmt: skip


def _of_stereo(family: str, size: str, samples: int, *able: str) -> Row:
    sizes, model = (*size.split(), _unet("false")), (RATE, 2, samples)
    return Row(family, waves, (), sizes, {"clips": 4}, model, set(able), frames=1600, catalog="two_held_out")


def _rave(*sizes: str, choices: tuple[str, ...] = (), **more: object) -> Row:
    able, choices = {"generate", "reconstruct", "transform"}, (*choices, "rave.latents.num_samples=4096")
    sizes, more = (*sizes, _unet()), more | LATENTS
    return Row("rave", latents_of("rave_v2"), choices, sizes, model=(RATE, 1, 4096), can=able, catalog="two_held_out", **more)


def _dit(*sizes: str, **more: object) -> Row:
    net = "network={layers: 1, heads: 2, head_width: 8, key_heads: 1, condition_width: 8}"
    text = "text.audio_dit.scratch.width=16", "text.audio_dit.max_tokens=8"
    size = () if "labels" in more else ("audio_dit=captions", *text)
    return Row(
        "audio_dit", more.pop("write", mel_latents), (*size, *more.pop("choices", ())), (net, *sizes),
        can={"generate", "reconstruct", "transform", "interpolate"}, **more,
    )  # fmt: skip


def _dit_of(codec: str, samples: int, *choices: str, **more: object) -> Row:
    """By label, of the latents of a codec."""
    told = {"choices": (*choices, f"audio_dit.latents.num_samples={samples}"), "told": {"clips": 5, "labels": 2}}
    return _dit(write=latents_of(codec), killed_before=None, **told, **more, **BY_LABEL)


def _ddpm(*sizes: str, choices: tuple[str, ...] = (), **more: object) -> Row:
    more |= {"model": (RATE, 1, 4800), "can": {"generate", "interpolate", "reconstruct", "transform"}}
    return Row("ddpm_mel", pictures, choices, (*sizes, "picture.seconds=0.3", "picture.width=32"), **more)


AUTOENCODER = ("autoencoder/config.json", "autoencoder/model.safetensors")
OF_CODEC = (*AUTOENCODER, "autoencoder/trained_on.parquet")
OF_MELS = {"test_clips": ("test-0.wav", "test-1.wav"), "frames": tango_inputs.LENGTH, "rounding": 330, "parts": AUTOENCODER}
LATENTS = {"frames": 3200, "parts": OF_CODEC}
BY_LABEL = {"prompt": "bell", "labels": LABELS}
BY_CAPTION = {"prompt": "a bell rings"}
OF_TANGO = {"model": (RATE, 1, 5120), **OF_MELS, **BY_CAPTION}
OF_DIT = {"model": (RATE, 1, 4000), **OF_MELS}
ROWS = {
    "ddpm_mel": _ddpm(
        "network.widths=[8,16,24]", "network.embedding_size=8", told={"clips": 5, "labels": 2}, rounding=330, **BY_LABEL
    ),
    "ddpm_mel_dit_caption": _ddpm(
        "network={layers: 1, heads: 2, head_width: 8, key_heads: 1}",
        choices=("ddpm_mel=captions", "net@ddpm_mel.train.network=dit", "text.ddpm_mel.scratch.width=16"),
        told={"clips": 5, "captions": 2},
        **BY_CAPTION,
    ),
    "tango": _tango("accumulate=2", told={"clips": 4, "mixes": 2, "captions": 7}, killed_before=5, **OF_TANGO),
    "tango_lora": _tango(f"+lora={LORA % 'false'}", "keep_every_steps=2", *QUICK, told={"clips": 4}, base="tango", **OF_TANGO),
    "tango_dora": _tango(f"+lora={LORA % 'true'}", *QUICK, told={"clips": 4}, base="tango", **OF_TANGO),
    "tango_rave": _tango(
        "mixed_items=0",
        write=latents_of("rave_v2"),
        choices=("latents=rave", "tango.latents.num_samples=4096"),
        told={"clips": 5, "mixes": 0},
        model=(RATE, 1, 4096),
        killed_before=None,
        **LATENTS,
        **BY_CAPTION,
    ),
    "audio_dit": _dit(told={"clips": 4, "captions": 5}, **OF_DIT, **BY_CAPTION),
    "audio_dit_label": _dit(
        *("flow.objective=v", "flow.times=uniform", "flow.base_frames=null", "accumulate=2"),
        told={"clips": 4, "labels": 2},
        killed_before=5,
        **OF_DIT,
        **BY_LABEL,
    ),
    "audio_dit_lora": _dit(f"+lora={LORA % 'false'}", *QUICK, told={"clips": 4}, base="audio_dit", **OF_DIT, **BY_CAPTION),
    "audio_dit_rave": _dit_of("rave_v2", 4096, "codec@audio_dit.autoencoder=rave_laptop", model=(RATE, 1, 3200), **LATENTS),
    "audio_dit_oobleck": _dit_of(
        "oobleck",
        8832,
        "codec@audio_dit.autoencoder=oobleck_laptop",
        CODECS["oobleck"].sizes[0].replace("network", "audio_dit.autoencoder.network"),
        model=(44_100, 2, 8820),
        frames=8820,
        parts=OF_CODEC,
    ),
    "audio_dit_encodec": _dit_of(
        "encodec", 1600, "codec@audio_dit.autoencoder=encodec", model=(8000, 1, 1600), frames=1600, parts=AUTOENCODER
    ),
    "diffusion_ae": Row(
        "diffusion_ae",
        latents_of("unet1d"),
        (
            *CODECS["unet1d"].choices,
            *(f"diffusion_ae.autoencoder.{one}" for one in CODECS["unet1d"].sizes),
            "diffusion_ae.latents.num_samples=4096",
        ),
        (_unet(), "sampling.decoding.num_steps=2"),
        {"clips": 5, "labels": 2},
        (RATE, 2, 4096),
        {"generate", "reconstruct"},
        **LATENTS,
        **BY_LABEL,
    ),
    "rave": _rave(told={"clips": 4, "labels": 2}, **BY_LABEL),
    "rave_caption_flow": _rave(
        "path=rectified_flow",
        choices=("rave=captions", "text.rave.scratch.width=16"),
        told={"clips": 4, "captions": 2},
        killed_before=None,
        **BY_CAPTION,
    ),
    "waveform_unet": _waveform("label", told={"clips": 5, "labels": 2}, killed_before=None, **BY_LABEL),
    "waveform_unet_caption": _waveform("caption", told={"clips": 5, "captions": 2}, **BY_CAPTION),
    "waveform_unet_flow": _waveform("label", path="rectified_flow", told={"clips": 5, "labels": 2}, killed_before=None, **BY_LABEL),
    "waveform_unet_none": _waveform("none", told={"clips": 5, "labels": 0}, killed_before=None),
    "diffwave": _diffwave("mel", told={"clips": 4, "dropped": 1, "labels": 0}, killed_before=None),
    "diffwave_label": _diffwave("label", told={"clips": 4, "dropped": 1, "labels": 2}, **BY_LABEL),
    "diffwave_caption": _diffwave("caption", told={"clips": 4, "dropped": 1, "captions": 2}, **BY_CAPTION),
    "diffwave_none": _diffwave("none", told={"clips": 4, "dropped": 1, "labels": 0}, killed_before=None),
    "upsampler": _of_stereo("upsampler", "num_samples=1024", 1024, "reconstruct", "transform"),
    "diffusion_vocoder": _of_stereo("diffusion_vocoder", "crop_frames=4 mel.n_mels=8", 160_000, "reconstruct"),
    "projected_gan": Row(
        "projected_gan",
        loops,
        ("spectrogram.projected_gan.n_mels=32",),
        (
            "generator={z_width: 4, w_width: 8, mapping_layers: 2, channels: 4, rows: 8, columns: 2, stages: 4, style_mixing: 0.9}",
            *("discriminators.random_widths=[2,4,4,8]", "discriminators.mixed_widths=[2,4,4,8]"),
        ),
        {"clips": 5, "labels": 0},
        (RATE, 1, 21_760),
        {"generate", "reconstruct", "interpolate"},
        lacks=("sampling.num_steps",),
    ),
}


@dataclass
class Trainings:
    """Data of rows, and trainings on it, each once a session."""

    home: Path
    components: Components
    metrics: dict[str, dict] = field(default_factory=dict)

    def data(self, name: str) -> Path:
        name = ROWS[name].base or name
        row, home = ROWS[name], self.home / f"data-{name}"
        if not home.exists():
            row.write(home, row, self.components)
            of_waves.write_tagger(home / "tagger")
        return home

    def composed(self, name: str, *changes: str) -> dict:
        """With the checkpoint that adapters are trained on."""
        base = ROWS[name].base
        return ROWS[name].composed(*([f".start_from={self.trained(base)}/model"] if base else []), *changes)

    def train(self, home: Path, name: str, *changes: str, data: Path | None = None, catalog: str | None = None) -> dict:
        row = ROWS[name]
        document = self.composed(name, *changes)
        return of_waves.train(row.family, home, data or self.data(name), document, f"{catalog or row.catalog}.parquet")

    def trained(self, name: str) -> Path:
        """A directory with the checkpoint in `model`, not to be changed."""
        if name not in self.metrics:
            self.metrics[name] = self.train(self.home / name, name)
        return self.home / name

    def copy(self, name: str, home: Path) -> Path:
        """The checkpoint in a directory of its own."""
        shutil.copytree(self.trained(name) / "model", home / "model")
        return home
