"""The report of a synthetic run: its numbers come from the files, its markup from us alone."""

import csv
import json
import math
import pathlib
import re
import types

import numpy as np
import pytest
from conftest import run_commands
from helpers.workdirs import HOSTILE, REASONS, Page, curated, make_workdir

from smoljax.report import charts, run_page, run_sections, workdir


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory):
  """A plain run and one whose every string from data is an attack; both have their report."""
  roots = {kind: tmp_path_factory.mktemp(kind) / 'run' for kind in ('plain', 'hostile')}
  for kind, root in roots.items():
    make_workdir(root, hostile=kind == 'hostile')
    run_page.write(str(root))
  return roots


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
  run, tables = workdir.load(str(tmp_path)), []
  page, = run_sections.by_stage(run, run.names(), lambda *table: tables.append(table) or '')
  assert tables[0][2] == [
    ('stable', 10, 'web', 1.0, 4.0, 2.0), ('stable', 10, 'code', 0.0, 5.0, 4.0),
    ('decay', 20, 'web', 0.25, 2.0, 1.9), ('decay', 20, 'code', 0.75, 4.0, 2.0)]
  assert '-50.0%' in page and '75%' in page
  run.metrics = run.metrics[:3]
  assert run_sections.by_stage(run, run.names(), lambda *_: '') == []  # one stage, from nothing
  run.config['train']['init_from'] = 'runs/base'
  assert len(run_sections.by_stage(run, run.names(), lambda *_: '')) == 1


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
  assert run_sections.collapses(looks) == expected
  shown = ''.join(run_sections.feature_health(looks, lambda *a: ''))
  for name, (step, layer) in expected.items():
    where = '' if layer is None else f' in layer {layer}'
    assert f'<b>{name}</b> from step {step}{where}' in shown and 'ower the' in shown
  assert ('class="warning"' in shown) == bool(expected) and 'Effective rank' in shown


def test_numbers_on_the_page_come_from_the_files(workdirs):
  page = Page(workdirs['plain'] / 'report').text
  for shown in (
    'A language model of 1.05M parameters, trained on 2,101 web and pdf documents in 8 min 09 s',
    'bits for each byte of web text that it never saw (60 documents); less is better',
    '2.13M tokens', '1.83', 'by how often each token comes, 8 by knowing nothing',
    'right answers of 200 questions in continuation (which text is the real', '64%',
    '31% without the text before the answer, 25% by guessing',
    'python -m experiments.generate --checkpoint=', '--config.train.init_from=',
    '2,994', '2,700 documents in, 1,890 kept (70%)', '297 documents in, 211 kept (71%)',
    'near duplicate 212', 'too few words 290', '3.21', 'A vocabulary of 2,048', '1.827', '2.41',
    '32.5 ± 3.4 points above the blind model', '63.5%', '28.5%', '31.0%', '23.5%',
    'median 8,981 tokens per second', 'model FLOPs utilisation 11.2%', 'checkpoints/260',
    'last of 2', '4.2 MB', "AutoModelForCausalLM.from_pretrained('export')", 'from checkpoints/100',
    '3 checkpoints were saved', '2026-11-23', 'docs.python.org', 'unigram 6.14', 'At step 260'):
    assert shown in page, shown
  assert 'canary123' not in page
  assert '99' not in re.findall(r'From (\S+) to', page)[0]  # the step done again counts
  assert re.search(r'metrics.jsonl: line \d+ was cut off by a kill', page)


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
  page = Page(pathlib.Path(run_page.write(str(tmp_path))).parent).text
  for name in ('curated corpora', 'statistics', 'bytes per token', 'loss by corpus', 'throughput',
               'evaluation', 'sample text', 'checkpoint', 'exported model', 'times', 'events',
               'config'):
    assert f'No {name}:' in page, name
  assert 'training loss, in nats per token; less is better' in page and '5.25' in page


@pytest.mark.parametrize('name', ['summary.json', 'config.json', 'evals/7.json', 'samples.json',
                                  'events.jsonl', 'corpora/web/1.0.0/manifest.json'])
@pytest.mark.parametrize('content', ['', '{"a": ', '[]', '{}', 'null', '[1, "x"]', '\udcff'])
def test_damaged_files_are_survived(tmp_path, name, content):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 5.25}\n')
  (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / name).write_bytes(content.encode('utf-8', 'surrogateescape'))
  Page(pathlib.Path(run_page.write(str(tmp_path))).parent)


def test_damaged_corpus_is_named(tmp_path):
  curated(tmp_path, 'web', 20, 0.1, hostile=False)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 5.25}\n')
  next(tmp_path.glob('corpora/web/1.0.0/web-train*')).write_bytes(b'')
  page = Page(pathlib.Path(run_page.write(str(tmp_path))).parent).text
  assert 'corpus web could not be sampled' in page
  assert 'near duplicate' in page  # its manifest and its rejects are read all the same


def test_corpora_are_found_behind_links(tmp_path):
  """A step's output lies in steps/NAME-HASH and is linked to from a fixed name."""
  curated(tmp_path / 'run/steps/web-0a1b2c3d', 'web', 30, 0.1, hostile=False)
  (tmp_path / 'run/corpora').mkdir()
  (tmp_path / 'run/corpora/web').symlink_to('../steps/web-0a1b2c3d/corpora/web')
  (tmp_path / 'run/metrics.jsonl').write_text('{"step": 1, "train/loss": 5.25}\n')
  run = workdir.load(str(tmp_path / 'run'))
  dropped = sum(max(1, n // 10) for r in REASONS.values() for n in r.values())
  assert [(c.name, len(c.kept), len(c.rejects)) for c in run.corpora] == [('web', 30, dropped)]


def test_last_evaluation_is_by_number_not_by_letter(workdirs):
  assert workdir.load(str(workdirs['plain'])).evals['step'] == 260


def test_a_run_without_metrics_is_an_error(tmp_path):
  with pytest.raises(ValueError, match=r'metrics\.jsonl does not exist; train first'):
    run_page.write(str(tmp_path))
  with pytest.raises(FileNotFoundError, match='no such directory'):
    run_page.write(str(tmp_path / 'nowhere'))


@pytest.mark.slow
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
  (first, second), _ = zip(
    *run_sections.noise_scale(types.SimpleNamespace(metrics=looks)), strict=True
  )
  assert (first, second) == (1, 2)
  trace, square = 8 * (0.1 + 0.09), 0.1 * 2 - 0.09 * 2
  assert run_sections.noise_scale(types.SimpleNamespace(metrics=looks))[0][1] == pytest.approx(
    trace / square)
