"""The single file of stable-audio-tools: the same checkpoint as of diffusers' layout, and what is refused.

The names of tensors are those of that program's own model, which got the same sounds (docs/models.md).
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from safetensors.torch import load_file, save_file

from soundmill.models import generation, registry
from soundmill.models.family import Request
from soundmill.models.importing import import_published
from soundmill.params import read_yaml
from tests.imports import ROOT
from tests.models.test_published import CARD, CHANNELS, FRAMES, build, conf, digests, publish, refused, run_of

WIDTH, HEADS = 64, 2
NAMES = read_yaml(ROOT / "tests/models/stable_audio_tools.yaml")
NORMS = {
    f"{theirs}.{one}_norm.{kind}": f"{ours}.norm_{one}.{kind}"
    for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for one in "qk"
    for kind in ("weight", "bias")
}


def units(block: str, ours: str, first: int) -> dict[str, str]:
    return {
        f"{block}layers.{first + number}.{theirs}": f"{ours}res_unit{number + 1}.{layer}"
        for number in range(3)
        for theirs, layer in NAMES["unit"].items()
    }


def blocks(side: str) -> dict[str, str]:
    names = dict(NAMES["ends"])
    for number in range(2):
        block, ours = f"layers.{number + 1}.", f"block.{number}."
        if side == "encoder":
            names |= units(block, ours, 0) | {f"{block}layers.3.": f"{ours}snake1.", f"{block}layers.4.": f"{ours}conv1."}
        else:
            names |= {f"{block}layers.0.": f"{ours}snake1.", f"{block}layers.1.": f"{ours}conv_t1."} | units(block, ours, 2)
    return {f"{side}.{theirs}": f"{side}.{layer}" for theirs, layer in names.items()}


def moved(state: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The tensors below each name (ending with a dot)."""
    return {
        theirs + name.removeprefix(ours): value
        for theirs, ours in names.items()
        for name, value in state.items()
        if name.startswith(ours)
    }


def joined(pipeline) -> dict[str, torch.Tensor]:
    """The weights of a pipeline with two layers and two blocks, as stable-audio-tools names them."""
    state = pipeline.transformer.state_dict()
    names = {
        f"transformer.layers.{number}.{theirs}": " ".join(f"transformer_blocks.{number}.{one}" for one in ours.split())
        for number in range(2)
        for theirs, ours in (NAMES["layer"] | (NORMS if "transformer_blocks.0.attn1.norm_q.weight" in state else {})).items()
    }
    tensors = {f"model.model.{theirs}": torch.cat([state[one] for one in ours.split()]) for theirs, ours in names.items()}
    tensors |= {f"model.model.{name}": value for name, value in moved(state, NAMES["outer"]).items()}
    tensors["model.model.timestep_features.weight"] = tensors["model.model.timestep_features.weight"][:, None]
    tensors["model.model.transformer.rotary_pos_emb.inv_freq"] = 10_000.0 ** -(torch.arange(0, 32, 2) / 32)
    conditions = moved(pipeline.projection_model.state_dict(), NAMES["seconds"])
    tensors |= {f"conditioner.conditioners.{name}": value for name, value in conditions.items()}
    codec = moved(pipeline.vae.state_dict(), blocks("encoder") | blocks("decoder"))
    snakes = {name: value.flatten() if name.endswith((".alpha", ".beta")) else value for name, value in codec.items()}
    tensors |= {f"pretransform.model.{name}": value for name, value in snakes.items()}
    return {name: value.contiguous().clone() for name, value in tensors.items()}


def config() -> dict:
    """The program's configuration of a model of `tiny`'s sizes."""
    return json.loads((Path(__file__).parent / "stable_audio_tools.json").read_text())


def tiny():
    """A pipeline whose heads are as wide as that program's are at least."""
    return build(width=WIDTH, heads=HEADS, head_width=64, key_heads=1)


def tiny_small():
    """As `tiny`, of the kind of Stable Audio Open Small: queries and keys normalised, conditions projected, and no start."""
    pipeline = build(width=WIDTH, heads=HEADS, head_width=64, key_heads=HEADS, context_width=64 * HEADS)
    transformer = pipeline.transformer
    transformer.global_proj[0] = torch.nn.Linear(WIDTH, 64 * HEADS, bias=False)
    for block in transformer.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q, attention.norm_k = torch.nn.LayerNorm(64, eps=1e-6), torch.nn.LayerNorm(64, eps=1e-6)
    for weight in transformer.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    pipeline.projection_model.start_number_conditioner = None
    return pipeline


