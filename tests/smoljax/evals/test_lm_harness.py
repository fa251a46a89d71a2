"""Our model in lm-evaluation-harness: the scores of the exported model in transformers.

What the harness's own model made of 600 requests is stored (tests/goldens/make_lm_harness.py);
where it is installed (`pip install lm-eval[hf]==0.4.13`, best in an environment of its own, since
it may bring another pyarrow than Beam wants) it is asked again. Elsewhere a stand-in for its base
class does what that does with a request.
"""

import importlib.util
import json
import random
import sys
import types

import numpy as np
import pytest
from goldens import make_lm_harness as goldens

from smoljax import evals
from smoljax.checkpoints import load
from smoljax.inference.generate import generate

INSTALLED = importlib.util.find_spec('lm_eval') is not None
LIVE = INSTALLED and importlib.util.find_spec('accelerate') is not None  # of lm-eval[hf]


class StandIn:
  """lm_eval.api.model.TemplateLM: how it encodes a request of the kind loglikelihood."""

  def __init__(self):
    self.cache_hook = types.SimpleNamespace(add_partial=lambda *_: None)

  def loglikelihood(self, requests, disable_tqdm=False):
    rows = []
    for context, continuation in (r.args for r in requests):
      if not context:
        ids = self.tok_encode(continuation, add_special_tokens=False)
        rows.append(((context, continuation), [self.prefix_token_id], ids))
        continue
      spaces = len(context) - len(context.rstrip())
      if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
      whole, before = self.tok_encode(context + continuation), self.tok_encode(context)
      rows.append(((context, continuation), before, whole[len(before):]))
    return self._loglikelihood_tokens(rows)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return goldens.export(str(tmp_path_factory.mktemp('lm')))


@pytest.fixture(scope='module')
def make(folder):
  """(settings) → our LM of the exported folder."""
  if not INSTALLED:
    for name in ('lm_eval', 'lm_eval.api', 'lm_eval.api.instance', 'lm_eval.api.model'):
      sys.modules[name] = types.ModuleType(name)
    sys.modules['lm_eval.api.instance'].Instance = types.SimpleNamespace
    sys.modules['lm_eval.api.model'].TemplateLM = StandIn
  loaded = load.load_model(folder)
  yield lambda **settings: evals.LM(loaded, **{'batch_size': 32} | settings)
  if not INSTALLED:
    for name in [n for n in sys.modules if n.startswith('lm_eval') or n.endswith('.lm_harness')]:
      del sys.modules[name]


def same(kind, got, want):
  if kind == 'generate_until':
    assert list(got) == list(want)
    return
  np.testing.assert_allclose(np.array([x[0] if kind == 'loglikelihood' else x for x in got]),
                             [x[0] if kind == 'loglikelihood' else x for x in want], rtol=2e-5)
  if kind == 'loglikelihood':
    assert [bool(x[1]) for x in got] == [bool(x[1]) for x in want]


KINDS = ('loglikelihood', 'loglikelihood_rolling', 'generate_until')


@pytest.mark.parametrize('kind', KINDS)
def test_stored_requests(make, kind):
  got = getattr(make(), kind)(goldens.requests(kind), disable_tqdm=True)
  same(kind, got, json.loads(goldens.FILE.read_text())[kind])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('batch_size', [1, 7])
def test_scores_are_those_of_any_batch_and_order(make, kind, batch_size):
  asked = goldens.requests(kind)[:20]
  if kind == 'generate_until':
    sampled = {'do_sample': True, 'temperature': 0.8, 'top_p': 0.9, 'max_gen_toks': 6}
    asked += [types.SimpleNamespace(args=('the', sampled))] * 4
  want = getattr(make(), kind)(asked, disable_tqdm=True)
  order = random.Random(0).sample(range(20), 20) + list(range(20, len(asked)))
  got = getattr(make(batch_size=batch_size), kind)([asked[i] for i in order], disable_tqdm=True)
  same(kind, got, [want[i] for i in order])


