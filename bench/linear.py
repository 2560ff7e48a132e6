"""Time to read hostile files, of one size and of twice that: metadata of a corpus, containers of sound, parameters."""

import json
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile

from bench import measure
from bench.measure import Target
from soundmill import params
from soundmill.corpora import inventory, registry
from soundmill.decoding import decode
from soundmill.errors import UserError

LIMIT = 2.6  # of the ratio; four would be quadratic
FLOOR_SECONDS = 0.1  # below it noise decides, and nobody waits
MAX_SECONDS = 600.0


def _wave(size: int) -> bytes:
    return b"data" + struct.pack("<I", size) + bytes(size)


# File name → its content, about as long as `size`. What is right is tested elsewhere: here any answer counts, if it comes in time.
HOSTILE: dict[str, Callable[[int], bytes]] = {
    "metadata.jsonl of one key": lambda size: b'{"file_name": "a.wav", ' + b'"k": 1, ' * (size // 8) + b'"text": "x"}\n',
    "metadata.jsonl of rows": lambda size: b'{"file_name": "a.wav", "text": "x"}\n' * (size // 36),
    "metadata.jsonl of names": lambda size: b"".join(b'{"file_name": "%d.wav"}\n' % row for row in range(size // 24)),
    "metadata.json of blanks": lambda size: b" " * size,
    "metadata.json of brackets": lambda size: b"[" * size,
    "metadata.json of an array": lambda size: b'[{"file_name": "a.wav"}' + b', {"file_name": "a.wav"}' * (size // 24) + b"]",
    "metadata.csv of columns": lambda size: b"file_name," + b"c," * (size // 2) + b"text\n",
    "metadata.csv of one column": lambda size: b"file_name," * (size // 10) + b"text\n",
    "metadata.csv of a quote": lambda size: b'file_name,text\na.wav,"' + b"x,y\n" * (size // 4),
    "metadata.csv of quotes": lambda size: b"file_name,text\na.wav," + b'"' * size,
    "metadata.csv of labels": lambda size: b"file_name,labels\na.wav," + b"a;" * (size // 2) + b"\n",
    "a.txt of lines": lambda size: b"rain\n" * (size // 5),
    "a.txt of blanks": lambda size: b"rain" + b" \t" * (size // 2) + b"x",
    "a.json of words": lambda size: json.dumps({"caption": "a " * (size // 2)}).encode(),
    "LICENSE of words": lambda size: b"Creative Commons " * (size // 17),
    "sound.wav of chunks": lambda size: b"RIFF\xff\xff\xff\xffWAVE" + b"junk\0\0\0\0" * (size // 8) + _wave(100),
    "sound.mp3 of tags": lambda size: b"ID3\4\0\0\0\0\0\0" * (size // 10),
    "sound.mp3 of joined tags": lambda size: b"TAG".ljust(128, b"x") * (size // 128),
    "sound.mp3 of syncs": lambda size: b"\xff\xfb\x90\x64" * (size // 4),
    "sound.flac of blocks": lambda size: b"fLaC" + (b"\4\0\0\4" + bytes(4)) * (size // 8),
    "sound.ogg of pages": lambda size: (b"OggS\0\2" + bytes(21)) * (size // 27),
    "sound.m4a of boxes": lambda size: b"\0\0\0\x08ftyp" + b"\0\0\0\x08free" * (size // 8),
    "sound.m4a of nests": lambda size: b"".join(struct.pack(">I4s", size - at, b"moov") for at in range(0, size, 8)),
    "sound.avi of packets": lambda size: b"RIFF" + struct.pack("<I", size) + b"AVI " + b"LIST\4\0\0\0movi" * (size // 12),
    "params.yaml of keys": lambda size: b"".join(b"k%d: 1\n" % key for key in range(size // 8)),
    "params.yaml of aliases": lambda size: b"a: &a [1]\nb: [" + b"*a, " * (size // 4) + b"1]\n",
    "params.yaml of brackets": lambda size: b"a: " + b"[" * (size // 2) + b"]" * (size // 2),
}


def seconds(what: str, size: int) -> float:
    """CPU seconds to read a file of this kind, of a corpus with one sound or alone; the second of two readings."""
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        soundfile.write(root / "a.wav", np.zeros(1600), 16_000)
        path = root / what.partition(" ")[0]
        path.write_bytes(HOSTILE[what](size))

        def read() -> None:
            if path.suffix == ".yaml":
                params.read_yaml(path)
            elif path.stem == "sound":
                decode.probe(path, MAX_SECONDS)
            else:
                registry.read("auto", inventory.list_files(root), 1)

        for _ in range(2):
            start = time.process_time()
            with suppress(UserError, decode.DecodeError):
                read()
            taken = time.process_time() - start
    return taken


def main() -> None:
    parser = measure.parser(__doc__, kilobytes=1000)
    args = parser.parse_args()
    taken = {what: [seconds(what, times * args.kilobytes * 500) for times in (1, 2)] for what in HOSTILE}
    rows = [Target(what, twice / max(once, FLOOR_SECONDS), LIMIT, at_least=False) for what, (once, twice) in taken.items()]
    measure.write("linear", args.results, 1, taken, rows)


if __name__ == "__main__":
    main()
