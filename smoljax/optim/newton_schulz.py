"""The Newton-Schulz iteration: the nearest (semi-)orthogonal matrix, by matrix products alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from smoljax.optim import symmetric


class Table(NamedTuple):
  """Coefficients of one Newton–Schulz preset.

  X is first divided by `norm`·‖X‖_F + `eps`. `rows` holds (a, b, c) of each step. An `endless`
  table may be cut short or prolonged by its last row; the others are tuned as a whole. A table with
  a `restart` is iterated on the Gram matrix, anew from that step on (see newton_schulz).
  """

  rows: tuple[tuple[float, float, float], ...]
  norm: float
  eps: float
  endless: bool
  restart: int | None = None


def newton_schulz(
  x: jax.Array,
  coefficients: str = 'pe5',
  steps: int = 5,
  dtype: jax.typing.DTypeLike = jnp.bfloat16,
) -> jax.Array:
  """Replaces the singular values of each matrix by values near 1, keeping its singular vectors.

  A step is X ← (aI + bA + cA²)X with A = XXᵀ (on the other side where X is tall), three products,
  of which two have the long side of X in them. The Gram form (Dao-AILab/gram-newton-schulz) runs on
  A alone, of the short side squared, and multiplies X only before a restart and at the end: fewer
  operations where X is twice as wide as tall or more, for less accuracy. It wants the ten bits of
  float16's fraction rather than the range of bfloat16, and a restart, lest what rounding adds to A
  grow. Square matrices take the plain form.

  Args:
    x: [..., rows, cols], any float dtype; each matrix whole on its device if sharded.
    coefficients: a name in COEFFICIENTS.
    steps: iterations; tables tuned as a whole allow only their own number.
    dtype: of the matrices between products. Products accumulate in float32 (float64 for float64).
      The Gram form takes float16 where it is bfloat16.

  Returns:
    Array like x. A zero matrix stays zero; a NaN or an infinity makes its own matrix NaN, so that a
    guard can see it, and no other in the batch. Matrices far smaller than the table's eps shrink.

  Raises:
    ValueError: unknown coefficients, or a number of steps the table has no rows for.
  """
  table = coefficient_table(coefficients, steps)
  wide = jnp.promote_types(dtype, jnp.float32)
  # On accelerators float32 products are rounded to TF32 or bfloat16 unless told otherwise.
  precision = jax.lax.Precision.HIGHEST if jnp.finfo(dtype).bits >= 32 else None

  def product(y, z):
    # The matrix units accumulate in float32 whatever they give out: rounded there, the result
    # need not pass through memory at twice the size.
    return jnp.matmul(y, z, precision=precision, preferred_element_type=y.dtype)

  def transposed(y):
    return jnp.swapaxes(y, -2, -1)

  def by_halves(function, plain, y, *more, tall=False):
    """plain(y, …), a symmetric matrix, or on a GPU function(y, …), which computes half of it."""
    if symmetric.fits(y, tall):
      return jax.lax.platform_dependent(y, *more, cuda=function, default=plain)
    return plain(y, *more)

  def gram_of(y):
    """Of the short side."""
    return by_halves(
      lambda y: symmetric.product(y, y, tall=tall),
      lambda y: product(transposed(y), y) if tall else product(y, transposed(y)), y, tall=tall)

  def alike(y, z):
    """y z, of polynomials of one symmetric matrix."""
    return by_halves(symmetric.product, product, y, z)

  def polynomial(gram, abc):
    """a·I + b·gram + c·gram²."""
    a, b, c = abc

    def plain(gram):
      square = product(gram, gram)
      sum_ = b * gram.astype(wide) + c * square.astype(wide)
      return (sum_ + a * jnp.eye(gram.shape[-1], dtype=wide)).astype(gram.dtype)

    return by_halves(
      lambda gram: symmetric.product(gram, gram, gram, factor=c, of_add=b, of_eye=a), plain, gram)

  def times(q, y):
    """q y of a wide y, y q of a tall one: its short side's."""
    return product(y, q) if tall else product(q, y)

  def gram_form(y):
    """Q y, with Q what the steps make of y's Gram matrix, restarted where the table says."""
    gram, q = gram_of(y), None
    for i, abc in enumerate(table.rows):
      if i == table.restart:
        y = times(q, y)
        gram, q = gram_of(y), None
      poly = polynomial(gram, abc)
      q = poly if q is None else alike(poly, q)
      if i + 1 not in (table.restart, len(table.rows)):
        gram = alike(alike(poly, gram), poly)
    return times(q, y)

  tall = x.shape[-2] > x.shape[-1]  # the Gram matrix of the short side is the cheap one
  y, small = x.astype(wide), 2.0 ** -64
  # The norm of finite elements may be beyond float32; both sums are one look at them.
  squares, least = (
    jnp.sum(jnp.square(of), axis=(-2, -1), keepdims=True) for of in (y, small * y))
  huge = jnp.isinf(squares) & jnp.isfinite(least)
  frobenius = jnp.sqrt(jnp.where(huge, least, squares))
  y = (jnp.where(huge, small, 1.0) * y / (table.norm * frobenius + table.eps)).astype(dtype)
  if table.restart is not None and y.shape[-2] != y.shape[-1]:
    return gram_form(y.astype(jnp.float16) if y.dtype == jnp.bfloat16 else y).astype(x.dtype)
  # Unrolled: 10 % faster than a scan, which copies what it carries, and the steps share two buffers
  # of the size of y.
  for abc in table.rows:
    y = times(polynomial(gram_of(y), abc), y)
  return y.astype(x.dtype)


