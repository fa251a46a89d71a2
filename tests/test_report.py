"""The report of a synthetic run: its numbers come from the files, its markup from us alone."""

import csv
import html.parser
import inspect
import json
import math
import pathlib
import re
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from conftest import run_commands
from tensorflow_datasets.core import example_serializer

from smoljax import charts, report

ROOT = pathlib.Path(__file__).parent.parent
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


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory):
  """A plain run and one whose every string from data is an attack; both have their report."""
  roots = {kind: tmp_path_factory.mktemp(kind) / 'run' for kind in ('plain', 'hostile')}
  for kind, root in roots.items():
    make_workdir(root, hostile=kind == 'hostile')
    report.write(str(root))
  return roots


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
    rows[-1] |= {f'{k}/blocks/mlp/up_DF{bad}': 0.01 for k in report.LEAF}
    if step == 200:
      rows[-1] |= {k: [1.5, 2.5] for k in report.LOOK} | {'eff_rank_L': [61.0, 47.125]}
      rows[-1] |= dict.fromkeys(report.BATCH, 0.125)
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


def test_what_is_learned_beside_the_next_token(workdirs):
  folder = workdirs['plain'] / 'report'
  page = (folder / 'index.html').read_text()
  for title in ('Copying of shuffled text', 'Loss of tokens further ahead',
                'Distance to the teacher', 'Student against teacher', 'Calibration on web'):
    assert title in page
  assert '26.0% of the tokens when it is repeated at once and 13.0% of the tokens' in page
  table = (folder / 'student_teacher.csv').read_text().splitlines()
  assert table[1:] == ['"web, bits per byte",1.8273,1.6104', '"web, calibration error",0.0178,0.01',
                       '"copying, near",0.26,0.875']
  rows = list(csv.DictReader((folder / 'calibration_web.csv').open()))
  assert [(r['model'], r['places']) for r in rows] == [
    (who, n) for who in ('the model', 'its teacher') for n in ('40000', '9000', '340')]
  rows = list(csv.DictReader((folder / 'ahead.csv').open()))
  assert {r['of'] for r in rows} == {'next token', '2 ahead', '3 ahead'}


def test_what_each_stage_did_to_every_corpus(tmp_path):
  def row(step, stage, web, code):
    return {'step': step, 'stage': stage, 'train/loss': 3.0, 'val/web/bpb': web,
            'val/code/bpb': code}

  rows = [{'step': 0, 'val/web/bpb': 4.0, 'val/code/bpb': 5.0}, row(5, 'stable', 3.0, 4.5),
          row(10, 'stable', 2.0, 4.0), row(15, 'decay', 2.1, 3.0), row(20, 'decay', 1.9, 2.0)]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  stages = [dict(name='stable', mixture=dict(web=1)),
            dict(name='decay', mixture=dict(web=1, code=3))]
  (tmp_path / 'config.json').write_text(json.dumps({'train': {'stages': stages}}))
  run, tables = report.load(str(tmp_path)), []
  page, = report.by_stage(run, run.names(), lambda *table: tables.append(table) or '')
  assert tables[0][2] == [
    ('stable', 10, 'web', 1.0, 4.0, 2.0), ('stable', 10, 'code', 0.0, 5.0, 4.0),
    ('decay', 20, 'web', 0.25, 2.0, 1.9), ('decay', 20, 'code', 0.75, 4.0, 2.0)]
  assert '-50.0%' in page and '75%' in page
  run.metrics = run.metrics[:3]
  assert report.by_stage(run, run.names(), lambda *_: '') == []  # one stage, from nothing
  run.config['train']['init_from'] = 'runs/base'
  assert len(report.by_stage(run, run.names(), lambda *_: '')) == 1


def looks_of(steps=6, **change):
  """Healthy looks at three layers; `change` maps a field to its value at the last."""
  looks = [{'step': 100 * i, 'eff_rank_L': [40.0 + i, 50.0, 60.0], 'token_cos': 0.2,
            'dead_frac_L': [0.0, 0.01, 0.0]} for i in range(1, steps + 1)]
  looks[-1] |= change
  return looks


