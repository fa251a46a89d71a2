"""Opt-outs and licences of pages."""

import json

import pytest

from data_beam.records import Reject
from data_beam.sources.http_answer import parse_headers
from data_beam.sources.readers import Page
from data_beam.web import rights


def page(html='<p>Text', url='https://a.test/x', headers=b''):
  return Page(id='1', url=url, date='', warc_file='w', warc_offset=0, content_type='text/html',
              body=html.encode(), headers=parse_headers(b'HTTP/1.1 200 OK\r\n' + headers))


def reason(page, *args, **kwargs):
  (result,) = rights.judge(page, *args, **kwargs)
  return result.reason if isinstance(result, Reject) else ''


ROBOTS = '''\ufeff# rules
User-agent: GPTBot/1.0
User-agent: CCBot
Disallow: /private/   # all of it
Allow: /private/open

User-agent: Google
Disallow: /

User-agent: *
Disallow: /tmp
'''


@pytest.mark.parametrize(('path', 'agents', 'found'), [
  ('/private/a', ('GPTBot',), 'robots'), ('/private/a', ('gptbot',), 'robots'),
  ('/private/open', ('GPTBot',), ''), ('/private/a', ('ClaudeBot',), ''),
  ('/a', ('Google-Extended',), ''),          # a group for Google is not its own
  ('/tmp/a', ('GPTBot', 'ClaudeBot'), ''), ('/tmp/a', ('ClaudeBot', '*'), 'robots'),
  ('/tmp/a', ('GPTBot', '*'), 'robots'),     # * for itself; GPTBot's own group goes before it
])
def test_robots_by_host(tmp_path, path, agents, found):
  file = tmp_path / 'robots.jsonl'
  file.write_text(json.dumps({'host': 'A.test', 'robots': ROBOTS}) + '\n\n')
  rights._rules.cache_clear()
  assert reason(page(url=f'https://a.test{path}'), str(file), agents) == found
  assert reason(page(url=f'https://b.test{path}'), str(file), agents) == ''
  assert reason(page(url='https://[a.test/'), str(file), agents) == ''
  assert reason(page(url=f'https://A.test.:443{path}'), str(file), agents) == found


def test_other_rules_by_host_and_damaged_ones(tmp_path):
  file = tmp_path / 'robots.jsonl'
  file.write_text('\n'.join(map(json.dumps, [
    {'host': 'a.test', 'tdmrep': [{'location': '/img/*', 'tdm-reservation': 1},
                                  {'location': '/', 'tdm-reservation': 0}]},
    {'host': 'b.test',
     'robots': 'User-agent: *\nContent-Signal: search=yes, ai-train=no\nAllow: /'},
    {'host': 'd.test:80', 'robots': 'Useragent: CCBot\nDissallow: /'},
    {'host': 'c.test', 'robots': 'User-Agent: CCBot\nContent-Usage: /a/ train-ai=n'}])))
  rights._rules.cache_clear()
  judge = lambda url: reason(page(url=url), str(file), ('CCBot', '*'))
  assert judge('https://a.test/img/x') == 'tdmrep' and judge('https://a.test/x') == ''
  assert judge('https://c.test/a/b') == 'robots' and judge('https://c.test/b') == ''
  assert judge('https://b.test/') == judge('http://d.test/a') == 'robots'
  file.write_text('{"robots": "x"}')
  rights._rules.cache_clear()
  with pytest.raises(ValueError, match='line 1: rules are'):
    judge('https://a.test/')


