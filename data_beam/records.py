"""Documents, their encoding, and the sink that puts them on disk.

A corpus is a TFDS directory `DIR/NAME/1.0.0/`: ArrayRecord shards of tf.train.Example,
features.json, dataset_info.json, manifest.json, and `_SUCCESS`, written last. Any reader of
tf.train.Example can use it, and `tfds.builder_from_directory(path).as_data_source('train')`
does so without TensorFlow.

The sink is deterministic: a record's shard is a hash of its id, a shard is sorted by id, and
nothing on disk knows the time, the machine or the order of arrival. So the same documents give
the same bytes for any input order, grouping, runner or number of workers, and a job that was
killed can simply be run again. Each shard is in one worker's memory once: choose `num_shards` so
that a shard stays below about 200 MB.
"""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import io
import json
import logging
import math
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import tensorflow_datasets as tfds
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from array_record.python import array_record_module as array_record
from google.protobuf import json_format
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

import data_beam
from data_beam.redact import public

VERSION = '1.0.0'  # of the layout on disk
EXAMPLES = 10  # record numbers that the manifest of rejects lists for each reason
_SPLIT_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'  # TFDS's own default

log = logging.getLogger('data_beam')


class CorpusError(ValueError):
  """A corpus is missing, incomplete, empty or of the wrong kind; the message says which."""


class EmptyCorpus(CorpusError):
  """A corpus has no documents; the message says what became of them."""


@dataclasses.dataclass
class Document:
  """One document on its way through a pipeline. Stages return new ones, never mutate.

  Attributes:
    id: stable and independent of file names: the WARC-Record-ID, or the PDF's sha256.
    text: the main text.
    url: where it was found, '' if unknown.
    source: name of the corpus, such as 'web'.
    language: ISO 639-1 code, '' if unknown.
    language_score: the detector's probability, NaN if unknown.
    date: ISO 8601, '' if unknown.
    quality: a quality score, higher is better, NaN if none.
    metadata: whatever else is known, JSON-able: WARC file and offset, extractor, cluster_size…
    signature: what deduplication compares, where it is kept (dedup/prior.py); not in the record.
  """

  id: str
  text: str
  url: str = ''
  source: str = ''
  language: str = ''
  language_score: float = math.nan
  date: str = ''
  quality: float = math.nan
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
  signature: bytes = b''


class Reject(NamedTuple):
  """A document that a stage dropped, and why."""

  document: Document
  stage: str
  reason: str


# What a record holds, by kind of corpus. `dict` is stored as JSON text.
_CURATED = {field.name: field.type for field in dataclasses.fields(Document)
            if field.name != 'signature'} | {'metadata': dict}
_TOKENISED: dict[str, type] = {
  'id': str, 'tokens': bytes, 'num_bytes': int, 'source': str, 'language': str,
  'weight': float, 'quality': float, 'cluster_size': int, 'dump': str,
}
FEATURES: dict[str, dict[str, type]] = {
  'curated': _CURATED,
  'rejects': _CURATED | {'stage': str, 'reason': str},
  'tokenised': _TOKENISED,
  # The same of conversations. A mask has a byte a token, 1 where the model learns to write it; the
  # rejected answer of a preference pair stands behind the same prompt, without pair it is empty.
  'conversations': _TOKENISED | {
    'loss_mask': bytes, 'mode': str, 'rejected_tokens': bytes, 'rejected_loss_mask': bytes},
  'teacher': {'id': str, 'values': bytes},  # experiments/teacher_cache.py
}

_TFDS = {
  str: tfds.features.Text,
  dict: tfds.features.Text,
  bytes: functools.partial(tfds.features.Tensor, shape=(), dtype=np.object_),
  int: functools.partial(tfds.features.Scalar, np.int64),
  float: functools.partial(tfds.features.Scalar, np.float32),
}


