"""Anybody's multiple choice: one JSONL layout, any name, and what is wrong is said by line."""

import json

import pytest
from helpers.configs import config

from experiments.engine import config as config_lib
from smoljax.evals.tasks import find_task, load_task

ROW = {'question': ' Which colour is the sky? ', 'choices': ['green', 'blue ', 'red'], 'answer': 1}


def load(folder, *rows):
  (folder / 'mine.jsonl').write_text('\n'.join(json.dumps(r) for r in rows) + '\n\n')
  return load_task('mine', str(folder), documents={}, tokenizer=None)


def test_an_answer_is_a_number_a_letter_or_a_text(tmp_path):
  rows = [ROW, ROW | {'answer': 'B'}, ROW | {'answer': 'blue '}, ROW | {'context': 'Look up.\n'}]
  *same, last = load(tmp_path, *rows)
  assert same == [{'context': 'Question: Which colour is the sky?\nAnswer:',
                   'choices': [' green', ' blue', ' red'], 'answer': 1}] * 3
  assert last['context'] == 'Look up.\nQuestion: Which colour is the sky?\nAnswer:'
  # A text before a letter: choices may be letters.
  assert load(tmp_path, ROW | {'choices': ['B', 'A'], 'answer': 'B'})[0]['answer'] == 0


@pytest.mark.parametrize('change, words', [
  ({'answer': 3}, 'answer 3 is none of the 3 choices'), ({'answer': True}, 'answer True'),
  ({'answer': 'D'}, "answer 'D'"), ({'answer': -1}, 'answer -1'), ({'choices': ['a']}, 'two texts'),
  ({'choices': 'ab'}, 'two texts'), ({'choices': ['a', '']}, 'two texts'),
  ({'question': 5}, 'a text')])
def test_what_is_no_question_is_said_by_line(tmp_path, change, words):
  with pytest.raises(ValueError, match=rf'mine\.jsonl, line 2 is no row of mine: .*{words}'):
    load(tmp_path, ROW, ROW | change)
  with pytest.raises(ValueError, match="line 1 is no row of mine: no 'answer'"):
    load(tmp_path, {k: v for k, v in ROW.items() if k != 'answer'})


def test_an_unknown_name_lists_the_near_ones_and_where_ones_own_would_lie(tmp_path):
  with pytest.raises(ValueError, match=r'did you mean hellaswag.*/helaswag\.jsonl'):
    find_task('helaswag', str(tmp_path))
  with pytest.raises(ValueError, match=r'--config\.eval\.tasks: unknown task'):
    config_lib.check(config(eval__tasks=('mine',), eval__data=str(tmp_path)))
