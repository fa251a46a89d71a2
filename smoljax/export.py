"""A name that users rely on: exports and imports live in smoljax/checkpoints/huggingface.py."""

from smoljax.checkpoints.huggingface import from_hf_tensors, load_hf, save_hf, to_hf_tensors

__all__ = ['from_hf_tensors', 'load_hf', 'save_hf', 'to_hf_tensors']
