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
import itertools
import json
import re
from collections.abc import Iterable

from data_beam.web.blocks import HEADINGS, Block, Element, Walk, parse
from data_beam.web.names import Hint

LITTLE = 250    # characters of text below which a page is looked at again
TITLE = 25      # characters: what a list's entries mostly have and a menu's do not
MORE = 1.3      # times the prose that a page must have as a catalogue to be one
FAR_MORE = 2    # times, where its entries are called details
PROSE = 10_000  # characters of prose from which on it is none
# What the scope may narrow down to.
STRUCTURE = frozenset(['body', 'main', 'article', 'section', 'div', 'td'])


# --- choosing --------------------------------------------------------------------------------


def main_blocks(walk: Walk, catalogue: bool = False, details: bool = True) -> list[Block]:
  """The blocks of the page's main text, in order.

  Args:
    walk: over the page.
    catalogue: the page lists things: titles and links count as its text, if they are longer than a
      menu's.
    details: of a catalogue, its entries may be called what details of an article are.
  """
  blocks, elements = walk.blocks, walk.elements
  if not blocks:
    return []
  if catalogue:
    values = [len(b.text) if len(b.text) >= TITLE else 0 for b in blocks]
  else:
    values = [b.value for b in blocks]
  alive = _without_boilerplate(values, elements, catalogue and details)
  values = [value if lives else 0 for value, lives in zip(values, alive, strict=True)]
  scope = _scope(blocks, elements, values, alive)
  found = [blocks[i] for start, end in scope for i in range(start, end) if alive[i]]
  return _tidy(found, catalogue)


def _without_boilerplate(
  values: list[int], elements: list[Element], details: bool,
) -> list[bool]:
  """For each block whether it is outside all elements that name themselves boilerplate.

  Names are believed as long as most of the prose survives: first of elements with up to half of it,
  then of ever smaller ones.
  """
  sums = list(itertools.accumulate(values, initial=0))
  total = sums[-1]
  named = [e for e in elements if e.hint < (Hint.DETAIL if details else Hint.NONE)]
  for share in (.5, .1, .02, 0):
    alive = [True] * len(values)
    for e in named:
      if sums[e.end] - sums[e.start] <= share * total:
        alive[e.start:e.end] = [False] * (e.end - e.start)
    if sum(itertools.compress(values, alive)) >= .05 * total:
      break
  return alive


def _scope(blocks, elements, values, alive) -> list[tuple[int, int]]:
  """The intervals of blocks to choose from."""
  sums = list(itertools.accumulate(values, initial=0))
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
  return _lead(blocks, values, alive, scope[0].start) + [(e.start, e.end) for e in scope]


def _lead(blocks, values, alive, start: int, far: int = 15) -> list[tuple[int, int]]:
  """The standfirst, which often stands outside the body: what is prose, or a lesser heading,
  between an h1 at most `far` blocks above and the scope."""
  for i in range(start - 1, max(-1, start - far), -1):
    if alive[i] and blocks[i].kind == 'h1':
      return [(j, j + 1) for j in range(i + 1, start)
              if values[j] or blocks[j].kind in ('h2', 'h3')]
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


def _tidy(blocks: list[Block], catalogue: bool) -> list[Block]:
  """Without blocks that are mostly links and headings with nothing under them; of a catalogue,
  without links as short as a menu's."""
  kept: list[Block] = []
  seen = set()
  for block in blocks:
    if block.link_density > .5 and not (
      len(block.text) >= TITLE or block.kind in HEADINGS if catalogue
      else block.kind == 'p' and len(block.text) >= 100) and not (
      # Names in a table are mostly links, under what its columns are.
      kept and block.kind == kept[-1].kind == 'row'
      and block.text.count(' | ') == kept[-1].text.count(' | ')):
      continue
    if len(block.text) > (30 if catalogue else 60):
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
    return '\n'.join(f'- {b.text}' if not b.mark.isspace() and b.kind == 'li' else b.text
                     for b in blocks)
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
      lines.append(b.mark + b.text.replace('\n', '\n' + ' ' * len(b.mark)))
    elif b.kind == 'quote':
      lines.append('> ' + b.text.replace('\n', '\n> '))
    else:
      lines.append(b.text)
    before = b.kind
  return '\n'.join(lines)


def _declared_text(scripts: Iterable[tuple[str, str | None]]) -> str:
  """The articleBody of the page's JSON-LD (schema.org), '' if there is none. `scripts` are what
  type each is of, and its text."""
  for kind, text in scripts:
    if 'ld+json' in kind and 'articleBody' in (text or ''):
      try:
        found = _find(json.loads(text, strict=False), 'articleBody')
      except (ValueError, RecursionError):
        continue
      if isinstance(found, str) and found:
        if '</' in found and (inner := parse(found)) is not None:
          return render(Walk(inner).blocks)
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


def _is_one_thing(html: str) -> bool:
  """Whether a page says that it is an article, a product or a discussion: to social networks, or
  to search engines."""
  at = html.find('og:type')
  if at >= 0 and re.search('article|product', html[max(0, at - 60):at + 80]):
    return True
  return 'QAPage' in html or _is_thread(html)


def _is_thread(html: str) -> bool:
  """Whether a page says to search engines that it is a thread, whose posts they call comments. (Of
  questions and answers, comments are notes.)"""
  return 'DiscussionForumPosting' in html


def _text(walk: Walk, html: str, markdown: bool) -> str:
  """The text of the page as prose, or as a catalogue where that is clearly more."""
  prose = render(main_blocks(walk), markdown)
  if (len(prose) < PROSE
      and sum(len(b.text) for b in walk.blocks if len(b.text) >= TITLE) > MORE * len(prose)
      and not _is_one_thing(html)):
    catalogue = render(main_blocks(walk, catalogue=True), markdown)
    # An article has details as well, but not so many.
    if len(catalogue) > FAR_MORE * len(prose) or (len(catalogue) > MORE * len(prose) and len(
        render(main_blocks(walk, catalogue=True, details=False), markdown)) > MORE * len(prose)):
      return catalogue
  return prose


def extract(html: str, *, markdown: bool = False) -> str:
  """The main text of a page, '' if it has none.

  What the page declares as its text to search engines is taken only where the page itself shows
  less than half of it (it is drawn by a script, say).
  """
  root = parse(html)
  if root is None:
    return ''
  # Asked of the tree: to look for a word in all of a page takes longer.
  scripts = [(kind, script) for script in root.iter('script') if (kind := script.get('type'))]
  formulas = any(kind.startswith('math/') for kind, _ in scripts)
  walk_over = functools.partial(
    Walk, root, markdown=markdown, formulas=formulas, thread=_is_thread(html))
  walk = walk_over()
  text = _text(walk, html, markdown)
  if len(text) < LITTLE or walk.skipped > 2 * len(text):
    # Broken markup may have put the article into a menu, and forums serve theirs to whoever has no
    # scripts.
    more = _text(walk_over(everything=True), html, markdown)
    if len(more) > max(200, 2 * len(text)):
      text = more
  declared = _declared_text((kind, script.text) for kind, script in scripts)
  if len(declared) > 2 * len(text):
    return declared
  return text
