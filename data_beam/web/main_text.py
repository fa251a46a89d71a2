"""HTML → main text by one walk over the parsed page: which blocks are the page's own words.

Four steps, each linear in the size of the page:

1. `Walk` turns the tree into *blocks* (a paragraph, heading, list item, table row …, in order) and
   *elements*, each of which is an interval of blocks plus what its tag, class and id say of it.
2. Elements that name themselves boilerplate (navigation, comments, related stories …) lose their
   blocks, unless hardly any prose would be left.
3. The scope is chosen: the elements that name themselves the article or its body, if they hold
   enough of the page's prose; from there down for as long as one child holds nearly all of it; and
   up to the standfirst under the title.
4. Within the scope, what is mostly links, and headings with nothing under them, go.

Prose (`Block.value`) is characters outside links in blocks that read like sentences. No step knows
a site: the vocabulary is that of the common content management systems, and its few thresholds were
chosen on the 990 pages of trafilatura's evaluation (see experiments/log/web.md).
"""

import functools
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from lxml import etree

# --- vocabulary ------------------------------------------------------------------------------

# What a tag is to the walk. A tag not listed is inline: its text joins the text around it.
SKIP = frozenset([
  'head', 'script', 'style', 'noscript', 'template', 'svg', 'canvas', 'iframe', 'object', 'embed',
  'applet', 'audio', 'video', 'picture', 'map', 'img', 'math', 'button', 'select', 'option',
  'textarea', 'input', 'label', 'nav', 'aside', 'footer', 'menu', 'dialog', 'datalist',
  'figcaption', 'progress', 'meter', 'noindex', 'frame', 'frameset', 'noframes', 'marquee',
  'area', 'base', 'link', 'meta', 'source', 'track',
])
BLOCK = frozenset([
  'html', 'body', 'main', 'article', 'section', 'div', 'p', 'header', 'hgroup', 'h1', 'h2', 'h3',
  'h4', 'h5', 'h6', 'ul', 'ol', 'li', 'dl', 'dt', 'dd', 'table', 'thead', 'tbody', 'tfoot', 'tr',
  'td', 'th', 'caption', 'blockquote', 'pre', 'address', 'center', 'form', 'fieldset', 'details',
  'summary', 'figure', 'hr', 'legend', 'search',
])
HEADINGS = {f'h{i}': i for i in range(1, 7)}
# Elements that can be the scope, or be boilerplate.
CONTAINERS = frozenset([
  'body', 'main', 'article', 'section', 'div', 'header', 'table', 'tbody', 'tr', 'td', 'form',
  'figure', 'blockquote', 'ul', 'ol', 'dl', 'center', 'details', 'p', 'span', 'fieldset',
  'address', 'li', 'h2', 'h3', 'h4',
])

# What the scope may narrow down to.
STRUCTURE = frozenset(['body', 'main', 'article', 'section', 'div', 'td'])

_START, _END = r'(?:^|[^a-z])', r'(?:$|[^a-z])'
BOILERPLATE = re.compile(
  # Parts of words that mean the same wherever they stand …
  r'comment-?(?:s|list|respond|form|area|section|wrap|thread|box)|disqus|respond|related|recommend'
  r'|sidebar|side-bar|sharing|share-|-share|sharedaddy|addthis|addtoany|social|newsletter|subscri'
  r'|breadcrumb|navigation|navbar|navi-|-nav|nav-|menu|pagination|pagenav|pager|toolbar|popup|modal'
  r'|cookie|consent|gdpr|footer|masthead|outbrain|taboola|sponsor|advert|promo'
  r'|(?<!elementor-)widget|teaser'
  r'|byline|author-?(?:bio|box|info|card|meta|name|profile|desc)|about-?author|-author|post-?meta'
  r'|entry-?meta|metadata|meta-|-meta|tag-?(?:s|list|cloud)|tags-?links|cat-?links|category-list'
  r'|most-?(?:read|popular|viewed)|popular|trending|more-?(?:stories|news|from|articles|posts)'
  r'|read-?(?:next|also)|see-?also|next-?(?:post|article|story|up)|prev(?:ious)?-?(?:post|article)'
  r'|screen-?reader|visually-?hidden|skip-?(?:link|to)|sr-only|call-?to-?action|signup|sign-up|login'
  r'|overlay|lightbox|rating|timestamp|user-?(?:info|profile)|carousel|slider'
  r'|caption|credit|copyright|print-?(?:only|link)|banner|button|feedback|trackback|pingback'
  # … and whole words that are also parts of harmless ones.
  r'|(?:^| )(?:is-)?hidden(?: |$)'
  rf'|{_START}(?:comments?|nav|meta|tags?|ads?|ad|share|shares|author|authors|toc|dateline|related'
  rf'|links?|date|infobox|btn|embed|info|tools?|bio|cta|poll|survey|votes?){_END}')
