"""A name that users rely on: exports and imports live in smoljax/checkpoints/huggingface.py."""

from smoljax.checkpoints.huggingface import load_hf, save_hf

__all__ = ['load_hf', 'save_hf']
