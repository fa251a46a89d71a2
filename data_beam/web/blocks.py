"""A parsed page as blocks of text and the elements around them, in one walk over the tree."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lxml import etree

from data_beam.web import tex
from data_beam.web.names import (
  CODE_CELL,
  CODE_LINE,
  DRAWN,
  FORMULA,
  GUTTER,
  LISTING,
  QUESTION,
  UNFOLDS,
  Hint,
  hint,
  is_code_box,
)

# What a tag is to the walk. A tag not listed is inline: its text joins the text around it.
_BLOCK, _BREAK, _SKIP, _OTHER = 1, 2, 3, 4
# Nothing of a page's text stands in these, however the markup is broken.
_NEVER = ('desc', 'script', 'style', 'embed', 'input', 'frame', 'area', 'base', 'link', 'meta',
          'source', 'track', 'rp')
# These hold none of it in a page that is well made. Of another they may hold all of it.
_ASIDE = ('noscript', 'object', 'applet', 'audio', 'video', 'picture', 'map', 'select', 'option',
          'label', 'nav', 'aside', 'footer', 'menu', 'dialog', 'figcaption', 'noindex', 'marquee',
          'svg', 'canvas', 'title', 'head', 'template', 'datalist', 'frameset', 'rt', 'rtc',
          'progress', 'meter')
# Neither do these, whose inside is no markup to a parser: of one that is never closed it is the
# rest of the page.
_RAW = ('textarea', 'iframe', 'noframes', 'noembed')
_MATH = ('math', 'm:math', 'mml:math')
_OWN = (*_MATH, 'mjx-container', 'script', 'img', 'button', 'sup', 'code')   # see Walk.other
BLOCK = frozenset([
  'html', 'body', 'main', 'article', 'section', 'div', 'p', 'header', 'hgroup', 'h1', 'h2', 'h3',
  'h4', 'h5', 'h6', 'ul', 'ol', 'li', 'dl', 'dt', 'dd', 'table', 'thead', 'tbody', 'tfoot', 'tr',
  'td', 'th', 'caption', 'blockquote', 'pre', 'address', 'center', 'form', 'fieldset', 'details',
  'summary', 'figure', 'hr', 'legend', 'search', 'listing', 'xmp',
])
_TAGS = {**dict.fromkeys((*_NEVER, *_ASIDE, *_RAW), _SKIP), **dict.fromkeys(BLOCK, _BLOCK),
         **dict.fromkeys(_OWN, _OTHER), 'br': _BREAK}
_TAGS_ALL = {**_TAGS, **dict.fromkeys((*_ASIDE, *_RAW, 'button'), _BLOCK)}
HEADINGS = {f'h{i}': i for i in range(1, 7)}
# Elements that can be the scope, or be boilerplate.
CONTAINERS = frozenset([
  'body', 'main', 'article', 'section', 'div', 'header', 'table', 'tbody', 'tr', 'td', 'form',
  'figure', 'blockquote', 'ul', 'ol', 'dl', 'center', 'details', 'p', 'span', 'fieldset',
  'address', 'li', 'h2', 'h3', 'h4',
])
_KINDS = {'p': 'p', 'li': 'li', 'dd': 'li', 'dt': 'li', 'td': 'row', 'th': 'row', 'pre': 'pre',
          'listing': 'pre', 'xmp': 'pre',
          'blockquote': 'quote', **{h: h for h in HEADINGS}}
# What keeps its own kind inside a list, a quotation or a cell.
_STRONGER = _KINDS.keys() - {'p'}

_HIDDEN = re.compile(r'display\s*:\s*none|visibility\s*:\s*hidden', re.I)
_SENTENCE = re.compile(r'[.!?…。！？:;]["”’»)\]]*(?:\s|$)')
# 10<sup>6</sup>, m<sup>2</sup>, mc<sup>2</sup>; but no note's number after a word or a year.
_EXPONENT = re.compile(r'\s*(?:[-+−–]?\d{1,3}|[-+−–]?[nkmxyti])\s*')
_BASE = re.compile(
  r'(?:(?<![\d.,])(?!(?:1[5-9]|20)\d\d$)\d[\d.,]*|(?<![^\W\d_])[A-Za-z]{1,2}|[)\]])$')
_SCRIPT = frozenset(['i', 'em', 'var', 'b', 'span'])     # what an exponent may stand in
_PREFORMATTED = re.compile(r'white-space\s*:\s*pre\s*(?:$|[;!])', re.I)
_END_TAGS = re.compile(rb'</(?:body|html)\b[^<>]*>', re.I)
_MARKUP = re.compile(r'<(?:p|div|br|article|section|h[1-6]|table|li)\b', re.I)
_CODE_BLOCKS = frozenset(['div', 'p', 'li', 'tr', 'pre'])
_CODE_INLINE = frozenset(['span', 'code', 'a'])
_INVISIBLE = {0xa0: ' ', 0x200b: None, 0xfeff: None}      # in code, to keep a line from collapsing
MAX_CELLS = 50    # that one cell may span


class Block(NamedTuple):
  """A stretch of text that a browser would set off from what is before and after it."""

  text: str
  kind: str       # p, h1 … h6, li, row, pre, quote, or div: text directly in a container
  links: int      # characters of it inside links
  value: int      # characters that read like prose, 0 for menus, headings, captions
  mark: str = ''  # before a list's item in Markdown: blanks, and its number or a dash

  @property
  def link_density(self) -> float:
    """Share of the characters that are in links."""
    return self.links / len(self.text)


class Element(NamedTuple):
  """A container: blocks[start:end]."""

  start: int
  end: int
  hint: int
  depth: int
  tag: str


def value(text: str, kind: str, links: int) -> int:
  """How much a block counts as prose."""
  size = len(text)
  if kind in HEADINGS or links * 2 > size:
    return 0
  if kind in ('p', 'quote', 'pre'):
    return size - links if size >= 20 else 0
  if size >= 80 or (size >= 30 and _SENTENCE.search(text)):
    return size - links
  return 0


def parse(html: str) -> Any:
  """The root element of a page, or None if there is nothing in it.

  What stands behind </body> or </html> is the page's as well, as browsers have it.
  """
  page = html.encode('utf-8', 'replace')
  if _END_TAGS.search(page, 0, max(0, len(page) - 400)):
    page = _END_TAGS.sub(b'', page)
  parser = etree.HTMLParser(encoding='utf-8', remove_comments=True, remove_pis=True,
                            collect_ids=False,
                            huge_tree=True)   # nesting beyond 256; within_budget bounds the size
  try:
    return etree.fromstring(page, parser)
  except etree.XMLSyntaxError:   # an empty document
    return None


class Walk:
  """Collects blocks and elements."""

  MAX_DEPTH = 200   # of nested tags; deeper text is taken as it comes. Bounds Python's stack

  def __init__(self, root: Any, *, markdown: bool = False, everything: bool = False,
               formulas: bool = False, thread: bool = False):
    """Walks over a page.

    Args:
      root: from `parse`.
      markdown: code in a line stands between backticks.
      everything: also what is inside elements that hold no text of a page that is well made.
      formulas: some are drawn by a script, and their source stands beside them.
      thread: the page is one, so that comments are its text.
    """
    self.tags = _TAGS_ALL if everything else _TAGS
    self.markdown, self.formulas, self.thread = markdown, formulas, thread
    self.blocks: list[Block] = []
    self.elements: list[Element] = []
    self.skipped = 0               # characters of long texts inside what was skipped
    self.parts: list[str] = []     # of the block being read
    self.links = 0
    self.mark = self.rest = ''     # of the list's item being read: of its next block, of later ones
    # The lists around: [next number or None, blanks before an item, its mark's width, step].
    self.lists: list[list[Any]] = []
    self.cells: list[tuple[Any, int, int]] = []       # of the row being read: blocks[start:end]
    self.grid: list[Any] = [0, {}]      # of the table: its columns, {column: (rows to come, text)}
    self.block(root, 'body', 'div', 0, False)

  def flush(self, kind: str) -> None:
    """Ends the block being read."""
    if not self.parts:
      return
    raw = ''.join(self.parts)
    self.parts.clear()
    links, self.links = self.links, 0
    if raw.isspace():
      return
    for piece in raw.split('\f\f') if '\f\f' in raw else (raw,):    # two <br>: a paragraph's end
      if '\f' in piece:
        lines = [' '.join(line.split()) for line in piece.split('\f')]
        text = '\n'.join(filter(None, lines))
      else:
        text = ' '.join(piece.split())
      if text:
        share = links if piece is raw else links * len(piece) // len(raw)
        mark = ''
        if kind == 'li':
          mark, self.mark = self.mark, self.rest
        self.blocks.append(
          Block(text, kind, min(share, len(text)), value(text, kind, share), mark))

  def visit(self, element: Any, kind: str, depth: int, in_link: bool) -> None:
    """Reads an element's inside. `kind` is that of text directly in it."""
    parts, known = self.parts, self.tags.get
    if (text := element.text) and (parts or not text.isspace()):
      parts.append(text)
      if in_link:
        self.links += len(text)
    for child in element:
      tag = child.tag
      what = known(tag)
      if what is None:
        if type(tag) is not str or (
          self.formulas and (names := child.get('class')) and DRAWN.search(names)):
          pass
        elif not len(child):      # most: without a call
          if (text := child.text) and (parts or not text.isspace()):
            parts.append(text)
            if in_link or tag == 'a':
              self.links += len(text)
        elif depth >= self.MAX_DEPTH:
          parts.extend(_texts(child))
        else:
          self.visit(child, kind, depth + 1, in_link or tag == 'a')
      elif what == _BLOCK:
        self.block(child, tag, kind, depth + 1, in_link)
      elif what == _BREAK:
        # Source line breaks around it mean nothing; \f cannot come from markup.
        while parts and parts[-1].isspace() and parts[-1] != '\f':
          parts.pop()
        parts.append('\f')
      elif what == _SKIP:
        if len(child) or tag in _RAW:
          self.skipped += _prose_in(child)
      else:
        self.other(child, tag, kind, depth, in_link)
      if (tail := child.tail) and (parts or not tail.isspace()):
        parts.append(tail)
        if in_link:
          self.links += len(tail)

  def block(self, element: Any, tag: str, kind: str, depth: int, in_link: bool) -> None:
    """Reads an element that begins and ends a block."""
    if self.parts:
      self.flush(kind)
    if depth >= self.MAX_DEPTH:
      self.parts.extend(_texts(element))
      self.flush(kind)
      return
    start = len(self.blocks)
    inherits = kind in ('li', 'quote') or (kind == 'row' and tag != 'p')
    inner = kind if inherits and tag not in _STRONGER else _KINDS.get(tag, 'div')
    read = _READ.get(tag) or Walk.visit
    keys = element.keys()
    if keys and (tag == 'div' or tag == 'ol') and _is_code(element, keys):
      read = Walk.listing
    read(self, element, inner, depth, in_link)
    if self.parts:
      self.flush(inner)
    end = len(self.blocks)
    if end > start and tag in CONTAINERS:
      what = Hint.ARTICLE if tag == 'article' else Hint.NONE
      if keys:
        names = _names(element, keys)
        what = hint(tag, names[:400], self.thread)
        if 'style' in keys and _HIDDEN.search(element.get('style')) and not UNFOLDS.search(names):
          what = Hint.BOILERPLATE
        elif what < 0 and _are_code(self.blocks[start:end]):
          what = Hint.NONE
      elif tag == 'main':
        what = Hint.MAIN
      self.elements.append(Element(start, end, what, depth, tag))

  # Elements with an inside of their own

  def other(self, element: Any, tag: str, kind: str, depth: int, in_link: bool) -> None:
    """Reads what is in a line and more than its text: formulas, powers, questions, code."""
    get, text = element.get, ''
    if tag == 'sup':
      if (self.parts and all(e.tag in _SCRIPT for e in element)
          and _EXPONENT.fullmatch(''.join(element.itertext())) and _BASE.search(self.parts[-1])):
        self.parts.append('^')
      self.visit(element, kind, depth + 1, in_link)
    elif tag == 'code':
      if _stands_alone(element):
        self.flush(kind)
        self.listing(element, kind, depth, in_link)
        return
      tick = '`' if self.markdown else ''
      self.parts.append(tick)
      self.visit(element, kind, depth + 1, in_link)
      self.parts.append(tick)
    elif tag == 'button':
      # An accordion's question, which is read as a heading is.
      said = ' '.join(''.join(element.itertext()).split()) if len(element) < 10 else ''
      if kind in HEADINGS and len(said) < 300:
        text = said
      elif 8 < len(said) < 300 and (
        said.endswith(('?', '？')) or QUESTION.search(_names(element, element.keys()))):
        self.flush(kind)
        self.parts.append(said)
        self.flush('div')
      elif len(element):
        self.skipped += _prose_in(element)
    elif tag in _MATH:
      text = tex.of_math(element)
    elif tag == 'script':
      if (get('type') or '').startswith('math/'):
        text = tex.of_script(element.text or '', get('type'))
    elif tag == 'img':
      names = f'{get("class") or ""} {get("src") or ""}'.lower()
      if ('tex' in names or 'equation' in names or 'math' in names) and FORMULA.search(names):
        before = element.getprevious()     # the same as MathML, in Wikipedia's pages
        text = (tex.of_image(element)
                if before is None or next(before.iter('math'), None) is None else '')
    else:
      math = next(element.iter('math'), None)
      text = '' if math is None else tex.of_math(math)
    if text:
      self.formulas = self.formulas or tag in ('script', *_MATH)
      self.parts.append(text)

  def listing(self, element: Any, kind: str, depth: int, in_link: bool) -> None:
    """Reads a block of code: its lines as they are, without their numbers."""
    if text := code(element):
      self.blocks.append(Block(text, 'pre', 0, value(text, 'pre', 0)))

  def raw(self, element: Any, kind: str, depth: int, in_link: bool) -> None:
    """Reads markup that is text to the parser."""
    inside = element.text or ''
    if not len(element) and _MARKUP.search(inside) and (root := parse(inside)) is not None:
      self.visit(root, kind, depth + 1, in_link)
    elif element.tag not in _RAW:
      self.visit(element, kind, depth, in_link)

  def items(self, element: Any, kind: str, depth: int, in_link: bool) -> None:
    """Reads a list."""
    number, rest, step = None, self.rest, 1
    if element.tag == 'ol':
      backwards = element.get('reversed') is not None
      step = -1 if backwards else 1
      number = _number(element.get('start'), len(element.findall('li')) if backwards else 1)
    if self.lists and element.getparent().tag in ('ul', 'ol'):     # under the item before it
      rest = self.lists[-1][1] + ' ' * self.lists[-1][2]
    self.lists.append([number, rest, 0, step])
    self.visit(element, kind, depth, in_link)
    self.lists.pop()

  def item(self, element: Any, kind: str, depth: int, in_link: bool) -> None:
    """Reads an item of a list."""
    rest, mark = self.rest, '- '
    around = self.lists[-1] if self.lists else [None, '', 0, 1]
    if around[0] is not None:
      number = _number(element.get('value'), around[0])
      around[0], mark = number + around[3], f'{number}. '
    around[2] = len(mark)
    self.mark, self.rest = around[1] + mark, around[1] + ' ' * len(mark)
    self.visit(element, kind, depth, in_link)
    self.flush(kind)
    self.mark = self.rest = rest

  def table(self, element: Any, kind: str, depth: int, in_link: bool) -> None:
    """Reads a table, or a block of code that is made as one."""
    names = element.get('class')
    if (names and LISTING.search(names) and next(element.iter('pre'), None) is None
        and any(CODE_CELL.search(td.get('class') or '') for td in element.iter('td'))):
      self.listing(element, kind, depth, in_link)
      return
    grid, self.grid = self.grid, [0, {}]
    self.visit(element, kind, depth, in_link)
    self.flush(kind)
    self.grid = grid

  def cell(self, element: Any, kind: str, depth: int, in_link: bool) -> None:
    """Reads a cell of a table; line numbers are none."""
    names, start = element.get('class'), len(self.blocks)
    if names and GUTTER.search(names):
      return
    if (names and CODE_CELL.search(names) and next(element.iter('pre'), None) is None
        and any(CODE_LINE.search(d.get('class') or '') for d in element.iter('div'))):
      self.listing(element, kind, depth, in_link)
    else:
      self.visit(element, kind, depth, in_link)
      self.flush(kind)
    self.cells.append((element, start, len(self.blocks)))

  def row(self, element: Any, kind: str, depth: int, in_link: bool) -> None:
    """Reads a row of a table, and joins its cells unless they hold blocks of their own, as those
    of a table do that is there for the layout."""
    start, inner, cells = len(self.blocks), len(self.elements), self.cells
    self.cells = []
    self.visit(element, kind, depth, in_link)
    self.flush(kind)
    found, self.cells = self.cells, cells
    blocks = self.blocks[start:]
    columns, spans = self.grid
    one_each = sum(end - first for _, first, end in found) == len(blocks) and all(
      end - first <= 1 for _, first, end in found) and all(
      b.kind in ('row', 'p') and len(b.text) < 200 for b in blocks)
    if one_each and (len(blocks) > 1 or columns > 1):
      texts: list[str] = []
      for cell, first, end in found:
        _fill(texts, spans)
        text = ' '.join(self.blocks[first].text.split()) if end > first else ''
        rows = min(_number(cell.get('rowspan'), 1) or 1000, 1000)     # 0: to the table's end
        for i in range(max(1, min(_number(cell.get('colspan'), 1), MAX_CELLS))):
          if rows > 1:
            spans[len(texts)] = (rows - 1, text if i == 0 else '')
          texts.append(text if i == 0 else '')
      _fill(texts, spans)
      # One filled cell is a row of a table that has them, and of any other a line.
      if len(blocks) > 1 or (blocks and len(texts) == columns):
        self.grid[0] = len(texts)
        text = ' | '.join(texts).rstrip()
        links = sum(b.links for b in blocks)
        self.blocks[start:] = [Block(text, 'row', links, value(text, 'row', links))]
        del self.elements[inner:]
        return
    self.blocks[start:] = [b._replace(kind='div') if b.kind == 'row' and '|' not in b.text else b
                           for b in blocks]