# Names that speak of other elements, or of an article's topic (WordPress).
ELSEWHERE = re.compile(
  r'(?:^|(?<= ))(?:(?:has|with|no|without|hidden|label|js|is)-[^ ]*|[^ ]*(?<!visually)-hidden)')
# Boilerplate by name, but part of a name that says the opposite.
BODY = re.compile(
  r'(?:article|post|entry|story|blog|news|page|single|content|body|art|text|main)[-_]*'
  r'(?:body|content|text|entry|copy)|body-?copy|full-?text|articlebody')
MAIN = re.compile(
  rf'{_START}(?:main|content|story|article|post|entry|hentry|primary|text|maincontent){_END}'
  r'|main-?content|content-?main|page-?content|main-?column')


class Hint:
  """What an element's tag and names say of it; a larger one is a stronger claim to be the text."""

  BOILERPLATE, NONE, MAIN, ARTICLE, BODY = -1, 0, 1, 2, 3


@functools.lru_cache(maxsize=8192)
def hint(tag: str, names: str) -> int:
  """The Hint of a tag with the given class, id, role and itemprop (one string)."""
  if names:
    names = re.sub(r'(?<=[a-z])(?=[A-Z])', '-', names).lower().replace('_', '-')
    if 'hentry' in names or 'type-post' in names:
      names = re.sub(r'(?:^|(?<= ))(?:tag|category)-[^ ]*', '', names)
    names = ELSEWHERE.sub('', names)
    if 'articlebody' in names.replace('-', ''):
      return Hint.BODY
    if BODY.search(names) and tag not in ('span', 'li', 'p'):
      return Hint.NONE if BOILERPLATE.search(BODY.sub('', names)) else Hint.BODY
    if BOILERPLATE.search(names) and tag not in ('body', 'main', 'article', 'html'):
      return Hint.BOILERPLATE
  if tag == 'article':
    return Hint.ARTICLE
  if tag == 'main' or (names and tag in ('div', 'section', 'td') and MAIN.search(names)):
    return Hint.MAIN
  return Hint.NONE


# --- the page as blocks ----------------------------------------------------------------------


class Block(NamedTuple):
  """A stretch of text that a browser would set off from what is before and after it."""

  text: str
  kind: str     # p, h1 … h6, li, row, pre, quote, or div: text directly in a container
  links: int    # characters of it inside links
  value: int    # characters that read like prose, 0 for menus, headings, captions

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


SENTENCE = re.compile(r'[.!?…。！？:;]["”’»)\]]*(?:\s|$)')


def value(text: str, kind: str, links: int) -> int:
  """How much a block counts as prose."""
  size = len(text)
  if kind in HEADINGS or links * 2 > size:
    return 0
  if kind in ('p', 'quote', 'pre'):
    return size - links if size >= 20 else 0
  if size >= 80 or (size >= 30 and SENTENCE.search(text)):
    return size - links
  return 0


