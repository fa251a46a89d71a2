"""The optimizer contest: what competes, on which model, for how long (experiments/benchmarks).

A contest is fair if everybody is tuned alike. Each optimizer has its own grid of learning rates, a
factor of two apart; from the best of them on, learning rates and weight decays are tried until one
pair is the best of the nine around it. Runs of half the length choose. The best is run in full with
several seeds, its cooldowns branched from one stable phase at several lengths, so that the tokens
it needs for AdamW's final loss can be read off (spec: Hägele et al., arXiv 2405.18392, for the
branches).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The contest's model, data and grids (no config of experiments.run)."""
  c = ConfigDict()
  c.seq_len = 512
  c.rows = 128  # 65,536 tokens a step
  c.steps = 400
  c.warmup = 20  # steps
  c.long_warmup = 80  # of the contestants adamw_warm and soap
  c.decay = 0.2  # share of a run's steps in which the learning rate falls to 0, linearly
  c.lengths = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the branches, in shares of `steps`
  c.tuning = 0.5  # length of the runs that choose a learning rate
  c.seeds = 3
  c.weight_decay = 0.1  # to begin with
  c.eval_rows = 256
  c.model = ConfigDict(dict(
    vocab_size=8192, num_layers=6, embed_dim=384, num_heads=6, num_kv_heads=2, head_dim=64,
    mlp_dim=1024, max_seq_len=512, nope_interval=4, attention='xla', dtype='bfloat16',
    scan_layers=False))  # unrolled: a third less goes through memory
  # A model with an eighth of the matrices' parameters, at which one contestant is tuned.
  c.eighth = ConfigDict(dict(num_layers=3, embed_dim=192, num_heads=3, num_kv_heads=1, mlp_dim=512))
  # Learning rates to begin with.
  adamw = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
  c.grids = ConfigDict(dict(
    adamw=adamw,
    adamw_warm=adamw,
    adamw_eighth=adamw,
    optax_muon=(2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2),
    optax_muon_labelled=(2e-3, 4e-3, 8e-3, 16e-3, 32e-3),
    muon=(2e-3, 4e-3, 8e-3, 16e-3, 32e-3),
    muonclip=(2e-3, 4e-3, 8e-3, 16e-3, 32e-3),
    muon_heads=(2e-3, 4e-3, 8e-3, 16e-3, 32e-3),
    muon_rates=(2e-3, 4e-3, 8e-3, 16e-3, 32e-3),
    soap=(1e-3, 2e-3, 4e-3, 8e-3, 16e-3),
  ))
  c.qk_clip_tau = 20.0  # K2's 100 is for runs a thousand times as long
  return c