@pytest.mark.parametrize(('html', 'headers', 'found'), [
  ('<meta name="robots" content="index, NOAI, noimageai">', b'', 'noai'),
  ('<META content=noai name=GPTBot>', b'', 'noai'),
  ('<meta name="tdm-reservation" content="1">', b'', 'tdm_reservation'),
  ('', b'X-Robots-Tag: noindex\r\nX-Robots-Tag: otherbot: noai\r\n', 'noai'),
  ('<meta property="tdm-reservation" content="1">', b'', 'tdm_reservation'),
  ('', b'tdm-reservation: 1\r\n', 'tdm_reservation'),
  ('', b'tdm-reservation: 1\r\ntdm-reservation: 0\r\n', 'tdm_reservation'),
  ('', b'Content-Usage: search=y, train-ai=n\r\n', 'content_usage'),
  ('<meta name="robots" content="noindex,noimageai">', b'', ''),
  ('<meta name="tdm-reservation" content="0">', b'TDM-Reservation: 0\r\n', ''),
  ('<!-- <meta name="robots" content="noai"> --><script>"<meta name=robots content=noai>"</script>',
   b'', ''),
  ('<meta name="description" content="what noai means">', b'', '')])
def test_reservations(html, headers, found):
  assert reason(page(html, headers=headers), opt_out=True) == found
  assert reason(page(html, headers=headers)) == ''


CC = 'https://creativecommons.org/licenses/'


@pytest.mark.parametrize(('html', 'code'), [
  (f'<a rel="license" href="{CC}by-sa/4.0/deed.de">', 'CC-BY-SA-4.0'),
  ("<link href='http://creativecommons.org/publicdomain/zero/1.0/' rel='license'>", 'CC0-1.0'),
  ('<script type="application/ld+json">{"@graph": [{"@type": "Article", "license": '
   f'{{"@id": "{CC}by/3.0/"}}, "image": {{"license": "{CC}by-nc/3.0/"}}}}]}}</script>',
   'CC-BY-3.0'),
  ('<script type="application/ld+json">{"@type": "Article", "license": "https://a.test/terms"}'
   '</script>', 'other'),
  (f'<script type="application/ld+json">{{"@type": "ImageObject", "license": "{CC}by/3.0/"}}'
   '</script>', ''),
  (f'<meta name="DC.rights" content="{CC}by-nc-nd/2.5/">', 'CC-BY-NC-ND-2.5'),
  (f'<p>Text under <a href="{CC}by/4.0/">CC BY</a>', 'CC-BY-4.0'),
  (f'<figure><img><figcaption><a href="{CC}by/4.0/">by</a></figcaption></figure>', ''),
  (f'<a href="{CC}by/4.0/">1</a><a href="{CC}by-sa/4.0/">2</a>', ''),
  (f'<a rel=license href="{CC}by/4.0/">1</a><a rel=license href="{CC}by-nd/4.0/">2</a>', 'mixed'),
  ('<a rel="license" href="https://www.gnu.org/licenses/fdl-1.3.html">', 'GFDL'),
  ('<meta name="dcterms.license" content="CC BY-SA 4.0">', 'CC-BY-SA-4.0'),
  ('<meta name="rights" content="CC BY the authors">', ''),
  ('<a rel="nofollow" href="/license">', '')])
def test_licences(html, code):
  (kept,) = rights.judge(page(html), licences='any')
  assert kept.notes.get('licence', '') == code
  is_open = code in ('CC-BY-SA-4.0', 'CC0-1.0', 'CC-BY-3.0', 'CC-BY-4.0', 'GFDL')
  assert reason(page(html), licences='open') == ('' if is_open else f'licence_{code or "none"}')


def test_a_licence_of_the_header():
  link = f'Link: <https://a.test/>; rel=next, <{CC}by/4.0/>; title="a, b"; rel="license"\r\n'
  (kept,) = rights.judge(page(headers=link.encode()), licences='any')
  assert kept.notes == {'licence': 'CC-BY-4.0', 'licence_from': 'rel'}


@pytest.mark.parametrize('unit', ['<a ', '<script>', '<!--', '<figure>', '<meta a=', '<', 'a=',
                                  '<script type=ld+json>{'])
@pytest.mark.timeout(120)  # a hang guard: linear, whatever the page
def test_hostile_markup(unit):
  html = 'licence noai ' + unit * (400_000 // len(unit))
  list(rights.judge(page(html), opt_out=True, licences='any'))
