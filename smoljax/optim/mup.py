"""How each leaf's initialisation, learning rate, decay and eps change with width and depth.

A learning rate tuned on a small model then fits a large one, because features move as much per step
at every size (Yang et al., arXiv:2203.03466; CompleteP, arXiv:2505.01618; for Muon the spectral
condition, arXiv:2603.00541). Everything is a multiplier on the values of a base model, of width
`base_width` and depth `base_depth`; r = width / base_width, ρ = depth / base_depth. Heads and MLP
are to grow with the width, while the head dim stays; key heads grow too, or with Muon and its like
may number `base_kv_heads` (with AdamW the coordinate check does not hold that: it is refused).

                       standard   mup                              completep
  hidden, AdamW/SOAP   1          init r^-½, lr 1/r, decay r       also eps 1/(r ρ)
  hidden, AdamH        1          init r^-½, lr r^-½               likewise
  hidden, Muon, Dion   1          init r^-½, lr c/c₀ (below),      likewise
                                  decay 1/lr
  embedding, norms     1          1                                1
  logits ×             1          1/r                              1/r
  residual branches ×  1          1                                1/ρ (instead of init's 1/√2L)

Features move alike if the update's spectral norm is like √(o/i), of fan-in i and fan-out o. Adam's
entries add up over i, whatever o is. Muon's update has singular values s(i, o), its scale rule, so
its rate goes with c = √(o/i) / s(i, o): where i and o grow alike that is 1 (moonlight: r^-½), but
for keys and values of a fixed number of heads r^-½ (moonlight: 1/r). A leaf that Muon sees as n
matrices, one a head, has s √n, since these line up. On a hyperball s = √(o / (n min(i, o))).

The two multipliers of the forward pass are folded into the leaf before them: a factor m on what a
leaf W gives is W' = m W with init and learning rate times m, decay and eps over m, the same
function of the same steps. So a model trained this way is a plain one, and exports are exact. The
logits' factor goes into the head, or, where the embedding is the head too, into the last norm.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from smoljax import model
from smoljax.optim import optimizer as optimizer_lib
from smoljax.optim.matrices import fans, path_name
from smoljax.optim.muon import SCALE_RULES

PyTree = Any
NAMES = ('standard', 'mup', 'completep')
_BRANCH_ENDS = ('o_NHD', 'down_FD', 'o_bias_D', 'down_bias_D')


class Multipliers(NamedTuple):
  """Of one leaf, on what the base model has."""

  init: float = 1.0
  lr: float = 1.0
  decay: float = 1.0
  eps: float = 1.0

  def folded(self, m: float) -> 'Multipliers':
    """With a factor m of the forward pass moved into the leaf."""
    return Multipliers(self.init * m, self.lr * m, self.decay / m, self.eps / m)


def multipliers(
  config: Any, model_config: model.ModelConfig, optimizer: Any, params: PyTree
) -> dict[str, Multipliers]:
  """Path → multipliers of every leaf.

  Args:
    config: attributes name (one of NAMES), base_width, base_depth, base_kv_heads (unread for
      standard; 0 key heads = they grew with the width).
    optimizer: section optimizer of configs/base.py.
    params: nested dict of arrays or ShapeDtypeStructs.
  Raises:
    ValueError: an unknown name, no base, or an architecture that the rules do not cover.
  """
  labels = optimizer_lib.label_params(optimizer, params)
  if config.name not in NAMES:
    raise ValueError(f'unknown parametrization.name {config.name!r}: one of {", ".join(NAMES)}')
  if config.name == 'standard':
    return dict.fromkeys(labels, Multipliers())
  if config.base_width < 1 or config.base_depth < 1:
    raise ValueError(
      f'parametrization.name={config.name} needs the base model’s base_width and base_depth: what '
      'its embed_dim and num_layers were when the learning rate was tuned')
  if model_config.mtp != 'none' or model_config.norm_position != 'pre':
    raise ValueError(
      f'parametrization.name={config.name} covers norm_position=pre and mtp=none: set them, or '
      'parametrization.name=standard')
  r = model_config.embed_dim / config.base_width
  kv_heads = config.base_kv_heads or model_config.num_kv_heads / r
  if not config.base_kv_heads and kv_heads % 1:
    raise ValueError(
      f'num_kv_heads={model_config.num_kv_heads} is no multiple of what the base model would have '
      f'at {r:g} times its width: set parametrization.base_kv_heads, the number that it had')
  if model_config.num_kv_heads != kv_heads * r and not (
    keys := {x.optimizer for path, x in labels.items() if path.endswith('k_DKH')}) <= _ANY_FAN_OUT:
    raise ValueError(
      f'parametrization.name={config.name} with optimizer {", ".join(sorted(keys))} covers key '
      f'heads that grow with the width: {kv_heads:g} at the base, so {kv_heads * r:g} at {r:g} '
      f'times its width, where num_kv_heads={model_config.num_kv_heads}; set that, '
      'optimizer.name=muon or parametrization.name=standard')
  grown = {'D': r, 'N': r, 'F': r, 'E': r, 'K': model_config.num_kv_heads / kv_heads}
  shapes = {path_name(path): x.shape for path, x in jax.tree.leaves_with_path(params)}
  depth = model_config.num_layers / config.base_depth if config.name == 'completep' else 1.0
  out = 'final_norm/scale_D' if model_config.tie_embeddings else 'head_DV'
  found = {}
  for path, label in labels.items():
    m = Multipliers()
    if label.role in _HIDDEN:
      letters = path.rpartition('_')[2]
      shape = shapes[path][-len(letters):]
      base = tuple(n / grown.get(dim, 1.0) for n, dim in zip(shape, letters, strict=True))
      lr = _rate(label, optimizer, shape) / _rate(label, optimizer, base)
      m = Multipliers(init=r**-0.5, lr=lr, decay=1 / lr)
    if label.role in _HIDDEN and config.name == 'completep':
      m = m._replace(eps=m.eps / (r * depth))
    if path == out or (path == 'final_norm/bias_D' and model_config.tie_embeddings):
      m = m.folded(1 / r)
    if path.rpartition('/')[2] in _BRANCH_ENDS and config.name == 'completep':
      m = m.folded(1 / depth)
      if model_config.init == 'nanotron':  # its 1 / √(2 L) gives way to the base's, and 1 / ρ
        m = m._replace(init=m.init * depth**0.5)
    found[path] = m
  return found


_ANY_FAN_OUT = {'muon', 'dion', 'psgd'}  # whose keys may have a fan-out that stays
_HIDDEN = tuple(name for name, role in optimizer_lib.ROLES.items() if role.view)


def _rate(label: optimizer_lib.Label, optimizer: Any, shape: tuple[float, ...]) -> float:
  """What the learning rate of a leaf of this shape (of one layer) is to be proportional to."""
  view = optimizer_lib.ROLES[label.role].view
  fan_in, fan_out = fans(shape, view)
  if label.optimizer == 'psgd' and not optimizer.hyperball:
    raise ValueError('parametrization covers optimizer.name=psgd with optimizer.hyperball alone')
  if label.optimizer not in ('muon', 'dion', 'psgd'):
    return fan_in**-0.5 if optimizer.hyperball else 1 / fan_in
  own_in, own_out = fans(shape, label.view or view)
  number = fan_in * fan_out / (own_in * own_out)
  rule = optimizer.muon.scale_rule if label.optimizer == 'muon' else 'spectral'
  scale = SCALE_RULES[rule](own_in, own_out, 1.0)
  if optimizer.hyperball:
    scale = math.sqrt(fan_out / (number * min(own_in, own_out)))
  return math.sqrt(fan_out / fan_in / number) / scale


def initialise(params: PyTree, found: Mapping[str, Multipliers]) -> PyTree:
  """Fresh parameters of `model.init`, times their multiplier."""
  scale = lambda path, x: x * found[path_name(path)].init if (
    found[path_name(path)].init != 1) else x
  return jax.tree.map_with_path(scale, params)
