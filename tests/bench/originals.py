"""Record what the originals of our networks say: `python -m tests.bench.originals [NAME …]` writes `tests/originals/NAME.npz`."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench import references
from soundmill.audio.resample import resample
from soundmill.evaluation.embedders import audiobox, msclap, passt
from soundmill.metrics.divergence import reverse
from tests import recorded
from tests.evaluation.test_evaluator import TOOL_RATE, waves_of
from tests.recorded import layout, sound, sounds, uniform

Said = Iterator[tuple[str, Any]]


def of_sounds(name: str) -> list[Any]:
    ask = references.embedder(name)
    return [ask([wave]) for wave in sounds(name)]


def vggish() -> Said:
    from torchvggish import mel_features, vggish_input

    yield "frames", torch.cat(of_sounds("vggish"))
    for seconds in (0.975, 2.5):
        wave = sound("noise", seconds, 16_000).astype(float)
        yield f"log-mels of {seconds} s", vggish_input.waveform_to_examples(wave, 16_000, False)
    for loudness in (0.05, 4.0):
        wave = sound("noise", 3.3, 16_000) * np.float32(loudness)
        levelled = wave.astype(np.float64) / max(0.1, wave.max())
        cut = [levelled[start : start + 16_000] for start in range(0, len(wave) - 16_000 + 1, 8_000)]
        sizes = {"num_mel_bins": 64, "lower_edge_hertz": 125, "upper_edge_hertz": 7500}
        yield f"google at {loudness}", [mel_features.log_mel_spectrogram(one, 16_000, 0.01, **sizes)[:96] for one in cut]


def cnn14(name: str) -> Said:
    ask, rate = references.embedder(name), references.RATES[name]
    outputs = [ask([np.pad(wave, (0, max(0, 2 * rate - len(wave))))]) for wave in sounds(name)]
    yield "frames", torch.cat([output["embedding"] for output in outputs])
    yield "logits", torch.logit(torch.cat([output["clipwise_output"] for output in outputs]).double())


def openl3() -> Said:
    """In a hum's bands without sound the spectrogram consists of what is rounded, so that is heard without rounding."""
    from torchopenl3 import get_audio_embedding
    from torchopenl3.utils import preprocess_audio_batch

    net = references.openl3()

    def ask(wave: np.ndarray, hop: float, model: Callable[..., Tensor] = net) -> Tensor:
        return get_audio_embedding(wave, 48_000, model, hop_size=hop)[0][0]

    yield "frames", torch.cat([ask(wave, 0.5) for wave in sounds("openl3_env")])
    yield "left", ask(sound("noise", 0.5, 48_000), 0.25)
    yield "right", ask(sound("noise", 1.0, 48_000)[24_000:], 0.25)
    for hop in (0.1, 0.5):
        for seconds in (0.00003, 0.2, 0.5, 0.75, 1.0, 1.9, 2.1):
            wave = torch.arange(1, 1 + round(seconds * 48_000), dtype=torch.float32)[None]
            yield f"windows of {seconds} s every {hop}", recorded.thinned(preprocess_audio_batch(wave, 48_000, hop_size=hop), 50)
    exact, transform = net.double(), recorded.transform(2048)[:, None]
    exact.speclayer.dft_real_kernels, exact.speclayer.dft_imag_kernels = transform.real.clone(), transform.imag.clone()
    yield "hum", ask(sound("hum", 0.5, 48_000), 0.5, lambda windows: exact(windows.double()))


def of_passt() -> Said:
    outputs = torch.cat(of_sounds("passt"))
    yield "frames", outputs[:, 527:]
    yield "logits", outputs[:, :527]
    net, windows = references.passt(), []
    long, net.forward = sound("noise", 11.0, 32_000), lambda waves: (windows.append(waves), torch.zeros(len(waves), 1295))[1]
    net.get_scene_embeddings(torch.from_numpy(long)[None])
    yield "windows", torch.cat(windows)


