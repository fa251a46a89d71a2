"""Corpora of thirteen kinds from what any machine has, tokenised alike: what experiments.mix mixes.

  python -m experiments.benchmarks.mixture_sources --data=DATA --output=runs/sources

DATA holds html_multilingual/debian-docs-LANGUAGE.tar.xz (Debian's documentation packages), text/
(Gutenberg's books, WikiText-2) and eval/ (GSM8K's training questions, BoolQ's passages), as the
packages and public repositories have them. From this machine come Python's standard library, C's
headers and, where rustup or Debian's rust-doc left it, Rust's documentation. Each becomes a curated
corpus by the pipeline that is meant for it, then tokens of one tokenizer trained on all alike; what
is finished is not done again. `rust_low` is what the quality rules drop of Rust's pages: a bucket
of low quality. `news` is held out whole: an independent evaluation, which no mixture may have.
"""

import argparse
import glob
import gzip
import html
import json
import pathlib
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator

import numpy as np

from smoljax.data import corpus as corpus_lib
from smoljax.data import tokenizer

LANGUAGES = ('en', 'de', 'fr', 'es')
RUST = ('/usr/share/doc/rust-doc/html',
        '~/.rustup/toolchains/*/share/doc/rust/html')  # the first that is there
RUST_PARTS = ('book', 'reference', 'nomicon', 'rust-by-example', 'cargo', 'rustc', 'edition-guide',
              'error_codes', 'alloc', 'std/collections', 'std/iter', 'std/io', 'std/vec',
              'std/string', 'std/sync', 'std/option', 'std/result', 'std/path', 'std/fs')
CHUNK = 6_000  # characters of a book in one document, at least
MOST = 4_000_000  # characters of C
FILES = 600  # of Python
# Of the documents: much English and code, little of the rest, as a crawl has it.
SHARES = {'de': 0.25, 'fr': 0.25, 'es': 0.25, 'romance': 0.35, 'math': 0.25, 'wiki': 0.35,
          'c': 0.5}


def main(argv: list[str] | None = None) -> None:
  """Makes all that is missing."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', type=pathlib.Path, required=True, help='folder, see above')
  parser.add_argument('--output', type=pathlib.Path, required=True)
  parser.add_argument('--vocab_size', type=int, default=4096)
  args = parser.parse_args(argv)
  raw, curated, tokens = (args.output / part for part in ('raw', 'curated', 'tokens'))
  for language in LANGUAGES:
    folder = _unpacked(args.data / f'html_multilingual/debian-docs-{language}.tar.xz',
                       raw / language)
    _web(curated, language, [folder], f'--languages={language}')
  _web(curated, 'rust', _rust(), '--filters=docs_repetition,docs_quality,docs_lines')
  _web(curated, 'news', [args.data / 'warc/repack-aeb-181.warc.gz'])
  _run(curated / 'python', 'data_beam.python_source', f'--input={sysconfig.get_path("stdlib")}',
       '--licences=any', f'--limit={FILES}')
  for name, rows in {
    'c': _headers(), 'books': _books(args.data, 'en'), 'romance': _books(args.data, 'fr|es|it'),
    'wiki': _wiki(args.data), 'math': _gsm8k(args.data), 'rust_low': _dropped(curated, 'rust'),
  }.items():
    _table(curated, raw, name, rows)
  names = sorted(p.name for p in curated.iterdir() if (p / '1.0.0/_SUCCESS').exists()
                 and not p.name.endswith('_rejects'))
  model = args.output / 'tokenizer.model'
  if not model.exists():
    tokenizer.train(_sample(curated, names), str(model), vocab_size=args.vocab_size,
                    max_bytes=12_000_000)
  for name in names:
    held = ['--holdout=0.999', '--holdout_shared=1'] if name == 'news' else ['--holdout=0.06']
    _run(tokens / name, 'data_beam.tokenize_corpus', f'--input={curated / name}/1.0.0', *held,
         f'--tokenizer={model}', '--num_shards=1', f'--share={SHARES.get(name, 1.0)}')


def _run(corpus: pathlib.Path, command: str, *flags: str) -> None:
  """Makes `corpus` by the command of a pipeline, unless it is finished."""
  if not (corpus / '1.0.0/_SUCCESS').exists():
    subprocess.run([sys.executable, '-m', *command.split(), f'--output={corpus.parent}',
                    f'--name={corpus.name}', *flags], check=True)


def _web(curated: pathlib.Path, name: str, sources: list[pathlib.Path], *flags: str) -> None:
  inputs = [f'--input={source}' for source in sources]
  _run(curated / name, 'data_beam.web', *inputs, '--min_language_score=0.3',
       *(flags if any('filters' in f for f in flags) else ('--filters=docs', *flags)))


def _table(curated: pathlib.Path, raw: pathlib.Path, name: str, rows: Iterator[str]) -> None:
  """A corpus of texts, near duplicates dropped."""
  if (curated / name / '1.0.0/_SUCCESS').exists():
    return
  raw.mkdir(parents=True, exist_ok=True)
  path = raw / f'{name}.jsonl'
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in rows))
  _run(curated / name, 'data_beam.tables import', f'--input={path}', '--minhash=14x8')


def _unpacked(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  if not folder.exists():
    with tarfile.open(archive) as file:
      file.extractall(folder, filter='data')
  return folder


def _rust() -> list[pathlib.Path]:
  """The parts of Rust's documentation."""
  found = [p for pattern in RUST for p in glob.glob(str(pathlib.Path(pattern).expanduser()))]
  if not found:
    raise SystemExit("no documentation of Rust: install Debian's rust-doc, or rustup")
  return [pathlib.Path(sorted(found)[-1]) / part for part in RUST_PARTS]


