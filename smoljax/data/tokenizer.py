"""Text ↔ token ids: SentencePiece for tokenizers we train, Hugging Face files for released ones.

A trained tokenizer is a byte-fallback BPE that changes nothing about the text: no normalisation, no
added or removed spaces; digits one by one; newlines, tabs and indentation are ordinary characters
that merge like others ('):\n', '▁▁▁▁'). What is outside its alphabet becomes UTF-8 bytes, so
every text can be encoded, and decoding gives it back. The one exception is U+2581 '▁', which
SentencePiece itself uses for a space and decodes as one.

Ids of a trained tokenizer: 0 `<pad>`, 1 `<unk>` (never produced), 2 `<s>` begin of document,
3 `</s>` end of document, then further control tokens (a chat template's) where asked for, the 256
bytes (4–259 without those), then merged pieces in order of their rank, then single
characters. Text is data: `</s>` written in a document is four characters, never the control token.
"""

import functools
import hashlib
import heapq
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import sentencepiece
import tokenizers

from data_beam.special_tokens import SpecialTokens, decide, entries, text_of
from smoljax import files

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3

_SPACE = '\u2581'  # how SentencePiece writes a space

# The trainer takes "sentences", drops those over a length, and strips newlines at their ends: so it
# is given long stretches of a document, newlines inside, cut before white space where possible.
_STRETCH = re.compile(r'.{1,2000}(?!\S)|.{1,2000}', re.DOTALL)


def train(
  texts: Iterable[str],
  path: str,
  *,
  vocab_size: int,
  seed: int = 0,
  max_bytes: int = 20_000_000,
  control: Sequence[str] = (),
) -> None:
  """Trains a SentencePiece BPE model on `texts` and writes it to `path` (`….model`).

  The file depends on the set of texts and the arguments alone: neither on the order of the texts
  nor on threads or paths. Of more than `max_bytes` of text (UTF-8), a sample of documents is used,
  chosen by a hash of `seed` and their text; memory stays near `max_bytes`. `control` are further
  control tokens, such as a chat template's. `path`.sha256 is written too.

  Raises:
    ValueError: there is no text, or it supports fewer (or needs more) than `vocab_size` pieces.
  """
  if max_bytes < 1:
    raise ValueError(f'max_bytes={max_bytes}: the tokenizer needs text to train on')
  stretches = [
    s for text in _sample(texts, seed, max_bytes) for s in _STRETCH.findall(text) if s.strip()
  ]
  if not stretches:
    raise ValueError('the tokenizer has no text to train on: every document is empty')
  model = io.BytesIO()  # a file name given to the trainer would become part of the model's bytes
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(stretches),
      model_writer=model,
      model_type='bpe',
      vocab_size=vocab_size,
      byte_fallback=True,
      character_coverage=0.9995,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      split_digits=True,
      max_sentence_length=1 << 14,  # bytes; a stretch has at most 8,000
      pad_id=PAD_ID,
      unk_id=UNK_ID,
      bos_id=BOS_ID,
      eos_id=EOS_ID,
      control_symbols=list(control),
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as e:
    if found := re.search(r'value <= (\d+)', str(e)):
      raise ValueError(
        f'a vocabulary of {vocab_size:,} is larger than the text supports (at most {found[1]}): '
        f'give it more text, or --config.tokenizer.vocab_size={found[1]} or less'
      ) from None
    if found := re.search(r'(\d+) vs (\d+)\. Increase vocab_size', str(e)):
      raise ValueError(
        f'a vocabulary of {vocab_size:,} is too small for the {found[2]} characters and bytes '
        f'that the text needs: --config.tokenizer.vocab_size={found[2]} or more'
      ) from None
    raise
  # Of a damaged model nothing else would tell: it reads, and gives other ids.
  files.write(f'{path}.sha256', hashlib.sha256(model.getvalue()).hexdigest().encode())
  files.write(path, model.getvalue())


def _sample(texts: Iterable[str], seed: int, max_bytes: int) -> list[str]:
  """The documents of the smallest keyed hashes, `max_bytes` of them; the last one may be cut."""
  kept: list[tuple[int, str, int]] = []  # a heap, largest hash first
  total = 0
  for text in texts:
    # U+2585 marks rare characters inside the trainer, which skips stretches that contain it.
    text = text.replace('\u2585', ' ')
    data = text.encode()
    key = int.from_bytes(hashlib.sha256(b'%d/' % seed + data).digest()[:8])
    heapq.heappush(kept, (-key, text, len(data)))
    total += len(data)
    while total - kept[0][2] >= max_bytes:
      total -= heapq.heappop(kept)[2]
  kept.sort(reverse=True)
  if total > max_bytes:
    key, text, size = kept.pop()
    room = max_bytes - (total - size)
    kept.append((key, text.encode()[:room].decode(errors='ignore'), room))
  return [text for _, text, _ in kept]


