"""Python source code → a corpus: the curation of another kind of document, in one file.

  python -m data_beam.python_source --input=.venv/lib/python3.11/site-packages --output=corpora
  python -m data_beam.python_source --input 'sdists/*.tar.gz' 'wheels/*.whl' --output=corpora

How to curate a source of your own (LaTeX, forum dumps, another language), by this example:

1. A file like this one. `read` turns what lies on disk into Documents (`id` from the content and
   from nothing that depends on where it lay; whatever else is known into `metadata`) and Rejects.
   Rules are functions `(Document) -> None | reason`; they may tidy `document.text`. `stages` is the
   list of (name, transform); `Each` makes one of a generator, ExactDedup, MinHashDedup and
   `anonymise` are used as they are. `run` hands them to `curation.curate`, which gives the live
   funnel, the rejects, the manifest, the report page and lineage.
2. `options.py`: a dataclass of its options, of which the flags are made.
3. `filters/spans.py`: one line for each reason that shows in one place, so that reports mark it.
   (Or put `span: [start, end]` into the metadata of the Reject, as `parse` does here.)
4. docs/commands.md, for the command; docs/architecture.md, for the file; a test file.

Nothing else: `data_beam.tokenize_corpus`, `data_beam.tables` and `experiments.lineage` take the
corpus as it is.

Thresholds are those of StarCoder (arXiv 2305.06161, §3) for Python: lines of at most 1,000
characters, 100 on average, a quarter of the characters alphanumeric, comments at most 80 %.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import re
import sys
import tarfile
import tokenize
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import apache_beam as beam

from data_beam import curation
from data_beam.curation import Each, anonymise, judge
from data_beam.dedup.clusters import MinHashDedup
from data_beam.dedup.decontaminate import decontamination
from data_beam.dedup.exact import ExactDedup
from data_beam.filters.rules import Rule
from data_beam.options import PythonSourceOptions
from data_beam.records import Document, Reject
from data_beam.sources.files import expand, open_file

MAX_BYTES = 1 << 20  # of a source file; longer ones are data
MAX_ARCHIVE = 2 << 30  # bytes that are unpacked of an archive
_ARCHIVES = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.whl', '.zip')
_GATHERED = 200  # files of a directory that one worker reads in a row


# --- reading -------------------------------------------------------------------------------------


class Batch(NamedTuple):
  """Files of a directory, by their path in it; or, with no files, an archive."""

  root: str
  files: tuple[str, ...] = ()


def find(patterns: Sequence[str]) -> list[Batch]:
  """What the patterns name: directories (walked), archives, single .py files.

  Raises FileNotFoundError or ValueError naming the first pattern without a match.
  """
  batches, found = [], set()
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    if os.path.isdir(pattern):
      root = os.path.normpath(pattern)
      files = sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, folders, names in os.walk(root) for name in names if name.endswith('.py'))
      if not files:
        raise FileNotFoundError(f'no .py file in the directory {pattern}')
      new = [Batch(root, tuple(files[i:i + _GATHERED])) for i in range(0, len(files), _GATHERED)]
    else:
      new = []
      for file in expand([pattern], archives=True):
        path = file['path']
        if not path.endswith(('.py', *_ARCHIVES)):
          raise ValueError(f'{path} is neither a .py file nor an archive '
                           f'({", ".join(_ARCHIVES)}) nor a directory')
        new.append(Batch(path) if path.endswith(_ARCHIVES) else
                   Batch(os.path.dirname(path), (os.path.basename(path),)))
    batches += [b for b in new if b not in found]
    found.update(new)
  return batches


def read(
  batches: Sequence[Batch], source: str, limit: int | None = None,
) -> Iterator[Document | Reject]:
  """The source files of batches, decoded as they declare (PEP 263), with plain line ends.

  Reasons: empty, too_large, bad_encoding, and corrupt_archive once where one breaks off.
  """
  count = 0
  for batch in batches:
    for result in _read_batch(batch, source):
      yield result
      count += isinstance(result, Document)
      if count == limit:
        return


def _read_batch(batch: Batch, source: str) -> Iterator[Document | Reject]:
  if batch.files:
    for path in batch.files:
      full = os.path.join(batch.root, path) if batch.root else path
      if not os.path.islink(full):  # a link may lead out of the directory
        with open_file(full) as f:
          yield _document(path, '', f.read(MAX_BYTES + 1), source)
    return
  name = os.path.basename(batch.root)
  try:
    with open_file(batch.root) as f:
      members = _zip_members(f) if batch.root.endswith(('.whl', '.zip')) else _tar_members(f)
      for path, body in members:
        yield _document(path, name, body, source)
  # Whatever the library says about damaged bytes, the files before them stand.
  except Exception as error:
    metadata = {'archive': name, 'error': f'{type(error).__name__}: {error}'[:200]}
    yield Reject(Document(name, '', source=source, metadata=metadata), 'read', 'corrupt_archive')


def _tar_members(f) -> Iterator[tuple[str, bytes]]:
  with tarfile.open(fileobj=f, mode='r|*') as archive:
    for member in archive:
      if member.offset_data + member.size > MAX_ARCHIVE:
        raise ValueError(f'more than {MAX_ARCHIVE} bytes unpacked')
      if member.isfile() and member.name.endswith('.py'):
        yield member.name, archive.extractfile(member).read(MAX_BYTES + 1)


def _zip_members(f) -> Iterator[tuple[str, bytes]]:
  with zipfile.ZipFile(io.BytesIO(f.read())) as archive:
    for info in archive.infolist():
      if info.filename.endswith('.py'):
        with archive.open(info) as member:
          yield info.filename, member.read(MAX_BYTES + 1)


def _document(path: str, archive: str, body: bytes, source: str) -> Document | Reject:
  path = path.replace(os.sep, '/')
  metadata = {'programming_language': 'Python', 'path': path}
  if archive:
    metadata['archive'] = archive
  document = Document(hashlib.sha256(path.encode('utf-8', 'replace') + b'\0' + body).hexdigest(),
                      '', source=source, metadata=metadata)
  if len(body) > MAX_BYTES:
    return Reject(document, 'read', 'too_large')
  try:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(body).readline)
    text = io.TextIOWrapper(io.BytesIO(body), encoding, newline=None).read()
  except (SyntaxError, LookupError, UnicodeDecodeError) as error:
    metadata['error'] = str(error)[:200]
    return Reject(document, 'read', 'bad_encoding')
  document.text = text.removeprefix('\ufeff')
  return document if text.strip() else Reject(document, 'read', 'empty')


# --- what a file is made of ----------------------------------------------------------------------


def parse(document: Document) -> Iterator[Document | Reject]:
  """Drops what the Python that runs this cannot parse: Python 2, templates, torn files."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # invalid escapes and the like are the author's business
      ast.parse(document.text)
    yield document
    return
  except SyntaxError as error:
    metadata = document.metadata | {'error': f'line {error.lineno}: {error.msg}'}
    lines = document.text.split('\n')
    at = (error.lineno or 1) - 1
    if at < len(lines) and lines[at].strip():
      start = sum(len(line) + 1 for line in lines[:at])
      metadata['span'] = [start, start + len(lines[at])]
  except (ValueError, RecursionError, MemoryError) as error:  # null bytes, deep nesting
    metadata = document.metadata | {'error': f'{type(error).__name__}: {error}'[:200]}
  yield Reject(dataclasses.replace(document, metadata=metadata), 'parse', 'syntax_error')


