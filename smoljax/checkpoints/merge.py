"""Several fine-tunings of one model made into one, and how much of each is best.

With θ_k the models, w_k their weights, θ_0 a model that all come from and δ_k = θ_k - θ_0:

  linear           Σ wθ / Σ w                       arXiv:2203.05482
  slerp            along the arc from θ_1 to θ_2, t = w_2 / Σ w of the way; of nearly parallel
                   tensors along the line
  task_arithmetic  θ_0 + λ Σ wδ                     arXiv:2212.04089
  ties             of each δ the share `density` with the largest values; then only those whose
                   sign is that of Σ wδ, as their weighted mean, times λ   arXiv:2306.01708
  dare             task arithmetic of δ with a random share `density` kept, and divided by it
                   arXiv:2311.03099 (mergekit divides by the share of |δ| that was kept)

Sums are float64 and rounded once, to the float32 of parameters: a soup of equal models, or one of
a single model, is that model bit for bit. (In bfloat16, as mergekit computes unless told otherwise,
.9 and .1 are .8984 and .1001, and a third of the values differ from one rounding.) A tensor is that
of one layer, as in the files of others; an embedding that is the head too is there once.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from smoljax.checkpoints.load import Model
from smoljax.data import chat_template
from smoljax.model.config import one_of

PyTree = Any

PARALLEL = 0.9995  # |cos| beyond which slerp is a line
# Fields of a model that say how it is computed, not what it is.
_OPERATIONAL = {'dtype', 'attention', 'remat', 'scan_layers', 'max_segments', 'fp8', 'max_seq_len'}


@dataclasses.dataclass(frozen=True)
class Merge:
  """How models become one.

  Raises ValueError, naming the field, for values out of range.
  """

  method: str = 'linear'
  density: float = 1.0  # share of each δ that is kept, of ties and dare
  scale: float = 1.0  # λ, of the methods with a base
  seed: int = 0  # of dare

  def __post_init__(self):
    one_of('method', self.method, METHODS)
    if not 0 < self.density <= 1:
      raise ValueError(f'density={self.density}: give a share above 0 and up to 1')
    if self.density < 1 and self.method not in ('ties', 'dare'):
      raise ValueError(f'density={self.density} means nothing to {self.method}: of ties and dare')
    if not abs(self.scale) < float('inf'):
      raise ValueError(f'scale={self.scale}: give a number')
    if self.scale != 1 and not self.needs_base:
      raise ValueError(f'scale={self.scale} means nothing to {self.method}, which has no base')

  @property
  def needs_base(self) -> bool:
    """Whether it takes the model that the others come from."""
    return self.method in ('task_arithmetic', 'ties', 'dare')


def merge(
  how: Merge, models: Sequence[PyTree], weights: Sequence[float], base: PyTree = None
) -> PyTree:
  """The parameters of the merged model, float32 numpy arrays.

  Args:
    models: parameters of each, with stacked layers.
    weights: one a model, any finite numbers; linear and slerp divide by their sum.
    base: parameters of θ_0, for the methods that have one.
  Raises:
    ValueError: weights, models and method do not go together.
  """
  w = np.asarray(weights, np.float64)
  if len(w) != len(models) or not len(models):
    raise ValueError(f'{len(w)} weights for {len(models)} models: give one each')
  if not np.isfinite(w).all():
    raise ValueError(f'weights={list(weights)}: give finite numbers')
  if how.needs_base != (base is not None):
    raise ValueError(f'{how.method} {"needs a" if how.needs_base else "has no"} base, the model '
                     'that the others come from')
  if not how.needs_base and not w.sum():
    raise ValueError(f'weights={list(weights)} sum to 0, and {how.method} divides by their sum')
  if how.method == 'slerp' and len(models) != 2:
    raise ValueError(f'slerp is between two models, not {len(models)}')

  def leaf(path: Any, *arrays: Any) -> np.ndarray:
    name, stacked = jax.tree_util.keystr(path), path[0].key in ('blocks', 'mtp')
    found = [np.asarray(x) for x in arrays]
    out = np.empty(found[0].shape, np.float32)
    for i in range(len(out) if stacked else 1):
      parts = [np.asarray(x[i] if stacked else x, np.float64) for x in found]
      key = zlib.crc32(f'{how.seed}/{name}/{i}'.encode())
      of_base = parts[-1] if how.needs_base else None
      out[i if stacked else ...] = METHODS[how.method](how, w, parts[:len(w)], of_base, key)
    return out

  return jax.tree_util.tree_map_with_path(leaf, *models, *([base] if how.needs_base else ()))


# --- Methods: (how, weights [K], K tensors, base or None, key) → tensor, all float64 --------------


def _linear(how, w, tensors, base, key):
  del how, base, key
  # What has no weight is left out, so that one model alone keeps its bits, zeros' signs included.
  used = [(x, t) for x, t in zip(w / w.sum(), tensors, strict=True) if x]
  if len(used) == 1:
    return used[0][1]
  return functools.reduce(np.add, (x * t for x, t in used))


def _slerp(how, w, tensors, base, key):
  del how, base, key
  (a, b), t = tensors, w[1] / w.sum()
  if t in (0, 1):
    return (a, b)[int(t)]
  norms = np.linalg.norm(a), np.linalg.norm(b)
  cos = float(np.vdot(a, b) / np.prod(norms)) if all(norms) else 1.0
  if abs(cos) > PARALLEL:
    return (1 - t) * a + t * b
  angle = np.arccos(cos)
  return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def _task_arithmetic(how, w, tensors, base, key):
  del key
  return base + how.scale * sum(x * (t - base) for x, t in zip(w, tensors, strict=True))


def _ties(how, w, tensors, base, key):
  del key
  deltas = np.stack([_largest(t - base, how.density) for t in tensors])
  weighted = deltas * w.reshape(-1, *[1] * base.ndim)
  sign = np.where(weighted.sum(axis=0) >= 0, 1, -1)
  agree = np.sign(deltas) == sign
  total = np.where(agree, w.reshape(-1, *[1] * base.ndim), 0).sum(axis=0)
  mean = np.where(agree, weighted, 0).sum(axis=0) / np.where(np.abs(total) < 1e-8, 1, total)
  return base + how.scale * mean


def _dare(how, w, tensors, base, key):
  rng = np.random.default_rng(key)
  kept = [base + (rng.random(t.shape) < how.density) * (t - base) / how.density for t in tensors]
  return _task_arithmetic(how, w, kept, base, key)


def _largest(delta, density):
  """The tensor with all but its share of largest magnitudes set to 0."""
  keep = max(1, int(density * delta.size))
  if keep == delta.size:
    return delta
  flat = np.zeros(delta.size)
  chosen = np.argpartition(-np.abs(delta).ravel(), keep - 1)[:keep]
  flat[chosen] = delta.ravel()[chosen]
  return flat.reshape(delta.shape)


METHODS: Mapping[str, Callable[..., np.ndarray]] = {
  'linear': _linear, 'slerp': _slerp, 'task_arithmetic': _task_arithmetic, 'ties': _ties,
  'dare': _dare,
}  # fmt: skip


# --- What may be merged ---------------------------------------------------------------------------


def require_same(models: Mapping[str, Model]) -> None:
  """Raises ValueError unless the models (path → model) are of one shape, vocabulary and template.

  How they compute and how far they read may differ; how their positions rotate may not.
  """
  (first, one), *others = models.items()
  for path, other in others:
    ours, theirs = (dataclasses.asdict(m.config) for m in (one, other))
    for field in ours:
      if field not in _OPERATIONAL and ours[field] != theirs[field]:
        raise ValueError(f'{path} has {field}={theirs[field]}, {first} has {ours[field]}: only '
                         'models of one shape can be merged')
    if one.tokenizer.pieces != other.tokenizer.pieces:
      raise ValueError(f'{path} and {first} have different tokenizers: a row of the embedding '
                       'would stand for two tokens')
    if one.bos != other.bos:
      raise ValueError(f'documents began with BOS in the training of '
                       f'{path if other.bos else first} only: their first tokens differ')
    found = [chat_template.find(m.tokenizer) for m in (one, other)]
    if all(found) and found[0] != found[1]:
      raise ValueError(f'{path} and {first} have different chat templates: answers of one are no '
                       'answers of the other')


# --- How much of each -----------------------------------------------------------------------------


class Scanned(NamedTuple):
  """A weight of the last model, and how good the merged model was."""

  weight: float
  choosing: float  # on the half that chooses, the lower the better
  reporting: float  # on the other, which has no say


def scan(
  weights: Sequence[float], made: Callable[[float], PyTree],
  scorer: Callable[[PyTree, str], float],
) -> tuple[Scanned, list[Scanned]]:
  """The best of several weights, chosen by one half of what the scorer knows; and all of them.

  The figure to report is the other half's: the best of many on one half is partly luck.

  Args:
    made: weight → parameters of the merged model.
    scorer: (parameters, 'choosing' or 'reporting') → a number, the lower the better.
  Raises:
    ValueError: no weights, or scores that are not finite.
  """
  if not weights:
    raise ValueError('no weights to scan: give some, such as 0,.05,.1,.2,.3')
  rows = []
  for weight in weights:
    params = made(weight)
    rows.append(Scanned(float(weight), scorer(params, 'choosing'), scorer(params, 'reporting')))
    if not np.isfinite(rows[-1]).all():
      raise ValueError(f'the model merged with weight {weight} scores {rows[-1][1:]}')
  return min(rows, key=lambda row: row.choosing), rows
