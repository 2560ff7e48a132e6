"""What single families do. `waveform_unet`: sounds of recordings and between seeds, conditions, the crops it trains on;
`upsampler`: what it hears, its command; `rave`: its codec's two phases, and what is transferred for its report; those that diffuse
waves: unit variance; `projected_gan`: what it looks through, and loops at a tempo."""

import json
import re
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from soundmill import manifest, params, shards
from soundmill.audio import flac, mel
from soundmill.decoding import decode
from soundmill.evaluation import family
from soundmill.models import generation, registry
from soundmill.models.components.registry import load_codec
from soundmill.models.components.unet1d.codec import codec
from soundmill.models.components.unet1d.vocoder import vocoder
from soundmill.models.family import Request
from soundmill.models.upsampler.model import without_upper_band
from tests.commands.running import refused, soundmill, works
from tests.models.components.test_mel_autoencoder import SPEC
from tests.prepared import edit
from tests.stages import of_waves
from tests.stages.components import CODECS, Components
from tests.stages.components import ROWS as MADE
from tests.stages.families import ROWS, Trainings
from tests.stages.of_waves import config_of


def load(trainings: Trainings, name: str):
    return registry.family("waveform_unet").load(trainings.trained(name) / "model")


@pytest.mark.parametrize("name", ["waveform_unet_none", "waveform_unet", "waveform_unet_caption"])
def test_guidance_changes_what_has_a_condition(tmp_path, trainings, name):
    """By hand a caption's states come from the encoder."""
    place, asked = trainings.trained(name) / "model", [ROWS[name].prompt] if ROWS[name].prompt else []
    guided, plain = (
        soundfile.read(generation.generate_sounds(place, asked, 1, 0, tmp_path / by, tmp_path, [f"guidance_scale={by}"])[0])[0]
        for by in ("2.0", "1.0")
    )
    assert (np.abs(guided - plain).max() > 1e-4) == bool(asked)  # of waves of standard deviation 0.1


def test_restyles_from_nothing_to_everything(tmp_path, trainings):
    model = load(trainings, "waveform_unet")
    waves = 0.3 * torch.randn(2, 2, 3000, generator=torch.Generator().manual_seed(0))
    expected = [Request(("bell",), seed=1), Request(("rain",), seed=2)]

    def transformed(*settings: str) -> torch.Tensor:
        with generation.running(model, tmp_path, settings) as run:
            return model.transform(waves, expected, run)

    assert torch.equal(transformed("amount=0.0"), waves)
    with generation.running(model, tmp_path) as run:
        torch.testing.assert_close(transformed("amount=1.0"), model.generate(expected, run)[..., :3000])


@pytest.mark.parametrize(("crop", "fixed"), [("start", True), ("random", False)])
def test_shorter_clips_end_in_silence_and_crops_begin_where_they_are_told_to(tmp_path, trainings, crop, fixed):
    kind, data = registry.family("waveform_unet"), trainings.data("waveform_unet_none")
    document = ROWS["waveform_unet_none"].composed(f".crop={crop}", ".num_samples=3968")
    expected = params.parse(kind.train_params, document["waveform_unet"]["train"], "waveform_unet.train")

    class Context:
        scratch = tmp_path

    prepared = kind.prepare(expected, Context, data / "clips", data / "clips", tmp_path, data / "catalog.parquet", None)
    first, second = (prepared.source.batch(np.array([0, 4]), prepared.draw(step).numpy())[0] for step in (0, 1))
    assert first.shape == (2, 2, 3968)
    assert torch.equal(first[0], second[0]) == fixed
    assert (first[1, :, 2205:] == 0).all()
    assert (first[1, :, :2205] != 0).any()


def test_the_low_band_is_all_that_an_upsampler_sees():
    """Of white noise nearly a quarter of the energy; a tone below a quarter of the rate comes through, one above it does not."""
    noise = torch.randn(1, 1, 16_384, generator=torch.Generator().manual_seed(0))
    assert 0.2 < float(without_upper_band(noise, 4).square().mean() / noise.square().mean()) < 0.25
    time = torch.arange(16_384) / 16_384
    low, high = (torch.sin(2 * torch.pi * hertz * time)[None, None] for hertz in (1000, 3000))
    assert float((without_upper_band(low, 4) - low)[..., 100:-100].abs().max()) < 1e-2
    assert float(without_upper_band(high, 4)[..., 100:-100].abs().max()) < 1e-2


