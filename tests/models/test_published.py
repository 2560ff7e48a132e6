"""Published models: a directory of diffusers' StableAudioPipeline, whose sounds are the pipeline's; a checkpoint of
tiny-audio-diffusion, whose net is a-unet's; and what is refused."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from soundmill import hashing
from soundmill.diffusion.solvers import STABLE_AUDIO
from soundmill.errors import UserError
from soundmill.models import generation, importing, registry
from soundmill.models.components.dit.network import padded
from soundmill.models.family import Request, Run
from soundmill.models.importing import import_published
from soundmill.models.waveform_unet import model as models
from soundmill.training.seeds import seed_of
from tests import recorded
from tests.imports import ROOT
from tests.lost_bits import Code
from tests.prepared import edit

RATE, FRAMES, CHANNELS = 8000, 16, 4
SECONDS = 0.01  # 80 of 128 samples
CARD = "---\nlicense: other\nlicense_name: only-for-tests\n---\nA model.\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def scheduler():
    """CosineDPMSolverMultistepScheduler without torchsde: the steps of its sibling, its times, and noise from a generator."""
    from diffusers import EDMDPMSolverMultistepScheduler

    class Cosine(EDMDPMSolverMultistepScheduler):
        def precondition_noise(self, sigma):
            return torch.as_tensor(sigma).atan() / math.pi * 2

    return Cosine(**STABLE_AUDIO, algorithm_type="sde-dpmsolver++")


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "rain": 3, "a": 4, "dog": 5, "barks": 6}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=6, **special)


def build(width: int = 12, heads: int = 4, head_width: int = 8, key_heads: int = 2, context_width: int | None = None):
    """The pipeline, small, with random weights everywhere; conditions are `width` wide, in the attention `context_width`."""
    from diffusers import AutoencoderOobleck, StableAudioDiTModel, StableAudioPipeline
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    transformer = StableAudioDiTModel(
        sample_size=FRAMES,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=head_width,
        num_attention_heads=heads,
        num_key_value_attention_heads=key_heads,
        cross_attention_dim=context_width or width,
        cross_attention_input_dim=width,
        global_states_input_dim=2 * width,
    )
    pipeline = StableAudioPipeline(
        vae=AutoencoderOobleck(2 * CHANNELS, [2, 4], [1, 2], 4, CHANNELS, audio_channels=2, sampling_rate=RATE),
        text_encoder=T5EncoderModel(T5Config(vocab_size=7, d_model=10, d_kv=5, d_ff=20, num_layers=2, num_heads=2)).eval(),
        projection_model=StableAudioProjectionModel(10, width, min_value=0, max_value=1),
        tokenizer=tokenizer(),
        transformer=transformer,
        scheduler=scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    for part in (transformer, pipeline.projection_model):
        for weight in part.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    return build()


def publish(pipeline, directory: Path, **options: object) -> Path:
    """As Stable Audio Open is published; `options` of diffusers' save_pretrained."""
    pipeline.save_pretrained(directory, **options)
    published = {"_class_name": "CosineDPMSolverMultistepScheduler", **STABLE_AUDIO, "rho": 7.0, "num_train_timesteps": 1000}
    (directory / "scheduler/scheduler_config.json").write_text(json.dumps(published))
    parts = {
        "scheduler": ["diffusers", published["_class_name"]],
        "projection_model": ["stable_audio", "StableAudioProjectionModel"],
    }
    edit(directory / "model_index.json", **parts)
    (directory / "LICENSE.md").write_text("Only for tests.\n")
    (directory / "README.md").write_text(CARD)
    return directory


@pytest.fixture(scope="module")
def source(pipeline, tmp_path_factory) -> Path:
    return publish(pipeline, tmp_path_factory.mktemp("source") / "tiny-open-1.0")


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("imported") / "tiny"
    import_published(source, output, conf)
    shutil.copytree(output, output.parent / "moved")  # a checkpoint needs no place
    return output.parent / "moved"


def conf() -> Path:
    return ROOT / "conf"


