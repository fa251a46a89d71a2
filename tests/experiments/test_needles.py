"""RULER's questions with their answers as a file of texts."""

import json
import sys

import pytest
from helpers import tokenizers

from experiments import needles
from smoljax.data import tokenizer


@pytest.fixture
def make(tmp_path, monkeypatch):
  """A function of flags that runs the command and gives its rows."""
  model = tokenizers.write(tmp_path / 'tokenizer', ['<end>'])

  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', [
      'needles', f'--output={tmp_path}/out.jsonl', f'--tokenizer={model}', *arguments])
    needles.main()
    return [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]

  run.tokenizer = tokenizer.load(model, {'eos_id': 256})
  return run


def test_rows_are_texts_of_the_lengths_that_hide_what_they_ask(make, tmp_path):
  (tmp_path / 'filler.jsonl').write_text(''.join(
    json.dumps({'text': f'Nobody has counted the {word} of this town. ' * 9}) + '\n'
    for word in ('doors', 'windows', 'chimneys')))
  rows = make('--tasks=niah_single_2', '--lengths=1900,2500', '--number=4',
              f'--documents={tmp_path}/filler.jsonl')
  assert [row['language'] for row in rows] == ['en'] * 4
  assert len({row['id'] for row in rows}) == len({row['text'] for row in rows}) == 4
  for row, length in zip(rows, (1900, 2500) * 2, strict=True):
    assert 0.7 * length < len(make.tokenizer.encode(row['text'])) <= length
    answer = row['text'].split()[-1].rstrip('.')
    assert row['text'].count(answer) == 2 and 'chimneys of this town' in row['text']


@pytest.mark.parametrize('line', ['not json', '[]', '{"txt": "a"}', ''])
def test_filler_that_is_none_is_named(make, tmp_path, line, capsys):
  (tmp_path / 'filler.jsonl').write_text(line)
  with pytest.raises(SystemExit) as ended:
    make(f'--documents={tmp_path}/filler.jsonl')
  assert ended.value.code == 2 and 'filler.jsonl' in capsys.readouterr().err
