"""A run's workdir without the run, and what a page of it holds."""

import csv
import html.parser
import inspect
import json
import math
import pathlib
import re

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import example_serializer

from smoljax.report import run_sections

HOSTILE = (
  '<script>alert(1)</script>', '"><img src=x onerror=alert(2)>', "' onload='alert(3)",
  'javascript:alert(4)', 'safe\u202egnp.exe\u2066\u0007\x1b[31m', '</style></svg></main><h1>owned',
  '&lt;b&gt; <!-- ]]> <a href="javascript:alert(5)">', '=HYPERLINK("http://evil")')
REASONS = {'extract': {'no main text': 61}, 'language': {'not in languages': 40},
           'filter': {'too few words': 290, 'duplicate lines': 84, 'symbols per word': 37,
                      'no stop words': 22, 'too short lines': 9},
           'exact_dedup': {'same text': 55}, 'minhash': {'near duplicate': 212}}


def documents(n: int, hostile: bool) -> list[dict]:
  """Real text of many lengths: docstrings of the standard library."""
  import argparse
  import collections
  import decimal
  import logging
  import statistics
  modules = (argparse, collections, csv, decimal, json, logging, math, pathlib, re, statistics)
  texts = [(f'{m.__name__}.{k}', d) for m in modules for k, v in sorted(vars(m).items())
           if not k.startswith('_') and (d := inspect.getdoc(v))]
  rng, out = np.random.default_rng(0), []
  for i in range(n):
    name, text = texts[i % len(texts)]
    text = (text + '\n\n') * int(rng.geometric(0.4))
    host = ('docs.python.org', 'numpy.org', 'jax.readthedocs.io', 'beam.apache.org')[
      int(rng.choice(4, p=(0.55, 0.2, 0.15, 0.1)))]
    url = f'https://{host}/3/library/{name}.html'
    if hostile:
      text, url = HOSTILE[i % len(HOSTILE)] + text, HOSTILE[i % len(HOSTILE)]
    out.append({'id': f'urn:{i}', 'text': text, 'url': url})
  return out


def write_corpus(home: pathlib.Path, name: str, rows: list[dict], manifest: dict) -> None:
  """A TFDS directory as the data contract has it, written by TFDS's own encoder."""
  folder = home / name / '1.0.0'
  folder.mkdir(parents=True)
  features = tfds.features.FeaturesDict({k: tfds.features.Text() for k in rows[0]})
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  writer = ArrayRecordWriter(str(folder / f'{name}-train.array_record-00000-of-00001'),
                             'group_size:1')
  for row in rows:
    writer.write(serializer.serialize_example(features.encode_example(row)))
  writer.close()
  template = tfds.core.ShardedFileTemplate(
    dataset_name=name, data_dir=folder, split='train', filetype_suffix='array_record')
  split = tfds.core.SplitInfo(name='train', shard_lengths=[len(rows)], num_bytes=1,
                              filename_template=template)
  tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split],
                                     check_data=False)
  (folder / 'manifest.json').write_text(json.dumps({'name': name, **manifest}))
  (folder / '_SUCCESS').touch()


def curated(root: pathlib.Path, name: str, kept: int, scale: float, hostile: bool) -> None:
  rows = documents(kept, hostile)
  bad = HOSTILE if hostile else ()
  reasons = {stage: {k + (bad[i % len(bad)] if bad else ''): max(1, int(n * scale))
                     for i, (k, n) in enumerate(r.items())} for stage, r in REASONS.items()}
  dropped = sum(n for r in reasons.values() for n in r.values())
  funnel, left, chars = [], kept + dropped, 2500 * (kept + dropped)
  for stage, r in {**reasons, 'pii': {}}.items():
    before, left = left, left - sum(r.values())
    chars = int(chars * left / before)
    funnel.append({'stage': stage, 'documents_in': before, 'documents_out': left,
                   'characters_out': chars, 'dropped': r})
  write_corpus(root / 'corpora', name, rows, {
    'kind': 'curated', 'version': '1.0.0', 'documents': kept, 'characters': chars, 'bytes': chars,
    'languages': {'en': kept - 3, 'de': 3}, 'funnel': funnel})
  rejects = documents(dropped, hostile)
  labels = [(s, k) for s, r in reasons.items() for k, n in r.items() for _ in range(n)]
  write_corpus(root / 'corpora', f'{name}_rejects', [
    {**d, 'stage': s, 'reason': k} for d, (s, k) in zip(rejects, labels, strict=True)],
    {'kind': 'rejects'})


