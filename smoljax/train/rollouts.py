"""Samples of the policy: questions to answers, answers to a batch with rewards.

Answers are drafted by our own decoder, in the training process. Then the function that training
differentiates reads them at training's shapes (reinforce.score): it gives π_old, and with the
decoder's own random keys draws each token once more. Where it draws another one the draft is wrong
from there on; the row takes the token that was drawn and is drafted anew from it, until all draws
agree. So every token that is learned from was drawn from the distribution that training computes,
with log-probabilities equal to the bit; the decoder only makes it fast (speculative decoding of a
model by itself). In float32 one reading is nearly always enough.

What is asked and drawn depends on the seed and the batch's number alone, so a run that was killed
goes on to the same bits.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from smoljax import model, sharding
from smoljax.data.corpus import Corpus
from smoljax.data.questions import Question, Questions, question
from smoljax.data.tokenizer import Tokenizer
from smoljax.evals import held_out
from smoljax.inference.cache import no_mesh
from smoljax.inference.generate import generate
from smoljax.train import reinforce
from smoljax.train.reinforce import Answer, Reinforce

PyTree = Any


@dataclasses.dataclass
class Rollouts:
  """The sampler of a run.

  Args:
    config: the policy's, as it trains.
    end: id of the token that ends an answer.
    seq_len: places a row; a question and its answer must fit.
  """

  config: model.ModelConfig
  how: Reinforce
  tokenizer: Tokenizer
  end: int
  mesh: jax.sharding.Mesh
  seq_len: int
  seed: int
  chunk: int = 512
  _waiting: list[tuple[dict, dict]] = dataclasses.field(default_factory=list)

  def next(
    self, asking: Questions, asked: Mapping[str, np.ndarray], params: PyTree, step: int
  ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The batch that the step after `step` learns from, and what is to be logged of it.

    Every `updates` steps the policy answers all that is asked until the next time.
    """
    if self.whole(step):
      last, number = asking.stages[-1].stop, int(asked['number'])
      parts = [asking.asked(step + i, number + i)
               for i in range(self.how.updates) if step + i < last]
      self._waiting = [self.batch(
        [question(asking.corpora[asking.sources[s]], int(d), self.tokenizer)
         for s, d in zip(part['source'], part['document'], strict=True)],
        part['source'], params, int(part['number'])) for part in parts]
    return self._waiting.pop(0)

  def whole(self, step: int) -> bool:
    """Whether no answers wait to be learned from: a checkpoint does not hold them."""
    return step % self.how.updates == 0

  def evaluate(
    self, corpora: Mapping[str, Corpus], params: PyTree, limit: int
  ) -> dict[str, float]:
    """Of `samples` answers to each of up to `limit` questions a corpus: `val/NAME/pass@1`, and the
    share of questions with one right answer at least, by the rewards' first rule."""
    found, rule = {}, reinforce.REWARDS[next(iter(self.how.rewards))]
    for name, corpus in corpora.items():
      questions = [question(corpus, i, self.tokenizer)
                   for i in held_out.spread(len(corpus.lengths), limit)]
      G, number = self.how.samples, len(questions) * self.how.samples
      seeds = np.random.default_rng((self.seed, 2)).integers(0, 2**32, number)
      drafts = self._draft(params, [q.prompt for q in questions], [(s, 0) for s in seeds], G)
      answers = [self._closed([t for t, _ in draft]) for draft in drafts]
      right_QG = np.array([rule(self._read(a), questions[i // G].truth)
                           for i, a in enumerate(answers)]).reshape(-1, G)
      found |= {f'val/{name}/pass@1': float(right_QG.mean()),
                f'val/{name}/pass@{G}': float((right_QG.max(axis=1) > 0).mean())}
    return found

  def batch(
    self, questions: Sequence[Question], sources: Sequence[int], params: PyTree, number: int
  ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """A batch for reinforce.objective, `samples` rows a question, and what is to be logged.

    Raises ValueError for a question that leaves no room for its answer.
    """
    how, G = self.how, self.how.samples
    answers, logp_BT, batch, seen = self.sample(questions, params, number)
    texts = [self._read(answer) for answer in answers]
    truths = [q.truth for q in questions for _ in range(G)]
    by_rule = {name: np.array([reinforce.REWARDS[name](a, t)
                               for a, t in zip(texts, truths, strict=True)])
               for name in how.rewards}
    rewards_B = sum(how.rewards[name] * r for name, r in by_rule.items())
    rewards_B += np.array([
      reinforce.overlong_penalty(len(a), how.max_new_tokens, how.overlong) for a in answers])
    divide = how.divide_by_std
    if divide is None:
      divide = reinforce.LOSSES[how.loss].divide_by_std
    rewards_QG = rewards_B.reshape(-1, G)
    ended_B = np.array([a.ended for a in texts])
    if not how.learn_truncated:
      batch['loss_mask'] &= ended_B[:, None]
    batch |= {
      'advantage': reinforce.advantages(rewards_QG, divide).reshape(-1),
      'old_logp': np.where(batch['loss_mask'], logp_BT, 0).astype(np.float32),
      'weight': reinforce.token_weights(how.loss, batch['loss_mask'], how.max_new_tokens),
      'source': np.repeat(np.asarray(sources, np.int32), G),
    }
    lengths = np.array([len(a) for a in answers])
    first = next(iter(by_rule.values())).reshape(-1, G)
    seen |= {
      'rl/reward': rewards_B.mean(), **{f'rl/reward/{k}': r.mean() for k, r in by_rule.items()},
      'rl/any_right': (first.max(axis=1) > 0).mean(),  # pass@G of the first rule
      'rl/same_rewards': (np.ptp(rewards_QG, axis=1) == 0).mean(),  # groups that teach nothing
      'rl/truncated': 1 - ended_B.mean(), 'rl/length': lengths.mean(),
      'rl/padding': 1 - (batch['segment_ids'] > 0).mean(),
    }
    return batch, {k: float(x) for k, x in seen.items()}

  def sample(
    self, questions: Sequence[Question], params: PyTree, number: int
  ) -> tuple[list[list[int]], np.ndarray, dict[str, np.ndarray], dict[str, float]]:
    """Answers of the policy, their targets' log-probabilities, their rows, what is to be logged."""
    G, most = self.how.samples, self.how.max_new_tokens
    prompts = [q.prompt for q in questions for _ in range(G)]
    if (longest := max(map(len, prompts))) + most > self.seq_len + 1:
      raise ValueError(f'a question of {longest} tokens and an answer of up to {most} '
                       f'(train.reinforce.max_new_tokens) do not fit data.seq_len={self.seq_len}')
    seeds = np.random.default_rng((self.seed, number, 1)).integers(0, 2**32, len(prompts))
    drafts = self._draft(params, [q.prompt for q in questions], [(s, 0) for s in seeds], G)
    answers = [self._closed([t for t, _ in draft]) for draft in drafts]
    score, rounds, gap = _score(self.config, self.how.sampling, self.chunk), 0, {}
    while True:
      batch = self._rows(prompts, answers, seeds)
      with jax.set_mesh(self.mesh):
        found = jax.device_get(score(params, sharding.shard_batch(batch, self.mesh)))
      if not rounds:
        gap = self._gap(drafts, prompts, found['logp'])
      wrong_BT = batch['loss_mask'] & (found['drawn'] != batch['targets'])
      if not wrong_BT.any():
        break
      rounds += 1
      self._mend(params, prompts, answers, seeds, found['drawn'], wrong_BT)
    del batch['draw'], batch['row_seed']
    return answers, found['logp'], batch, {'rl/redrafts': rounds, **gap}

  def _draft(self, params, prompts, seeds, samples=1):
    longer = dataclasses.replace(
      self.config, max_seq_len=self.config.max_seq_len + self.how.max_new_tokens)
    with no_mesh():
      return generate(
        longer, params, prompts, max_new_tokens=self.how.max_new_tokens,
        sampling=self.how.sampling, eos_id=self.end, seed=seeds, samples=samples, logprobs=True)

  def _read(self, answer):
    ended = answer[-1] == self.end
    return Answer(self.tokenizer.decode(answer[:-1] if ended else answer), ended)

  def _closed(self, tokens):
    """An answer with the token that ended it, which the decoder leaves out, and not too long."""
    most = self.how.max_new_tokens
    return [*tokens, self.end][:most]

  def _mend(self, params, prompts, answers, seeds, drawn_BT, wrong_BT):
    """Gives wrong rows the token that was drawn at their first wrong place, and a new draft of the
    rest."""
    again = []
    for i in np.flatnonzero(wrong_BT.any(axis=1)):
      at = int(np.argmax(wrong_BT[i]))
      token = int(drawn_BT[i, at])
      answers[i] = [*answers[i][: at + 1 - len(prompts[i])], token]
      if token != self.end and len(answers[i]) < self.how.max_new_tokens:
        again.append(i)
    if not again:
      return
    filled = again + again[:1] * ((1 << (len(again) - 1).bit_length()) - len(again))
    drafts = self._draft(params, [prompts[i] + answers[i] for i in filled],
                         [(seeds[i], len(answers[i])) for i in filled])
    for i, draft in zip(again, drafts, strict=False):
      answers[i] = self._closed([*answers[i], *(t for t, _ in draft)])

  def _rows(self, prompts, answers, seeds):
    """A row of each answer behind its prompt."""
    shape = (len(answers), self.seq_len)
    batch = {k: np.zeros(shape, np.int32)
             for k in ('inputs', 'targets', 'segment_ids', 'positions', 'draw')}
    batch |= {'loss_mask': np.zeros(shape, bool), 'row_seed': seeds.astype(np.uint32)}
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
      tokens, first = [*prompt, *answer], len(prompt) - 1
      n = len(tokens) - 1
      batch['inputs'][i, :n], batch['targets'][i, :n] = tokens[:-1], tokens[1:]
      batch['segment_ids'][i, :n], batch['positions'][i, :n] = 1, np.arange(n)
      batch['loss_mask'][i, first:n] = True
      batch['draw'][i, first:n] = np.arange(n - first)
    return batch

  def _gap(self, drafts, prompts, logp_BT):
    """How far the decoder's log-probabilities are from training's; it gives those of the model."""
    if self.how.temperature != 1 or self.how.top_k:
      return {}
    gaps = [abs(p - logp_BT[i, len(prompts[i]) - 1 + t])
            for i, draft in enumerate(drafts) for t, (_, p) in enumerate(draft)]
    return {'rl/sampler_gap': max(gaps, default=0.0)}


@functools.lru_cache(maxsize=8)
def _score(config, sampling, chunk) -> Callable:
  return jax.jit(lambda params, batch: reinforce.score(
    config, model.computed(config, params), batch, sampling, chunk=chunk))
