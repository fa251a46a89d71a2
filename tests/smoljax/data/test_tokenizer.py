"""Tokenizers: exact round trips, exact export, deterministic training, clear refusals."""

import json
import pathlib
import pickle
import random

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from data_beam import tokenize_corpus
from smoljax.data import tokenizer

CODE = '''def area(width, height=2.50):
    """Multiply; see PEP 8 (2001).

    Returns:
\tthe area.
    """
    if width == 10 or height != 1024:
        return  width * height


class Box:  # a  comment
        pass
'''
HARD = (
  *('', ' ', '  two  spaces  ', ' def', '\n', '\n\n\n', '\t\tx\t', 'a\0b', 'e\u0301\r\n\x0b'),
  *('🙂👩\u200d👩\u200d👧', '日本語 ὀδός', '\u2585\u2047', 'x == 1234567890', CODE),
  '<s></s><pad><unk><0x0A>',
)


def corpus(seed: int = 0) -> list[str]:
  rng = random.Random(seed)
  words = ['the', 'of', 'parameter', 'returns', 'value', 'list', 'window', 'width', 'None', 'True']
  prose = [
    '\n'.join(' '.join(rng.choices(words, k=12)) + '.' for _ in range(rng.randint(1, 20)))
    for _ in range(60)
  ]
  return prose + [CODE * 3, 'naïve café £5 — “quoted”\n' * 20]


@pytest.fixture(scope='module')
def model_path(tmp_path_factory) -> str:
  path = str(tmp_path_factory.mktemp('tokenizer') / 'tokenizer.model')
  tokenizer.train(corpus(), path, vocab_size=400)
  return path


@pytest.fixture(scope='module')
def hf_folder(model_path, tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp('hf'))
  tokenizer.to_hf(model_path, folder, bos=False, max_length=512)
  return folder


def test_ids_are_as_documented(model_path):
  text = tokenizer.load(model_path)
  assert (text.pad_id, text.bos_id, text.eos_id, text.vocab_size) == (0, 2, 3, 400)
  sp = sentencepiece.SentencePieceProcessor(model_file=model_path)
  assert [sp.id_to_piece(i) for i in range(5)] == ['<pad>', '<unk>', '<s>', '</s>', '<0x00>']
  assert sp.unk_id() == 1 and all(sp.is_byte(i) for i in range(4, 260))


@pytest.mark.parametrize('text', HARD)
def test_round_trip(model_path, text):
  ids = tokenizer.load(model_path).encode(text)
  assert tokenizer.load(model_path).decode(ids) == text
  assert not {0, 1, 2, 3} & set(ids)  # text is data, whatever it says


def test_layout_and_digits_have_fitting_pieces(model_path):
  text = tokenizer.load(model_path)
  sp = sentencepiece.SentencePieceProcessor(model_file=model_path)
  assert len(text.encode('        ')) == 1, 'indentation of 8'
  assert len(text.encode('.\n')) <= 2 and sp.piece_to_id('\n') != sp.unk_id()
  assert len(text.encode('1024')) == 4, 'digits one by one'


def test_control_tokens_decode_to_nothing(model_path, hf_folder):
  for text in (tokenizer.load(model_path), tokenizer.load(hf_folder)):
    assert text.decode([2, *text.encode('a b'), 3, 0, 0]) == 'a b'


def test_half_a_surrogate_pair_is_told(model_path, hf_folder):
  for path in (model_path, hf_folder):
    with pytest.raises(ValueError, match=r"x \\ud83d' ends in half a surrogate pair"):
      tokenizer.load(path).encode('x \ud83d y')


def test_ids_beyond_the_tokenizer_decode_to_nothing(model_path, hf_folder):
  """A model's vocabulary may be padded beyond its tokenizer's."""
  for path in (model_path, hf_folder):
    text = tokenizer.load(str(path))
    ids = text.encode('return 12')
    assert text.decode([*ids, text.vocab_size, 10**6, *ids]) == 'return 12return 12'


def test_long_documents_are_used_whole(tmp_path):
  """Nothing is dropped for its length, newlines neither: only the last words repeat here."""
  noise = random.Random(0)
  filler = ''.join(noise.choices('abcdefgh \n', k=60_000))
  path = str(tmp_path / 'long.model')
  tokenizer.train([filler + '\nzyxwzyxw\n' * 2000], path, vocab_size=340)
  pieces = sentencepiece.SentencePieceProcessor(model_file=path)
  assert pieces.piece_to_id('zyxwzyxw') != pieces.unk_id()
  assert pieces.piece_to_id('\n') != pieces.unk_id()


