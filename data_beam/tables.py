"""Tables ↔ corpora: other people's Parquet and JSONL in, any corpus of ours out.

  python -m data_beam.tables import --input='hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/*'
    --layout=fineweb-edu --output=corpora --name=edu
  python -m data_beam.tables export --input=corpora/web/1.0.0 --output=web_parquet

Import maps columns onto the fields of a Document; what no field takes stays in `metadata`, so
nothing is lost. A row that cannot become a document is a reject with its reason, like a web page.
Export writes one file a shard, a dataset card made from the manifest, and the manifest itself;
importing that again (`--layout=corpus`) gives the identical corpus.
"""

import codecs
import contextlib
import datetime
import gzip
import hashlib
import io
import json
import logging
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from data_beam import curation, hub, records
from data_beam import options as options_lib
from data_beam.beam_options import explained, is_beams, pipeline_options
from data_beam.command_line import Parser, complain
from data_beam.curation import Each
from data_beam.dedup.clusters import deduplication
from data_beam.dedup.decontaminate import decontamination
from data_beam.options import ImportOptions
from data_beam.records import Document, Reject
from data_beam.redact import public, without_query
from data_beam.sources import parquet
from data_beam.sources.files import (
  base_name,
  decompressed,
  expand,
  lines,
  open_file,
  parse_json,
  size_of,
)

log = logging.getLogger('data_beam')

# Document field, or `metadata.NAME` → column, `a.b` for b inside the struct (or JSON text) a, or
# =VALUE for a constant. The columns of the published datasets, as their cards list them.
_PLAIN = {k: k for k in ('text', 'id', 'url', 'date', 'language', 'language_score')}
_FINEWEB = _PLAIN | {'metadata.warc_file': 'file_path'}
LAYOUTS: dict[str, dict[str, str]] = {
  'corpus': {k: k for k in records.FEATURES['curated']},  # what `export` writes
  'plain': _PLAIN | {'quality': 'quality'},
  'fineweb': _FINEWEB,
  'fineweb-edu': _FINEWEB | {'quality': 'score'},
  'fineweb-2': _FINEWEB | {'metadata.cluster_size': 'minhash_cluster_size'},
  'finepdfs': _FINEWEB | {
    'language_score': 'full_doc_lid_score', 'metadata.warc_offset': 'offset',
    'metadata.cluster_size': 'minhash_cluster_size'},
  'dclm': {
    'text': 'text', 'url': 'url', 'id': 'metadata.WARC-Record-ID', 'date': 'metadata.WARC-Date',
    'language': '=en', 'language_score': 'language_id_whole_page_fasttext.en',
    'quality': 'fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob'},
  'finemath': _PLAIN | {
    'id': '', 'date': 'fetch_time', 'quality': 'score', 'metadata.warc_file': 'warc_filename',
    'metadata.warc_offset': 'warc_record_offset', 'metadata.dump': 'crawl'},
  # Its language is a programming language. Published without text: join the files' contents first.
  'stack-edu': {'text': 'text', 'id': 'blob_id', 'quality': 'score',
                'metadata.programming_language': 'language'},
}
# Of the languages that we curate: ISO 639-3, as FineWeb-2 and FinePDFs have it, and English names.
_ISO_639_1 = {
  'eng': 'en', 'fra': 'fr', 'deu': 'de', 'spa': 'es', 'ita': 'it', 'por': 'pt', 'english': 'en',
  'french': 'fr', 'german': 'de', 'spanish': 'es', 'italian': 'it', 'portuguese': 'pt'}
FORMATS = ('parquet', 'jsonl')
MAX_DEPTH = 64      # of values in values
MAX_LINE = 64 << 20  # bytes
_CHUNK = 1 << 20    # characters of a JSON list that are read at once
_BETWEEN = re.compile(r'[\s,]*')


class RowError(ValueError):
  """A row that cannot become a document. `reason` is one word for the funnel."""

  def __init__(self, reason: str, detail: str):
    super().__init__(f'{reason}: {detail}')
    self.reason, self.detail = reason, detail