def music_speech_clap() -> Said:
    from transformers import RobertaTokenizerFast

    net = references.music_speech_clap()
    filled = [np.tile(wave, 480_000 // len(wave)) for wave in sounds("clap_music_speech")]  # as laion_clap's `repeatpad`
    filled = torch.from_numpy(np.stack([np.pad(wave, (0, 480_000 - len(wave))) for wave in filled]))
    yield "frames", normalize(net.audio_projection(net.audio_branch({"waveform": filled})["embedding"]), dim=-1)
    with tempfile.TemporaryDirectory() as place:
        references.write_clap_processor(Path(place))
        options = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
        tokens = RobertaTokenizerFast.from_pretrained(place)(recorded.TEXTS["clap_music_speech"], **options)
    assert tokens["attention_mask"][2].all()  # it was cut
    pooled = net.text_branch(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    yield "texts", normalize(net.text_projection(pooled), dim=-1)


def of_msclap() -> Said:
    wrapper = references.msclap_wrapper()
    with tempfile.TemporaryDirectory() as place:
        references.write_gpt2_tokenizer(Path(place) / "gpt2")
        tokenizer = msclap.load_tokenizer(Path(place) / "gpt2")
    tokenizer.add_special_tokens({"pad_token": "!"})
    wrapper.tokenizer = SimpleNamespace(encode_plus=lambda text, **options: tokenizer(text, **options))  # its older name
    waves = {f"{number}.wav": wave for number, wave in enumerate(sounds("msclap"))}
    wrapper.read_audio = lambda path, resample: (torch.from_numpy(waves[path])[None], 44_100)  # else FFmpeg's libraries
    yield "frames", wrapper.get_audio_embeddings(list(waves))
    yield "texts", torch.cat([wrapper.get_text_embeddings([text]) for text in recorded.TEXTS["msclap"]])


def of_audiobox() -> Said:
    net, infer = references.audiobox(), references.module("audiobox_aesthetics.infer")

    def rate(wave: np.ndarray, seconds: int) -> list[float]:
        """As its own predictor: windows, weighted by their length."""
        windows, masks, weights, _ = infer.make_inference_batch([torch.from_numpy(wave)[None]], seconds, seconds)
        outputs = net({"wav": torch.stack(windows), "mask": torch.stack(masks)})
        means = [np.average(outputs[axis].numpy(), weights=weights) for axis in infer.AXES_NAME]
        return [mean * audiobox.AXES[axis][1] + audiobox.AXES[axis][0] for axis, mean in zip(infer.AXES_NAME, means, strict=True)]

    yield "frames", [rate(wave, 10) for wave in sounds("audiobox")]
    yield "by short windows", [rate(wave, 2) for wave in sounds("audiobox_short")]


def vocos() -> Said:
    """PyPI's net at its published size."""
    from vocos.feature_extractors import MelSpectrogramFeatures
    from vocos.heads import ISTFTHead
    from vocos.models import VocosBackbone
    from vocos.pretrained import Vocos

    backbone = VocosBackbone(input_channels=100, dim=512, intermediate_dim=1536, num_layers=8)
    head = ISTFTHead(dim=512, n_fft=1024, hop_length=256, padding="center")
    net = references.filled(Vocos(MelSpectrogramFeatures(), backbone, head))
    yield from layout(net.state_dict()).items()
    features = net.feature_extractor(torch.from_numpy(sound("noise", 0.6, 24_000))[None])
    yield "features", features
    yield "waves", net.decode(features)


def a_unet() -> Said:
    """As audio-diffusion-pytorch's UNetV0 builds it, small."""
    from a_unet import TimeConditioningPlugin
    from a_unet.apex import AttentionItem, ModulationItem, ResnetItem, SkipModulate, XBlock, XUNet

    blocks = [
        XBlock(channels=width, factor=factor, items=([ResnetItem, ModulationItem] + [AttentionItem] * attention) * items)
        for width, factor, items, attention in ((8, 1, 1, False), (16, 2, 2, False), (16, 4, 1, True))
    ]
    sizes = {"attention_features": 64, "attention_heads": 2, "modulation_features": 32, "resnet_groups": 8}
    net = references.filled(TimeConditioningPlugin(XUNet)(dim=1, in_channels=2, blocks=blocks, skip_t=SkipModulate, **sizes))
    yield from layout(net.state_dict()).items()
    yield "output", net(torch.from_numpy(uniform(3, 2, 64)), torch.tensor([0.0, 0.3, 1.0]))


def diffwave() -> Said:
    from diffwave.model import DiffWave
    from diffwave.params import AttrDict, params

    net = references.filled(DiffWave(AttrDict(params, residual_layers=5, residual_channels=8, dilation_cycle_length=3)))
    yield from layout(net.state_dict()).items()
    for t in (0.0, 3.5, 22.992, 49.0, 7):
        yield f"noise at {t}", net(*(torch.from_numpy(uniform(2, *shape)) for shape in ((6 * 256,), (80, 6))), torch.tensor([t]))


def nn_tilde() -> Said:
    """What nn~ is told of a module with three methods: each one's numbers and labels, and the attributes."""
    import nn_tilde

    class Module(nn_tilde.Module):
        def __init__(self) -> None:
            super().__init__(16_000)
            self.register_method("forward", 1, 1, 1, 1, test_method=False)
            self.register_method("encode", 1, 1, 4, 32, test_method=False)
            self.register_method("decode", 4, 32, 1, 1, test_method=False)
            self.finish()

        @torch.jit.export
        def forward(self, waves: Tensor) -> Tensor:
            return waves

        encode = decode = forward

    net = Module()
    yield "methods", net.get_methods()
    yield "attributes", np.array(net.get_attributes().value, str)
    yield "rate", net.get_sample_rate()
    for name in net.get_methods():
        yield f"{name}_params", getattr(net, f"{name}_params")
        for labels in (f"{name}_input_labels", f"{name}_output_labels"):
            yield labels, getattr(net, labels)


def stable_audio_metrics() -> Said:
    """KL-PaSST by hear21passt, of its input there: all sounds have one window."""
    net = references.passt()

    def logits(wave: np.ndarray) -> np.ndarray:
        mono = wave.astype(np.float32).mean(axis=1)
        heard = resample(mono * np.float32(10 ** (-1 / 20) / np.abs(mono).max()), TOOL_RATE, passt.SAMPLE_RATE)
        (window,) = passt.overlapping(heard)
        return net(torch.from_numpy(window)[None])[0, :527].numpy()

    generated, real = waves_of("noise"), waves_of("hum")
    yield "reverse_kl", [reverse(logits(real[name]), logits(generated[name])) for name in real]


ORIGINALS: dict[str, Callable[[], Said]] = {
    "vggish": vggish,
    **{name: partial(cnn14, name) for name in references.CNN14},
    "openl3_env": openl3,
    "passt": of_passt,
    "clap_music_speech": music_speech_clap,
    "msclap": of_msclap,
    "audiobox": of_audiobox,
    "vocos": vocos,
    "a_unet": a_unet,
    "diffwave": diffwave,
    "nn_tilde": nn_tilde,
    "stable_audio_metrics": stable_audio_metrics,
}


def say(name: str) -> dict[str, np.ndarray]:
    """What is recorded of one original."""
    with torch.no_grad(), redirect_stdout(None):
        found = layout(references.ORIGINALS[name]().state_dict()) if name in references.ORIGINALS else {}
        for what, values in ORIGINALS[name]():
            values = np.asarray(values)
            exact = values.dtype.kind != "f" or what.startswith("fixed")
            found[what] = values if exact else recorded.thinned(values).astype(np.float32)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=ORIGINALS, metavar="NAME", default=list(ORIGINALS))
    for name in parser.parse_args().names:
        recorded.PLACE.mkdir(exist_ok=True)
        np.savez_compressed(recorded.PLACE / f"{name}.npz", **say(name))
