"""Evaluation by generation: what is asked, what is written, what is graded."""

import concurrent.futures
import contextlib
import importlib.util
import json
import math
import random
import re
import threading
import time
import types

import jax
import numpy as np
import pytest
import scipy.stats
from goldens import make_gsm8k_verdicts as verdicts
from goldens import make_lm_harness as models
from helpers import tokenizers

from smoljax import evals, sharding
from smoljax.checkpoints import load
from smoljax.data import chat_template, tokenizer
from smoljax.evals import answers, problems, run, tasks, writing
from smoljax.evals.generative import Question, Set, Settings, Turn, evaluate_generation
from smoljax.evals.writing import Writer, Written
from smoljax.inference import cache
from smoljax.inference.sampling import Sampling
from smoljax.inference.text import Text
from smoljax.report import generation_section
from smoljax.scaling import decisive


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return load.load_model(models.export(str(tmp_path_factory.mktemp('lm'))))


@pytest.fixture
def say(monkeypatch):
  """(function of a prompt's text) → the model writes that."""
  def use(answer):
    def write(self, prompts, rooms, **_):
      for i in random.Random(0).sample(range(len(prompts)), len(prompts)):
        ids = self.model.tokenizer.encode(text := answer(self.model.tokenizer.decode(prompts[i])))
        yield i, Written(ids, text, True)
    monkeypatch.setattr(Writer, 'write', write)
  return use


def big(model):
  return model._replace(config=model.config.__class__(
    **{**model.config.__dict__, 'max_seq_len': 4096}))


@pytest.mark.slow  # test_lm_harness has it at three sizes
def test_what_is_written_depends_on_neither_batch_nor_order_nor_devices(model, monkeypatch):
  rng = random.Random(0)
  prompts = [[rng.randrange(3, 320) for _ in range(rng.choice((3, 9, 30, 40)))] for _ in range(40)]
  rooms = [rng.choice((3, 20)) for _ in prompts]
  for sampling, sizes in ((Sampling(), (1, 2, 7, 64)), (Sampling(temperature=0.9), (7, 64))):
    want = None
    for size in sizes:
      order = rng.sample(range(40), 40)
      devices = jax.local_devices()[: 2 if size == 7 else 1]
      monkeypatch.setattr(sharding, 'workers', lambda devices=devices: devices)
      found = dict(Writer(model, size).write(
        [prompts[i] for i in order], [rooms[i] for i in order], seeds=order, eos_ids=(2,),
        sampling=sampling, stops=('value',)))
      got = [found[order.index(i)] for i in range(40)]
      assert all(len(row.ids) <= room for row, room in zip(got, rooms, strict=True))
      want = want or got
      assert got == want


def test_a_mesh_for_the_rest_of_an_evaluation_is_no_hindrance(model):
  """As in the evaluation step, where documents are spread over all devices."""
  ask = lambda model: [row for _, row in Writer(model, 2).write(
    [[3, 4], [5, 6]], [2, 2], seeds=[0, 1], eos_ids=(2,))]
  alone = ask(model)
  with sharding.all_devices(model.params) as params:
    assert ask(model._replace(params=params)) == alone


def test_threads_call_programs_in_turn_on_gpus_and_compile_them_before(model, monkeypatch):
  """A program called for the first time beside another's recording ended the process."""
  prompts, rooms = [[3] * n for n in (3, 9, 60, 70, 90, 100)], [20] * 6
  ask = lambda: dict(Writer(model, 2).write(
    prompts, rooms, seeds=range(6), eos_ids=(2,), sampling=Sampling(temperature=0.9)))
  alone, callers, compiled = ask(), [], []
  monkeypatch.setattr(sharding, 'workers', lambda: jax.local_devices()[1:4])
  monkeypatch.setattr(cache, 'in_turn', lambda: True)
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, fun_name='', **__: compiled.append(
      (fun_name, threading.get_ident() in callers))
    if event.endswith('backend_compile_duration') else None)

  @contextlib.contextmanager
  def watched(context=cache.calling):
    with context():
      callers.append(threading.get_ident())
      time.sleep(.01)  # whoever does not wait would come in
      assert set(callers) == {threading.get_ident()}
      yield
      callers.pop()

  monkeypatch.setattr(cache, 'calling', watched)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert all(found == alone for found in pool.map(lambda _: ask(), range(4)))
  slow = [called for name, called in compiled if name in ('jit(<lambda>)', 'jit(run)')]
  assert slow and not any(slow), compiled


