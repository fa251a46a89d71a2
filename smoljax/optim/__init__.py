"""Optimizers: which update each parameter gets (optimizer), and the pieces of their chains."""

from smoljax.optim.optimizer import (
  OPTIMIZERS,
  ROLES,
  Label,
  OptimizerInfo,
  Role,
  label_params,
  label_table,
  make_optimizer,
  matrix_views,
)

__all__ = [
  'OPTIMIZERS', 'ROLES', 'Label', 'OptimizerInfo', 'Role', 'label_params', 'label_table',
  'make_optimizer', 'matrix_views',
]  # fmt: skip
