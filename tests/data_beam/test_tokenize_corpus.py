import json
import shutil

import numpy as np
import pytest
import sentencepiece
import tokenizers
from helpers.stores import ill, store  # noqa: F401
from helpers.tokenised import corpus, folder, model, texts, tokenised, write_corpus  # noqa: F401 (fixtures)

from data_beam import records, tokenize_corpus
from data_beam.options import TokenizeOptions
from smoljax.data.corpus import open_corpus, read_manifest
from smoljax.evals.held_out import load_held_out


def all_rows(path):
  splits = records.read_manifest(str(path))['splits']
  return {split: list(records.read_corpus(str(path), split)) for split in splits}


def test_tokens_are_the_texts(tokenised, texts, model):
  processor = sentencepiece.SentencePieceProcessor(model_file=model)
  splits = all_rows(tokenised)
  seen = []
  for split, rows in splits.items():
    for row in rows:
      assert (split == 'validation') == tokenize_corpus.is_validation(row['id'], 0.2)
      tokens = np.frombuffer(row['tokens'], '<u2').tolist()
      text = texts[int(row['id'].removeprefix('web-'))]
      assert tokens == [2, *processor.encode(text), 3]
      assert processor.decode(tokens[1:-1]) == text
      assert row['num_bytes'] == len(text.encode())
      seen.append(row['id'])
  assert sorted(seen) == sorted(f'web-{i}' for i in range(len(texts)))
  row = splits['train'][0]
  del row['id'], row['tokens'], row['num_bytes']
  assert row == {'source': 'web', 'language': 'en', 'weight': 1.0, 'quality': 0.25,
                 'cluster_size': 1, 'dump': ''}


