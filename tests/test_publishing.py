"""Publishing the shrunk demo's models, and pulling them elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import wave
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from huggingface_hub import DatasetCard, ModelCard, RepoCard

from soundmill import attribution, manifest, params
from soundmill.attribution import Credit
from soundmill.audio import tags
from soundmill.audio.flac import decode_flac, write_wav
from soundmill.clips import Tables
from soundmill.corpora import licence_texts
from soundmill.corpora.terms import TermsParams
from soundmill.errors import UserError
from soundmill.models import generation
from soundmill.models.family import made_by, origin
from soundmill.models.waveform_unet import TrainParams
from soundmill.models.waveform_unet import model as unets
from soundmill.publishing import card, model
from soundmill.publishing.directory import CROISSANT, SUMS, check_allowed, publish_clips, pull, read_sums
from tests.commands.running import refused, soundmill, works
from tests.imports import ROOT
from tests.models.test_live import V2, codec


@pytest.fixture(scope="module")
def published(built_graph, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("published") / "mill"
    done = works("publish", "ddpm_mel", str(directory), cwd=built_graph)
    named = {line.split("  ")[0] for line in done.stdout.splitlines()}
    assert named == {str(path) for path in directory.rglob("*") if path.is_file()}
    return directory


def test_a_pulled_model_makes_the_same_bytes(built_graph, published, tmp_path):
    works("pull", str(published), cwd=tmp_path)
    made = {}
    for name, directory in (("here", built_graph / "data/models/ddpm_mel"), ("there", tmp_path / "models/mill/checkpoint")):
        asked = ("generate", "-n", "2", "--set", "num_steps=1", "--checkpoint", str(directory), "--output", str(tmp_path / name))
        assert soundmill(*asked, cwd=tmp_path).returncode == 0
        made[name] = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.wav")}
    assert made["here"] == made["there"]
    assert len(made["here"]) == 2
    works("licences", str(tmp_path / "models/mill"), cwd=tmp_path)  # outside any project


def assert_its_licence_is_a_file_that_the_hub_takes(directory: Path, read: RepoCard) -> None:
    """The hub's specification of cards: `license_link` is `LICENSE`, `LICENSE.md` or an address. Its validator needs the hub."""
    assert (read.data.license, read.data.license_link) == ("other", "LICENSE.md")
    said = (directory / "LICENSE.md").read_text(encoding="utf-8")
    credited = attribution.read(directory / manifest.ATTRIBUTION)
    assert all(f"- {fact}: " in said for fact, _ in attribution.statements(credited))
    assert manifest.ATTRIBUTION in said
    assert "LICENSE.md" in read_sums(directory)


def test_the_card_is_read_by_the_hubs_own_code_and_the_attribution_is_that_of_the_checkpoint(built_graph, published):
    expected = attribution.credits_of(built_graph / "data/models/ddpm_mel", built_graph / "data/corpus/recordings.parquet")
    assert attribution.read(published / manifest.ATTRIBUTION) == expected
    read = ModelCard.load(published / "README.md", ignore_metadata_errors=False)
    assert (published / "MODEL_CARD.md").read_bytes() == (published / "README.md").read_bytes()
    assert_its_licence_is_a_file_that_the_hub_takes(published, read)
    assert {result.metric_type for result in read.data.eval_results} >= {"kl_tagger", "mmd_tagger"}
    assert all("95 % interval" in result.metric_name for result in read.data.eval_results)
    assert not [tag for tag in read.data.tags if tag.startswith("training-material")]  # the embedded corpus: all known
    assert "CC0-1.0" in read.text
    for path in (*read.text.split("](")[1:],):
        assert (published / path.partition(")")[0]).is_file()