def coefficient_table(name: str, steps: int) -> Table:
  """The preset with exactly `steps` rows."""
  if name not in COEFFICIENTS:
    raise ValueError(f'coefficients {name!r}: choose one of {", ".join(COEFFICIENTS)}')
  table = COEFFICIENTS[name]
  if steps < 1 or (steps != len(table.rows) and not table.endless):
    need = 'at least 1' if table.endless else f'{len(table.rows)}, for which they were tuned'
    raise ValueError(f'coefficients {name!r} with {steps} steps: steps must be {need}')
  rows = table.rows[:steps] + table.rows[-1:] * (steps - len(table.rows))
  return table._replace(rows=rows)


_JORDAN = (3.4445, -4.7750, 2.0315)
_TAYLOR = (2.0, -1.5, 0.5)
_PE = (
  (8.28721201814563, -23.595886519098837, 17.300387312530933),
  (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
  (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
  (3.3184196573706015, -2.488488024314874, 0.51004894012372),
  (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
  (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
  (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)

COEFFICIENTS: dict[str, Table] = {
  # Keller Jordan's: steep at zero, does not converge (singular values end in about [0.68, 1.15]).
  'jordan': Table((_JORDAN,), norm=1.0, eps=1e-7, endless=True),
  # You Jiacheng's five rows (optax calls them 'dion').
  'you5': Table(
    (
      (4.0848, -6.8946, 2.9270),
      (3.9505, -6.3029, 2.6377),
      (3.7418, -5.5913, 2.3037),
      (2.8769, -3.1427, 1.2046),
      (2.8366, -3.0525, 1.2012),
    ),
    norm=1.0,
    eps=1e-7,
    endless=False,
  ),
  # Polar Express, Algorithm 1: each row is optimal for the interval the last one left; 1 % safety.
  'pe': Table(
    (*((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _PE), (1.875, -1.25, 0.375)),
    norm=1.01,
    eps=1e-7,
    endless=True,
  ),
  # Polar Express for five steps, 2 % safety inside the recursion (modded-nanogpt, nanochat, dion).
  'pe5': Table(
    (
      (8.156554524902461, -22.48329292557795, 15.878769915207462),
      (4.042929935166739, -2.808917465908714, 0.5000178451051316),
      (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
      (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
      (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    norm=1.02,
    eps=1e-6,
    endless=False,
  ),
  # CANS (Chebyshev-accelerated), five steps, as in Emerging-Optimizers.
  'cans5': Table(
    (
      (8.4703, -25.1081, 18.6293),
      (4.1828, -3.1087, 0.5806),
      (3.9619, -2.9541, 0.5630),
      (3.2866, -2.4647, 0.5074),
      (2.2737, -1.6447, 0.4162),
    ),
    norm=1.0,
    eps=1e-7,
    endless=False,
  ),
  # The first five rows of Polar Express, 5 % safety, for the Gram form.
  'gram5': Table(
    tuple((a / 1.05, b / 1.05**3, c / 1.05**5) for a, b, c in _PE[:5]),
    norm=1.0,
    eps=1e-7,
    endless=False,
    restart=2,
  ),
  # DeepSeek-V4: the last two rows pull the singular values to 1.
  'deepseek10': Table((_JORDAN,) * 8 + (_TAYLOR,) * 2, norm=1.0, eps=1e-7, endless=False),
  # Converges to the exact polar factor; give it 12 steps or more.
  'taylor': Table((_TAYLOR,), norm=1.0, eps=1e-7, endless=True),
}