@pytest.mark.parametrize(('change', 'expected'), [
  ({}, {}),
  ({'token_cos': 0.97}, {'Tokens point one way': (600, None)}),
  ({'eff_rank_L': [46.0, 3.0, 61.0]}, {'Rank is lost': (600, 1)}),
  ({'dead_frac_L': [0.0, 0.0, 0.8]}, {'Units are dead': (600, 2)}),
])
def test_collapsing_features_are_named_with_what_to_try(change, expected):
  looks = looks_of(**change)
  assert report.collapses(looks) == expected
  shown = ''.join(report.features(looks, lambda *a: ''))
  for name, (step, layer) in expected.items():
    where = '' if layer is None else f' in layer {layer}'
    assert f'<b>{name}</b> from step {step}{where}' in shown and 'ower the' in shown
  assert ('class="warning"' in shown) == bool(expected) and 'Effective rank' in shown


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


def test_numbers_on_the_page_come_from_the_files(workdirs):
  page = Page(workdirs['plain'] / 'report').text
  for shown in (
    'A model of 1.05M parameters that beats unigram by 2.43 nats per token',  # 6.1377 − 3.7123
    'validation loss of 3.71', 'unigram model of the same text',
    '6.14', '2.13M tokens', '2,101 curated documents', '8 min 09 s', '1.83 bits per byte',
    '64% of the time', '28% without', '25% by chance',
    '2,994', '2,700 documents in, 1,890 kept (70%)', '297 documents in, 211 kept (71%)',
    'near duplicate 212', 'too few words 290', '3.21', 'A vocabulary of 2,048', '1.827', '2.41',
    '32.5 ± 3.4 points above the blind model', '63.5%', '28.5%', '31.0%', '23.5%',
    'median 8,981 tokens per second', 'model FLOPs utilisation 11.2%', 'checkpoints/260',
    'last of 2', '4.2 MB', "AutoModelForCausalLM.from_pretrained('export')", 'from checkpoints/100',
    '3 checkpoints were saved', '2026-11-23', 'docs.python.org', 'unigram 6.14', 'At step 260'):
    assert shown in page, shown
  assert 'canary123' not in page
  assert '99' not in re.findall(r'From (\S+) to', page)[0]  # the step done again counts
  assert 'metrics.jsonl: a torn line was skipped' in page


def test_the_guard_is_on_the_page(workdirs):
  page = (workdirs['plain'] / 'report/index.html').read_text()
  assert 'Steps not taken: 2. Rollbacks and stops: 1.' in page
  assert 'grad_norm 31.7 against 2.25' in page
  assert 'to step 30, 102 batches left out' in page
  assert page.count('>skipped<') == page.count('>rolled back or stopped<') == 2  # loss, gradient
  assert 'Layers at step 200' in page and '47.12' in page
  assert 'Of all layers: mean cosine of two tokens 0.125' in page
  assert '102' not in page.split('id="record"')[1]


def test_every_plot_has_its_csv(workdirs):
  folder = workdirs['plain'] / 'report'
  page = Page(folder)
  links = [a['href'] for tag, a in page.elements if tag == 'a' and a.get('class') == 'csv']
  assert page.source.count('<figure>') == len(links)
  assert {p.name for p in folder.iterdir()} == {'index.html', *links}
  assert set(links) >= {'funnel_web.csv', 'lengths_pdf.csv', 'loss.csv', 'loss_by_corpus.csv',
                        'throughput.csv', 'task_continuation.csv', 'seconds.csv', 'domains.csv'}
  for name in links:
    with open(folder / name, newline='') as f:
      table = list(csv.reader(f))
    assert len(table) > 1 and len({len(row) for row in table}) == 1, name
  with open(folder / 'loss.csv', newline='') as f:
    loss = list(csv.DictReader(f))
  assert [int(r['step']) for r in loss] == list(range(1, 261))
  rows = [json.loads(s) for s in (workdirs['plain'] / 'metrics.jsonl').read_text().split('\n')[1:3]]
  assert [float(r['loss']) for r in loss[:2]] == [r['train/loss'] for r in rows]
  with open(folder / 'funnel_web.csv', newline='') as f:
    funnel = list(csv.DictReader(f))
  assert sum(int(r['dropped']) for r in funnel) == 2700 - 1890


