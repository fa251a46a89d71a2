"""Eight fake CPU devices, set before anything imports jax; the compilation cache; shared data.

SMOLJAX_TEST_PLATFORM=cuda (or tpu) leaves the devices as they are: for tests of that hardware.
"""

import contextlib
import gc
import json
import logging
import math
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ['JAX_PLATFORMS'] = os.environ.get('SMOLJAX_TEST_PLATFORM', 'cpu')
# Most of a cold test's time is compiling, so little is optimised, and fused loops go through XLA's
# older emitters, which take two thirds of the time; jax for Python 3.12 has them no more, and ends
# at their flag. On a busy machine some of the eight devices may wait long for the others; 40
# seconds would end the process.
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', '')] + [
  '--xla_force_host_platform_device_count=8',
  '--xla_backend_optimization_level=0',
  *['--xla_cpu_use_fusion_emitters=false'] * (sys.version_info < (3, 12)),
  '--xla_cpu_parallel_codegen_split_count=1',
  '--xla_cpu_collective_call_terminate_timeout_seconds=600',
] * (os.environ['JAX_PLATFORMS'] == 'cpu'))  # fmt: skip
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), f'smoljax-jit-{os.getuid()}')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
# XLA's CPU client takes its number of threads from here, otherwise one a core and at least one a
# device. Each waits inside its collective, and a device runs independent collectives side by side
# in no fixed order: with eight threads, all may wait for one that has none left to run on.
os.environ.setdefault('NPROC', '64')
# BLAS in this process and those it starts: the matrices of tests are small, and its second thread
# spins rather than waits, which doubles the time as soon as two processes share two cores.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
os.environ.setdefault('OMP_NUM_THREADS', '1')

import hypothesis
import numpy as np
import pytest
from absl import flags

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile('ci', derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile('ci')
flags.FLAGS.mark_as_parsed()  # grain reads absl flags

# A command has a process of its own, and flags such as --output repeat from one to the next. Here
# they are imported into one process: each test module sees the flags of the commands it imports.
_flags_of: dict[str, list[flags.Flag]] = {}
_define, _register = flags.FlagValues.__setitem__, flags.FlagValues.register_flag_by_module


def _redefine(self, name, flag):
  flag.allow_override = True
  _define(self, name, flag)


def _record(self, module_name, flag):
  _flags_of.setdefault(module_name, []).append(flag)
  _register(self, module_name, flag)


flags.FlagValues.__setitem__ = _redefine
flags.FlagValues.register_flag_by_module = _record


@pytest.fixture(autouse=True)
def flags_of_the_commands(request):
  for value in list(vars(request.module).values()):
    for flag in _flags_of.get(getattr(value, '__name__', ''), ()):
      flags.FLAGS[flag.name] = flag


@pytest.fixture(autouse=True)
def logging_as_it_was():
  """Commands set up logging onto a stderr that is captured, and closed, for one test."""
  handlers = logging.root.handlers[:]
  yield
  logging.root.handlers[:] = handlers


@pytest.fixture(autouse=True, scope='module')
def programs_are_freed():
  """Each compiled program keeps some memory maps, of which Linux allows a process 65,530.

  Beyond them the compiler crashes. What is compiled again comes from the cache on disk.
  """
  yield
  if jax := sys.modules.get('jax'):
    jax.clear_caches()
    gc.collect()


# `make test` gives each of its processes a file at a time. These come first: a long one at the end
# would leave the other processes with nothing to do.
LONG_TESTS = (
  'test_loop', 'test_generate', 'test_study', 'test_distill', 'test_quickstart', 'test_objectives',
  'test_guard', 'test_laws', 'test_sharding', 'test_search', 'test_house', 'test_pdf_text',
  'test_web', 'test_run_page',
)  # fmt: skip


def pytest_collection_modifyitems(items):
  order = {name: i for i, name in enumerate(LONG_TESTS)}
  items.sort(key=lambda item: order.get(item.path.stem, len(LONG_TESTS)))


def pytest_collection_finish():
  """What is imported by now stays: left out of every later collection, these take a third less."""
  gc.freeze()
  gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope='session')
def float16():
  """For tests that compute in half precision: XLA needs F16C for it, which came after AVX."""
  import jax

  try:
    half = jax.jit(lambda x: x.astype('float16'))(np.ones(3, np.float32))
    jax.jit(lambda x: x.astype('float32'))(half)
  except jax.errors.JaxRuntimeError as e:
    if 'Failed to materialize symbols' not in str(e):
      raise
    pytest.skip('XLA has no half precision for this processor')


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """Real documents for tests, kept outside the repository; tests that need them skip without."""
  folder = pathlib.Path(os.environ.get('SMOLJAX_SHARED_DATA', REPOSITORY.parent / 'shared/data'))
  if not folder.is_dir():
    pytest.skip('no shared data: set SMOLJAX_SHARED_DATA')
  return folder