def run_of(model, tmp_path: Path, **changes: object) -> Run:
    sampling = model.params.sampling.model_copy(update={"num_steps": 4, "guidance_scale": 3.0, **changes})
    return Run(sampling, torch.device("cpu"), "32", 2, tmp_path, tmp_path)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_its_sounds_are_the_pipeline_s(pipeline, imported, tmp_path, guidance):
    """At equal noise and steps, to 1e-5, which guidance multiplies as it does all rounding: with our states, and with its own."""
    model = registry.family("audio_dit").load(imported)
    requests = [Request(caption="a dog barks", seed=3, seconds=SECONDS), Request(caption="rain", seed=4)]
    run = run_of(model, tmp_path, guidance_scale=guidance)
    ours = model.generate(requests, run)
    assert ours.shape == (2, 2, 128)
    lasting = [SECONDS, 128 / RATE]
    for wave, request, seconds in zip(ours, requests, lasting, strict=True):
        states = padded(model.told([request.caption], run), 6, 10)
        given = [{"prompt_embeds": states[0], "attention_mask": states[1].long()}, {"prompt": request.caption}]
        for told in given:
            rng = torch.Generator().manual_seed(seed_of(request.seed, "window", 0))
            noise = torch.randn(CHANNELS, FRAMES, generator=rng)[None]
            steps = {"num_inference_steps": 4, "guidance_scale": guidance, "generator": [rng], "latents": noise}
            theirs = pipeline(**told, audio_end_in_s=seconds, **steps).audios[0].clamp(-1, 1)
            assert theirs.std() > 0.01
            torch.testing.assert_close(wave[:, : theirs.shape[1]], theirs, atol=guidance * 1e-5, rtol=1e-5)
            assert not wave[:, theirs.shape[1] :].any()
    other = model.generate([Request(caption="rain", seed=3, seconds=SECONDS)], run)
    assert not torch.allclose(other[0], ours[0, :, :80], atol=1e-3)  # the text matters


def test_it_says_where_it_is_from_and_on_which_terms(source, imported, tmp_path, capsys):
    count = import_published(source, tmp_path / "again", conf)
    said = capsys.readouterr().out
    assert "tiny-open-1.0: licence: other, only-for-tests (LICENSE.md)" in said
    model = registry.family("audio_dit").load(tmp_path / "again")
    assert count == sum(weight.numel() for weight in model.net.parameters())
    config = json.loads((imported / "config.json").read_text())
    assert (config["imported"]["name"], config["imported"]["licence"]) == ("tiny-open-1.0", "other, only-for-tests")
    assert (imported / "LICENSE.md").read_text() == "Only for tests.\n"
    assert (imported / "README.md").read_text() == CARD
    files = sorted(path.relative_to(imported) for path in imported.rglob("*") if path.is_file())
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (imported / name).read_bytes(), name


