"""Evaluation: `evaluate` runs tasks and held-out text, `LM` serves lm-evaluation-harness."""

from typing import Any

from smoljax.evals.run import evaluate

__all__ = ['LM', 'evaluate']


def __getattr__(name: str) -> Any:
  """`LM` is loaded when it is asked for: few have lm-evaluation-harness installed."""
  if name != 'LM':
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from smoljax.evals.lm_harness import LM

  return LM
