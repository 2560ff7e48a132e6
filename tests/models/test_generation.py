"""What is around any family's model: waves brought to its rate and channels, long ones in windows, requests, sampling by hand."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from soundmill import manifest
from soundmill.audio.tags import GENERATED, MadeBy
from soundmill.errors import UserError
from soundmill.models import generation, requests, sounds
from soundmill.models.family import Request, can, require
from soundmill.training.seeds import seed_of
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
    assert can(Model(), "reconstruct")
    assert not can(Model(), "generate")
    with pytest.raises(UserError, match="the family 'tiny' cannot transform; it can reconstruct"):
        require(Model(), "transform", "tiny")


@pytest.fixture
def catalog(tmp_path):
    rows = [
        {"clip_id": "a", "labels": ["rain", "dog"], "captions": ["first", "second"]},
        {"clip_id": "b", "labels": ["unknown"], "captions": []},
    ]
    write_rows([sound(wave=np.zeros(9), split="test", **row) for row in rows], tmp_path / "catalog.parquet", manifest.CATALOG)
    return tmp_path / "catalog.parquet"


def test_test_clips_ask_for_what_the_model_reads(catalog, capsys):
    by_label = requests.of_clips(Model(condition="labels", labels=["dog", "rain"]), catalog, ["a", "b"], 7)
    assert [(request.labels, request.caption) for request in by_label.values()] == [(("dog", "rain"), ""), ((), "")]
    assert "not trained on: unknown" in capsys.readouterr().out
    by_caption = requests.of_clips(Model(condition="caption"), catalog, ["a", "b"], 7)
    assert [(request.labels, request.caption) for request in by_caption.values()] == [((), "second"), ((), "")]
    assert [request.seed for request in by_caption.values()] == [request.seed for request in by_label.values()]
    assert len({request.seed for request in by_label.values()}) == 2
    both = requests.of_clips(Model(condition="caption", labels=["rain"]), catalog, ["a", "b"], 7)
    assert [(request.labels, request.caption) for request in both.values()] == [(("rain",), "second"), ((), "")]
    assert requests.describe(both["a"]) == "second · rain"
    nothing = requests.of_clips(Model(), catalog, ["a"], 7)
    assert requests.describe(nothing["a"]) == ""


def test_prompts_are_texts_or_labels():
    texts = requests.of_prompts(Model(condition="caption"), ["a bell", "rain"], 2, 0)
    assert [request.caption for request in texts] == ["a bell", "a bell", "rain", "rain"]
    assert len({request.seed for request in texts}) == 4
    mixed = requests.of_prompts(Model(condition="labels", labels=["dog bark", "rain"]), ["dog", "RAIN"], 2, 0)
    assert [request.labels for request in mixed] == [("dog bark", "rain")] * 2
    assert [request.labels for request in requests.of_prompts(Model(), [], 1, 0)] == [()]
    with pytest.raises(UserError, match="give a prompt"):
        requests.of_prompts(Model(condition="caption"), [], 1, 0)
    with pytest.raises(UserError, match="without labels"):
        requests.of_prompts(Model(), ["rain"], 1, 0)
    assert requests.describe(Request(labels=("dog", "rain"))) == "dog, rain"


def test_a_model_of_captions_and_labels_takes_both_and_any_other_takes_labels_as_prompts(capsys):
    both = Model(condition="caption", labels=["dog bark", "rain"])
    (told,) = requests.of_prompts(both, ["a bell"], 1, 0, ["dog"])
    assert told == Request(("dog bark",), "a bell", seed_of(0, "a bell", "dog bark", 0))
    assert requests.of_prompts(both, [], 1, 0, ["rain"]) == [Request(("rain",), "", seed_of(0, "rain", 0))]
    with pytest.raises(UserError, match="give a prompt"):
        requests.of_prompts(both, [], 1, 0)
    requests.print_matched_labels(both, ["a bell"], ["dog"])
    assert capsys.readouterr().err == "'dog' matches the label 'dog bark'\n"
    by_text, by_label = Model(condition="caption"), Model(condition="labels", labels=["dog bark", "rain"])
    texts = [Request(caption=text, seed=seed_of(0, text, 0)) for text in ("a bell", "rain")]
    assert requests.of_prompts(by_text, ["a bell"], 1, 0, ["rain"]) == texts
    (labelled,) = requests.of_prompts(by_label, ["dog"], 1, 0, ["rain"])
    assert labelled == Request(("dog bark", "rain"), seed=seed_of(0, "dog bark", "rain", 0))


class Short(Model):
    """Makes a tenth of a second, whatever the request."""

    params = None

    def generate(self, requests, run):
        return torch.zeros(len(requests), 1, 1600)


def test_speed_is_of_the_sound_that_was_made(tmp_path, monkeypatch):
    """A family that makes a second for a clip of five is not five times as fast."""
    tables = prepare(tmp_path)
    kind = SimpleNamespace(load=lambda path: Short(num_samples=1600), trained_against=(), loops=False, longer=False)
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
