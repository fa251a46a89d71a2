"""Does training survive a bad object store and SIGKILLs together? One JSON line.

  python -m experiments.benchmarks.object_store --output=DIR [--kills=20] [--faults=0.1] [--lag=2]

A tokenised corpus lies in a store (fake_store.py: 503s, torn and unanswered writes, cut and flipped
reads, lists that are late), and there checkpoints go. `experiments.run` trains a small model on it,
as a process of its own that gets SIGKILL at a random moment between its first step and its last,
and is started again; after every other kill its workdir and all copies are gone, as with a machine
that is taken away. Runs go on until so many kills have struck. Each is compared with one that was
not disturbed, had the corpus on its disk and no store: `bitwise` counts the runs whose parameters
and losses of every logged step are the same to the last bit.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

CONFIG = '''
from configs import base

def get_config():
  c = base.get_config()
  c.name = 'object_store'
  c.web.enabled = c.pdf.enabled = False
  c.data.seq_len = 64
  c.data.window = 64
  c.model.update(dict(embed_dim=64, mlp_dim=128, head_dim=16, num_heads=4, num_kv_heads=2))
  c.model.dtype = 'float32'
  c.mesh.data = c.mesh.fsdp = c.mesh.tensor = c.mesh.context = 1
  c.train.batch_tokens = 16 * 64
  c.train.tokens = 120 * 16 * 64
  c.train.stages = (dict(name='all', fraction=1.0, mixture=dict(mine=1.0)),)
  c.train.log_every = 1
  c.train.eval_every = 60
  c.train.checkpoint_every = 6
  c.train.tensorboard = False
  c.train.keep_every = 40
  c.eval.tasks = ()
  c.eval.documents = 8
  c.sample.prompts = ()
  return c
'''


def make_corpus(folder: pathlib.Path) -> tuple[str, str]:
  """A tokenised corpus of the standard library's docstrings; its path, and its tokenizer's."""
  import importlib
  import inspect

  import apache_beam as beam

  from data_beam import records, tokenize_corpus
  from data_beam.beam_options import pipeline_options
  from data_beam.options import TokenizeOptions
  from smoljax.data import tokenizer

  modules = ('argparse', 'collections', 'decimal', 'json', 'logging', 'pathlib', 'random',
             'statistics', 'string', 'subprocess', 'textwrap', 'threading', 'typing', 'unittest')
  found = {}
  for module in map(importlib.import_module, modules):
    for name, value in vars(module).items():
      if text := inspect.getdoc(value):
        found[f'{module.__name__}.{name}'] = text
  documents = [records.Document(f'urn:{name}', text, source='mine', language='en')
               for name, text in sorted(found.items())]
  with beam.Pipeline(options=pipeline_options()) as pipeline:
    records.write_corpus(
      pipeline | beam.Create(documents), pipeline | 'none' >> beam.Create([]),
      output=str(folder), name='text', stages=['read'], config={}, inputs=[], num_shards=2)
  model = str(folder / 'tokenizer.model')
  tokenizer.train((d.text for d in documents), model, vocab_size=400)
  path = tokenize_corpus.run(
    records.corpus_path(str(folder), 'text'), model, str(folder / 'tokens'), 'mine',
    TokenizeOptions(holdout=0.1, num_shards=3))
  return path, model


def upload(corpus: str, url: str) -> None:
  """A corpus into the store, `_SUCCESS` last."""
  from smoljax import object_store

  store, names = object_store.Folder(url), sorted(os.listdir(corpus))
  names.remove('_SUCCESS')
  folder = pathlib.Path(corpus)
  store.send(folder, {n: (folder / n).stat().st_size for n in names}, '')
  store.write('_SUCCESS', (folder / '_SUCCESS').read_bytes())


class Runs:
  """Starts, kills and compares runs of the config in a folder."""

  def __init__(self, folder: pathlib.Path, port: int, tokenizer: str):
    (folder / 'config.py').write_text(CONFIG)
    self._folder, self._port, self._tokenizer = folder, port, tokenizer
    self._environment = {
      **os.environ, 'JAX_PLATFORMS': 'cpu', 'SMOLJAX_CACHE': str(folder / 'cache'),
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2'}
    self._environment.pop('XLA_FLAGS', None)

  def start(self, name: str, *flags: str) -> subprocess.Popen:
    """A run in the workdir of this name."""
    with open(self._folder / f'{name}.log', 'a') as log:
      return subprocess.Popen(
        [sys.executable, '-m', 'experiments.benchmarks.fake_store', 'run', f'--port={self._port}',
         '--', 'experiments.run', f'--config={self._folder / "config.py"}',
         f'--workdir={self._folder / name}', f'--config.tokenizer.path={self._tokenizer}', *flags],
        stdout=log, stderr=subprocess.STDOUT, env=self._environment, start_new_session=True)

  def finish(self, process: subprocess.Popen, name: str) -> None:
    """Waits for its end; RuntimeError, with the last lines of its log, if that is not well."""
    if process.wait():
      log = (self._folder / f'{name}.log').read_text().splitlines()
      raise RuntimeError(f'{name}: status {process.returncode}: {log[-5:]}')

  def kill(self, process: subprocess.Popen, name: str, seconds: float) -> bool:
    """SIGKILL so long after it has begun to train; False if it had ended by then."""
    rows = self._folder / name / 'events.jsonl'
    begun = rows.stat().st_mtime if rows.exists() else 0
    while process.poll() is None and not (rows.exists() and rows.stat().st_mtime > begun):
      time.sleep(0.02)
    time.sleep(seconds)
    if process.poll() is not None:
      return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True

  def bits(self, name: str) -> str:
    """A digest of the parameters in the end, and of every logged loss."""
    import jax

    from smoljax import metrics
    from smoljax.checkpoints import store

    digest = hashlib.sha256()
    for x in jax.tree.leaves(store.load_params(str(self._folder / name))[1]):
      digest.update(x.tobytes())
    losses = {r['step']: r['train/loss'] for r in metrics.read_rows(
      str(self._folder / name / 'metrics.jsonl')) if 'train/loss' in r}
    digest.update(json.dumps(sorted(losses.items())).encode())
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> dict:
  """The command line; prints the result, and returns it."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--output', required=True, help='a folder that is not there yet')
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--faults', type=float, default=0.1, help='share of requests that go wrong')
  parser.add_argument('--lag', type=float, default=2.0, help='seconds by which lists are late')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args(argv)
  from experiments.benchmarks import fake_store

  folder = pathlib.Path(args.output).absolute()
  folder.mkdir(parents=True)
  corpus, tokenizer = make_corpus(folder / 'made')
  server = subprocess.Popen([
    sys.executable, '-m', 'experiments.benchmarks.fake_store', 'serve',
    f'--port_file={folder / "port"}', f'--faults={args.faults}', f'--lag={args.lag}',
    f'--seed={args.seed}'])
  try:
    while not (folder / 'port').exists() or not (folder / 'port').read_text().endswith('\n'):
      time.sleep(0.05)
    port = int((folder / 'port').read_text())
    fake_store.know(port)
    url = f'fake://{fake_store.BUCKET}'
    upload(corpus, f'{url}/corpora/mine/1.0.0')
    runs, rng = Runs(folder, port, tokenizer), random.Random(args.seed)
    runs.finish(runs.start('whole', f'--config.corpora=mine={corpus}'), 'whole')
    whole, done = runs.bits('whole'), []
    kills = lost = 0
    while kills < args.kills:
      name = f'killed-{len(done)}'
      flags = (f'--config.corpora=mine={url}/corpora/mine/1.0.0',
               f'--config.train.checkpoint_dir={url}/{name}')
      for _ in range(min(4, args.kills - kills)):
        if runs.kill(runs.start(name, *flags), name, rng.uniform(0, 8)):
          kills += 1
          if kills % 2:
            lost += 1
            shutil.rmtree(folder / name)
            shutil.rmtree(folder / 'cache', ignore_errors=True)
      runs.finish(runs.start(name, *flags), name)
      done.append(runs.bits(name) == whole)
      print(f'{name}: {kills} kills, {lost} workdirs lost, bitwise: {done[-1]}', file=sys.stderr)
    counts = fake_store.ask_counts(port)
  finally:
    server.kill()
    server.wait()
  result = {'benchmark': 'object_store', 'kills': kills, 'workdirs_lost': lost, 'runs': len(done),
            'bitwise': sum(done), 'requests': counts}
  print(json.dumps(result))
  return result


if __name__ == '__main__':
  main()
