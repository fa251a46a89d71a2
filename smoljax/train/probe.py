"""What is measured between steps, too dear for every one: diagnostics, and held-out text."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model, optim, sharding
from smoljax.evals.held_out import Document, bits_per_byte, copy_probe
from smoljax.optim import clipping
from smoljax.train import diagnostics
from smoljax.train.start import Run
from smoljax.train.step import PyTree, float32, make_gradients


def make_probe(run: Run) -> Callable[[dict, dict], dict]:
  """`(state, this process's batch) -> row` of diagnostics too dear for every step.

  To be taken before the step on that batch. Activations of about 4,096 tokens; how evenly weights,
  and the update that the step will make, use their directions (`svd_entropy/weights/LEAF` and
  `svd_entropy/updates/LEAF`, means over layers); how far that update moves the residual stream of
  fixed rows after each layer (`move_L`, see diagnostics.movement); and, where no
  micro-batches tell it in every row, what the gradients of the batch's two halves say. Rows that do
  not divide into micro-batches on this mesh say nothing of gradients and updates.
  """
  config, mesh, t, plan = run.model_config, run.mesh, run.config.train, run.plan
  num_shards, micros = mesh.shape['data'] * mesh.shape['fsdp'], max(2, t.accumulate)
  objective = plan.objective(len(run.batches.sources))
  gradients = make_gradients(config, dataclasses.replace(objective, accumulate=micros))
  views = optim.matrix_views(model.abstract_params(config))
  every = run.config.diagnostics.every
  fixed = fixed_rows(run.held_out, run.config.data.seq_len, mesh) if every else {}

  @jax.jit
  def of_gradients(
    state: dict, batch: dict, fixed: dict, teacher_params: PyTree, horizon: PyTree
  ) -> tuple[tuple[jax.Array, ...], jax.Array, dict]:
    number = state['opt_state']['guard']['batches'] + 1
    grads, aux = gradients(state['params'], batch, number, teacher_params)
    updates, _ = plan.optimizer.update(
      float32(grads), state['opt_state']['optimizer'], state['params'], horizon=horizon)
    updates = jax.tree.map(lambda u: u * state['opt_state']['guard']['lr_scale'], updates)
    sums = aux['micro_sq'], jnp.square(clipping.norm(grads)), jnp.sum(aux['tokens_S'])
    move_L = diagnostics.movement(config, state['params'], updates, fixed)
    return sharding.whole((sums, move_L, diagnostics.svd_entropy(updates, views)))

  @jax.jit
  def of_activations(params: PyTree, batch: dict) -> tuple[dict, dict]:
    return sharding.whole((
      diagnostics.activations(config, params, batch), diagnostics.svd_entropy(params, views)))

  def probe(state: dict, batch: dict) -> dict:
    rows, seq_len = batch['inputs'].shape
    share = len(sharding.local_rows(mesh, num_shards))
    few = min(rows, -(-4096 // (seq_len * num_shards)) * share)
    few = sharding.shard_batch({k: x[:few] for k, x in batch.items()}, mesh)
    found, of_weights = jax.device_get(of_activations(state['params'], few))
    max_L = np.max(found.pop('max_logits_LN'), axis=1)
    row = {'attn/max_logit': float(max_L.max()), 'attn/max_logit_L': max_L.tolist()}
    row['attn/entropy_L'] = np.mean(found.pop('attn_entropy_LN'), axis=1).tolist()
    row |= {name: x.tolist() for name, x in found.items()}
    row |= {f'svd_entropy/weights/{name}': float(np.mean(x)) for name, x in of_weights.items()}
    if t.rows % (micros * num_shards) == 0:
      whole = sharding.shard_batch(batch, mesh)
      sums, move_L, of_updates = jax.device_get(
        of_gradients(state, whole, fixed, run.teacher_params, plan.info.horizon))
      row['move_L'] = move_L.tolist()
      row |= {f'svd_entropy/updates/{name}': float(np.mean(x)) for name, x in of_updates.items()}
      if t.accumulate == 1:
        micro_sq, grad_sq, tokens = map(float, sums)
        row |= diagnostics.micro_batches(micro_sq, grad_sq, micros, tokens)
    return row

  return probe


def fixed_rows(
  held_out: Mapping[str, Sequence[Document]], seq_len: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """Beginnings of the first held-out documents as a batch of about 2,048 tokens, on the mesh."""
  num_shards = mesh.shape['data'] * mesh.shape['fsdp']
  rows = -(-2048 // (seq_len * num_shards)) * num_shards
  documents = [d['tokens'] for of in zip(*held_out.values(), strict=False) for d in of]
  documents = [documents[i % len(documents)] for i in range(rows)]
  inputs_BT = np.zeros((rows, seq_len), np.int32)
  for row, tokens in zip(inputs_BT, documents, strict=True):
    row[:len(tokens)] = tokens[:seq_len]
  lengths_B1 = np.array([[len(tokens)] for tokens in documents])
  places_T = np.arange(seq_len, dtype=np.int32)
  local = sharding.local_rows(mesh, rows)
  return sharding.shard_batch({
    'inputs': inputs_BT[local],
    'positions': np.tile(places_T, (rows, 1))[local],
    'segment_ids': (places_T < lengths_B1).astype(np.int32)[local],
  }, mesh)


def evaluate(run: Run, params: PyTree) -> dict[str, float]:
  """Of each corpus's held-out documents `val/NAME/{loss, bpb, ece}`; and `copy/…` over all.

  Of a run that learns from its own answers also `val/NAME/pass@…` of held-out questions.
  """
  params = run.full(params)
  row, options = {}, {'batch_size': run.config.train.rows, 'seq_len': run.config.data.seq_len}
  for name, documents in run.held_out.items():
    score = bits_per_byte(run.model_config, params, documents, **options)
    row |= {f'val/{name}/{k}': score[k] for k in ('loss', 'bpb', 'ece')}
  everything = [d for documents in run.held_out.values() for d in documents]
  if run.rollouts:
    row |= run.rollouts.evaluate(run.questions, params, run.config.train.eval_documents)
  copied = copy_probe(run.model_config, params, everything, rows=16, **options)
  return row | {f'copy/{far}/{k}': x for far, found in copied.items() for k, x in found.items()}