def encode(kind: str, values: Mapping[str, Any]) -> bytes:
  """A record of `kind` as the bytes of a tf.train.Example, the same bytes for the same values.

  Args:
    kind: a key of FEATURES.
    values: one value per feature of that kind. Characters that UTF-8 cannot hold (lone
      surrogates) become '?'.
  """
  features = {}
  for name, type_ in FEATURES[kind].items():
    value = values[name]
    if type_ is dict:
      value = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if type_ is int:
      feature = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[value]))
    elif type_ is float:
      feature = tf_feature_pb2.Feature(float_list=tf_feature_pb2.FloatList(value=[value]))
    else:
      data = value if type_ is bytes else value.encode('utf-8', 'replace')
      feature = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[data]))
    features[name] = feature
  example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features))
  return example.SerializeToString(deterministic=True)  # else map order is the process's own


def decode(kind: str, data: bytes) -> dict[str, Any]:
  """The inverse of `encode`: str, bytes, int, float, and a dict for what is stored as JSON."""
  feature = tf_example_pb2.Example.FromString(data).features.feature
  values = {}
  for name, type_ in FEATURES[kind].items():
    if type_ is int:
      values[name] = feature[name].int64_list.value[0]
    elif type_ is float:
      values[name] = feature[name].float_list.value[0]
    else:
      value = feature[name].bytes_list.value[0]
      if type_ is not bytes:
        value = value.decode()
      values[name] = json.loads(value) if type_ is dict else value
  return values


# --- writing ---------------------------------------------------------------------------------

# Of a tokenised corpus: tokens of each record, how often an epoch has it, and of conversations the
# tokens of the rejected one of a pair; of a curated one what was compared (dedup/prior.py).
SIDECARS = ('lengths', 'repeats', 'rejected_lengths', 'signatures')


class Record(NamedTuple):
  """What the sink takes: one encoded record.

  Attributes:
    split: the split it goes to.
    id: chooses its shard and its place there.
    data: the bytes, from `encode`.
    tally: ((name, count), …), summed per shard for the manifest.
    sidecars: one number for each of the sidecars that `write_records` is asked for; of
      `signatures` its bytes, a multiple of 16.
    label: (name, …) under which the manifest of rejects lists a few examples, unless None.
  """

  split: str
  id: str
  data: bytes
  tally: tuple[tuple[Any, int], ...]
  sidecars: tuple[int | bytes, ...] = ()
  label: tuple[str, ...] | None = None


def corpus_path(output: str, name: str) -> str:
  """The directory of corpus `name` under `output`. Raises ValueError for a name that is no word."""
  if not re.fullmatch(r'\w[\w.+=@-]*', name):
    raise ValueError(f'--name: {name!r} cannot be the name of a corpus: give a word such as web')
  if os.path.exists(output) and not os.path.isdir(output):
    raise NotADirectoryError(f'--output={output} is a file: give a folder')
  return FileSystems.join(output, name, VERSION)


def rejects_path(manifest: Mapping[str, Any]) -> str:
  """Where what was dropped on the way to a corpus is, by its manifest from `read_manifest`."""
  folder = os.path.dirname(os.path.dirname(manifest['path'].rstrip('/')))
  return FileSystems.join(folder, f'{manifest["name"]}_rejects', VERSION)


def code_version() -> str:
  """The package's version and a hash of its source, as the manifest has it."""
  root = glob.escape(os.path.dirname(__file__))
  files = sorted(glob.glob(os.path.join(root, '**', '*.py'), recursive=True))
  digest = hashlib.sha256()
  for path in files:
    with open(path, 'rb') as f:
      digest.update(f.read())
  return f'{data_beam.__version__}+{digest.hexdigest()[:8]}'


def write_records(
  records: beam.PCollection[Record], *, output: str, name: str, shards: Mapping[str, int],
  sidecars: Sequence[str] = (),
) -> beam.PCollection[dict[str, Any]]:
  """Writes the shards of a corpus, empty ones too. `publish` must follow.

  Args:
    records: in any order.
    output: the parent directory, local or on any Beam file system.
    name: the corpus's name.
    shards: number of shards by split.
    sidecars: names of SIDECARS. Beside each shard, the records' numbers (int32) are written to
      NAME-SPLIT.SIDECAR-*.npy, so that a reader can plan without reading the records.

  Returns:
    One dict per shard: split, index, file, records, bytes (of the file), sha256, tally, examples
    ({label: the first record numbers in the shard}), and the file of each sidecar by its name.
  """
  return records | f'write {name}' >> _WriteRecords(
    path=corpus_path(output, name), name=name, shards=dict(shards), sidecars=tuple(sidecars))


