"""The unit of work: a Parquet shard. Reading, writing and mapping over shards: in parallel, resumable, redoing only what changed.

**How work is reused.** A shard consists of items (a recording, a clip, a mix). Each has a key, a digest of everything it is made
from except the stage's parameters and code. A shard function that reuses items writes through `ItemWriter`:

    def resample_shard(cuts, root, params, output, previous):
        with shards.ItemWriter(output, manifest.CLIPS, previous) as writer:
            keyed = [(hashing.digest(recording), recording) for recording in cuts]
            for key, recording, report in writer.new(keyed):  # copies rows of others, and their reports, from the previous shard
                writer.write(row)  # any number of times
                report.count("clips")
        return writer.report

`previous` is the last finished shard of this name under the same parameters and code, or None; the written bytes do not depend on
it. If items are made in batches, `key in writer` tells which ones will be copied.

A whole shard is reused in the same way: if the last one has the key of its job, the function is not called.
"""

from soundmill.shards.code import code_identity, differences
from soundmill.shards.parquet import (
    TABLE_ROWS_PER_GROUP,
    ShardWriter,
    by_shard,
    common_metadata,
    open_parquet,
    read_rows,
    read_table,
    read_tables,
    rows_below,
    shard_name,
    shard_of,
    shard_paths,
    table_digest,
    write_rows,
)
from soundmill.shards.reports import ItemWriter, Report, read_report, report_damaged, report_path, write_report
from soundmill.shards.run import Job, map_shards, map_values, visible_gpus
