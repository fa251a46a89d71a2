"""Do features move as much per step at every width and depth? The coordinate check, and its page.

Models of several sizes take a few steps on one batch; at each site of the model the mean
|x_t - x_0| over its coordinates is compared. Under a parametrisation that is right the lines are
flat: the slope of its logarithm over that of the width is near 0 (Yang et al., arXiv:2203.03466).

What shrinks with the width by chance must not hide what is learned: the head starts at zero
(untied), and there are fewer tokens than dims (with 256 tokens in 64 dims, logits of a model that
is right fall with a slope of -0.3).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model, optim
from smoljax.optim import mup
from smoljax.train import objectives

PASS, CONTROL = 0.25, 0.4  # largest slope of any site where it must hold; least of some where not
HEAD_DIM, ROWS, SEQ_LEN, VOCAB = 16, 8, 64, 32


@dataclasses.dataclass(frozen=True)
class Mode:
  """One way to scale, and what is expected of it."""

  name: str
  optimizer: str  # adamw | muon
  scale_rule: str  # of muon
  learning_rate: float
  parametrization: str
  holds: bool | None  # or it is a negative control; None = for comparison
  kv_heads: int = 0  # key heads at every width; 0 = half the heads
  true_kv: bool = True  # False: the multipliers take them for grown with the width


MODES = (
  Mode('AdamW, standard', 'adamw', 'moonlight', 0.005, 'standard', False),
  Mode('AdamW, muP', 'adamw', 'moonlight', 0.005, 'mup', True),
  Mode('AdamW, CompleteP', 'adamw', 'moonlight', 0.005, 'completep', True),
  Mode('Muon, spectral', 'muon', 'spectral', 0.02, 'mup', True),
  Mode('Muon, jordan', 'muon', 'jordan', 0.02, 'mup', True),
  Mode('Muon, moonlight', 'muon', 'moonlight', 0.0125, 'mup', True),
  Mode('Muon, moonlight at a constant rate', 'muon', 'moonlight', 0.0125, 'standard', False),
  # Which a run may not have (smoljax/optim/mup.py): values move more the more heads share them.
  Mode('AdamW, muP, one key head taken for grown', 'adamw', 'moonlight', 0.005, 'mup', None, 1,
       False),
  Mode('Muon, jordan, one key head', 'muon', 'jordan', 0.02, 'mup', True, 1),
  Mode('Muon, moonlight, one key head', 'muon', 'moonlight', 0.0125, 'mup', True, 1),
  Mode('Muon, moonlight, one key head taken for grown', 'muon', 'moonlight', 0.0125, 'mup', None,
       1, False),
)  # fmt: skip


def model_of(width: int, depth: int, kv_heads: int = 0) -> model.ModelConfig:
  """The small model of this width, depth and number of key heads (0 = half the heads)."""
  heads = width // HEAD_DIM
  return model.ModelConfig(
    vocab_size=VOCAB, num_layers=depth, embed_dim=width, num_heads=heads,
    num_kv_heads=kv_heads or max(1, heads // 2), head_dim=HEAD_DIM, mlp_dim=3 * width,
    max_seq_len=SEQ_LEN, tie_embeddings=False, init_std=0.02, dtype='float32', attention='xla')


def movements(
  mode: Mode, width: int, depth: int, base: tuple[int, int], settings: Any, *, steps: int, seed: int
) -> dict[str, float]:
  """Site → mean |x_t - x_0| after t = `steps` steps.

  Args:
    base: width and depth at which the multipliers are 1.
    settings: section optimizer of configs/base.py; the mode sets its name, rule and rate.
  """
  config = model_of(width, depth, mode.kv_heads)
  c = settings.copy_and_resolve_references()
  c.name, c.learning_rate, c.muon.scale_rule = mode.optimizer, mode.learning_rate, mode.scale_rule
  c.schedule, c.warmup_fraction, c.weight_decay, c.clip_norm = 'constant', 0.0, 0.0, 0.0
  c.muon.compute_dtype = 'float32'
  kv_heads = mode.kv_heads if mode.true_kv else config.num_kv_heads * base[0] / width
  sizes = Sizes(mode.parametrization, *base, kv_heads)
  abstract = model.abstract_params(config)
  scales = mup.multipliers(sizes, config, c, abstract)
  optimizer, _ = optim.make_optimizer(c, abstract, steps, scales)
  params = mup.initialise(model.init(config, jax.random.key(seed)), scales)
  params['head_DV'] = jnp.zeros_like(params['head_DV'])
  rng = np.random.default_rng(seed)
  tokens_BT = jnp.asarray(rng.integers(0, VOCAB, (ROWS, SEQ_LEN + 1)), jnp.int32)
  batch = {
    'inputs': tokens_BT[:, :-1], 'targets': tokens_BT[:, 1:],
    'segment_ids': jnp.ones((ROWS, SEQ_LEN), jnp.int32),
    'positions': jnp.broadcast_to(jnp.arange(SEQ_LEN), (ROWS, SEQ_LEN)),
    'source': jnp.zeros(ROWS, jnp.int32),
  }  # fmt: skip

  @jax.jit
  def step(params, state):
    loss = lambda p: objectives.next_token(
      config, p, batch, total_tokens=float(ROWS * SEQ_LEN), num_sources=1, chunk=SEQ_LEN).total
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return jax.tree.map(jnp.add, params, updates), state

  measure = jax.jit(lambda params: sites(config, params, batch['inputs']))
  first, state = measure(params), optimizer.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  last = measure(params)
  return {site: float(jnp.mean(jnp.abs(x - first[site]))) for site, x in last.items()}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What mup.multipliers reads."""

  name: str
  base_width: int
  base_depth: int
  base_kv_heads: float = 0


