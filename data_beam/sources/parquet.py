"""Rows of Parquet files that may be anybody's: few bytes of one can stand for gigabytes.

A value in the dictionary of a column stands once in the file, and once it is read as often as it is
used; a page of one value repeated packs to nothing. So dictionaries stay dictionaries until a row
is taken, and a file that gives far more than it has bytes is read no further.
"""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BATCH = 256             # rows in memory at once
MAX_RATIO = 200         # bytes of text and binary values for each of the file, beyond FLOOR
FLOOR = 64 << 20
_WIDTHS = {'BOOLEAN': 1, 'INT32': 4, 'FLOAT': 4, 'INT96': 12}     # bytes of a value; of others 8


class RatioError(ValueError):
  """A file whose values are far larger than the file."""


def open_table(stream: BinaryIO) -> pq.ParquetFile:
  """A Parquet file whose columns of text are read as dictionaries where they are stored so."""
  schema = pq.ParquetFile(stream).schema
  texts = [schema.column(i).path for i in range(len(schema))
           if schema.column(i).physical_type == 'BYTE_ARRAY']
  stream.seek(0)
  return pq.ParquetFile(stream, read_dictionary=texts)


def rows(
  table: pq.ParquetFile, *, columns: Sequence[str] | None = None, row_group: int | None = None,
) -> Iterator[dict[str, Any]]:
  """The rows of a file from `open_table`, or of one of its row groups, in order.

  Raises:
    RatioError: they hold more than MAX_RATIO times the bytes they are packed in.
    pa.ArrowException, OSError: the file is damaged.
  """
  groups = range(table.num_row_groups) if row_group is None else [row_group]
  spent, allowed = 0, FLOOR
  for group in groups:
    meta = table.metadata.row_group(group)
    chunks = [meta.column(i) for i in range(meta.num_columns)
              if columns is None or meta.column(i).path_in_schema.split('.')[0] in columns]
    allowed += MAX_RATIO * sum(max(0, chunk.total_compressed_size) for chunk in chunks)
    plain = sum(max(chunk.total_uncompressed_size,
                    chunk.num_values * _WIDTHS.get(chunk.physical_type, 8)) for chunk in chunks)
    if plain > allowed:
      raise RatioError(f'{plain} bytes from {allowed // MAX_RATIO}')
    for batch in table.iter_batches(BATCH, row_groups=[group], columns=columns):
      spent += sum(map(_bytes, batch.columns))
      if spent > allowed:
        raise RatioError(f'more than {allowed} bytes of values')
      values = [_values(column) for column in batch.columns]
      for row in zip(*values, strict=True):
        yield dict(zip(batch.schema.names, row, strict=True))


def _bytes(column: pa.Array) -> int:
  """Bytes of a column's values, each entry of a dictionary as often as it is used."""
  kind = column.type
  if pa.types.is_struct(kind):
    return sum(map(_bytes, column.flatten()))
  if isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray | pa.MapArray):
    return 8 * len(column) + _bytes(column.flatten())
  entries = column.dictionary if pa.types.is_dictionary(kind) else column
  if not isinstance(entries, pa.StringArray | pa.BinaryArray | pa.LargeStringArray
                    | pa.LargeBinaryArray):
    return 8 * len(column)
  lengths = pc.binary_length(entries)
  return pc.sum(lengths if entries is column else lengths.take(column.indices)).as_py() or 0


def _values(column: pa.Array) -> list[Any]:
  """A column as Python's values, each entry of a dictionary made once."""
  if not pa.types.is_dictionary(column.type):
    try:
      return column.to_pylist()
    except UnicodeDecodeError:      # bytes that are not what the column says
      return [None if v is None else v.decode('utf-8', 'replace')
              for v in column.cast(pa.large_binary()).to_pylist()]
  used = column.indices.unique().drop_null()
  entries = dict(zip(used.to_pylist(), _values(column.dictionary.take(used)), strict=True))
  return [None if i is None else entries[i] for i in column.indices.to_pylist()]