class Shape(NamedTuple):
  """Characters of a file's tokens by kind, and its lines of code."""

  comments: int  # and docstrings
  literals: int  # other strings, and numbers
  names: int  # everything else: keywords, names, operators
  lines: int  # that hold a name, an operator or a literal


@functools.lru_cache(maxsize=2)  # the rules of one document share it
def shape(text: str) -> Shape:
  """What a file that parses is made of."""
  comments = literals = names = 0
  lines, starts = set(), True  # whether a statement starts here
  skip = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
  with contextlib.suppress(tokenize.TokenError, IndentationError):
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
      if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and starts):
        comments += len(token.string)
      elif token.type not in skip:
        lines.update(range(token.start[0], token.end[0] + 1))
        if token.type in (tokenize.STRING, tokenize.NUMBER):
          literals += len(token.string)
        else:
          names += len(token.string)
      starts = token.type in skip or (starts and token.type == tokenize.COMMENT)
  return Shape(comments, literals, names, len(lines))


# --- rules ---------------------------------------------------------------------------------------

_SPDX = re.compile(r'SPDX-License-Identifier:\s*([A-Za-z0-9.+-]+(?: (?:OR|AND|WITH) [\w.+-]+)*)')
# Phrases of licences as headers have them, first match; the family names the reason.
_LICENCES = [(re.compile(pattern, re.I | re.S), name) for pattern, name in (
  (r'GNU\s+Affero|\bAGPL', 'AGPL'), (r'GNU\s+(?:Lesser|Library)|\bLGPL', 'LGPL'),
  (r'GNU\s+General\s+Public|\bGPL', 'GPL'), (r'Mozilla\s+Public\s+License|\bMPL', 'MPL-2.0'),
  (r'Apache\s+License|Apache-2\.0|apache\.org/licenses', 'Apache-2.0'),
  (r'\bMIT\W+licen[cs]e|Permission\s+is\s+hereby\s+granted,\s+free', 'MIT'),
  (r'\bBSD\b|Redistribution\s+and\s+use\s+in\s+source\s+and\s+binary', 'BSD'),
  (r'Python\s+Software\s+Foundation|\bPSF\b', 'PSF-2.0'),
  (r'confidential|proprietary|trade\s+secret', 'proprietary'))]
