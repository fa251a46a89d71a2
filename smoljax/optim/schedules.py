"""Learning rate schedules: warm-up, then constant, cosine, or stable and decay in three forms."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def schedule(config: Any, total_steps: int) -> optax.Schedule:
  """Learning rate of each step, counted from 0: linear warm-up, then SCHEDULES[config.schedule].

  The first of W warm-up steps has peak/W and the last the peak; the first of D cooldown steps has
  the peak, and the floor belongs to step `total_steps`, the one after the last: no step is idle.
  Before the cooldown wsd does not depend on total_steps (with warmup_steps, not warmup_fraction),
  so that a cooldown may branch from any earlier checkpoint by another total_steps.

  Returns a function of a Python or traced integer that gives a float32 scalar.
  """
  shape = choose(SCHEDULES, config.schedule, 'optimizer.schedule')
  if total_steps < 1:
    raise ValueError(f'total_steps={total_steps}: a schedule needs at least 1 step')
  if not 0 <= config.floor <= 1:
    raise ValueError(f'optimizer.floor={config.floor}: give a share of the peak, from 0 to 1')
  peak, warmup = float(config.learning_rate), _steps(config, 'warmup', total_steps)
  factor = shape(config, warmup, total_steps)

  def learning_rate(step):
    step = jnp.asarray(step, jnp.float32)
    return peak * jnp.minimum(1.0, (step + 1) / max(warmup, 1)) * factor(step)

  return learning_rate


def wsd(config: Any, warmup: int, total_steps: int) -> optax.Schedule:
  """Warm-up, stable, decay (arXiv 2404.06395): 1, then the cooldown over the last steps."""
  decay, floor = _steps(config, 'decay', total_steps), config.floor
  cooldown = choose(COOLDOWNS, config.decay_shape, 'optimizer.decay_shape')
  if warmup + decay > total_steps:
    raise ValueError(
      f'{warmup} steps of warm-up and {decay} of cooldown do not fit in {total_steps} steps: '
      'lower optimizer.warmup_steps or decay_steps (or the fractions), or train longer'
    )

  def factor(step):
    return floor + (1 - floor) * cooldown(jnp.clip((total_steps - step) / max(decay, 1), 0, 1))

  return factor


def wsd_s(config: Any, warmup: int, total_steps: int) -> optax.Schedule:
  """WSD with several cooldowns (WSD-S, arXiv 2410.05192), each after which training goes on at the
  peak from the cooled weights: models of several lengths from one run, no cooldown thrown away.

  They end at the shares `cooldowns` of all steps, the run's last among them; each takes
  decay_fraction of the steps up to its end (decay_steps, where given).
  """
  ends = [round(share * total_steps) for share in config.cooldowns]
  if not ends or ends != sorted(set(ends)) or ends[-1] != total_steps or ends[0] < 1:
    raise ValueError(f'optimizer.cooldowns={tuple(config.cooldowns)}: give shares of the run at '
                     'which its cooldowns end, rising, the last of them 1')
  lengths = [config.decay_steps or round(config.decay_fraction * end) for end in ends]
  before = [warmup, *ends]
  for start, end, length in zip(before, ends, lengths, strict=False):
    if end - length < start:
      raise ValueError(f'the {length} steps of cooldown before step {end} do not fit after step '
                       f'{start}: lower optimizer.decay_fraction or change optimizer.cooldowns')
  floor, cooldown = config.floor, choose(COOLDOWNS, config.decay_shape, 'optimizer.decay_shape')
  ends_at, takes = jnp.asarray(ends, jnp.float32), jnp.asarray(lengths, jnp.float32)

  def factor(step):
    index = jnp.minimum(jnp.searchsorted(ends_at, step, side='right'), len(ends) - 1)
    left = (ends_at[index] - step) / jnp.maximum(takes[index], 1)
    return floor + (1 - floor) * cooldown(jnp.clip(left, 0, 1))

  return factor


def power(config: Any, warmup: int, total_steps: int) -> optax.Schedule:
  """The power scheduler (arXiv 2408.13359): from step `power_steps` on the rate falls as the steps'
  power -`power`, by which one rate fits any length; then wsd's cooldown."""
  if config.power_steps < 1 or config.power < 0:
    raise ValueError(f'optimizer.power_steps={config.power_steps}, power={config.power}: give 1 '
                     'step or more, and 0 or more')
  cooled = wsd(config, warmup, total_steps)
  return lambda step: cooled(step) * jnp.minimum(
    1.0, (jnp.maximum(step, 1) / config.power_steps) ** -config.power)


def cosine(config: Any, warmup: int, total_steps: int) -> optax.Schedule:
  """Half a cosine from the end of warm-up to the floor."""
  floor = config.floor

  def factor(step):
    progress = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0, 1)
    return floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

  return factor


def constant(config: Any, warmup: int, total_steps: int) -> optax.Schedule:
  """1 after warm-up."""
  del config, warmup, total_steps
  return jnp.ones_like


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


# (config, warm-up steps, all steps) → share of the peak at each step after warm-up.
SCHEDULES: dict[str, Callable[[Any, int, int], optax.Schedule]] = {
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