def test_an_upsampler_hears_no_more_than_the_low_band(tmp_path, trainings):
    """Two sounds of the same low band get the same upper band, and `soundmill upsample` makes it of a file of that rate."""
    trainings.copy("upsampler", tmp_path)
    model = registry.family("upsampler").load(tmp_path / "model")
    time = torch.arange(1024) / of_waves.RATE
    low, high = (0.3 * torch.sin(2 * torch.pi * hertz * time).expand(1, 2, -1) for hertz in (800, 5000))
    with generation.running(model, tmp_path) as run:
        output, same, other = (model.reconstruct(waves, run) for waves in (low, low + high, -low))
    torch.testing.assert_close(output[..., 200:-200], same[..., 200:-200], atol=2e-3, rtol=0)
    assert (output - other).abs().max() > 1e-2

    soundfile.write(tmp_path / "low.wav", 0.1 * np.random.default_rng(0).standard_normal(1000), 4000)
    soundfile.write(tmp_path / "high.wav", 0.1 * np.random.default_rng(0).standard_normal(1000), 8000)
    done = works("upsample", "low.wav", "high.wav", "--checkpoint", "model", "--output", "up", cwd=tmp_path)
    assert "high: has 8000 Hz; content above 2000 Hz is replaced" in done.stdout
    assert "low: has" not in done.stdout
    info = soundfile.info(tmp_path / "up/low.wav")
    assert (info.samplerate, info.channels, info.frames) == (16_000, 2, 4000)
    for command, message in (
        (["restyle", "low.wav"], "the family 'upsampler' cannot restyle; it can upsample, reconstruct; "),
        (["inpaint", "low.wav", "--keep", "0:0.1"], "cannot inpaint; it can"),
        (["interpolate", "1", "2"], "cannot interpolate"),
    ):
        done = soundmill(*command, "--checkpoint", "model", "--output", "nothing", cwd=tmp_path)
        assert message in " ".join(done.stderr.split())
        assert not (tmp_path / "nothing").exists()


