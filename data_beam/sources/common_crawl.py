"""Indexes of a crawl: where in which file each record lies.

JSON lines with `filename`, `offset`, `length`, as Common Crawl's index server gives them
(`index.commoncrawl.org/…?output=json`), its cdx files, or the Parquet files of its columnar index
(`cc-index/table/cc-main/warc/crawl=…/subset=warc/*.parquet`)."""

import dataclasses
import json
import os
import zlib
from collections.abc import Collection, Iterator

import pyarrow.parquet as pq

from data_beam.records import Reject
from data_beam.sources import files
from data_beam.sources.files import decompressed, open_file, reject_file

INDEXES = ('.jsonl', '.ndjson', '.json', '.cdx', '.cdxj', '.parquet')   # endings of their names


@dataclasses.dataclass(frozen=True)
class Capture:
  """Where one record lies, as an index of a crawl has it."""

  file: str
  offset: int
  length: int
  url: str = ''
  truncated: str = ''


def captures(path: str, types: Collection[str]) -> Iterator[Capture | Reject]:
  """Records of `types` that an index lists: columnar (Parquet) or JSON lines, in its order.

  Of the columnar index, rows of status 200 whose detected or declared MIME type is one of `types`,
  or whose URL ends in .pdf where PDFs are wanted (the rule of FinePDFs).
  """
  if not path.endswith('.parquet'):
    yield from _captures_in_lines(path)
    return
  columns = {'url': '', 'warc_filename': None, 'warc_record_offset': None,
             'warc_record_length': None, 'content_mime_detected': '', 'content_mime_type': '',
             'content_truncated': '', 'fetch_status': 200}
  name, pdfs = os.path.basename(path), 'application/pdf' in types
  with open_file(path) as stream:
    try:
      table = pq.ParquetFile(stream)
      missing = [c for c, default in columns.items()
                 if default is None and c not in table.schema_arrow.names]
      if missing:
        raise ValueError(f'no column {", ".join(missing)}')
      for batch in table.iter_batches(columns=[c for c in columns
                                               if c in table.schema_arrow.names]):
        for row in batch.to_pylist():
          row = {c: default if row.get(c) is None else row[c] for c, default in columns.items()}
          kinds = {row['content_mime_detected'].lower(), row['content_mime_type'].lower()}
          ending = pdfs and row['url'].partition('?')[0].lower().endswith('.pdf')
          if row['fetch_status'] == 200 and (kinds & set(types) or ending):
            (file,) = _beside(path, row['warc_filename'])
            yield Capture(file, row['warc_record_offset'], row['warc_record_length'], row['url'],
                          row['content_truncated'])
    except (ValueError, OSError) as error:          # ArrowInvalid is a ValueError
      yield reject_file(name, 0, 0, 'corrupt_file', f'{type(error).__name__}: {error}')


def _captures_in_lines(path: str) -> Iterator[Capture | Reject]:
  name = os.path.basename(path)
  with open_file(path) as stream:
    try:
      for number, line in enumerate(decompressed(stream), 1):
        if line.strip():
          try:
            yield capture(json.loads(line[max(0, line.find(b'{')):]), path)
          except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield reject_file(name, number, number, 'bad_line',
                              f'line {number}: {type(error).__name__}: {error}')
    except (OSError, EOFError, zlib.error) as error:
      yield reject_file(name, 0, 0, 'corrupt_file', f'{type(error).__name__}: {error}')


def capture(row: dict, path: str) -> Capture:
  """Of a line of an index: its file is one of Common Crawl's, or absolute, or beside the index."""
  (file,) = [row['filename']] if '://' in row['filename'] else _beside(path, row['filename'])
  return Capture(file, int(row['offset']), int(row['length']), str(row.get('url') or ''),
                 str(row.get('truncated') or ''))


def _beside(path: str, name: str) -> list[str]:
  if name.startswith('/'):
    return [name]
  if name.startswith('crawl-data/'):
    return [files.COMMON_CRAWL + name]
  return [os.path.join(os.path.dirname(path), name)]