class Walk:
  """Collects blocks and elements."""

  MAX_DEPTH = 200   # of nested tags; deeper text is taken as it comes. Bounds Python's stack

  def __init__(self, markdown: bool = False):
    self.code = '`' if markdown else ''   # around inline code
    self.blocks: list[Block] = []
    self.elements: list[Element] = []
    self.parts: list[str] = []     # of the block being read
    self.links = 0

  def flush(self, kind: str) -> None:
    """Ends the block being read."""
    if not self.parts:
      return
    raw = ''.join(self.parts)
    self.parts.clear()
    links, self.links = self.links, 0
    if kind == 'pre':
      text = raw.strip('\n').rstrip()
      if text.strip():
        self.blocks.append(Block(text, kind, links, value(text, kind, links)))
      return
    for piece in raw.split('\f\f') if '\f\f' in raw else (raw,):    # two <br>: a paragraph's end
      if '\f' in piece:
        lines = [' '.join(line.split()) for line in piece.split('\f')]
        text = '\n'.join(filter(None, lines))
      else:
        text = ' '.join(piece.split())
      if text:
        share = links if piece is raw else links * len(piece) // len(raw)
        self.blocks.append(Block(text, kind, min(share, len(text)), value(text, kind, share)))

  def visit(self, element: Any, kind: str, depth: int, in_link: bool) -> None:
    """Reads an element's inside. `kind` is that of text directly in it."""
    parts = self.parts
    if text := element.text:
      parts.append(text)
      if in_link:
        self.links += len(text)
    for child in element:
      tag = child.tag
      if tag in BLOCK:
        self.block(child, tag, kind, depth + 1, in_link)
      elif tag == 'br':
        # Source line breaks around it mean nothing; \f cannot come from markup.
        while parts and parts[-1].isspace() and parts[-1] != '\f':
          parts.pop()
        parts.append('\f')
      elif tag in SKIP or type(tag) is not str:
        pass
      elif depth >= self.MAX_DEPTH:
        parts.extend(child.itertext(with_tail=False))
      elif tag == 'code' and self.code and kind != 'pre':
        parts.append(self.code)
        self.visit(child, kind, depth + 1, in_link)
        parts.append(self.code)
      else:
        self.visit(child, kind, depth + 1, in_link or tag == 'a')
      if tail := child.tail:
        parts.append(tail)
        if in_link:
          self.links += len(tail)

  def block(self, element: Any, tag: str, kind: str, depth: int, in_link: bool) -> None:
    """Reads an element that begins and ends a block."""
    self.flush(kind)
    if depth >= self.MAX_DEPTH:
      self.parts.extend(element.itertext(with_tail=False))
      self.flush(kind)
      return
    start = len(self.blocks)
    inherits = kind in ('li', 'quote', 'pre') or (kind == 'row' and tag != 'p')
    inner = kind if inherits and tag not in STRONGER else KINDS.get(tag, 'div')
    self.visit(element, inner, depth, in_link)
    self.flush(inner)
    end = len(self.blocks)
    if tag == 'tr' and end - start > 1:
      self.row(start)
      end = len(self.blocks)
    if end > start and tag in CONTAINERS:
      get = element.get
      names = get('class') or ''
      if other := get('id'):
        names += ' ' + other
      if other := get('role'):
        names += ' ' + other
      if other := get('itemprop'):
        names += ' ' + other
      what = hint(tag, names[:400])
      if (style := get('style')) and HIDDEN.search(style):
        what = Hint.BOILERPLATE
      self.elements.append(Element(start, end, what, depth, tag))

  def row(self, start: int) -> None:
    """Joins the cells of a table's row, unless they hold blocks of their own (a layout table)."""
    cells = self.blocks[start:]
    if all(cell.kind == 'row' and len(cell.text) < 200 for cell in cells):
      text = ' | '.join(cell.text for cell in cells)
      links = sum(cell.links for cell in cells)
      self.blocks[start:] = [Block(text, 'row', links, value(text, 'row', links))]
      while self.elements and self.elements[-1].start >= start:
        self.elements.pop()