def _headers() -> Iterator[str]:
  """C's headers, evenly spread over what is installed, up to MOST characters."""
  paths, left = sorted(glob.glob('/usr/include/**/*.h', recursive=True)), MOST
  np.random.default_rng(0).shuffle(paths)
  for path in paths:
    text = pathlib.Path(path).read_text('utf-8', 'replace')
    if 500 < len(text) < 60_000:
      left -= len(text)
      if left < 0:
        return
      yield text


def _books(data: pathlib.Path, languages: str) -> Iterator[str]:
  """Gutenberg's books in stretches of whole paragraphs, one edition of each."""
  for path in sorted((data / 'text/gutenberg').glob('*.gz')):
    if not re.match(rf'({languages})-', path.name) or '.old' in path.name:
      continue
    encoding = 'latin-1' if 'latin1' in path.name else 'utf-8'
    text = gzip.decompress(path.read_bytes()).decode(encoding, 'replace').replace('\r\n', '\n')
    body = re.split(r'\*\*\* ?(?:START|END) OF TH[^\n]*\n', text)
    yield from _stretches(max(body, key=len).split('\n\n'))


def _stretches(paragraphs: Iterable[str]) -> Iterator[str]:
  held: list[str] = []
  for paragraph in paragraphs:
    held.append(re.sub(r'(?<=\S)\n(?=\S)', ' ', paragraph.strip('\n')))
    if sum(map(len, held)) > CHUNK:
      yield '\n\n'.join(held)
      held = []


def _wiki(data: pathlib.Path) -> Iterator[str]:
  """Articles of WikiText-2, words joined again, and the passages of BoolQ."""
  for part in ('valid', 'test'):
    text = (data / f'text/wikitext-2-{part}.txt').read_text('utf-8')
    for article in re.split(r'\n (?== [^=]+ = \n)', text):
      text_ = re.sub(r' @(.)@ ', r'\1', html.unescape(article))
      text_ = re.sub(r" ([.,;:!?)\]']|'s\b|n't\b)", r'\1', re.sub(r'([(\[]) ', r'\1', text_))
      yield from _stretches(text_.split('\n'))
  with open(data / 'eval/boolq.validation.jsonl', encoding='utf-8') as file:
    yield from (json.loads(line)['passage'] for line in file)


def _gsm8k(data: pathlib.Path) -> Iterator[str]:
  with open(data / 'eval/gsm8k.train.jsonl', encoding='utf-8') as file:
    for row in map(json.loads, file):
      yield f'{row["question"]}\n{re.sub(r"<<.*?>>", "", row["answer"])}'


def _dropped(curated: pathlib.Path, name: str) -> Iterator[str]:
  """What the quality rules dropped of a corpus; not its duplicates, nor other languages."""
  for row in corpus_lib.open_records(str(curated / f'{name}_rejects/1.0.0'), 'train'):
    text = corpus_lib.word(row['text'])
    if corpus_lib.word(row['stage']) == 'filter' and len(text) > 200:
      yield text


def _sample(curated: pathlib.Path, names: Iterable[str]) -> Iterator[str]:
  """Up to a megabyte of each corpus."""
  for name in names:
    left = 1_000_000
    for row in corpus_lib.open_records(str(curated / f'{name}/1.0.0'), 'train'):
      text = corpus_lib.word(row['text'])
      left -= len(text)
      if left < 0:
        break
      yield text


if __name__ == '__main__':
  main()
