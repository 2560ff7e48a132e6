"""All digests of the project: two hashes, BLAKE2b of plain values and SHA-256 of files, and a cache of file digests.

Keys of rows, ids and checkpoints on disk hold their values, so these must never change (tests/hashing/test_digests.py).
"""

from soundmill.hashing.digests import (
    bytes_digest,
    digest,
    dump_checksummed,
    file_digest,
    hash_order,
    load_checksummed,
    opened_digest,
    short_digest,
    signature,
    uint64,
)
from soundmill.hashing.file_cache import (
    cached_value,
    cached_values,
    file_digests,
    files_digest,
    is_intact,
    model_digest,
    tree_digest,
)
