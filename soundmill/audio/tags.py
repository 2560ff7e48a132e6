"""Tags of generated sounds: what made them (INFO's ISFT), and that they were made by a trained model (IPTC, in XMP)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import quoteattr

# https://cv.iptc.org/newscodes/digitalsourcetype: made by a model alone; a recording that a model has changed.
SourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
GENERATED: SourceType = "trainedAlgorithmicMedia"
CHANGED: SourceType = "compositeWithTrainedAlgorithmicMedia"
XMP = b"_PMX"  # the chunk of RIFF files with XMP (XMP specification, part 3)


@dataclass(frozen=True)
class MadeBy:
    """What made a sound: the weights, such as `ddpm_mel checkpoint 0123abcd`, and how."""

    weights: str
    source_type: SourceType

    @property
    def software(self) -> str:
        """For ISFT. libsndfile would append its version if the text did not name it."""
        return f"Soundmill, {self.weights} (libsndfile)"

    @property
    def chunk(self) -> bytes:
        """The RIFF chunk with XMP, of even length."""
        packet = (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
            'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
            f"xmp:CreatorTool={quoteattr(f'Soundmill, {self.weights}')} "
            f'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{self.source_type}"/>'
            '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
        )
        return chunk(XMP, packet.encode())


def chunk(name: bytes, content: bytes) -> bytes:
    """A RIFF chunk, padded to an even length."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
