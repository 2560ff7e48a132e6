"""Train and generate of the family `waveform_unet` on the real configuration, shrunk: conditions, stereo, kills, refusals."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from soundmill import manifest, params, shards, stage
from soundmill.models import generation, registry
from soundmill.models.family import Request
from stages import encode_text
from tests.imports import ROOT
from tests.stages import of_waves

RATE = 44_100
train, generate = partial(of_waves.train, "waveform_unet"), partial(of_waves.generate, "waveform_unet")
CHOICES = {"none": "one_shots", "label": "one_shots", "caption": "captions"}
SHRUNK = [
    "model=waveform_unet",
    "families.waveform_unet.clips=default",
    "waveform_unet.train.num_samples=4096",
    "waveform_unet.train.steps=4",
    "waveform_unet.train.batch_size=2",
    "waveform_unet.train.log_every_steps=1",
    "waveform_unet.train.checkpoint_seconds=0",
    "waveform_unet.train.validate_every_steps=2",
    "waveform_unet.train.validate_batches=1",
    "waveform_unet.train.network={channels: [4, 8], factors: [1, 4], items: [1, 1], attention: [false, true], "
    "text_attention: [false, true], heads: 2, head_width: 4, groups: 2, modulation: 8}",
    "waveform_unet.train.hardware={accelerator: cpu, devices: 1, precision: '32', threads: 1}",
    "waveform_unet.train.grid={columns: 2, rows: 1}",
    "waveform_unet.train.sampling.num_steps=2",
    "waveform_unet.generate.count=2",
    "waveform_unet.generate.batch_size=2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Stereo clips at 44.1 kHz, and states of their captions."""
    home = tmp_path_factory.mktemp("data")
    of_waves.write(home, RATE, channels=2)
    shards.write_rows([], home / "mixes" / shards.shard_name(0), manifest.MIXES)
    params.write_yaml(composed("caption"), home / "params.yaml")
    arguments = ["--variant", "waveform_unet", "--catalog", f"{home}/catalog.parquet", "--mixes", f"{home}/mixes"]
    stage.main(encode_text.run, "text", [*arguments, "--states", f"{home}/parts/text", "--params", f"{home}/params.yaml"])
    return home


def composed(condition: str, *changes: str) -> dict:
    choice = [f"waveform_unet={CHOICES[condition]}", f"waveform_unet.train.condition={condition}"]
    text = ["text.waveform_unet.scratch.width=16"] if condition == "caption" else []
    return params.compose(ROOT / "conf", [*SHRUNK, *choice, *text, *changes])


def load(home: Path):
    return registry.family("waveform_unet").load(home / "model")


@pytest.mark.parametrize("condition", CHOICES)
def test_trains_and_makes_stereo_sounds(tmp_path, data, condition):
    """The same checkpoint makes the same sounds, one at a time or together."""
    metrics = train(tmp_path, data, composed(condition), parts="parts")
    assert (metrics["clips"], metrics["steps"]) == (5, 4)
    assert {key: metrics[key] for key in ("labels", "captions") if key in metrics} == {
        "none": {"labels": 0},
        "label": {"labels": 2},
        "caption": {"captions": 2},
    }[condition]
    assert 0 < metrics["best_valid_loss"] <= metrics["valid_loss"]
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    output = generate(tmp_path, data, composed(condition))
    assert list(output) == ["clip-6.wav", "clip-7.wav"]
    info = soundfile.info(tmp_path / "generated/clip-6.wav")
    assert (info.samplerate, info.channels, info.frames) == (RATE, 2, 4096)
    for name, alone in generate(tmp_path, data, composed(condition, "waveform_unet.generate.batch_size=1")).items():
        one, other = (np.frombuffer(content, "<i2").astype(int) for content in (output[name], alone))
        assert np.abs(one - other).max() <= 1
    # By hand, with guidance: a caption's states come from the encoder now.
    asked = {"none": [], "label": ["bell"], "caption": ["a bell rings"]}[condition]
    guided = generation.generate_sounds(tmp_path / "model", asked, 1, 0, tmp_path / "byhand", tmp_path, ["guidance_scale=2.0"])
    plain = generation.generate_sounds(tmp_path / "model", asked, 1, 0, tmp_path / "plain", tmp_path, ["guidance_scale=1.0"])
    differ = np.abs(soundfile.read(guided[0])[0] - soundfile.read(plain[0])[0]).max()
    assert (differ > 1e-4) == (condition != "none")  # of waves of standard deviation 0.1


def test_a_killed_training_that_is_scored_ends_like_an_unbroken_one(tmp_path, data, capfd, monkeypatch):
    document = composed("caption", "waveform_unet.train.accumulate=2")
    middle = 5  # of a step's two batches
    of_waves.check_resuming("waveform_unet", tmp_path, data, document, monkeypatch, middle, parts="parts")
    said = capfd.readouterr().out
    assert "resuming at step 2 of 4" in said
    assert "every 2 steps the tagger scores 3 sounds for 1 validation clips" in said


