"""Tables the ready model shapes: parameters, training FLOPs, KV cache; and whether they fit.

  python -m experiments.shapes
  python -m experiments.shapes --context=65536 --shape=smollm3-3b,smollm3-1b --mesh=fsdp=8
  python -m experiments.shapes --context=2048 --shape=smollm3-360m --device=rtx4090 --tokens=5e9
  python -m experiments.shapes --context=8192 --rows=16 --remat=qkv+ctx+mid+gu --hf=DIR

Sizes in the family's names count parameters without the embedding; both are printed. With --context
a second table plans the memory of one device, for a training step on --rows rows of that many
tokens with AdamW, and for decoding with caches that long. Nothing runs: bytes are counted from
shapes, shardings and the traced backward pass (smoljax/train/memory.py), on any machine.
"""

import dataclasses
import math
import os
import sys

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.engine import cli
from smoljax import model, sharding
from smoljax.checkpoints import hf_folder
from smoljax.train import memory

# Memory in GB and peak of dense bf16 products in TFLOP/s, of one device by its vendor's data sheet.
DEVICES = {
  'rtx3090': (24, 71), 'rtx4090': (24, 165), 'rtx5090': (32, 210), 'a100': (80, 312),
  'h100': (80, 989), 'h200': (141, 989), 'b200': (180, 2250), 'v5e': (16, 197), 'v5p': (95, 459),
  'v6e': (32, 918), 'v7x': (192, 2307),
}
REACHED = .4  # of the peak; what an H200 reaches is in docs/training.md, 44 to 62 %
_CONTEXT = flags.DEFINE_integer(
  'context', 0, 'Tokens a row to plan for; 0 = no memory plan.',
  lower_bound=0, upper_bound=2**31 - 1)
_SHAPE = flags.DEFINE_list('shape', [], 'Names of ready shapes, with commas; default: all.')
_HF = flags.DEFINE_list('hf', [], 'Hugging Face folders (or config.json files) to add.')
_ROWS = flags.DEFINE_integer(
  'rows', 0, 'Rows a step over all devices; 0 = one per data shard.',
  lower_bound=0, upper_bound=2**31 - 1)
_MESH = flags.DEFINE_list('mesh', [], 'Mesh axes, such as data=2,fsdp=4; default: one device.')
_REMAT = flags.DEFINE_string(
  'remat', 'full', 'Kept for the backward pass: none (all), full (nothing), dots, qkv+ctx+mid+gu.')
_CHUNK = flags.DEFINE_integer(
  'chunk', 512, 'Places whose logits are formed at a time.',
  lower_bound=1, upper_bound=2**31 - 1)
_DTYPE = flags.DEFINE_enum('dtype', 'bfloat16', ['bfloat16', 'float32'], 'Of the computation.')

_DEVICE = flags.DEFINE_enum(
  'device', '', ['', *DEVICES], 'Whose memory the plan is held against, and whose speed.')
_TOKENS = flags.DEFINE_float(
  'tokens', 1e9, 'To train on, for the time on --device.', lower_bound=1)

TRAINED = 4096  # tokens a row that FLOPs are given for without --context


def configs(shapes: list[str], folders: list[str]) -> dict[str, model.ModelConfig]:
  """The named ready shapes (all, if none and no folder is named) and those of the folders."""
  unknown = [name for name in shapes if name not in model.SHAPES]
  if unknown:
    raise ValueError(f'unknown shape {unknown[0]!r}: one of {", ".join(model.SHAPES)}')
  names = shapes or ([] if folders else model.SHAPES)
  found = {name: model.SHAPES[name] for name in names}
  for folder in folders:
    file = folder if folder.endswith('.json') else os.path.join(folder, hf_folder.CONFIG)
    hf = hf_folder.read_json(os.path.dirname(file) or '.', os.path.basename(file))
    if hf is None:
      raise FileNotFoundError(f'--hf: there is no {file}')
    found[folder] = model.ModelConfig.from_hf(hf)
  return found


def parse_mesh(parts: list[str]) -> dict[str, int]:
  """['data=2', 'fsdp=4'] → sizes by axis."""
  sizes = {}
  for part in parts:
    axis, _, size = part.partition('=')
    if axis not in sharding.AXES or not size.isdecimal() or int(size) < 1:
      raise ValueError(f'--mesh has {part!r}: give {"=N,".join(sharding.AXES)}=N, or some of them')
    sizes[axis] = int(size)
  return sizes


