"""What a training step needs on hardware that is not here, from compiling it for that hardware.

XLA compiles for TPU slices on any machine that has the `libtpu` package, and for NVIDIA GPUs with
the packages `jax-cuda13-plugin` and `jax-cuda13-pjrt`: no device, driver or cloud is needed. The
compiled program says what a device holds, and which collectives it runs how often. What does not
fit is an error of the compiler, with its own account.

Times are not estimated: kernels are timed on devices only (experiments/benchmarks/train_step.py).
"""

import bisect
import collections
import contextlib
import dataclasses
import importlib
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from smoljax import gpu, metrics, model, sharding
from smoljax.train import memory
from smoljax.train.step import make_mesh, make_plan

# Chips of a TPU slice → its shape; the larger slices of v4 and v5p are cubes, and named by cores.
_FLAT = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
_CUBES = {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8',
          256: '4x8x8', 512: '8x8x8', 1024: '8x8x16', 2048: '8x16x16', 4096: '16x16x16'}
_TPUS = {'v4': (_CUBES, 2), 'v5e': (_FLAT, 1), 'v5p': (_CUBES, 2), 'v6e': (_FLAT, 1)}
_HBM = {'v4': 32, 'v5e': 16, 'v5p': 95, 'v6e': 32}  # GiB a chip

# What XLA asks of a GPU: the H200's memory, the H100's is 80 GB; all else is the same chip.
_GPUS = {'h100': 85_899_345_920, 'h200': 150_754_820_096}
_HOPPER = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: %d shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 19 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 } device_description_str: "NVIDIA %s"
"""
_WITHOUT_A_DEVICE = {'xla_gpu_autotune_level': '0', 'xla_gpu_enable_triton_gemm': False}
# Of a device's memory what counting may fill: collectives and fragments come on top.
_COUNTED = .9
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices that are not here."""

  name: str
  devices: list[jax.Device]
  memory: int  # bytes that jax has of a device
  options: dict[str, Any]  # of the compiler


def topology(name: str) -> Topology:
  """'v5e-256', 'v6e-64', 'v5p-128' (TPU slices as Google names them), 'h200', 'h100x16', …

  To be called before jax has looked for devices. Raises ValueError for a name that is not known,
  or where the package that compiles for it is not installed.
  """
  if match := re.fullmatch(r'(h\d00)(?:x(\d+))?', name):
    return _gpus(name, match[1], int(match[2] or 1))
  kind, _, number = name.partition('-')
  shapes, cores = _TPUS.get(kind, ({}, 1))
  if not number.isdecimal() or int(number) // cores not in shapes:
    sizes = '; '.join(f'{k}-N, N of {", ".join(str(n * c) for n in s)}'
                      for k, (s, c) in _TPUS.items())
    raise ValueError(f'--topology={name}: give {sizes}; or h100 and h200, with xN for N GPUs')
  for key, value in {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost',
                     'TPU_ACCELERATOR_TYPE': 'v5litepod-8', 'TPU_STDERR_LOG_LEVEL': '3',
                     'TPU_MIN_LOG_LEVEL': '3', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}.items():
    os.environ.setdefault(key, value)
  jax.config.update('jax_platforms', 'cpu')
  shape = shapes[int(number) // cores]
  alone = {'chips_per_host_bounds': [1, 1, 1]} if shape == '1x1' else {}
  with _package(name, 'libtpu'):
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=f'{kind}:{shape}', **alone)
  return Topology(name, list(found.devices), _HBM[kind] << 30, {})