class Tokenizer:
  """A tokenizer file, loaded on first use; pickles as its path and the ids that were given.

  The file must be as the checksum says that is given, or else that of a FILE.sha256 beside it.

  Attributes:
    path: the SentencePiece `.model` or Hugging Face `tokenizer.json`.
    vocab_size: one more than the largest id.
    special: ids of its special tokens: those given, such as by the corpora of a run; what is not
      given is decided as they decide it (data_beam/special_tokens.py).
    bos_id, eos_id, pad_id: the same, each None where there is no such token.
    adds_bos: its users expect BOS before a text; None where the file does not say (`.model`).
  """

  def __init__(
    self, path: str, special: Mapping[str, int | None] | None = None, sha256: str = ''
  ):
    self.path, self._given, self._sha256 = path, dict(special or {}), sha256

  def __repr__(self) -> str:
    return f'Tokenizer({self.path!r})'

  def __getstate__(self) -> dict:
    return {'path': self.path, '_given': self._given, '_sha256': self._sha256}

  @functools.cached_property
  def _model(self) -> 'sentencepiece.SentencePieceProcessor | _HuggingFace':
    beside = _sibling_reader(self.path)(f'{os.path.basename(self.path)}.sha256') or b''
    wanted = self._sha256 or beside.decode('ascii', 'replace').strip()
    if wanted and wanted != files.sha256(self.path):
      whose = 'the one its corpora were tokenised with' if self._sha256 else 'as FILE.sha256 says'
      raise ValueError(f'{self.path} is damaged, or another one: it is not {whose}')
    try:
      if self.path.endswith('.json'):
        return _HuggingFace(self.path)
      return sentencepiece.SentencePieceProcessor(model_file=self.path)
    except Exception as e:  # both libraries raise bare Exception or RuntimeError
      raise ValueError(f'{self.path} is no tokenizer that can be read: {e}') from None

  def encode(self, text: str) -> list[int]:
    """Ids of `text` alone: no BOS or EOS is added, and control tokens are not looked for in it.

    Raises ValueError for half a surrogate pair, which JSON and command lines can hold.
    """
    try:
      return self._model.encode(text)
    except (TypeError, RuntimeError):  # what the libraries say of it
      if half := re.search('[\ud800-\udfff]', text):
        raise ValueError(f'{text[max(0, half.start() - 20):half.end()]!a} ends in half a surrogate '
                         'pair, which is no Unicode text: take it out') from None
      raise

  @functools.cached_property
  def controls(self) -> dict[str, int]:
    """The control tokens by how they are spelt; `encode` never gives them."""
    model = self._model
    if isinstance(model, _HuggingFace):
      return model.controls()
    return {model.id_to_piece(i): i for i in range(self.vocab_size) if model.is_control(i)}

  def control_id(self, token: str) -> int | None:
    """Id of the control token spelt `token`; None if there is none."""
    return self.controls.get(token)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of `ids`; bytes that are not UTF-8 give U+FFFD, control tokens and ids beyond the
    tokenizer (a model's vocabulary may be padded) nothing."""
    ids = [int(i) for i in ids]
    if not isinstance(self._model, _HuggingFace):  # which passes over them itself
      ids = [i for i in ids if i < self.vocab_size]
    return self._model.decode(ids)

  @property
  def vocab_size(self) -> int:
    """How many ids there are, control pieces included."""
    return self._model.vocab_size()

  @property
  def pieces(self) -> list[str | None]:
    """The piece of each id, by which two files can be compared; None where an id has none."""
    if isinstance(self._model, _HuggingFace):
      return [self._model.tokenizer.id_to_token(i) for i in range(self.vocab_size)]
    return [self._model.id_to_piece(i) for i in range(self.vocab_size)]

  @functools.cached_property
  def special(self) -> SpecialTokens:
    """The ids of BOS, EOS and pad: those that were given, or by the one rule of special_tokens."""
    model = self._model
    file = model.tokenizer if isinstance(model, _HuggingFace) else model
    return decide(file, _sibling_reader(self.path))._replace(**self._given)

  @property
  def bos_id(self) -> int | None:
    """Begins a document; None where there is no such token."""
    return self.special.bos_id

  @property
  def eos_id(self) -> int | None:
    """Ends a document; None where there is no such token."""
    return self.special.eos_id

  @property
  def pad_id(self) -> int | None:
    """Fills rows up; None where there is no such token."""
    return self.special.pad_id

  @property
  def adds_bos(self) -> bool | None:
    """Whether its users expect BOS before a text; None where the file does not say (`.model`)."""
    if not isinstance(self._model, _HuggingFace):
      return None
    first = self._model.tokenizer.encode('').ids[:1]
    return self.bos_id is not None and first == [self.bos_id]


def require_same(
  theirs: str, ours: str, whose: str = 'the teacher',
  why: str = 'a teacher’s distribution is over its own tokens',
) -> None:
  """Raises ValueError unless two tokenizer files give every id the same piece.

  Args:
    theirs, ours: the files, of another model and of the one that is trained.
    whose, why: whose the former is, and why the two must be the same.
  """
  pieces, own = load(theirs).pieces, load(ours).pieces
  if pieces == own:
    return
  different = [i for i, (a, b) in enumerate(zip(pieces, own, strict=False)) if a != b]
  what = f'{len(pieces):,} pieces against {len(own):,}'
  if different:
    i = different[0]
    what += f', id {i} is {pieces[i]!r} against {own[i]!r} ({len(different):,} differ)'
  raise ValueError(
    f'the tokenizer of {whose}, {theirs}, is not {ours}: {what}. As {why}, train with it: '
    f'--config.tokenizer.path={theirs}')


def _sibling_reader(path: str) -> Callable[[str], bytes | None]:
  """Reads files that stand beside `path`, by their names."""
  def read(name: str) -> bytes | None:
    try:
      with open(os.path.join(os.path.dirname(path), name), 'rb') as f:
        return f.read()
    except FileNotFoundError:
      return None
  return read


class _HuggingFace:
  """`tokenizer.json` behind the methods of a SentencePieceProcessor that `Tokenizer` uses."""

  def __init__(self, path: str):
    self.tokenizer = tokenizers.Tokenizer.from_file(path)
    self.tokenizer.no_truncation()
    self.tokenizer.no_padding()
    self.tokenizer.encode_special_tokens = True  # as plain text

  def encode(self, text: str) -> list[int]:
    return self.tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: list[int]) -> str:
    return self.tokenizer.decode(ids, skip_special_tokens=True)

  def controls(self) -> dict[str, int]:
    added = self.tokenizer.get_added_tokens_decoder()
    return {t.content: i for i, t in added.items() if t.special}

  def vocab_size(self) -> int:
    return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def load(
  path: str, special: Mapping[str, int | None] | None = None, sha256: str = ''
) -> Tokenizer:
  """The tokenizer at `path`: a SentencePiece `.model`, a `tokenizer.json`, or a folder with one.

  Args:
    path: of the file or folder.
    special: the ids that a run's corpora were tokenised with, which go before the file's.
    sha256: of the file that they were tokenised with.

  Raises:
    FileNotFoundError: there is none; the message says what was looked for.
  """
  if os.path.isdir(path):
    names = ('tokenizer.json', 'tokenizer.model')
    found = [p for n in names if os.path.exists(p := os.path.join(path, n))]
    if not found:
      raise FileNotFoundError(f'no tokenizer in {path}: it has neither of {", ".join(names)}')
    return Tokenizer(found[0], special, sha256)
  if not os.path.exists(path):
    raise FileNotFoundError(f'no tokenizer at {path}: give a .model, a tokenizer.json or a folder')
  return Tokenizer(path, special, sha256)


