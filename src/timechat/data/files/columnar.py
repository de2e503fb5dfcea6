"""Parquet and Arrow files: batches of rows, each with its number from 1.

The names of class labels are read where Hugging Face's `datasets` left them. Which file is one, and
that it lies on disk unpacked, is `containers`' to tell.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from timechat.data.files.blobs import Blob
from timechat.data.items import Item
from timechat.errors import DataError

BATCH_ROWS = 256
MAX_BATCH_BYTES = 1 << 30


def read_parquet(blob: Blob) -> Iterator[Item]:
    """Every row of a Parquet file. Raises DataError when it is damaged."""
    with _readable(blob), pq.ParquetFile(blob.place) as file:
        names = label_names(cast(pa.Schema, file.schema_arrow))
        yield from _items(file.iter_batches(batch_size=BATCH_ROWS), names, blob)


def read_arrow(blob: Blob) -> Iterator[Item]:
    """Every row of an Arrow file or stream, as `datasets` saves them."""
    with _readable(blob), pa.memory_map(str(blob.place)) as source:
        try:
            reader: Any = pa.ipc.open_stream(source)
            batches: Iterator[Any] = iter(reader)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        yield from _items(batches, label_names(reader.schema), blob)


def column_names(blob: Blob) -> list[str]:
    """The columns of a Parquet file. Raises DataError when it is damaged."""
    with _readable(blob), pq.ParquetFile(blob.place) as file:
        return list(cast(pa.Schema, file.schema_arrow).names)


def label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Column name: the words behind its class numbers."""
    found = (schema.metadata or {}).get(b"huggingface")
    if not found:
        return {}
    try:
        features: dict[str, Any] = json.loads(found)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {
        column: [str(name) for name in feature["names"]]
        for column, feature in features.items()
        if isinstance(feature, Mapping) and isinstance(feature.get("names"), list)
    }


def _items(batches: Iterator[Any], labels: dict[str, list[str]], blob: Blob) -> Iterator[Item]:
    number = 0
    for batch in batches:
        if batch.nbytes > MAX_BATCH_BYTES:
            raise DataError(
                f"{blob.name} unpacks {BATCH_ROWS} rows to {batch.nbytes:,} bytes, at most "
                f"{MAX_BATCH_BYTES:,} are read: write it again in smaller rows"
            )
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for fields in batch.slice(start, BATCH_ROWS).to_pylist():
                number += 1
                for column, names in labels.items():
                    value = fields.get(column)
                    if isinstance(value, int) and 0 <= value < len(names):
                        fields[column] = names[value]
                yield Item(number, fields)


@contextmanager
def _readable(blob: Blob) -> Generator[None]:
    if not blob.place.is_file():
        raise DataError(f"no file at {blob.name}: check the path")
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = str(error).split("\n")[0][:200]
        raise DataError(f"{blob.name} is no whole Parquet or Arrow file: {why}") from None
