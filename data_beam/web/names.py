"""What an element's names say of it: the article, boilerplate, a gutter of line numbers, a formula.

No site is known here: the vocabulary is that of the common content management systems, forums and
code highlighters.
"""

import functools
import re

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
  r'|(?:post|user|message|forum|member)-?sig(?:nature)?'
  # … and whole words that are also parts of harmless ones.
  r'|(?:^| )(?:is-)?hidden(?: |$)'
  rf'|{_START}(?:comments?|nav|meta|tags?|ads?|ad|share|shares|author|authors|toc|dateline|related'
  rf'|links?|date|infobox|btn|embed|info|tools?|bio|cta|poll|survey|votes?|signature){_END}')
# Of these, what entries of a catalogue are called as well.
DETAIL = re.compile(
  r'(?:post-?|entry-?)?meta(?:data)?|call-?to-?action|(?<![a-z])(?:info|links?|cta|dates?|tags?)'
  r'(?![a-z])|widget|teaser|caption|credit|rating|timestamp|byline|author')
# Names that speak of other elements, or of an article's topic (WordPress).
ELSEWHERE = re.compile(
  r'(?:^|(?<= ))(?:(?:has|with|no|without|hidden|label|js|is)-[^ ]*|[^ ]*(?<!visually)-hidden)')
# Boilerplate by name, but part of a name that says the opposite.
BODY = re.compile(
  r'(?:article|post|entry|story|blog|news|page|single|content|body|art|text|main|message|primary)'
  r'[-_]*'
  r'(?:body|content|text|entry|copy)|body-?copy|full-?text|articlebody')
MAIN = re.compile(
  rf'{_START}(?:main|content|story|article|post|entry|hentry|primary|text|maincontent){_END}'
  r'|main-?content|content-?main|page-?content|main-?column')
# Hidden until the reader asks for it: a tab, an answer. What else is hidden is not to be read.
UNFOLDS = re.compile(r'\b(?:tab|accordion|collaps|panel|pane\b|faq|answer|toggle|expand)', re.I)
# Line numbers beside code.
GUTTER = re.compile(
  r'(?:^|[ _-])(?:line-?nos?|line-?numbers?(?:-rows)?|lnt|lnum|gutter|blob-num|hljs-ln-n\w*|ln-num'
  r'|crayon-nums?)(?![a-z])|(?:^| )ln(?: |$)', re.I)
# A table whose rows are lines of code; a line of it that is no block by its tag.
LISTING = re.compile(r'highlight|syntax|hljs|rouge|crayon|\bcode|js-file-line|blob-wrapper', re.I)
CODE_CELL = re.compile(r'code|hljs-ln', re.I)
CODE_LINE = re.compile(
  r'(?:^| )(?:code-?|view-|hljs-ln-|cm-|ace_|crayon-|CodeMirror-|token-)?line(?: |$)')
# A block of code whose lines are elements, and which is no <pre>: Doxygen's, and those of editors.
CODE_BOX = re.compile(
  r'(?:^| )(?:fragment|CodeMirror-code|cm-content|view-lines|ace_text-layer|crayon-pre|linenums'
  r'|dp-[a-z]\w*)(?: |$)')
# A button that is read: the question of an accordion.
QUESTION = re.compile(r'accordion|faq|question', re.I)
# What scripts have drawn of a formula whose source stands beside it.
DRAWN = re.compile(r'(?:^| )(?:katex-html|MathJax\w*|mjx-chtml|mwe-math-fallback\S*)(?: |$)')
# A picture of a formula whose alternative text is its source.
FORMULA = re.compile(
  r'(?:^|[ _-])(?:latex\w*|tex(?:render)?|equation(?:_image)?|mwe-math\S*)(?:$|[ _-])|latex\.php'
  r'|/latex|math/tex|filter/tex|\.latex\?|equation\?tex=|[?&]tex=', re.I)


@functools.lru_cache(maxsize=1 << 14)
def is_code_box(names: str) -> bool:
  """Whether an element with that class is a block of code, if it has lines."""
  return bool(CODE_BOX.search(names))


class Hint:
  """What an element's tag and names say of it; a larger one is a stronger claim to be the text."""

  BOILERPLATE, DETAIL, NONE, MAIN, ARTICLE, BODY = -2, -1, 0, 1, 2, 3


@functools.lru_cache(maxsize=1 << 15)
def hint(tag: str, names: str, thread: bool = False) -> int:
  """The Hint of a tag with the given class, id, role and itemprop (one string). Comments are the
  text of a `thread`."""
  if names:
    names = re.sub(r'(?<=[a-z])(?=[A-Z])', '-', names).lower().replace('_', '-')
    if thread:
      names = names.replace('comment', '')
    if 'hentry' in names or 'type-post' in names:
      names = re.sub(r'(?:^|(?<= ))(?:tag|category)-[^ ]*', '', names)
    names = ELSEWHERE.sub('', names)
    if 'articlebody' in names.replace('-', ''):
      return Hint.BODY
    if BODY.search(names) and tag not in ('span', 'li', 'p'):
      return Hint.NONE if BOILERPLATE.search(BODY.sub('', names)) else Hint.BODY
    if BOILERPLATE.search(names) and tag not in ('body', 'main', 'article', 'html'):
      return (Hint.BOILERPLATE if BOILERPLATE.search(DETAIL.sub('', names)) else Hint.DETAIL)
  if tag == 'article':
    return Hint.ARTICLE
  if tag == 'main' or (names and tag in ('div', 'section', 'td') and MAIN.search(names)):
    return Hint.MAIN
  return Hint.NONE
