"""Formats that store audio, captions and labels together."""

import io
import json
import tarfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa

from soundmill import manifest, shards
from soundmill.exports.target import HUGGING_FACE, ExportClip, Target

CLIPS_PER_TAR = 1000


class WebDataset(Target):
    """Tar files of CLIPS_PER_TAR clips: `<id>.flac`, `<id>.json` (captions, the first also as `text`; labels; source) and
    `<id>.txt` (the first caption, or an empty text)."""

    def __init__(self, directory: Path, final: Path):
        super().__init__(directory, final)
        self.counts: Counter[str] = Counter()
        self.open: dict[str, tarfile.TarFile] = {}

    def add(self, clip: ExportClip, flac: bytes) -> None:
        number, place = divmod(self.counts[clip.split], CLIPS_PER_TAR)
        if place == 0:
            if clip.split in self.open:
                self.open.pop(clip.split).close()
            self.open[clip.split] = tarfile.open(
                self.directory / f"{clip.split}-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT
            )
        self.counts[clip.split] += 1
        # A sample's key ends at the first dot of its file names.
        key = clip.clip_id.replace(".", "p")
        metadata = {
            "clip_id": clip.clip_id,
            "text": (clip.captions or ("",))[0],  # read by LAION-CLAP and stable-audio-tools
            "captions": list(clip.captions) or [""],
            "labels": list(clip.labels) or [""],
            "source": clip.source,
            "start": clip.start,
            "seconds": clip.seconds,
            "sample_rate": clip.sample_rate,
        }
        # `datasets` requires the same files of the same types in every sample.
        members = {"flac": flac, "json": json.dumps(metadata, ensure_ascii=False).encode(), "txt": metadata["captions"][0].encode()}
        for suffix, data in members.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size, member.mode = len(data), 0o644
            self.open[clip.split].addfile(member, io.BytesIO(data))

    def finish(self) -> None:
        for archive in self.open.values():
            archive.close()


PARQUET = pa.schema(
    [
        ("clip_id", pa.string()),
        ("audio", manifest.AUDIO),
        ("captions", pa.list_(pa.string())),
        ("labels", pa.list_(pa.string())),
    ]
)


class HuggingFaceParquet(Target):
    """`data/<split>-*.parquet` with the audio embedded, as `datasets.load_dataset(directory)` reads it."""

    def __init__(self, directory: Path, final: Path):
        super().__init__(directory, final)
        self.writers: dict[str, shards.ShardWriter] = {}
        self.open = ExitStack()

    def add(self, clip: ExportClip, flac: bytes) -> None:
        split = HUGGING_FACE[clip.split]
        if split not in self.writers:
            schema = PARQUET.with_metadata({"huggingface": json.dumps(_FEATURES)})
            path = self.directory / f"data/{split}-00000-of-00001.parquet"
            self.writers[split] = self.open.enter_context(shards.ShardWriter(path, schema))
        self.writers[split].write(
            {
                "clip_id": clip.clip_id,
                "audio": {"bytes": flac, "path": f"{clip.clip_id}.flac"},
                "captions": list(clip.captions),
                "labels": list(clip.labels),
            }
        )

    def finish(self) -> None:
        self.open.close()


_TEXT = {"dtype": "string", "_type": "Value"}
_FEATURES = {
    "info": {
        "features": {
            "clip_id": _TEXT,
            "audio": {"_type": "Audio"},
            "captions": {"feature": _TEXT, "_type": "Sequence"},  # a list, under the name that datasets 3 and later read
            "labels": {"feature": _TEXT, "_type": "Sequence"},
        }
    }
}
