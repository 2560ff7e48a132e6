"""Tags of generated sounds: what made them, and that they were made by a trained model.

WAV: INFO's ISFT, and IPTC's digital source type in XMP. FLAC: the Vorbis comments SOFTWARE and COMMENT, the second in IPTC's words.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from xml.sax.saxutils import quoteattr

from soundmill import params

# https://cv.iptc.org/newscodes/digitalsourcetype: made by a model alone; a recording that a model has changed.
SourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
GENERATED: SourceType = "trainedAlgorithmicMedia"
CHANGED: SourceType = "compositeWithTrainedAlgorithmicMedia"
XMP = b"_PMX"  # the chunk of RIFF files with XMP (XMP specification, part 3)
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SOFTWARE = re.compile(r"Soundmill, (.{1,200}) \(libsndfile\)")
TAIL = 4096  # bytes at the end of a WAV that have its XMP


@dataclass(frozen=True)
class MadeBy:
    """What made a sound: the weights, such as `ddpm_mel checkpoint 0123abcd`, and how."""

    weights: str
    source_type: SourceType

    @property
    def software(self) -> str:
        """For ISFT or SOFTWARE. libsndfile would append its version if the text did not name it."""
        return f"Soundmill, {self.weights} (libsndfile)"

    @property
    def words(self) -> str:
        """For COMMENT: FLAC has no place for XMP."""
        return f"digital source type: {SOURCE_TYPE}{self.source_type}"

    @property
    def chunks(self) -> bytes:
        """All tags, as RIFF chunks for the end of a WAV file."""
        return chunk(b"LIST", b"INFO" + chunk(b"ISFT", f"{self.software}\0".encode())) + self.chunk

    @property
    def chunk(self) -> bytes:
        """The RIFF chunk with XMP, of even length."""
        packet = (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
            'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
            f"xmp:CreatorTool={quoteattr(f'Soundmill, {self.weights}')} "
            f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}{self.source_type}"/>'
            '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
        )
        return chunk(XMP, packet.encode())


def read(path: Path) -> MadeBy | None:
    """What made a WAV that this project wrote, for the sound written anew; None for any other file."""
    import soundfile

    try:
        with path.open("rb") as file, soundfile.SoundFile(file) as sound:  # of a path, libsndfile wants UTF-8
            named = SOFTWARE.fullmatch(sound.software)
        found = kinds(path)
    except (OSError, soundfile.SoundFileError):
        return None
    return MadeBy(named[1], found[0]) if named and found else None


def comment(path: Path) -> dict[str, Any]:
    """The comment of a WAV, if it is a JSON object, such as this project writes with the `prompt`; else empty."""
    import soundfile

    try:
        with path.open("rb") as file, soundfile.SoundFile(file) as sound:
            found = params.parse_json(sound.comment)
    except (OSError, soundfile.SoundFileError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def kinds(path: Path) -> list[SourceType]:
    """How this project made a WAV; empty for any other file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        tail = file.read()
    return [kind for kind in get_args(SourceType) if f'"{SOURCE_TYPE}{kind}"'.encode() in tail]


def chunk(name: bytes, content: bytes) -> bytes:
    """A RIFF chunk, padded to an even length."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
