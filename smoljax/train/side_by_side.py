"""Many copies of one small model trained side by side on one device, each on a mixture of its own.

What a copy computes in a step is the trainer's own step (`step.make_train_step`), mapped over a
leading axis of models, on rows that the trainer's own packing made. What differs: rows lie on the
device, packed once; each epoch has them in another order, where a run alone packs anew.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model, optim
from smoljax.data import packing
from smoljax.data.batches import Batches, Stage
from smoljax.data.corpus import Corpus
from smoljax.train import guard, objectives
from smoljax.train.step import Objective, make_train_step

PyTree = Any


class Table(NamedTuple):
  """Packed rows of several corpora, those of one corpus in a stretch of their own.

  Attributes:
    rows: `inputs`, `targets` [R, T] uint16 or int32; `segment_ids`, `positions` [R, T] uint16;
      `source` [R] int32, index of the corpus.
    tokens: places with a target of each row, [R].
    starts: where each corpus begins, and the end, [m + 1].
    num_bytes: UTF-8 bytes of the corpora's documents, [m].
  """

  rows: dict[str, np.ndarray]
  tokens: np.ndarray
  starts: np.ndarray
  num_bytes: np.ndarray

  def first(self, share: float) -> 'Table':
    """That share of the rows of each corpus, at least one; the bytes are the whole corpora's."""
    counts = np.maximum(1, np.ceil(share * np.diff(self.starts) - 1e-9).astype(int))
    kept = np.concatenate([a + np.arange(n) for a, n in zip(self.starts, counts, strict=False)])
    return Table({k: x[kept] for k, x in self.rows.items()}, self.tokens[kept],
                 np.concatenate([[0], np.cumsum(counts)]), self.num_bytes)

  @property
  def sizes(self) -> np.ndarray:
    """Tokens to learn of each corpus, [m]."""
    return np.add.reduceat(self.tokens, self.starts[:-1])


class _Held(list):
  """Records in memory: a document longer than a row is asked for once a row."""

  def __getitems__(self, wanted: Sequence[int]) -> list:
    return [self[i] for i in wanted]


def halves(corpus: Corpus) -> tuple[Corpus, Corpus]:
  """Its documents in turn to one and the other; a single one is in both."""
  number = len(corpus.lengths)
  parts = [np.arange(number)[i % number::2] for i in range(2)]
  first, second = (dataclasses.replace(
    corpus, lengths=corpus.lengths[part], digest=f'{corpus.digest}-{i}',
    records=_Held(corpus.records.__getitems__(part.tolist()))) for i, part in enumerate(parts))
  return first, second


def make_table(corpora: Mapping[str, Corpus], *, seq_len: int, window: int, seed: int) -> Table:
  """One epoch of each corpus, packed as the trainer packs it.

  Raises ValueError for corpora of conversations, of which not every token is learned.
  """
  parts, counts, sizes = [], [], []
  for i, (name, corpus) in enumerate(corpora.items()):
    if corpus.has_mask:
      raise ValueError(f'{name} is of conversations, and mixtures are of documents')
    corpus = dataclasses.replace(
      corpus, records=_Held(corpus.records.__getitems__(range(len(corpus.lengths)))))
    options = dict(seq_len=seq_len, window=window, seed=seed,
                   max_segments=packing.usual_segments(
                     np.minimum(corpus.lengths, corpus.longest(seq_len)), seq_len))
    rows, count = packing.Rows(corpus, **options), -1
    while rows.position[0] == 0:
      next(rows)
      count += 1
    epoch = Batches({name: corpus}, [Stage('all', 0, 1, {name: 1.0})], rows=max(1, count),
                    **options)
    part = next(iter(epoch))
    parts.append({**part, 'source': np.full(len(part['source']), i, np.int32)})
    counts.append(len(part['source']))
    sizes.append(sum(int(r['num_bytes']) for r in corpus.records))
  rows = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  small = rows['inputs'].max() < 1 << 16
  kinds = {'source': np.int32, 'segment_ids': np.uint16, 'positions': np.uint16,
           **dict.fromkeys(('inputs', 'targets'), np.uint16 if small else np.int32)}
  return Table({k: rows[k].astype(kind) for k, kind in kinds.items()},
               (rows['segment_ids'] > 0).sum(axis=1), np.concatenate([[0], np.cumsum(counts)]),
               np.array(sizes))