# --- rows of files -------------------------------------------------------------------------------


class Part(NamedTuple):
  """A unit of reading: one row group of a Parquet file, or (None) the whole of any file."""

  path: str
  row_group: int | None


def is_parquet(path: str) -> bool:
  """By the file's name."""
  return without_query(path).endswith(('.parquet', '.pq'))


def split(path: str) -> list[Part]:
  """The row groups of a Parquet file; any other file is one part.

  So is a damaged one, and one that can only be read from its start (https): it is fetched once.
  """
  if is_parquet(path):
    with contextlib.suppress(OSError, pa.ArrowException), open_file(path) as f:
      if _can_seek(f):
        return [Part(path, i) for i in range(pq.ParquetFile(f).num_row_groups)]
  return [Part(path, None)]


def read_rows(part: Part) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
  """(number in the part, the row) of Parquet, or of JSON: lines, or in a file called so (.json) one
  list (plain, gz, zst or lz4).

  Raises what the library of the format raises where the file itself breaks off.
  """
  if is_parquet(part.path):
    with _seekable(part.path) as f:
      yield from enumerate(parquet.rows(parquet.open_table(f), row_group=part.row_group))
    return
  with open_file(part.path) as raw:
    stream = decompressed(raw)
    if _is_list(part.path, stream):
      yield from enumerate(_listed(stream))
      return
    for number, line in enumerate(lines(stream, MAX_LINE)):
      if not line.strip():
        continue
      try:
        row = (RowError('too_large', f'a line of more than {MAX_LINE} bytes')
               if len(line) >= MAX_LINE else parse_json(line))
      except (ValueError, RecursionError) as error:  # bad UTF-8, deep nesting
        row = RowError('bad_json', f'{type(error).__name__}: {error}')
      yield number, _object(row)


def _object(row: Any) -> dict[str, Any] | RowError:
  if isinstance(row, dict | RowError):
    return row
  return RowError('bad_json', f'a JSON {type(row).__name__}, not an object')


def _is_list(path: str, stream: Any) -> bool:
  """Whether a file is one JSON list of all rows, by its name, which lines may have too, and by how
  it begins."""
  name = re.sub(r'\.(gz|zst|lz4)$', '', without_query(path))
  begin = stream.peek(64)[:64] if name.endswith('.json') else b''
  return begin.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b'[')


def _listed(stream: Any) -> Iterator[dict[str, Any] | RowError]:
  """The rows of a file that is a JSON list, of which a few are held at a time."""
  file, decoder = io.TextIOWrapper(stream, 'utf-8-sig'), json.JSONDecoder()
  text = file.read(_CHUNK)
  at = text.index('[') + 1
  while True:
    if between := _BETWEEN.match(text, at):
      at = between.end()
    if text.startswith(']', at):
      return
    try:
      _, end = decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
      more = file.read(max(_CHUNK, len(text) - at)) if len(text) - at < MAX_LINE else ''
      if not more:
        yield RowError('bad_json', f'{type(error).__name__}: {error}')
        return
      text, at = text[at:] + more, 0
      continue
    yield _object(parse_json(text[at:end].encode('utf-8', 'replace')))
    at = end


@contextlib.contextmanager
def _seekable(path: str) -> Iterator[BinaryIO]:
  """The file, fetched into a temporary one if it cannot be read at any place."""
  with open_file(path) as f:
    if _can_seek(f):
      yield f
      return
    with tempfile.TemporaryFile() as copy:
      while data := f.read(1 << 20):
        copy.write(data)
      yield copy


def _can_seek(f: BinaryIO) -> bool:
  return hasattr(f, 'seekable') and f.seekable()


# --- rows → documents ----------------------------------------------------------------------------


