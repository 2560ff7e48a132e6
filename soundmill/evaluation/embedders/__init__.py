"""The embedders by name. An entry in EMBEDDERS is all that a new one needs beside its module and its test.

A module is imported when its embedder is loaded, so listing all of them is cheap.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from soundmill import pretrained
from soundmill.errors import UserError
from soundmill.evaluation.embedders.base import (
    CLAP,
    CLAP_PROCESSOR,
    GPT2_TOKENIZER,
    Declaration,
    Embedder,
    TaggerDeclaration,
)
from soundmill.params import did_you_mean
from soundmill.pretrained import Weights

_OPENL3 = "https://github.com/torchopenl3/torchopenl3-models/raw/a5df8fd155993e1601590b19649e882a68f80186"
_ZENODO = "https://zenodo.org/records/3987831/files"

EMBEDDERS: dict[str, Declaration] = {
    "tagger": TaggerDeclaration("tagger:TaggerEmbedder", gpu=False),
    "texture": Declaration("texture:TextureEmbedder", classifier=False, gpu=False),
    "yamnet": Declaration(
        "yamnet:YamnetEmbedder",
        Weights(
            name="yamnet",
            file="yamnet.tflite",
            url="https://tfhub.dev/google/lite-model/yamnet/classification/tflite/1?lite-format=tflite",
            num_bytes=4_126_810,
            sha256="10c95ea3eb9a7bb4cb8bddf6feb023250381008177ac162ce169694d05c317de",
            licence="Apache-2.0",
            source="github.com/tensorflow/models, research/audioset/yamnet",
        ),
        gpu=False,
    ),
    "vggish": Declaration("vggish:VggishEmbedder", pretrained.VGGISH, classifier=False, gpu=False, options=("front_end",)),
    **{
        weights.name: Declaration("panns:Cnn14Embedder", weights, arguments=(weights.name,), patches=False)
        for weights in (
            Weights(
                name="panns_cnn14_16k",
                file="Cnn14_16k_mAP=0.438.pth",
                url=f"{_ZENODO}/Cnn14_16k_mAP%3D0.438.pth?download=1",
                num_bytes=358_668_570,
                sha256="e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6",
                licence="CC-BY-4.0",
                source="Kong et al. 2020, arXiv:1912.10211; doi:10.5281/zenodo.3987831",
                md5="362fc5ff18f1d6ad2f6d464b45893f2c",
            ),
            Weights(
                name="panns_cnn14_32k",
                file="Cnn14_mAP=0.431.pth",
                url=f"{_ZENODO}/Cnn14_mAP%3D0.431.pth?download=1",
                num_bytes=327_428_481,
                sha256="0dc499e40e9761ef5ea061ffc77697697f277f6a960894903df3ada000e34b31",
                licence="CC-BY-4.0",
                source="Kong et al. 2020, arXiv:1912.10211; doi:10.5281/zenodo.3987831",
                md5="541141fa2ee191a88f24a3219fff024e",
            ),
            Weights(
                name="panns_wavegram_logmel",
                file="Wavegram_Logmel_Cnn14_mAP=0.439.pth",
                url=f"{_ZENODO}/Wavegram_Logmel_Cnn14_mAP%3D0.439.pth?download=1",
                licence="CC-BY-4.0",
                source="Kong et al. 2020, arXiv:1912.10211; doi:10.5281/zenodo.3987831",
                md5="17fa9ab65af3c0eb5ffbc5f65552c4e1",
            ),
        )
    },
    **{
        f"openl3_{content}": Declaration(
            "openl3:OpenL3Embedder",
            Weights(
                name=f"openl3_{content}",
                file=f"torchopenl3_mel256_{content}_512.pth.tar",
                url=f"{_OPENL3}/torchopenl3_mel256_{content}_512.pth.tar",
                git_blob=blob,
                licence="Apache-2.0",
                source="Cramer et al. 2019; ported by github.com/torchopenl3/torchopenl3-models",
            ),
            arguments=(f"openl3_{content}",),
            classifier=False,
            options=("hop", "channels"),
        )
        for content, blob in {
            "env": "a37a08222ebf9d8a88a84beeae76ad909dac0bc6",
            "music": "54df87b6bfe9747d001991da436b3d1ac768b2a6",
        }.items()
    },
    "passt": Declaration(
        "passt:PasstEmbedder",
        Weights(
            name="passt",
            file="passt-s-f128-p16-s10-ap.476-swa.pt",
            url="https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt",
            num_bytes=344_665_734,
            sha256="302903fa8c4aee817b11dc982da0b29aaf8d11a3e722420476d0a12c9db70c2c",
            licence="Apache-2.0",
            source="Koutini et al. 2022, arXiv:2110.05069; github.com/kkoutini/PaSST",
        ),
        patches=False,
        options=("front_end",),
    ),
    "audiobox": Declaration(
        "audiobox:Audiobox",
        Weights(
            name="audiobox",
            file="audiobox-aesthetics.safetensors",
            url="https://huggingface.co/facebook/audiobox-aesthetics/resolve/9b1dd8e5df9af7216e836a98974fe3b82c56ded6/model.safetensors",
            num_bytes=415_472_992,
            sha256="a5a3c2412649cc2384ec525ffd5180ce6c4778f43bed6108e0a1303de04d014e",
            licence="CC-BY-4.0",
            source="Tjandra et al. 2025, arXiv:2502.05139; github.com/facebookresearch/audiobox-aesthetics",
        ),
        classifier=False,
        patches=False,
        ratings=("content_enjoyment", "content_usefulness", "production_complexity", "production_quality"),
    ),
    "clap": Declaration("clap:ClapEmbedder", files=CLAP, classifier=False, patches=False, texts=True),
    "clap_music_speech": Declaration(
        "clap:MusicSpeechClap",
        Weights(
            name="clap_music_speech",
            file="music_speech_audioset_epoch_15_esc_89.98.pt",
            url="https://huggingface.co/lukewys/laion_clap/resolve/4226474e38defca6fc9272a7848bb7b0355ccd7a/music_speech_audioset_epoch_15_esc_89.98.pt",
            num_bytes=2_352_471_003,
            sha256="51c68f12f9d7ea25fdaaccf741ec7f81e93ee594455410f3bca4f47f88d8e006",
            licence="CC0-1.0",
            source="Wu et al. 2023, arXiv:2211.06687; github.com/LAION-AI/CLAP",
        ),
        CLAP_PROCESSOR,
        classifier=False,
        patches=False,
        texts=True,
    ),
    "msclap": Declaration(
        "msclap:MsClapEmbedder",
        Weights(
            name="msclap",
            file="CLAP_weights_2023.pth",
            url="https://huggingface.co/microsoft/msclap/resolve/c47d441165daa21986ead0850660917636a81775/CLAP_weights_2023.pth",
            num_bytes=689_950_036,
            sha256="2cef4016d47d00eb28d153d522f397222057f95000e9bad6b9583c631284a1e6",
            licence="MS-PL",
            source="Elizalde et al. 2023, arXiv:2309.05767; github.com/microsoft/CLAP",
        ),
        GPT2_TOKENIZER,
        classifier=False,
        patches=False,
        texts=True,
    ),
}
MODULES = {name: declared.module for name, declared in EMBEDDERS.items()}
NAMES = tuple(EMBEDDERS)


def _check_name(name: str) -> str:
    if name not in EMBEDDERS:
        raise ValueError(f"unknown embedder {name!r}{did_you_mean(name, list(NAMES))}; there are {', '.join(NAMES)}")
    return name


EmbedderName = Annotated[str, AfterValidator(_check_name)]


def find(name: str) -> Declaration:
    """The embedder of that name, not loaded; an unknown name raises UserError."""
    try:
        _check_name(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    return EMBEDDERS[name]


def load(name: str, tagger: Path | None, **options: Any) -> Embedder:
    """Load an embedder; missing weights raise UserError.

    `tagger` is the directory of the pipeline's tagger, `options` are those that a protocol sets.
    """
    declared = find(name)
    for option in options:
        if option not in declared.options:
            has = f"only {', '.join(map(repr, declared.options))}" if declared.options else "none"
            raise UserError(f"{name}: unknown option {option!r}{did_you_mean(option, list(declared.options))}; it has {has}")
    return declared.load(declared.path(tagger), **options)


def unavailable(name: str) -> str | None:
    """Why an embedder's weights cannot be used on this machine, with a remedy; None if they can."""
    reason = find(name).unavailable()
    if reason is None:
        return None
    others = [other for other, weights in published().items() if other != name and pretrained.unavailable(weights) is None]
    return f"{reason}. Available without it: {', '.join(['tagger', 'texture', *others])}"


def published() -> dict[str, pretrained.Weights]:
    """The published weight files by embedder; `tagger` is trained here, `texture` has none, `clap` is a repository of the hub."""
    return {name: weights for name in NAMES if (weights := find(name).weights) is not None}


def named_in(parameters: Any) -> list[str]:
    """The published weights that are named anywhere in the content of a params.yaml: embedders, judges, projectors."""
    if isinstance(parameters, dict):
        parameters = list(parameters.values())
    if isinstance(parameters, list):
        named = {name for value in parameters for name in named_in(value)}
        return [name for name in published() if name in named]
    return [parameters] if isinstance(parameters, str) and parameters in published() else []