HIDDEN = re.compile(r'display\s*:\s*none|visibility\s*:\s*hidden', re.I)
KINDS = {'p': 'p', 'li': 'li', 'dd': 'li', 'dt': 'li', 'td': 'row', 'th': 'row', 'pre': 'pre',
         'blockquote': 'quote', **{h: h for h in HEADINGS}}
# What keeps its own kind inside a list, a quotation or a cell.
STRONGER = KINDS.keys() - {'p'}


def parse(html: str) -> Any:
  """The root element of a page, or None if there is nothing in it."""
  parser = etree.HTMLParser(encoding='utf-8', remove_comments=True, remove_pis=True,
                            huge_tree=True)   # nesting beyond 256; within_budget bounds the size
  try:
    return etree.fromstring(html.encode('utf-8', 'replace'), parser)
  except etree.XMLSyntaxError:   # an empty document
    return None


# --- choosing --------------------------------------------------------------------------------


def main_blocks(root: Any, markdown: bool = False) -> list[Block]:
  """The blocks of the page's main text, in order."""
  walk = Walk(markdown)
  walk.block(root, 'body', 'div', 0, False)
  blocks, elements = walk.blocks, walk.elements
  if not blocks:
    return []
  alive = _without_boilerplate(blocks, elements)
  scope = _scope(blocks, elements, alive)
  return _tidy([blocks[i] for start, end in scope for i in range(start, end) if alive[i]])


def _sums(blocks: list[Block], alive: list[bool]) -> list[int]:
  sums, total = [0], 0
  for block, lives in zip(blocks, alive, strict=True):
    total += block.value if lives else 0
    sums.append(total)
  return sums


def _without_boilerplate(blocks: list[Block], elements: list[Element]) -> list[bool]:
  """For each block whether it is outside all elements that name themselves boilerplate.

  Names are believed as long as most of the prose survives: first of elements with up to half of it,
  then of ever smaller ones.
  """
  sums = _sums(blocks, [True] * len(blocks))
  total = sums[-1]
  named = [e for e in elements if e.hint < 0]
  for share in (.5, .1, .02, 0):
    alive = [True] * len(blocks)
    for e in named:
      if sums[e.end] - sums[e.start] <= share * total:
        alive[e.start:e.end] = [False] * (e.end - e.start)
    if sum(b.value for b, lives in zip(blocks, alive, strict=True) if lives) >= .05 * total:
      break
  return alive


def _scope(blocks, elements, alive) -> list[tuple[int, int]]:
  """The intervals of blocks to choose from."""
  sums = _sums(blocks, alive)
  worth = lambda e: sums[e.end] - sums[e.start]
  scope = [elements[-1]]   # the page itself
  for level, share in ((Hint.MAIN, .5), (Hint.ARTICLE, .3), (Hint.BODY, .3)):
    inside = _outermost(_inside(scope, elements, level))
    if not inside:
      continue
    total = sum(map(worth, inside))
    if total < share * sum(map(worth, scope)) or total < 200:
      continue
    best = max(inside, key=worth)
    scope = [best] if worth(best) > .8 * total else inside
  if len(scope) == 1:
    scope = [_descend(scope[0], elements, worth)]
  return _lead(blocks, alive, scope[0].start) + [(e.start, e.end) for e in scope]


def _lead(blocks, alive, start: int, far: int = 15) -> list[tuple[int, int]]:
  """The standfirst, which often stands outside the body: what is prose, or a lesser heading,
  between an h1 at most `far` blocks above and the scope."""
  for i in range(start - 1, max(-1, start - far), -1):
    if alive[i] and blocks[i].kind == 'h1':
      return [(j, j + 1) for j in range(i + 1, start)
              if blocks[j].value or blocks[j].kind in ('h2', 'h3')]
  return []


def _inside(scope: list[Element], elements: list[Element], level: int) -> list[Element]:
  """Elements with that hint that lie within one of the scope's, which are disjoint."""
  owner = [-1] * elements[-1].end
  for i, e in enumerate(scope):
    owner[e.start:e.end] = [i] * (e.end - e.start)
  return [e for e in elements
          if e.hint == level and owner[e.start] == owner[e.end - 1] != -1]


