"""A small CLAP with random weights, in the files that transformers reads."""

from pathlib import Path

from bench import references


def write(directory: Path, seed: int = 0, fusion: bool = False, max_length_s: int = 10) -> None:
    import torch
    from transformers import ClapConfig, ClapModel

    tokens = references.write_clap_processor(directory, fusion, max_length_s)
    text = {"vocab_size": tokens, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    layers = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 1], "hidden_size": 16}
    config = ClapConfig(
        text_config={**text, "max_position_embeddings": 80, "projection_dim": 8},
        audio_config={**layers, "enable_fusion": fusion, "projection_dim": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ClapModel(config).save_pretrained(directory)
