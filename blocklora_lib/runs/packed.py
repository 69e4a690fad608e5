"""Records that travel: one Parquet file of the texts of many records. No torch.

Each text is what its file holds, to the byte, checksum included: packing loses nothing, and a
packed record is judged like any other. Two columns, `key` and `record`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from ..core.files import check_replaces, regular_file, write_whole

SUFFIX = ".parquet"
# files of a folder of them, copies and damaged ones too; by their second letter not claims.json
RECORDS = "[0-9a-f][0-9a-f]*.json"
_LIMIT = 2**31  # bytes of texts that anyone here reads; a pocket-full run has 6 million


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
            parquet = pq.ParquetFile(file)
            groups = range(parquet.num_row_groups)
            size = sum(parquet.metadata.row_group(i).total_byte_size for i in groups)
            if size > _LIMIT:
                raise ValueError(f"{size:,} bytes are no texts of records")
            columns = parquet.read(columns=["key", "record"]).to_pydict()
            texts = dict(zip(columns["key"], columns["record"], strict=True))
            if len(texts) != len(columns["key"]):
                raise ValueError("a key stands twice")
            if not all(isinstance(word, str) for word in (*texts, *texts.values())):
                raise ValueError("a key or a record is no text")
        except (ValueError, KeyError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            reason = f"it has no column {error}" if isinstance(error, KeyError) else error
            told = f"{path} is no Parquet of run records ({' '.join(str(reason).split())})"
            raise ValueError(f"{told}; restore it, or pack the records again") from None
    return texts
