"""Adapters of `tango` from training to sounds: the base beside them, merging, several at once, and what does not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from soundmill import commands, hashing, manifest, params, shards
from soundmill.audio import tags
from soundmill.errors import UserError
from soundmill.models import adapted, beside_base, generation, merging, registry
from soundmill.models.family import chosen_by, made_by
from soundmill.publishing import model as publishing
from soundmill.publishing.directory import pull
from soundmill.training import checkpoint
from tests.stages import of_waves
from tests.stages.families import ROWS, Row

TRAINED = "tango"
ROW = ROWS["tango_lora"]
GUIDED = ["num_steps=3", "guidance_scale=2"]


@pytest.fixture(scope="module")
def base(trainings) -> Path:
    return trainings.trained("tango") / "model"


@pytest.fixture(scope="module")
def tuned(trainings) -> Path:
    return trainings.trained("tango_lora")


def train(home: Path, data: Path, *changes: str, row: Row = ROW) -> dict:
    return of_waves.train("tango", home, data, row.composed(*changes))


def sounds(checkpoint_dir: Path, output: Path, **more) -> list[np.ndarray]:
    paths = generation.generate_sounds(checkpoint_dir, ["a bell", "rain"], 1, 5, output, output, GUIDED, **more)
    return [soundfile.read(path)[0] for path in paths]


def test_a_hundredth_is_saved_and_names_its_base(trainings, tuned, base):
    metrics = trainings.metrics["tango_lora"]
    tensors = checkpoint.read_weights(tuned / "model" / adapted.WEIGHTS)
    assert sum(value.numel() for value in tensors.values()) == metrics["trained_parameters"] < metrics["parameters"] / 10
    found = adapted.read(tuned / "model")
    assert found.digest == hashing.tree_digest(base)
    assert adapted.base_of(tuned / "model") == base.resolve()
    config = json.loads((tuned / "model/config.json").read_text())
    assert config["started_from"]["checkpoint"] == found.digest
    told = shards.read_table(tuned / "model" / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON).to_pylist()
    assert {row["earlier"] for row in told} == {True, False}  # of the base, too


def test_sounds_of_the_stage_and_of_prompts_are_those_of_the_tuned_model(tmp_path, tuned, data, base):
    shutil.copytree(tuned / "model", tmp_path / "model")
    shutil.copytree(base, tmp_path / "base")
    config = json.loads((tmp_path / "model" / adapted.CONFIG).read_text())
    config["base_model_name_or_path"] = "../base"
    (tmp_path / "model" / adapted.CONFIG).write_text(json.dumps(config))
    of_waves.generate("tango", tmp_path, data, ROW.composed())
    of_base = {path.name: path for path in (tmp_path / "codec" / manifest.BASE).glob("*.wav")}
    assert of_base.keys() == {path.name for path in (tmp_path / "generated").glob("*.wav")}
    alone = tmp_path / "alone"  # the base by itself makes the same sounds for the same clips
    alone.mkdir()
    shutil.copytree(base, alone / "model")
    of_waves.generate("tango", alone, data, ROW.composed())
    for name, path in of_base.items():
        assert path.read_bytes() == (alone / "generated" / name).read_bytes()
        assert path.read_bytes() != (tmp_path / "generated" / name).read_bytes()
    assert not (alone / "codec" / manifest.BASE).exists()
    own = {name: sorted((tmp_path / "codec" / manifest.OWN / name).glob("*.wav")) for name in ("base", "again", "tuned")}
    assert {name: len(paths) for name, paths in own.items()} == dict.fromkeys(own, beside_base.OWN_SOUNDS)
    assert len({paths[0].read_bytes() for paths in own.values()}) == 3
    plain, changed = sounds(base, tmp_path / "plain"), sounds(tmp_path / "model", tmp_path / "changed")
    assert not np.allclose(plain[0], changed[0], atol=1e-3)


def test_merged_adapters_are_a_whole_checkpoint_that_sounds_the_same(tmp_path, tuned, data):
    output = tmp_path / "merged"
    done = CliRunner().invoke(commands.app, ["export", str(tuned / "model"), "--output", str(output)])
    assert done.exit_code == 0, done.output
    shutil.rmtree(tmp_path / "nothing", ignore_errors=True)
    assert not adapted.are_in(output)
    assert {path.name for path in output.iterdir()} == {"config.json", "unet.safetensors", "autoencoder", "trained_on.parquet"}
    for one, other in zip(sounds(tuned / "model", tmp_path / "a"), sounds(output, tmp_path / "b"), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2)
    # It is a base like any other.
    train(tmp_path, data, f".start_from={output}", ".lora.rank=1", ".steps=1")
    with pytest.raises(SystemExit, match=r"has only adapters; merge them first: `soundmill export"):
        train(tmp_path, data, f".start_from={tuned}/model")


def test_published_adapters_are_merged_and_the_card_has_the_digests_of_both(tmp_path, tuned, data):
    made = sounds(tuned / "model", tmp_path / "made")
    params.write_yaml(params.read_yaml(tuned / "params.yaml"), tmp_path / "params.yaml")
    project_sounds = tmp_path / "data/generated/tango"
    project_sounds.mkdir(parents=True)
    (first, *_) = sorted((tmp_path / "made").glob("*.wav"))
    shutil.copyfile(first, project_sounds / "test-0.wav")
    adapters_digest = hashing.tree_digest(tuned / "model")
    about = {"family": "tango", "checkpoint": adapters_digest}
    (project_sounds / manifest.ABOUT_SOUNDS).write_text(json.dumps(about), encoding="utf-8")
    variant = params.read_yaml(tmp_path / "params.yaml")["families"]["tango"]["clips"]
    (tmp_path / "data/catalog").mkdir()
    rows = shards.read_rows(data / "catalog.parquet", manifest.CATALOG)
    captioned = [{**row, "labels": []} for row in rows]  # or the card would name the sound by its label
    shards.write_rows(captioned, tmp_path / f"data/catalog/{variant}.parquet", manifest.CATALOG)
    publishing.publish(str(tuned / "model"), tmp_path / "mill", tmp_path)
    pull(tmp_path / "mill", tmp_path / "pulled")
    whole = tmp_path / "pulled/checkpoint"
    again = sounds(whole, tmp_path / "again")
    for one, other in zip(made, again, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2)
    digest = hashing.tree_digest(whole)
    assert digest != adapters_digest
    for path in (tmp_path / "again").glob("*.wav"):
        assert tags.read(path) == made_by({"family": "tango", "checkpoint": digest}, tags.GENERATED)
    card = (tmp_path / "pulled/README.md").read_text(encoding="utf-8")
    assert f"Digest of the checkpoint: `{digest}`" in card
    assert f"Merged from adapters (digest `{adapters_digest}`)" in card
    assert "[a bell](samples/test-0.wav)" in card  # of the adapters, which made it
    assert f"{sum(value.numel() for value in registry.family('tango').load(whole).net.parameters()):,} parameters" in card


def test_several_are_added_by_their_shares(tmp_path, tuned, base, data):
    other = tmp_path / "other"
    train(other, data, f".start_from={base}", ".seed=7", ".steps=2", ".optimiser.learning_rate=0.1")
    one = sounds(tuned / "model", tmp_path / "one")
    alone = sounds(base, tmp_path / "alone", loras=[(tuned / "model", 1.0)])
    assert all(np.array_equal(a, b) for a, b in zip(one, alone, strict=True))
    none = sounds(base, tmp_path / "none", loras=[(tuned / "model", 0.0), (other / "model", 0.0)])
    for a, b in zip(none, sounds(base, tmp_path / "base"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    arguments = ["generate", "a bell", "--set", "num_steps=3", "--lora", f"{tuned / 'model'}=0.7,{other / 'model'}=0.3"]
    done = CliRunner().invoke(commands.app, [*arguments, "--output", str(tmp_path / "both")])
    assert done.exit_code == 0, done.output
    with soundfile.SoundFile(done.output.split()[0]) as sound:
        said = json.loads(sound.comment)
    assert said["checkpoint"] == hashing.tree_digest(base)
    digests = [hashing.tree_digest(home / "model") for home in (tuned, other)]
    assert said["lora"] == [{"adapters": digests[0], "share": 0.7}, {"adapters": digests[1], "share": 0.3}]


def test_what_the_tagger_chose_stays_known_after_merging(tmp_path, tuned):
    shutil.copytree(tuned / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["started_from"]["chosen_by"] = ["tagger"]
    path.write_text(json.dumps(config))
    merging.write_whole(tmp_path / "model", tmp_path / "merged")
    assert chosen_by(tmp_path / "merged", "last") == ["tagger"]


def test_a_part_of_dora_is_refused(tmp_path, trainings, base):
    with pytest.raises(UserError, match="cannot be added in part; give it the share 1"):
        sounds(base, tmp_path / "a", loras=[(trainings.trained("tango_dora") / "model", 0.5)])


def test_a_base_that_is_missing_or_another_one_is_named(tmp_path, tuned, base, data):
    shutil.copytree(tuned / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / adapted.CONFIG).read_text())
    (tmp_path / "model" / adapted.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "gone/base"}))
    with pytest.raises(UserError, match=r"the base gone/base of the adapters in .*model \(digest [0-9a-f]{12}…\) is missing"):
        generation.generate_sounds(tmp_path / "model", ["a bell"], 1, 5, tmp_path / "a", tmp_path)
    shutil.copytree(base, tmp_path / "gone" / "base")
    sounds(tmp_path / "model", tmp_path / "found")
    train(tmp_path, data, ".seed=9", ".steps=1", row=ROWS["tango"])  # into tmp_path/model, which is another one then
    with pytest.raises(UserError, match=r"adapters of another base: .*trained on .*, and .*model is"):
        generation.generate_sounds(tmp_path / "model", ["a bell"], 1, 5, tmp_path / "b", tmp_path, loras=[(tuned / "model", 1.0)])
    shutil.rmtree(tmp_path / "gone" / "base")
    shutil.copytree(tmp_path / "model", tmp_path / "gone" / "base")
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(tuned / "model", tmp_path / "model")
    (tmp_path / "model" / adapted.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "gone/base"}))
    with pytest.raises(UserError, match=r"is another one now: .*base has digest"):
        merging.write_whole(tmp_path / "model", tmp_path / "merged")
