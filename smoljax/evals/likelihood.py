"""Log-probabilities of continuations, many windows at a time."""

import collections
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model, sharding

_MIN_BUCKET = 128  # tokens; shorter sequences are padded to this
# Places of one length that are worth a program of their own, by backend: fewer are padded to a
# length that has one, since to compile takes seconds.
_WORTH = {'cpu': 1 << 15, 'gpu': 1 << 19}
_CHUNK = 256  # places whose logits exist at once: [B, _CHUNK, V] in float32


class Window(NamedTuple):
  """A stretch of a sequence that is run at once: `tokens[first:]` are scored."""

  key: Any  # whatever the caller wants back with the scores
  tokens: np.ndarray  # [n + 1] int: n inputs, shifted by one against n targets
  first: int  # ≥ 1


def windows(
  key: Any, tokens: np.ndarray, *, first: int, seq_len: int, min_context: int
) -> Iterator[Window]:
  """Cuts a sequence into windows of at most `seq_len` inputs that score `tokens[first:]` once each.

  A sequence that fits is one window. If only its beginning does not fit, it is cut on the left.
  Otherwise windows overlap: each one after the first starts `seq_len - min_context` further on and
  scores what the one before did not, so every token is predicted from all tokens before it or from
  more than `min_context` of them.
  """
  n = len(tokens) - 1  # targets are tokens 1…n
  if n - first < seq_len:
    start = max(0, n - seq_len)
  else:
    start = max(0, first - 1 - min_context)
  while first <= n:
    stop = min(start + seq_len, n)
    yield Window(key, tokens[start : stop + 1], first - start)
    start, first = start + seq_len - min_context, stop + 1


@functools.partial(jax.jit, static_argnums=0)
def _score(
  config: model.ModelConfig, params: dict, inputs_BT: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each target given the inputs up to it, and that of the likeliest token.

  Rows are right-padded; nothing that is scored can see the padding (attention is causal).
  """
  hidden_BTD, _ = model.hidden(config, params, inputs_BT)
  unembed_DV = model.unembedding(config, params)

  def one(slice_: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    hidden_BCD, targets_BC = slice_
    logits_BCV = model.project(config, hidden_BCD, unembed_DV)
    # A masked sum instead of a gather: it also works where V is sharded.
    hot_BCV = jax.nn.one_hot(targets_BC, logits_BCV.shape[-1], dtype=jnp.float32)
    target_BC = jnp.sum(logits_BCV * hot_BCV, axis=-1)
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    return target_BC - log_z_BC, jnp.max(logits_BCV, axis=-1) - log_z_BC

  over = (sharding.slices(hidden_BTD, _CHUNK), sharding.slices(targets_BT, _CHUNK))
  scores = jax.tree.map(sharding.unsliced, jax.lax.map(one, over))
  return jax.tree.map(lambda x: sharding.constrain(x, None, None), scores)


class Rehearsal:
  """In the place of parameters that are not there yet: notes what scores of them would compute.

  Args:
    params: ShapeDtypeStructs.
  """

  def __init__(self, params: dict):
    self._params = params
    self._noted: dict[tuple, dict] = {}  # config and shape of a batch → its arrays

  def note(self, config: model.ModelConfig, arrays: dict) -> None:
    """A batch that would be scored."""
    self._noted[config, arrays['inputs_BT'].shape] = arrays

  def compile(self) -> Iterator[None]:
    """Compiles what was noted, a program a turn; to score such parameters then need not do it."""
    for (config, _), arrays in self._noted.items():
      _score.lower(config, self._params, **arrays).compile()
      yield


def run_windows(
  config: model.ModelConfig,
  params: dict | Rehearsal,
  stream: Iterable[Window],
  *,
  batch_size: int,
  seq_len: int,
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
  """Yields `(key, logprobs, best)` of each window's scored tokens, in order of computation.

  Both are float32 nats: of the token, and of what the model holds likeliest there. Under a mesh
  (`jax.set_mesh`) the batch is split over its batch axes, and grows to a multiple of them; all
  processes must give the same windows and receive all scores.

  For a `Rehearsal` nothing is computed, and all scores are 0.

  Raises ArithmeticError if a score is not finite.
  """
  mesh = jax.sharding.get_mesh()
  if not mesh.empty:
    num_shards = math.prod(mesh.shape[a] for a in sharding.RULES['batch'] or ())
    batch_size = -(-batch_size // num_shards) * num_shards

  def dispatch(batch: list[Window], length: int) -> tuple[list[Window], Any]:
    tokens_BT = np.zeros((batch_size, length + 1), np.int32)
    for i, w in enumerate(batch):
      tokens_BT[i, : len(w.tokens)] = w.tokens
    arrays = {'inputs_BT': tokens_BT[:, :-1], 'targets_BT': tokens_BT[:, 1:]}
    if not mesh.empty:
      local = sharding.local_rows(mesh, batch_size)
      arrays = sharding.shard_batch({k: x[local] for k, x in arrays.items()}, mesh)
    if isinstance(params, Rehearsal):
      params.note(config, arrays)
      return batch, (np.zeros((batch_size, length), np.float32),) * 2
    return batch, _score(config, params, **arrays)

  def fetch(batch: list[Window], scores: Any) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    logprobs_BT, best_BT = map(np.asarray, scores)
    for i, w in enumerate(batch):
      span = slice(w.first - 1, len(w.tokens) - 1)
      if not np.isfinite(logprobs_BT[i, span]).all():
        raise ArithmeticError(
          'the model gives probabilities that are no numbers: its parameters are broken, or a '
          f'token id is not below its vocabulary of {config.vocab_size}'
        )
      yield w.key, logprobs_BT[i, span], best_BT[i, span]

  pieces = 2 * sharding.num_parts('length')  # where the mesh splits rows
  worth = _WORTH.get(jax.default_backend(), _WORTH['gpu'])
  waiting: dict[int, list[Window]] = collections.defaultdict(list)  # by padded length
  compiled: set[int] = set()  # lengths that have a program

  def batches() -> Iterator[tuple[list[Window], int]]:
    """What is run at once, and the length that it is padded to."""
    for w in stream:
      length = max(_MIN_BUCKET, 1 << (len(w.tokens) - 2).bit_length())
      length = min(seq_len, -(-length // pieces) * pieces)
      waiting[length].append(w)
      if len(waiting[length]) < batch_size:
        continue
      if length in compiled or len(waiting[length]) * length >= worth:
        compiled.add(length)
        while len(waiting[length]) >= batch_size:
          yield waiting[length][:batch_size], length
          del waiting[length][:batch_size]
    # The rest, longest first, by programs that are there where that will do.
    rest = [(length, w) for length in sorted(waiting, reverse=True) for w in waiting[length]]
    for at in range(0, len(rest), batch_size):
      length = min((n for n in compiled if n >= rest[at][0]), default=rest[at][0])
      compiled.add(length)
      yield [w for _, w in rest[at : at + batch_size]], length

  running = None  # computed while the next batch is put together
  for batch, length in batches():
    started = dispatch(batch, length)
    if running:
      yield from fetch(*running)
    running = started
  if running:
    yield from fetch(*running)