def to_document(row: Mapping[str, Any], columns: Mapping[str, str], source: str) -> Document:
  """A row as a document: `columns` fill its fields, all other columns go into its metadata.

  A row without an id gets the sha256 of its url and text, so that it does not depend on the file.

  Raises:
    RowError: no_text (missing, empty or not text), or bad_value (not what its field holds).
  """
  values, taken, metadata = {}, set(), {}
  for field, column in columns.items():
    value = column[1:] if column.startswith('=') else _find(row, column)
    if column in row and field != 'metadata':
      taken.add(column)
    if field.startswith('metadata.'):
      if value is not None:
        metadata[field.removeprefix('metadata.')] = plain(value)
    else:
      values[field] = value
  inner = _unpack(values.pop('metadata', None))
  if inner is not None and not isinstance(inner, dict):
    raise RowError('bad_value', f'metadata is a {type(inner).__name__}, not an object')
  if 'metadata' in columns:
    taken.add(columns['metadata'])
  rest = {k: plain(v) for k, v in row.items() if k not in taken and v is not None}
  text = values['text']
  if not isinstance(text, str) or not text.strip():
    raise RowError('no_text', f'{columns["text"]!r} holds {_show(text)}')
  url = _string(values, 'url')
  tag = _string(values, 'language')
  if (short := language_of(tag)) != tag:
    rest['language_tag'], tag = tag, short
  return Document(
    id=_string(values, 'id') or hashlib.sha256(f'{url}\n{text}'.encode('utf-8', 'replace'))
    .hexdigest(),
    text=text, url=url, source=_string(values, 'source') or source, language=tag,
    language_score=_number(values, 'language_score'), date=_date(values.get('date')),
    quality=_number(values, 'quality'), metadata={**rest, **metadata, **plain(inner or {})})


def language_of(tag: str) -> str:
  """ISO 639-1 of a language's tag, such as fra_Latn, fr-CA or French, where we know it; else the
  tag."""
  language = tag.replace('-', '_').partition('_')[0].lower()
  return language if language in _ISO_639_1.values() else _ISO_639_1.get(language, tag)


def _find(row: Mapping[str, Any], column: str) -> Any:
  if column in row or not column:
    return row.get(column)
  outer, _, inner = column.partition('.')
  value = _unpack(row.get(outer))
  return value.get(inner) if inner and isinstance(value, dict) else None


def _unpack(value: Any) -> Any:
  """A value, read as JSON where it is the text of an object."""
  if isinstance(value, str) and value.lstrip().startswith('{'):
    try:
      return json.loads(value)
    except ValueError as error:
      raise RowError('bad_value', f'{_show(value)} is not JSON') from error
  return value


def _string(values: Mapping[str, Any], field: str) -> str:
  value = values.get(field)
  if value is None:
    return ''
  if not isinstance(value, str | int):
    raise RowError('bad_value', f'{field} is {_show(value)}')
  return str(value)


def _number(values: Mapping[str, Any], field: str) -> float:
  value = values.get(field)
  if value is None:
    return math.nan
  try:
    return float(value)
  except (TypeError, ValueError) as error:
    raise RowError('bad_value', f'{field} is {_show(value)}') from error


def _date(value: Any) -> str:
  """ISO 8601 of a text (as it is), a timestamp, or a time since 1970 in s, ms, µs or ns."""
  if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
    while abs(value) > 1e11:  # seconds reach the year 5138
      value /= 1000
    value = datetime.datetime.fromtimestamp(value, datetime.UTC)
  if isinstance(value, datetime.datetime):
    value = value.replace(microsecond=0, tzinfo=value.tzinfo or datetime.UTC)
    return value.astimezone(datetime.UTC).isoformat().replace('+00:00', 'Z')
  return '' if value is None else str(value)


def plain(value: Any, depth: int = 0) -> Any:
  """A value of a table as JSON can hold it. Raises RowError where it is nested too deeply."""
  if depth > MAX_DEPTH:
    raise RowError('bad_value', f'a value nested more than {MAX_DEPTH} deep')
  if isinstance(value, Mapping):
    return {str(k): plain(v, depth + 1) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v, depth + 1) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if value is None or isinstance(value, str | int | float):
    return value
  return value.decode('utf-8', 'replace') if isinstance(value, bytes) else str(value)


