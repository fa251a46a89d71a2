"""The default extractor: blocks, names, scope, structure. On made pages, no gold ones."""


import pytest

from data_beam.web.main_text import extract
from data_beam.web.names import Hint, hint

PROSE = [f'In the year {1900 + i} the harbour of the town was rebuilt, and ships came from afar. '
         f'The merchants said that number {i} was the best of them all.' for i in range(12)]
TEASER = 'Ten beaches that you must see before the summer ends, and how to get there by train.'


def p(texts) -> str:
  return ''.join(f'<p>{t}</p>' for t in texts)


def page(body: str, head: str = '') -> str:
  return f'<!doctype html><html><head><title>t</title>{head}</head><body>{body}</body></html>'


@pytest.mark.parametrize('main', [
  '<article>{}</article>', '<main><div>{}</div></main>', '<div class="post-content">{}</div>',
  '<div itemprop="articleBody">{}</div>', '<div id="x7"><div>{}</div></div>',
  '<table><tr><td>{}</td></tr></table>', '<form id="aspnetForm"><div>{}</div></form>',
])
@pytest.mark.parametrize('around', [
  '<nav>{}</nav>', '<div class="sidebar">{}</div>', '<div id="comments">{}</div>',
  '<section class="RelatedStories">{}</section>', '<ul class="x-share-tools"><li>{}</li></ul>',
  '<div style="display: none">{}</div>', '<footer>{}</footer>', '<p><a href="/x">{}</a></p>',
])
def test_the_text_and_nothing_around_it(main, around):
  text = extract(page(around.format(TEASER) + main.format(p(PROSE)) + around.format(TEASER)))
  assert text == '\n'.join(PROSE)


def test_names():
  assert hint('div', 'ArticleBody__wrap') == hint('div', 'entry-content has-sidebar') == Hint.BODY
  assert hint('div', 'relatedPosts') == hint('div', 'mainNav') == Hint.BOILERPLATE
  assert hint('article', 'post hentry tag-newsletter category-menu') == Hint.ARTICLE
  assert hint('body', 'has-comments with-sidebar') == hint('div', 'download') == Hint.NONE
  assert hint('div', 'elementor-widget-wrap') == Hint.NONE
  assert hint('div', 'item-info') == Hint.DETAIL and hint('div', 'nav-info') == Hint.BOILERPLATE
  assert hint('div', 'comment', thread=True) == Hint.NONE


def test_names_that_leave_nothing_are_not_believed():
  assert extract(page(f'<div class="widget"><div class="comments">{p(PROSE)}</div></div>')) == (
    '\n'.join(PROSE))


def test_a_thread_is_all_of_its_posts():
  posts = ''.join(f'<article class="message"><p>{t}</p></article>' for t in PROSE)
  assert extract(page(posts)) == '\n'.join(PROSE)
  # Where a page says that it is one, its comments are posts; else they are what readers say.
  posts = f'<div><p>{PROSE[0]}</p></div>' + ''.join(
    f'<div itemprop="comment" class="topic-body comment"><p>{t}</p></div>' for t in PROSE[1:])
  said = '<div itemscope itemtype="http://schema.org/DiscussionForumPosting">'
  assert extract(page(f'{said}{posts}</div>')) == '\n'.join(PROSE)
  assert extract(page(f'<noscript>{said}{posts}</div></noscript>')) == '\n'.join(PROSE)
  article = f'<div>{p(PROSE * 3)}</div>'
  assert extract(page(f'{article}{posts}')).count(PROSE[1]) == 1
  # Names of messages say first what is around their text.
  posts = ''.join(f'<div><div class="messageInfo primaryContent"><div class="messageContent"><p>{t}'
                  f'</p></div></div><p>Likes received by this member: {i * 57}</p></div>'
                  for i, t in enumerate(PROSE))
  assert extract(page(f'<p>{TEASER}</p><div>{posts}</div>')) == '\n'.join(PROSE)


def test_the_standfirst_above_the_body():
  body = f'<h1>Title</h1><p>{TEASER}</p><div>2 May</div><div class="article-body">{p(PROSE)}</div>'
  assert extract(page(f'<div>{body}</div>')).splitlines() == [TEASER, *PROSE]


def test_lines_and_paragraphs_of_old_pages():
  lines = '<br>\n<br>'.join(PROSE[:3]) + '<br>' + PROSE[3]
  assert extract(page(f'<font>{lines}</font>')) == '\n'.join(PROSE[:4])


def test_repeated_blocks_stand_once():
  assert extract(page(f'<article>{p([*PROSE, PROSE[3]])}</article>')) == '\n'.join(PROSE)


