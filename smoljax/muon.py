"""A name that users rely on: Muon lives in smoljax/optim/ (muon, newton_schulz, qk_clip)."""

from smoljax.optim.matrices import View
from smoljax.optim.muon import scale_by_muon
from smoljax.optim.newton_schulz import COEFFICIENTS, newton_schulz
from smoljax.optim.qk_clip import qk_clip

__all__ = ['COEFFICIENTS', 'View', 'newton_schulz', 'qk_clip', 'scale_by_muon']