def test_a_reserved_character_costs_no_text(tmp_path):
  # SentencePiece drops whole training sentences that contain U+2585.
  path = str(tmp_path / 'reserved.model')
  tokenizer.train(['progress ▅▅▅ progress done '] * 50, path, vocab_size=275)
  assert len(tokenizer.load(path).encode(' progress')) < 6


def test_training_depends_on_the_set_of_texts_alone(tmp_path):
  texts = corpus()
  outputs = []
  for name, order in (('a.model', texts), ('elsewhere.model', texts[::-1])):
    for max_bytes in (10**6, 3000):
      tokenizer.train(order, str(tmp_path / name), vocab_size=320, max_bytes=max_bytes)
      outputs.append((tmp_path / name).read_bytes())
  assert outputs[0] == outputs[2] and outputs[1] == outputs[3] and outputs[0] != outputs[1]


@given(st.lists(st.text(max_size=40)), st.integers(1, 400), st.integers(0, 3))
def test_sample_is_bounded_and_full(texts, max_bytes, seed):
  kept = tokenizer._sample(texts, seed, max_bytes)
  size = sum(len(t.encode()) for t in kept)
  total = sum(len(t.replace('\u2585', ' ').encode()) for t in texts)
  assert min(total, max_bytes) - 3 <= size <= max_bytes  # a cut may fall inside a character


def test_vocabulary_larger_than_the_text_supports(tmp_path):
  texts = corpus()[-2:]
  with pytest.raises(ValueError, match=r'9,999.*--config\.tokenizer\.vocab_size=(\d+)') as e:
    tokenizer.train(texts, str(tmp_path / 'x.model'), vocab_size=9999)
  assert '\n' not in str(e.value) and not list(tmp_path.iterdir())
  most = int(str(e.value).rsplit('=', 1)[1].split()[0])
  tokenizer.train(texts, str(tmp_path / 'most.model'), vocab_size=most)  # the number is true
  with pytest.raises(ValueError, match='larger'):
    tokenizer.train(texts, str(tmp_path / 'x.model'), vocab_size=most + 1)


def test_vocabulary_too_small_or_no_text(tmp_path):
  with pytest.raises(ValueError, match=r'too small.*vocab_size=\d+ or more') as e:
    tokenizer.train(corpus(), str(tmp_path / 'x.model'), vocab_size=200)
  least = int(str(e.value).rsplit('=', 1)[1].split()[0])
  tokenizer.train(corpus(), str(tmp_path / 'least.model'), vocab_size=least)
  with pytest.raises(ValueError, match='no text'):
    tokenizer.train(['', ' \n'], str(tmp_path / 'x.model'), vocab_size=300)


def test_load_is_lazy_pickles_and_refuses(model_path, hf_folder, tmp_path):
  for path in (model_path, hf_folder):
    text = tokenizer.load(path)
    ids = text.encode(CODE)
    assert pickle.loads(pickle.dumps(text)).encode(CODE) == ids
    assert len(pickle.dumps(text)) < 1000
  with pytest.raises(FileNotFoundError, match='no tokenizer in'):
    tokenizer.load(str(tmp_path))
  with pytest.raises(FileNotFoundError, match='nowhere'):
    tokenizer.load('nowhere.model')
  for name in ('broken.model', 'broken.json'):
    (tmp_path / name).write_bytes(b'not a model')
    with pytest.raises(ValueError, match='no tokenizer that can be read'):
      tokenizer.load(str(tmp_path / name)).encode('a')


# --- Export --------------------------------------------------------------------------------------

texts = st.one_of(
  st.text(max_size=60),
  st.text(alphabet='the ofparmrtun=1.0\n\t ()"▅🙂é', max_size=120),
  st.lists(
    st.sampled_from(['    ', '\n', 'def ', 'value', '):\n', ' ', '\t', 'the', '</s>', '7', '日']),
    max_size=30,
  ).map(''.join),
)


def test_export_encodes_and_decodes_alike(model_path, hf_folder):
  sp, hf = tokenizer.load(model_path), tokenizer.load(hf_folder)
  assert (hf.bos_id, hf.eos_id, hf.pad_id, hf.vocab_size) == (2, 3, 0, 400)

  @given(texts)
  @example('\u2581')
  def alike(text):
    ids = sp.encode(text)
    assert hf.encode(text) == ids
    assert hf.decode(ids) == sp.decode(ids) == text.replace('\u2581', ' ')

  alike()
  for text in HARD:
    assert hf.encode(text) == sp.encode(text)