@contextlib.contextmanager
def on_devices(count: int):
  """Meshes made inside are of so many devices. Steps take twice the time on eight of two cores."""
  import jax

  from smoljax import sharding

  make_mesh = sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      sharding, 'make_mesh', lambda **kw: make_mesh(**kw | {'devices': jax.devices()[:count]}))
    yield


_FORKS = """
import contextlib, gc, importlib, json, os, pkgutil, runpy, sys, traceback
import flax.nnx, grain, matplotlib.pyplot, orbax.checkpoint, scipy.optimize, tensorflow_datasets
import apache_beam
folder, *packages = sys.argv[1:]
for package in map(importlib.import_module, packages):
  for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):
    with contextlib.suppress(ImportError):  # what needs other hardware
      importlib.import_module(module.name)
gc.freeze()
for i, (command, *argv) in enumerate(json.load(sys.stdin)):
  if not (child := os.fork()):
    for stream in (1, 2):
      os.dup2(os.open(f'{folder}/{i}-{stream}', os.O_WRONLY | os.O_CREAT), stream)
    sys.argv, code = [command, *argv], 0
    try:
      runpy.run_module(command, run_name='__main__', alter_sys=True)
    except SystemExit as e:
      code = e.code if isinstance(e.code, int) else e.code is not None
    except BaseException:
      code = traceback.print_exc() or 99
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run_commands(*lines: list[str], packages=()) -> list[subprocess.CompletedProcess]:
  """Runs command lines, [module, flag, …], each in a process of its own, one after another.

  They are forks of one that has imported the largest third parties, which else takes most of the
  time, and all of these packages of ours, which pays where the lines are hundreds.
  """
  with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run(
      [sys.executable, '-W', 'ignore', '-c', _FORKS, folder, *packages], input=json.dumps(lines),
      cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert not done.returncode, done.stderr
    return [
      subprocess.CompletedProcess(
        line, int(code), *(pathlib.Path(folder, f'{i}-{stream}').read_text() for stream in (1, 2)))
      for i, (line, code) in enumerate(zip(lines, done.stdout.split(), strict=True))
    ]


def write_tokenised(folder: pathlib.Path, name: str, splits: dict, vocab_size: int) -> str:
  """A tokenised corpus of the given token documents, `{split: [[ids], …]}`; returns its path."""
  from data_beam import records

  path = records.corpus_path(str(folder), name)
  os.makedirs(path)
  shards = []
  for split, documents in splits.items():
    rows = []
    for i, tokens in enumerate(documents):
      values = {
        'id': f'{name}-{split}-{i:05d}',
        'tokens': np.asarray(tokens, '<u2').tobytes(),
        'num_bytes': 3 * len(tokens),
        'source': name,
        'language': 'en',
        'weight': 1.0,
        'quality': math.nan,
        'cluster_size': 1,
        'dump': '',
      }
      data = records.encode('tokenised', values)
      rows.append(records.Record(split, values['id'], data, (('documents', 1),), (len(tokens),)))
    shards.append(
      records.write_shard(
        ((split, 0), rows), path=path, name=name, shards={split: 1}, sidecars=('lengths',),
        ready=None,
      )
    )
  info = {
    split: {
      'documents': len(documents),
      'tokens': sum(map(len, documents)),
      'bytes': 3 * sum(map(len, documents)),
      'shards': records.shard_entries(shards, split),
    }
    for split, documents in splits.items()
  }
  manifest = {
    'name': name,
    'kind': 'tokenised',
    'dtype': '<u2',
    'vocab_size': vocab_size,
    'bos': True,
    'splits': info,
  }
  return records.publish(path, 'tokenised', shards, manifest)


@pytest.fixture(scope='session')
def markov_corpora(tmp_path_factory) -> dict[str, str]:
  """Two small corpora of a learnable language: each token mostly determines the next."""
  folder = tmp_path_factory.mktemp('corpora')
  rng = np.random.default_rng(0)
  vocab = 64
  follow = rng.permutation(vocab)

  def document(shift: int) -> list[int]:
    tokens = [2]
    for _ in range(int(rng.integers(10, 120))):
      sure = rng.random() < 0.8
      tokens.append(int((follow[tokens[-1]] + shift) % vocab if sure else rng.integers(vocab)))
    return tokens

  return {
    name: write_tokenised(
      folder,
      name,
      {'train': [document(k) for _ in range(n)], 'validation': [document(k) for _ in range(20)]},
      vocab,
    )
    for k, (name, n) in enumerate([('web', 300), ('pdf', 90)])
  }