_RESTRICTED = re.compile(r'^(?:AGPL|LGPL|GPL|MPL|EPL|EUPL|CC-BY-(?:NC|ND|SA)|proprietary)', re.I)
_HEADER_CHARS = 4000  # of a file may be a header
_LEGAL = re.compile(r'copyright|licen[cs]e|©|\(c\)', re.I)
GENERATED = re.compile(
  r'(?i)@generated|do\s+not\s+(?:edit|modify)|#[^\n]*(?:auto(?:matically)?[ -]?generated|'
  r'generated\s+(?:by|from|using|with)\b)')


def find_licence(text: str) -> str:
  """The licence that a file's header names: an SPDX expression or a family; '' if none."""
  comment = re.match(r'(?:\s*#[^\n]*\n?)*', text[:_HEADER_CHARS]).group()
  docstring = re.match(r'''\s*[rRuU]?("""|\'\'\').*?\1''', text[len(comment):_HEADER_CHARS], re.S)
  header = comment + (docstring.group() if docstring else '')
  if found := _SPDX.search(header):
    return found.group(1)
  header = re.sub(r'\n\s*#', '\n', header)  # phrases run over lines
  return next((name for pattern, name in _LICENCES if pattern.search(header)), '')


def strip_header(text: str) -> str:
  """`text` without the first block of comments if that speaks of rights; #! and coding stay."""
  lines = text.split('\n')
  start = 0
  while start < min(2, len(lines)) and re.match(r'#!|#.*coding[:=]', lines[start]):
    start += 1
  first = start
  while first < len(lines) and not lines[first].strip():
    first += 1
  end = first
  while end < len(lines) and lines[end].startswith('#'):
    end += 1
  if not _LEGAL.search('\n'.join(lines[first:end])):
    return text
  while end < len(lines) and not lines[end].strip():
    end += 1
  return '\n'.join(lines[:start] + lines[end:])