@given(
  st.lists(st.text(alphabet='ab', min_size=3, max_size=30), min_size=4, max_size=12),
  st.lists(st.text(alphabet='ab \n', max_size=40), min_size=1, max_size=8),
)
def test_export_keeps_merge_order_on_repetitive_text(tmp_path_factory, words, probes):
  """Two letters: most pieces can be put together in several ways, in overlapping places."""
  folder = tmp_path_factory.mktemp('ab')
  path = str(folder / 'ab.model')
  for size in (300, 280, 268):
    try:
      tokenizer.train([' '.join(words * 3)], path, vocab_size=size)
      break
    except ValueError:
      continue
  else:
    return
  tokenizer.to_hf(path, str(folder), bos=True, max_length=64)
  sp, hf = tokenizer.load(path), tokenizer.load(str(folder / 'tokenizer.json'))
  for text in (*probes, *words, ''.join(words), 'ab' * 50, 'aab' * 40, 'b' * 33):
    assert hf.encode(text) == sp.encode(text)


@pytest.mark.parametrize('bos', [False, True])
def test_transformers_reads_the_export(model_path, tmp_path, bos):
  transformers = pytest.importorskip('transformers')
  tokenizer.to_hf(model_path, str(tmp_path), bos=bos, max_length=512)
  # Beside a model's config AutoTokenizer decides by that: the whole export must work.
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'smollm3'}))
  sp, hf = tokenizer.load(model_path), transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  start = [2] if bos else []
  for text in (*HARD, *corpus()):
    ids = sp.encode(text)
    assert hf(text)['input_ids'] == start + ids
    assert hf.decode(ids) == sp.decode(ids) == text
    assert hf.decode([*start, *ids, 3], skip_special_tokens=True) == text
  assert (hf.bos_token_id, hf.eos_token_id, hf.pad_token_id) == (2, 3, 0)
  assert hf.model_max_length == 512 and len(hf) == 400
  assert tokenizer.load(str(tmp_path)).adds_bos is bos


def test_export_on_real_text(shared_data, tmp_path):
  real = (shared_data / 'text/wikitext-2-valid.txt').read_text()
  real = [real[i : i + 5000] for i in range(0, 300_000, 5000)]
  path = str(tmp_path / 'real.model')
  tokenizer.train(real, path, vocab_size=2048)
  tokenizer.to_hf(path, str(tmp_path), bos=False, max_length=512)
  sp, hf = tokenizer.load(path), tokenizer.load(str(tmp_path / 'tokenizer.json'))
  source = pathlib.Path(tokenizer.__file__).read_text().replace('\u2581', '_')
  for text in (*real, source):
    ids = sp.encode(text)
    assert hf.encode(text) == ids and sp.decode(ids) == hf.decode(ids) == text


def test_export_of_a_hugging_face_tokenizer(hf_folder, tmp_path):
  first, second = tokenizer.load(hf_folder), str(tmp_path / 'again')
  tokenizer.to_hf(first.path, second, bos=True, max_length=77)
  again = tokenizer.load(second)
  assert again.adds_bos and not first.adds_bos
  assert all(again.encode(t) == first.encode(t) for t in HARD)
  assert (again.bos_id, again.eos_id, again.pad_id) == (2, 3, 0)


def test_export_refuses_what_it_cannot_keep(tmp_path):
  prefix = str(tmp_path / 'unigram')
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus()), model_prefix=prefix, vocab_size=70, model_type='unigram',
    minloglevel=2,
  )  # fmt: skip
  with pytest.raises(ValueError, match='cannot be exported exactly'):
    tokenizer.to_hf(prefix + '.model', str(tmp_path / 'out'), bos=False, max_length=64)
  assert not (tmp_path / 'out').exists()


def test_a_damaged_file_is_told_by_its_checksum(model_path, tmp_path):
  """It reads, and gives other ids; so does a digit in a score."""
  path, data = tmp_path / 'tokenizer.model', bytearray(pathlib.Path(model_path).read_bytes())
  good = pathlib.Path(f'{model_path}.sha256').read_text()
  data[data.index(b'value')] ^= 1
  path.write_bytes(data)
  assert tokenizer.load(str(path)).vocab_size == 400  # nobody knows
  (tmp_path / 'tokenizer.model.sha256').write_text(good)
  with pytest.raises(ValueError, match=r'tokenizer\.model is damaged, or another one'):
    tokenizer.load(str(path)).encode('value')
  with pytest.raises(ValueError, match=r'tokenizer\.model. is damaged'):
    tokenize_corpus.load_tokenizer(str(path))
  (tmp_path / 'tokenizer.model.sha256').unlink()
  with pytest.raises(ValueError, match='the one its corpora were tokenised with'):
    tokenizer.load(str(path), sha256=good).encode('value')
  path.write_bytes(pathlib.Path(model_path).read_bytes())
  assert tokenizer.load(str(path), sha256=good).encode('value')
