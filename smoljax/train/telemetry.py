"""What a run tells: rows of metrics, profiles, signals."""

import signal
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def loss_terms(values: Sequence[dict], tokens: float) -> dict[str, Any]:
  """Loss of each module of multi-token prediction and each term of a teacher, over some steps."""
  row = {}
  if 'mtp_sum_M' in values[0]:
    sum_M, tokens_M = (
      np.sum([v[k] for v in values], axis=0) for k in ('mtp_sum_M', 'mtp_tokens_M'))
    row['mtp/loss_M'] = (sum_M / np.maximum(tokens_M, 1)).tolist()
  for name in (k for k in values[0] if k.startswith('teacher_sum/')):
    row[name.replace('_sum', '')] = float(np.sum([v[name] for v in values])) / tokens
  return row


class Termination:
  """While entered, SIGTERM is noted instead of ending the process, so that a step can be saved.

  Of several processes jax's own service notes it, and lets all agree on the step.
  """

  def requested(self, step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._noted

  def __enter__(self) -> 'Termination':
    self._noted, self._previous = False, None
    if jax.process_count() > 1:
      return self
    try:
      self._previous = signal.signal(signal.SIGTERM, self._note)
    except ValueError:  # not the main thread: the embedding program owns the signals
      self._previous = None
    return self

  def _note(self, *_: object) -> None:
    self._noted = True

  def __exit__(self, *_: object) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)


class Profile:
  """Profiles the steps from FIRST up to END, for TensorBoard's profiler or xprof."""

  def __init__(self, steps: str, directory: str):
    try:
      self._first, self._end = map(int, steps.split(':')) if steps else (-1, -1)
    except ValueError as e:
      raise ValueError(f'xprof={steps!r}: give FIRST:END, such as 10:15') from e
    self._directory, self._running = directory, False

  def turns(self, step: int) -> bool:
    """Whether profiling begins or ends before this step."""
    return step in (self._first, self._end)

  def before(self, step: int) -> None:
    """To be called before each step that `turns`, when all steps before it are done."""
    if step == self._first:
      jax.profiler.start_trace(self._directory)
      self._running = True
    elif step == self._end:
      self.__exit__()

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *_: object) -> None:
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