def test_the_last_rows_of_a_batch_end_as_well(model):
  write = lambda ends, room=9: [row for _, row in Writer(model, 2).write(
    [[3, 4], [3, 4]], [room, room], seeds=[0, 1], eos_ids=ends)]
  free = write(())
  assert not any(row.ended for row in free)
  end = free[0].ids[4]
  place = free[0].ids.index(end)
  assert write((end,)) == 2 * [Written(free[0].ids[:place], write((end,))[0].text, True)]
  assert not any(row.ended for row in write((end,), room=place))  # it was cut before that


def test_of_long_prompts_fewer_are_taken_at_once(model, monkeypatch):
  sizes = []

  def stream(config, params, rows, mask, max_new_tokens, **_):
    sizes.append((len(rows), mask.sum(axis=1).max()))
    yield [7] * len(rows)
  monkeypatch.setattr(writing.generate, 'stream', stream)
  writer = Writer(model, 16)
  writer._memory = writer._token_bytes * 8 * (64 + 64)
  prompts = [[5] * n for n in [9] * 20 + [1000] * 3]
  found = dict(writer.write(prompts, [1] * 23, seeds=range(23), eos_ids=()))
  assert sorted(found) == list(range(23)) and all(row.ids == [7] for row in found.values())
  assert sizes == [(2, 1000), (2, 1000), (8, 9), (8, 9), (8, 9)]  # never one alone


def test_prompts_of_other_lengths_share_a_program(model):
  writer = Writer(model, 8)
  prompts = [[5] * n for n in (3, 60, 9, 33, 21, 40, 12, 50)]
  found = dict(writer.write(
    prompts, [9, 30, 17, 20, 12, 25, 31, 3], seeds=range(8), eos_ids=(2, 1)))
  assert len(found) == 8 and any(len(row.ids) > 8 for row in found.values())  # of two blocks
  run = writing.generate._block(writer._config, Sampling(temperature=0), (2, 1), 8, False)
  assert run._cache_size() == 1
  list(writer.write(prompts[:3], [9, 40, 64], seeds=range(3), eos_ids=(2, 1)))
  assert run._cache_size() == 1


def test_threads_that_write_at_once_share_the_memory(model, monkeypatch):
  at_once, seen = [], []

  def stream(config, params, rows, **_):
    at_once.append(1)
    try:
      time.sleep(0.02)
      seen.append(len(at_once))
      yield [7] * len(rows)
    finally:
      at_once.pop()
  monkeypatch.setattr(writing.generate, 'stream', stream)
  writer = Writer(model, 8)

  def most(memory):
    writer._memory = writer._token_bytes * memory * (64 + 64)
    seen.clear()
    write = lambda _: list(writer.write([[5] * 9] * 8, [1] * 8, seeds=range(8), eos_ids=()))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      list(pool.map(write, range(8)))
    return max(seen)
  assert most(8) == 1 and most(16) == 2 and most(64) > 2


def test_a_set_of_ones_own_in_both_modes(model, say, tmp_path):
  rows = [
    {'prompt': '2+2=', 'answer': 4, 'depth': 1}, {'prompt': '2+3=', 'answer': '5', 'depth': 2},
    {'prompt': 'Combien ?', 'answer': ['1 234,5'], 'language': 'fr', 'mode': 'think'}]
  path = tmp_path / 'own.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  say(lambda prompt: 'It is 4.' if '</think>' in prompt[-20:] else (
    '<think>\n2 and 2\n</think>\nSo: 1.234,5' if 'Combien' in prompt else
    '<think>\n4\n</think>\n5.' if '2+3' in prompt else '<think>\n4 4 4'))
  found = evaluate_generation(big(model), {'own': problems.read_set(str(path))})['own']
  think, no_think = found['think'], found['no_think']
  assert (think['n'], think['exact'], no_think['n'], no_think['exact']) == (3, 2 / 3, 2, 0.5)
  assert think['by']['depth'] == {
    '1': {'n': 1, 'exact': 0.0, 'interval': answers.interval(0, 1)},
    '2': {'n': 1, 'exact': 1.0, 'interval': answers.interval(1, 1)}}
  assert think['by']['language']['fr']['exact'] == 1
  assert think['unclosed'] == 1 / 3 == pytest.approx(1 - think['follows'])
  assert no_think['follows'] == 1 and no_think['constant'] == 1 / 3