def publish(
  path: str, kind: str, shards: Iterable[Mapping[str, Any]], manifest: Mapping[str, Any]
) -> str:
  """Completes a corpus whose shards are written: its metadata, then `_SUCCESS`. Returns `path`.

  Args:
    path: from `corpus_path`.
    kind: a key of FEATURES, whose features the records have.
    shards: what `write_records` returned.
    manifest: written as manifest.json; must have 'name'.
  """
  shards = sorted(shards, key=lambda s: (s['split'], s['index']))
  features = tfds.features.FeaturesDict({k: _TFDS[t]() for k, t in FEATURES[kind].items()})
  splits: dict[str, list[Mapping[str, Any]]] = {}
  for shard in shards:
    splits.setdefault(shard['split'], []).append(shard)
  info = {
    'name': manifest['name'], 'version': VERSION, 'fileFormat': 'array_record',
    'splits': [{
      'name': split, 'filepathTemplate': _SPLIT_TEMPLATE,
      'numBytes': str(sum(s['bytes'] for s in members)),
      'shardLengths': [str(s['records']) for s in members],
    } for split, members in splits.items()],
  }
  features = json_format.MessageToJson(features.to_proto(), sort_keys=True)
  described = {'features.json': features.encode(), 'dataset_info.json': to_json(info),
               'manifest.json': to_json(public(manifest))}
  for file, data in described.items():
    write_bytes(FileSystems.join(path, file), data)
  # A run that was killed, or had another number of shards, may have left files of ours.
  expected = {file for s in shards for file in (s['file'], *map(s.get, SIDECARS))}
  found = FileSystems.match([FileSystems.join(path, f'{manifest["name"]}-*')])[0].metadata_list
  stray = [f.path for f in found if os.path.basename(f.path) not in expected]
  if stray:
    FileSystems.delete(stray)
  checksums = {file: hashlib.sha256(data).hexdigest() for file, data in described.items()}
  write_bytes(FileSystems.join(path, '_SUCCESS'), to_json(checksums))
  return path


def shard_entries(shards: Iterable[Mapping[str, Any]], split: str = 'train') -> list[dict]:
  """The manifest's list of a split's shards: file, records, bytes, sha256, and sidecars."""
  members = sorted((s for s in shards if s['split'] == split), key=lambda s: s['index'])
  names = ('file', 'records', 'bytes', 'sha256', *SIDECARS, *(f'{n}_sha256' for n in SIDECARS))
  return [{k: s[k] for k in names if k in s} for s in members]


def add_tallies(shards: Iterable[Mapping[str, Any]]) -> dict[Any, int]:
  """The sum of the shards' tallies."""
  total: dict[Any, int] = {}
  for shard in shards:
    for key, count in shard['tally'].items():
      total[key] = total.get(key, 0) + count
  return total