def _show(value: Any) -> str:
  return repr(value)[:80]


def read(
  parts: Sequence[Part], columns: Mapping[str, str], source: str, limit: int | None = None,
) -> Iterator[Document | Reject]:
  """`read_with` to_document, whose reasons are no_text and bad_value."""
  yield from read_with(parts, source, lambda row: to_document(row, columns, source), limit)


def read_with(
  parts: Sequence[Part], source: str, convert: Callable[[dict[str, Any]], Document],
  limit: int | None = None,
) -> Iterator[Document | Reject]:
  """The documents of parts, the first `limit` of them; what cannot be one becomes a Reject.

  Reasons: those of the RowErrors of `convert`, bad_json, too_large (a line), and once where a file
  breaks off corrupt_file, or ratio where it gives far more than it has bytes.
  """
  found = 0
  for part in parts:
    name = base_name(part.path)
    where = {'table': name} | ({} if part.row_group is None else {'row_group': part.row_group})
    number = -1
    try:
      for number, row in read_rows(part):
        try:
          if isinstance(row, RowError):
            raise row
          yield convert(row)
          found += 1
          if found == limit:
            return
        except RowError as error:
          yield _reject(where | {'row': number}, source, error.reason, error.detail)
        except (ValueError, OverflowError, RecursionError) as error:      # a date before Christ
          yield _reject(where | {'row': number}, source, 'bad_value', f'{error!r}')
    except parquet.RatioError as error:
      yield _reject(where | {'row': number + 1}, source, 'ratio', str(error))
    # What the parsers say about damaged bytes; the rows before them stand.
    except Exception as error:
      detail = f'{type(error).__name__}: {error}'
      yield _reject(where | {'row': number + 1}, source, 'corrupt_file', detail)


def _reject(where: dict[str, Any], source: str, reason: str, detail: str) -> Reject:
  place = '#'.join(map(str, where.values()))
  document = Document(id=place, text='', source=source, metadata=where | {'error': detail[:200]})
  return Reject(document, 'read', reason)


def import_tables(
  input: Sequence[str], output: str, name: str, options: ImportOptions | None = None, *,
  beam_args: Sequence[str] = (),
) -> str:
  """Parquet and JSONL files → the curated corpus `output/name/1.0.0`. Returns that path.

  Args:
    input: files or patterns, of any scheme that files.expand knows.
    output: parent directory of the corpus and of `name_rejects`.
    name: of the corpus, and its documents' source where no column says it.
    options: what each means is said in options.py.
    beam_args: flags of Beam.

  Raises:
    FileNotFoundError: a pattern matches nothing.
    ValueError: an unknown field or flag, a first file without the text column, or no document was
      found, saying why.
  """
  options = options or ImportOptions()
  pairs = [pair.partition('=') for pair in options.columns]
  if wrong := [field for field, equals, _ in pairs if not equals]:
    raise ValueError(f'--columns takes FIELD=COLUMN, not {wrong[0]!r}')
  columns = LAYOUTS[options.layout] | {field: column for field, _, column in pairs}
  unknown = [k for k in columns if k not in records.FEATURES['curated']
             and not k.startswith('metadata.')]
  if unknown:
    raise ValueError(f'unknown field {unknown[0]!r}: choose one of '
                     f'{", ".join(records.FEATURES["curated"])} or metadata.NAME')
  files = expand(input)
  _check_text(files[0]['path'], columns['text'], options.layout)
  return curation.curate(
    parts([f['path'] for f in files], options.limit),
    [('read', Each(read, columns, name, options.limit)),
     *deduplication(options, exact=options.exact_dedup, size=size_of(files)),
     *decontamination(options)],
    output=output, name=name, inputs=files, options=options, found={'columns': columns},
    beam_args=beam_args)


