"""A name that users rely on: Muon lives in smoljax/optim/ (muon, newton_schulz, qk_clip)."""

from smoljax.optim.muon import scale_by_muon
from smoljax.optim.newton_schulz import newton_schulz
from smoljax.optim.qk_clip import qk_clip

__all__ = ['newton_schulz', 'qk_clip', 'scale_by_muon']
