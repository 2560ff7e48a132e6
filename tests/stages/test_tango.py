"""The family `tango`: prompts, the best of several sounds and weights, inputs that do not belong together; and adapters from
training to sounds: the base beside them, merging, several at once, and what does not fit."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmill import hashing, manifest, params, shards
from soundmill.audio import tags
from soundmill.commands.models import _shares
from soundmill.errors import UserError
from soundmill.evaluation.embedders import clap
from soundmill.models import adapted, cost, generation, registry
from soundmill.models import training as merging
from soundmill.models.components.latents.store import read_about
from soundmill.models.family import chosen_by, made_by
from soundmill.publishing import model as publishing
from soundmill.publishing.directory import pull
from soundmill.training import checkpoint
from tests import clap_weights
from tests.commands.running import refused, works
from tests.prepared import edit
from tests.stages import of_waves
from tests.stages.families import ROWS, Row
from tests.stages.tango_inputs import CAPTIONS, MIXES, write_latents

TRAINED = "tango"  # of the fixtures
ROW = ROWS[TRAINED]
GUIDED = ["num_steps=3", "guidance_scale=2"]

generate = partial(of_waves.generate, "tango")
LORA = ROWS["tango_lora"]


def train(home: Path, data: Path, *changes: str) -> dict:
    return of_waves.train("tango", home, data, ROW.composed(*changes))


def test_it_is_told_which_mixes_it_was_trained_on(trained):
    config = json.loads((trained / "model/config.json").read_text())
    assert (config["frames"], config["text"]["name"]) == (32, "byt5-scratch")
    told = shards.read_table(trained / "model" / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON).to_pylist()
    assert [(row["mix"], row["clip_id"]) for row in told] == [
        *((None, f"clip-{number}") for number in range(4)),
        *(("mix-0", clip_id) for clip_id in ("clip-0", "clip-1")),
        *(("mix-1", clip_id) for clip_id in ("clip-3", "clip-1")),
    ]
    assert {(row["source"], row["start"], row["earlier"]) for row in told} == {("r.wav", 0.0, False)}


def test_prompts_become_sounds_that_say_what_they_are(tmp_path, trained):
    prompts = ["A dog barks, then rain", "a bell"]
    paths = generation.generate_sounds(trained / "model", prompts, 2, 5, tmp_path / "a", tmp_path, GUIDED)
    assert [path.name for path in paths] == [
        "a-dog-barks-then-rain-5-001.wav", "a-dog-barks-then-rain-5-002.wav", "a-bell-5-003.wav", "a-bell-5-004.wav",
    ]  # fmt: skip
    with soundfile.SoundFile(paths[2]) as sound:
        said = json.loads(sound.comment)
    trained_sampling = json.loads((trained / "model" / "config.json").read_text())["params"]["sampling"]
    assert said.pop("weights").startswith("last weights (step 4, held-out loss ")
    assert said == {
        "family": "tango", "checkpoint": hashing.tree_digest(trained / "model"), "prompt": "a bell", "seed": 5, "number": 3,
        "sampling": {**trained_sampling, "num_steps": 3, "guidance_scale": 2.0},
    }  # fmt: skip
    assert (tmp_path / "a" / "spectrograms.png").read_bytes().startswith(b"\x89PNG")
    assert len({path.read_bytes() for path in paths}) == 4
    alone = generation.generate_sounds(trained / "model", ["a bell"], 1, 5, tmp_path / "b", tmp_path, GUIDED)
    one, other = (soundfile.read(path)[0] for path in (alone[0], paths[2]))
    np.testing.assert_allclose(one, other, atol=1e-2)  # an item's sound does not hang on the others', but for rounding
    assert np.abs(one).max() > 0.05


def test_nothing_is_made_that_cannot_be_written_or_heard(tmp_path, trainings, trained):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create this directory"):
        generation.generate_sounds(trained / "model", ["a bell"], 1, 5, tmp_path / "file", tmp_path)
    broken = trainings.copy("tango", tmp_path) / "model/unet.safetensors"
    checkpoint.write_weights({key: value * float("nan") for key, value in checkpoint.read_weights(broken).items()}, broken)
    with pytest.raises(UserError, match="log-mels are not finite"):
        generation.generate_sounds(tmp_path / "model", ["a bell"], 1, 5, tmp_path / "a", tmp_path, ["num_steps=1"])
    assert not list((tmp_path / "a").iterdir())
    other = refused("generate", "a bell", "--family", "ddpm_mel", "--checkpoint", str(trained / "model"), cwd=tmp_path)
    assert "a checkpoint of family 'tango', not 'ddpm_mel'" in other
    assert "did you mean 'tango'" in refused("generate", "a bell", "--family", "tagno", cwd=tmp_path)


def test_the_best_of_several_is_kept_by_clap(tmp_path, trained, monkeypatch):
    """Of 2 · 3 candidates two are kept, the very files that all six would have been; their names tell which."""
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    arguments = ["generate", "a bell", "--family", "tango", "--set", "num_steps=2", "--checkpoint", str(trained / "model")]
    best = [*arguments, "-n", "2", "--best-of", "3", "--output", "best"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    missing = f"model.safetensors, preprocessor_config.json and the tokenizer's files of {clap.NAME}"
    assert missing in refused(*best, cwd=tmp_path)
    assert not (tmp_path / "best").exists()  # before any work

    clap_weights.write(tmp_path / clap.NAME)
    said = works(*best, cwd=tmp_path).stdout
    kept = sorted((tmp_path / "best").glob("*.wav"))
    assert [f"best/{path.name}" for path in kept] == said.split()
    assert [(int(path.stem[-3:]) - 1) // 3 for path in kept] == [0, 1]
    works(*arguments, "-n", "6", "--output", "all", cwd=tmp_path)
    for path in kept:
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()
    assert "needs a prompt" in refused("generate", "--best-of", "3", "--checkpoint", str(trained / "model"), cwd=tmp_path)


def test_the_text_encoder_must_be_the_one_it_was_trained_with(tmp_path, trained):
    shutil.copytree(trained / "model", tmp_path / "model")
    text = json.loads((tmp_path / "model/config.json").read_text())["text"]
    edit(tmp_path / "model/config.json", text=text | {"scratch": text["scratch"] | {"seed": 1}})
    with pytest.raises(UserError, match="not the one this model was trained with"):
        generation.generate_sounds(tmp_path / "model", ["a bell"], 1, 0, tmp_path / "sounds", tmp_path)


def test_a_start_with_other_parts_says_so(tmp_path, trained, data, capfd):
    shutil.copytree(trained / "model", tmp_path / "before")
    text = json.loads((tmp_path / "before/config.json").read_text())["text"]
    edit(tmp_path / "before/config.json", text=text | {"name": "theirs", "digest": "another"})
    edit(tmp_path / "before/autoencoder/config.json", digest="another")
    train(tmp_path, data, ".start_from=before", ".steps=1")
    said = capfd.readouterr().out
    assert "the text encoder changed from theirs to byt5-scratch: the network must adapt to it" in said
    assert "the autoencoder changed" in said


@pytest.fixture
def inputs(tmp_path, data) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(data, tmp_path / "data"))


def write_catalog(home: Path, captions: dict[str, list[str]]) -> None:
    """Only these clips, with these captions."""
    rows = shards.read_table(home / "catalog.parquet", manifest.CATALOG).to_pylist()
    kept = [{**row, "captions": captions[row["clip_id"]]} for row in rows if row["clip_id"] in captions]
    shards.write_rows(kept, home / "catalog.parquet", manifest.CATALOG)


def test_there_is_no_best_without_held_out_clips(tmp_path, inputs):
    write_catalog(inputs, {k: v for k, v in CAPTIONS.items() if k != "held-0"})
    with pytest.raises(SystemExit, match=r"train/tango: `use` is `best`, but the validation split has no clip"):
        train(tmp_path, inputs, ".use=best")
    assert "valid_loss" not in train(tmp_path, inputs, ".steps=1")
    with pytest.raises(SystemExit, match="has no best weights; set `use` to `last`"):
        generate(tmp_path, inputs, ROW.composed("tango.generate.use=best"))


@pytest.mark.slow
def test_two_devices_share_clips_and_mixes(tmp_path, data):
    assert train(tmp_path, data, ".hardware.devices=2", ".steps=2", ".real_items=1")["steps"] == 2
    assert json.loads((tmp_path / "model/config.json").read_text())["devices"] == 2


def test_its_cost_is_told_before_it_runs():
    document = ROW.composed()
    timing = cost.time_steps("tango", document, 0)
    key, few = cost.timing_key("tango", document, 0), cost.seconds(timing, "tango", document, 100)
    document["tango"]["train"]["steps"] = 4_000_000
    assert 0 < few < cost.seconds(timing, "tango", document, 100) / 1000
    assert cost.timing_key("tango", document, 0) == key
    document["tango"]["train"]["accumulate"] += 1
    assert cost.timing_key("tango", document, 0) != key


def test_inputs_that_do_not_belong_together_are_refused(tmp_path, inputs):
    mixes = inputs / "inputs/latents/mixes"
    about = read_about(mixes)
    write_latents(mixes, MIXES, about.model_copy(update={"autoencoder": "another"}))
    with pytest.raises(SystemExit, match="latents of another autoencoder"):
        train(tmp_path, inputs)
    write_latents(mixes, {}, about)
    with pytest.raises(SystemExit, match=r"no mixes, but train\.mixed_items is 1; set it to 0, or `mixup\.pairing`"):
        train(tmp_path, inputs)
    write_catalog(inputs, {**CAPTIONS, "clip-0": ["never encoded"]})
    with pytest.raises(SystemExit, match="the state of caption 'never encoded' is missing"):
        train(tmp_path, inputs, ".mixed_items=0")


def test_without_mixes_it_trains_on_clips_alone(tmp_path, data):
    metrics = train(tmp_path, data, ".mixed_items=0", ".steps=null", ".epochs=3", ".accumulate=1", ".null_text=zeros")
    assert (metrics["mixes"], metrics["steps"]) == (0, 6)


def test_clips_without_any_caption_are_trained_on_without_mixes(tmp_path, inputs):
    mixes = inputs / "inputs/latents/mixes"
    write_latents(mixes, {}, read_about(mixes))
    write_catalog(inputs, {clip_id: [] for clip_id in CAPTIONS})
    metrics = train(tmp_path, inputs, ".steps=1")
    assert (metrics["mixes"], metrics["captions"]) == (0, 0)


@pytest.fixture(scope="module")
def base(trainings) -> Path:
    return trainings.trained("tango") / "model"


@pytest.fixture(scope="module")
def tuned(trainings) -> Path:
    return trainings.trained("tango_lora")


def tune(home: Path, data: Path, *changes: str, row: Row = LORA) -> dict:
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
    edit(tmp_path / "model" / adapted.CONFIG, base_model_name_or_path="../base")
    of_waves.generate("tango", tmp_path, data, LORA.composed())
    of_base = {path.name: path for path in (tmp_path / "codec" / manifest.BASE).glob("*.wav")}
    assert of_base.keys() == {path.name for path in (tmp_path / "generated").glob("*.wav")}
    alone = tmp_path / "alone"  # the base by itself makes the same sounds for the same clips
    alone.mkdir()
    shutil.copytree(base, alone / "model")
    of_waves.generate("tango", alone, data, LORA.composed())
    for name, path in of_base.items():
        assert path.read_bytes() == (alone / "generated" / name).read_bytes()
        assert path.read_bytes() != (tmp_path / "generated" / name).read_bytes()
    assert not (alone / "codec" / manifest.BASE).exists()
    own = {name: sorted((tmp_path / "codec" / manifest.OWN / name).glob("*.wav")) for name in ("base", "again", "tuned")}
    assert {name: len(paths) for name, paths in own.items()} == dict.fromkeys(own, generation.OWN_SOUNDS)
    assert len({paths[0].read_bytes() for paths in own.values()}) == 3
    plain, changed = sounds(base, tmp_path / "plain"), sounds(tmp_path / "model", tmp_path / "changed")
    assert not np.allclose(plain[0], changed[0], atol=1e-3)


def test_merged_adapters_are_a_whole_checkpoint_that_sounds_the_same(tmp_path, tuned, data):
    output = tmp_path / "merged"
    works("export", str(tuned / "model"), "--output", "merged", cwd=tmp_path)
    assert not adapted.are_in(output)
    assert {path.name for path in output.iterdir()} == {"config.json", "unet.safetensors", "autoencoder", "trained_on.parquet"}
    for one, other in zip(sounds(tuned / "model", tmp_path / "a"), sounds(output, tmp_path / "b"), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2)
    # It is a base like any other.
    (output / "LICENSE").write_text("as imported")
    tune(tmp_path, data, f".start_from={output}", ".lora.rank=1", ".steps=1")
    merging.write_whole(tmp_path / "model", tmp_path / "twice")
    assert (tmp_path / "model/LICENSE").read_text() == (tmp_path / "twice/LICENSE").read_text() == "as imported"
    with pytest.raises(SystemExit, match=r"has only adapters; merge them first: `soundmill export"):
        tune(tmp_path, data, f".start_from={tuned}/model")


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
    tune(other, data, f".start_from={base}", ".seed=7", ".steps=2", ".optimiser.learning_rate=0.1")
    one = sounds(tuned / "model", tmp_path / "one")
    alone = sounds(base, tmp_path / "alone", loras=[(tuned / "model", 1.0)])
    assert all(np.array_equal(a, b) for a, b in zip(one, alone, strict=True))
    none = sounds(base, tmp_path / "none", loras=[(tuned / "model", 0.0), (other / "model", 0.0)])
    for a, b in zip(none, sounds(base, tmp_path / "base"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    arguments = ["generate", "a bell", "--set", "num_steps=3", "--lora", f"{tuned / 'model'}=0.7,{other / 'model'}=0.3"]
    made = works(*arguments, "--output", "both", cwd=tmp_path).stdout.split()
    with soundfile.SoundFile(tmp_path / made[0]) as sound:
        said = json.loads(sound.comment)
    assert said["checkpoint"] == hashing.tree_digest(base)
    digests = [hashing.tree_digest(home / "model") for home in (tuned, other)]
    assert said["lora"] == [{"adapters": digests[0], "share": 0.7}, {"adapters": digests[1], "share": 0.3}]


def test_what_the_tagger_chose_stays_known_after_merging(tmp_path, tuned):
    shutil.copytree(tuned / "model", tmp_path / "model")
    started_from = json.loads((tmp_path / "model/config.json").read_text())["started_from"]
    edit(tmp_path / "model/config.json", started_from=started_from | {"chosen_by": ["tagger"]})
    merging.write_whole(tmp_path / "model", tmp_path / "merged")
    assert chosen_by(tmp_path / "merged", "last") == ["tagger"]


def test_a_part_of_dora_is_refused(tmp_path, trainings, base):
    with pytest.raises(UserError, match="cannot be added in part; give it the share 1"):
        sounds(base, tmp_path / "a", loras=[(trainings.trained("tango_dora") / "model", 0.5)])
    with pytest.raises(UserError, match="the share of x is 'nan', not a number"):
        _shares("x=nan")


def test_a_base_that_is_missing_or_another_one_is_named(tmp_path, tuned, base, data):
    shutil.copytree(tuned / "model", tmp_path / "model")
    edit(tmp_path / "model" / adapted.CONFIG, base_model_name_or_path="gone/base")
    with pytest.raises(UserError, match=r"the base gone/base of the adapters in .*model \(digest [0-9a-f]{12}…\) is missing"):
        generation.generate_sounds(tmp_path / "model", ["a bell"], 1, 5, tmp_path / "a", tmp_path)
    shutil.copytree(base, tmp_path / "gone" / "base")
    sounds(tmp_path / "model", tmp_path / "found")
    tune(tmp_path, data, ".seed=9", ".steps=1", row=ROWS["tango"])  # into tmp_path/model, which is another one then
    with pytest.raises(UserError, match=r"adapters of another base: .*trained on .*, and .*model is"):
        generation.generate_sounds(tmp_path / "model", ["a bell"], 1, 5, tmp_path / "b", tmp_path, loras=[(tuned / "model", 1.0)])
    shutil.rmtree(tmp_path / "gone" / "base")
    shutil.copytree(tmp_path / "model", tmp_path / "gone" / "base")
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(tuned / "model", tmp_path / "model")
    edit(tmp_path / "model" / adapted.CONFIG, base_model_name_or_path="gone/base")
    with pytest.raises(UserError, match=r"is another one now: .*base has digest"):
        merging.write_whole(tmp_path / "model", tmp_path / "merged")
    edit(tmp_path / "model" / adapted.CONFIG, base_model_name_or_path="a\0b")
    with pytest.raises(UserError, match="must be text or null"):
        adapted.base_of(tmp_path / "model")