def _outermost(elements: list[Element]) -> list[Element]:
  """Those not inside another, in order. `elements` come in order of their ends."""
  found: list[Element] = []
  for e in elements:
    while found and found[-1].start >= e.start:
      found.pop()
    found.append(e)
  return found


def _descend(scope: Element, elements: list[Element], worth, share: float = .9) -> Element:
  """The smallest element inside `scope` with nearly all of its worth."""
  least = share * worth(scope)
  inside = [e for e in elements if scope.start <= e.start and e.end <= scope.end
            and e.tag in STRUCTURE and worth(e) >= least]
  return min(inside, key=lambda e: (e.end - e.start, e.depth), default=scope)


def _tidy(blocks: list[Block]) -> list[Block]:
  """Without blocks that are mostly links and headings with nothing under them."""
  kept: list[Block] = []
  seen = set()
  for block in blocks:
    if block.link_density > .5 and (block.kind != 'p' or len(block.text) < 100):
      continue
    if len(block.text) > 60:
      if block.text in seen:
        continue
      seen.add(block.text)
    kept.append(block)
  while kept and kept[-1].kind in HEADINGS:
    kept.pop()
  return kept


# --- writing ---------------------------------------------------------------------------------


def render(blocks: Iterable[Block], markdown: bool = False) -> str:
  """Blocks as lines of text, list items behind a dash, table cells between bars; with `markdown`
  also headings, code blocks and the rule under a table's first row, blank lines between blocks."""
  if not markdown:
    return '\n'.join(f'- {b.text}' if b.kind == 'li' else b.text for b in blocks)
  lines, before = [], ''
  for b in blocks:
    if before and not before == b.kind in ('li', 'row'):
      lines.append('')
    if b.kind in HEADINGS:
      lines.append(f'{"#" * HEADINGS[b.kind]} {" ".join(b.text.split())}')
    elif b.kind == 'pre':
      fence = '```' if '```' not in b.text else '~~~~'
      lines += [fence, b.text, fence]
    elif b.kind == 'row':
      lines.append(f'| {" ".join(b.text.split())} |')
      if before != 'row':
        lines.append('|' + ' --- |' * (b.text.count(' | ') + 1))
    elif b.kind == 'li':
      lines.append('- ' + b.text.replace('\n', '\n  '))
    elif b.kind == 'quote':
      lines.append('> ' + b.text.replace('\n', '\n> '))
    else:
      lines.append(b.text)
    before = b.kind
  return '\n'.join(lines)


def _declared_text(root) -> str:
  """The articleBody of the page's JSON-LD (schema.org), '' if there is none."""
  for script in root.iter('script'):
    if 'ld+json' in (script.get('type') or '') and 'articleBody' in (script.text or ''):
      try:
        found = _find(json.loads(script.text, strict=False), 'articleBody')
      except (ValueError, RecursionError):
        continue
      if isinstance(found, str) and found:
        if '</' in found and (inner := parse(found)) is not None:
          walk = Walk()
          walk.block(inner, 'body', 'div', 0, False)
          return render(walk.blocks)
        return '\n'.join(filter(None, (' '.join(line.split()) for line in found.splitlines())))
  return ''


def _find(value, key: str):
  if isinstance(value, dict):
    if key in value:
      return value[key]
    value = list(value.values())
  if isinstance(value, list):
    return next((found for v in value if (found := _find(v, key)) is not None), None)
  return None


def extract(html: str, *, markdown: bool = False) -> str:
  """The main text of a page, '' if it has none.

  What the page declares as its text to search engines is taken only where the page itself shows
  less than half of it (it is drawn by a script, say).
  """
  root = parse(html)
  if root is None:
    return ''
  text = render(main_blocks(root, markdown), markdown)
  if 'articleBody' in html and len(declared := _declared_text(root)) > 2 * len(text):
    return declared
  return text