def any_licence(document: Document) -> None:
  """Notes the licence in the metadata and takes its header, boilerplate of many files, away."""
  document.metadata = document.metadata | {'licence': find_licence(document.text)}
  document.text = strip_header(document.text)


def licence(document: Document) -> str | None:
  """`any_licence`, and drops what its header says is copyleft or proprietary.

  A file that names no licence is kept: its package says, which this rule does not see.
  """
  name = find_licence(document.text)
  if found := _RESTRICTED.match(name):
    return f'licence_{found.group().lower()}'
  return any_licence(document)


def generated(document: Document) -> str | None:
  """Made by a program and says so in its first lines."""
  head = '\n'.join(document.text[:_HEADER_CHARS].split('\n')[:15])
  return 'generated' if GENERATED.search(head) else None


def minified(document: Document, *, longest: int = 1000, mean: float = 100) -> str | None:
  """Lines no person wrote."""
  lines = document.text.split('\n')
  if max(map(len, lines)) > longest or len(document.text) > mean * len(lines):
    return 'long_lines'
  return None


def content(
  document: Document, *, lines: int = 5, comments: float = .8, literals: float = .7,
  alphanumeric: float = .25,
) -> str | None:
  """Code, rather than comments, tables of data, or next to nothing."""
  found, text = shape(document.text), document.text
  total = found.comments + found.literals + found.names
  if found.lines < lines:
    return 'few_lines'
  if found.comments > comments * total:
    return 'mostly_comments'
  if found.literals > literals * (found.literals + found.names):
    return 'mostly_data'
  if sum(map(str.isalnum, text)) < alphanumeric * len(text):
    return 'few_letters'
  return None


LICENCES: dict[str, Rule] = {'permissive': licence, 'any': any_licence}


def rules(licences: str) -> tuple[Rule, ...]:
  """The rules, in order."""
  return generated, LICENCES[licences], minified, content


# --- the pipeline --------------------------------------------------------------------------------


def stages(
  options: PythonSourceOptions, source: str = 'python',
) -> list[tuple[str, beam.PTransform]]:
  """The pipeline: each transform takes what the one before kept."""
  return [
    ('read', Each(read, source, options.limit)),
    ('parse', Each(parse)),
    ('filter', Each(judge, rules(options.licences))),
    ('exact_dedup', ExactDedup()),
    ('minhash', MinHashDedup()),
    *decontamination(options),
    ('pii', Each(anonymise)),
  ]


def run(
  input: Sequence[str], output: str, name: str = 'python',
  options: PythonSourceOptions | None = None, *, beam_args: Sequence[str] = (),
) -> str:
  """Curates Python files into the corpus `output/name/1.0.0`. Returns that path.

  Args:
    input: local directories; patterns of archives and .py files, local or remote.
    output: parent directory of the corpus and of `name_rejects`.
    name: of the corpus, and its documents' source.
    options: what each means is said in options.py.
    beam_args: flags of Beam.

  Raises:
    FileNotFoundError: a pattern matches nothing.
    ValueError: an unknown flag, or no document was kept, saying why.
  """
  options = options or PythonSourceOptions()
  found = find(input)
  inputs = [{'path': root, 'files': sum(len(b.files) for b in found if b.root == root)}
            for root in dict.fromkeys(b.root for b in found)]
  return curation.curate(
    curation.batches(found, options.limit), stages(options, name), output=output, name=name,
    inputs=inputs, options=options, beam_args=beam_args,
    found={'filters': [rule.__name__ for rule in rules(options.licences)]})


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  return curation.command(
    argv, run, PythonSourceOptions, prog='data_beam.python_source', name='python',
    input='directories, or patterns of archives and .py files',
    description='Turns Python source code into a corpus: reads the .py files of directories, '
    'sdists and wheels, drops what does not parse, generated and minified files, tables of data, '
    'files under licences you do not want and duplicates, and takes licence headers away. Every '
    'file that is dropped is kept aside with the reason.')


if __name__ == '__main__':
  sys.exit(main())