def test_text_from_data_adds_no_markup(workdirs):
  plain, hostile = (Page(workdirs[k] / 'report') for k in ('plain', 'hostile'))
  tags = {'html', 'head', 'meta', 'title', 'style', 'body', 'main', 'header', 'nav', 'section', 'a',
          'h1', 'h2', 'h3', 'h4', 'p', 'b', 'em', 'small', 'span', 'code', 'pre', 'div', 'ol', 'ul',
          'li', 'table', 'tr', 'th', 'td', 'figure', 'figcaption', 'blockquote', 'cite', 'details',
          'mark', 'summary', 'svg', 'line', 'rect', 'path', 'circle', 'text'}
  for page in (plain, hostile):
    assert {tag for tag, _ in page.elements} <= tags
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith('on')]
    assert sum(tag == 'h1' for tag, _ in page.elements) == 1
    for tag, attrs in page.elements:
      assert not {'src', 'srcdoc', 'action', 'style', 'xlink:href'} & attrs.keys(), (tag, attrs)
      if 'href' in attrs:
        assert tag == 'a' and re.fullmatch(r'#[a-z]+|[A-Za-z0-9_-]+\.csv', attrs['href'])
    assert not re.search('[\u202a-\u202e\u2066-\u2069\u0000-\u0008\u000b-\u001f]', page.source)
  assert kinds(hostile) == kinds(plain)
  assert '<script>alert(1)</script>' in hostile.text  # shown, as text
  assert 'safegnp.exe' in hostile.text
  for file in (workdirs['hostile'] / 'report').glob('*.csv'):
    with open(file, newline='') as f:
      for row in csv.reader(f):
        assert not [c for c in row if c.startswith(('=', '@'))]


def kinds(page: Page) -> set[tuple]:
  return {(tag, *sorted(attrs)) for tag, attrs in page.elements}


@pytest.mark.parametrize('words', HOSTILE)
def test_names_add_no_markup_to_charts(words):
  def draw(s):
    points = [(0.0, 1.0), (1.0, 2.0)]
    series = [charts.Series(s, points), charts.Series(s, points, 1, 'dots')]
    return Page(charts.lines(series, label=s, y_label=s, x_label=s, bands=[(s, 0, 1)],
                             rule=(s, 1.5))
                + charts.histogram([(1.0, 10.0, 3)], label=s, x_label=s))
  drawn = draw(words)
  assert kinds(drawn) == kinds(draw('a')) and len(drawn.elements) == len(draw('a').elements)
  labels = {attrs['aria-label'] for _, attrs in drawn.elements if 'aria-label' in attrs}
  assert labels == {charts.clean(words)}  # whole, in its attribute


def test_nothing_is_fetched(workdirs):
  page = Page(workdirs['plain'] / 'report')
  policy = [a['content'] for tag, a in page.elements
            if a.get('http-equiv') == 'Content-Security-Policy']
  assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
  assert 'url(' not in page.source and '@import' not in page.source


def test_missing_files_are_named(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 5.25}\n')
  page = Page(pathlib.Path(report.write(str(tmp_path))).parent).text
  for name in ('curated corpora', 'statistics', 'bytes per token', 'loss by corpus', 'throughput',
               'evaluation', 'sample text', 'checkpoint', 'exported model', 'times', 'events',
               'config'):
    assert f'No {name}:' in page, name
  assert 'training loss of 5.25' in page


@pytest.mark.parametrize('name', ['summary.json', 'config.json', 'evals/7.json', 'samples.json',
                                  'events.jsonl', 'corpora/web/1.0.0/manifest.json'])
@pytest.mark.parametrize('content', ['', '{"a": ', '[]', '{}', 'null', '[1, "x"]', '\udcff'])
def test_damaged_files_are_survived(tmp_path, name, content):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 5.25}\n')
  (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / name).write_bytes(content.encode('utf-8', 'surrogateescape'))
  Page(pathlib.Path(report.write(str(tmp_path))).parent)


def test_damaged_corpus_is_named(tmp_path):
  curated(tmp_path, 'web', 20, 0.1, hostile=False)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 5.25}\n')
  next(tmp_path.glob('corpora/web/1.0.0/web-train*')).write_bytes(b'')
  page = Page(pathlib.Path(report.write(str(tmp_path))).parent).text
  assert 'corpus web could not be sampled' in page
  assert 'near duplicate' in page  # its manifest and its rejects are read all the same


