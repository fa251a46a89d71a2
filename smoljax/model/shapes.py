"""Shapes of released models, by the names that `model.shape` of a config takes."""


from smoljax.model.config import Llama3Rope, ModelConfig

# Sizes of the family below 3B count parameters without the embedding, which at 128,256 pieces
# would be half of the smallest. Deep and thin, as pays at these sizes (MobileLLM,
# arXiv:2402.14905); a multiple of four layers, so that every fourth is without positions.
# What `none` would keep besides is cheaper to compute again than to write down and read.
_NAMED = 'qkv+ctx+mid+gu'
_SMOLLM3 = dict(vocab_size=128256, max_seq_len=65536, rope_theta=5e6, remat=_NAMED)
_LLAMA3 = dict(
  vocab_size=128256, max_seq_len=131072, rope_theta=5e5, nope_interval=0, norm_eps=1e-5,
  rope_scaling=Llama3Rope(factor=32.0, original_max_seq_len=8192), remat=_NAMED,
)  # fmt: skip
_SMOLLM2 = dict(
  vocab_size=49152, max_seq_len=8192, nope_interval=0, norm_eps=1e-5, head_dim=64, remat=_NAMED)

SHAPES: dict[str, ModelConfig] = {
  'smollm3-3b': ModelConfig(
    num_layers=36, embed_dim=2048, num_heads=16, num_kv_heads=4, head_dim=128, mlp_dim=11008,
    **_SMOLLM3,
  ),
  'smollm3-1b': ModelConfig(
    num_layers=24, embed_dim=2048, num_heads=16, num_kv_heads=4, head_dim=128, mlp_dim=5120,
    **_SMOLLM3,
  ),
  'smollm3-500m': ModelConfig(
    num_layers=32, embed_dim=1280, num_heads=20, num_kv_heads=4, head_dim=64, mlp_dim=3072,
    **_SMOLLM3,
  ),
  'smollm3-360m': ModelConfig(
    num_layers=32, embed_dim=1024, num_heads=16, num_kv_heads=4, head_dim=64, mlp_dim=2816,
    **_SMOLLM3,
  ),
  'smollm3-135m': ModelConfig(
    num_layers=32, embed_dim=640, num_heads=10, num_kv_heads=2, head_dim=64, mlp_dim=1664,
    **_SMOLLM3,
  ),
  'smollm3-50m': ModelConfig(
    num_layers=32, embed_dim=384, num_heads=6, num_kv_heads=2, head_dim=64, mlp_dim=1024,
    **_SMOLLM3,
  ),
  'llama-3.2-3b': ModelConfig(
    num_layers=28, embed_dim=3072, num_heads=24, num_kv_heads=8, head_dim=128, mlp_dim=8192,
    **_LLAMA3,
  ),
  'llama-3.2-1b': ModelConfig(
    num_layers=16, embed_dim=2048, num_heads=32, num_kv_heads=8, head_dim=64, mlp_dim=8192,
    **_LLAMA3,
  ),
  'smollm2-1.7b': ModelConfig(
    num_layers=24, embed_dim=2048, num_heads=32, num_kv_heads=32, mlp_dim=8192, rope_theta=1.3e5,
    **_SMOLLM2,
  ),
  'smollm2-360m': ModelConfig(
    num_layers=32, embed_dim=960, num_heads=15, num_kv_heads=5, mlp_dim=2560, rope_theta=1e5,
    init_std=960**-0.5, **_SMOLLM2,
  ),
  'smollm2-135m': ModelConfig(
    num_layers=30, embed_dim=576, num_heads=9, num_kv_heads=3, mlp_dim=1536, rope_theta=1e5,
    init_std=576**-0.5, **_SMOLLM2,
  ),
  'tiny': ModelConfig(
    vocab_size=2048, num_layers=4, embed_dim=128, num_heads=4, num_kv_heads=2, head_dim=32,
    mlp_dim=384, max_seq_len=512, dtype='float32',
  ),
}
