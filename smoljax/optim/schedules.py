"""Learning rate schedules: warm-up, then constant, cosine, or stable and decay in three forms."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Horizon(NamedTuple):
  """Steps of a run's phases: what runs of different length differ in, and nothing else.

  Given to the jitted step as an argument, so that they share its program.
  """

  warmup: Any
  decay: Any
  total: Any


def schedule(config: Any, total_steps: int) -> Callable[..., jax.Array]:
  """Learning rate of each step, counted from 0: linear warm-up, then SCHEDULES[config.schedule].

  The first of W warm-up steps has peak/W and the last the peak; the first of D cooldown steps has
  the peak, and the floor belongs to step `total_steps`, the one after the last: no step is idle.
  Before the cooldown wsd does not depend on total_steps (with warmup_steps, not warmup_fraction),
  so that a cooldown may branch from any earlier checkpoint by another total_steps.

  Returns a function of a Python or traced integer that gives a float32 scalar. Its second argument
  is a Horizon, `horizon(config, total_steps)` if it is left out.
  """
  own = horizon(config, total_steps)
  shape = SCHEDULES[config.schedule](config)
  peak = float(config.learning_rate)

  def learning_rate(step, of=own):
    step, of = jnp.asarray(step, jnp.float32), Horizon(*(jnp.asarray(x, jnp.float32) for x in of))
    return peak * jnp.minimum(1.0, (step + 1) / jnp.maximum(of.warmup, 1)) * shape(step, of)

  return learning_rate


def horizon(config: Any, total_steps: int) -> Horizon:
  """The steps of each phase of a run that takes `total_steps`, as float32 numbers of numpy.

  Raises ValueError for a schedule that does not exist or does not fit.
  """
  choose(SCHEDULES, config.schedule, 'optimizer.schedule')
  if total_steps < 1:
    raise ValueError(f'total_steps={total_steps}: a schedule needs at least 1 step')
  if not 0 <= config.floor <= 1:
    raise ValueError(f'optimizer.floor={config.floor}: give a share of the peak, from 0 to 1')
  warmup, decay = _steps(config, 'warmup', total_steps), 0
  if config.schedule in ('wsd', 'wsd_s', 'power'):
    decay = _steps(config, 'decay', total_steps)
    if warmup + decay > total_steps:
      raise ValueError(
        f'{warmup} steps of warm-up and {decay} of cooldown do not fit in {total_steps} steps: '
        'lower optimizer.warmup_steps or decay_steps (or the fractions), or train longer'
      )
  if config.schedule == 'wsd_s':
    _check_cooldowns(config.cooldowns, warmup, decay, total_steps)
  return Horizon(*map(np.float32, (warmup, decay, total_steps)))


def scale_by_rate(
  learning_rate: Callable[..., jax.Array]
) -> optax.GradientTransformationExtraArgs:
  """updates × −learning_rate(updates made so far), of the `horizon` that `update` is given."""

  def update(updates, state, params=None, *, horizon=None, **_):
    del params
    rate = -(learning_rate(state.count, horizon) if horizon else learning_rate(state.count))
    updates = jax.tree.map(lambda u: jnp.asarray(rate, u.dtype) * u, updates)
    return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

  init = lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
  return optax.GradientTransformationExtraArgs(init, update)


def wsd(config: Any) -> Callable[[jax.Array, Horizon], jax.Array]:
  """Warm-up, stable, decay (arXiv 2404.06395): 1, then the cooldown over the last steps."""
  floor = config.floor
  cooldown = choose(COOLDOWNS, config.decay_shape, 'optimizer.decay_shape')

  def factor(step, of):
    left = jnp.clip((of.total - step) / jnp.maximum(of.decay, 1), 0, 1)
    return floor + (1 - floor) * cooldown(left)

  return factor


def wsd_s(config: Any) -> Callable[[jax.Array, Horizon], jax.Array]:
  """WSD with several cooldowns (WSD-S, arXiv 2410.05192), each after which training goes on at the
  peak from the cooled weights: models of several lengths from one run, no cooldown thrown away.

  They end at the shares `cooldowns` of all steps, the run's end among them; each takes the same
  share of the steps up to its end, decay_fraction (or what decay_steps are of the last).
  """
  floor, shares = config.floor, jnp.asarray(config.cooldowns, jnp.float32)
  cooldown = choose(COOLDOWNS, config.decay_shape, 'optimizer.decay_shape')

  def factor(step, of):
    ends = jnp.round(shares * of.total)
    index = jnp.minimum(jnp.searchsorted(ends, step, side='right'), len(shares) - 1)
    left = (ends[index] - step) / jnp.maximum(jnp.round(shares[index] * of.decay), 1)
    return floor + (1 - floor) * cooldown(jnp.clip(left, 0, 1))

  return factor


def power(config: Any) -> Callable[[jax.Array, Horizon], jax.Array]:
  """The power scheduler (arXiv 2408.13359): from step `power_steps` on the rate falls as the steps'
  power -`power`, by which one rate fits any length; then wsd's cooldown."""
  if config.power_steps < 1 or config.power < 0:
    raise ValueError(f'optimizer.power_steps={config.power_steps}, power={config.power}: give 1 '
                     'step or more, and 0 or more')
  cooled = wsd(config)
  return lambda step, of: cooled(step, of) * jnp.minimum(
    1.0, (jnp.maximum(step, 1) / config.power_steps) ** -config.power)


