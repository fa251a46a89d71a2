"""What a page's owner says of its use: robots rules for crawlers of AI, reservations, licences.

Robots rules apply retroactively, from a file of them by host: a page crawled in 2015 may be refused
by what its host said in 2025 (arXiv 2504.06219). A page whose host is not in the file is kept.
"""

import functools
import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protego import Protego

from data_beam.options import WebOptions
from data_beam.records import Reject
from data_beam.sources.files import decompressed, lines, open_file
from data_beam.sources.readers import MAX_PAGE_BYTES, Page, reject_page
from data_beam.web.extract import decode

# Crawlers that gather text to train models on (the list of Apertus, arXiv 2509.14233). A group for
# all (`*`) counts where '*' is among the agents, for those of them that have no group of their own.
AGENTS = WebOptions.robots_agents
LICENCES = {
  'ignore': 'not looked for', 'any': 'noted as metadata.licence',
  'open': 'noted, and pages without a licence that allows all uses and changes dropped'}


def judge(
  page: Page, robots: str = '', agents: Sequence[str] = AGENTS, opt_out: bool = False,
  licences: str = 'ignore',
) -> Iterator[Page | Reject]:
  """Drops pages whose owners refuse, and notes licences.

  Reasons of stage 'rights': robots, tdmrep (of the file), noai, tdm_reservation, content_usage (of
  the page or its HTTP header), licence_none, licence_CODE.

  Args:
    page: as it was crawled.
    robots: file of rules by host, see `Rules`; '' for none.
    agents: names of crawlers, any of which a host may have refused.
    opt_out: look for reservations in the page and its header.
    licences: a key of LICENCES.
  """
  if robots:
    reason, agent = _rules(robots, tuple(agents)).refusal(page.url)
    if reason:
      yield reject_page(page, reason, agent, stage='rights')
      return
  if opt_out or licences != 'ignore':
    html = '' if page.content_type.startswith('text/plain') else visible_markup(
      decode(page.body, page.content_type))
    if opt_out and (reason := reservation(html, page.headers)):
      yield reject_page(page, reason, stage='rights')
      return
    if licences != 'ignore':
      code, place = licence(html, page.headers)
      if licences == 'open' and not is_open(code):
        yield reject_page(page, f'licence_{code or "none"}', stage='rights')
        return
      if code:
        page.notes = {**page.notes, 'licence': code, 'licence_from': place}
  yield page


# --- robots.txt ----------------------------------------------------------------------------------


class Rules:
  """What hosts refuse, from a file of JSON lines, compressed or not.

  A line is `{"host": "example.org", "robots": "User-agent: …"}`, the text of its robots.txt, and
  may have `"tdmrep": [{"location": "/*", "tdm-reservation": 1}]`, its /.well-known/tdmrep.json.
  """

  def __init__(self, path: str, agents: Sequence[str]):
    self.groups: dict[str, list[tuple[str, str]]] = {}     # of a host: (agent, rules)
    with open_file(path) as stream:
      for number, line in enumerate(lines(decompressed(stream), MAX_PAGE_BYTES), 1):
        try:
          row = json.loads(line) if line.strip() else {'host': ''}
          found = groups_of(str(row.get('robots') or ''), agents)
          if reserved := _tdmrep(row.get('tdmrep')):
            found.append(('tdmrep', reserved))
          host = _host(str(row['host']))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
          raise ValueError(f'{path}, line {number}: rules are {{"host": …, "robots": …}} '
                           f'({error!r})') from error
        if host and found:
          self.groups[host] = found

  def refusal(self, url: str) -> tuple[str, str]:
    """('robots', agent) or ('tdmrep', '') where the URL is refused, else ('', '')."""
    try:
      host = urllib.parse.urlsplit(url).netloc.rpartition('@')[2]
    except ValueError:
      return '', ''
    for agent, rules in self.groups.get(_host(host), ()):
      if not _parsed(rules).can_fetch(url, 'anybody'):
        return ('tdmrep', '') if agent == 'tdmrep' else ('robots', agent)
    return '', ''