def test_what_a_script_draws_is_taken_from_what_the_page_declares():
  ld = '<script type="application/ld+json">{"@graph": [{"articleBody": "%s"}]}</script>'
  assert extract(page('<p>Loading…</p>', ld % ' '.join(PROSE))) == ' '.join(PROSE)
  assert extract(page(f'<article>{p(PROSE)}</article>', ld % 'A teaser.')) == '\n'.join(PROSE)
  broken = '<script type="application/ld+json">{"articleBody": </script>'
  assert extract(page(p(PROSE), broken)) == '\n'.join(PROSE)


@pytest.mark.parametrize('broken', [
  '<{}>', '<{}><div></{}>', '<{}><div></div></div></{}>', '<{}><ul><li><a href="/">Home</a></{}>'])
@pytest.mark.parametrize('tag', [
  'nav', 'aside', 'label', 'noscript', 'select', 'button', 'footer', 'menu', 'dialog', 'figcaption',
  'object', 'svg', 'form', 'a', 'template', 'rt', 'datalist', 'frameset', 'meter'])
def test_markup_that_swallows_the_article(tag, broken):
  first = 'The story so far is told in a few lines, which stand before what is broken. ' * 6
  for body in (f'<article>{p(PROSE)}</article>', f'<div>{"<br><br>".join(PROSE)}</div>'):
    for before in ('', p([first])):
      text = extract(page(before + broken.format(tag, tag) + body))
      assert [line for line in text.splitlines() if line in PROSE] == PROSE


@pytest.mark.parametrize('broken', [
  '</body></html>{}', '<textarea>{}', '<iframe src="/x">{}', '<noframes>{}</noframes>',
  '<noscript>{}</noscript>', '<div><iframe><a href="/">Home</a></div>{}'])
def test_text_that_the_parser_leaves_out(broken):
  posts = ''.join(f'<div class="post">{text}</div>' for text in PROSE)
  assert extract(page(broken.format(posts))).splitlines()[-len(PROSE):] == PROSE
  escaped = posts.replace('<', '&lt;').replace('>', '&gt;')
  assert extract(page(f'<noscript>{escaped}</noscript>')) == '\n'.join(PROSE)
  in_head = page('<div id="app"></div>', f'<noscript>{posts}</noscript>')
  assert extract(in_head).splitlines()[-len(PROSE):] == PROSE


def test_a_menu_that_is_well_made_stays_out():
  links = '<li><a href="/x">Something to read</a></li>' * 40
  menu = f'<nav><ul>{links}</ul>{p([TEASER])}</nav>'
  assert extract(page(menu + p(PROSE[:1]))) == PROSE[0]


def test_a_catalogue_is_its_titles():
  names = [f'Brass door handle number {i} with a round plate' for i in range(20)]
  cards = ''.join(f'<li><h3><a href="/{i}">{name}</a></h3><span>{i}.99</span></li>'
                  for i, name in enumerate(names))
  body = (f'<nav><a href="/">Home</a> <a href="/a">All</a></nav><main><h1>Handles</h1>'
          f'<p>{TEASER}</p><ul>{cards}</ul></main>')
  text = extract(page(body))
  assert all(name in text for name in names) and 'Home' not in text and TEASER in text
  article = '<meta property="og:type" content="article">'
  assert names[0] not in extract(page(body, article))
  # Its entries may be called what the details of an article are.
  body = body.replace('<li>', '<li class="product-item-info">')
  assert all(name in extract(page(body)) for name in names)
  assert names[0] not in extract(page(body.replace('product-item-info', 'related-products')))


def within(body: str, *, markdown: bool = False) -> str:
  """What a page adds to its prose by `body`."""
  text = extract(page(f'<article>{p(PROSE[:4])}{body}<p>{PROSE[4]}</p></article>'),
                 markdown=markdown)
  gap = '\n\n' if markdown else '\n'
  start, end = gap.join(PROSE[:4]) + gap, gap + PROSE[4]
  assert text.startswith(start) and text.endswith(end)
  return text[len(start):-len(end)]


