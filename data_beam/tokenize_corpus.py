"""Curated corpora → one tokenised corpus: each document becomes a record of token ids.

  python -m data_beam.tokenize_corpus --input=corpora/web/1.0.0 --tokenizer=tokenizer.model \\
    --output=tokens --name=web

A document is [BOS] text [EOS]; which ids these are, special_tokens.py decides, and the manifest
tells everyone after. A conversation (of data_beam.conversations) is what the chat template makes of
it (chat.py), without either, and has a mask of the tokens that the model learns to write. Packing,
mixtures and lineage are decided at training time. A small share of the documents, chosen by a hash
of their id, makes the split `validation`, so a document stays on its side when the corpus around it
changes; but for one whose text is for the most part in other documents too, which is trained on
with them: held out, it would ask for what was learned by heart. The other documents are those of
the same corpus, and of all that are trained on beside it (--against).
"""

import dataclasses
import functools
import hashlib
import logging
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import sentencepiece
import tokenizers

from data_beam import chat, records, special_tokens
from data_beam import options as options_lib
from data_beam.beam_options import (
  explained,
  is_beams,
  pipeline_options,
  require_file_system,
)
from data_beam.command_line import Parser, complain
from data_beam.dedup.clusters import rehydration_weight
from data_beam.dedup.minhash import ngram_hashes, word_hashes
from data_beam.options import TokenizeOptions
from data_beam.records import CorpusError, Record


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """What the pipeline needs to know of a tokenizer file.

  Attributes:
    path: a SentencePiece .model or a Hugging Face tokenizer.json.
    sha256: of the file.
    vocab_size: one more than the largest id.
    special: ids of its special tokens; there is an EOS.
    controls: ids of those control tokens of the chat template that it has.
  """

  path: str
  sha256: str
  vocab_size: int
  special: special_tokens.SpecialTokens
  controls: Mapping[str, int]

  @property
  def dtype(self) -> np.dtype:
    """Little-endian uint16 if every id fits, else uint32."""
    return np.dtype('<u2' if self.vocab_size <= 1 << 16 else '<u4')


def load_tokenizer(path: str) -> Tokenizer:
  """Reads what there is to know of the tokenizer at `path`, local or on any Beam file system.

  Its special tokens are those that special_tokens.py decides on.

  Raises:
    ValueError: there is no such file, it is no tokenizer, damaged, or has no end-of-text token.
  """
  if not records.is_file(path):
    raise ValueError(f'no tokenizer at {path!r}: give a SentencePiece .model or a tokenizer.json')
  sha256 = hashlib.sha256(records.read_bytes(path)).hexdigest()
  beside = _read_sibling(path, f'{os.path.basename(path)}.sha256')  # as our own trainer leaves it
  if beside and beside.decode('ascii', 'replace').strip() != sha256:
    raise ValueError(f'the tokenizer {path!r} is damaged: it is not as {path}.sha256 says')
  try:
    tokenizer = _open(path)
  except Exception as error:  # both libraries raise whatever their parser raises
    raise ValueError(f'{path!r} is neither a SentencePiece model nor a tokenizer.json: '
                     f'{str(error).splitlines()[0][:200]}') from error
  if isinstance(tokenizer, tokenizers.Tokenizer):
    size = max(tokenizer.get_vocab().values()) + 1
    controls = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
  else:
    size = tokenizer.vocab_size()
    controls = {tokenizer.id_to_piece(i): i for i in range(size) if tokenizer.is_control(i)}
  special = special_tokens.decide(tokenizer, functools.partial(_read_sibling, path))
  if special.eos_id is None:
    raise ValueError(f'the tokenizer {path!r} has no end-of-text token: {special_tokens.NAME_EOS}')
  controls = {name: controls[name] for name in chat.CONTROL if name in controls}
  return Tokenizer(path, sha256, size, special, controls)


def _read_sibling(path: str, name: str) -> bytes | None:
  path = os.path.join(os.path.dirname(path), name)
  return records.read_bytes(path) if records.is_file(path) else None


def _open(path: str) -> Any:
  with records.local_copy(path) as local:
    if not path.endswith('.json'):
      return sentencepiece.SentencePieceProcessor(model_file=local)
    tokenizer = tokenizers.Tokenizer.from_file(local)
  tokenizer.no_truncation()
  tokenizer.no_padding()
  tokenizer.encode_special_tokens = True  # a page that quotes '<|endoftext|>' does not end there
  return tokenizer