def test_the_encoder_stands_still_in_phase_2(tmp_path, components: Components, capfd):
    """Batch norms too, and the noise speaks; and all is told before."""
    row, data = CODECS["rave_v1"], components.data("rave_v1")
    assert row.make(tmp_path / "short", data, row.composed(".weights.steps=3"))["phase"] == 1
    assert "phase 1 only" in capfd.readouterr().out
    assert row.make(tmp_path / "whole", data, row.composed())["phase"] == 2
    told = capfd.readouterr().out
    assert re.search(r"0\.0 minutes of sound: \d+ crops of 0\.06 s an epoch, .*; in 6 steps of 2 each second is used", told)
    assert "phase 2 (encoder frozen, against discriminators) begins at step 3 of 6" in told
    assert told.index("begins at step 3 of 6") < told.index("phase 2 begins at step 3 of 6: the encoder is frozen")
    before, after = (load_codec(tmp_path / name / "inputs/autoencoder").net.state_dict() for name in ("short", "whole"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("decoder.") for name in moved)
    assert {name for name in moved if "noise" in name}


def test_what_is_left_out_for_its_label_is_transferred_for_the_report(tmp_path, trainings: Trainings):
    """Beside its input, and nothing that the catalog lacks for other reasons; and the page plays both, with all other sounds."""
    data, home = trainings.data("rave"), trainings.copy("rave", tmp_path)
    some = tmp_path / "some"
    some.mkdir()
    (some / "clips").symlink_to(data / "clips", target_is_directory=True)
    missing = ("clip-0", "clip-1")
    rows = [row for row in shards.read_rows(data / "catalog.parquet", manifest.CATALOG) if row["clip_id"] not in missing]
    shards.write_rows(rows, some / "catalog.parquet", manifest.CATALOG.with_metadata({manifest.LEFT_OUT: '["clip-0"]'}))
    of_waves.generate(
        "rave", home, some, ROWS["rave"].composed("rave.generate.transfer_count=2", "rave.train.sampling.latent=['0=+2']")
    )
    output = {path.name for path in (tmp_path / "codec/transferred").iterdir()}
    assert output == {"clip-0.wav", "clip-0-input.wav"}
    given, transferred = (soundfile.read(tmp_path / f"codec/transferred/{name}")[0] for name in ("clip-0-input.wav", "clip-0.wav"))
    assert given.shape == transferred.shape == (3200,)
    assert np.abs(given - transferred).max() > 0.01
    source = family.read(some / "catalog.parquet", some / "clips", tmp_path / "generated", tmp_path / "codec")
    section = family._transferred(source)
    assert [[sound.role for sound in card.sounds] for card in section.cards] == [["transferred", "real"]]


def test_every_latent_codec_can_be_transferred_through(tmp_path, trainings: Trainings):
    soundfile.write(tmp_path / "some.wav", 0.1 * np.random.default_rng(0).standard_normal(3000), of_waves.RATE)
    works("transfer", "some.wav", "--checkpoint", f"{trainings.trained('tango_rave')}/model", cwd=tmp_path)


LEVEL = 0.1  # of the clips
FAMILY_ROWS = ["waveform_unet_none", "upsampler", "diffusion_vocoder", "diffwave_none"]
COMPONENTS = ["unet1d", "unet1d_vocoder"]


@pytest.mark.parametrize("name", FAMILY_ROWS)
def test_the_scale_of_the_waves_is_measured_and_stored(tmp_path, trainings: Trainings, name):
    first = tmp_path / "unit/model"
    unit = "per_frequency" if name == "waveform_unet_none" else "true"
    trainings.train(first.parent, name, ".steps=1", f".unit_variance={unit}")
    stored = config_of(first)["sigma_data"]
    if name == "waveform_unet_none":  # per frequency
        assert len(stored) == 257
    expected = LEVEL / np.sqrt(2) if name == "diffusion_vocoder" else LEVEL  # that of both channels' mean
    assert np.sqrt(np.mean(np.square(stored))) == pytest.approx(expected, rel=0.05)
    assert registry.family(ROWS[name].family).load(first).sigma_data == stored
    # What starts from it keeps the scale of its weights.
    trainings.train(tmp_path / "second", name, ".steps=1", f".start_from={first}", ".unit_variance=false")
    assert config_of(tmp_path / "second/model")["sigma_data"] == stored


@pytest.mark.parametrize("name", FAMILY_ROWS)
def test_an_earlier_checkpoint_makes_the_same_sounds(tmp_path, trainings: Trainings, name):
    row, data = ROWS[name], trainings.data(name)
    trainings.train(tmp_path, name, ".steps=1", ".unit_variance=false")
    made = of_waves.generate(row.family, tmp_path, data, row.composed())
    earlier = config_of(tmp_path / "model")
    assert earlier["sigma_data"] == 1
    earlier["params"].pop("unit_variance", None)
    edit(tmp_path / "model/config.json", sigma_data=None, params=earlier["params"])
    for path in (tmp_path / "generated", tmp_path / "codec"):
        path.rename(path.with_name(f"first-{path.name}"))
    assert of_waves.generate(row.family, tmp_path, data, row.composed()) == made


def output(name: str, place: Path) -> torch.Tensor:
    """What it decodes from the same input."""
    if name == "unet1d_vocoder":
        return vocoder.load(place, SPEC).vocode(torch.zeros(1, SPEC.n_mels, 8))
    return codec.load(place).decode(torch.zeros(1, 3, 8))


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_stores_the_scale_of_its_waves(tmp_path, components: Components, name):
    row, data = MADE[name], components.data(name)
    training = [flac.decode_mono(clip["audio"]["bytes"]) for clip in of_waves.clips_of(data)[:5]]
    expected = LEVEL if name == "unet1d" else np.concatenate([mel.levelled(wave, SPEC) for wave in training]).std()
    first = components.made(name) / "inputs" / row.part
    assert config_of(first)["sigma_data"] == pytest.approx(expected, rel=0.05)
    start = f".weights.start_from={first}", ".weights.unit_variance=false", ".weights.steps=1"
    row.make(tmp_path, data, row.composed(*start))
    assert config_of(tmp_path / "inputs" / row.part)["sigma_data"] == config_of(first)["sigma_data"]


@pytest.mark.parametrize("name", COMPONENTS)
def test_an_earlier_component_makes_the_same_sounds(tmp_path, components: Components, name):
    row, place = MADE[name], tmp_path / "inputs" / MADE[name].part
    row.make(tmp_path, components.data(name), row.composed(".weights.unit_variance=false", ".weights.steps=1"))
    expected = output(name, place)
    assert config_of(place)["sigma_data"] == 1
    edit(place / "config.json", sigma_data=None)
    assert torch.equal(output(name, place), expected)
    edit(place / "config.json", sigma_data=LEVEL)
    assert output(name, place).std() < 0.5 * expected.std()


TRAINED = "projected_gan"  # of the fixtures
ROW = ROWS[TRAINED]
SECONDS = 1.36
PROJECTORS = ".discriminators.projectors"

train, generate = partial(of_waves.train, "projected_gan"), partial(of_waves.generate, "projected_gan")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data) -> Path:
    """A project with a checkpoint, trained by label through the tagger."""
    home = tmp_path_factory.mktemp("project")
    train(home, data, ROW.composed(".conditional=true"))
    (home / "data/models").mkdir(parents=True)
    (home / "model").rename(home / "data/models/projected_gan")
    (home / "dvc.yaml").touch()
    return home


def place(home: Path) -> list[str]:
    return ["--checkpoint", f"{home}/data/models/projected_gan"]