def make_workdir(root: pathlib.Path, hostile: bool = False) -> None:
  """What a finished quickstart leaves, with the shapes of a real one."""
  rng, bad = np.random.default_rng(1), HOSTILE[0] + HOSTILE[1] if hostile else ''
  web = 'web' + bad.replace('/', '')
  curated(root, 'web', 1890, 1.0, hostile)
  curated(root, 'pdf', 211, 0.11, hostile)
  for name, tokens in (('web', 1_480_211), ('pdf', 402_118)):
    folder = root / 'tokens' / name / '1.0.0'
    folder.mkdir(parents=True)
    (folder / 'manifest.json').write_text(json.dumps({
      'name': name, 'kind': 'tokenised', 'vocab_size': 2048, 'splits': {
        'train': {'documents': 1830, 'tokens': tokens, 'bytes': int(3.214 * tokens)},
        'validation': {'documents': 60, 'tokens': tokens // 30, 'bytes': tokens // 10}}}))
  rows, steps = [], 260
  for step in range(1, steps + 1):
    stage = ('stable', 'stage 2', 'decay')[(step > 150) + (step > 210)] + bad
    loss = 3.9 + 3.7 * math.exp(-step / 45) - 0.25 * max(0, step - 210) / 50
    rows.append({'step': step, 'stage': stage, 'tokens': 8192 * step,
                 'train/loss': loss + float(rng.normal(0, 0.06)),
                 f'train/loss/{web}': loss + 0.05 + float(rng.normal(0, 0.08)),
                 'train/loss/pdf': loss - 0.2 + float(rng.normal(0, 0.12)),
                 'optim/lr': 0.003 * min(1, step / 26, (steps - step) / 50),
                 'grad/norm': 0.8, 'perf/tokens_per_sec': 9000 * float(rng.normal(1, 0.03)),
                 'perf/step_time': 0.9, 'perf/mfu': 0.112,
                 'data/wait': float(rng.uniform(0, 0.03))})
    rows[-1] |= {'mtp/loss_M': [loss + 0.4, loss + 0.7], f'teacher/logits{bad}': 0.5}
    rows[-1] |= {f'{k}/blocks/mlp/up_DF{bad}': 0.01 for k in run_sections.LEAF_METRICS}
    if step == 200:
      rows[-1] |= {k: [1.5, 2.5] for k in run_sections.PROBE_BY_LAYER}
      rows[-1] |= {'eff_rank_L': [61.0, 47.125]}
      rows[-1] |= dict.fromkeys(run_sections.PROBE_OF_ALL, 0.125)
      rows[-1] |= {f'svd_entropy/{t}/blocks/mlp/up_DF{bad}': 0.5 for t in ('weights', 'updates')}
      rows[-1] |= {'noise_trace': 4.0, 'grad_sq': 0.5}
    if step % 50 == 0 or step == steps:
      rows.append({'step': step, 'tokens': 8192 * step, f'val/{web}/loss': loss + 0.08,
                   f'val/{web}/bpb': loss / 2.2, 'val/pdf/loss': loss - 0.1,
                   'val/pdf/bpb': loss / 2.05, 'copy/near/accuracy': step / 1000,
                  'copy/far/accuracy': step / 2000})
  rows[40]['train/loss'] = math.nan
  (root / 'metrics.jsonl').write_text(
    ''.join(json.dumps(r) + '\n' for r in [rows[0] | {'train/loss': 99.0}, *rows]) + '{"step": 2')
  example = lambda i, right: {
    'context': documents(i + 1, False)[i]['text'][:600] + bad, 'answer': 1, 'predicted': right,
    'choices': [documents(40, False)[7 * i + j]['text'][:110] + bad for j in range(4)]}
  (root / 'evals').mkdir()
  (root / 'evals/90.json').write_text('{"step": 90}')
  bins = [[0, 0.0, 0.0], [40_000, 0.15, 0.14], [9000, 0.55, 0.5], [340, 0.93, 0.9]]
  (root / 'evals/260.json').write_text(json.dumps({
    'step': steps,
    'copy': {'near': {'accuracy': 0.26, 'saved': 1.5}, 'far': {'accuracy': 0.13, 'saved': 0.4}},
    'teacher': {
      'bits_per_byte': {web: {'bpb': 1.6104, 'ece': 0.01, 'calibration': bins[1:]}},
      'copy': {'near': {'accuracy': 0.875}}},
    'bits_per_byte': {
      web: {'bpb': 1.8273, 'loss': 3.741, 'unigram_loss': 6.153, 'documents': 60, 'tokens': 49340,
            'bytes': 148021, 'calibration': bins, 'ece': 0.0178},
      'pdf': {'bpb': 1.7312, 'loss': 3.604, 'unigram_loss': 6.08, 'documents': 9, 'tokens': 13403,
              'bytes': 40211}},
    'tasks': {'continuation' + bad: {
      'acc': 0.635, 'acc_norm': 0.61, 'stderr': 0.034, 'n': 200, 'chance': 0.25, 'longest': 0.235,
      'blind': {'acc': 0.285, 'acc_norm': 0.31},
      'examples': [example(0, 1), example(2, 1), example(3, 2), example(4, 1)]}}}))
  (root / 'samples.json').write_text(json.dumps([
    {'prompt': 'The' + bad, 'temperature': 0.7, 'completion': ' iterator returns a new object of '
     'the given type.\n\nIf the argument is not an instance, a TypeError is raised.\n' + bad},
    {'prompt': 'Return', 'temperature': 0.7, 'completion': ' a list of the names in the module, '
     'with the values of the keys.\nThis is equivalent to the first item of the tuple.'}]))
  (root / 'summary.json').write_text(json.dumps({
    'documents': {'web': {'in': 2700, 'kept': 1890}, 'pdf': {'in': 294, 'kept': 211}},
    'tokens': {'web': 1_480_211, 'pdf': 402_118, 'trained': 8192 * steps},
    'parameters': 1_049_216, 'non_embedding_parameters': 787_072,
    'loss': {'first': 7.62, 'final': 3.66, 'validation': 3.7123, 'unigram': 6.1377},
    'bits_per_byte': {'web': 1.8273, 'pdf': 1.7312}, 'tasks': {'continuation': 0.635},
    'tokens_per_sec': 9011.0, 'device': 'cpu x1' + bad,
    'seconds': {'selfdocs': 21.0, 'web': 84.2, 'pdf': 61.7, 'tokenizer': 9.3, 'tokenize': 12.8,
                'train': 262.0, 'evaluate': 31.4, 'export': 2.7, 'sample': 4.4}}))
  skip = {'action': 'skip', 'documents': {web: ['a' + bad, 'b'], 'pdf': ['c']}, 'broken': [
    {'rule': 'grad_norm' + bad, 'statistic': 31.7, 'threshold': 2.25}]}
  back = {'action': 'rollback' + bad, 'to': 30, 'batches_left_out': 102, 'lr_scale': 1.0,
          'rule': 'loss', 'statistic': 'nan', 'threshold': 'inf', 'position': {'step': 30}}
  events = [('start', {'device': 'cpu x1' + bad}), ('stage', {'stage': 'stable'}),
            ('checkpoint', {}), ('guard', skip), ('guard', skip), ('guard', back),
            ('resume', {'from': 'checkpoints/100'}), ('checkpoint', {}),
            ('stage', {'stage': 'stage 2', 'mixture': {'web': 0.6, 'pdf': 0.4}}),
            ('stage', {'stage': 'decay'}), ('checkpoint', {}), ('stop', {'reason': 'finished'})]
  (root / 'events.jsonl').write_text(''.join(json.dumps(
    {'time': f'2026-11-23T21:{40 + i}:07Z', 'step': min(20 * i, steps), 'event': e, **more}) + '\n'
    for i, (e, more) in enumerate(events)))
  (root / 'config.json').write_text(json.dumps({
    'name': 'quickstart' + bad, 'seed': 0, 'wandb_token': 'canary123',
    'model': {'num_layers': 4, 'embed_dim': 128}, 'optimizer': {'name': 'muon', 'lr': 0.003}}))
  for file, n in (('checkpoints/250/params/data', 4_200_000), ('checkpoints/260/params/data', 100),
                  ('export/config.json', 900), ('export/model.safetensors', 4_198_400),
                  ('export/tokenizer.json', 61_000)):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(bytes(n))


class Page(html.parser.HTMLParser):
  """Elements with their attributes, and the text; fails where a tag closes what is not open."""

  VOID = {'meta', 'line', 'rect', 'path', 'circle', 'br'}

  def __init__(self, source: pathlib.Path | str):
    super().__init__(convert_charrefs=True)
    self.open, self.elements, self.words = [], [], []
    self.source = source if isinstance(source, str) else (source / 'index.html').read_text('utf-8')
    self.feed(self.source)
    self.close()
    assert not self.open, f'never closed: {self.open}'

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    assert len(dict(attrs)) == len(attrs), f'attribute twice in {self.get_starttag_text()}'
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    assert tag in self.VOID, f'<{tag}/> is no void element'
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f'</{tag}> at {self.getpos()}'

  def handle_data(self, data):
    self.words.append(data)

  @property
  def text(self) -> str:
    return ' '.join(' '.join(self.words).split())