def counts(found: dict[str, model.ModelConfig], seq_len: int) -> Table:
  """Parameters, FLOPs and cache bytes of each config."""
  table = Table(title=f'shapes; FLOPs and caches at {seq_len:,} tokens a row', title_justify='left')
  table.add_column('shape')
  for column in ('parameters', 'without embedding', 'L', 'D', 'heads', 'F', 'GFLOPs per token',
                 'without causality', 'KV bytes per token'):
    table.add_column(column, justify='right')
  for name, c in found.items():
    table.add_row(
      name, f'{c.num_params():,}', f'{c.num_params(embedding=False):,}', str(c.num_layers),
      str(c.embed_dim), f'{c.num_heads}/{c.num_kv_heads}x{c.head_dim}', str(c.mlp_dim),
      f'{c.flops_per_token(seq_len) / 1e9:.3f}',
      f'{c.flops_per_token(seq_len, causal=False) / 1e9:.3f}',
      f'{memory.kv_cache_per_row(c, seq_len) / seq_len:,.0f}')
  return table


def plan_table(title: str, plans: dict[str, memory.Bytes]) -> Table:
  """GiB of each part and of their sum, a row for each shape."""
  table = Table(title=title, title_justify='left')
  table.add_column('shape')
  for part in next(iter(plans.values())):
    table.add_column(part, justify='right')
  table.add_column('sum', justify='right', style='bold')
  for name, plan in plans.items():
    table.add_row(name, *(f'{v / 2**30:.2f}' for v in [*plan.values(), sum(plan.values())]))
  return table


def device_table(
  device: str, tokens: float, seq_len: int, found: dict[str, model.ModelConfig],
  plans: dict[str, memory.Bytes], devices: int,
) -> Table:
  """Whether each plan fits a device, and how long so many tokens take at `REACHED` of its peak."""
  gigabytes, peak = DEVICES[device]
  title = (f'{devices} x {device}: {gigabytes} GB, {peak} TFLOP/s; time at {REACHED:.0%} of that '
           f'for {tokens:.3g} tokens')
  table = Table(title=title, title_justify='left')
  for column in ('shape', 'needs', 'fits', 'time'):
    table.add_column(column, justify='left' if column == 'shape' else 'right')
  for name, plan in plans.items():
    need = sum(plan.values()) / 1e9
    seconds = tokens * found[name].flops_per_token(seq_len) / (peak * 1e12 * REACHED * devices)
    time = f'{seconds / 86400:.1f} days' if seconds > 86400 else f'{seconds / 3600:.1f} h'
    table.add_row(name, f'{need:.1f} GB', 'yes' if need < .9 * gigabytes else 'no', time)
  return table


def main(argv: list[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  console = Console(width=None if sys.stdout.isatty() else 200)
  try:
    if _CONTEXT.value < 0 or _ROWS.value < 0 or _CHUNK.value < 1:
      raise ValueError('--context and --rows must not be negative, --chunk at least 1')
    mesh = parse_mesh(_MESH.value)
    found = configs(_SHAPE.value, _HF.value)
    found = {name: dataclasses.replace(c, dtype=_DTYPE.value, remat=_REMAT.value)
             for name, c in found.items()}
    console.print(counts(found, _CONTEXT.value or TRAINED))
    if not _CONTEXT.value:
      return
    seq_len = _CONTEXT.value
    rows = _ROWS.value or mesh.get('data', 1) * mesh.get('fsdp', 1)
    with console.status('tracing backward passes'):
      training = {
        name: memory.training(c, rows=rows, seq_len=seq_len, chunk=_CHUNK.value, mesh=mesh)
        for name, c in found.items()}
    where = ', '.join(f'{axis}={n}' for axis, n in mesh.items()) or 'one device'
    console.print(plan_table(
      f'training, GiB per device ({where}): {rows} x {seq_len:,} tokens a micro-batch, AdamW, '
      f'remat {_REMAT.value}', training))
    if _DEVICE.value:
      console.print(device_table(
        _DEVICE.value, _TOKENS.value, seq_len, found, training, math.prod(mesh.values())))
    rows = _ROWS.value or 1
    console.print(plan_table(
      f'generating, GiB on one device: {rows} x {seq_len:,} tokens', {
        name: memory.inference(c, rows=rows, seq_len=seq_len) for name, c in found.items()}))
  except (OSError, ValueError) as e:
    sys.exit(cli.complain(e))


if __name__ == '__main__':
  cli.start(main)
