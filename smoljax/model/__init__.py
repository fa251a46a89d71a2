"""The transformer: what it is (config, shapes), what it computes (transformer, layers, attention).

The names below are how the rest of the house reaches it: `model.init`, `model.apply`, ….
"""

from smoljax.model.config import HF_CLASSES, LinearRope, Llama3Rope, ModelConfig, Yarn
from smoljax.model.layers import Params, rope_frequencies, rope_table
from smoljax.model.mtp import mtp_hidden, run_mtp, without_mtp
from smoljax.model.shapes import SHAPES
from smoljax.model.transformer import (
  CAPTURED,
  Output,
  abstract_params,
  apply,
  computed,
  embed,
  final_norm,
  hidden,
  init,
  logits,
  project,
  run_blocks,
  stacked,
  unembedding,
  unstack,
)

__all__ = [
  'CAPTURED', 'HF_CLASSES', 'SHAPES', 'LinearRope', 'Llama3Rope', 'ModelConfig', 'Output', 'Params',
  'Yarn', 'abstract_params', 'apply', 'computed', 'embed', 'final_norm', 'hidden', 'init', 'logits',
  'mtp_hidden', 'project', 'rope_frequencies', 'rope_table', 'run_blocks', 'run_mtp', 'stacked',
  'unembedding', 'unstack', 'without_mtp',
]  # fmt: skip
