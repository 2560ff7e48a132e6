"""What is around any family's model: waves brought to its rate and channels, requests, sampling by hand; and sounds longer than a
model's, which are as loud as by one window: every family, every length, alike windows and independent ones."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from soundmill import manifest, params
from soundmill.audio.mel import MelSpec, SpectrogramParams
from soundmill.audio.tags import GENERATED, MadeBy
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.models import generation, registry, sounds
from soundmill.models.components import vocoding
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.mel_autoencoder.autoencoder import MelCodec, padded_log_mel
from soundmill.models.family import Request, Run, commands_of
from soundmill.models.projected_gan.model import LoopPicture
from soundmill.training.seeds import seed_of
from tests.imports import ROOT
from tests.prepared import prepare, sound, write_rows


@dataclass
class Model:
    sample_rate: int = 16_000
    channels: int = 1
    num_samples: int | None = None
    condition: str = "none"
    labels: list[str] = field(default_factory=list)

    def reconstruct(self, waves, run):
        return waves


def test_a_wave_is_brought_to_the_models_rate_and_channels():
    stereo = np.stack([np.full(8000, 0.5, np.float32), np.full(8000, -0.1, np.float32)])
    mono = sounds.in_model_format(stereo, 16_000, Model())
    np.testing.assert_allclose(mono, np.full((1, 8000), 0.2), atol=1e-6)
    doubled = sounds.in_model_format(mono, 16_000, Model(sample_rate=44_100, channels=2))
    assert doubled.shape == (2, 22_050)
    np.testing.assert_array_equal(doubled[0], doubled[1])
    np.testing.assert_allclose(doubled[0, 2000:-2000], 0.2, atol=1e-3)
    assert sounds.in_model_format(stereo, 16_000, Model(channels=2)).shape == (2, 8000)


def test_a_stretched_loop_that_overshoots_is_made_quieter_not_cut_off(tmp_path):
    louder = 1.5 * np.sin(np.linspace(0, 100, 8000, dtype=np.float32))[None]
    looped = generation.Looped(120.0, 2, lambda wave, rate, num_samples: louder)
    output, _ = soundfile.read(looped.write(tmp_path / "loop.wav", louder / 1.5, 16_000, {}, MadeBy("x", GENERATED)))
    np.testing.assert_allclose(output, np.tile(louder[0] / np.abs(louder).max(), 2), atol=1e-4)


def test_what_a_model_can_and_cannot():
    sampling = SimpleNamespace(annotation=SimpleNamespace(model_fields={"amount": None}))
    assert commands_of(Model, SimpleNamespace(model_fields={"sampling": sampling})) == ["reconstruct"]


def test_test_clips_ask_for_what_the_model_reads(tmp_path, capsys):
    rows = [
        {"clip_id": "a", "labels": ["rain", "dog"], "captions": ["first", "second"]},
        {"clip_id": "b", "labels": ["unknown"], "captions": []},
    ]
    catalog = tmp_path / "catalog.parquet"
    write_rows([sound(wave=np.zeros(9), split="test", **row) for row in rows], catalog, manifest.CATALOG)
    by_label = sounds.of_clips(Model(condition="labels", labels=["dog", "rain"]), catalog, ["a", "b"], 7)
    assert [(request.labels, request.caption) for request in by_label.values()] == [(("dog", "rain"), ""), ((), "")]
    assert "not trained on: unknown" in capsys.readouterr().out
    by_caption = sounds.of_clips(Model(condition="caption"), catalog, ["a", "b"], 7)
    assert [(request.labels, request.caption) for request in by_caption.values()] == [((), "second"), ((), "")]
    assert [request.seed for request in by_caption.values()] == [request.seed for request in by_label.values()]
    assert len({request.seed for request in by_label.values()}) == 2
    both = sounds.of_clips(Model(condition="caption", labels=["rain"]), catalog, ["a", "b"], 7)
    assert [(request.labels, request.caption) for request in both.values()] == [(("rain",), "second"), ((), "")]
    assert sounds.describe(both["a"]) == "second · rain"
    nothing = sounds.of_clips(Model(), catalog, ["a"], 7)
    assert sounds.describe(nothing["a"]) == ""


def test_prompts_are_texts_or_labels():
    texts = sounds.of_prompts(Model(condition="caption"), ["a bell", "rain"], 2, 0)
    assert [request.caption for request in texts] == ["a bell", "a bell", "rain", "rain"]
    assert len({request.seed for request in texts}) == 4
    mixed = sounds.of_prompts(Model(condition="labels", labels=["dog bark", "rain"]), ["dog", "RAIN"], 2, 0)
    assert [request.labels for request in mixed] == [("dog bark", "rain")] * 2
    assert [request.labels for request in sounds.of_prompts(Model(), [], 1, 0)] == [()]
    with pytest.raises(UserError, match="give a prompt"):
        sounds.of_prompts(Model(condition="caption"), [], 1, 0)
    with pytest.raises(UserError, match="without labels"):
        sounds.of_prompts(Model(), ["rain"], 1, 0)
    assert sounds.describe(Request(labels=("dog", "rain"))) == "dog, rain"


def test_a_model_of_captions_and_labels_takes_both_and_any_other_takes_labels_as_prompts(capsys):
    both = Model(condition="caption", labels=["dog bark", "rain"])
    (told,) = sounds.of_prompts(both, ["a bell"], 1, 0, ["dog"])
    assert told == Request(("dog bark",), "a bell", seed_of(0, "a bell", "dog bark", 0))
    assert sounds.of_prompts(both, [], 1, 0, ["rain"]) == [Request(("rain",), "", seed_of(0, "rain", 0))]
    sounds.print_matched_labels(both, ["a bell"], ["dog"])
    assert capsys.readouterr().err == "'dog' matches the label 'dog bark'\n"
    by_text, by_label = Model(condition="caption"), Model(condition="labels", labels=["dog bark", "rain"])
    texts = [Request(caption=text, seed=seed_of(0, text, 0)) for text in ("a bell", "rain")]
    assert sounds.of_prompts(by_text, ["a bell"], 1, 0, ["rain"]) == texts
    (labelled,) = sounds.of_prompts(by_label, ["dog"], 1, 0, ["rain"])
    assert labelled == Request(("dog bark", "rain"), seed=seed_of(0, "dog bark", "rain", 0))


class Short(Model):
    """Makes a tenth of a second, whatever the request."""

    params = None

    def generate(self, requests, run):
        return torch.zeros(len(requests), 1, 1600)


def test_speed_is_of_the_sound_that_was_made(tmp_path, monkeypatch):
    """A family that makes a second for a clip of five is not five times as fast."""
    tables = prepare(tmp_path)
    kind = SimpleNamespace(load=lambda path: Short(num_samples=1600), loops=False, longer=False)
    monkeypatch.setattr(generation.registry, "family", lambda name: kind)
    monkeypatch.setattr(generation, "use_weights", lambda *_: "last")
    monkeypatch.setattr(generation, "chosen_by", lambda *_: [])
    monkeypatch.setattr(generation, "origin", lambda path: {"family": "short", "checkpoint": "its digest"})
    monkeypatch.setattr(generation, "base_of", lambda *_: None)
    monkeypatch.setattr(generation.time, "monotonic", iter((10.0, 13.0)).__next__)
    params = SimpleNamespace(threads=1, use="last", count=None, seed=0, sampling=None, accelerator="cpu", precision="32")
    params.batch_size, params.codec_split, params.codec_count, params.transfers = 2, "valid", 0, 0
    params.sampling_of = lambda train, family: None
    ctx = SimpleNamespace(name="generate", family="short", cost={}, devices=1, home=tmp_path, scratch=tmp_path, digests=None)
    ctx.show = lambda *_: None
    ctx.progress = lambda *_: nullcontext(lambda count: None)
    monkeypatch.setattr(generation, "of_clips", lambda model, catalog, clips, seed: {clip_id: Request() for clip_id in clips})
    output = generation.run(params, ctx, tmp_path, tables.clips, tables.catalog, tmp_path / "made", tmp_path / "codec")
    assert output["generated"] == 2
    assert ctx.cost["seconds_per_second"] == pytest.approx(3.0 / 0.2)


RATE = 16_000
LENGTHS = [4.999, 5.0, 5.001, 7.3, 10.0, 12.5]
SAMPLING = SimpleNamespace(
    griffin_lim_iterations=4, griffin_lim_momentum=0.99, griffin_lim_grain="none", vocoder="griffin_lim", grain=0.0
)
RUN = Run(SAMPLING, torch.device("cpu"), "32", 1, Path(), Path())
MATERIAL = ["noise", "002 - Rain", "004 - Baby cry", "007 - Helicopter"]


@pytest.fixture(scope="module")
def materials(shared) -> dict[str, torch.Tensor]:
    """Fifteen seconds of each, [1, T]: recordings forth, back and forth."""
    found = {"noise": 0.1 * torch.randn(1, 15 * RATE, generator=torch.Generator().manual_seed(0))}
    for name in MATERIAL[1:]:
        wave = decode.read_mono(sorted((shared / "data/esc10" / name).iterdir())[0], RATE, 60.0)
        found[name] = torch.from_numpy(np.concatenate([wave, wave[::-1], wave]))[None]
    return found


def decibels(wave: torch.Tensor) -> np.ndarray:
    """Of each second, the last one with what follows it."""
    cuts = range(RATE, wave.shape[1] - RATE + 1, RATE)
    return np.array([10 * float((part.square().mean() + 1e-8).log10()) for part in wave.tensor_split(list(cuts), 1)])


@pytest.mark.parametrize("kind", ["alike", "half", "independent"])
@pytest.mark.parametrize("material", MATERIAL)
def test_windows_of_waves_keep_their_power(kind, material, materials):
    """Identity, and drawings that keep every sample's power: what restyle, upsample, transfer and codecs of waves go through."""
    rng = torch.Generator().manual_seed(1)

    def drawn(part: torch.Tensor, start: int) -> torch.Tensor:
        signs = torch.randint(0, 2, part.shape, generator=rng).float() * 2 - 1
        return part * {"alike": 1, "half": torch.where(torch.rand(part.shape, generator=rng) < 0.5, 1, signs)}.get(kind, signs)

    for size, channels in ((5 * RATE, 1), (RATE // 2, 2)):
        model = SimpleNamespace(num_samples=size, sample_rate=RATE, channels=channels)
        for seconds in LENGTHS:
            wave = materials[material][:, : round(seconds * RATE)].expand(channels, -1)
            output = torch.cat(list(sounds.stream_windows(drawn, wave.split(999, 1), wave.shape[1], model)), 1)
            assert output.shape == wave.shape
            assert np.abs(decibels(output) - decibels(wave)).max() < 0.25
            if kind == "alike":
                torch.testing.assert_close(output, wave)


class Plain:
    """An autoencoder whose latents are the log-mels."""

    factor, scaling_factor, channels, digest = 1, 1.0, 1, ""

    def __init__(self, spec: MelSpec):
        self.spec, self.sample_rate, self.samples_per_frame = spec, spec.sample_rate, spec.hop_length

    def to(self, device):
        return self

    def latent_shape(self, frames):
        return 1, frames, self.spec.n_mels

    def posterior(self, waves, num_samples):
        return torch.from_numpy(np.stack([padded_log_mel(wave, self.spec, num_samples) for wave in waves]))[:, None]

    def decode(self, latents):
        return latents

    def sounding(self, *how):
        return MelCodec(self, *how)


def of_seconds(name: str, seconds: float, monkeypatch) -> object:
    """A model of the family that makes `seconds` at once, with Griffin-Lim and without a net."""
    document = params.compose(ROOT / "conf", [f"model={name}"])
    train = params.parse(registry.family(name).train_params, document[name]["train"], name)
    spec = params.section(document, "spectrogram.tagger", "") | document["spectrogram"].get(name, {})
    spec = SpectrogramParams(**spec).spec.model_copy(update={"peak": 0.5} if name == "tango" else {})
    module = registry.family(name).module
    net, num_samples = torch.nn.Identity(), round(seconds * RATE)
    if name == "ddpm_mel":
        picture = train.picture.model_copy(update={"seconds": seconds, "width": round(train.picture.width * seconds / 5)})
        return module.DdpmMel(train, net, spec, module.PictureCodec(picture, spec), torch.zeros(1), torch.zeros(1, 0))
    if name == "projected_gan":
        picture = LoopPicture(spec, num_samples, num_samples // spec.hop_length - 8, "cut")  # its end is silent
        return module.ProjectedGan(train, net, spec, picture, [], [])
    if name in ("tango", "audio_dit"):
        codec = {"params": train, "net": net, "autoencoder": Plain(spec), "frames": num_samples // spec.hop_length}
        return module.Tango(**codec) if name == "tango" else module.AudioDiT(**codec, seconds=seconds, layout=None)
    monkeypatch.setattr(vocoding, "WINDOW_SECONDS", seconds)
    model = module.Vocoding(train, net, RATE) if name == "diffwave" else module.VocodingModel(train, net, 1)
    train.__dict__["mel"] = spec
    monkeypatch.setattr(type(model), "vocoder_for", lambda self, run: GriffinLim(spec, SAMPLING))
    return model


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize("name", ["ddpm_mel", "projected_gan", "tango", "audio_dit", "diffwave", "diffusion_vocoder"])
def test_windows_of_log_mels_are_as_loud_as_one_window(name, materials, monkeypatch):
    for material in ("noise", "004 - Baby cry"):
        for seconds in (5.001, 7.3, 12.5):
            wave = materials[material][:, : round(seconds * RATE)]
            output = []
            for longest in (5.0, 15.0):
                model = of_seconds(name, longest, monkeypatch)
                output.append(torch.cat(list(sounds.reconstructed(model, wave.split(999, 1), wave.shape[1], RUN)), 1))
                assert output[-1].shape == wave.shape
            difference = np.abs(decibels(output[0]) - decibels(output[1])).max()
            assert difference < 0.5, (material, seconds, difference)