def test_conversations_are_questions_too(tmp_path):
  said = lambda role, content: {'role': role, 'content': content}
  row = {'mode': 'think', 'messages': [
    said('system', 'Be brief.'), said('user', '1+1?'), said('assistant', '<think>add</think>2'),
    said('user', 'And 2+2?'), said('assistant', '4')]}
  made = problems.question(row)
  assert [t.prompt for t in made.turns] == ['1+1?', 'And 2+2?'] and made.system == 'Be brief.'
  assert [t.grade(x)['exact'] for t in made.turns for x in ('2', '4')] == [1, 0, 0, 1]
  assert {t.mode for t in made.turns} == {'think'}
  path = tmp_path / 'grade_school.jsonl'
  path.write_text(json.dumps({'question': 'How many?', 'answer': '3'}))
  assert not tasks.has_choices(str(path))
  turn, = problems.load_set('grade_school', problems.Source(str(tmp_path))).questions[0].turns
  assert turn.prompt == 'How many?' and turn.grade('So 3.')['exact'] == 1


def test_modes_over_three_turns(model, say):
  """History goes on as the template has it, each turn in the mode that it asks for."""
  seen = []

  def answer(prompt):
    seen.append(prompt)
    if 'three' in prompt:
      return 'no thought, though it was asked for'
    return 'yes' if prompt.endswith('</think>\n') else '<think>\nhm\n</think>\nyes'

  say(answer)
  grade = lambda text: {'exact': float(text == 'yes')}
  turns = [Turn('one', grade, 'think'), Turn('two', None, 'no_think'), Turn('three', None, 'think')]
  row = evaluate_generation(big(model), {'talk': Set([Question(tuple(turns))])})['talk']['mixed']
  assert [t['follows'] for t in row['by_turn']] == [1, 1, 0] and row['exact'] == 1
  template = load.chat_template_of(model)
  history = [{'role': 'user', 'content': 'one'},
             {'role': 'assistant', 'content': 'yes', 'reasoning_content': 'hm'},
             {'role': 'user', 'content': 'two'}, {'role': 'assistant', 'content': 'yes'},
             {'role': 'user', 'content': 'three'}]
  assert seen[-1] == model.tokenizer.decode(chat_template.prompt_ids(
    template, history, model.tokenizer, enable_thinking=True, today='01 January 2026'))


def test_base_models_samples_and_what_does_not_fit(model, say):
  grade = lambda text: {'exact': float('7' in text)}
  few = Set([Question((Turn(f'q{i}', grade, plain='a long text ' * 30 * (i == 2)),))
             for i in range(3)])
  draws = {'q0': iter('7x7x'), 'q1': iter('x77x')}
  say(lambda prompt: next(draws[prompt[-2:]]))
  settings = Settings(modes=('plain',), samples=4, ks=(1, 2), sampling=Sampling(temperature=1.0))
  row = evaluate_generation(model, {'few': few}, settings)['few']['plain']
  assert row['too_long'] == 4 and row['exact'] == pytest.approx(1 / 3)
  assert row['pass@1'] == pytest.approx(1 / 3)
  assert row['pass@2'] == pytest.approx(2 / 3 * answers.pass_at_k(4, 2, 2))
  for wrong, said in ((dict(ks=(2,)), 'pass@2 needs'), (dict(samples=2), 'a temperature'),
                      (dict(modes=('loud',)), 'unknown mode')):
    with pytest.raises(ValueError, match=said):
      Settings(**wrong)


@pytest.mark.parametrize('line, said', [
  ('{"prompt": "a"}', 'nothing to grade'), ('{"prompt": "", "answer": 1}', 'must be a text'),
  ('{"answer": 1}', 'prompt or turns'), ('{"prompt": "a", "answer": 1, "mode": "x"}', "mode 'x'"),
  ('{"prompt": "a", "constraints": [{"kind": "rhyme"}]}', "constraint 'rhyme'"),
  ('{"prompt": "a", "constraints": [{"kind": "words"}]}', 'at_least'), ('[', 'line 2')])
def test_a_line_that_is_no_question_is_named(tmp_path, line, said):
  (tmp_path / 'x.jsonl').write_text('{"prompt": "a", "answer": 1}\n' + line + '\n')
  with pytest.raises(ValueError, match=r'x\.jsonl, line 2') as error:
    problems.read_set(str(tmp_path / 'x.jsonl'))
  assert said in str(error.value)


