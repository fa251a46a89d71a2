"""Our filters against datatrove's: do they decide alike, for the same reason, at what cost?

  python -m experiments.benchmarks.parity --data=DIR --datatrove=/path/to/python [--texts=FILE]
  python -m experiments.benchmarks.parity --input FILE… [--language=en] --datatrove=/path/to/python

DIR holds the shared test data; real pages of six languages become texts once, by our fast
extractor (kept in FILE, if given), and both sides judge the same texts. `--input` takes texts of
your own: JSONL with `text` (and `language`), as a corpus exported by data_beam.tables is, or text
files. The other python has datatrove 0.10.1, spacy 3.8, tokenizers and xxhash<4 installed (it
cannot share an environment with this project: both want a `fasttext` module). English goes through
FineWeb's chain, other languages through FineWeb-2's. Prints a JSON line per language, per
disagreement, and for the signatures. Of documents a CPU-second `cold` counts all, the first ones
too, of which every word is new to the worker; `unseen` the last half of each language's, read after
the first; `warm` all of them, read again.
"""

import argparse
import collections
import gzip
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator

LANGUAGES = {'en': 'eng', 'fr': 'fra', 'de': 'deu', 'es': 'spa', 'it': 'ita', 'pt': 'por'}


# --- the texts -------------------------------------------------------------------------------


def texts(data: str, every: int) -> Iterator[dict]:
  """Rows of id, language, text: pages that datatrove extracted, Debian's manuals, and books."""
  from data_beam.web import extract as html_text
  with gzip.open(f'{data}/web_parity/datatrove_decisions.jsonl.gz') as file:
    for row in map(json.loads, file):
      if row.get('text') and row.get('lang') in LANGUAGES:
        yield {'id': row['id'], 'language': row['lang'], 'text': row['text']}
  for language in LANGUAGES:
    with tarfile.open(f'{data}/html_multilingual/debian-docs-{language}.tar.xz') as archive:
      for i, member in enumerate(archive):
        if i % every or not member.name.endswith('.html'):
          continue
        if file := archive.extractfile(member):
          text = html_text.extract(file.read(), f'https://debian.org/{i}', 'text/html', tier='fast')
          if text:
            yield {'id': f'{language}/{member.name}', 'language': language, 'text': text}
  for book in sorted(os.listdir(f'{data}/text/gutenberg')):
    language, encoding = book[:2], 'latin-1' if 'latin1' in book else 'utf-8'
    with gzip.open(f'{data}/text/gutenberg/{book}') as file:
      text = file.read(300_000).decode(encoding, 'replace').replace('\r\n', '\n')
    for start in range(0, len(text), 6000):
      part = text[start:start + 6000]
      if start % 12_000:   # every other one with a paragraph a line
        part = '\n'.join(p.replace('\n', ' ') for p in part.split('\n\n'))
      yield {'id': f'{book}/{start}', 'language': language, 'text': part}


def texts_of(paths: list[str], language: str) -> Iterator[dict]:
  """Rows of files of the user's own, those of six languages; `language` is of those that tell none.
  """
  for path in paths:
    with (gzip.open if path.endswith('.gz') else open)(path, 'rt', errors='replace') as file:
      if '.json' in os.path.basename(path):
        rows = list(map(json.loads, file))
      else:
        rows = [{'text': file.read()}]
    for i, row in enumerate(rows):
      found = row.get('language') or language
      if row.get('text') and found in LANGUAGES:
        yield {'id': f'{path}/{i}', 'language': found, 'text': row['text']}


# --- two judges ------------------------------------------------------------------------------