# What reads the inside of a block.
_READ = {
  'pre': Walk.listing, 'ul': Walk.items, 'ol': Walk.items, 'dl': Walk.items, 'li': Walk.item,
  'dt': Walk.item, 'dd': Walk.item, 'table': Walk.table, 'td': Walk.cell, 'th': Walk.cell,
  'tr': Walk.row, 'listing': Walk.listing, 'xmp': Walk.listing,
  **dict.fromkeys(('noscript', *_RAW), Walk.raw),
}


def _fill(texts: list[str], spans: dict[int, tuple[int, str]]) -> None:
  """Cells that earlier rows reach down to, at the place where the next cell would be."""
  while (place := len(texts)) in spans:
    rows, text = spans.pop(place)
    texts.append(text)
    if rows > 1:
      spans[place] = (rows - 1, text)
    if len(texts) > 1000:
      return


def _names(element: Any, keys: Sequence[str]) -> str:
  """What an element is called, of its attributes' `keys`."""
  names = element.get('class') if 'class' in keys else ''
  for key in ('id', 'role', 'itemprop'):
    if key in keys and (other := element.get(key)):
      names += ' ' + other
  return names


def _prose_in(element: Any) -> int:
  """Characters in an element of texts longer than a menu's."""
  if element.tag in _RAW:
    return sum(len(text) for text in re.split('[<>]', element.text or '') if len(text) >= 80)
  texts = [text for e in element.iter('p', 'div', 'td', 'br') for text in (e.text, e.tail) if text]
  return sum(len(text) for text in texts if len(text) >= 80)


