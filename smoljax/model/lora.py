"""Low-rank adapters (LoRA, arXiv:2106.09685): W' = W + α/r · A B, and A and B alone are learned.

All matrices of attention and MLP have one, embedding and head have none (of attention alone they
are worse at the same size). A [in, r] is drawn from U(±1/√in), B [r, out] is 0, so that training
begins with the model itself, bit for bit. 1/r keeps the best learning rate independent of r; it is
about ten times that of all parameters.

A layer's adapters are folded into its matrices where the layer is computed, and again in its
backward pass: what is kept is the model in its compute dtype, and gradients and optimizer state of
A and B. A matrix `q_DNH` has the adapters `q_in_DR` and `q_out_RNH`, beside it in the same module.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smoljax import sharding
from smoljax.model.config import GATED, ModelConfig
from smoljax.model.layers import MATRICES, Params, name_hash


def names(config: ModelConfig) -> dict[tuple[str, str], tuple[str, str]]:
  """(module, matrix) → names of its two adapters."""
  found = {}
  for part, (inwards, outwards) in MATRICES.items():
    for name in (*inwards, outwards):
      if name == 'gate_DF' and not GATED[config.activation]:
        continue
      stem, _, letters = name.rpartition('_')
      fan_in = letters[:-1] if name == outwards else letters[:1]
      found[part, name] = f'{stem}_in_{fan_in}R', f'{stem}_out_R{letters[len(fan_in):]}'
  return found


def init(config: ModelConfig, key: jax.Array) -> Params:
  """Fresh adapters of all layers, float32: a tree like a model's, with blocks alone."""
  sizes, blocks = config.dims | {'R': config.lora_rank}, {}
  for (part, _), (a, b) in names(config).items():
    shape = lambda name: (config.num_layers, *(sizes[c] for c in sharding.dim_letters(name)))
    bound = _fan_in(config, a) ** -0.5
    new = jax.random.uniform(
      jax.random.fold_in(key, name_hash(f'{part}/{a}')), shape(a), jnp.float32, -bound, bound)
    blocks.setdefault(part, {}).update({a: new, b: jnp.zeros(shape(b), jnp.float32)})
  return {'blocks': blocks}


def abstract(config: ModelConfig, mesh: jax.sharding.Mesh) -> Params:
  """ShapeDtypeStructs of `init`'s result, with shardings."""
  return sharding.abstract(jax.eval_shape(functools.partial(init, config), jax.random.key(0)), mesh)


def joined(base: Params, adapters: Params) -> Params:
  """A model's parameters with adapters beside the matrices, as the forward pass takes them."""
  def both(layer: Params, more: Params) -> Params:
    return layer | {part: layer[part] | more[part] for part in more}

  layers, more = base['blocks'], adapters['blocks']
  blocks: Any = ([both(*x) for x in zip(layers, more, strict=True)] if isinstance(layers, list)
                 else both(layers, more))
  return base | {'blocks': blocks}


def folded(config: ModelConfig, layer: Params) -> Params:
  """A layer (or a stack of them) with its adapters folded in; as it is where there are none.

  The sum is float32, and rounded once to the matrix's dtype.
  """
  found = dict(layer)
  for (part, name), (a, b) in names(config).items() if config.lora_rank else ():
    if a not in found[part]:
      continue
    module = dict(found[part])
    left, right, w = module.pop(a), module.pop(b), module[name]
    delta = _product(left.astype(jnp.float32), right.astype(jnp.float32), a, b)
    w = sharding.constrain(w, *['layers'] * (w.ndim - len(sharding.dim_letters(name))),
                           *sharding.param_names(name, stored=False))
    scaled = config.lora_alpha / config.lora_rank * delta
    found[part] = module | {name: (w.astype(jnp.float32) + scaled).astype(w.dtype)}
  return found


def merged(config: ModelConfig, base: Params, adapters: Params) -> Params:
  """A model's parameters with the adapters in them, for all that takes a plain model."""
  return base | {'blocks': folded(config, joined(base, adapters)['blocks'])}


def _product(a, b, name_a, name_b):
  """A B, with the layers' dim in front if they have one."""
  ins, outs = (sharding.dim_letters(n) for n in (name_a, name_b))
  stack = 'L' * (a.ndim - len(ins))
  whole: Callable = lambda x, name: sharding.constrain(
    x, *['layers'] * len(stack), *sharding.param_names(name, stored=False))
  result = ins[:-1] + outs[1:]
  places = [*['layers'] * len(stack), *sharding.param_names(f'x_{result}', stored=False)]
  return jnp.einsum(f'{stack}{ins},{stack}{outs}->{stack}{result}', whole(a, name_a),
                    whole(b, name_b), out_sharding=sharding.out(*places))


def _fan_in(config, name):
  size = 1
  for letter in sharding.dim_letters(name)[:-1]:
    size *= config.dims[letter]
  return size