def parts(paths: Sequence[str], limit: int | None) -> beam.PTransform:
  """A source of lists of Parts for a stage that reads: with a limit one list of whole files, so
  that one worker counts."""
  if limit:
    return beam.Create([[Part(path, None) for path in paths]])
  return _Parts(paths)


class _Parts(beam.PTransform):
  def __init__(self, paths: Sequence[str]):
    super().__init__()
    self.paths = list(paths)

  def expand(self, begin: Any) -> Any:
    return (begin | beam.Create(self.paths) | 'files' >> beam.Reshuffle()
            | beam.FlatMap(lambda path: [[part] for part in split(path)]))


def _check_text(path: str, column: str, layout: str) -> None:
  """Refuses a first file whose first row has no text column: the layout is the wrong one."""
  part = Part(path, 0 if is_parquet(path) else None)
  row = None
  with contextlib.suppress(Exception):  # a damaged file is a reject, not the end
    row = next((row for _, row in read_rows(part) if isinstance(row, dict)), None)
  if row is not None and column not in row and '.' not in column:
    raise ValueError(
      f'{path} has no column {column!r} (layout {layout!r}), only {", ".join(row)}: choose '
      f'another --layout ({", ".join(LAYOUTS)}) or say --columns text=NAME')


# --- corpora → files -----------------------------------------------------------------------------


def schema(manifest: Mapping[str, Any]) -> pa.Schema:
  """The Arrow schema of a corpus's export. `metadata` is JSON text: one schema for all shards."""
  arrow = {str: pa.string(), dict: pa.string(), int: pa.int64(), float: pa.float32()}
  fields = []
  for name, type_ in records.FEATURES[records.features_of(manifest)].items():
    if type_ is bytes:
      arrow[bytes] = pa.list_(pa.from_numpy_dtype(_dtype(name, manifest)))
    fields.append((name, arrow[type_]))
  return pa.schema(fields)


def _dtype(name: str, manifest: Mapping[str, Any]) -> np.dtype:
  """Of the numbers in a field of bytes."""
  return np.dtype(np.uint8 if name.endswith('mask') else manifest['dtype'])


def _rows(
  file: str, num_records: int, manifest: Mapping[str, Any], as_json: bool,
) -> Iterator[dict[str, Any]]:
  kind = records.features_of(manifest)
  for row in records.read_shard(file, num_records, kind):
    for name, type_ in records.FEATURES[kind].items():
      if type_ is dict and not as_json:
        row[name] = json.dumps(row[name], sort_keys=True, ensure_ascii=False)
      elif type_ is bytes:
        tokens = np.frombuffer(row[name], _dtype(name, manifest))
        row[name] = tokens.tolist() if as_json else tokens
      elif as_json and isinstance(row[name], float) and math.isnan(row[name]):
        row[name] = None
    yield row


def export_shard(
  shard: tuple[str, int, str], *, output: str, format: str, manifest: Mapping[str, Any],
) -> str:
  """Writes one shard as one file, the same bytes each time. Returns the file's path.

  Args:
    shard: (file, number of records, name of the result without its ending).
    output: where it goes.
    format: 'parquet' (zstd) or 'jsonl' (gzip).
    manifest: of the corpus, from records.read_manifest.
  """
  file, num_records, name = shard
  buffer, rows = io.BytesIO(), _rows(file, num_records, manifest, format == 'jsonl')
  if format == 'parquet':
    arrow = schema(manifest)
    with pq.ParquetWriter(buffer, arrow, compression='zstd') as writer:
      while batch := [row for row, _ in zip(rows, range(1024), strict=False)]:
        writer.write_table(pa.Table.from_pylist(batch, schema=arrow))
  else:
    with gzip.GzipFile(fileobj=buffer, mode='wb', compresslevel=6, mtime=0) as f:
      for row in rows:
        f.write((json.dumps(row, ensure_ascii=False) + '\n').encode())
  path = FileSystems.join(output, 'data', name + ('.parquet' if format == 'parquet'
                                                  else '.jsonl.gz'))
  records.write_bytes(path, buffer.getvalue())
  return path