@pytest.mark.skipif(not LIVE, reason='lm-eval[hf] is not installed')
@pytest.mark.parametrize('kind', KINDS)
def test_live_requests(make, folder, kind):
  asked = goldens.requests(kind)[-30:]
  theirs = goldens.reference(folder)
  got, want = (getattr(m, kind)(asked, disable_tqdm=True) for m in (make(), theirs))
  same(kind, got, want)


@pytest.mark.skipif(not LIVE, reason='lm-eval[hf] is not installed')
@pytest.mark.parametrize('thinks', [True, False, None])
def test_live_chat(make, folder, thinks):
  """The template, in both modes, and the ids of what it renders."""
  ours = make(enable_thinking=thinks)
  theirs = goldens.reference(folder, enable_thinking=thinks, think_end_token='</think>')
  turns = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'value?'}]
  answer = {'role': 'assistant', 'content': 'The list '}
  for history, prompt in ((turns, True), (turns[1:], True), ([*turns, answer], False)):
    text = ours.apply_chat_template(history, add_generation_prompt=prompt)
    assert text == theirs.apply_chat_template(history, add_generation_prompt=prompt)
    assert ours.tok_encode(text) == theirs.tok_encode(text)
  assert ours.chat_template(True) == theirs.chat_template(True)


def request(context, **options):
  return types.SimpleNamespace(args=(context, options))


def test_repeats_are_draws_of_their_own(make):
  """As many as asked for, the same in another run, and as narrow as top_k and top_p say."""
  asked = [request('the value', do_sample=True, temperature=1.5, max_gen_toks=8)] * 6
  got = make().generate_until(asked)
  assert len(set(got)) == 6 and got == make().generate_until(asked)
  assert got != make(seed=1).generate_until(asked)
  greedy = make().generate_until([request('the value', max_gen_toks=8)])
  for narrow in ({'top_k': 1}, {'top_p': 1e-6}):
    one = request('the value', do_sample=True, temperature=1.5, max_gen_toks=8, **narrow)
    assert make().generate_until([one] * 2) == greedy * 2
  assert make().generate_until([request('the value', max_new_tokens=8)]) == greedy


def test_a_prompt_is_kept_where_too_much_is_asked_for(make):
  """AIME asks for 32,768 tokens: the answer is cut shorter, not the prompt, and that is said."""
  ours = make()
  asked = [request(f'the value of the list {i}', max_gen_toks=32768) for i in range(2)]
  asked.append(request('Question' + ' x = 12' * 5, max_gen_toks=63))  # more than half of them
  with pytest.warns(UserWarning, match='context of 64 tokens: answers are cut') as seen:
    got = ours.generate_until(asked)
  assert len(seen) == 2  # one of each length that was asked for
  model = ours.model
  for r, text in zip(asked, got, strict=True):
    ids = ours.tok_encode(r.args[0])
    assert len(ids) < 56
    want = generate(model.config, model.params, [ids, ids], max_new_tokens=64 - len(ids),
                    eos_id=model.eos_ids)[0]
    assert text == model.tokenizer.decode(want)


def test_what_counts_is_the_answer_after_the_thought(make):
  """Stop strings leave the thought alone, and a thought without an end is no answer."""
  ours = make(enable_thinking=True)
  assert ours._answer('<think>\na\n\nb</think>\n 42\nand', ['\n']) == '42'
  assert ours._answer('<think>\n42', ['\n']) == ''
  assert make()._answer('<think>\n42', ['\n']) == '<think>'
  if not INSTALLED:
    with pytest.raises(ValueError, match='enable_thinking'):
      ours.loglikelihood([types.SimpleNamespace(args=('a', 'b'))])


def test_weights_are_prepared_once(make, monkeypatch):
  from smoljax.inference import cache

  calls, real = [], cache.prepare
  monkeypatch.setattr(cache, 'prepare', lambda config, params, weights='': calls.append(
    isinstance(params['blocks'], list)) or real(config, params, weights))
  make(batch_size=2).generate_until([request('value', max_gen_toks=2)] * 5)
  assert calls.count(False) == 1