def write_corpus(
  kept: beam.PCollection[Document],
  rejects: beam.PCollection[Reject],
  *,
  output: str,
  name: str,
  stages: Sequence[str],
  config: Mapping[str, Any],
  inputs: Sequence[Mapping[str, Any]],
  num_shards: int = 8,
  signatures: bool = False,
) -> beam.PCollection[str]:
  """Writes a curated corpus and, beside it, what was dropped on the way (`NAME_rejects`).

  An earlier corpus at the same place is replaced: it is incomplete (no `_SUCCESS`) from the
  first shard written until the end.

  Args:
    kept: the documents that passed every stage.
    rejects: those that did not.
    output: the parent directory, local or on any Beam file system.
    name: the corpus's name.
    stages: the stages' names in the order in which documents meet them; the funnel has these.
    config: the settings that made the corpus, JSON-able; kept in the manifest.
    inputs: [{'path': …, 'bytes': …}, …], kept in the manifest.
    num_shards: shards of the corpus, and of its rejects.
    signatures: whether those of the documents are kept, beside each shard.

  Returns:
    The path of the finished corpus, one element.

  Raises:
    ValueError: (while the pipeline runs) a reject names a stage that is not in `stages`.
  """
  base = {'version': VERSION, 'code_version': code_version(),
          'config': dict(config), 'inputs': list(inputs)}
  shards = {'train': num_shards}
  kept_shards = write_records(
    kept | f'encode {name}' >> beam.Map(_kept_record), output=output, name=name, shards=shards,
    sidecars=('signatures',) if signatures else ())
  reject_shards = write_records(
    rejects | f'encode {name}_rejects' >> beam.Map(_reject_record, stages=tuple(stages)),
    output=output, name=f'{name}_rejects', shards=shards)
  return (
    (kept_shards | f'kept {name}' >> beam.Map(lambda s: (None, (True, s))),
     reject_shards | f'rejects {name}' >> beam.Map(lambda s: (None, (False, s))))
    | f'both {name}' >> beam.Flatten()
    | f'gather {name}' >> beam.GroupByKey()
    | f'publish {name}' >> beam.Map(
      _publish_corpus, output=output, name=name, base=base, stages=tuple(stages)))


def _kept_record(document: Document) -> Record:
  tally = [*_tally(document), (('language', document.language), 1)]
  if found := document.metadata.get('licence'):
    tally.append((('licence', str(found)), 1))
  return Record('train', document.id, encode('curated', vars(document)), tuple(tally),
                (document.signature,))


def _reject_record(reject: Reject, stages: Sequence[str]) -> Record:
  document, stage, reason = reject
  if stage not in stages:
    raise ValueError(f'a document was dropped by stage {stage!r}, which is not among the '
                     f'corpus\'s stages: {", ".join(stages)}')
  counts = _tally(document)
  tally = (*counts, (('dropped', stage, reason), 1),
           *((('dropped', stage, reason, unit), n) for unit, n in counts[1:]))
  data = encode('rejects', vars(document) | {'stage': stage, 'reason': reason})
  return Record('train', document.id, data, tally, label=(stage, reason))


def _tally(document: Document) -> tuple[tuple[str, int], ...]:
  num_bytes = len(document.text.encode('utf-8', 'replace'))
  return (('documents', 1), ('characters', len(document.text)),
          ('words', len(document.text.split())), ('bytes', num_bytes))


def funnel(kept: Mapping[Any, int], rejects: Mapping[Any, int], stages: Sequence[str]) -> list:
  """What each stage received, passed on and dropped, from the two tallies alone.

  Counting only where documents end up makes the funnel add up by construction, and exact however
  often a runner repeats a bundle. A dropped document counts with the text it had when dropped.
  """
  documents = kept.get('documents', 0)
  amounts = {unit: kept.get(unit, 0) for unit in ('characters', 'words')}
  rows = []
  for stage in reversed(stages):
    dropped = {key[2]: n for key, n in rejects.items()
               if key[:2] == ('dropped', stage) and len(key) == 3}
    dropped = dict(sorted(dropped.items(), key=lambda kv: (-kv[1], kv[0])))
    documents_in = documents + sum(dropped.values())
    rows.append({
      'stage': stage, 'documents_in': documents_in, 'documents_out': documents,
      **{f'{unit}_out': n for unit, n in amounts.items()},
      'dropped': dropped,
      'dropped_words': {r: rejects.get(('dropped', stage, r, 'words'), 0) for r in dropped},
    })
    documents = documents_in
    for unit in amounts:
      amounts[unit] += sum(rejects.get(('dropped', stage, r, unit), 0) for r in dropped)
  return rows[::-1]