def choose_rows(
  table: Table, mixtures: np.ndarray, steps: Sequence[int], rows: int, seeds: Sequence[int]
) -> np.ndarray:
  """Which rows each copy learns from in each step, [copies, steps, rows] int32.

  As in a run alone the next row is of the corpus that is furthest behind its share in tokens. Of
  one seed all copies meet the rows of a corpus in the same order: they differ in the mixture alone.

  Args:
    mixtures: [copies, phases, corpora]. steps: of each phase.
  """
  total = sum(steps) * rows
  counts = np.diff(table.starts)

  @functools.cache
  def order(seed: int, corpus: int) -> np.ndarray:
    epochs = -(-total // counts[corpus])
    return np.concatenate([
      table.starts[corpus] + np.random.default_rng([seed, corpus, e]).permutation(counts[corpus])
      for e in range(min(epochs, 64))])

  orders = [[order(seed, d) for d in range(len(counts))] for seed in seeds]
  copies = np.arange(len(mixtures))
  given = np.zeros(mixtures[:, 0].shape, int)  # rows of each corpus so far
  chosen = np.zeros((len(copies), total), np.int32)
  at = 0
  for phase, count in enumerate(steps):
    taken = np.zeros(given.shape)
    weights = np.where(mixtures[:, phase] > 0, mixtures[:, phase], -np.inf)
    for _ in range(count * rows):
      sums = taken.sum(axis=1, keepdims=True)
      of = np.argmax(weights * (sums + 1) - np.where(weights > 0, taken, 0), axis=1)
      for copy in copies:
        places = orders[copy][of[copy]]
        chosen[copy, at] = places[given[copy, of[copy]] % len(places)]
      given[copies, of] += 1
      taken[copies, of] += table.tokens[chosen[:, at]]
      at += 1
  return chosen.reshape(len(copies), sum(steps), rows)


class Trainer:
  """Trains copies of one model at once, as a config's sections optimizer, guard and train say.

  Args:
    config: a resolved config; its mesh is not asked.
    num_sources: corpora that are scored.
    block: steps a call of the device.
  """

  def __init__(self, config: Any, model_config: model.ModelConfig, num_sources: int,
               block: int = 8):
    self.config, self.model_config, self.num_sources = config, model_config, num_sources
    self.block = block
    self.optimizer, _ = optim.make_optimizer(
      config.optimizer, model.abstract_params(model_config), config.train.steps)
    objective = Objective(chunk=config.train.loss_chunk, z_loss=config.train.z_loss)
    compiled: Any = make_train_step(model_config, self.optimizer, config.guard, objective)
    self._step = compiled.__wrapped__  # it is compiled here, mapped over copies
    self._init = jax.jit(jax.vmap(self._fresh))
    self._advance = jax.jit(jax.vmap(self._steps, in_axes=(0, None, 0)), donate_argnums=0)
    self._score = jax.jit(jax.vmap(self._sums, in_axes=(0, None)))

  def _fresh(self, seed: jax.Array) -> dict:
    params = model.init(self.model_config, jax.random.key(seed))
    guarded = jax.tree.map(
      jnp.asarray, guard.init(self.config.guard, self.model_config.num_layers))
    return {'params': params,
            'opt_state': {'optimizer': self.optimizer.init(params), 'guard': guarded}}

  def _steps(self, state: dict, rows: dict, chosen_SB: jax.Array) -> tuple[dict, jax.Array]:
    def one(state: dict, chosen_B: jax.Array) -> tuple[dict, jax.Array]:
      batch = {k: x[chosen_B].astype(jnp.int32) for k, x in rows.items()}
      state, metrics = self._step(state, batch | {'source': jnp.zeros_like(batch['source'])})
      return state, metrics['loss']

    return jax.lax.scan(one, state, chosen_SB)

  def _sums(self, params: PyTree, rows: dict) -> jax.Array:
    """Nats of each corpus, [num_sources], of rows [batches, B, …]."""
    params = model.computed(self.model_config, params)

    def some(total: jax.Array, batch: dict) -> tuple[jax.Array, None]:
      loss = objectives.next_token(
        self.model_config, params, {k: x.astype(jnp.int32) for k, x in batch.items()},
        total_tokens=jnp.float32(1), num_sources=self.num_sources,
        chunk=self.config.train.loss_chunk)
      return total + loss.metrics['loss_sum_S'], None

    return jax.lax.scan(some, jnp.zeros(self.num_sources), rows)[0]

  def train(self, rows: Mapping[str, jax.Array], chosen: np.ndarray, seeds: Sequence[int]
            ) -> tuple[PyTree, np.ndarray]:
    """Parameters of all copies, and the loss of each step, [copies, steps].

    Args:
      rows: `Table.rows`, on the device.
      chosen: of choose_rows.
      seeds: of the copies' initialisation.
    """
    state = self._init(jnp.asarray(seeds, jnp.uint32))
    losses = []
    for at in range(0, chosen.shape[1], self.block):
      state, loss = self._advance(state, rows, jnp.asarray(chosen[:, at:at + self.block]))
      losses.append(loss)
    return state['params'], np.concatenate(jax.device_get(losses), axis=1)

  def score(self, params: PyTree, held_out: Table, batch: int = 64) -> np.ndarray:
    """Bits per byte of each corpus of held-out rows, [copies, corpora].

    A document longer than a row is read in rows that do not see each other.
    """
    count = len(held_out.tokens)
    padded = math.ceil(count / batch) * batch
    rows = {k: jnp.asarray(np.concatenate([x, np.zeros((padded - count, *x.shape[1:]), x.dtype)])
                           .reshape(-1, batch, *x.shape[1:])) for k, x in held_out.rows.items()}
    nats = np.asarray(self._score(params, rows), np.float64)
    return nats / math.log(2) / held_out.num_bytes