def test_manifest_and_lengths(tokenised, texts):
  manifest = records.read_manifest(str(tokenised), 'tokenised')
  expected = {'dtype': '<u2', 'vocab_size': 320, 'bos': True, 'bos_id': 2, 'eos_id': 3,
              'pad_id': None, 'name': 'web'}
  assert {k: manifest[k] for k in expected} == expected
  assert (manifest['documents'], manifest['bytes']) == (
    120, sum(len(text.encode()) for text in texts))
  assert [len(s['shards']) for s in manifest['splits'].values()] == [3, 1]
  for split in manifest['splits'].values():
    assert split['documents'] == sum(s['records'] for s in split['shards'])
    lengths = []
    for shard in split['shards']:
      stored = np.load(tokenised / shard['lengths'], allow_pickle=False)
      rows = records.read_shard(str(tokenised / shard['file']), shard['records'], 'tokenised')
      assert stored.dtype == np.int32
      assert stored.tolist() == [len(row['tokens']) // 2 for row in rows]
      lengths += stored.tolist()
    assert split['tokens'] == sum(lengths)


def test_holdout_share_and_no_holdout():
  ids = [f'<urn:{i}>' for i in range(5000)]
  held = [i for i in ids if tokenize_corpus.is_validation(i, 0.02)]
  assert 60 < len(held) < 140  # four standard deviations
  assert set(held) < {i for i in ids if tokenize_corpus.is_validation(i, 0.05)}
  assert not any(tokenize_corpus.is_validation(i, 0) for i in ids)


def huggingface_tokenizer(folder, config=None, size=0):
  vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*'abc', 'unk', '<', '>', 'eot']))}
  vocabulary |= {f'w{i}': len(vocabulary) + i for i in range(size)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='unk'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(['<|endoftext|>', '<eot>', '<bot>'])
  tokenizer.enable_truncation(2)
  folder.mkdir()
  tokenizer.save(str(folder / 'tokenizer.json'))
  if config:
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return str(folder / 'tokenizer.json'), tokenizer


def test_huggingface_tokenizer(tmp_path):
  path, tokenizer = huggingface_tokenizer(
    tmp_path / 'hf', {'eos_token': {'content': '<eot>'}, 'bos_token': '<bot>'}, size=70_000)
  corpora = [write_corpus(tmp_path, 'one', ['a b c <eot> a'], {'cluster_size': 3, 'dump': 'CC'}),
             write_corpus(tmp_path, 'two', ['c'])]
  out = tokenize_corpus.run(corpora, path, str(tmp_path), 'both',
                            TokenizeOptions(holdout=0, num_shards=1))
  manifest = records.read_manifest(out)
  bos, eos = map(tokenizer.token_to_id, ('<bot>', '<eot>'))
  assert (manifest['dtype'], manifest['bos_id'], manifest['eos_id']) == ('<u4', bos, eos)
  assert manifest['vocab_size'] == eos + 2  # <bot> comes last
  assert [source['documents'] for source in manifest['inputs']] == [1, 1]
  rows = {row['source']: row for row in records.read_corpus(out)}
  unknown = tokenizer.token_to_id('unk')
  # Not cut at two tokens, and the end of text that the text quotes ends nothing.
  assert np.frombuffer(rows['one']['tokens'], '<u4').tolist() == [bos, 0, 1, 2, unknown, 0, eos]
  assert (rows['one']['cluster_size'], rows['one']['dump']) == (3, 'CC')
  assert list(manifest['splits']) == ['train']


def test_rehydration_reaches_training(tmp_path):
  corpus = write_corpus(tmp_path, 'many', ['a b c <eot> a'], {'cluster_size': 3})
  tokenizer, _ = huggingface_tokenizer(tmp_path / 'hf', {'eos_token': '<eot>'})
  path = tokenize_corpus.run(corpus, tokenizer, str(tmp_path), 't',
                             TokenizeOptions(holdout=0, bos=False, rehydrate=True))
  assert [row['weight'] for row in records.read_corpus(path)] == [3.0]   # FineWeb-2: 3 to 4 copies
  assert open_corpus(path).repeats.tolist() == [3]
  once = tokenize_corpus.run(corpus, tokenizer, str(tmp_path), 'once',
                             TokenizeOptions(holdout=0, bos=False))
  assert open_corpus(once).repeats is None


@pytest.mark.parametrize('case', ['corpus', 'kind', 'empty', 'tokenizer', 'model', 'bos', 'holdout',
                                  'flag'])
def test_bad_input_is_one_line_and_nothing_is_written(
    case, tmp_path, corpus, model, tokenised, capsys):
  args = {'input': corpus, 'tokenizer': model, 'output': str(tmp_path / 'out')}
  if case == 'corpus':
    args['input'], message = str(tmp_path / 'none'), f'no corpus at \'{tmp_path}/none\''
  elif case == 'kind':
    args['input'], message = str(tokenised), 'is tokenised, not curated'
  elif case == 'empty':
    args['input'], message = write_corpus(tmp_path, 'web', []), 'is empty: nothing was read'
  elif case == 'tokenizer':
    args['tokenizer'], message = 'no.model', "no tokenizer at 'no.model'"
  elif case == 'model':
    args['tokenizer'], message = __file__, 'is neither a SentencePiece model nor'
  elif case == 'bos':
    args['tokenizer'], _ = huggingface_tokenizer(tmp_path / 'hf')
    message = 'has no begin-of-text token; say --no-bos'
  elif case == 'holdout':
    args['holdout'], message = '1.5', 'holdout must be'
  else:
    args['runer'], message = 'DirectRunner', "unknown flag '--runer=DirectRunner'"
  with pytest.raises(SystemExit) as stop:
    tokenize_corpus.main([f'--{k}={v}' for k, v in args.items()])
  error = capsys.readouterr().err
  assert stop.value.code == 2
  assert message in error and error.startswith('error: ') and error.count('\n') == 1
  assert not (tmp_path / 'out').exists()


def test_command_line_gives_the_same_bytes(tmp_path, corpus, model, tokenised, capsys):
  tokenize_corpus.main([f'--input={corpus}', f'--tokenizer={model}', f'--output={tmp_path}',
                        '--holdout=0.2', '--num_shards=3', '--runner=DirectRunner'])
  assert '120 documents, ' in capsys.readouterr().out
  made = tmp_path / 'web/1.0.0'
  assert sorted(p.name for p in made.iterdir()) == sorted(p.name for p in tokenised.iterdir())
  for file in made.iterdir():
    assert file.read_bytes() == (tokenised / file.name).read_bytes(), file.name


def test_a_share_of_the_training_documents(folder, corpus, model, tokenised):
  """About that share of them, some of the same, and the held-out ones as ever."""
  path = tokenize_corpus.run(corpus, model, str(folder / 'half'), 'web',
                             TokenizeOptions(holdout=0.2, share=0.5))
  whole, half = ({split: {row['id'] for row in rows} for split, rows in all_rows(p).items()}
                 for p in (tokenised, path))
  assert half['validation'] == whole['validation']
  assert half['train'] < whole['train'] and 0.3 < len(half['train']) / len(whole['train']) < 0.7
  with pytest.raises(ValueError, match='share above 0'):
    TokenizeOptions(share=0.0)


def test_every_damaged_file_of_a_corpus_is_noticed(tokenised, tmp_path):
  """A flipped bit or a cut, in each file, records aside: they have checksums of their own."""
  place = tmp_path / 'web/1.0.0'
  shutil.copytree(tokenised, place)
  names = [f for f in sorted(place.iterdir()) if '.array_record' not in f.name]
  assert {'_SUCCESS', 'manifest.json', 'features.json', 'dataset_info.json'} < {
    f.name for f in names} and sum('.lengths-' in f.name for f in names) == 4
  for file in names:
    split = 'validation' if '-validation' in file.name else 'train'
    whole = file.read_bytes()
    for place_in_it in range(0, len(whole), max(1, len(whole) // 9)):
      flipped = bytearray(whole)
      flipped[place_in_it] ^= 4
      for data in (flipped, whole[:place_in_it]):
        file.write_bytes(data)
        if file.name == '_SUCCESS' and not data:
          continue  # as of a corpus that was made before there were checksums
        with pytest.raises((ValueError, KeyError), match=file.name.split('-')[0]):
          open_corpus(str(place), split)
    file.write_bytes(whole)
  assert open_corpus(str(place)).name == 'web'


def test_near_duplicates_are_on_one_side(tmp_path, model):
  """Each held-out document's twin shares three quarters with it, or only what all texts share."""
  rng = np.random.default_rng(0)
  words = [''.join(rng.choice(list('abcdefgh'), 5)) for _ in range(3000)]
  footer = ' '.join(rng.choice(words, 30))  # of every page, a tenth of it
  text = lambda: rng.choice(words, 250).tolist()
  texts, twins = [], set()
  for _ in range(300):
    texts.append(text())
    if len(texts) % 3 == 0:
      texts.append(texts[-1][:200] + text()[:50])
      twins |= {f'near-{len(texts) - 1}', f'near-{len(texts) - 2}'}
  corpus = write_corpus(tmp_path, 'near', [' '.join(t) + ' ' + footer for t in texts])
  shared = {}
  for most in (1.0, 0.5):
    options = TokenizeOptions(holdout=0.2, holdout_shared=most, num_shards=2)
    path = tokenize_corpus.run(corpus, model, str(tmp_path / str(most)), 'near', options)
    rows = all_rows(path)
    held_out = {row['id'] for row in rows['validation']}
    runs = lambda row: set(np.lib.stride_tricks.sliding_window_view(
      np.frombuffer(row['tokens'], '<u2'), 20).copy().view('S40').ravel().tolist())
    known = set().union(*map(runs, rows['train']))
    shared[most] = sum(len(r & known) > len(r) / 2 for r in map(runs, rows['validation']))
    expected = {id for id in (f'near-{i}' for i in range(len(texts)))
                if tokenize_corpus.is_validation(id, 0.2)}
    assert held_out == (expected if most == 1 else expected - twins)
    moved = records.read_manifest(path)['near_duplicates_not_held_out']
    assert moved == len(expected) - len(held_out)
  assert shared[1.0] > 10 and shared[0.5] == 0


URL = 'fake://bucket/web/1.0.0'


def upload(store, folder):
  for path in folder.iterdir():
    store.change(f'bucket/web/1.0.0/{path.name}', path.read_bytes())


def test_a_corpus_in_an_object_store_is_that_on_the_disk(store, tokenised, tmp_path):
  """The split that is read is copied, once, and checked; a store that is ill changes nothing."""
  upload(store, tokenised)
  ill(store, 0.15)
  local, far = open_corpus(str(tokenised)), open_corpus(URL)
  assert far.digest == local.digest and far.manifest == local.manifest == read_manifest(URL)
  assert [far.tokens(i).tolist() for i in (0, 7)] == [local.tokens(i).tolist() for i in (0, 7)]
  names = {p.name for p in (tmp_path / 'cache/corpora').rglob('*') if p.is_file()}
  assert names == {p.name for p in tokenised.iterdir() if 'validation' not in p.name}
  ill(store, 0)
  before = store.count['GET']
  open_corpus(URL)
  assert store.count['GET'] == before + len([n for n in names if 'train' not in n])


def test_a_damaged_corpus_in_an_object_store_is_one_line(store, tokenised):
  upload(store, tokenised)
  shard = next(n for n in store.objects if 'validation.array' in n and store.objects[n])
  store.change(shard, store.objects[shard][:-1])
  with pytest.raises(ValueError, match=r'validation\.array\S+ is damaged'):
    open_corpus(URL, 'validation')
  store.change('bucket/web/1.0.0/manifest.json', b'{}')
  with pytest.raises(ValueError, match=rf'{URL}: manifest\.json is not as it was written: make'):
    open_corpus(URL)
  store.change('bucket/web/1.0.0/_SUCCESS', None)
  with pytest.raises(FileNotFoundError, match=rf'no finished corpus at {URL}: give a folder'):
    open_corpus(URL)


@pytest.mark.slow
def test_near_duplicates_in_another_corpus_are_not_held_out(tmp_path, model):
  """Its text or its tokens; a document of the same id is on the same side there, and is no reason.
  """
  rng = np.random.default_rng(0)
  words = [''.join(rng.choice(list('abcdefgh'), 5)) for _ in range(3000)]
  texts = [rng.choice(words, 250).tolist() for _ in range(60)]
  corpus = write_corpus(tmp_path, 'web', [' '.join(t) for t in texts])
  copies = [' '.join(t[:200] + rng.choice(words, 100).tolist()) for t in texts[::2]]
  mirror = write_corpus(tmp_path, 'pdf', copies)
  tokens = tokenize_corpus.run(mirror, model, str(tmp_path / 'tokens'), 'pdf',
                               TokenizeOptions(holdout=0, num_shards=1))
  known = {f'web-{i}' for i in range(0, 60, 2)}
  expected = {f'web-{i}' for i in range(60) if tokenize_corpus.is_validation(f'web-{i}', 0.2)}
  assert expected - known and expected & known
  for others, held_out in (
      ([corpus], expected), ([corpus, mirror], expected - known), ([tokens], expected - known)):
    path = tokenize_corpus.run(corpus, model, str(tmp_path / 'found'), 'web',
                               TokenizeOptions(holdout=0.2, num_shards=1), against=others)
    assert {row['id'] for row in all_rows(path)['validation']} == held_out
  assert [a['name'] for a in records.read_manifest(path)['against']] == ['pdf']


def test_a_corpus_that_holds_nothing_out_says_why(tmp_path, model, tokenised):
  """Pages of one template, each with a few words of its own."""
  template = ' '.join(f'word{i}' for i in range(100))
  corpus = write_corpus(tmp_path, 'forms', [f'{template} {i}' for i in range(60)])
  path = tokenize_corpus.run(corpus, model, str(tmp_path / 'tokens'), 'forms',
                             TokenizeOptions(holdout=0.2, num_shards=1))
  count, said = records.read_manifest(path)['near_duplicates_not_held_out'], []
  with pytest.raises(ValueError, match=rf'all {count} documents .* more than 0.5 of their .*one '
                     r'template.*eval\.corpora.*tokenize\.holdout_shared=1'):
    load_held_out({'forms': path})
  assert list(load_held_out({'forms': path, 'web': str(tokenised)}, note=said.append)) == ['web']
  assert 'not evaluated on' in said[0] and 'one template' in said[0]
