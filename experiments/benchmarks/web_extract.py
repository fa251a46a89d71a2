"""Main text: quality on pages with gold text, and pages per CPU-second, beside other extractors.

  python -m experiments.benchmarks.web_extract --aeb=DIR [--trafilatura_eval=DIR] [--wcxb=DIR] \
    [--others=ENV/bin/python]

`--aeb` is a checkout of scrapinghub/article-extraction-benchmark (ground-truth.json and html/): its
own metric, precision, recall and F1 of 4-word shingles, averaged over pages. `--trafilatura_eval`
is tests/ of a checkout of adbar/trafilatura (evaldata.json, eval/, cache/): F1 over the segments
that a text must and must not hold. `--wcxb` is a split (dev or test) of a checkout of
Murrough-Foley/web-content-extraction-benchmark: F1 of words, averaged over pages and for each of
its seven types, beside trafilatura's standard setting, and how many pages vanish (under 200
characters where the other finds over 1,000). `--others` names a Python of an environment with
trafilatura 1.11.0 (datatrove's, in which FineWeb's setting is measured). One JSON line per
extractor and set.
"""

import collections
import functools
import gzip
import json
import pathlib
import re
import subprocess
import sys
import time

from absl import app, flags

from data_beam.web import extract as html_text

_AEB = flags.DEFINE_string('aeb', None, 'Folder of article-extraction-benchmark.')
_TRAF = flags.DEFINE_string('trafilatura_eval', None, "Folder of trafilatura's tests.")
_WCXB = flags.DEFINE_string('wcxb', None, 'Folder of a split of WCXB.')
_OTHERS = flags.DEFINE_string('others', None, 'Python with trafilatura 1.11.0.')
_TIERS = flags.DEFINE_list('tiers', list(html_text.TIERS), 'Tiers of ours to measure.')


def shingles(text: str | None) -> collections.Counter:
  """Runs of four words (fewer in a shorter text), with their counts."""
  words = re.findall(r'\w+', text or '')
  n = min(4, len(words))
  return collections.Counter(
    tuple(words[i:i + n]) for i in range(len(words) - n + 1)) if words else collections.Counter()


def shingle_f1(texts: list[str | None], gold: list[str]) -> dict[str, float]:
  """The measure of article-extraction-benchmark: F1 of runs of four words."""
  precision, recall = [], []
  for text, want in zip(texts, gold, strict=True):
    got, want = shingles(text), shingles(want)
    both = (want & got).total()
    precision += [both / got.total()] if got else []
    recall.append(both / want.total())
  return _f1(sum(precision) / len(precision), sum(recall) / len(recall))


def segment_f1(texts: list[str | None], gold: list[dict]) -> dict[str, float]:
  """The measure of trafilatura's evaluation: segments that must be there, and that must not."""
  plain = lambda text: ' '.join((text or '').split())
  counts = collections.Counter()
  for text, item in zip(texts, gold, strict=True):
    text = plain(text)
    for kind in ('with', 'without'):
      hits = sum(plain(segment) in text for segment in item[kind])
      counts[kind] += hits
      counts[f'no {kind}'] += len(item[kind]) - hits
  right = counts['with']
  return _f1(right / (right + counts['without']), right / (right + counts['no with']))


def _f1(p: float, r: float) -> dict[str, float]:
  return {'precision': round(p, 4), 'recall': round(r, 4), 'f1': round(2 * p * r / (p + r), 4)}


def read_aeb(folder: pathlib.Path) -> tuple[list[bytes], list[str]]:
  """(pages, their article bodies)."""
  truth = json.loads((folder / 'ground-truth.json').read_text())
  read = lambda k: gzip.decompress((folder / 'html' / f'{k}.html.gz').read_bytes())
  return [read(k) for k in truth], [v['articleBody'] for v in truth.values()]


def read_trafilatura(folder: pathlib.Path) -> tuple[list[bytes], list[dict]]:
  """(pages, the segments with and without)."""
  truth = json.loads((folder / 'evaldata.json').read_text())
  bodies = []
  for item in truth.values():
    path = folder / 'cache' / item['file']
    bodies.append((path if path.is_file() else folder / 'eval' / item['file']).read_bytes())
  return bodies, list(truth.values())