def _host(name: str) -> str:
  """A host as others write it: in lower case, without the ports that are so anyway and a last dot.
  """
  return re.sub(r'\.?(?::(?:80|443)?)?$', '', name.strip().lower())


@functools.lru_cache(maxsize=2)
def _rules(path: str, agents: tuple[str, ...]) -> Rules:
  return Rules(path, agents)


@functools.lru_cache(maxsize=1 << 12)
def _parsed(rules: str) -> Protego:
  return Protego.parse('User-agent: *\n' + rules)


# As Google's own parser has it.
_MISSPELT = {'useragent': 'user-agent', 'user agent': 'user-agent', **dict.fromkeys(
  ('dissallow', 'dissalow', 'disalow', 'diasllow', 'disallaw'), 'disallow')}


def groups_of(robots: str, agents: Sequence[str]) -> list[tuple[str, str]]:
  """(agent, rules) of a robots.txt for each of the agents to which something is refused.

  Names are compared whole (RFC 9309, 2.2.1; a group for Google is none for Google-Extended), and
  an agent's own groups go before the one for all. Cloudflare's `Content-Signal: ai-train=no` and
  `Content-Usage: train-ai=n` (IETF's AIPREF) refuse the path they name, or everything, whatever
  else is allowed: they are rules of their own.
  """
  groups: dict[str, list[str]] = {}
  signals: dict[str, list[str]] = {}
  named: list[str] = []
  heads = False
  for line in robots.lstrip('\ufeff').splitlines():
    field, _, value = line.partition('#')[0].partition(':')
    field, value = field.strip().lower(), value.strip()
    field = _MISSPELT.get(field, field)
    if field == 'user-agent':
      named = [*(named if heads else ()), value.partition('/')[0].strip().lower()]
      heads = True
      groups.setdefault(named[-1], [])
      continue
    heads = heads and not field
    if field in ('content-signal', 'content-usage'):
      path, _, wish = value.rpartition(' ') if value.startswith('/') else ('/', '', value)
      for name in named if _is_refused(wish) else ():
        signals.setdefault(name, []).append(f'disallow: {path}')
    if field in ('allow', 'disallow') and value:
      for name in named:
        groups[name].append(f'{field}: {value}')
  found = []
  for agent in agents:
    name = agent.lower()
    name = '*' if name not in groups and '*' in agents else name
    found += [(agent, '\n'.join(rules)) for rules in (groups.get(name), signals.get(name))
              if rules and any(rule.startswith('dis') for rule in rules)]
  return found


def _tdmrep(entries: Any) -> str:
  """Rules like those of robots.txt, of a tdmrep.json (W3C's TDMRep); '' where nothing is reserved.
  """
  found = [('dis' if str(entry.get('tdm-reservation')) == '1' else '')
           + f'allow: {entry.get("location", "/")}' for entry in entries or ()]
  return '\n'.join(found) if any(rule.startswith('dis') for rule in found) else ''


# --- reservations of a page ----------------------------------------------------------------------

_HIDDEN = re.compile(r'<!--.*?(?:-->|\Z)|<(script|style|textarea)\b(?![^<>]*ld\+json)'
                     r'.*?(?:</\1|\Z)', re.I | re.S)
_TAG = re.compile(r'<(meta|link|a)\b([^<>]{0,4000})>', re.I)
_ATTRIBUTE = re.compile(r'''([\w:-]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)''')
_SIGNAL = re.compile(r'(?:^|[,;\s])(?:ai-train|train-ai|train-genai|genai|ai|tdm|bots)\s*=\s*no?'
                     r'(?:$|[,;\s])', re.I)
_NO = frozenset({'noai', 'noml'})      # noimageai speaks of pictures, noindex of search


def visible_markup(html: str) -> str:
  """A page without comments, styles and scripts but those of linked data."""
  return _HIDDEN.sub(' ', html)