def test_made_sets_are_right_for_one_who_knows(model, say):
  """Who reads the questions scores 1, who says nothing 0."""
  source = problems.Source(limit=24)
  sets = {name: problems.load_set(name, source) for name in ('modes', 'tools', 'instructions')}
  assert problems.load_set('tools', source).questions[3].turns[0].prompt == (
    sets['tools'].questions[3].turns[0].prompt)

  def reckon(prompt):
    a, b = re.findall(r'(\d+) (?:plus|más|più|mais) (\d+)', prompt)[-1]
    text = f'{int(a) + int(b)}'
    return text if prompt.endswith('</think>\n') else f'<think>\nadd\n</think>\n{text}'

  say(reckon)
  found = evaluate_generation(big(model), {'modes': sets['modes']})['modes']
  assert found.keys() == {'think', 'no_think', 'mixed'}
  assert all(row['exact'] == row['language'] == row['follows'] == 1 for row in found.values())
  assert sum(row['by']['modes'].get('overridden', {'n': 0})['n'] for row in found.values()) == 6
  say(lambda prompt: '')
  for name, row in evaluate_generation(
      big(model), sets, Settings(modes=('no_think',))).items():
    assert all(mode['exact'] == 0 for mode in row.values()), name


def test_public_tasks_with_their_own_answers(model, say, shared_data):
  """The reference answers score 1, in both of lm-eval's ways and ours."""
  source = problems.Source(str(shared_data / 'eval'), limit=6)
  lines = (shared_data / 'eval/gsm8k.test.jsonl').read_text().splitlines()
  known = {row['question']: row['answer'] for row in map(json.loads, lines)}
  say(lambda prompt: next(known[q] for q in known if q in prompt.rpartition('Question: ')[2]))
  sets = {'gsm8k': problems.load_set('gsm8k', source)}
  row = evaluate_generation(big(model), sets, Settings(modes=('plain',)))['gsm8k']['plain']
  assert (row['n'], row['exact'], row['strict'], row['flexible']) == (6, 1, 1, 1)
  for name in ('svamp', 'arithmetic'):
    set_ = problems.load_set(name, source)
    assert len(set_.questions) == 6 and set_.questions[0].turns[0].plain.count('=') >= 5


def test_marks_that_are_control_tokens_are_read(tmp_path):
  token = lambda name: tokenizers.tokenizers.AddedToken(name, special=True)
  special = [token(name) for name in ('<think>', '</think>', '<x>')]
  text = tokenizer.load(tokenizers.write(str(tmp_path), special))
  ids = [text.control_id('<think>'), *text.encode('é'), text.control_id('<x>'),
         text.control_id('</think>'), *text.encode('a')]
  assert text.decode(ids) == 'éa' and writing.decoder(text)(ids) == '<think>é</think>a'
  streamed = Text(writing.decoder(text))
  assert ''.join([*map(streamed.push, ids), streamed.finish()]) == '<think>é</think>a'


def test_the_numbers_of_answers():
  same = answers.last_number_is
  for text, value in (('It costs $.50.', '0.5'), ('about -.5', '-.5'), ('so... 5', '5'),
                      ('so...5', '5'), (r'$\$1{,}234$', '1234'), ('1.5.', '1.5')):
    assert same(text, value), text
  assert not same('It costs $.50.', '50')
  assert same('$18.00', '18') and same('= -$3', '-3') and same('1,234 ducks', '1234')
  assert same('3-5', '5') and not same('3-5', '-5') and not same('H2O', '2')
  assert same('1.234,5', '1234.5', 'de') and same('1 234', '1234', 'fr')
  assert not same('1.234,5', '1234.5') and not same('none', '0')
  assert answers.exact('The list is:\nC B A.', 'c b a') and not answers.exact('C B A D', 'C B A')
  assert answers.split('<think>a</think> b').answer == 'b'
  assert answers.split('<think>a').answer == '' and answers.split('x</think>b').thought == 'x'
  follow = answers.follows_mode
  assert follow('<think>\na\n</think>\nb', 'think') and follow('b', 'no_think')
  assert follow('<think>\n\n</think>\nb', 'no_think')
  for text in ('b', '<think>\n\n</think>b', '<think>a</think>', '<think>a', 'b<think>a</think>c',
               '<think>a</think><think>b</think>c', '<think><think>a</think>b'):
    assert not follow(text, 'think'), text
  assert not follow('<think>a</think>b', 'think', ended=False)


