"""The quickstart's own input: this machine's documentation as a small crawl and as PDFs.

Every machine with our requirements installed carries several megabytes of real English prose: the
documentation of the Python standard library, of the interpreter's language reference (pydoc's
topics) and of the installed packages. `build` turns it into what a crawler would have met: HTML
pages in four layouts and three charsets, mirrors and near-duplicates, junk, written as WARC; and,
from other modules than the web pages, typeset PDFs, some scanned or broken. A `truth.json` beside
them says what each page and file is, so that curation can be judged.

  docstrings.py: Article ─┬→ HTML → WARC  web/*.warc.gz
                          └→ reportlab    pdf/*.pdf

The same machine and arguments give the same bytes: order comes from hashes, dates and record ids
are fixed.

  python -m experiments.quickstart.crawl --output=DIR
"""

import argparse
import dataclasses
import gzip
import hashlib
import html
import io
import itertools
import json
import pathlib
import random
import re
import string
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pypdfium2
from PIL import Image
from reportlab import platypus
from reportlab.lib import colors, enums, pagesizes, pdfencrypt, styles
from reportlab.pdfgen import canvas
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from experiments.quickstart import articles as articles_lib
from experiments.quickstart.articles import Article

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
  record = {'kind': 'article', 'variety': layout, 'characters': len(articles_lib.plain(body)),
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
  by_kind = {'p': style('p', **justified),
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
    return articles_lib.marked(
      ''.join(parts), f'<font face="Courier" size="{size - 1}">', '</font>'
    )

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
        story.append(paragraph(text(raw), by_kind[kind], bulletText='•' if kind == 'li' else None))

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
  units = sorted(articles_lib.units(), key=lambda unit: _digest(seed, unit.kind, unit.name))
  def printed(unit):
    return unit.kind != 'readme' and int(_digest(unit.name)[:8], 16) % 10 == 0
  web_units, pdf_units = itertools.filterfalse(printed, units), filter(printed, units)
  seen: set[str] = set()

  wanted = max_pages - sum(_shares(max_pages))
  articles: list[Article] = []
  for article in itertools.islice(articles_lib.articles(web_units, seen), wanted):
    articles.append(article)
    if len(articles) % 500 == 0:
      progress(f'{len(articles)} of {wanted} articles')
  responses = _crawl(articles, max_pages, seed) if articles else []
  per_file = min(500, max(1, -(-len(responses) // 2)))
  for k in range(0, len(responses), per_file):
    _write_warc(root / 'web' / f'crawl-{k // per_file:05}.warc.gz', responses[k:k + per_file], k)
  progress(f'{len(responses)} web pages written')
  pdf_truth = _write_pdfs(
    root / 'pdf', articles_lib.articles(pdf_units, seen), pdfs, seed, progress
  )

  web_truth = {r.url: {'kind': r.kind, 'variety': r.variety, 'characters': r.characters,
                       **({'of': r.of} if r.of else {})} for r in responses}
  truth: dict[str, dict[str, Any]] = {'web': web_truth, 'pdf': pdf_truth}
  (root / 'truth.json').write_text(json.dumps(truth, indent=1, sort_keys=True) + '\n')
  counts: dict = {}
  for corpus, kinds in (('web', ('article',)), ('pdf', ('text', 'scanned'))):
    facts = truth[corpus].values()
    kinds = sorted({fact['kind'] for fact in facts})
    counts['pages' if corpus == 'web' else 'pdfs'] = {
      kind: sum(fact['kind'] == kind for fact in facts) for kind in kinds}
    counts[f'{corpus}_characters'] = sum(f['characters'] for f in facts if f['kind'] in kinds)
  return counts


def main(argv: list[str] | None = None) -> int:
  """The command line; bad input is one line and exit code 2."""
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
