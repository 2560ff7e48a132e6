"""The one unit of work: a Parquet shard. Read it, write it, map over many: in parallel, resumable, redoing only what changed.

**How work is reused.** A shard is made of items (a recording, a clip, a mix), each known by a key: text that says all it is made
from, beside the stage's parameters and code. A shard function that takes part writes through `ItemWriter`:

    def resample_shard(cuts, root, params, output, previous):
        with shards.ItemWriter(output, manifest.CLIPS, previous) as writer:
            for recording in cuts:
                key = shards.digest(recording)
                if not writer.copy(key):                # its rows and its part of the report, as they were made the last time
                    with writer.item(key) as report:
                        writer.write(row)               # any number of times
                        report.count("clips")
        return writer.report

`previous` is the shard of the same name that was finished last under the same parameters and code, or None. The file has the bytes
that it would have without one. `key in writer` tells beforehand what will be copied, where items are better made in batches.

A whole shard is known by its job's key in the same way: where the last one has it, the function is not called at all.
"""

from soundmill.shards.code import code_identity, room_digest
from soundmill.shards.digests import (
    bytes_digest,
    digest,
    file_digest,
    is_whole,
    opened_digest,
    seal,
    signature,
    table_digest,
    unseal,
)
from soundmill.shards.file_cache import cached_value, file_digests
from soundmill.shards.items import ItemWriter
from soundmill.shards.jobs import Job
from soundmill.shards.parquet import (
    TABLE_ROWS_PER_GROUP,
    ShardWriter,
    by_shard,
    common_metadata,
    open_parquet,
    read_rows,
    read_table,
    read_tables,
    shard_name,
    shard_of,
    shard_paths,
    write_rows,
)
from soundmill.shards.reports import Report, read_items, report_path, say_damaged, write_report
from soundmill.shards.run import map_shards

__all__ = [
    "TABLE_ROWS_PER_GROUP",
    "ItemWriter",
    "Job",
    "Report",
    "ShardWriter",
    "by_shard",
    "bytes_digest",
    "cached_value",
    "code_identity",
    "common_metadata",
    "digest",
    "file_digest",
    "file_digests",
    "is_whole",
    "map_shards",
    "open_parquet",
    "opened_digest",
    "read_items",
    "read_rows",
    "read_table",
    "read_tables",
    "report_path",
    "room_digest",
    "say_damaged",
    "seal",
    "shard_name",
    "shard_of",
    "shard_paths",
    "signature",
    "table_digest",
    "unseal",
    "write_report",
    "write_rows",
]