def ours(rows: list[dict]) -> dict:
  """Our verdicts on the rows, and the CPU seconds they took."""
  from data_beam.dedup.minhash import signature
  from data_beam.filters.rules import fineweb2
  from data_beam.records import Document
  verdicts, seconds = {}, {}
  half = {language: sum(row['language'] == language for row in rows) // 2 for language in LANGUAGES}
  for state in ('cold', 'warm'):
    seconds[state], done = collections.Counter(), collections.Counter()
    for row in rows:
      document = Document(id='', text=row['text'], language=row['language'])
      start = time.process_time()
      reason = fineweb2(document)
      spent, done[row['language']] = time.process_time() - start, done[row['language']] + 1
      seconds[state][row['language']] += spent
      if state == 'cold' and done[row['language']] > half[row['language']]:
        seconds.setdefault('unseen', collections.Counter())[row['language']] += spent
      verdicts[row['id']] = reason, document.text
  signatures = {}
  for hash_name in ('fast', 'xxh64'):
    start = time.process_time()
    for row in rows:
      signatures[row['id']] = signature(
        row['text'], hash_name=hash_name, language=row['language']).tolist()
    seconds[hash_name] = time.process_time() - start
  return {'verdicts': verdicts, **seconds, 'signatures': signatures}


def bounds() -> dict:
  """What datatrove's filters are told of each language, in a form that JSON holds."""
  from data_beam.filters.rules import FINEWEB2_TABLES, STOP_WORDS
  return {'tables': {k: dict(v) for k, v in FINEWEB2_TABLES.items()},
          'stop_words': {k: sorted(v) for k, v in STOP_WORDS.items()}}


def datatrove_chains(bounds: dict) -> dict[str, list]:
  """{language: datatrove's filters}, ready to run. For datatrove's environment."""
  from datatrove.data import Document
  from datatrove.pipeline import filters
  chains = {}
  for language, code in LANGUAGES.items():
    if language == 'en':
      chains[language] = [
        filters.GopherRepetitionFilter(), filters.GopherQualityFilter(),
        filters.C4QualityFilter(filter_no_terminal_punct=False), filters.FineWebQualityFilter()]
      continue
    table, stop_words = bounds['tables'][language], bounds['stop_words'][language]
    chains[language] = [
      filters.GopherRepetitionFilter(
        language=code, dup_para_frac=0, dup_line_char_frac=0, dup_para_char_frac=0,
        dup_line_frac=table['lines'], top_n_grams=list(enumerate(table['top'], 2)),
        dup_n_grams=list(enumerate(table['duplicated'], 5))),
      filters.FineWebQualityFilter(
        language=code, short_line_thr=999, char_duplicates_ratio=.1,
        line_punct_thr=table['line_punctuation'], new_line_ratio=table['newlines']),
      filters.GopherQualityFilter(
        language=code, min_avg_word_length=table['word_length'][0],
        max_avg_word_length=table['word_length'][1], stop_words=stop_words,
        max_non_alpha_words_ratio=table['alphabetic'], min_stop_words=2)]
  for language in chains:   # tokenizers are built on their first use
    for step in chains[language]:
      step.filter(Document(text='a word. ' * 60, id=''))
  return chains


def theirs(path: str) -> None:
  """Runs in datatrove's environment; prints a JSON object."""
  from datatrove.data import Document
  from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
  from datatrove.utils.hashing import HashConfig
  from loguru import logger
  logger.remove()
  with open(path) as file:
    job = json.load(file)
  chains, minhash = datatrove_chains(job), {}
  config = MinhashConfig(hash_config=HashConfig(hash_fc='xxhash', precision=64))
  for language, code in LANGUAGES.items():
    minhash[language] = MinhashDedupSignature(tempfile.mkdtemp(), config=config, language=code)
    minhash[language].get_shingles('a word')
  verdicts, seconds = {}, collections.defaultdict(float)
  for row in job['rows']:
    document = Document(text=row['text'], id=row['id'])
    start = time.process_time()
    reason = None
    for step in chains[row['language']]:
      verdict = step.filter(document)
      if verdict is not True:
        reason = verdict[1]
        break
    seconds[row['language']] += time.process_time() - start
    verdicts[row['id']] = reason, document.text
  signatures, start = {}, time.process_time()
  for row in job['rows']:
    step = minhash[row['language']]
    shingles = step.get_shingles(row['text'])
    signatures[row['id']] = step.get_signature(shingles) if shingles.size else []
  print(json.dumps({'verdicts': verdicts, 'warm': seconds, 'signatures': signatures,
                    'minhash': time.process_time() - start}))


def main() -> None:
  """Prints where our filters and datatrove differ, and how fast both are."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', help='folder of the shared test data')
  parser.add_argument('--input', nargs='+', default=[], help='files of texts in its place')
  parser.add_argument('--language', default='en', help='of texts that do not tell theirs')
  parser.add_argument('--datatrove', required=True, help='python with datatrove and spacy')
  parser.add_argument('--every', type=int, default=8, help='take every n-th page of the manuals')
  parser.add_argument('--texts', help='where the texts are kept for another run')
  args = parser.parse_args()
  if not args.data and not args.input:
    parser.error('give --data=DIR or --input FILE…')
  if args.texts and os.path.exists(args.texts):
    with open(args.texts) as file:
      rows = list(map(json.loads, file))
  else:
    rows = list(texts_of(args.input, args.language) if args.input else
                texts(args.data, args.every))
    if args.texts:
      with open(args.texts, 'w') as file:
        file.writelines(json.dumps(row) + '\n' for row in rows)
  our_result = ours(rows)
  with tempfile.NamedTemporaryFile('w', suffix='.json') as job:
    json.dump({'rows': rows, **bounds()}, job)
    job.flush()
    theirs = subprocess.run(
      [args.datatrove, __file__, '--theirs', job.name], capture_output=True, text=True)
  if theirs.returncode:
    sys.exit(f'error: {args.datatrove}: {(theirs.stderr.strip().splitlines() or ["no word"])[-1]}')
  other = json.loads(theirs.stdout)
  for language in LANGUAGES:
    ids = [row['id'] for row in rows if row['language'] == language]
    if not ids:
      continue
    characters = sum(len(row['text']) for row in rows if row['language'] == language)
    pairs = [(key, our_result['verdicts'][key], other['verdicts'][key]) for key in ids]
    apart = [pair for pair in pairs if pair[1][0] != pair[2][0]]
    print(json.dumps({
      'language': language, 'documents': len(ids), 'mean_characters': characters // len(ids),
      'kept': sum(theirs[0] is None for _, _, theirs in pairs),
      'same_verdict': sum((a[0] is None) == (b[0] is None) for _, a, b in pairs) / len(ids),
      'same_reason': 1 - len(apart) / len(ids),
      'same_text': sum(a[1] == b[1] for _, a, b in pairs if a[0] is None is b[0])
      / max(1, sum(a[0] is None is b[0] for _, a, b in pairs)),
      'ours_docs_per_cpu_second': round(len(ids) / our_result['warm'][language]),
      'ours_cold': round(len(ids) / our_result['cold'][language]),
      'ours_unseen': round((len(ids) - len(ids) // 2) / our_result['unseen'][language]),
      'datatrove_docs_per_cpu_second': round(len(ids) / other['warm'][language], 1)}))
    for key, a, b in apart:
      print(json.dumps({'id': key, 'ours': a[0], 'datatrove': b[0]}))
  same = sum(our_result['signatures'][row['id']] == other['signatures'][row['id']] for row in rows)
  print(json.dumps({
    'minhash': '14x8 xxh64, words of spaCy', 'documents': len(rows),
    'same_signature': same / len(rows),
    'ours_docs_per_cpu_second': round(len(rows) / our_result['xxh64']),
    'ours_fast_docs_per_cpu_second': round(len(rows) / our_result['fast']),
    'datatrove_docs_per_cpu_second': round(len(rows) / other['minhash'], 1)}))


if __name__ == '__main__':
  if sys.argv[1] == '--theirs':
    theirs(sys.argv[2])
  else:
    main()
