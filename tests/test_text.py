"""Text encoders: found, identified, loaded without running anybody's code, and what they say."""

import json
import resource
import shutil

import numpy as np
import pytest
import torch

from soundmill import text
from soundmill.errors import UserError

MINILM = "models/all-MiniLM-L6-v2"
SIZES = {"width": 16, "layers": 1, "heads": 2}


def test_bytes_and_an_end_are_the_tokens_of_the_scratch_encoder(scratch):
    encoder = text.load(scratch, 32)
    assert encoder("a dog").values.shape == (6, 16)
    assert encoder("").values.shape == (1, 16)
    assert encoder("übel").values.shape == (6, 16)
    assert encoder("a dog").values.dtype == np.float32
    encoder = text.load(scratch, 8)
    assert not encoder("a dog b").truncated
    states, truncated = encoder("a dog barks")
    assert (states.shape, truncated) == ((8, 16), True)


def test_seeds_tell_scratch_encoders_apart(scratch, tmp_path):
    same = text.make_scratch(tmp_path / "same", **SIZES, seed=0)
    other = text.make_scratch(tmp_path / "other", **SIZES, seed=1)
    assert same.digest == scratch.digest != other.digest
    assert not same.identity()["pretrained"]
    said = [text.TextEncoder(encoder.directory, 32)("rain").values for encoder in (scratch, same, other)]
    assert np.array_equal(said[0], said[1])
    assert not np.array_equal(said[0], said[2])


def test_of_a_model_with_a_decoder_the_encoder_speaks(tmp_path):
    """As of FLAN-T5: the checkpoint holds both, its encoder's last states are what counts."""
    from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration

    tokenizer = ByT5Tokenizer()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    whole = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes)).eval()
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = text.find(str(tmp_path), None, tmp_path)
    with torch.no_grad():
        expected = whole.encoder(**tokenizer(["a dog barks"], return_tensors="pt")).last_hidden_state[0]
    said = text.TextEncoder(encoder.directory, 32)
    assert type(said.net).__name__ == "T5EncoderModel"
    np.testing.assert_allclose(said("a dog barks").values, expected.numpy(), atol=2e-3)


def test_minilm_knows_what_words_mean_and_is_asked_for_no_more_tokens_than_it_reads(shared):
    if not (shared / MINILM).is_dir():
        pytest.skip(f"needs {MINILM} in ../shared")
    minilm = text.TextEncoder(shared / MINILM, 128)
    captions = ["a dog barks", "a puppy is barking", "heavy rain falls on a roof"]
    means = [minilm(caption).values.astype(np.float32).mean(0) for caption in captions]
    dog, puppy, rain = (mean / np.linalg.norm(mean) for mean in means)
    assert dog @ puppy > 0.6 > 0.3 > dog @ rain
    with pytest.raises(UserError, match="at most 512 tokens, but max_tokens"):
        text.TextEncoder(shared / MINILM, 513)


@pytest.mark.parametrize("name", ["../nowhere", "google/flan-t5-large"])
def test_a_missing_model_is_named_with_both_remedies(name, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=f"^{name}.* into a directory .*byt5-scratch"):
        text.find(name, "0" * 40, tmp_path)


@pytest.mark.parametrize("revision", [None, "main", "0613663"])
def test_a_model_of_the_hub_needs_a_commit(revision, tmp_path):
    with pytest.raises(UserError, match="40 hex digits"):
        text.find("google/flan-t5-large", revision, tmp_path)


def test_a_directory_counts_from_home_and_by_its_content(scratch, tmp_path):
    shutil.copytree(scratch.directory, tmp_path / "home" / "mine")
    found = text.find("mine", "main", tmp_path / "home")
    assert (found.digest, found.revision, found.pretrained) == (scratch.digest, None, True)
    config = json.loads((found.directory / "config.json").read_text())
    (found.directory / "config.json").write_text(json.dumps(config | {"dropout_rate": 0.0}))
    assert text.find("mine", None, tmp_path / "home").digest != scratch.digest


def test_weights_that_are_pickled_missing_or_torn_are_not_read_and_no_random_ones(scratch, tmp_path):
    directory = shutil.copytree(scratch.directory, tmp_path / "pickled")
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        text.find(str(directory), None, tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        text.find(str(tmp_path), None, tmp_path)
    from safetensors.torch import load_file, save_file

    directory = shutil.copytree(scratch.directory, tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    removed = next(name for name in weights if "SelfAttention.q" in name)
    rest = {name: value for name, value in weights.items() if name != removed}
    save_file(rest, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lack 1 of the network's"):
        text.TextEncoder(directory, 32)
    nan, another = torch.full_like(weights[removed], torch.nan), removed.replace("block.0", "block.9")
    for more, said in (({removed: nan}, "values that are not finite"), ({another: nan}, "more layers than config")):
        save_file(weights | more, directory / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=said):
            text.TextEncoder(directory, 32)


@pytest.mark.parametrize(
    ("file", "asked"),
    [
        *(("config.json", {key: value}) for key, value in (("vocab_size", 10**8), ("num_labels", 3 * 10**6), ("d_ff", 10**6))),
        *(("config.json", {"num_layers": value}) for value in (10**5, 10**18, "x", [10**4299] * 20)),
        ("config.json", {"depths": [1] * 20_000}),
        ("config.json", {"model_type": "custom code", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}}),
        ("tokenizer_config.json", {"extra_ids": 20_000}),
        ("model.safetensors.index.json", {"weight_map": {"shared.weight": "/dev/zero"}}),
        ("model.safetensors", {}),
    ],
)
def test_files_of_others_run_no_code_and_take_no_time_or_memory_beyond_their_weights(scratch, tmp_path, file, asked):
    path = shutil.copytree(scratch.directory, tmp_path / "model") / file
    path.write_text(json.dumps((json.loads(path.read_text()) if file.endswith("g.json") else {}) | asked))
    path.with_name("mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    text.TextEncoder(scratch.directory, 32)  # what is imported for the first one counts for none
    used = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(UserError, match=f"{path.parent}.*{asked.get('model_type') or next(iter(asked), 'cannot be read')}"):
        text.TextEncoder(path.parent, 32)
    now = resource.getrusage(resource.RUSAGE_SELF)
    assert (now.ru_maxrss - used.ru_maxrss < 200_000, now.ru_utime - used.ru_utime < 10) == (True, True)  # KiB, seconds
    assert not (tmp_path / "ran").exists()