def test_corpora_are_found_behind_links(tmp_path):
  """A step's output lies in steps/NAME-HASH and is linked to from a fixed name."""
  curated(tmp_path / 'run/steps/web-0a1b2c3d', 'web', 30, 0.1, hostile=False)
  (tmp_path / 'run/corpora').mkdir()
  (tmp_path / 'run/corpora/web').symlink_to('../steps/web-0a1b2c3d/corpora/web')
  (tmp_path / 'run/metrics.jsonl').write_text('{"step": 1, "train/loss": 5.25}\n')
  run = report.load(str(tmp_path / 'run'))
  dropped = sum(max(1, n // 10) for r in REASONS.values() for n in r.values())
  assert [(c.name, len(c.kept), len(c.rejects)) for c in run.corpora] == [('web', 30, dropped)]


def test_last_evaluation_is_by_number_not_by_letter(workdirs):
  assert report.load(str(workdirs['plain'])).evals['step'] == 260


def test_a_run_without_metrics_is_an_error(tmp_path):
  with pytest.raises(ValueError, match=r'metrics\.jsonl does not exist; train first'):
    report.write(str(tmp_path))
  with pytest.raises(FileNotFoundError, match='no such directory'):
    report.write(str(tmp_path / 'nowhere'))


def test_command_line(workdirs, tmp_path):
  wrong = {'error: no run at nowhere': ['--workdir=nowhere'], 'error: which run?': [],
           "error: unknown argument 'runs/x'": ['runs/x']}
  good = [f'--workdir={workdirs["plain"]}', f'--output={tmp_path / "page"}']
  done, *failures = run_commands(*(['experiments.report', *x] for x in (good, *wrong.values())))
  assert done.returncode == 0 and str(tmp_path / 'page/index.html') in done.stdout
  same = workdirs['plain'] / 'report/index.html'
  assert (tmp_path / 'page/index.html').read_bytes() == same.read_bytes()  # reproducible
  assert done.stderr == ''
  for why, failed in zip(wrong, failures, strict=True):
    assert failed.returncode == 2 and failed.stderr.startswith(why)
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize(('x', 'shown'), [
  (0, '0'), (9999, '9,999'), (10_000, '10k'), (12_345, '12.3k'), (999_999, '1M'),
  (1_049_216, '1.05M'), (2.5e9, '2.5B'), (1.12e13, '11.2T'), (0.003, '0.003'), (-15_000, '-15k'),
  (float('nan'), '–'), (float('inf'), '–'), (None, '–'), (True, '–'), ('7', '–')])
def test_compact(x, shown):
  assert charts.compact(x) == shown


def test_thin_keeps_spikes_and_smooth_keeps_constants():
  points = [(float(i), 1.0) for i in range(20_000)]
  points[12_345] = (12_345.0, 50.0)
  few = charts.thin(points)
  assert len(few) <= 802 and (12_345.0, 50.0) in few and few == sorted(few)
  flat = charts.smooth([(i, 3.0) for i in range(500)])
  assert all(y == pytest.approx(3.0) for _, y in flat)


def test_histogram_counts_every_value():
  values = np.random.default_rng(0).lognormal(6, 2, 5000).tolist()
  bins = charts.log_histogram(values)
  assert sum(n for *_, n in bins) == 5000
  assert bins[0][0] <= min(values) and max(values) < bins[-1][1]


def test_ticks_lie_inside():
  for low, high in ((0, 1), (3.4, 7.9), (0, 0.003), (-2, 1e6), (1, 260)):
    marks = charts.ticks(low, high)
    assert 3 <= len(marks) <= 9 and all(low - 1e-9 <= t <= high + 1e-9 * high for t in marks)
  assert charts.ticks(5, 5) == [5]


def test_line_charts_survive_any_numbers():
  for points in ([], [(1, math.nan)], [(1, 2.0)], [(1, 0.0), (2, 0.0)], [(1, math.inf), (2, 1.0)]):
    drawn = charts.lines([charts.Series('a', points)], label='a', y_label='b')
    assert 'nan' not in drawn and 'inf' not in drawn.replace('infin', '')


def test_the_noise_scale_is_a_ratio_of_averages():
  """A look that saw too much noise to tell the gradient from 0 counts in the average."""
  looks = [{'step': i, 'noise_trace': 8.0, 'grad_sq': x} for i, x in enumerate((-2.0, 2.0, 1.0))]
  (first, second), _ = zip(*report.noise_scale(types.SimpleNamespace(metrics=looks)), strict=True)
  assert (first, second) == (1, 2)
  trace, square = 8 * (0.1 + 0.09), 0.1 * 2 - 0.09 * 2
  assert report.noise_scale(types.SimpleNamespace(metrics=looks))[0][1] == pytest.approx(
    trace / square)
