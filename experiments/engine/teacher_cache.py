"""Writes a teacher cache, shard by shard, for an experiment's step or experiments.teacher_cache.

What is in it, smoljax.data.teacher_cache says. Several processes on one file system share a
corpus's shards, as do the GPUs of a process, one a shard: the bytes do not depend on how many there
are. A process that was stopped goes on where it was.
"""

import collections
import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from data_beam import records
from experiments.engine.corpora import corpus_fault
from smoljax import files, model, sharding
from smoljax.checkpoints import load
from smoljax.data import teacher_cache, tokenizer
from smoljax.data.corpus import local_copy, open_corpus
from smoljax.train import distill

_CHUNK = 128  # places whose logits exist at once


def write(
  teacher: str,
  corpus: str,
  output: str,
  name: str = '',
  *,
  kind: str = 'sampled',
  draws: int = 50,
  temperature: float = 1.0,
  seq_len: int = 1024,
  batch_size: int = 16,
  seed: int = 0,
  corpus_tokenizer: str = '',
  log_line: Callable[[str], None] = print,
) -> str:
  """Writes the cache, or what is left of it; returns its directory.

  Raises:
    ValueError: teacher and corpus have different tokenizers, the folder holds a cache of something
      else, or a setting is out of range.
    FileNotFoundError: no such teacher or corpus.
  """
  corpus = local_copy(corpus)
  opened, manifest = open_corpus(corpus), records.read_manifest(corpus, 'tokenised')
  loaded = load.load_model(teacher)
  same_tokenizer(loaded.tokenizer.path, manifest, corpus_tokenizer)
  config, params = model.without_mtp(loaded.config, loaded.params)
  known = loaded.tokenizer.vocab_size  # the rows beyond pad the vocabulary
  most, ids = min(teacher_cache.MAX_DRAWS, known), teacher_cache.MAX_VOCAB
  if not 0 < draws <= most or not temperature > 0:
    raise ValueError(f'draws={draws}, temperature={temperature}: give 1 to {most} draws, and a '
                     'positive temperature')
  if kind == 'sampled' and known > ids:
    raise ValueError(f'kind=sampled stores ids below {ids:,}, the vocabulary has '
                     f'{known:,}: use topk or hidden')
  if seq_len > config.max_seq_len:
    raise ValueError(f'seq_len={seq_len}, but the teacher was trained on {config.max_seq_len}')
  job = {
    'cache': kind, 'teacher': load.weights_fingerprint(teacher), 'corpus': opened.digest,
    'tokenizer': manifest.get('tokenizer_sha256'), 'draws': draws, 'temperature': temperature,
    'seq_len': seq_len, 'seed': seed, 'embed_dim': config.embed_dim, 'vocab_size': known,
  }
  job = json.loads(json.dumps(job))
  name = name or manifest['name']
  path = records.corpus_path(output, name)
  os.makedirs(path, exist_ok=True)
  # What is not as it was written is written again, here and below.
  if os.path.exists(os.path.join(path, '_SUCCESS')) and not corpus_fault(path, True):
    done = records.read_manifest(path, 'teacher')
    if {k: done.get(k) for k in job} == job:
      return path
  _same_job(os.path.join(path, 'job.json'), job, path)
  query = _make_query(config, known, kind, draws, temperature)
  shards = records.list_shards(manifest)
  entries = [os.path.join(path, f'shard-{index:05d}.json') for index in range(len(shards))]

  def work(device):
    ask = functools.partial(query, jax.device_put(params, device))
    for index, ((shard, number), entry) in enumerate(zip(shards, entries, strict=True)):
      with _claimed(entry) as claimed:
        if not claimed or _is_whole(path, entry):
          continue
        rows, width = [], 0
        documents = ((r['id'], opened.decode(r))
                     for r in records.read_shard(shard, number, 'tokenised'))
        for id_, values, widest in _documents(documents, ask, kind, seq_len, batch_size, seed):
          row = records.encode('teacher', {'id': id_, 'values': values})
          rows.append(records.Record('train', id_, row, ()))
          width = max(width, widest)
        written = records.write_shard(
          (('train', index), rows), path=path, name=name, shards={'train': len(shards)},
          sidecars=(), ready=None)
        written |= {'width': width, 'stored': sum(len(r.data) for r in rows)}
        files.write_checked(entry, written)
      log_line(f'shard {index + 1} of {len(shards)}')

  devices = sharding.workers()[: len(shards)]
  with concurrent.futures.ThreadPoolExecutor(max(1, len(devices))) as pool:
    collections.deque(pool.map(work, devices))  # which raises what they do
  if not all(_is_whole(path, entry) for entry in entries):
    log_line('the other processes write what is left; the last one finishes the cache')
    return path
  parts = [files.read_checked(entry) for entry in entries]
  tokens = int(np.maximum(opened.lengths - 1, 0).sum())
  stored = sum(p['stored'] for p in parts)
  records.publish(path, 'teacher', parts, job | {
    'name': name, 'kind': 'teacher', 'version': records.VERSION,
    'width': draws if kind == 'topk' else max(p['width'] for p in parts),
    'documents': len(opened.lengths), 'places': tokens,
    'bytes_per_token': round(stored / max(1, tokens), 2),
    'splits': {'train': {'shards': records.shard_entries(parts)}},
  })
  return path


