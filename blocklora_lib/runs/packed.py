"""Records that travel: one Parquet file of the texts of many records. No torch.

Each text is what its file holds, to the byte, checksum included: packing loses nothing, and a
packed record is judged like any other. Two columns, `key` and `record`.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import check_replaces, regular_file, write_whole

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIX = ".parquet"
# files of a folder of them, copies and damaged ones too; by their second letter not claims.json
RECORDS = "[0-9a-f][0-9a-f]*.json"
KEY = re.compile("[0-9a-f]{16}")  # of a run; it names a file
_LIMIT = 2**31  # bytes of texts that anyone here reads; pocket-full's records have 20 million
_SMALLER = 100  # how many times smaller than its texts a Parquet may be, 64 MiB aside; ours: 10


def write_texts(path: str | Path, texts: Mapping[str, str]) -> Path:
    """Write the texts of records, by key, in the order of the keys: equal texts, equal bytes.

    ValueError where another kind of file stands under the name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_replaces(path, read_texts, "Parquet of run records")
    table = pa.table(
        {"key": sorted(texts), "record": [texts[key] for key in sorted(texts)]},
        schema=pa.schema([("key", pa.string()), ("record", pa.string())]),
    )
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd", compression_level=19)
    return write_whole(path, content.getvalue())


def read_texts(path: str | Path) -> dict[str, str]:
    """Return the text of each record by its key.

    Raises ValueError where the file is no Parquet of records, and OSError where it cannot be read.
    """
    import pyarrow.parquet as pq

    with regular_file(path) as file:
        try:
            texts = _texts(pq.ParquetFile(file), os.fstat(file.fileno()).st_size)
        except (ValueError, KeyError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            told = f"{path} is no Parquet of run records ({' '.join(str(error).split())})"
            raise ValueError(f"{told}; restore it, or pack the records again") from None
    return texts


def _texts(parquet: ParquetFile, size: int) -> dict[str, str]:
    """The texts by key, read so that a small file of size bytes cannot fill the memory."""
    import pyarrow as pa

    most = min(_LIMIT, 2**26 + _SMALLER * size)
    for name in (names := ("key", "record")):
        if name not in parquet.schema_arrow.names:
            raise ValueError(f"it has no column {name}")
        kind = parquet.schema_arrow.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(f"its column {name} holds {kind}, no text")
    groups = range(parquet.num_row_groups)
    if sum(parquet.metadata.row_group(i).total_byte_size for i in groups) > most:
        raise ValueError(f"it holds more than {most:,} bytes")
    texts: dict[str, str] = {}
    # one at a time: a value of many megabytes may be said of many keys, and takes its room for each
    for batch in parquet.iter_batches(1, columns=names):
        for key, text in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
            if not (isinstance(key, str) and isinstance(text, str)):
                raise ValueError("a key or a record is no text")
            if key in texts:
                raise ValueError("a key stands twice")
            if not KEY.fullmatch(key):
                raise ValueError(f"{key!r:.60} is no key of a run")
            if (most := most - len(text)) < 0:
                raise ValueError("it holds far more than texts of records do")
            texts[key] = text
    return texts