def refused(directory: Path | str, output: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_published(directory, output, conf)


def test_the_terms_of_a_card_are_read_however_it_is_written(tmp_path):
    for card, licence in ((b"\xef\xbb\xbf--- \nlicense: x\n---\n", "x"), (b"---\nlicense: y\n---\n\xff", "y")):
        (tmp_path / "README.md").write_bytes(card)
        assert importing._licence(tmp_path, "it") == licence


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "XPipeline"}, "_class_name is 'XPipeline'; StableAudioPipeline and"),
        ("model_index.json", {"safety": ["diffusers", "X"]}, r"model_index\.json: safety is .* not supported"),
        ("model_index.json", {"scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"]}, r"model_index\.json: scheduler is "),
        ("model_index.json", {"vae": None}, r"model_index\.json: vae is missing"),
        ("transformer/config.json", {"rope": 1}, r"transformer/config\.json: rope is 1, which is not supported"),
        ("transformer/config.json", {"time_proj_dim": 128}, r"transformer/config\.json: time_proj_dim is 128, .* must be 256"),
        ("transformer/config.json", {"num_layers": None}, r"transformer/config\.json: num_layers is None, not a size"),
        ("transformer/config.json", {"num_layers": 3}, r"transformer/diffusion_pytorch_model\.safetensors: not the weights"),
        ("projection_model/config.json", {"min_value": -1}, r"projection_model/config\.json: min_value is -1, .* must be 0"),
        ("projection_model/config.json", {"text_encoder_dim": 8}, r"text_encoder/config\.json: d_model is 10, .* must be 8"),
        ("vae/config.json", {"channel_multiples": [1, 3]}, r"vae"),
        ("vae/config.json", {"downsampling_ratios": [2, 3]}, r"vae/config\.json.*ratios \[3\] must be even"),
        ("scheduler/scheduler_config.json", {"solver_type": "heun"}, r"scheduler_config\.json: solver_type is 'heun'"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}, r"tokenizer_config\.json: model_max_length is"),
        ("text_encoder/config.json", {"model_type": "bert"}, r"text_encoder/config\.json: model_type is 'bert'"),
    ],
)
def test_what_is_not_supported_is_named(source, tmp_path, file, changes, message):
    shutil.copytree(source, tmp_path / "other")
    edit(tmp_path / "other" / file, **changes)
    refused(tmp_path / "other", tmp_path / "output", message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


@pytest.mark.parametrize("part", ["transformer", "projection_model", "vae", "text_encoder"])
def test_pickles_are_not_read(source, tmp_path, part):
    shutil.copytree(source, tmp_path / "other")
    for weights in (tmp_path / "other" / part).glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    refused(tmp_path / "other", tmp_path / "output", rf"{part}.*weights in other formats can run code")


def digests(directory: Path) -> dict[str, str]:
    """Of the files of a checkpoint; in configurations without what says where it is from."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            name = path.relative_to(directory).as_posix()
            content = path.read_bytes()
            if name in ("config.json", "autoencoder/config.json"):
                values = {key: value for key, value in json.loads(content).items() if key not in ("imported", "source")}
                content = json.dumps(values, sort_keys=True).encode()
            found[name] = hashing.digest(content.hex())
    return found


def test_weights_in_shards_are_the_same(pipeline, imported, tmp_path):
    sharded = publish(pipeline, tmp_path / "tiny-open-1.0", max_shard_size="4KB")
    for part in ("transformer", "vae", "text_encoder"):
        assert len(list((sharded / part).glob("*.safetensors"))) > 1
        assert len(list((sharded / part).glob("*.safetensors.index.json"))) == 1
    import_published(sharded, tmp_path / "output", conf)
    ours, theirs = digests(tmp_path / "output"), digests(imported)
    text_files = {name for name in ours if name.startswith("text_encoder/")}
    for name in set(ours) - text_files - {"config.json"}:  # the configuration has the digest of the text encoder's files
        assert ours[name] == theirs[name], name
    assert set(ours) - text_files == {name for name in theirs if not name.startswith("text_encoder/")}


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "no.safetensors", 3, ["a"], None])
@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_an_index_names_files_beside_it_only(source, tmp_path, part, name):
    shutil.copytree(source, tmp_path / "other")
    (weights,) = (tmp_path / "other" / part).glob("*.safetensors")
    index = weights.with_name(f"{weights.name}.index.json")
    index.write_text(json.dumps({"weight_map": name and {"proj_in.weight": name}}))
    refused(tmp_path / "other", tmp_path / "output", rf"{part}/{index.name}: weight_map (names .*which is no |is None, not a list)")


@contextmanager
def hub(files: Path, gated: bool = False) -> Iterator[str]:
    """The hub's interface for one model, on loopback: its address. Of a gated model, only the list of files may be read."""
    paths = {path.relative_to(files).as_posix(): path for path in sorted(files.rglob("*")) if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            about: object = {"id": "owner/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in paths]}
            if "/tree/" in self.path:
                about = [{"type": "file", "path": name, "size": path.stat().st_size, "oid": name} for name, path in paths.items()]
            name = self.path.partition(f"/resolve/{COMMIT}/")[2]
            refused = gated and bool(name)
            body = b"" if refused else paths[name].read_bytes() if name else json.dumps(about).encode()
            self.send_response(403 if refused else 200)
            if refused:
                self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("X-Error-Message", "Access to model owner/tiny is restricted: accept its licence.")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashing.digest(name)}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow(minutes=0.3)
def test_a_model_of_the_hub_is_the_same_and_its_gate_is_told(source, imported, tmp_path):
    (source / "weights.ckpt").write_bytes(b"not for us")

    def run(address: str, home: str, *revision: str) -> subprocess.CompletedProcess:
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-m", "soundmill", "import", "owner/tiny", *revision, "--output", str(tmp_path / home / "open")]
        return subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True)

    with hub(source) as address:
        done = run(address, "one", "--revision", COMMIT)
        shutil.copytree(tmp_path / "one/hub", tmp_path / "broken off/hub", symlinks=True)
        next((tmp_path / "broken off").rglob("vae/*.safetensors")).unlink()
        resumed = run(address, "broken off", "--revision", COMMIT)
        unnamed = run(address, "two")
    assert done.returncode == 0, done.stderr
    for name in ("transformer.safetensors", "autoencoder/model.safetensors", "text_encoder/model.safetensors"):
        assert (tmp_path / "one/open" / name).read_bytes() == (imported / name).read_bytes(), name
    assert not list((tmp_path / "one").rglob("*.ckpt"))
    assert f"owner/tiny@{COMMIT}: licence: other, only-for-tests (LICENSE.md)" in done.stdout
    assert json.loads((tmp_path / "one/open/config.json").read_text())["imported"]["name"] == f"owner/tiny@{COMMIT}"
    assert resumed.returncode == 0, resumed.stderr
    assert (unnamed.returncode, "an id on the hub (OWNER/NAME) needs --revision" in unnamed.stderr) == (1, True)
    with hub(source, gated=True) as address:
        gated = run(address, "three", "--revision", COMMIT)
    assert (gated.returncode, "accept its licence on the hub with the account of" in gated.stderr) == (1, True), gated.stderr


def write_checkpoint(path: Path, **more: object) -> None:
    """A Lightning checkpoint with a small net as audio-diffusion-pytorch builds it, trained and averaged."""
    averaged = recorded.state("a_unet")
    state = {f"model.net.{name}": torch.zeros_like(value) for name, value in averaged.items()}
    state |= {f"model_ema.ema_model.net.{name}": value for name, value in averaged.items()}
    torch.save({"state_dict": state, "global_step": 700, "epoch": 3, **more}, path)


def test_with_its_weights_the_net_says_the_same_and_makes_sounds(tmp_path):
    write_checkpoint(tmp_path / "tiny.ckpt")
    count = import_published(tmp_path / "tiny.ckpt", tmp_path / "imported" / "tiny", conf)
    assert count == 47_420
    ours = models.load(tmp_path / "imported/tiny")
    with torch.no_grad():
        output = ours.net(torch.from_numpy(recorded.uniform(3, 2, 64)), torch.tensor([0.0, 0.3, 1.0]))
    recorded.check("a_unet", "output", output, 1e-5, 1e-5)
    assert output.std() > 0.1
    config = json.loads((tmp_path / "imported/tiny/config.json").read_text())
    assert (config["sample_rate"], config["channels"], config["steps"], config["imported"]["name"]) == (44_100, 2, 700, "tiny.ckpt")
    paths = generation.generate_sounds(tmp_path / "imported/tiny", [], 1, 0, tmp_path / "sounds", tmp_path, ["num_steps=1"])
    assert len(paths) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"hyper_parameters": Code()}, "cannot be read as weights"),
        ({"state_dict": {}}, r"contains no U-Net of tiny-audio-diffusion"),
        ({"state_dict": [1]}, "it has no 'state_dict'"),
        ({"state_dict": {1: torch.zeros(1)}}, "it has no 'state_dict' of named tensors"),
        ({"state_dict": {"model.net.a": torch.zeros(1).expand(10**9)}}, "'model.net.a' is not a complete tensor"),
        ({"state_dict": {"model.net.a": torch.tensor([float("nan")])}}, "values that are not finite real numbers"),
        ({"state_dict": {"model.net.blocks.2.net.block.blocks.0.block.weight": torch.zeros(4, 2)}}, "no U-Net"),
        ({"state_dict": {"model.net.blocks.2.net.block.blocks.0.block.weight": torch.zeros(4, 2, 1)}}, "no U-Net"),
    ],
)
def test_what_is_none_is_refused(tmp_path, content, message, capsys):
    write_checkpoint(tmp_path / "tiny.ckpt", **content)
    refused(tmp_path / "tiny.ckpt", tmp_path / "imported", message)
    assert not (tmp_path / "imported").exists()
    assert "it ran" not in capsys.readouterr().out


def test_tensors_too_many_or_of_other_shapes_are_refused(tmp_path):
    write_checkpoint(tmp_path / "tiny.ckpt")
    whole = torch.load(tmp_path / "tiny.ckpt", weights_only=True)
    name = "model_ema.ema_model.net.blocks.2.net.block.blocks.1.block.blocks.0.blocks.0.2.weight"
    for change in ({f"{name}.more": torch.zeros(1)}, {name: torch.zeros(8, 8, 5)}):
        torch.save({"state_dict": {**whole["state_dict"], **change}}, tmp_path / "other.ckpt")
        refused(tmp_path / "other.ckpt", tmp_path / "imported", r"other\.ckpt: not the weights of UNet1d")