@pytest.mark.parametrize('code', [
  '<pre><code><span class="line">def f():</span>\n<span class="line"></span>\n<span class="line">  '
  'x</span></code></pre>',
  '<pre><div>def f():</div><div></div><div>  x</div></pre>',
  '<pre>def f():<br><br>  x</pre>',
  '<pre class="line-numbers"><code>def f():\n\n  x<span class="line-numbers-rows">1</span></code>'
  '<button>Copy</button></pre>',
  '<table class="lntable"><tr><td class="lntd"><pre><span class="lnt">1\n2\n3</span></pre></td>'
  '<td class="lntd"><pre><span class="line"><span>def f():\n</span></span>'
  '<span class="line">\n</span><span class="line">  x\n</span></pre></td></tr></table>',
  '<table class="highlight"><tr><td class="blob-num" data-line-number="1"></td>'
  '<td class="blob-code">def f():</td></tr><tr><td class="blob-num"></td>'
  '<td class="blob-code"></td></tr><tr><td class="blob-num"></td><td class="blob-code">  x</td>'
  '</tr></table>',
  '<figure class="highlight"><table><tr><td class="gutter"><pre>1<br>2<br>3</pre></td>'
  '<td class="code"><pre>def f():<br><br>  x</pre></td></tr></table></figure>',
  '<pre><table class="hljs-ln"><tr><td class="hljs-ln-numbers">1</td><td>def f():</td></tr>'
  '<tr><td></td></tr><tr><td class="hljs-ln-numbers">3</td><td>  x</td></tr></table></pre>',
  '<div class="code-toolbar"><pre class="language-x"><code>def f():\n\n  x</code></pre></div>',
  '<div class="syntaxhighlighter"><table><tr><td class="gutter"><div class="line">1</div></td>'
  '<td class="code"><div class="line"><code>def f():</code></div><div class="line">&nbsp;</div>'
  '<div class="line"><code>&nbsp;&nbsp;</code><code>x</code></div></td></tr></table></div>',
  '<div class="CodeMirror-code"><div><div class="CodeMirror-linenumber">1</div>'
  '<pre class="CodeMirror-line">def f():</pre></div><div><div class="CodeMirror-linenumber">2'
  '</div><pre class="CodeMirror-line">\u200b</pre></div><div><pre class="CodeMirror-line">  x</pre>'
  '</div></div>',
  '<div class="fragment"><div class="line"><span class="lineno"> 1</span>&#160;def f():</div>'
  '<div class="line"><span class="lineno"> 2</span>&#160;</div><div class="line"><span '
  'class="lineno"> 3</span>&#160;  x</div></div>',
  '<pre><span class="ln">1</span>def f():\n<span class="ln">2</span>\n<span class="ln">3</span>  x'
  '</pre>',
  '<pre><code class="line">def f():</code><code class="line">\n</code><code class="line">  x</code>'
  '</pre>',
  '<ol class="dp-py"><li>def f():</li><li>&nbsp;</li><li>&nbsp;&nbsp;x</li></ol>',
  '<p><code>def f():<br><br>&nbsp;&nbsp;x</code></p>',
  '<div style="white-space: pre;">def f():\n\n  x</div>',
  '<listing>def f():\n\n  x</listing>', '<xmp>def f():\n\n  x</xmp>',
])
def test_code_is_one_block_without_its_numbers(code):
  assert within(code) == 'def f():\n\n  x'


@pytest.mark.parametrize(('html', 'tex'), [
  ('<script type="math/tex">x^2</script>', '$x^2$'),
  ('<script type="math/tex; mode=display">x^2</script>', '$$x^2$$'),
  ('<span class="MathJax_Preview">x2</span><span class="MathJax">x2</span>'
   '<script type="math/tex">x^2</script>', '$x^2$'),
  ('<mjx-container><mjx-math>x2</mjx-math><mjx-assistive-mml><math><msup><mi>x</mi><mn>2</mn>'
   '</msup></math></mjx-assistive-mml></mjx-container>', '$x^2$'),
  ('<span class="mwe-math-element"><span style="display: none;"><math '
   'alttext="{\\displaystyle x^2}"><mi>x</mi></math></span>'
   '<img class="mwe-math-fallback-image" alt="x^2"></span>', '$x^2$'),
  ('<img class="tex" alt="x^2">', '$x^2$'),
  ('<img class="latex" alt="$x^2$">', '$x^2$'),
  ('<img src="https://latex.codecogs.com/gif.latex?x" alt="x^2">', '$x^2$'),
  ('<math display="block"><mfrac><mn>1</mn><msqrt><mi>α</mi></msqrt></mfrac></math>',
   r'$$\frac{1}{\sqrt{\alpha}}$$'),
  ('<math><mi>sin</mi><mi>x</mi><mo>≤</mo><msub><mi>a</mi><mrow><mi>i</mi><mo>+</mo><mn>1</mn></mrow>'
   '</msub></math>', r'$\sin x\leq a_{i+1}$'),
  ('10<sup>6</sup> m<sup>2</sup>, the 2<sup>nd</sup> word<sup>1</sup>, (a+b)<sup>n</sup>',
   '10^6 m^2, the 2nd word1, (a+b)^n'),
  ('x<sup><i>n</i></sup>', 'x^n'),
  ('<m:math><m:msup><m:mi>f</m:mi><m:mo>′</m:mo></m:msup></m:math>', "$f'$"),
  ('<mml:math><mml:mn>5</mml:mn><mml:mo>%</mml:mo></mml:math>', r'$5\%$'),
  ('<math><mmultiscripts><mi>C</mi><mn>6</mn><none/><mprescripts/><none/><mn>14</mn>'
   '</mmultiscripts></math>', '${}^{14}C_{6}$'),
  ('<script type="math/mml"><math><msup><mi>x</mi><mn>2</mn></msup></math></script>', '$x^2$'),
  ('<script type="math/tex">% <![CDATA[ x &lt; 2 %]]></script>', '$x < 2$'),
  ('<script type="math/asciimath">x^2</script>', 'x^2'),
  ('<img src="//latex.codecogs.com/gif.latex?\\inline&amp;space;x%5E2">', '$x^2$'),
  ('<img src="https://www.zhihu.com/equation?tex=x%5E2" alt="[formula]">', '$x^2$'),
  ('<img class="equation_image" alt="LaTeX: x^2" title="x^2">', '$x^2$'),
  ('<ruby>漢字<rp>(</rp><rt>かんじ</rt><rp>)</rp></ruby>', '漢字'),
])
def test_formulas_stand_once_as_tex(html, tex):
  assert within(f'<p>So {html} it is.</p>') == f'So {tex} it is.'


