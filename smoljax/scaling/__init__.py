"""Scaling: laws fitted to runs, and checks that a parametrisation transfers over sizes."""

from smoljax.scaling.laws import Fit, fit_chinchilla

__all__ = ['Fit', 'fit_chinchilla']