def _number(text: str | None, default: int) -> int:
  return int(text) if text and re.fullmatch(r'-?[0-9]{1,6}', text.strip()) else default


def _is_code(element: Any, keys: Sequence[str]) -> bool:
  """Whether a div or a list is a block of code by its names and lines, or by its style."""
  if 'style' in keys and _PREFORMATTED.search(element.get('style')):
    return True
  return bool('class' in keys and is_code_box(element.get('class')) and (element.tag == 'ol' or any(
    CODE_LINE.search(e.get('class') or '') for e in element.iter('div', 'span', 'pre'))))


def _stands_alone(element: Any) -> bool:
  """Whether <code> is a block: nothing is beside it, and it has lines of its own."""
  if _PREFORMATTED.search(element.get('style') or ''):
    return True
  around = element.getparent()
  return (len(around) == 1 and not (around.text or '').strip() and not (element.tail or '').strip()
          and around.tag in BLOCK and ('\n' in ''.join(element.itertext()).strip()
                                       or next(element.iter('br'), None) is not None))


def _are_code(blocks: list[Block]) -> bool:
  """Whether blocks are code and at most its language and a button."""
  others = [b for b in blocks if b.kind != 'pre']
  return len(others) < min(4, len(blocks)) and all(len(b.text) < 30 for b in others)