def test_tables_keep_their_columns():
  rows = ('<tr><th colspan="2">Name</th><th>Age</th></tr><tr><td rowspan="2">Ann</td><td>Lee</td>'
          '<td></td></tr><tr><td></td><td><p>4</p></td></tr><tr><td>Bob</td><td></td><td></td></tr>')
  assert within(f'<table>{rows}</table>') == (
    'Name |  | Age\nAnn | Lee |\nAnn |  | 4\nBob |  |')
  assert within('<table><tr><td><p>One</p><p>Two</p></td></tr></table>') == 'One\nTwo'
  names = ('<tr><th>A</th><th>B</th></tr><tr><td rowspan="0"><a>Sweden</a></td><td><a>Stockholm</a>'
           '</td></tr><tr><td><a>Malmö</a></td></tr>')
  assert within(f'<table>{names}</table>') == 'A | B\nSweden | Stockholm\nSweden | Malmö'
  assert within('<table><tr><td width="9"></td><td>One<br><br>Two</td></tr></table>') == 'One\nTwo'


def test_markdown_numbers_and_nests_lists():
  assert within(
    '<ol start="3"><li>a<ol><li>b</li></ol><ul><li>c</li></ul></li><li value="7"><p>d</p><p>e</p>'
    '</li><li>f</li></ol>', markdown=True) == '3. a\n   1. b\n   - c\n7. d\n   e\n8. f'


def test_lists_directly_in_lists_and_backwards():
  assert within('<ol><li>a</li><ul><li>b</li></ul><li>c</li></ol>', markdown=True) == (
    '1. a\n   - b\n2. c')
  assert within('<ol reversed><li>a</li><li>b</li></ol>', markdown=True) == '2. a\n1. b'
  assert within('<ol start="-1"><li>a</li><li>b</li></ol>', markdown=True) == '-1. a\n0. b'


def test_questions_in_buttons_are_read_and_other_buttons_not():
  body = ''.join(f'<{tag}><button>Question {tag} of them</button></{tag}><div>{text}</div>'
                 for tag, text in zip(['h2', 'h3'], PROSE[5:], strict=False))
  body += f'<button>Is it so, then?</button><p>{PROSE[7]}</p><button class="btn">Buy it</button>'
  assert within(body).splitlines() == [
    'Question h2 of them', PROSE[5], 'Question h3 of them', PROSE[6], 'Is it so, then?', PROSE[7]]


STRUCTURE = page(f'''<article><h2>Build</h2><p>{PROSE[0]} Use <code>make all</code>.</p>
<ul><li>One <b>bold</b> item</li><li><p>Two</p></li></ul>
<pre>def f():
  return  1
</pre><table><tr><th>Name</th><th>Size</th></tr><tr><td>a</td><td>1</td></tr></table>
<blockquote><p>{PROSE[1]}</p></blockquote></article>''')


def test_markdown_keeps_the_structure():
  assert extract(STRUCTURE, markdown=True) == f'''## Build

{PROSE[0]} Use `make all`.

- One bold item
- Two

```
def f():
  return  1
```

| Name | Size |
| --- | --- |
| a | 1 |

> {PROSE[1]}'''


def test_plain_text_has_lists_rows_and_code_lines():
  text = extract(STRUCTURE)
  assert '\n- One bold item\n- Two\ndef f():\n  return  1\nName | Size\na | 1\n' in text
  assert '`' not in text and '#' not in text


@pytest.mark.timeout(120)  # a hang guard: seconds if linear, far more if quadratic
def test_time_is_linear_in_the_page():
  extract(page(''.join(f'<div class="comment c{i}"><article><p>{t}</p></article></div>'
                       for i, t in enumerate(PROSE * 4000))))


def test_deep_markup_keeps_its_text():
  assert extract(page('<div>' * 240 + p(PROSE)))
  assert extract(page('<b>' * 1000 + PROSE[0])).startswith('In the year')