def export_corpus(
  input: str, output: str, *, format: str = 'parquet', beam_args: Sequence[str] = (),
) -> str:
  """A corpus (curated, rejects or tokenised) → Parquet or JSONL with a dataset card, in `output`.

  The layout is the one of the Hugging Face hub: `data/SPLIT-00000-of-00008.parquet`, README.md.
  The card is written last: a folder with one is complete.

  Raises:
    CorpusError: no corpus, an unfinished or an empty one.
    ValueError: an unknown format, or a folder that holds something else.
  """
  if format not in FORMATS:
    raise ValueError(f'unknown format {format!r}: choose one of {", ".join(FORMATS)}')
  options = pipeline_options(beam_args)
  manifest = records.read_manifest(input)
  records.check_not_empty(manifest)
  data = FileSystems.join(output, 'data')
  if records.is_file(output, 'README.md') or FileSystems.exists(data):
    raise ValueError(f'{output!r} holds an export already: remove it, or choose another --output')
  FileSystems.mkdirs(data)
  splits = list(manifest.get('splits', ['train']))
  shards = []
  for name in splits:
    files = records.list_shards(manifest, name)
    shards += [(file, n, f'{name}-{i:05d}-of-{len(files):05d}')
               for i, (file, n) in enumerate(files)]
  log.info('exporting %d documents of %s into %s', manifest['documents'], manifest['path'], output)
  with beam.Pipeline(options=options) as pipeline:
    _ = (pipeline | beam.Create(shards) | beam.Reshuffle()
         | beam.Map(export_shard, output=output, format=format, manifest=manifest))
  told = json.loads(records.read_bytes(FileSystems.join(manifest['path'], 'manifest.json')))
  records.write_bytes(FileSystems.join(output, 'manifest.json'), records.to_json(public(told)))
  records.write_bytes(FileSystems.join(output, 'README.md'),
                      card(manifest, splits, format).encode())
  return output


def card(manifest: Mapping[str, Any], splits: Sequence[str], format: str) -> str:
  """The dataset card: what the manifest knows, in the form the Hugging Face hub reads."""
  manifest = public(manifest)  # it may be one that others wrote
  n = manifest['documents']
  top = next(t for t in (10**k for k in range(3, 16)) if n < t)
  size = 'n<1K' if top == 1000 else f'{_short(top // 10)}<n<{_short(top)}'
  languages = manifest.get('languages', {})
  ending = 'parquet' if format == 'parquet' else 'jsonl.gz'
  head = ['---', f'pretty_name: {json.dumps(manifest["name"])}']
  head += ['language:', *(f'- {k}' for k in languages if k)] if any(languages) else []
  head += ['task_categories:', '- text-generation', 'size_categories:', f'- {size}', 'configs:',
           '- config_name: default', '  data_files:']
  for split_ in splits:
    head += [f'  - split: {split_}', f'    path: data/{split_}-*.{ending}']
  head.append('---')
  counts = [(k, manifest[k]) for k in ('documents', 'tokens', 'words', 'characters', 'bytes')
            if k in manifest]
  body = [
    f'# {_cell(manifest["name"])}', '',
    f'A {manifest["kind"]} corpus made by smoljax {_cell(manifest["code_version"])}. State the '
    'licence of its sources here before you publish it.', '',
    *_table(('', 'count'), [(k, f'{v:,}') for k, v in counts])]
  if languages:
    body += ['## Languages', '', *_table(
      ('language', 'documents'), [(k or 'unknown', f'{v:,}') for k, v in languages.items()])]
  if rows := manifest.get('funnel'):
    body += ['## What was kept', '', *_table(
      ('stage', 'documents in', 'documents out', 'dropped'),
      [(r['stage'], f'{r["documents_in"]:,}', f'{r["documents_out"]:,}',
        ', '.join(f'{k} {v:,}' for k, v in r['dropped'].items())) for r in rows])]
  fields = zip(schema(manifest).names, schema(manifest).types, strict=True)
  inputs = manifest.get('inputs', [])
  some = [_cell(f['path']) for f in inputs[:20]]
  body += [
    '## Columns', '', *_table(('column', 'type'), [(k, str(t)) for k, t in fields]),
    '## Made from', '', f'{len(inputs):,} inputs' + (', the first 20:' if inputs[20:] else ':'),
    '', *(f'- `{path}`' for path in some), '',
    '## Settings', '', '```json', json.dumps(manifest['config'], indent=1, ensure_ascii=False),
    '```', '']
  if manifest['kind'] == 'curated':
    body += ['## Back into a corpus', '', '```',
             f"python -m data_beam.tables import --layout=corpus --input='data/*.{ending}' \\",
             f'  --output=corpora --name={_cell(manifest["name"])}', '```', '']
  return '\n'.join(head + body)