def cosine(config: Any) -> Callable[[jax.Array, Horizon], jax.Array]:
  """Half a cosine from the end of warm-up to the floor."""
  floor = config.floor

  def factor(step, of):
    progress = jnp.clip((step - of.warmup) / jnp.maximum(of.total - of.warmup, 1), 0, 1)
    return floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

  return factor


def constant(config: Any) -> Callable[[jax.Array, Horizon], jax.Array]:
  """1 after warm-up."""
  del config
  return lambda step, of: jnp.ones_like(step)


def _check_cooldowns(shares: Any, warmup: int, decay: int, total_steps: int) -> None:
  """Raises ValueError unless WSD-S's cooldowns rise to the end and fit between each other."""
  ends = [round(share * total_steps) for share in shares]
  if not ends or ends != sorted(set(ends)) or ends[-1] != total_steps or ends[0] < 1:
    raise ValueError(f'optimizer.cooldowns={tuple(shares)}: give shares of the run at which its '
                     'cooldowns end, rising, the last of them 1')
  for start, end, share in zip([warmup, *ends], ends, shares, strict=False):
    if end - round(share * decay) < start:
      raise ValueError(f'the {round(share * decay)} steps of cooldown before step {end} do not fit '
                       f'after step {start}: lower optimizer.decay_fraction or change '
                       'optimizer.cooldowns')


def _steps(config: Any, phase: str, total_steps: int) -> int:
  """Steps of 'warmup' or 'decay': given, or as a fraction of all."""
  steps, fraction = getattr(config, f'{phase}_steps'), getattr(config, f'{phase}_fraction')
  if steps < 0 or not 0 <= fraction <= 1:
    raise ValueError(
      f'optimizer.{phase}_steps={steps}, {phase}_fraction={fraction}: '
      'give steps of 0 or more and a fraction from 0 to 1'
    )
  steps = steps or round(fraction * total_steps)
  if steps > total_steps:
    raise ValueError(
      f'optimizer.{phase}_steps={steps} exceeds the {total_steps} steps of the run: '
      f'lower it, or set it to 0 and use {phase}_fraction'
    )
  return steps


def choose(options: Mapping[str, Any], name: str, key: str) -> Any:
  """options[name]; raises ValueError that lists the names there are, of config key `key`."""
  if name not in options:
    raise ValueError(f'{key}={name!r}: choose one of {", ".join(options)}')
  return options[name]


def require(config: Any, keys: Iterable[str], name: str) -> None:
  """Raises ValueError where the config lacks one of these keys of its section `name`."""
  missing = [key for key in keys if not hasattr(config, key)]
  if missing:
    raise ValueError(f'{name} lacks {", ".join(missing)}: see smoljax/optim/optimizer.py')


# config → (step, Horizon) → share of the peak at each step after warm-up.
SCHEDULES: dict[str, Callable[[Any], Callable[[jax.Array, Horizon], jax.Array]]] = {
  'wsd': wsd,
  'wsd_s': wsd_s,
  'power': power,
  'cosine': cosine,
  'constant': constant,
}

# Share of the cooldown that is left (from 1 to 0) → share of the peak.
COOLDOWNS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'linear': lambda left: left,
  '1-sqrt': lambda left: 1 - jnp.sqrt(1 - left),  # Hägele et al., arXiv 2405.18392
}