def test_a_card_has_a_sound_of_each_label_and_what_listeners_said(published, built_graph):
    text = (published / "README.md").read_text(encoding="utf-8")
    rows = pq.read_table(built_graph / "data/catalog/default.parquet").to_pylist()
    made = {path.stem for path in (built_graph / "data/generated/ddpm_mel").glob("*.wav")}
    labels = {", ".join(sorted(row["labels"])) for row in rows if row["clip_id"] in made}
    named = re.findall(r"- \[(.*)\]\(samples/(.*)\.wav\)", text)
    of_clip = {row["clip_id"]: ", ".join(sorted(row["labels"])) for row in rows}
    assert {name: of_clip[name] for _, name in named} == {name: label for label, name in named}
    assert len({label for label, _ in named}) == min(len(labels), 8)
    assert "## Listening tests" in text
    said = list(card._ratings({"mos_quality": 3.5, "mos_quality_low": 3.25, "mos_quality_high": 3.75, "preference_fit": 0.625}))
    assert said[2:] == ["| quality, mean rating | 3.5 | 3.25 … 3.75 |", "| fit, share of answers that prefer it | 0.625 |  |"]


@pytest.mark.parametrize("spoil", ["changed", "missing", "../model", "a\0b", "no list", "link", "linked folder", "linked list"])
def test_a_spoiled_model_is_not_pulled(published, tmp_path, spoil):
    broken = Path(shutil.copytree(published, tmp_path / "broken"))
    sums, weights = broken / SUMS, broken / "checkpoint" / "model.safetensors"
    if spoil == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    elif spoil == "missing":
        weights.unlink()
    elif spoil in ("../model", "a\0b"):
        sums.write_text(sums.read_text().replace("checkpoint/model", spoil))
    elif spoil == "link":
        weights.unlink()
        weights.symlink_to("/dev/zero")
    elif spoil == "linked folder":
        (broken / "checkpoint").rename(tmp_path / "elsewhere")
        (broken / "checkpoint").symlink_to(tmp_path / "elsewhere")
    else:
        sums.unlink()
        if spoil == "linked list":
            sums.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="SHA256SUMS" if spoil in ("../model", "no list", "linked list") else "broken/.*again"):
        pull(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_with_refused_recordings_is_not_published(tmp_path):
    found = [Credit(f"{number}.wav", "", "CC0-1.0", "refused", "", 1, 1.0, 0, "model") for number in range(7)]
    with pytest.raises(UserError, match=r"x: of its recordings, 7 \(0\.wav, .*4\.wav and 2 more\) may not be used: .*\. Do"):
        check_allowed("x", found, None, "Do")


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({}, None),
        ({"allow": ["CC0-1.0", "CC-BY-NC-*", "Mine", "unknown"]}, None),
        ({"allow": ["CC0-1.0", "Mine", "unknown"]}, r"1 \(b\.wav\) may not be used: licence CC-BY-NC-4\.0, .* \(earlier"),
        ({"allow": ["CC-BY-NC-4.0", "unknown"]}, r"1 \(a\.wav\) .*; 1 \(c\.wav\) .*: licence Mine, .* \(vocoder\)\. Do"),
        ({"allow": ["CC*", "Mine"]}, r"1 \(d\.wav\) may not be used: an unclear licence, .* \(model\)\. Do"),
        ({"unknown": "quarantine"}, r"what its part `codec` was trained on is not known: no known licence, .* Train that part"),
    ],
)
def test_the_terms_hold_for_parts_and_earlier_trainings(terms, said):
    found = [
        Credit("a.wav", "", "CC0-1.0", "unknown", "", 1, 1.0, 0, "model"),
        Credit("b.wav", "", "CC-BY-NC-4.0", "allowed", "", 1, 1.0, 0, "earlier training"),
        Credit("c.wav", "", "Mine", "unknown", "", 1, 1.0, 0, "vocoder"),
        Credit("d.wav", "", "unclear", "unknown", "", 1, 1.0, 0, "model"),
        Credit("e.wav", "", "unknown", "unknown", "", 1, 1.0, 0, "model"),
        Credit("", "", "unknown", "unknown", "", 0, 0.0, 0, "codec"),
    ]
    policy = TermsParams(**{"allow": None, "unknown": "keep", "ai_refused": "keep"} | terms)
    with pytest.raises(UserError, match=said) if said else nullcontext():
        check_allowed("x", found, policy, "Do")