def _publish_corpus(element, *, output, name, base, stages) -> str:
  tagged = list(element[1])
  kept = [s for is_kept, s in tagged if is_kept]
  dropped = [s for is_kept, s in tagged if not is_kept]
  kept_tally, dropped_tally = add_tallies(kept), add_tallies(dropped)
  counts = ('documents', 'characters', 'words', 'bytes')
  publish(corpus_path(output, f'{name}_rejects'), 'rejects', dropped, {
    'name': f'{name}_rejects', 'kind': 'rejects', **base,
    **{k: dropped_tally.get(k, 0) for k in counts}, 'examples': _examples(dropped),
    'shards': shard_entries(dropped)})
  by = lambda kind: dict(sorted(((key[1], n) for key, n in kept_tally.items() if key[0] == kind),
                                key=lambda kv: (-kv[1], kv[0])))
  licences = {'licences': found} if (found := by('licence')) else {}
  return publish(corpus_path(output, name), 'curated', kept, {
    'name': name, 'kind': 'curated', **base, **{k: kept_tally.get(k, 0) for k in counts},
    'languages': by('language'), **licences,
    'funnel': funnel(kept_tally, dropped_tally, stages), 'shards': shard_entries(kept)})


def _examples(shards: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
  """{stage: {reason: numbers of the first EXAMPLES records, counted over all shards}}."""
  found: dict[tuple[str, str], list[int]] = {}
  before = 0
  for shard in sorted(shards, key=lambda s: s['index']):
    for label, numbers in shard['examples'].items():
      members = found.setdefault(label, [])
      members += [before + i for i in numbers[:EXAMPLES - len(members)]]
    before += shard['records']
  by_stage: dict[str, dict[str, list[int]]] = {}
  for (stage, reason), numbers in sorted(found.items()):
    by_stage.setdefault(stage, {})[reason] = numbers
  return by_stage


class _WriteRecords(beam.PTransform):
  def __init__(self, **settings):
    super().__init__()
    self.settings = settings  # path, name, shards, sidecars

  def expand(self, records):
    # As a side input it makes every shard wait until the old `_SUCCESS` is gone.
    ready = records.pipeline | beam.Create([self.settings['path']]) | beam.Map(_prepare)
    shards = self.settings['shards']
    keys = [(split, i) for split, n in shards.items() for i in range(n)]
    empty = records.pipeline | 'every shard' >> beam.Create([(key, None) for key in keys])
    keyed = records | beam.Map(_with_shard, shards=shards)
    return (
      (keyed, empty) | beam.Flatten() | beam.GroupByKey()
      | beam.Map(write_shard, ready=beam.pvalue.AsSingleton(ready), **self.settings))


def _prepare(path: str) -> str:
  if not FileSystems.exists(path):
    with contextlib.suppress(BeamIOError, OSError):  # another worker made it meanwhile
      FileSystems.mkdirs(path)
  success = FileSystems.join(path, '_SUCCESS')
  if FileSystems.exists(success):
    FileSystems.delete([success])
  return path


def stable_hash(key: str) -> int:
  """A 64-bit hash of `key` that is the same in every process and version."""
  return int.from_bytes(hashlib.sha256(key.encode('utf-8', 'replace')).digest()[:8], 'big')


def _with_shard(record: Record, shards: Mapping[str, int]):
  # The low bits: splits may be chosen by the high ones (tokenize_corpus's holdout is).
  index = stable_hash(record.id) % shards[record.split]
  return (record.split, index), tuple(record)


def write_shard(
  element: Any, *, path: str, name: str, shards: Mapping[str, int], sidecars: Sequence[str],
  ready: Any,
) -> dict[str, Any]:
  """Writes a shard, ((split, index), records), for `publish`; `shards` counts those of a split."""
  del ready
  (split, index), records = element
  of = f'{index:05d}-of-{shards[split]:05d}'
  shard = {'split': split, 'index': index, 'file': f'{name}-{split}.array_record-{of}'}
  rows = sorted((Record(*r) for r in records if r is not None), key=lambda row: row[:3])
  with tempfile.TemporaryDirectory() as scratch:
    local = os.path.join(scratch, 'shard')
    writer = array_record.ArrayRecordWriter(local, 'group_size:1')
    for row in rows:
      writer.write(row.data)
    writer.close()
    reader = array_record.ArrayRecordReader(local)  # an unclosed or torn file opens, and is empty
    if not reader.ok() or reader.num_records() != len(rows):
      raise OSError(f'{shard["file"]}: wrote {len(rows)} records, read back '
                    f'{reader.num_records()}; is the disk of {scratch} full?')
    reader.close()
    with open(local, 'rb') as f:
      data = f.read()
  write_bytes(FileSystems.join(path, shard['file']), data)
  shard |= {'records': len(rows), 'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
  for i, sidecar in enumerate(sidecars):
    shard[sidecar] = f'{name}-{split}.{sidecar}-{of}.npy'
    array = io.BytesIO()
    values: Any = [row.sidecars[i] for row in rows]
    if sidecar == 'signatures':
      values = np.frombuffer(b''.join(values), 'S16').reshape(len(rows), -1 if rows else 0)
    np.save(array, np.asarray(values, None if sidecar == 'signatures' else np.int32))
    write_bytes(FileSystems.join(path, shard[sidecar]), array.getvalue())
    shard[f'{sidecar}_sha256'] = hashlib.sha256(array.getvalue()).hexdigest()
  tally: dict[Any, int] = {}
  examples: dict[tuple, list[int]] = {}
  for number, row in enumerate(rows):
    for k, n in row.tally:
      tally[k] = tally.get(k, 0) + n
    if row.label and len(found := examples.setdefault(row.label, [])) < EXAMPLES:
      found.append(number)
  return shard | {'tally': tally, 'examples': examples}


def to_json(value: Any) -> bytes:
  """A file of JSON, as all that stand beside a corpus's records are."""
  return (json.dumps(value, indent=1, ensure_ascii=False) + '\n').encode()


def write_bytes(path: str, data: bytes) -> None:
  """Writes a file under a temporary name, then renames, so that no reader sees half of it."""
  temporary, mime = f'{path}.tmp-{uuid.uuid4().hex[:8]}', 'application/octet-stream'
  with FileSystems.create(temporary, mime, CompressionTypes.UNCOMPRESSED) as f:
    f.write(data)
    if '://' not in path:  # on the disk before it has its name, after a power cut too
      f.flush()
      os.fsync(f.fileno())
  FileSystems.rename([temporary], [path])

# --- reading ---------------------------------------------------------------------------------

def read_manifest(path: str, kind: str | None = None) -> dict[str, Any]:
  """The manifest of the finished corpus at `path` (DIR/NAME/1.0.0, or DIR/NAME).

  The result has one more key, 'path': the directory of the version.

  Raises:
    CorpusError: there is no corpus, it is not finished, damaged, or not of `kind`.
  """
  if not is_file(path, '_SUCCESS') and is_file(path, VERSION, '_SUCCESS'):
    path = FileSystems.join(path, VERSION)
  if not is_file(path, '_SUCCESS'):
    if FileSystems.exists(path):
      raise CorpusError(f'the corpus at {path!r} is not finished (it has no _SUCCESS): run again '
                        'what writes it')
    raise CorpusError(f'no corpus at {path!r}: give a directory such as DIR/NAME/{VERSION}')
  files = [read_bytes(FileSystems.join(path, file)) for file in ('_SUCCESS', 'manifest.json')]
  try:
    checksums, manifest = json.loads(files[0] or b'{}'), json.loads(files[1])
  except ValueError as e:
    raise CorpusError(f'_SUCCESS or manifest.json of the corpus at {path!r} is damaged: {e}') from e
  if checksums and checksums.get('manifest.json') != hashlib.sha256(files[1]).hexdigest():
    raise CorpusError(f'manifest.json of the corpus at {path!r} is not as it was written: make the '
                      'corpus again, or, if you changed it on purpose, empty the file _SUCCESS')
  if kind and manifest['kind'] != kind:
    raise CorpusError(f'the corpus at {path!r} is {manifest["kind"]}, not {kind}')
  return manifest | {'path': path}


def features_of(manifest: Mapping[str, Any]) -> str:
  """The key of FEATURES that says what a corpus's records hold: its kind, or of tokens with a mask
  'conversations', as which all that takes tokens can read them."""
  return 'conversations' if manifest.get('loss_mask') else manifest['kind']


def list_shards(manifest: Mapping[str, Any], split: str = 'train') -> list[tuple[str, int]]:
  """Path and number of records of each shard; the manifest is from `read_manifest`.

  Raises:
    CorpusError: the corpus has no such split.
  """
  splits = manifest.get('splits', {'train': manifest})
  if split not in splits:
    raise CorpusError(f'the corpus at {manifest["path"]!r} has no split {split!r}, only '
                      f'{", ".join(splits)}')
  return [(FileSystems.join(manifest['path'], s['file']), s['records'])
          for s in splits[split]['shards']]


def read_shard(path: str, num_records: int, kind: str) -> Iterator[dict[str, Any]]:
  """The records of one shard, in order.

  Raises:
    CorpusError: the file is missing, damaged, or does not hold `num_records` records.
  """
  with local_copy(path) as local:
    # The reader's constructor never raises: a missing or damaged file has no records.
    reader = array_record.ArrayRecordReader(local)
    if not reader.ok() or reader.num_records() != num_records:
      raise CorpusError(f'{path}: {reader.num_records()} records where the manifest says '
                        f'{num_records}; the file is missing or damaged, make the corpus again')
    for start in range(0, num_records, 256):
      for data in reader.read(range(start, min(start + 256, num_records))):
        yield decode(kind, data)
    reader.close()


def read_corpus(path: str, split: str = 'train') -> Iterator[dict[str, Any]]:
  """The records of a finished corpus, shard by shard, without Beam.

  Args:
    path: DIR/NAME/1.0.0 (or DIR/NAME), local or on any Beam file system.
    split: 'train', or another split of a tokenised corpus.

  Returns:
    An iterator of dicts, one value per feature; `metadata` is a dict, `tokens` are bytes.

  Raises:
    CorpusError: at once, if the corpus is missing, incomplete, empty or lacks the split; while
      reading, if a shard is damaged.
  """
  manifest = read_manifest(path)
  shards = list_shards(manifest, split)
  check_not_empty(manifest)
  if not sum(n for _, n in shards):
    raise CorpusError(f'the split {split!r} of the corpus at {manifest["path"]!r} is empty')
  return (row for file, n in shards for row in read_shard(file, n, features_of(manifest)))


# Reasons that say little to who meets them first, and mean the whole input.
_MEANS = {
  'bad_json': ': each line is to be one JSON object',
  'corrupt_file': ': no WARC file, nor text, HTML or JSONL by its name',
}


def check_not_empty(manifest: Mapping[str, Any]) -> None:
  """Raises EmptyCorpus if the corpus has no documents, and says what became of them; CorpusError if
  its manifest does not say how many."""
  if 'documents' not in manifest:
    raise CorpusError(f'the manifest of the corpus at {manifest["path"]!r} counts no documents')
  if manifest['documents']:
    return
  rows = manifest.get('funnel', [])
  dropped = [(n, row['stage'], reason) for row in rows for reason, n in row['dropped'].items()]
  why = 'nothing was read from its inputs'
  if dropped:
    n, stage, reason = max(dropped)
    why = (f'all {sum(d[0] for d in dropped)} documents were dropped, {n} of them by {stage!r} '
           f'({reason}{_MEANS.get(reason, "")})')
  raise EmptyCorpus(f'the corpus at {manifest["path"]!r} is empty: {why}')


def is_file(*parts: str) -> bool:
  """Whether there is a file at the joined `parts`, local or on any Beam file system."""
  return FileSystems.exists(FileSystems.join(*parts))


def read_bytes(path: str) -> bytes:
  """The whole of a file, local or on any Beam file system."""
  mime = 'application/octet-stream'
  with FileSystems.open(path, mime, CompressionTypes.UNCOMPRESSED) as f:
    return f.read()


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
  """`path` itself where it is local, else a temporary copy: for libraries that read local files."""
  if '://' not in path:
    yield path
    return
  with tempfile.NamedTemporaryFile() as f:
    f.write(read_bytes(path))
    f.flush()
    yield f.name