def config_of_small() -> dict:
    document = config()
    conditioning, diffusion = document["model"]["conditioning"], document["model"]["diffusion"]
    conditioning["configs"] = [one for one in conditioning["configs"] if one["id"] != "seconds_start"]
    diffusion |= {
        "diffusion_objective": "rf_denoiser",
        "cross_attention_cond_ids": ["prompt", "seconds_total"],
        "global_cond_ids": ["seconds_total"],
        "distribution_shift_options": {"min_length": 256, "max_length": 4096},
    }
    diffusion["config"] |= {"global_cond_dim": WIDTH, "project_cond_tokens": True, "attn_kwargs": {"qk_norm": "ln"}}
    return document


def write(pipeline, directory: Path, document: dict) -> Path:
    """In this layout, with the text encoder's files in one directory."""
    directory.mkdir()
    save_file(joined(pipeline), directory / "model.safetensors")
    (directory / "model_config.json").write_text(json.dumps(document))
    for part in (pipeline.text_encoder, pipeline.tokenizer):
        part.save_pretrained(directory / "text_encoder")
    (directory / "LICENSE.md").write_text("Only for tests.\n")
    (directory / "README.md").write_text(CARD)
    return directory


@pytest.fixture(scope="module")
def pipeline():
    return tiny()


@pytest.fixture(scope="module")
def source(pipeline, tmp_path_factory) -> Path:
    return write(pipeline, tmp_path_factory.mktemp("single") / "tiny-open-1.0", config())


def test_both_layouts_make_the_same_checkpoint(pipeline, source, tmp_path):
    publish(pipeline, tmp_path / "tiny-open-1.0")
    counts = [import_published(path, tmp_path / path.parent.name, conf) for path in (source, tmp_path / "tiny-open-1.0")]
    ours, theirs = (digests(tmp_path / path.name) for path in (source.parent, tmp_path))
    assert counts[0] == counts[1]
    network = registry.family("audio_dit").load(tmp_path / source.parent.name).params.network
    assert (network.context_width, network.query_key_norm, network.start) == (None, False, True)  # as at paper scale
    assert ours == theirs
    assert {"transformer.safetensors", "autoencoder/model.safetensors", "text_encoder/model.safetensors", "LICENSE.md"} < set(ours)


def test_the_kind_of_stable_audio_open_small(tmp_path):
    """Its net is diffusers' with four more layers in each block, and it is sampled in few steps."""
    pipeline = tiny_small()
    import_published(write(pipeline, tmp_path / "tiny-small", config_of_small()), tmp_path / "model", conf)
    model = registry.family("audio_dit").load(tmp_path / "model")
    sampling, network = model.params.sampling, model.params.network
    assert (network.context_width, network.query_key_norm, network.start) == (64 * HEADS, True, False)
    assert (model.params.flow.objective, sampling.solver, sampling.num_steps) == ("rectified_flow", "pingpong", 8)
    conditions = model.conditions([Request(caption="a dog barks")], [0.01], run_of(model, tmp_path))
    xt, t = torch.randn(1, CHANNELS, FRAMES, generator=torch.Generator().manual_seed(0)), torch.tensor([0.4])
    projection = pipeline.projection_model
    text = projection.text_projection(conditions.states) * conditions.mask[..., None]
    end = projection.end_number_conditioner(conditions.seconds[:, 1])
    positions = get_1d_rotary_pos_embed(32, FRAMES + 1, use_real=True, repeat_interleave_real=False)
    with torch.no_grad():
        found = model.net(xt, t, *conditions)
        expected = pipeline.transformer(xt, t, torch.cat([text, end], 1), end, positions).sample
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    sounds = [generation.generate_sounds(tmp_path / "model", ["rain"], 1, 3, tmp_path / name, tmp_path)[0] for name in "ab"]
    assert sounds[0].read_bytes() == sounds[1].read_bytes()


def change(file: Path, key: str, value: object) -> None:
    """Set a key with dots, or remove it for None; entries of `configs` by their ids."""
    document = json.loads(file.read_text())
    *above, last = key.split(".")
    place = document
    for one in above:
        place = next(entry for entry in place if entry["id"] == one) if isinstance(place, list) else place.setdefault(one, {})
    place[last] = value
    if value is None:
        del place[last]
    file.write_text(json.dumps(document))