def _texts(element: Any) -> Iterator[str]:
  """The texts in an element, those of scripts and styles left out."""
  for event, e in etree.iterwalk(element, events=('start', 'end')):
    text = e.text if event == 'start' else e.tail if e is not element else None
    if text and not (event == 'start' and e.tag in ('script', 'style')):
      yield text


def code(element: Any) -> str:
  """The text of a block of code. A div, a row of a table or a span that calls itself a line is
  one; line numbers and buttons are left out."""
  out = _Lines()
  out.read(element, 0)
  text = ''.join(out.parts).replace('\r\n', '\n').replace('\r', '\n').translate(_INVISIBLE)
  if out.numbered:      # there may be a blank behind each number
    text = textwrap.dedent(text)
  return '\n'.join(line.rstrip() for line in text.split('\n')).strip('\n')


class _Lines:
  """Text whose lines are elements, or end with a line break, or both, which is one end."""

  def __init__(self):
    self.parts: list[str] = []
    self.due = False       # a line has ended, and its break has not been written
    self.numbered = False  # line numbers were left out

  def add(self, text: str | None) -> None:
    if text:
      if self.due and not text.startswith(('\n', '\r')):
        self.parts.append('\n')
      self.due = False
      self.parts.append(text)

  def read(self, element: Any, depth: int) -> None:
    self.add(element.text)
    for child in element:
      tag, names = child.tag, child.get('class') or ''
      line = tag in _CODE_BLOCKS or (tag in _CODE_INLINE and CODE_LINE.search(names))
      if tag == 'br':
        self.add('\n')
      elif type(tag) is not str or tag in ('button', 'script', 'style', 'svg'):
        pass
      elif names and GUTTER.search(names):
        self.numbered = True
      elif depth >= Walk.MAX_DEPTH:
        for text in _texts(child):
          self.add(text)
      else:
        if line:
          if self.due or (self.parts and not self.parts[-1].endswith('\n')):
            self.parts.append('\n')
          self.due = False
        before = len(self.parts)
        self.read(child, depth + 1)
        if line:
          self.due = len(self.parts) == before or not self.parts[-1].endswith('\n')
      if not (line and (child.tail or '').isspace()):
        self.add(child.tail)