def word_f1(text: str, gold: str) -> float:
  """WCXB's measure: F1 of words, with their counts, case aside."""
  got, want = (collections.Counter(re.findall(r'\w+', t.lower())) for t in (text, gold))
  if not got or not want:
    return float(got == want)
  both = (got & want).total()
  return 2 * both / (got.total() + want.total())


def run_wcxb(folder: pathlib.Path) -> None:
  """Prints a row for each tier of ours and trafilatura: word F1 by type of page, pages lost."""
  import trafilatura

  pages, types, gold = [], [], []
  for path in sorted((folder / 'html').glob('*.html.gz')):
    name = path.name.removesuffix('.html.gz')
    truth = json.loads((folder / 'ground-truth' / f'{name}.json').read_text())
    pages.append(gzip.decompress(path.read_bytes()))
    kind = truth['_internal']['page_type']['primary']
    types.append('collection' if kind == 'category' else kind)
    gold.append(truth['ground_truth'].get('main_content') or '')
  texts, seconds = {}, {}
  extractors = {f'smoljax {tier}': functools.partial(html_text.extract, tier=tier)
                for tier in _TIERS.value}
  extractors['trafilatura'] = lambda body: trafilatura.extract(html_text.decode(body))
  for name, extract in extractors.items():
    extract(pages[0])   # imports
    start = time.process_time()
    texts[name] = [extract(body) or '' for body in pages]
    seconds[name] = time.process_time() - start
  for name, found in texts.items():
    scores = collections.defaultdict(list)
    for text, kind, want in zip(found, types, gold, strict=True):
      scores[kind].append(word_f1(text, want))
    lost = sum(len(a) < 200 and len(b) > 1000
               for a, b in zip(found, texts['trafilatura'], strict=True))
    print(json.dumps({
      'extractor': name, 'data': f'WCXB {folder.name}', 'pages': len(pages),
      'word_f1': round(sum(map(sum, scores.values())) / len(pages), 4), 'lost': lost,
      'by_type': {kind: round(sum(s) / len(s), 4) for kind, s in sorted(scores.items())},
      'pages_per_cpu_second': round(len(pages) / seconds[name], 1)}), flush=True)


OTHERS = '''
import json, sys, time
import trafilatura
pages = json.load(sys.stdin)
for name, options in (("trafilatura 1.11.0, FineWeb's setting", dict(
    favor_precision=True, include_comments=False, deduplicate=True)),):
  start = time.process_time()
  texts = [trafilatura.extract(p, **options) for p in pages]
  print(json.dumps([name, texts, time.process_time() - start]))
'''


def main(argv: list[str]) -> None:
  """Prints a JSON line for each extractor and set."""
  del argv
  sets = []
  if _AEB.value:
    sets.append(('article-extraction-benchmark', shingle_f1, *read_aeb(pathlib.Path(_AEB.value))))
  if _TRAF.value:
    sets.append(('trafilatura eval', segment_f1, *read_trafilatura(pathlib.Path(_TRAF.value))))
  if not sets and not _WCXB.value:
    sys.exit('web_extract: give --aeb=DIR, --trafilatura_eval=DIR or --wcxb=DIR')

  def print_row(name, data, score, gold, texts, seconds):
    print(json.dumps({'extractor': name, 'data': data, 'pages': len(texts), **score(texts, gold),
                      'pages_per_cpu_second': round(len(texts) / seconds, 1)}), flush=True)

  for data, score, bodies, gold in sets:
    for tier in _TIERS.value:
      html_text.extract(bodies[0], tier=tier)   # imports
      start = time.process_time()
      texts = [html_text.extract(b, tier=tier) for b in bodies]
      print_row(f'smoljax {tier}', data, score, gold, texts, time.process_time() - start)
    if _OTHERS.value:
      done = subprocess.run([_OTHERS.value, '-c', OTHERS], text=True, capture_output=True,
                            input=json.dumps([html_text.decode(b) for b in bodies]), check=True)
      for line in done.stdout.splitlines():
        name, texts, seconds = json.loads(line)
        print_row(name, data, score, gold, texts, seconds)
  if _WCXB.value:
    run_wcxb(pathlib.Path(_WCXB.value))


if __name__ == '__main__':
  app.run(main)