DIT, CODEC, CONDITIONING = "model.diffusion.config", "model.pretransform.config", "model.conditioning"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "diffusion_cond_inpaint", "model_type is 'diffusion_cond_inpaint', .* it must be 'diffusion_cond'"),
        ("sample_size", 129, "sample_size is 129, .* must be 128"),
        ("model.lora", {"rank": 4}, r"model\.lora\.rank is 4, .*unknown"),
        ("model.diffusion.type", "adp_cfg_1d", r"model\.diffusion\.type is 'adp_cfg_1d', .* must be 'dit'"),
        ("model.diffusion.diffusion_objective", "eps", r"diffusion_objective is 'eps', .* must be one of \['v', 'rectified_flow'"),
        ("model.diffusion.prepend_cond_ids", ["prompt"], r"prepend_cond_ids is \['prompt'\], .* must be \[\]"),
        ("model.diffusion.global_cond_ids", ["seconds_total"], r"global_cond_ids is \['seconds_total'\]"),
        ("model.diffusion.distribution_shift_options", {"min_length": 4}, r"shift_options\.min_length is 4, .*unknown"),
        ("model.diffusion.distribution_shift_options", {"kind": 4}, r"distribution_shift_options\.kind is 4, .*unknown"),
        (f"{DIT}.attn_kwargs", {"qk_norm": "l2"}, r"attn_kwargs\.qk_norm is 'l2', .* must be one of \['none', 'ln'\]"),
        (f"{DIT}.prepend_cond_dim", 8, "prepend_cond_dim is 8, .* must be 0"),
        (f"{DIT}.global_cond_type", "adaLN", "global_cond_type is 'adaLN'"),
        (f"{DIT}.project_cond_tokens", "both", "project_cond_tokens is 'both'"),
        (f"{DIT}.num_heads", 4, "num_heads is 4, .* heads must be 64 channels wide or wider"),
        (f"{DIT}.embed_dim", 129, "embed_dim is 129, .* must be 128"),
        (f"{DIT}.depth", "two", "depth is 'two', not a size"),
        (f"{CODEC}.bottleneck", {"type": "tanh"}, r"bottleneck\.type is 'tanh'"),
        (f"{CODEC}.encoder.config.channels", 16, r"encoder\.config\.channels is 16, .* must be 8"),
        (f"{CODEC}.decoder.config.final_tanh", True, "final_tanh is True, .* must be False"),
        (f"{CODEC}.decoder.config.final_tanh", None, "final_tanh is"),  # left out: the program's default
        (f"{CODEC}.decoder.config.use_snake", None, "use_snake is"),
        (f"{CODEC}.decoder.config.strides", [2, 3], r"model_config\.json.*ratios \[3\] must be even"),
        (f"{CONDITIONING}.configs.prompt.type", "clap_text", r"configs\.prompt\.type is 'clap_text', .* must be 't5'"),
        (f"{CONDITIONING}.configs.seconds_start.config.max_val", 2, r"seconds_start\.config\.max_val is 2, .* must be 1"),
        (f"{CONDITIONING}.configs", [], r"configs\.seconds_total\.config\.max_val is None, not a size"),
    ],
)
def test_what_is_not_supported_is_named(source, tmp_path, key, value, message):
    shutil.copytree(source, tmp_path / "other")
    change(tmp_path / "other/model_config.json", key, value)
    refused(tmp_path / "other", tmp_path / "output", message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


TOTAL = "conditioner.conditioners.seconds_total.embedder.embedding"
FIRST = "model.model.preprocess_conv.weight"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (FIRST, None, f"has no '{FIRST}'"),
        (FIRST, torch.zeros(CHANNELS, 3, 1), rf"'{FIRST}' has the shape \(4, 3, 1\), not \(4, 4, 1\)"),
        (FIRST, torch.full((CHANNELS, CHANNELS, 1), float("nan")), "'preprocess_conv.weight' has values that are not finite"),
        ("model.model.transformer.layers.0.self_attn.to_qkv.weight", torch.zeros(9, 128), r"\(9, 128\), not \(384, 128\)"),
        ("model.model.transformer.memory_tokens", torch.zeros(1), "memory_tokens' is not supported"),
        ("model.model.transformer.rotary_pos_emb.inv_freq", torch.ones(16), "inv_freq' is not supported: this family's net turns"),
        (f"{TOTAL}.0.weights", None, rf"has no '{TOTAL}\.0\.weights'"),
    ],
)
def test_tensors_are_those_of_the_configuration(source, tmp_path, name, value, message):
    shutil.copytree(source, tmp_path / "other")
    tensors = load_file(source / "model.safetensors") | {name: value}
    save_file({key: one for key, one in tensors.items() if one is not None}, tmp_path / "other/model.safetensors")
    refused(tmp_path / "other", tmp_path / "output", message)


def test_files_that_are_missing_are_named_with_a_remedy(source, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(source, other)
    shutil.rmtree(other / "text_encoder")
    refused(other, tmp_path / "output", r"other/text_encoder: has no config\.json.*put the files of 't5-base' .* there")
    (other / "model.safetensors").rename(other / "model.ckpt")
    refused(other, tmp_path / "output", r"has no model\.safetensors \(weights in other formats can run code.*save_file")
    refused(
        "./nowhere", tmp_path / "output", r"\./nowhere: no such file or directory; an id on the hub \(OWNER/NAME\) needs --revision"
    )
    (other / "model_config.json").unlink()
    refused(other, tmp_path / "output", r"has neither model_index\.json .* nor model_config\.json")