@pytest.mark.parametrize("names", ["[random,tagger]", "[none]"])
def test_what_discriminators_looked_through_is_told(tmp_path, data, names):
    """In the checkpoint, and beside its sounds."""
    document = ROW.composed(f"{PROJECTORS}={names}", ".steps=1")
    assert train(tmp_path, data, document)["steps"] == 1
    assert config_of(tmp_path / "model")["projectors"] == names.strip("[]").split(",")
    generate(tmp_path, data, document)
    about = json.loads((tmp_path / "generated/about.json").read_text())
    assert about["loops"] is True
    assert about["trained_against"] == (["tagger"] if "tagger" in names else [])
    assert "discriminators on " in about["weights"]
    (back,) = (tmp_path / "codec").iterdir()
    assert np.abs(soundfile.read(back)[0]).max() > 0.01


def test_a_judge_is_marked_however_long_ago_it_was_a_projector(tmp_path, trainings, data):
    """Trained through the tagger, then on from there without."""
    document = ROW.composed(f".start_from={trainings.trained('projected_gan')}/model", f"{PROJECTORS}=[none]", ".steps=1")
    train(tmp_path, data, document)
    config = config_of(tmp_path / "model")
    assert (config["projectors"], config["trained_against"]) == (["none"], ["tagger"])
    generate(tmp_path, data, document)
    assert json.loads((tmp_path / "generated/about.json").read_text())["trained_against"] == ["tagger"]


def test_one_loop_is_enough_to_train_on(tmp_path, data, capsys):
    rows = shards.read_table(data / "catalog.parquet", manifest.CATALOG).to_pylist()
    shards.write_rows([{**row, "split": "train"} for row in rows[:1]], tmp_path / "catalog.parquet", manifest.CATALOG)
    for name in ("clips", "inputs"):
        (tmp_path / name).symlink_to(data / name)
    metrics = train(tmp_path, tmp_path, ROW.composed())
    assert (metrics["clips"], metrics["steps"]) == (1, 4)
    assert len(generate(tmp_path, tmp_path, ROW.composed())) == 1
    assert "sounds are for train clips; stage splits says what helps" in capsys.readouterr().out


def test_loops_are_written_at_a_tempo_and_repeated(tmp_path, trained):
    """Each repetition has the same samples; the tempo is in name, comment and chunk."""
    natural, command = 240 / SECONDS, ["generate", "bell", "-n", "1", *place(trained)]
    works(*command, "--output", "plain", cwd=tmp_path)
    (plain,) = (tmp_path / "plain").glob("*.wav")
    assert plain.name == f"bell-0-001-{round(natural, 3):g}bpm.wav"
    works(*command, "--psi", "0.7", "--bpm", "250", "--repeat", "3", "--output", "set", cwd=tmp_path)
    (path,) = (tmp_path / "set").glob("*.wav")
    assert path.name == "bell-0-001-250bpm.wav"
    with soundfile.SoundFile(path) as sound:
        comment, wave, rate = json.loads(sound.comment), sound.read(), sound.samplerate
    assert (comment["bpm"], comment["bars"], comment["sampling"]["psi"]) == (250, 3, 0.7)
    bar = round(rate * 240 / 250)
    assert wave.shape == (3 * bar,)
    assert (wave[:bar] == wave[bar : 2 * bar]).all()
    assert (wave[:bar] == wave[2 * bar :]).all()
    data = path.read_bytes()
    assert struct.unpack("<I", data[4:8])[0] == len(data) - 8
    assert struct.unpack("<IHHfIHHf", data[data.index(b"acid") + 8 :][:24])[4:] == (12, 4, 4, 250.0)
    assert decode.read_mono(path, rate, 60).shape == wave.shape


def test_between_two_seeds(tmp_path, trained):
    """The ends are what these seeds make; a recording has no style."""
    works("interpolate", "1", "2", "--steps", "3", *place(trained), "--output", "way", cwd=tmp_path)
    first, middle, last = (soundfile.read(tmp_path / "way" / f"0{step}.wav")[0] for step in range(3))
    assert b"acid" in (tmp_path / "way/00.wav").read_bytes()
    assert not np.allclose(first, middle)
    assert not np.allclose(middle, last)
    works("generate", "-n", "1", "--seed", "1", *place(trained), "--output", "one", cwd=tmp_path)
    (path,) = (tmp_path / "one").glob("*.wav")
    assert np.abs(soundfile.read(path)[0] - first).max() < 1e-4
    soundfile.write(tmp_path / "a.wav", middle, of_waves.RATE)
    said = refused("interpolate", "a.wav", "a.wav", *place(trained), cwd=tmp_path)
    assert "this family cannot interpolate between recordings: give two seeds, such as 1 2" in said


def test_a_family_of_other_sounds_has_no_tempo(tmp_path, trained, monkeypatch):
    from dataclasses import replace

    family = registry.family
    monkeypatch.setattr(registry, "family", lambda name: replace(family(name), loops=False))
    said = refused("generate", "--bpm", "120", *place(trained), cwd=tmp_path)
    assert "--bpm and --repeat are for loop families, which 'projected_gan' is not; leave them out" in said
