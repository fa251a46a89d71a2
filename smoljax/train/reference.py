"""The frozen model that losses of preferences and reinforcement compare with.

It runs in the training step, on the same mesh and in the same kernels, or reads all pairs once
ahead of training and is forgotten: then what it said of their answers lies beside the run, under a
name that follows from the corpus's bytes (ids and masks), its own weights and how it computed.
"""

import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

import jax
import numpy as np

from smoljax import model, sharding
from smoljax.checkpoints import load
from smoljax.data.batches import Batches, Stage
from smoljax.train import preferences

PyTree = Any


def load_frozen(t: Any, config: model.ModelConfig, expected: PyTree) -> PyTree:
  """Its parameters, in the policy's compute dtype and where the policy's are.

  Args:
    t: section `train` of a config: `reference`, or else `init_from`, names it.
    expected: abstract parameters of such a model, with their places.
  Raises:
    ValueError: none is named, or its shapes are others.
  """
  field = 'reference' if t.reference and not config.lora_rank else 'init_from'
  if not t[field]:
    raise ValueError('the loss compares with a frozen model, or adapters are of one: give '
                     'train.init_from, with which training begins (or train.reference)')
  params = load.load_weights(t[field])[1]
  require_shapes(f'train.{field}', t[field], params, expected)
  params = jax.tree.map(lambda x: x.astype(config.dtype), params)
  return sharding.place(params, jax.tree.map(lambda x: x.sharding, expected))


def require_shapes(field: str, path: str, params: PyTree, expected: PyTree) -> None:
  """Raises ValueError, naming the config's field, for parameters that the config does not mean."""
  shapes, wanted = (
    {jax.tree_util.keystr(k): x.shape for k, x in jax.tree_util.tree_leaves_with_path(tree)}
    for tree in (params, expected)
  )
  for name in sorted(shapes.keys() | wanted.keys()):
    if shapes.get(name) != wanted.get(name):
      raise ValueError(
        f'{field}={path}: its parameter {name} has the shape {shapes.get(name)}, '
        f'but the config means {wanted.get(name)}: set --config.model.shape and tokenizer to fit'
      )


def read_pairs(
  t: Any, config: model.ModelConfig, params: PyTree, batches: Batches, mesh: jax.sharding.Mesh,
  folder: str,
) -> dict[str, np.ndarray]:
  """Corpus → summed log-probabilities of the two answers of each pair, float32 [pairs, 2].

  Read from `folder` if they are there, else computed and written; NaN for pairs that no row takes.

  Raises ValueError in a run of several processes.
  """
  if jax.process_count() > 1:
    raise ValueError('train.preference.cached: the reference reads the pairs in one process')
  weights = load.weights_fingerprint(t.reference or t.init_from)
  found = {}
  for name, corpus in batches.corpora.items():
    how = [corpus.digest, weights, config.dtype, config.attention, batches.options]
    key = hashlib.sha256(json.dumps(how, sort_keys=True, default=list).encode()).hexdigest()
    file = os.path.join(folder, f'{name}-{key[:16]}.npy')
    if not os.path.exists(file):
      os.makedirs(folder, exist_ok=True)
      sums = _read(config, params, batches, name, mesh, t.loss_chunk)
      with open(f'{file}.tmp', 'wb') as f:
        np.save(f, sums)
      os.replace(f'{file}.tmp', file)
    found[name] = np.load(file)
  return found


def _read(config, params, batches, name, mesh, chunk):
  """One epoch of a corpus, as training packs it."""
  corpus = batches.corpora[name]
  alone = Batches(
    {name: corpus}, [Stage('read', 0, 1 << 30, {name: 1.0})], rows=batches.rows, **batches.options)
  planned, read = iter(alone), iter(alone)
  run = jax.jit(functools.partial(
    preferences.reference_sums, dataclasses.replace(config, remat='none'), chunk=chunk))
  sums = np.full((len(corpus.lengths), 2), np.nan, np.float32)
  while planned.get_state()['positions'][name][0] == 0:
    plan = planned.next_plan()
    with jax.set_mesh(mesh):
      got_BS = np.asarray(run(params, sharding.shard_batch(next(read), mesh)))
    for row_S, (_, pieces) in zip(got_BS, plan, strict=True):
      for k, piece in enumerate(pieces):
        if np.isnan(sums[piece.document, 0]):  # rows of the next epoch come along at the end
          sums[piece.document] = row_S[2 * k : 2 * k + 2]
  return sums
