"""Pages in a browser, on a desk and on a phone: nothing is wider than the page, no word crossed."""

import json

import pytest
from helpers.browser import CHROMIUM, layout
from helpers.workdirs import curated, make_workdir

from smoljax.report import run_page, run_sections, status_page, sweep_page

LONG = 'learning_rate=0.001,optimizer.qk_clip.tau=100,seed=0'


def run(root):
  make_workdir(root)
  return run_page.write(str(root))


def hostile(root):
  make_workdir(root, hostile=True)
  return run_page.write(str(root))


def corpora(root):
  curated(root, 'web', 120, 1.0, False)
  return run_page.write(str(root))


def status(root):
  for name, steps in ((LONG, 9), ('short', 1)):
    folder = root / 'points' / name
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps({'train': {'steps': 10}}))
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(
      {'step': i, 'train/loss': 9 / i, 'perf/tokens_per_sec': 123456.0}) + '\n'
      for i in range(1, steps + 1)))
    (folder / 'log.txt').write_text('error: no such file: ' + '/a/very/long/path' * 9)
  page = root / 'status.html'
  page.write_text(status_page.render(root))
  return page


def sweep(root):
  runs = []
  for i in range(3):
    folder = root / 'points' / f'{LONG}{i}'
    make_workdir(folder)
    runs.append(sweep_page.load(f'{LONG}{i}', {'optimizer.learning_rate': i, 'seed': 0}, folder))
  return sweep_page.write(runs, str(root))[0]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason='no Chromium')
@pytest.mark.parametrize('make', [run, hostile, corpora, status, sweep], ids=lambda f: f.__name__)
def test_nothing_is_wider_than_the_page_and_no_word_is_crossed(make, tmp_path):
  page = make(tmp_path / 'x')
  for width, dark in ((1400, False), (390, True)):
    found = layout(page, width, tmp_path, dark)
    assert found['page'] <= found['width'] and not found['wide'] and not found['crossed'], found
    assert not found['faint'], found
    assert width < 1000 or not found['cut'], found


def test_leaves_have_names_that_a_reader_knows():
  assert run_sections.leaf_name('blocks/attn/q_DNH') == 'attention queries'
  assert run_sections.leaf_name('blocks/mlp/down_FD') == 'MLP down'
  assert run_sections.leaf_name('blocks/norm_D') == 'blocks/norm_D'