@pytest.mark.parametrize("what", ["ddpm_mel", "data"])
def test_publishing_goes_by_the_terms_of_the_project(built_graph, tmp_path, what):
    document = params.read_yaml(built_graph / "params.yaml")
    document["corpus"]["terms"] = {"allow": ["CC-BY-*"], "unknown": "keep", "ai_refused": "keep"}
    params.write_yaml(document, tmp_path / "params.yaml")
    for name in ("data", "dvc.yaml"):
        (tmp_path / name).symlink_to(built_graph / name)
    said = refused("publish", what, str(tmp_path / "out"), cwd=tmp_path)
    assert "may not be used: licence CC0-1.0, which corpus.terms.allow" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("part", "what"), [("autoencoder", "codec"), ("vocoder", "vocoder")])
def test_a_codec_or_vocoder_is_published_with_its_own_attribution(built_graph, tmp_path, part, what):
    made = built_graph / "data/tango" / part
    works("publish", str(made), str(tmp_path / "it"), cwd=built_graph)
    clips = pq.read_table(made / manifest.TRAINED_ON_FILE).to_pylist()
    credited = attribution.read(tmp_path / "it" / manifest.ATTRIBUTION)
    assert {credit.recording for credit in credited} == {row["source"] for row in clips}
    assert sum(credit.clips for credit in credited) == len(clips)
    read = ModelCard.load(tmp_path / "it/README.md", ignore_metadata_errors=False)
    assert what in read.data.tags
    assert_its_licence_is_a_file_that_the_hub_takes(tmp_path / "it", read)
    pulled = soundmill("pull", str(tmp_path / "it"), "--output", str(tmp_path / "pulled"), cwd=tmp_path)
    assert "weights.start_from" in pulled.stderr
    for path in (path for path in made.rglob("*") if path.name != ".gitignore"):
        assert (tmp_path / "pulled/checkpoint" / path.relative_to(made)).read_bytes() == path.read_bytes()
    # A training that starts from it credits the same recordings.
    assert attribution.credits_of(tmp_path / "pulled/checkpoint", None) == credited


def test_what_is_neither_a_model_nor_a_part_of_one_is_not_published(built_graph, tmp_path):
    said = refused("publish", "data/tagger", str(tmp_path / "it"), cwd=built_graph)
    assert "neither a family's checkpoint nor a codec or vocoder" in said
    assert "trained here; did you mean 'tango'?" in refused("licences", "tngo", cwd=built_graph)
    assert "--clips: only for `data`" in refused("publish", "tango", str(tmp_path / "it"), "--clips", "default", cwd=built_graph)
    (tmp_path / "file").touch()
    assert "file is a file; name a new" in refused("publish", "tango", str(tmp_path / "file"), cwd=built_graph)
    damaged = shutil.copytree(built_graph / "data/tango/vocoder", tmp_path / "damaged")
    (damaged / "model.safetensors").unlink()
    assert "model.safetensors" in refused("publish", str(damaged), str(tmp_path / "it"), cwd=built_graph)
    assert not (tmp_path / "it").exists()


@pytest.mark.parametrize("licence", ["CC0-1.0", "CC-BY-4.0", "x" * 500, "<script>`#!\\" * 40, "unclear"])
def test_the_licence_file_names_what_holds_and_is_no_licence_of_all_recordings(tmp_path, licence):
    found = [
        Credit("a.wav", "", "CC-BY-NC-4.0", "with_disclosure", "", 1, 3600.0, 0, "model"),
        Credit("b.wav", "", licence, "allowed", "", 1, 3600.0, 0, "model"),
        Credit("", "", "unknown", "unknown", "", 0, 0.0, 0, "vocoder"),
    ]
    for some in (found, found[:1], found[1:2]):
        card.write_terms(some, tmp_path)
        said = (tmp_path / "LICENSE.md").read_text(encoding="utf-8")
        assert all(f"- {fact}: " in said for fact, _ in attribution.statements(some))
        assert len(said) < licence_texts.SHORT
        assert len(licence_texts.named_by_licence(said)) != 1  # so a corpus with this file beside it has an unclear licence
        assert "<script>" not in said
        assert attribution.read(tmp_path / manifest.ATTRIBUTION) == some