def to_hf(
  text: Tokenizer | str, output_dir: str, *, bos: bool, max_length: int, chat_template: str = ''
) -> None:
  """Writes the tokenizer files that `transformers.AutoTokenizer.from_pretrained` reads.

  A SentencePiece BPE model becomes a Hugging Face tokenizer that encodes exactly alike, and decodes
  exactly what a text encodes to. (For ids that no text encodes to, the two libraries place U+FFFD
  differently.) A `tokenizer.json` is written again with what stands beside it.

  Args:
    text: the tokenizer, or its file; what is written names its special tokens.
    bos: documents began with BOS in training, so the exported tokenizer prepends it to a text.
    max_length: context length the model was trained for, in tokens.
    chat_template: Jinja text for chat_template.jinja (`chat.template`) instead of the one that
      stands beside a tokenizer.json. Control tokens are then read in a text, as transformers
      encodes rendered conversations.
  Raises:
    ValueError: the model is not a plain BPE with byte fallback, so it cannot be exported exactly;
      or it has no BOS token to prepend.
  """
  text = Tokenizer(text) if isinstance(text, str) else text
  beside = None
  if text.path.endswith('.json'):
    hf = _HuggingFace(text.path).tokenizer
    hf.encode_special_tokens = False
    named = {k: v for k, v in entries(_sibling_reader(text.path)).items() if v is not None}
    beside = _sibling_reader(text.path)('chat_template.jinja')
  else:
    hf, named = _from_sentencepiece(text.path)
  for field, i in text.special._asdict().items():
    name = f'{field.removesuffix("_id")}_token'
    token = None if i is None else hf.id_to_token(i)
    if text_of(named.get(name)) != token or token is None:  # an entry may say more of its token
      named[name] = token
  token = text_of(named.get('bos_token'))
  if bos and token is None:
    raise ValueError(f'{text.path} has no BOS token: use --config.tokenize.bos=False')
  if hf.encode('').ids != ([hf.token_to_id(token)] if bos else []):
    start = f'{token} ' if bos else ''
    hf.post_processor = tokenizers.processors.TemplateProcessing(
      single=f'{start}$A',
      pair=f'{start}$A $B:1',
      special_tokens=[(token, hf.token_to_id(token))] if bos else [],
    )
  os.makedirs(output_dir, exist_ok=True)
  hf.save(os.path.join(output_dir, 'tokenizer.json'))
  tokenizer_config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    'model_input_names': ['input_ids', 'attention_mask'],
    **named,
    'model_max_length': max_length,
  }
  if chat_template:
    tokenizer_config['split_special_tokens'] = False
    beside = chat_template.encode()
  if beside is not None:
    with open(os.path.join(output_dir, 'chat_template.jinja'), 'wb') as f:
      f.write(beside)
  names = ('bos_token', 'eos_token', 'unk_token', 'pad_token')
  for name, content in (
    ('tokenizer_config.json', tokenizer_config),
    ('special_tokens_map.json', {k: named[k] for k in names if named.get(k)}),
  ):
    with open(os.path.join(output_dir, name), 'w', encoding='utf-8') as f:
      json.dump(content, f, indent=2, ensure_ascii=False)
      f.write('\n')