def is_validation(document_id: str, holdout: float) -> bool:
  """Whether a document belongs to the validation split, of about `holdout` of all documents."""
  return _thousandth(document_id, 0) < round(1000 * holdout)


def _thousandth(document_id: str, draw: int) -> int:
  """A number below 1000 from an id, independent between draws."""
  digest = hashlib.sha256(document_id.encode('utf-8', 'replace')).hexdigest()
  return int(digest[8 * draw : 8 * draw + 8], 16) % 1000


_RUN = 8  # words: a longer run of words that two texts have in common is no chance
_MOST_RUNS = 20_000_000  # of candidates, in one worker's memory: of more, every n-th is looked at


def _near_duplicates(
  own: beam.PCollection['Shard'], others: beam.PCollection['Shard'], tokenizer: str,
  holdout: float, most: float, every: int,
) -> beam.PCollection[str]:
  """Ids of the documents that a hash of their id would hold out, but their text is known.

  A document of this id elsewhere says nothing: it is on the same side there.

  Args:
    own: shards of the corpus, from which documents are held out.
    others: of corpora that are trained on too.
    tokenizer: the file by which those are tokenised that hold tokens.
    most: share of a document's runs of _RUN words that may be in other documents too.
    every: of the runs, by their hash, so many count as one.
  """
  def runs(text: str) -> np.ndarray:
    found = np.unique(ngram_hashes(word_hashes(text.split()), _RUN))
    return found[found % np.uint64(every) == 0]

  def candidates(shard: Shard) -> Iterator[tuple[str, np.ndarray]]:
    for id, text in _texts(shard, tokenizer):
      if is_validation(id, holdout):
        yield id, runs(text)

  def hits(shard: Shard, wanted: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for id, text in _texts(shard, tokenizer):
      if len(found := _among(runs(text), wanted)):
        yield id, found

  def is_near(candidate: tuple[str, np.ndarray], shared: np.ndarray) -> bool:
    mine = candidate[1]
    return len(_among(mine, shared)) > most * len(mine)

  asked = own | 'candidates' >> beam.FlatMap(candidates)
  wanted = asked | beam.Values() | 'their runs' >> beam.CombineGlobally(_union)
  shared = (
    (own, others)
    | 'all corpora' >> beam.Flatten()
    | 'who has them' >> beam.FlatMap(hits, beam.pvalue.AsSingleton(wanted))
    | 'by document' >> beam.GroupByKey()
    | 'of each' >> beam.MapTuple(lambda id, arrays: _union(arrays))
    | 'in two documents' >> beam.CombineGlobally(_InTwo()))
  return (asked | 'near' >> beam.Filter(is_near, beam.pvalue.AsSingleton(shared))
          | 'near ids' >> beam.Keys())


class Shard(NamedTuple):
  """A file of a corpus."""

  path: str
  records: int
  kind: str  # curated | tokenised


def _shards(manifest: Mapping[str, Any]) -> Iterator[Shard]:
  for split in manifest.get('splits', ('train',)):
    for path, count in records.list_shards(manifest, split):
      yield Shard(path, count, manifest['kind'])


def _texts(shard: Shard, tokenizer: str) -> Iterator[tuple[str, str]]:
  """(id, text) of a shard's documents, of its tokens if it has no text."""
  decode = _decoder(tokenizer) if shard.kind == 'tokenised' else None
  for row in records.read_shard(*shard):
    yield row['id'], decode(row['tokens']) if decode else row['text']


@functools.lru_cache(maxsize=1)
def _decoder(path: str) -> Callable[[bytes], str]:
  """Tokens of a record → their text, without special tokens."""
  tokenizer, dtype = _open(path), load_tokenizer(path).dtype
  ids = lambda data: np.frombuffer(data, dtype).tolist()
  if isinstance(tokenizer, tokenizers.Tokenizer):
    return lambda data: tokenizer.decode(ids(data), skip_special_tokens=True)
  return lambda data: tokenizer.decode(ids(data))


def _among(numbers: np.ndarray, known: np.ndarray) -> np.ndarray:
  """Those of some numbers that are among others, which are sorted."""
  if not len(known):
    return known
  places = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
  return numbers[known[places] == numbers]


def _union(arrays: Iterable[np.ndarray]) -> np.ndarray:
  """All numbers of some arrays, sorted, each once."""
  return np.unique(np.concatenate([np.empty(0, np.uint64), *arrays]))


class _InTwo(beam.CombineFn):
  """The numbers that are in more than one of some arrays, each sorted and without repeats."""

  def create_accumulator(self) -> tuple[list[np.ndarray], np.ndarray]:
    return [], np.empty(0, np.uint64)

  def add_input(self, found: tuple, array: np.ndarray) -> tuple:
    found[0].append(array)
    return self.compact(found) if len(found[0]) > 64 else found

  def merge_accumulators(self, found: Iterable[tuple]) -> tuple:
    arrays, twice = zip(*found, strict=True)
    return self.compact(([a for more in arrays for a in more], _union(twice)))

  def compact(self, found: tuple) -> tuple:
    """Its arrays as one."""
    arrays, twice = found
    numbers, counts = np.unique(np.concatenate([twice[:0], *arrays]), return_counts=True)
    return [numbers], _union([twice, numbers[counts > 1]])

  def extract_output(self, found: tuple) -> np.ndarray:
    return self.compact(found)[1]


class _Tokenize(beam.DoFn):
  """Shard, ids of near duplicates → the tokenised Records of its documents.

  With `conversations` they are those of conversations.
  """

  def __init__(self, tokenizer: Tokenizer, options: TokenizeOptions, conversations: bool):
    self.tokenizer, self.options, self.conversations = tokenizer, options, conversations

  def setup(self):
    tokenizer = _open(self.tokenizer.path)
    if isinstance(tokenizer, tokenizers.Tokenizer):
      self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    else:
      self.encode = tokenizer.encode

  def process(self, shard: Shard, near: Collection[str]) -> Iterator[Record]:
    for row in records.read_shard(*shard):
      known = row['id'] in near
      held_out = is_validation(row['id'], self.options.holdout) and not known
      split = 'validation' if held_out else 'train'
      if split == 'train' and _thousandth(row['id'], 1) >= round(1000 * self.options.share):
        continue
      values = (self._conversation if self.conversations else self._document)(row)
      length = len(values['tokens']) // self.tokenizer.dtype.itemsize
      cluster_size = row['metadata'].get('cluster_size', 1)
      weight = rehydration_weight(cluster_size, row['language']) if self.options.rehydrate else 1
      data = records.encode('conversations' if self.conversations else 'tokenised', {
        'id': row['id'], 'source': row['source'], 'language': row['language'],
        'weight': float(weight), 'quality': row['quality'], 'cluster_size': cluster_size,
        'dump': row['metadata'].get('dump', ''), **values,
      })
      tally = [('documents', 1), ('tokens', length), ('bytes', values['num_bytes']),
               ('near_duplicates', int(known))]
      sidecars = [length] + [weight] * self.options.rehydrate
      if self.conversations:
        rejected = len(values['rejected_loss_mask'])
        sidecars.append(rejected)
        tally += [('trained_tokens', sum(values['loss_mask'])), ('pairs', int(rejected > 0)),
                  (('mode', values['mode']), 1)]
      yield Record(split, row['id'], data, tuple(tally), tuple(sidecars))

  def _document(self, row: Mapping[str, Any]) -> dict[str, Any]:
    prefix = [self.tokenizer.special.bos_id] if self.options.bos else []
    tokens = [*prefix, *self.encode(row['text']), self.tokenizer.special.eos_id]
    return {'tokens': self._bytes(tokens), 'num_bytes': len(row['text'].encode())}

  def _conversation(self, row: Mapping[str, Any]) -> dict[str, Any]:
    found = encode_conversation(
      row['metadata']['conversation'], row['id'], self.tokenizer.controls, self.encode,
      self.options.train_user)
    return found | {k: self._bytes(found[k]) for k in ('tokens', 'rejected_tokens')}

  def _bytes(self, ids: Sequence[int | None]) -> bytes:
    return np.array(ids, self.tokenizer.dtype).tobytes()


def encode_conversation(
  conversation: Mapping[str, Any], id: str, controls: Mapping[str, int],
  encode_text: Callable[[str], list[int]], train_user: bool = False,
) -> dict[str, Any]:
  """What a tokenised record says of a conversation: tokens as lists of ids, masks as bytes.

  Of a preference pair the prompt is not learned, up to where an answer is generated: the same ids
  in both, of which a mask has zeros. Its `num_bytes` are those that the model learns to write, in
  UTF-8, without control tokens: what bits per byte are over.
  """
  def encoded(rejected: bool) -> tuple[chat.Rendered, list[int], bytes]:
    rendered, prompt = chat.render_document(
      conversation, id, train_user=train_user, rejected=rejected)
    tokens, mask = chat.encode(rendered, controls, encode_text)
    if prompt:
      known = len(chat.encode(prompt, controls, encode_text)[0])
      mask[:known] = [False] * known
    return rendered, tokens, bytes(mask)

  rendered, tokens, mask = encoded(False)
  written = ''.join(s.text for s in rendered.segments if s.trained and not s.control)
  others = encoded(True)[1:] if 'rejected' in conversation else ([], b'')
  return {
    'tokens': tokens, 'loss_mask': mask, 'rejected_tokens': others[0],
    'rejected_loss_mask': others[1], 'mode': rendered.mode, 'num_bytes': len(written.encode())}


def _publish(element, *, path: str, manifest: dict[str, Any], splits: Sequence[str]) -> str:
  shards = list(element[1])
  conversations = manifest.get('loss_mask', False)
  counts = ('documents', 'tokens', 'bytes')
  if conversations:
    counts += ('trained_tokens', 'pairs')
    modes = records.add_tallies(shards)
    manifest = manifest | {'modes': {m: n for m in chat.MODES if (n := modes.get(('mode', m)))}}
  known = records.add_tallies(shards).get('near_duplicates', 0)
  by_split = {}
  for split in splits:
    total = records.add_tallies(s for s in shards if s['split'] == split)
    by_split[split] = {k: total.get(k, 0) for k in counts} | {
      'shards': records.shard_entries(shards, split)}
  totals = {k: sum(by_split[split][k] for split in splits) for k in counts}
  return records.publish(path, records.features_of(manifest), shards, manifest | totals | {
    'near_duplicates_not_held_out': known, 'splits': by_split})


def run(
  input: Sequence[str] | str, tokenizer: str, output: str, name: str,
  options: TokenizeOptions | None = None, *, against: Sequence[str] = (),
  beam_args: Sequence[str] = (),
) -> str:
  """Tokenises curated corpora into the corpus `output/name/1.0.0`.

  Args:
    input: the directory of a curated corpus, or several.
    tokenizer: a SentencePiece .model or a Hugging Face tokenizer.json.
    output: the parent directory of the result.
    name: the result's name.
    options: what each means is said in options.py. (EOS ends each document in any case;
      rehydration is stored as each document's `weight`, from clusters.REHYDRATION.)
    against: corpora that are trained on too, curated or tokenised by the same tokenizer: a document
      is not held out if its text is for the most part in theirs.
    beam_args: Beam's own flags, such as ['--runner=DataflowRunner', …].

  Returns:
    The directory of the finished corpus.

  Raises:
    ValueError: an input is missing, incomplete or empty, the tokenizer cannot be read or lacks a
      special token. Nothing has been written then.
  """
  options = options or TokenizeOptions()
  manifests = [records.read_manifest(path, 'curated')
               for path in ([input] if isinstance(input, str) else input)]
  for manifest in manifests:
    records.check_not_empty(manifest)
  if not manifests:
    raise CorpusError('no input: give the directory of a curated corpus')
  facts, conversations = load_tokenizer(tokenizer), _are_conversations(manifests)
  others = [records.read_manifest(path) for path in against] if options.asks else []
  for other in others:
    if other['kind'] == 'tokenised' and other['tokenizer_sha256'] != facts.sha256:
      raise CorpusError(f'{other["path"]!r} was tokenised by another file than {tokenizer!r}')
  if conversations:
    chat.control_ids(tokenizer, facts.controls.get)
  elif options.bos and facts.special.bos_id is None:
    raise ValueError(f'the tokenizer {tokenizer!r} has no begin-of-text token; say --no-bos')

  shards = {'train': options.num_shards}
  if options.holdout:
    shards['validation'] = max(1, math.ceil(options.num_shards * options.holdout))
  manifest = {
    'name': name, 'version': records.VERSION, 'kind': 'tokenised',
    'code_version': records.code_version(),
    'config': dataclasses.asdict(options),
    'inputs': [{k: m[k] for k in ('path', 'name', 'documents')} for m in manifests],
    'against': [{k: m[k] for k in ('path', 'name', 'documents')} for m in others],
    'tokenizer': os.path.basename(tokenizer), 'tokenizer_sha256': facts.sha256,
    'vocab_size': facts.vocab_size, 'bos': options.bos and not conversations,
    'dtype': facts.dtype.str, **facts.special._asdict(),
    **({'loss_mask': True, 'turn_id': facts.controls[chat.START],
        'end_id': facts.controls[chat.END]} if conversations else {}),
  }
  path = records.corpus_path(output, name)
  require_file_system(path)
  beam_options = pipeline_options(beam_args)
  records.log.info('tokenising %d documents', sum(m['documents'] for m in manifests))
  with beam.Pipeline(options=beam_options) as pipeline:
    parts = (
      pipeline
      | 'shards' >> beam.Create([s for m in manifests for s in _shards(m)])
      | beam.Reshuffle())
    near: Any = frozenset()
    if options.asks:
      candidates = sum(m.get('words', 0) for m in manifests) * options.holdout
      beside = (
        pipeline
        | 'other shards' >> beam.Create([s for m in others for s in _shards(m)])
        | 'spread' >> beam.Reshuffle())
      ids = _near_duplicates(parts, beside, tokenizer, options.holdout, options.holdout_shared,
                             max(1, math.ceil(candidates / _MOST_RUNS)))
      near = beam.pvalue.AsDict(ids | 'as keys' >> beam.Map(lambda id: (id, True)))
    tokenised = parts | 'tokenise' >> beam.ParDo(_Tokenize(facts, options, conversations), near)
    wanted = {'lengths': True, 'repeats': options.rehydrate, 'rejected_lengths': conversations}
    sidecars = [name for name in records.SIDECARS if wanted.get(name)]
    _ = (
      records.write_records(
        tokenised, output=output, name=name, shards=shards, sidecars=sidecars)
      | 'one' >> beam.Map(lambda shard: (None, shard))
      | beam.GroupByKey()
      | 'publish' >> beam.Map(_publish, path=path, manifest=manifest, splits=tuple(shards)))
  return path


def _are_conversations(manifests: Sequence[Mapping[str, Any]]) -> bool:
  """Whether curated corpora are of conversations; CorpusError where only some are."""
  kinds = {'conversation' in next(records.read_corpus(m['path']))['metadata']: m['name']
           for m in manifests}
  if len(kinds) > 1:
    raise CorpusError(
      f'{kinds[True]!r} is of conversations, {kinds[False]!r} of documents: tokenise them apart')
  return next(iter(kinds))


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = Parser(
    prog='python -m data_beam.tokenize_corpus', others=is_beams,
    description='Turns curated corpora into a corpus of token ids, ready for training.',
    epilog='Any other flag goes to Apache Beam: --runner=DataflowRunner --project=…, or '
           '--direct_running_mode=multi_processing --direct_num_workers=8 on one machine.')
  parser.add_argument('--input', required=True, nargs='+', action='extend', metavar='CORPUS',
                      help='directory of a curated corpus, DIR/NAME/1.0.0; may be repeated')
  parser.add_argument('--tokenizer', required=True, metavar='FILE',
                      help='a SentencePiece .model, or a Hugging Face tokenizer.json')
  parser.add_argument('--output', required=True, metavar='DIR',
                      help='where the corpus goes: DIR/NAME/1.0.0 (local, gs://, s3://)')
  parser.add_argument('--name', help="the corpus's name (default: that of the first input)")
  parser.add_argument('--against', default=[], nargs='+', action='extend', metavar='CORPUS',
                      help='corpora that are trained on too, curated or tokenised alike: what is '
                      'for the most part in them is not held out')
  options_lib.add_flags(parser, TokenizeOptions)
  args, beam_args = parser.parse_known_args(argv)
  try:
    name = args.name or records.read_manifest(args.input[0], 'curated')['name']
    with explained(beam_args):
      path = run(args.input, args.tokenizer, args.output, name,
                 options_lib.take(TokenizeOptions, vars(args)), against=args.against,
                 beam_args=beam_args)
  except (ValueError, OSError) as error:
    sys.exit(complain('error', error))
  manifest = records.read_manifest(path)
  print(f'{manifest["documents"]} documents, {manifest["tokens"]} tokens '
        f'({manifest["bytes"] / max(1, manifest["tokens"]):.2f} bytes per token): {path}')


if __name__ == '__main__':
  logging.basicConfig(format='%(message)s', force=True)
  records.log.setLevel(logging.INFO)
  main()
