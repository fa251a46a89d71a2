"""Cross entropy of logits; on NVIDIA GPUs with its gradient as one kernel (Pallas, Triton).

The logits of a chunk of places are the largest array of a small model's step. Of log Z, the loss
and its gradient XLA makes three reads of them and a write. Here a program reads its place's logits,
and once more, in part from the cache, to put their gradient where they were (Liger,
arXiv:2410.10989).
"""

import functools

import jax
import jax.numpy as jnp

from smoljax import sharding
from smoljax.model.attention import decode

# Logits read at once, how often before sums are brought up to date, warps: with so many threads a
# place, the places at work at a time fit into the cache.
TILE = (4096, 4, 16)
_NOTHING = -1e30  # below any logit, and finite: differences of it are numbers


def cross_entropy(logits_BCV: jax.Array, targets_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cross entropy and log Z of each place, float32 [B, C], in nats, of float32 logits."""
  log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
  # A one-hot sum instead of a gather: it also works where V is split over devices.
  hot_BCV = jax.nn.one_hot(targets_BC, logits_BCV.shape[-1], dtype=bool)
  hot_BCV = sharding.constrain(hot_BCV, 'batch', 'length', 'vocab')
  return log_z_BC - jnp.sum(jnp.where(hot_BCV, logits_BCV, 0.0), axis=-1), log_z_BC


def fits(dtype: jax.typing.DTypeLike) -> bool:
  """Whether `weighted` can do it here: logits in 16 bits, whole on an NVIDIA GPU."""
  return (jnp.dtype(dtype).itemsize == 2 and sharding.num_parts('vocab') == 1
          and decode.on_gpu())


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def weighted(
  logits_BCV: jax.Array, targets_BC: jax.Array, weight_BC: jax.Array, z_loss: float = 0.0,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """weight · (cross entropy + z_loss · log²Z), cross entropy and log Z, float32 [B, C].

  Only the first has a gradient, and only of the logits, in their dtype.

  Args:
    logits_BCV: in 16 bits.
    interpret: run the kernel as plain jax, on any device (to test).
  """
  nll_BC, log_z_BC = cross_entropy(logits_BCV.astype(jnp.float32), targets_BC)
  return weight_BC * (nll_BC + z_loss * jnp.square(log_z_BC)), nll_BC, log_z_BC


def _forward(logits_BCV, targets_BC, weight_BC, z_loss, interpret):
  kernel = functools.partial(gradient, z_loss=z_loss, interpret=interpret)
  if not jax.sharding.get_abstract_mesh().empty:
    names = 'batch', 'length', 'vocab'
    specs = [sharding.spec(*names[:n]) for n in (2, 2, 3)]
    logits_BCV = sharding.constrain(logits_BCV, *names)
    targets_BC, weight_BC = (sharding.constrain(x, *names[:2]) for x in (targets_BC, weight_BC))
    kernel = jax.shard_map(kernel, out_specs=tuple(specs), check_vma=False)
  nll_BC, log_z_BC, grad_BCV = kernel(logits_BCV, targets_BC, weight_BC)
  return (weight_BC * (nll_BC + z_loss * jnp.square(log_z_BC)), nll_BC, log_z_BC), grad_BCV


def _backward(z_loss, interpret, grad_BCV, cotangents):
  del z_loss, interpret
  return grad_BCV * cotangents[0].astype(grad_BCV.dtype)[..., None], None, None


weighted.defvjp(_forward, _backward)


def gradient(
  logits_BCV: jax.Array, targets_BC: jax.Array, weight_BC: jax.Array, *, z_loss: float = 0.0,
  interpret: bool = False, tile: tuple[int, int, int] = TILE,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Cross entropy, log Z, and the gradient of `weighted`'s first result in place of the logits.

  Of one device's arrays. For `tile` see TILE.
  """
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  B, C, V = logits_BCV.shape
  of_place = pl.BlockSpec((1,), lambda r: (r,))
  row = pl.BlockSpec((None, V), lambda r: (r, 0))
  number = jax.ShapeDtypeStruct((B * C,), jnp.float32)
  nll_R, log_z_R, grad_RV = pl.pallas_call(
    functools.partial(_kernel, z_loss=z_loss, tile=tile[:2]), grid=(B * C,),
    in_specs=[of_place, of_place, row], out_specs=[of_place, of_place, row],
    out_shape=[number, number, jax.ShapeDtypeStruct((B * C, V), logits_BCV.dtype)],
    input_output_aliases={2: 2}, name='cross_entropy', interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=tile[2], num_stages=1),
  )(targets_BC.reshape(-1), weight_BC.reshape(-1), logits_BCV.reshape(-1, V))
  return nll_R.reshape(B, C), log_z_R.reshape(B, C), grad_RV.reshape(B, C, V)


def _kernel(
  target_ref, weight_ref, logits_ref, nll_ref, log_z_ref, grad_ref, *, z_loss, tile
):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  block, times = tile
  (V,) = logits_ref.shape
  loops = -(-V // (block * times))
  target, weight = target_ref[0], weight_ref[0]

  def parts(i):
    """(where, what lies there, its places) of what is read in one go."""
    for j in range(times):
      start = (i * times + j) * block
      here, places = pl.ds(start, block), start + jnp.arange(block)
      x = triton.load(logits_ref.at[here], mask=places < V, other=-jnp.inf)
      yield here, x.astype(jnp.float32), places

  def look(i, carry):
    top, total = carry
    xs = [x for _, x, _ in parts(i)]
    new = functools.reduce(jnp.maximum, xs, top)
    return new, sum((jnp.exp(x - new) for x in xs), total * jnp.exp(top - new))

  def write(i, carry):
    for here, x, places in parts(i):
      grad = jnp.exp(x - log_z) * pull - jnp.where(places == target, weight, 0.0)
      triton.store(grad_ref.at[here], grad.astype(grad_ref.dtype), mask=places < V)
    return carry

  # Of the target before its place is written over.
  hit = triton.load(logits_ref.at[target]).astype(jnp.float32)
  top, total = jax.lax.fori_loop(
    0, loops, look, (jnp.full(block, _NOTHING), jnp.zeros(block, jnp.float32)))
  most = jnp.max(top)
  log_z = most + jnp.log(jnp.sum(total * jnp.exp(top - most)))
  pull = weight * (1 + 2 * z_loss * log_z)
  nll_ref[0], log_z_ref[0] = log_z - hit, log_z
  jax.lax.fori_loop(0, loops, write, 0)