def test_restyles_and_inpaints(tmp_path, data):
    train(tmp_path, data, composed("label"))
    model = load(tmp_path)
    waves = 0.3 * torch.randn(2, 2, 3000, generator=torch.Generator().manual_seed(0))
    expected = [Request(("bell",), seed=1), Request(("rain",), seed=2)]

    def transformed(*settings: str) -> torch.Tensor:
        with generation.running(model, tmp_path, settings) as run:
            return model.transform(waves, expected, run)

    assert torch.equal(transformed("amount=0.0"), waves)
    changes = [float((transformed(f"amount={amount}") - waves).square().mean()) for amount in (0.1, 1.0)]
    assert 0 < changes[0] < changes[1]
    with generation.running(model, tmp_path) as run:
        torch.testing.assert_close(transformed("amount=1.0"), model.generate(expected, run)[..., :3000])
    inpainted = transformed("keep=[[0,1000],[2500,3000]]", "resamples=2")
    assert torch.equal(inpainted[..., :1000], waves[..., :1000])
    assert torch.equal(inpainted[..., 2500:], waves[..., 2500:])
    assert (inpainted - waves)[..., 1000:2500].abs().mean() > 0.01


def test_sounds_on_the_way_between_two(tmp_path, data):
    train(tmp_path, data, composed("none"))
    model, ends = load(tmp_path), (Request(seed=1), Request(seed=2))
    with generation.running(model, tmp_path, ["amount=0.0"]) as run:
        path = model.interpolate(ends, None, [0.0, 0.5, 1.0], run)
        torch.testing.assert_close(path[::2], model.generate(ends, run))
        assert 0.5 < float(path[1].std() / path[0].std()) < 2
        waves = torch.stack([torch.full((2, 3000), 0.2), torch.full((2, 3000), 0.4)])
        torch.testing.assert_close(model.interpolate(ends, waves, [0.0, 0.25, 1.0], run)[:, 0, 0], torch.tensor([0.2, 0.25, 0.4]))


def test_another_training_goes_on_with_new_labels(tmp_path, data):
    train(tmp_path / "first", data, composed("label"))
    table = shards.read_table(data / "catalog.parquet", manifest.CATALOG, manifest.CATALOG.names).to_pylist()
    more = [{**row, "labels": ["kick", *row["labels"]] if row["clip_id"] == "clip-0" else row["labels"]} for row in table]
    shards.write_rows(more, data / "more.parquet", manifest.CATALOG)
    start = f"waveform_unet.train.start_from={tmp_path / 'first/model'}"
    assert train(tmp_path / "second", data, composed("label", start), "more.parquet")["labels"] == 3
    assert list(load(tmp_path / "second").labels) == ["bell", "rain", "kick"]
    of_waves.write(tmp_path / "mono", RATE)
    with pytest.raises(SystemExit, match=r"channels is 2 there and 1 here; make them agree"):
        train(tmp_path / "third", tmp_path / "mono", composed("label", start))
    with pytest.raises(SystemExit, match=r"condition"):
        train(tmp_path / "third", data, composed("none", start))


@pytest.mark.parametrize(
    ("condition", "changes", "message"),
    [
        ("label", [], r"no training clip has a label; set waveform_unet\.train\.condition to `none` or `caption`"),
        ("caption", [], r"no clip has a caption; set waveform_unet\.train\.condition to `none` or `label`"),
        ("none", ["waveform_unet.train.num_samples=4095"], r"num_samples 4095 must be a multiple of 4"),
        ("none", ["waveform_unet.train.optimiser.learning_rate=1e30"], "loss is no longer a number at step"),
        (
            "label",
            ["waveform_unet.train.condition_dropout=0.0", "waveform_unet.train.sampling.guidance_scale=2.0"],
            r"raise condition_dropout, or set it to 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, data, condition, changes, message):
    with pytest.raises(SystemExit, match=message):
        train(tmp_path / "home", data, composed(condition, *changes), "unlabelled.parquet", "parts")
    assert not (tmp_path / "home/model").exists()


def test_shorter_clips_end_in_silence_and_crops_begin_where_they_are_told_to(tmp_path, data):
    kind = registry.family("waveform_unet")
    for crop, fixed in (("start", True), ("random", False)):
        document = composed("none", f"waveform_unet.train.crop={crop}", "waveform_unet.train.num_samples=4000")
        expected = params.parse(kind.train_params, document["waveform_unet"]["train"], "waveform_unet.train")

        class Context:
            scratch = tmp_path / crop

        Context.scratch.mkdir()
        prepared = kind.prepare(expected, Context, data / "clips", data / "parts", tmp_path, data / "catalog.parquet", None)
        first, second = (prepared.source.batch(np.array([0, 4]), prepared.draw(step).numpy())[0] for step in (0, 1))
        assert first.shape == (2, 2, 4000)
        assert torch.equal(first[0], second[0]) == fixed
        assert (first[1, :, 2205:] == 0).all()
        assert (first[1, :, :2205] != 0).any()