def _tags(html: str, names: str) -> Iterator[dict[str, str]]:
  """Attributes of the elements of some names, in lower case but for their values."""
  for tag in _TAG.finditer(html):
    if tag[1].lower() in names.split():
      yield {name.lower(): value.strip('"\'').strip()
             for name, value in _ATTRIBUTE.findall(tag[2])}


def _is_refused(signals: str) -> bool:
  return _SIGNAL.search(signals) is not None


def reservation(html: str, headers: Mapping[str, str]) -> str:
  """How a page, or the header it came with, reserves it from training: noai, tdm_reservation or
  content_usage; '' if it does not.

  Args:
    html: from `visible_markup`.
    headers: of the HTTP answer, names in lower case.
  """
  robots, reserved = [headers.get('x-robots-tag', '')], [headers.get('tdm-reservation', '')]
  if 'noai' in (lower := html.lower()) or 'noml' in lower or 'tdm-reservation' in lower:
    for tag in _tags(html, 'meta'):
      name = (tag.get('name') or tag.get('http-equiv') or tag.get('property') or '').lower()
      if name in ('robots', 'x-robots-tag') or name in _LOWER_AGENTS:
        robots.append(tag.get('content', ''))
      elif name == 'tdm-reservation':
        reserved.append(tag.get('content', ''))
  if _NO & set(re.split(r'[,;:\s]+', ' '.join(robots).lower())):
    return 'noai'
  if any('1' in re.split('[,;\\s]+', value.strip()) for value in reserved):
    return 'tdm_reservation'
  return 'content_usage' if _is_refused(headers.get('content-usage', '')) else ''


_LOWER_AGENTS = frozenset(map(str.lower, AGENTS))


# --- licences ------------------------------------------------------------------------------------

_CC = re.compile(
  r'creativecommons\.org/(?:licen[cs]es/((?:by|nc|nd|sa)(?:-(?:nc|nd|sa))*|publicdomain)'
  r'|publicdomain/(zero|mark))\b/?(\d\.\d)?', re.I)
# Its short name, as meta tags have it: CC BY-SA 4.0.
_CC_NAME = re.compile(
  r'\s*CC[ -](BY(?:[ -](?:NC|ND|SA))*)(?:[ -](\d\.\d))?(?:[ -]international)?\s*$', re.I)
_OTHERS = [(re.compile(pattern, re.I), name) for pattern, name in (
  (r'gnu\.org/(?:copyleft|licenses)/(?:old-licenses/)?fdl', 'GFDL'),
  (r'gnu\.org/(?:copyleft|licenses)/(?:old-licenses/)?agpl', 'AGPL'),
  (r'gnu\.org/(?:copyleft|licenses)/(?:old-licenses/)?lgpl', 'LGPL'),
  (r'gnu\.org/(?:copyleft|licenses)/(?:old-licenses/)?gpl', 'GPL'),
  (r'apache\.org/licenses/LICENSE-2\.0', 'Apache-2.0'),
  (r'opendatacommons\.org/licenses/odbl', 'ODbL-1.0'),
  (r'opendatacommons\.org/licenses/by', 'ODC-By-1.0'),
  (r'opendatacommons\.org/licenses/pddl', 'PDDL-1.0'),
  (r'nationalarchives\.gov\.uk/doc/open-government-licence', 'OGL-UK-3.0'),
  (r'opensource\.org/licen[cs]es?/mit|//mit-license\.org', 'MIT'))]
_SPDX = re.compile(r'(?:spdx|opensource)\.org/licen[cs]es?/([\w.+-]*\w)', re.I)
_LINKED_DATA = re.compile(r'<script\b[^<>]*ld\+json[^<>]*>(.*?)(?:</script|\Z)', re.I | re.S)
_MEDIA = frozenset({'ImageObject', 'VideoObject', 'AudioObject', 'MediaObject', 'Photograph',
                    'SoftwareApplication', 'SoftwareSourceCode', 'Dataset'})