def test_what_a_corpus_says_is_text_in_the_card():
    assert card.plain("<img src=x> [a](b) | `c`\n# d") == r"&lt;img src=x&gt; \[a\](b) \| \`c\` \# d"


def run_alone(directory: Path, *arguments: str) -> None:
    """Run the published script in a process that cannot import soundmill."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", "import sys; sys.modules['soundmill'] = None; import runpy; sys.argv = sys.argv[1:]; "
               "runpy.run_path(sys.argv[0], run_name='__main__')", model.LOADER, *arguments]  # fmt: skip
    subprocess.run(command, cwd=directory, env=environment, check=True)


def test_the_script_runs_the_codec_without_soundmill(tmp_path, monkeypatch):
    trained = codec(V2)
    monkeypatch.setattr(model.live, "find", lambda checkpoint: trained)
    assert model.write_plain(tmp_path, None, {}, tmp_path) == card.CODEC
    tone = 0.3 * np.sin(np.arange(20_000) / 10, dtype=np.float32)
    write_wav(tmp_path / "in.wav", tone, trained.sample_rate)
    run_alone(tmp_path, "in.wav", "out.wav")
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert (file.getnframes(), file.getframerate()) == (20_000, trained.sample_rate)
        assert np.frombuffer(file.readframes(20_000), "<i2").any()
    assert tags.read(tmp_path / "out.wav") == tags.MadeBy(f"rave codec {trained.digest}", tags.CHANGED)


@pytest.mark.parametrize(
    ("condition", "deviation", "path"), [("none", 0.25, "v"), ("label", [0.5, 0.2, 0.1], "v"), ("label", 0.25, "rectified_flow")]
)
def test_the_script_generates_without_soundmill_what_soundmill_generates(tmp_path, condition, deviation, path):
    sizes = "{channels: [4, 8], factors: [1, 4], items: [1, 1], attention: [false, true], text_attention: [false, false], "
    changes = [f"network={sizes}heads: 2, head_width: 4, groups: 2, modulation: 8}}", "num_samples=4096", "hardware.precision='32'"]
    guidance = 2.0 if condition == "label" else 1.0
    changes += [f"condition={condition}", f"path={path}", "sampling.num_steps=5", f"sampling.guidance_scale={guidance}"]
    document = params.compose(ROOT / "conf", ["model=waveform_unet", *(f"waveform_unet.train.{change}" for change in changes)])
    settings = params.parse_section(document, "waveform_unet.train", TrainParams)
    labels = ["bell", "rain", "wind"] if condition == "label" else []
    torch.manual_seed(0)
    net = unets.build_net(settings, 2, len(labels)).eval()
    trained = unets.WaveformUNet(settings, net, 16_000, 2, sigma_data=deviation, labels=labels)
    trained.save(tmp_path / "checkpoint", {"weights": {"last": {"step": 1}}})
    source = origin(tmp_path / "checkpoint")
    assert model.write_plain(tmp_path / "checkpoint", unets.load(tmp_path / "checkpoint"), source, tmp_path) == card.NET
    asked = labels[1:]
    *_, expected = generation.generate_sounds(tmp_path / "checkpoint", asked, 2, 7, tmp_path / "sounds", tmp_path)
    run_alone(tmp_path, "out.wav", *(word for name in asked for word in ("--label", name)), "--seed", "7", "--number", "2")
    ours, rate = soundfile.read(expected, dtype="int16")
    theirs, their_rate = soundfile.read(tmp_path / "out.wav", dtype="int16")
    assert rate == their_rate
    assert np.abs(ours).max() > 1000
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert tags.read(tmp_path / "out.wav") == tags.read(expected) == made_by(source, tags.GENERATED)


@pytest.fixture(scope="module")
def published_data(built_graph, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("published data") / "clips"
    works("publish", "data", str(directory), cwd=built_graph)
    return directory


def test_mlcroissant_validates_the_metadata_and_loads_every_clip(built_graph, published_data):
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(published_data / CROISSANT)
    assert not dataset.metadata.issues.errors
    fields = json.loads((published_data / CROISSANT).read_text())["recordSet"][0]["field"]
    assert {field["name"] for field in fields if field.get("repeated")} == {"captions", "labels"}
    catalog = pq.read_table(built_graph / "data/catalog/default.parquet").to_pylist()
    rows = [row | {"split": split} for split in ("train", "validation", "test") for row in dataset.records(split)]
    loaded = {row[f"{row['split']}/clip_id"].decode(): row for row in rows}
    assert set(loaded) == {row["clip_id"] for row in catalog}
    for clip in catalog:
        row = loaded[clip["clip_id"]]
        split = row["split"]
        assert split.startswith(clip["split"])
        assert [word.decode() for word in row[f"{split}/captions"]] == clip["captions"]
        assert np.abs(decode_flac(row[f"{split}/audio"])).max() > 0


def test_published_clips_are_listed_with_their_digests_and_a_card_that_the_hub_reads(published_data):
    read = DatasetCard.load(published_data / "README.md", ignore_metadata_errors=False)
    assert_its_licence_is_a_file_that_the_hub_takes(published_data, read)
    files = {path.relative_to(published_data).as_posix() for path in published_data.rglob("*") if path.is_file()}
    assert set(read_sums(published_data)) == files - {SUMS}
    credited = attribution.read(published_data / manifest.ATTRIBUTION)
    assert sum(credit.clips for credit in credited) == 60


def test_pulled_clips_are_those_that_were_published(published_data, tmp_path):
    works("pull", str(published_data), cwd=tmp_path)
    pulled = tmp_path / "datasets" / published_data.name
    files = {path.relative_to(published_data) for path in published_data.rglob("*") if path.is_file()}
    assert {path.relative_to(pulled) for path in pulled.rglob("*") if path.is_file()} == files
    assert all((pulled / name).read_bytes() == (published_data / name).read_bytes() for name in files)
    shard = next(published_data.glob("data/*.parquet"))
    broken = Path(shutil.copytree(published_data, tmp_path / "broken"))
    (broken / "data" / shard.name).write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=rf"{shard.name}: is not the file"):
        pull(broken, tmp_path / "out")
    (broken / SUMS).write_text("")
    with pytest.raises(UserError, match="neither a model nor clips"):
        pull(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("licence", "ai_terms", "said"),
    [
        ("CC0-1.0", "refused", "refuse generative AI"),
        ("CC-BY-ND-4.0", "allowed", "adaptations"),
        ("CC-BY-4.0, no derivatives", "allowed", "adaptations"),
    ],
)
def test_clips_that_may_not_be_shared_are_not_published(built_graph, tmp_path, licence, ai_terms, said):
    catalog = built_graph / "data/catalog/default.parquet"
    name = pq.read_table(catalog)["recording_id"][0].as_py()
    row = {"recording_id": name, "licence": licence, "ai_terms": ai_terms}
    pq.write_table(pa.Table.from_pylist([row], manifest.RECORDINGS), tmp_path / "recordings.parquet")
    where = Tables(built_graph / "data/clips/default", catalog)
    with pytest.raises(UserError, match=rf"(?s)1 \(.+\).*{said}"):
        publish_clips(where, tmp_path / "out", 16_000, tmp_path / "recordings.parquet", None)
    assert not (tmp_path / "out").exists()