def _short(n: int) -> str:
  return next(f'{n // size}{unit}' for size, unit in ((10**12, 'T'), (10**9, 'B'), (10**6, 'M'),
                                                      (10**3, 'K')) if n >= size)


def _cell(value: Any) -> str:
  """Text that cannot end its cell, line or code span."""
  return ' '.join(str(value).replace('|', '\\|').replace('`', "'").split())


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
  lines = [head, ['---'] * len(head), *([_cell(c) for c in row] for row in rows)]
  return [f'| {" | ".join(line)} |' for line in lines] + ['']


# --- command line --------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  parser = Parser(
    prog='python -m data_beam.tables',
    description='Turns Parquet and JSONL files (FineWeb, DCLM, your own) into a corpus, or a '
    'corpus into Parquet or JSONL files with a dataset card.',
    epilog='Each has a --help of its own. Any other flag goes to Apache Beam.')
  commands = parser.add_subparsers(dest='command', required=True, metavar='import|export')
  importing = commands.add_parser('import', help='files → corpus', others=is_beams)
  add = importing.add_argument
  add('--input', nargs='+', action='extend', required=True, metavar='GLOB',
      help='Parquet (.parquet) or JSONL (plain, gz, zst, lz4) files or '
      'patterns, local or gs://, s3://, https://, hf://datasets/OWNER/NAME/…')
  add('--output', required=True, metavar='DIR', help='where corpora go')
  add('--name', required=True, help='name of the corpus')
  options_lib.add_flags(importing, ImportOptions)
  add = commands.add_parser('export', help='corpus → files', others=is_beams).add_argument
  add('--input', required=True, metavar='CORPUS',
      help='directory of a corpus, DIR/NAME/1.0.0: curated, rejects or tokenised')
  add('--output', required=True, metavar='DIR',
      help='where data/ and README.md go')
  add('--format', default='parquet', choices=FORMATS,
      help='of the files (default: %(default)s)')
  add('--push_to_hub', default='', metavar='OWNER/NAME',
      help='a data set on the Hugging Face hub that they go to as well, private until published')

  args, beam_args = parser.parse_known_args(argv)
  logging.basicConfig(format='%(message)s', level=logging.WARNING, force=True)
  log.setLevel(logging.INFO)
  try:
    with explained(beam_args):
      if args.command == 'import':
        path = import_tables(args.input, args.output, args.name,
                             options_lib.take(ImportOptions, vars(args)), beam_args=beam_args)
      else:
        path = export_corpus(args.input, args.output, format=args.format, beam_args=beam_args)
    if args.command != 'import' and args.push_to_hub:
      print(f'pushed to {hub.push(path, args.push_to_hub, "dataset")}')
  except (ValueError, OSError) as error:
    return complain('data_beam.tables', error)
  print(public(f'The result is at {path}'))
  return 0


if __name__ == '__main__':
  sys.exit(main())