_FIGURE = re.compile(r'<fig(ure|caption)\b(?:(?!<fig\1\b).)*?</fig\1', re.I | re.S)


def is_open(code: str) -> bool:
  """Whether a licence lets anybody use and change a work for any purpose (opendefinition.org)."""
  return code not in ('', 'mixed', 'other') and not re.search(r'\b(?:NC|ND)\b', code)


def code_of(url: str) -> str:
  """The licence that a URL names: 'CC-BY-SA-4.0', 'CC0-1.0', 'GFDL', …; '' if it names none."""
  if found := _CC.search(url):
    version = f'-{found[3]}' if found[3] else ''
    if found[2]:
      return {'zero': 'CC0', 'mark': 'PDM'}[found[2].lower()] + version
    return 'PDM' if found[1].lower() == 'publicdomain' else f'CC-{found[1].upper()}{version}'
  for pattern, name in _OTHERS:
    if pattern.search(url):
      return name
  if found := _SPDX.search(url):
    return found[1]
  if found := _CC_NAME.match(url):
    return '-'.join(filter(None, ('CC', re.sub('[ -]+', '-', found[1]).upper(), found[2])))
  return ''


def licence(html: str, headers: Mapping[str, str]) -> tuple[str, str]:
  """(code, where it is said) of the licence of a page, ('', '') if it has none.

  The first of these that says one: links and headers of rel=license, linked data, meta tags, and a
  link to a Creative Commons deed, if all such links outside figures name the same. What says two
  is 'mixed', a licence by a URL that is unknown 'other'. A picture's licence is not the page's.

  Args:
    html: from `visible_markup`.
    headers: of the HTTP answer, names in lower case.
  """
  lower = html.lower()
  rel = re.findall(r'''<([^<>]*)>[^<>]*?;\s*rel=["']?(?:licen[cs]e)\b''', headers.get('link', ''))
  meta, bare = [], []
  if 'licen' in lower or 'creativecommons' in lower or 'rights' in lower:
    html = _FIGURE.sub(' ', html)
    for tag in _tags(html, 'a link'):
      href = tag.get('href', '')
      if {'license', 'licence', 'copyright'} & set(tag.get('rel', '').lower().split()):
        rel.append(href)
      elif _CC.search(href):
        bare.append(href)
    for tag in _tags(html, 'meta'):
      name = (tag.get('name') or tag.get('property') or tag.get('itemprop') or '').lower()
      if re.fullmatch(r'(?:(?:dc|dcterms|cc|og)[.:])?(?:rights|licen[cs]e)', name):
        meta.append(tag.get('content', ''))
  data = [url for text in _LINKED_DATA.findall(html) for url in _of_linked_data(text)]
  for place, urls in (('rel', rel), ('linked data', data), ('meta', meta), ('link', bare)):
    codes = {code_of(url) for url in urls}
    if len(codes - {''}) > 1:
      return ('mixed', place) if place != 'link' else ('', '')
    if codes - {''}:
      return (codes - {''}).pop(), place
    if codes and place == 'linked data':
      return 'other', place
  return '', ''


def _of_linked_data(text: str) -> Iterator[str]:
  try:
    nodes = [json.loads(text)]
  except (ValueError, RecursionError):
    return
  while nodes:
    node = nodes.pop()
    if isinstance(node, list):
      nodes += node
    elif isinstance(node, dict):
      kinds = node.get('@type') or ()
      if any(kind in _MEDIA for kind in ([kinds] if isinstance(kinds, str) else kinds)
             if isinstance(kind, str)):
        continue
      said = node.get('license') or node.get('licence')
      said = said.get('@id') or said.get('url') if isinstance(said, dict) else said
      yield from (url for url in (said if isinstance(said, list) else [said])
                  if isinstance(url, str))
      nodes += [value for key, value in node.items()
                if key not in ('image', 'thumbnail', 'logo', 'video', 'audio', 'license')
                and isinstance(value, dict | list)]