def _gpus(name, kind, number):
  hosts = max(1, number // 8)
  if kind not in _GPUS or number not in (1, 2, 4, 8, 8 * hosts):
    raise ValueError(f'--topology={name}: {" or ".join(_GPUS)}, xN for 2, 4 or whole hosts of 8')
  jax.config.update('jax_platforms', 'cpu,cuda')
  with _package(name, 'jax-cuda13-plugin and jax-cuda13-pjrt'):
    found = topologies.get_topology_desc(
      '', platform='cuda', target_config=_HOPPER % (_GPUS[kind], kind.upper()),
      topology=f'1x{hosts}x{number // hosts}')
  return Topology(
    name, list(found.devices), int(_GPUS[kind] * gpu.share()), _WITHOUT_A_DEVICE)


@contextlib.contextmanager
def _package(name: str, package: str) -> Iterator[None]:
  """Finds the compilers where `make .venv/.installed-compilers` puts them: apart, beside jax.

  jax looks for the devices of all that it finds there, and tells of those that are missing; that
  says nothing here.
  """
  folder = os.path.join(sys.prefix, 'compilers')
  if os.path.isdir(folder) and folder not in sys.path:
    sys.path.append(folder)
    importlib.invalidate_caches()
  bridge = logging.getLogger('jax._src.xla_bridge')
  before = bridge.level
  bridge.setLevel(logging.CRITICAL + 1)
  os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # cuDNN is not there either
  try:
    yield
  except Exception as e:
    raise ValueError(f'--topology={name}: this machine cannot compile for it '
                     f'({" ".join(str(e).split())[:200]}); make .venv/.installed-compilers has '
                     f'{package}, of the version that fits jax {jax.__version__}') from e
  finally:
    bridge.setLevel(before)


@contextlib.contextmanager
def _cudnn_without_a_device() -> Iterator[None]:
  """jax asks a device whether cuDNN can do what is wanted; here the answers are a Hopper's."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  answers = {'check_compute_capability': lambda _: True, 'check_cudnn_version': lambda: 91900,
             'is_cuda_compute_capability_equal': lambda _: False}
  before = {name: getattr(cudnn, name) for name in answers}
  for name, answer in answers.items():
    setattr(cudnn, name, answer)
  try:
    yield
  finally:
    for name, answer in before.items():
      setattr(cudnn, name, answer)


def estimate(config: Any, model_config: model.ModelConfig, where: Topology) -> dict[str, Any]:
  """Compiles the step of a run for these devices.

  Args:
    config: that of the run, as `loop.train` takes it; without a teacher.
  Returns:
    Figures of one device: bytes of `arguments` (parameters, optimizer), `temporaries` and
    `memory` (what there is), `flops` of a step as ModelConfig.flops_per_token counts, and
    `collectives`, kind → (calls, bytes) a step; and `mesh`, `devices`, `compile_seconds`.
  Raises:
    ValueError: it does not fit; the compiler's account is in the message.
  """
  t = config.train
  mesh = make_mesh(config, model_config, where.devices, where.memory)
  plan = make_plan(config, model_config, mesh)
  step = plan.step(num_sources=len({name for s in t.stages for name in s['mixture']}))

  def placed(shape, *names):
    placing = jax.sharding.NamedSharding(mesh, sharding.spec(*names))
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=placing)

  batch = {name: placed((t.rows, config.data.seq_len), 'batch', 'length')
           for name in ('inputs', 'targets', 'segment_ids', 'positions')}
  batch['source'] = placed((t.rows,), 'batch')
  began = time.perf_counter()
  with jax.set_mesh(mesh), _cudnn_without_a_device():
    lowered = step.lower({'params': plan.params, 'opt_state': plan.opt_state}, batch)
  try:
    compiled = lowered.compile(compiler_options=where.options or None)
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    ways = proposals(config, model_config, where)
    raise ValueError(
      f'{where.name}: the step does not fit: {_reason(str(e))}; ' + (
        f'by counting bytes it should with {", or with ".join(ways)}' if ways else
        'nor would micro-batches, remat or more such devices help: lower train.batch_tokens or '
        'take a smaller model')) from e
  used: Any = compiled.memory_analysis()
  tokens = t.rows * config.data.seq_len
  return {
    'devices': f'{len(where.devices)} x {where.devices[0].device_kind}',
    'mesh': dict(mesh.shape),
    'compile_seconds': round(time.perf_counter() - began, 1),
    'arguments': used.argument_size_in_bytes,
    'temporaries': used.temp_size_in_bytes,
    'memory': where.memory,
    'flops': tokens * model_config.flops_per_token(config.data.seq_len) / mesh.size,
    'peak_flops': metrics.peak_flops(where.devices[0].device_kind),
    'collectives': collectives(compiled.as_text()),
  }


def proposals(config: Any, model_config: model.ModelConfig, where: Topology) -> list[str]:
  """Flags with which a step that does not fit should, each alone: the least of its kind.

  More micro-batches, nothing kept for the backward pass, both, and a larger slice, by what
  `memory.training` counts on the first mesh that a run would look at.
  """
  t, found = config.train, []

  def fits(devices: int, accumulate: int, remat: str) -> bool:
    what = dataclasses.replace(model_config, remat=remat)
    rows = t.rows // accumulate
    how = dict(rows=rows, seq_len=config.data.seq_len, chunk=t.loss_chunk)
    try:
      mesh = memory.choose_mesh(
        what, {axis: config.mesh[axis] for axis in sharding.AXES}, devices=devices,
        island=8 if where.name.startswith(tuple(_GPUS)) else None, **how)
      need = memory.training(what, mesh=mesh, **how)
    except ValueError:
      return False
    return sum(need.values()) <= where.memory * _COUNTED

  here = len(where.devices)
  more = [n for n in range(t.accumulate, t.rows + 1) if t.rows % n == 0]
  for remat in dict.fromkeys((model_config.remat, 'full')):
    at = bisect.bisect_left(more, True, key=lambda n: fits(here, n, remat))
    least = more[at] if at < len(more) else None
    flags = [f'--config.train.accumulate={least}'] * (least != t.accumulate)
    flags += [f'--config.model.remat={remat}'] * (remat != model_config.remat)
    if least and flags:
      found.append(' '.join(flags))
  kind, _, _ = where.name.partition('-')
  for devices in (here * 2 ** n for n in range(1, 5)):
    if fits(devices, t.accumulate, model_config.remat):
      shapes, cores = _TPUS.get(kind, ({}, 1))
      name = f'{kind}-{devices * cores}' if shapes else f'{re.split("x", kind)[0]}x{devices}'
      if not shapes or devices in shapes:
        found.append(f'--topology={name}')
      break
  return found


def _reason(account: str) -> str:
  """The part of XLA's account that says how much is missing."""
  line = account.splitlines()[0]
  return re.sub(r'^.*?(?=Used|Ran out|Attempting|Out of memory)', '', line)[:200]


def collectives(program: str) -> dict[str, tuple[int, int]]:
  """Of a compiled program: kind → calls a run and bytes that they give a device, loops counted.

  A TPU's program spreads one over several fusions, which its channel tells; where it sums and
  scatters, it writes a fusion of a sum and a cut.
  """
  bodies: dict[str, list[str]] = {}
  entry = name = ''
  for line in program.splitlines():
    if (head := re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line)) and not line.startswith(' '):
      name = head[2]
      bodies[name] = []
      entry = name if head[1] else entry
    elif name:
      bodies[name].append(line)
  found: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(2, np.int64))

  def trips(loop: str) -> int:
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
      return int(known[1])
    condition = bodies[re.findall(r'condition=%?([\w.\-]+)', loop)[0]]
    bounds = re.findall(r' constant\((\d+)\)', '\n'.join(condition))
    return int(bounds[0]) if len(bounds) == 1 else 1

  def walk(name: str, times: int, seen: set[str]) -> None:
    for line in bodies.get(name, ()):
      match = re.search(r' = (\(.*?\)|\S+) ([a-z][a-z\-]*)\(', line)
      if not match:
        continue
      shape, kind = match[1], match[2].removesuffix('-start')
      if kind == 'while':
        walk(re.findall(r'body=%?([\w.\-]+)', line)[0], times * trips(line), set())
      elif kind in _COLLECTIVES:
        channel = kind + (re.findall(r'channel_id=\d+|$', line)[0] or line)
        if channel in seen:
          continue
        seen.add(channel)
        found[kind] += times, times * _size(shape, max if match[2].endswith('-start') else sum)
      else:
        for inner in re.findall(r'(?:to_apply|calls|branch_computations)=\{?%?([\w.\-]+)', line):
          if not inner.startswith('all-reduce-scatter'):
            walk(inner, times, seen)
            continue
          channel = re.findall(r'channel_id=\d+|$', ''.join(bodies[inner]))[0] or inner
          if channel not in seen:
            seen.add(channel)
            found['reduce-scatter'] += times, times * _size(shape)

  walk(entry, 1, set())
  return {kind: (int(calls), int(size)) for kind, (calls, size) in sorted(found.items())}


def _size(shape: str, of: Callable[[list[int]], int] = sum) -> int:
  """Bytes of an array's shape as a program has it; of a tuple's all, or the largest."""
  return of([math.prod(map(int, filter(None, dims.split(',')))) * _BYTES.get(dtype, 4)
             for dtype, dims in re.findall(r'([a-z]+\d*)\[([\d,]*)\]', shape)])


_COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