def _from_sentencepiece(path: str) -> tuple[tokenizers.Tokenizer, dict]:
  """The Hugging Face equal of a SentencePiece BPE model, and its entries for the config."""
  sp = sentencepiece.SentencePieceProcessor(model_file=path)
  ids = range(sp.vocab_size())
  pieces = [sp.id_to_piece(i) for i in ids]
  hf = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={piece: i for i, piece in enumerate(pieces)},
      merges=_merges(sp),
      unk_token=pieces[sp.unk_id()],
      byte_fallback=True,
    )
  )
  hf.normalizer = tokenizers.normalizers.Replace(' ', _SPACE)
  hf.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace(_SPACE, ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
    ]
  )
  control = [pieces[i] for i in ids if sp.is_control(i) or sp.is_unknown(i)]
  hf.add_special_tokens([tokenizers.AddedToken(p, normalized=False) for p in control])
  # A last look before anything is written: every piece, side by side with its neighbours.
  probe = sp.decode([i for i in ids if not sp.is_byte(i)]) + ' \0\t\n\n  0123 é 日本 🙂 <s></s>'
  hf.encode_special_tokens = True
  if hf.encode(probe, add_special_tokens=False).ids != sp.encode(probe):
    raise ValueError(
      f'{path} cannot be exported exactly: only BPE with byte fallback, identity normalisation '
      'and no dummy prefix can (as smoljax.tokenizer.train makes it)'
    )
  # Control tokens written in a text are plain text.
  return hf, {'unk_token': pieces[sp.unk_id()], 'split_special_tokens': True}


def _merges(sp: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
  """The merges that SentencePiece's BPE does, best first.

  SentencePiece merges any two neighbours whose concatenation is a piece, the piece of the highest
  score first and the leftmost first among equals; Hugging Face merges listed pairs, the earliest in
  the list first, then the leftmost. So every split of a piece into two pieces is listed, in order
  of the piece's score. (Splits of one piece are equals there and ordered here. That could matter
  only where two of them overlap, as x·y·z with xy = yz; merging does not lead to such neighbours
  as far as searching finds, and `to_hf` compares before it writes.)
  """
  normal = {
    sp.id_to_piece(i)
    for i in range(sp.vocab_size())
    if not (sp.is_control(i) or sp.is_unknown(i) or sp.is_byte(i) or sp.is_unused(i))
  }
  by_score = sorted(normal, key=lambda p: (-sp.get_score(sp.piece_to_id(p)), p))
  return [
    (piece[:i], piece[i:])
    for piece in by_score
    for i in range(1, len(piece))
    if piece[:i] in normal and piece[i:] in normal
  ]
