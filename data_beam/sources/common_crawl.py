"""Indexes of a crawl: where in which file each record lies.

JSON lines with `filename`, `offset`, `length`, as Common Crawl's index server gives them
(`index.commoncrawl.org/…?output=json`), its cdx files, or the Parquet files of its columnar index
(`cc-index/table/cc-main/warc/crawl=…/subset=warc/*.parquet`)."""

import dataclasses
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from data_beam.records import Reject
from data_beam.redact import without_query
from data_beam.sources import files, parquet
from data_beam.sources.files import (
  base_name,
  decompressed,
  lines,
  open_file,
  parse_json,
  reject_file,
)

MAX_LINE = 1 << 20      # bytes
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
  if not without_query(path).endswith('.parquet'):
    yield from _captures_in_lines(path)
    return
  columns = {'url': '', 'warc_filename': None, 'warc_record_offset': None,
             'warc_record_length': None, 'content_mime_detected': '', 'content_mime_type': '',
             'content_truncated': '', 'fetch_status': 200}
  name, pdfs, number = base_name(path), 'application/pdf' in types, 0
  with open_file(path) as stream:
    try:
      table = parquet.open_table(stream)
      missing = [c for c, default in columns.items()
                 if default is None and c not in table.schema_arrow.names]
      if missing:
        raise ValueError(f'no column {", ".join(missing)}')
      for number, row in enumerate(parquet.rows(table, columns=[
        c for c in columns if c in table.schema_arrow.names]), 1):
        row = {c: default if row.get(c) is None else row[c] for c, default in columns.items()}
        kinds = {str(row['content_mime_detected']).lower(), str(row['content_mime_type']).lower()}
        ending = pdfs and str(row['url']).partition('?')[0].lower().endswith('.pdf')
        if row['fetch_status'] == 200 and (kinds & set(types) or ending):
          try:
            yield capture({
              'filename': row['warc_filename'], 'offset': row['warc_record_offset'],
              'length': row['warc_record_length'], 'url': row['url'],
              'truncated': row['content_truncated']}, path)
          except RangeError as error:
            yield reject_file(name, number, number, 'unreadable_range', f'row {number}: {error}')
    except (ValueError, OSError, LookupError) as error:     # ArrowInvalid is a ValueError
      yield reject_file(name, 0, number, 'corrupt_file', f'{type(error).__name__}: {error}')


def _captures_in_lines(path: str) -> Iterator[Capture | Reject]:
  name = base_name(path)
  with open_file(path) as stream:
    try:
      for number, line in enumerate(lines(decompressed(stream), MAX_LINE), 1):
        if not line.strip():
          continue
        try:
          yield capture(parse_json(line[max(0, line.find(b'{')):]), path)
        except RangeError as error:
          yield reject_file(name, number, number, 'unreadable_range', f'line {number}: {error}')
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
          yield reject_file(name, number, number, 'bad_line',
                            f'line {number}: {type(error).__name__}: {error}')
    except (OSError, EOFError, zlib.error) as error:
      yield reject_file(name, 0, 0, 'corrupt_file', f'{type(error).__name__}: {error}')


def dump_of(path: str) -> str:
  """The crawl that a file is of, as Common Crawl's paths say it, '' where they do not.

  crawl-data/CC-MAIN-2024-10/segments/…, crawl=CC-MAIN-2024-10/…, and files named after one crawl.
  """
  path = without_query(path)
  found = (re.search(r'(?:^|/)(?:crawl-data/|crawl=)([\w.-]+)/', path)
           or re.search(r'(?:^|/)(CC-MAIN-\d{4}-\d{2,4})(?=[/.]|$)', path))
  return found[1] if found else ''


class RangeError(ValueError):
  """An index names bytes that are not read: a line may say anything, wherever it came from."""


def capture(row: Mapping[str, Any], path: str) -> Capture:
  """Of a line of an index: bytes of one of Common Crawl's files, or of one beside the index.

  Args:
    row: with filename, offset and length.
    path: of the index.

  Raises:
    RangeError: the file is another, or the numbers are none.
    KeyError: one of the three is missing.
  """
  return Capture(_file(row['filename'], path), _whole(row['offset'], 0), _whole(row['length'], 1),
                 str(row.get('url') or ''), str(row.get('truncated') or ''))


def _whole(value: Any, least: int) -> int:
  if isinstance(value, str) and re.fullmatch('[0-9]{1,19}', value):
    value = int(value)
  if type(value) is not int or not least <= value < 1 << 62:
    raise RangeError(f'{str(value)[:60]!r} is no offset or length')
  return value


def _file(name: Any, path: str) -> str:
  """Where the file lies that a line of the index `path` names."""
  ours = isinstance(name, str) and re.sub('^(https://data.commoncrawl.org/|s3://commoncrawl/)', '',
                                          name)
  if ours and re.fullmatch(r'crawl-data(/[\w.-]*\w[\w.-]*)+', ours, re.A):
    return files.COMMON_CRAWL + ours
  folder = os.path.dirname(without_query(path))
  if not isinstance(name, str) or not name or not name.isprintable() or '://' in name:
    raise RangeError(f"{str(name)[:60]!r} is neither Common Crawl's nor beside the index")
  found = os.path.join(folder, name)
  if '://' in folder:
    if name.startswith('/') or '..' in name.split('/') or any(c in name for c in '?#%\\'):
      raise RangeError(f'{name[:60]!r} is not beside the index')
    return found
  inside = os.path.realpath(folder or '.')
  if (os.path.commonpath([inside, os.path.realpath(found)]) != inside
      or (os.path.exists(found) and not os.path.isfile(found))):
    raise RangeError(f'{name[:60]!r} is no regular file beside the index')
  return found