def test_verdicts_of_lm_eval_on_gsm8k():
  stored = json.loads(verdicts.FILE.read_text())
  for name, take in (('strict-match', answers.gsm8k_strict),
                     ('flexible-extract', answers.gsm8k_flexible)):
    got = ''.join(str(int(answers.gsm8k_equal(take(text), reference)))
                  for text, reference in verdicts.answers())
    assert got == stored[name] and 20 < got.count('1') < 180
  if importlib.util.find_spec('lm_eval'):
    assert verdicts.reference() == stored


def test_calls_are_compared_with_their_types():
  call = lambda **arguments: (
    f'<tool_call>\n{json.dumps({"name": "f", "arguments": arguments})}\n</tool_call>')
  want = lambda **arguments: [{'function': {'name': 'f', 'arguments': arguments}}]
  assert answers.same_calls('Well: ' + call(x=1, y=['a']), want(y=['a'], x=1))
  assert answers.same_calls(call(x=1) + call(x=2), want(x=2) + want(x=1))
  assert answers.same_calls(call(x=2), want(x=2.0)) and answers.same_calls('no call', [])
  for text, calls in ((call(x=True), want(x=1)), (call(x='1'), want(x=1)), (call(x=1), []),
                      (call(x=1) * 2, want(x=1)), ('', want(x=1)), (call(x=1, y=2), want(x=1)),
                      (call(x=2.0), want(x=2)), (call(x=1)[:-1], want(x=1)),
                      (call(x=1).replace('}}', '}} so'), want(x=1)),
                      ('<tool_call>{"name": "f", "arguments": {"x": 0, "x": 1}}</tool_call>',
                       want(x=1))):
    assert not answers.same_calls(text, calls), (text, calls)


def test_pass_at_k_has_no_bias():
  """Over all draws of 10 with chance 0.2 its mean is 1 - 0.8⁵; the plain formula gives 0.593."""
  chance = lambda c: math.comb(10, c) * 0.2**c * 0.8**(10 - c)
  mean = sum(chance(c) * answers.pass_at_k(10, c, 5) for c in range(11))
  assert mean == pytest.approx(1 - 0.8**5)
  assert answers.pass_at_k(4, 4, 2) == 1 == answers.pass_at_k(3, 2, 2)
  low, high = answers.interval(0.0, 20)
  assert low == 0 and high == pytest.approx(0.161, abs=1e-3)  # Wilson's, by R's binom.confint



def test_evaluate_writes_reads_and_reports(model, say, tmp_path):
  """Sets of one's own and long texts beside the rest, in the results and on the page."""
  (tmp_path / 'own.jsonl').write_text('{"prompt": "<b>2+2</b>", "answer": 4, "depth": 1}\n' * 3)
  say(lambda prompt: re.sub(r'.* is (\d{7})\..*', r'\1', prompt, flags=re.S)
      if 'special' in prompt else '<i>4</i>')
  wide = big(model)
  lines = []
  results = evals.evaluate(
    wide.config, wide.params, wide.tokenizer, [str(tmp_path / 'own.jsonl'), 'ruler:niah_single_1'],
    bos=wide.bos, seq_len=64, limit=2, log_line=lines.append, generation=run.Generation(
      Settings(modes=('no_think', 'plain')), lengths=(3000, 6000)))
  assert json.loads(json.dumps(results)) == results
  found = results['generation']
  own = found.pop(str(tmp_path / 'own.jsonl'))
  assert own['no_think']['n'] == 2 and own['plain']['exact'] == 1
  assert list(found) == ['ruler:niah_single_1@3000', 'ruler:niah_single_1@6000']
  for modes in found.values():
    assert all(row['recall'] == row['precision'] == 1 and not row['too_long']
               for row in modes.values())
  assert len(lines) == 6
  page = generation_section.generation(
    types.SimpleNamespace(evals={'generation': {'own': own, **found}}), lambda *_: '')
  assert '&lt;i&gt;4&lt;/i&gt;' in page and '<i>' not in page and 'no_think' in page
  assert generation_section.generation(types.SimpleNamespace(evals={}), lambda *_: '') == ''
  with pytest.raises(ValueError, match="unknown task 'gsm9k'"):
    evals.evaluate(wide.config, wide.params, wide.tokenizer, ['gsm9k'], bos=True, seq_len=64)


