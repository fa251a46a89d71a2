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


def test_names_that_leave_nothing_are_not_believed():
  assert extract(page(f'<div class="widget"><div class="comments">{p(PROSE)}</div></div>')) == (
    '\n'.join(PROSE))


def test_a_thread_is_all_of_its_posts():
  posts = ''.join(f'<article class="message"><p>{t}</p></article>' for t in PROSE)
  assert extract(page(posts)) == '\n'.join(PROSE)


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