def sites(
  config: model.ModelConfig, params: dict, tokens_BT: jax.Array
) -> dict[str, jax.Array]:
  """Keys, values, attention logits and both branches of the first and the last layer, the stream,
  the logits."""
  out = model.apply(config, params, tokens_BT, capture=('residual', 'outputs', 'qkv'))
  q_LBTNH, k_LBTKH = out.aux['q_LBTNH'], out.aux['k_LBTKH']
  k_LBTNH = jnp.repeat(k_LBTKH, config.num_heads // config.num_kv_heads, axis=3)
  logits_LBNTS = jnp.einsum('LBTNH,LBSNH->LBNTS', q_LBTNH, k_LBTNH) / config.head_dim**0.5
  found = {}
  for layer, words in ((0, 'first layer'), (-1, 'last layer')):
    found[f'keys, {words}'] = out.aux['k_LBTKH'][layer]
    found[f'values, {words}'] = out.aux['v_LBTKH'][layer]
    found[f'attention logits, {words}'] = logits_LBNTS[layer]
    found[f'attention output, {words}'] = out.aux['attn_out_LBTD'][layer]
    found[f'MLP output, {words}'] = out.aux['mlp_out_LBTD'][layer]
  return found | {'residual stream': out.aux['residual_LBTD'][-1], 'logits': out.logits}


def slopes(sizes: Sequence[int], moved: Mapping[str, Sequence[float]]) -> dict[str, float]:
  """Site → slope of log movement over log size; `moved` has one value a size."""
  return {site: float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
          for site, values in moved.items()}


def check(
  settings: Any, *, widths: Sequence[int], depths: Sequence[int], steps: int = 5, seeds: int = 2,
  log_line: Callable[[str], None] = lambda line: None,
) -> list[dict]:
  """All modes over widths (at the least depth); AdamW's muP and CompleteP over depths too.

  Returns rows: mode, axis, sizes, moved (site → one value a size, after the last step, mean over
  seeds), slopes, worst (the site of the largest |slope|), holds (as expected of the mode),
  bound (of |slope|, in words), ok.
  Over depth (at the least width) CompleteP is expected to hold, and nothing of muP.
  """
  base, rows = (min(widths), min(depths)), []
  plan = [(mode, 'width', widths) for mode in MODES]
  plan += [(m, 'depth', depths) for m in MODES
           if len(depths) > 1 and m.parametrization in ('mup', 'completep')
           and m.optimizer == 'adamw']
  for mode, axis, over in plan:
    moved: dict[str, list[float]] = {}
    for size in over:
      width, depth = (size, base[1]) if axis == 'width' else (base[0], size)
      runs = [movements(mode, width, depth, base, settings, steps=steps, seed=s)
              for s in range(seeds)]
      for site in runs[0]:
        moved.setdefault(site, []).append(float(np.mean([r[site] for r in runs])))
    found = slopes(over, moved)
    # A layer of many is to move the stream by its share: over depth the sum counts.
    # Heads that share keys and values are more alike the more there are: only what the rule for a
    # fixed number of key heads is about is judged there.
    judged = {k: v for k, v in found.items() if k in ('residual stream', 'logits') or (
      axis == 'width' and (not mode.kv_heads or k.startswith(('keys', 'values'))))}
    worst = max(judged, key=lambda k: abs(judged[k]))
    size = abs(judged[worst])
    expected = mode.holds if axis == 'width' else (
      True if mode.parametrization == 'completep' else None)
    ok = None if expected is None else size <= PASS if expected else size >= CONTROL
    rows.append({'mode': mode.name, 'axis': axis, 'sizes': list(over), 'moved': moved,
                 'slopes': found, 'worst': worst, 'slope': judged[worst], 'holds': expected,
                 'bound': '' if expected is None else f'at most {PASS}' if expected
                 else f'at least {CONTROL}', 'ok': ok})
    verdict = {True: 'as it should be', False: 'NOT as it should be', None: 'for comparison'}[ok]
    log_line(f'{mode.name}, over {axis}: largest slope {judged[worst]:+.2f} ({worst}); {verdict}')
  return rows