def same_tokenizer(teacher: str, manifest: dict, corpus_tokenizer: str = '') -> None:
  """Raises ValueError unless the teacher's tokenizer file gives the corpus's ids their meaning."""
  with open(teacher, 'rb') as f:
    if hashlib.sha256(f.read()).hexdigest() == manifest.get('tokenizer_sha256'):
      return
  if corpus_tokenizer:
    with open(corpus_tokenizer, 'rb') as f:
      if hashlib.sha256(f.read()).hexdigest() != manifest.get('tokenizer_sha256'):
        raise ValueError(f'{corpus_tokenizer} is not the tokenizer of corpus {manifest["name"]!r}')
    tokenizer.require_same(teacher, corpus_tokenizer)
    return
  raise ValueError(
    f'the corpus {manifest["name"]!r} was tokenised with another file '
    f'({manifest.get("tokenizer")}) than the teacher has ({teacher}): ids may mean other tokens. '
    'Tokenise it with the teacher’s, or give --tokenizer to have the two compared')


def _make_query(config, known, kind, draws, temperature):
  """The jitted (params, tokens_BT, keys_B) → arrays [B, T, …] of what is stored."""

  @jax.jit
  def query(params, tokens_BT, keys_B):
    hidden_BTD, _ = model.hidden(config, params, tokens_BT)
    if kind == 'hidden':
      return (hidden_BTD.astype(jnp.bfloat16),)
    unembed_DV = model.unembedding(config, params)

    def one(index, hidden_BCD):
      logits_BCV = model.project(config, hidden_BCD, unembed_DV)[..., :known]
      if kind == 'topk':
        p_BCV = jax.nn.softmax(logits_BCV / temperature)
        p_BCK, ids_BCK = jax.lax.top_k(p_BCV, draws)
        return index + 1, (ids_BCK, p_BCK.astype(jnp.float16))
      now_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, index)
      draw = functools.partial(distill.draw, draws=draws, temperature=temperature)
      return index + 1, (jax.vmap(draw)(now_B, logits_BCV),)

    _, parts = jax.lax.scan(one, 0, sharding.slices(hidden_BTD, _CHUNK))
    return tuple(sharding.unsliced(x) for x in parts)

  return query


def _documents(
  documents, query, kind, seq_len, batch_size, seed
) -> Iterator[tuple[str, bytes, int]]:
  """(id, values, most ids of a place) of each document, in order."""
  pieces: dict[int, list] = {}  # by padded length: (document, start, tokens)
  order: list[dict] = []  # documents in order: parts by start
  root = jax.random.key(seed)

  def run(length):
    batch = pieces.pop(length)
    tokens_BT = np.zeros((batch_size, length), np.int32)
    numbers_B = np.zeros(batch_size, np.uint32)
    for i, (document, start, tokens) in enumerate(batch):
      tokens_BT[i, : len(tokens)] = tokens
      name = f'{document["id"]}/{start}'.encode()
      numbers_B[i] = int.from_bytes(hashlib.sha256(name).digest()[:4])
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(root, numbers_B)
    arrays = [np.asarray(x) for x in query(tokens_BT, keys_B)]
    for i, (document, start, tokens) in enumerate(batch):
      document['parts'][start] = [x[i, : len(tokens)] for x in arrays]
      document['missing'] -= 1

  def finished(document):
    parts = [document['parts'][start] for start in sorted(document['parts'])]
    if not parts:
      return document['id'], b'', 0
    arrays = [np.concatenate(x) for x in zip(*parts, strict=True)]
    if kind == 'hidden':
      return document['id'], arrays[0].tobytes(), 0
    if kind == 'topk':
      return document['id'], teacher_cache.pack_topk(*arrays), 0
    values = teacher_cache.pack_draws(arrays[0])
    return document['id'], values, max(values[: len(arrays[0])])

  for id_, tokens in documents:
    starts = range(0, max(0, len(tokens) - 1), seq_len)
    document = {'id': id_, 'parts': {}, 'missing': len(starts)}
    order.append(document)
    for start in starts:
      piece = tokens[start : min(start + seq_len, len(tokens) - 1)]
      length = min(seq_len, -(-max(_CHUNK, 1 << (len(piece) - 1).bit_length()) // _CHUNK) * _CHUNK)
      pieces.setdefault(length, []).append((document, start, piece))
      if len(pieces[length]) == batch_size:
        run(length)
    while order and not order[0]['missing']:
      yield finished(order.pop(0))
  for length in list(pieces):
    run(length)
  yield from map(finished, order)


@contextlib.contextmanager
def _claimed(entry: str) -> Iterator[bool]:
  """Whether this process may write the shard; no other may while it does."""
  with open(entry + '.lock', 'w') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
    else:
      yield True


def _is_whole(path: str, entry: str) -> bool:
  """A shard is done: its entry stands and its bytes are those that were written."""
  if (written := _read(entry)) is None:
    return False
  file = os.path.join(path, written['file'])
  return os.path.exists(file) and files.sha256(file) == written['sha256']


def _same_job(file: str, job: dict, path: str) -> None:
  if before := _read(file):
    for what, value in job.items():
      if before.get(what) != value:
        raise ValueError(f'{path} holds a teacher cache with another {what}: {before.get(what)!r}, '
                         f'not {value!r}; give a fresh --output')
  else:
    files.write_checked(file, job)


def _read(file: str) -> dict | None:
  """What a file by `files.write_checked` holds; None if it is missing or damaged."""
  try:
    return files.read_checked(file)
  except (OSError, ValueError):
    return None