def test_what_was_scored_before_a_stop_is_not_asked_again(model, say, tmp_path):
  sets = {name: Set([Question((Turn('2+2', lambda text: {'exact': float(text == '4')}),))])
          for name in ('a', 'b')}
  settings = Settings(modes=('no_think', 'plain'))
  asked, wide = [], big(model)
  scored = lambda only: evaluate_generation(
    wide, {k: sets[k] for k in only}, settings, folder=str(tmp_path / 'scores'))
  say(lambda prompt: asked.append(prompt) or '4')
  first = scored('a')
  assert len(asked) == 2
  whole = scored('ab')
  assert len(asked) == 4 and whole['a'] == first['a'] and whole['b']['plain']['exact'] == 1
  for file in (tmp_path / 'scores').iterdir():  # a write that was cut off
    file.write_text(file.read_text()[:20])
  assert scored('a')['a']['plain']['exact'] == 1 and len(asked) == 6


def test_long_texts_are_as_long_as_is_asked_for(model, say, monkeypatch):
  """The template takes room where there is one; what does not fit is said before all else."""
  wide, sizes = big(model), []
  say(lambda prompt: sizes.append(len(model.tokenizer.encode(prompt))) or 'x')
  put = lambda modes, length: evals.evaluate(
    wide.config, wide.params, wide.tokenizer, ['ruler:niah_single_1'], bos=wide.bos, seq_len=64,
    limit=2, generation=run.Generation(Settings(modes=modes), lengths=(4000, length)))
  put(('plain',), 4000)
  assert len(sizes) == 4  # two questions a length
  evals.evaluate(
    wide.config, wide.params, wide.tokenizer, ['ruler:niah_single_1'], bos=wide.bos, seq_len=64,
    limit=2, generation=run.Generation(Settings(modes=('no_think',)), lengths=(4000,),
                                       long_examples=1, long_modes=('plain',)))
  assert len(sizes) == 5
  assert all(0.97 * 4000 <= size + 128 <= 4000 for size in sizes)
  monkeypatch.setattr(run, 'copy_probe', lambda *_, **__: pytest.fail('it has begun'))
  monkeypatch.setattr(run, 'bits_per_byte', lambda *_, **__: pytest.fail('it has begun'))
  with pytest.raises(ValueError, match=r'niah_single_1 needs .* more than a length of 200'):
    evals.evaluate(
      wide.config, wide.params, wide.tokenizer, ['ruler:niah_single_1'], bos=wide.bos, seq_len=64,
      limit=2, documents={'a': [{'tokens': np.arange(9), 'num_bytes': 9}]},
      generation=run.Generation(Settings(modes=('plain',)), lengths=(4000, 200)))


def test_which_tasks_decide():
  rising = {f'seed {s}': {100 * t: 0.25 + 0.05 * t + 0.002 * s for t in range(1, 6)}
            for s in range(3)}
  found = decisive.signal(rising, 0.25)
  assert found['decides'] and found['monotone'] == found['order'] == 1
  assert found['noise'] == pytest.approx(0.002)
  rng = np.random.default_rng(0)
  noise = {str(s): {t: 0.25 + rng.normal(0, 0.02) for t in range(8)} for s in range(4)}
  found = decisive.signal(noise, 0.25)
  assert found['decides'] is False and len(found['why']) == 3
  assert found['monotone'] == pytest.approx(np.mean([
    scipy.stats.spearmanr(range(8), list(run.values())).statistic for run in noise.values()]))
  one = decisive.signal({'a': {1: 0.1}})
  assert one['decides'] is None
  x, y = [1, 2, 3, 4], [2, 1, 4, 3]
  assert decisive.kendall(x, y) == pytest.approx(scipy.stats.kendalltau(x, y).statistic)


def test_several_checkpoints_say_which_tasks_decide(monkeypatch):
  from experiments import evaluate
  monkeypatch.setattr(
    evaluate, '_run_and_step', lambda path, i: (path.split('/')[0], int(path.split('/')[1])))
  score = lambda run, step: 0.3 + 0.1 * step + 0.001 * run
  found = {f'{run}/{step}': {
    'tasks': {'piqa': {'metric': 'acc', 'acc': score(run, step), 'chance': 0.5}},
    'generation': {'sums': {'think': {'metric': 'exact', 'exact': 1 - score(run, step)}}},
  } for run in range(3) for step in range(1, 5)}
  signals = evaluate._signal_of(found)
  assert signals['piqa']['decides'] and signals['piqa']['runs'] == 3
  assert signals['sums, think']['why'] == ['monotone -1.00 < 0.5']
  assert len(evaluate._signals(signals).rows) == 2
