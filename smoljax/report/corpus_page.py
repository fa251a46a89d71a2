"""The report's pages about corpora: what was kept and dropped, why, and what it did to variety.

Figures of the manifest are exact. Lengths, domains, topics and everything under "diversity" come
from a sample of one document in k, kept and dropped alike, which the page says where k > 1.
"""

import base64
import collections
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import data_beam.chat as chat
from smoljax.report import charts, diversity, reasons
from smoljax.report.charts import (
  compact,
  count,
  excerpt,
  figure,
  fixed,
  missing,
  percent,
  section,
  table,
  text,
)

SAMPLE = 8000  # documents read of a corpus and its rejects together
EXAMPLES = 3  # shown of what was kept
REJECTS = 10  # shown of each reason
DOMAINS = 12  # shown of each corpus
_CHARS = 320  # shown of a document
_TURN = 600  # of what is said in a conversation at a stretch

Csv = Callable[[str, Sequence[str], Iterable[Sequence]], str]  # stores a table, returns its link
Locate = Callable[[str, str, dict], tuple[int, int] | None]  # (reason, text, metadata) → span
Picture = Callable[[dict, Sequence[dict]], bytes | None]  # (metadata, inputs) → PNG


@dataclasses.dataclass
class Corpus:
  """A curated corpus: its manifest, and of what came in a sample, kept and rejected."""

  name: str
  manifest: dict
  kept: list[dict]
  rejects: list[dict]
  every: int = 1  # the sample holds one document in so many
  examples: list[dict] = dataclasses.field(default_factory=list)  # rejects of every reason

  @property
  def stages(self) -> list[dict]:
    """The funnel's rows."""
    return [s for s in self.manifest.get('funnel') or [] if isinstance(s, dict)]


def load(home: pathlib.Path, manifest: dict, rejects_home: pathlib.Path | None,
         note: Callable[[str], None]) -> Corpus:
  """Opens a corpus and samples it; what cannot be read is a note, not an error."""
  name = str(manifest.get('name', home.parent.name))
  sources = []
  for path in (home, rejects_home):
    try:
      sources.append(_open(path) if path else [])
    except Exception as e:  # a damaged corpus must not hide the rest of the run
      sources.append([])
      note(f'corpus {(path or home).parent.name} could not be sampled: {str(e).splitlines()[0]}')
  every = max(1, -(-sum(map(len, sources)) // SAMPLE))
  samples = []
  for path, source in zip((home, rejects_home), sources, strict=True):
    try:
      samples.append(_read(source, range(0, len(source), every)))
    except Exception as e:
      samples.append([])
      note(f'corpus {(path or home).parent.name} could not be sampled: {str(e).splitlines()[0]}')
  kept, rejects = samples
  try:
    examples = _listed(sources[1], rejects_home) if rejects_home else rejects
  except Exception:  # an older manifest, or none: those of the sample have to do
    examples = rejects
  return Corpus(name, manifest, kept, rejects, every, examples)


def _listed(source: Any, home: pathlib.Path) -> list[dict]:
  """Documents of every reason that the manifest of the rejects names."""
  listed = json.loads((home / 'manifest.json').read_text())['examples']
  return _read(source, [
    n for reasons in listed.values() for ns in reasons.values() for n in ns[:REJECTS]])


def _open(path: pathlib.Path) -> Any:
  import tensorflow_datasets as tfds  # here: pages without corpora need not wait for it

  return tfds.builder_from_directory(str(path)).as_data_source('train')


def _read(source: Any, numbers: Sequence[int]) -> list[dict]:
  found = source.__getitems__(numbers) if len(numbers) else []
  return [{k: v.decode('utf-8', 'replace') if isinstance(v, bytes) else v for k, v in r.items()}
          for r in found]


def metadata(record: dict) -> dict:
  """A record's metadata; empty where it is no JSON object."""
  try:
    value = json.loads(record.get('metadata') or '{}')
  except ValueError:
    value = None
  return value if isinstance(value, dict) else {}


def sampled(c: Corpus) -> str:
  """'' or how large the sample is, in words."""
  return f'one document in {count(c.every)}' if c.every > 1 else ''


# --- Curation: the funnel, what was thrown away, what was kept ------------------------------------


def curation(run: Any, csv: Csv) -> str:
  """The section of funnels, of examples of what was thrown away and of what was kept."""
  if not run.corpora:
    return section('curation', 'Curation', missing(
        'curated corpora', 'no manifest.json of kind “curated” under the run’s corpora/'))
  kept = [f'<h4>{text(c.name)}</h4>' + (dialogues(c, run.tokenised) or (
            '<div class="grid three">'
            f'{"".join(example(r, c, run.picture) for r in spread(c.kept))}</div>'))
          for c in run.corpora if c.kept]
  return section(
      'curation', 'Curation',
      '<p class="note">What each stage let through (solid) and what it dropped (light), with its '
      'reasons.</p>', *(funnel(c, run.tokenised, csv) for c in run.corpora),
      '<h3>What was thrown away</h3>', '<p class="note">For each reason up to '
      f'{REJECTS} documents, with the clearest place where it shows marked, if it has one.</p>',
      *(rejects(c, run.locate) for c in run.corpora),
      *(contamination(c, csv) for c in run.corpora),
      '<h3>What was kept</h3>', *(kept or [missing('examples', 'no corpus could be read')]))


def measure_of(c: Corpus, tokenised: Sequence[dict]) -> tuple[str, str, float, str]:
  """How the funnel measures text: (unit, the stages' key, factor, note)."""
  words = c.manifest.get('words')
  if not words:
    return 'characters', 'characters_out', 1.0, ''
  tokens = next((sum(s.get('tokens') or 0 for s in (m.get('splits') or {}).values())
                 for m in tokenised if m.get('name') == c.name), 0)
  if not tokens:
    return 'words', 'words_out', 1.0, 'Counted in words: the run has no tokens of this corpus.'
  return 'tokens', 'words_out', tokens / words, (
      f'Tokens: {count(tokens)} kept; those of dropped documents are taken from their words, at '
      f'{fixed(tokens / words)} tokens a word as in the kept ones.')


def funnel(c: Corpus, tokenised: Sequence[dict], csv: Csv) -> str:
  """What each stage of a pipeline let through and dropped, and why."""
  stages = c.stages
  if not stages:
    return missing(f'funnel for {text(c.name)}', 'its manifest.json lists no stages')
  unit, key, factor, note = measure_of(c, tokenised)
  start = stages[0].get('documents_in') or 0
  kept = stages[-1].get('documents_out') or 0
  rows, flat = [], []
  for s in stages:
    inn, out = s.get('documents_in') or 0, s.get('documents_out') or 0
    dropped = sorted((s.get('dropped') or {}).items(), key=lambda kv: (-kv[1], kv[0]))
    amount = s.get(key)
    amount = amount * factor if isinstance(amount, int | float) else None
    words = s.get('dropped_words') or {}
    flat += [(s.get('stage'), inn, out, s.get('characters_out'), s.get('words_out'),
              round(amount) if unit == 'tokens' and amount is not None else '', reason, n,
              words.get(reason, ''))
             for reason, n in dropped or [('', 0)]]
    whole = max(start, 1)
    why = ', '.join(f'{in_words(reason, s.get("stage"))} <b>{count(n)}</b>'
                    for reason, n in dropped[:10])
    why += f', and {len(dropped) - 10} more reasons' if len(dropped) > 10 else ''
    rows.append(
        f'<tr class="first"><td>{stage_in_words(s.get("stage"))}</td>'
        f'<td class="bar">{charts.bar(out / whole, rest=(inn - out) / whole)}</td>'
        f'<td class="num">{count(out)}</td>'
        f'<td class="num lost">{f"−{inn - out:,}" if inn > out else ""}</td>'
        f'<td class="num">{compact(amount)}</td></tr>'
        f'<tr><td></td><td colspan="4" class="why">{why}</td></tr>')
  link = csv(f'funnel_{c.name}', ('stage', 'documents_in', 'documents_out', 'characters_out',
                                  'words_out', 'tokens_out', 'reason', 'dropped',
                                  'dropped_words'), flat)
  body = ('<div class="wide"><table class="funnel"><tr><th>after</th><th></th>'
          '<th class="num">documents</th><th class="num lost">dropped</th>'
          f'<th class="num">{unit}</th></tr>{"".join(rows)}</table></div>')
  share = f' ({percent(kept / start, 0)})' if start else ''
  title = f'{text(c.name)}: {count(start)} documents in, {count(kept)} kept{share}'
  return figure(title, body, link, note)


def in_words(reason: Any, stage: Any) -> str:
  """A reason in words; what it is called in files and commands shows under the pointer."""
  name = str(reason or '')
  return f'<span title="{text(name)}">{text(reasons.reason(name, str(stage or "")))}</span>' * bool(
    name)


def stage_in_words(stage: Any) -> str:
  """Likewise a stage."""
  return f'<span title="{text(stage)}">{text(reasons.stage(str(stage or "")))}</span>'


def spread(records: list[dict]) -> list[dict]:
  """A few examples from along the list."""
  return records[:: max(1, len(records) // EXAMPLES)][:EXAMPLES]


def quote(record: dict, limit: int, locate: Locate | None = None) -> str:
  """A document's words, its span marked where `locate` finds the reason, and where it is from."""
  known = metadata(record)
  where = record.get('url') or known.get('file') or known.get('path') or record.get('id') or ''
  words = marked(record, limit, locate) or f'({excerpt(known.get("error", "no text"), limit)})'
  more = known.get('duplicate_of')
  more = f' duplicate of {excerpt(more, 60)}' if more else ''
  return f'<blockquote dir="auto">{words}<cite>{excerpt(where, 120)}{more}</cite></blockquote>'


def example(record: dict, c: Corpus, picture: Picture | None) -> str:
  """A kept document, above its first page where it has pages that can still be drawn."""
  png = picture and picture(metadata(record), c.manifest.get('inputs') or [])
  if not png:
    return quote(record, 420)
  data = base64.b64encode(png).decode()
  return (f'<div>{quote(record, 420)}<img alt="its first page" style="max-width:100%" '
          f'src="data:image/png;base64,{data}"></div>')


def dialogues(c: Corpus, tokenised: Sequence[dict]) -> str:
  """Conversations of each mode as the model reads them, what it learns to write marked; '' for a
  corpus of documents."""
  modes = collections.defaultdict(list)
  for r in c.kept:
    if (known := metadata(r)).get('conversation'):
      modes[str(known.get('mode'))].append((r, known['conversation']))
  if not modes:
    return ''
  user = any(m.get('config', {}).get('train_user') for m in tokenised
             if c.name in [i.get('name') for i in m.get('inputs') or []])
  quotes = []
  for mode, found in sorted(modes.items()):
    for r, conversation in spread(found):
      try:
        answers = ('chosen', 'rejected') if 'rejected' in conversation else ('',)
        body = ''.join(
          f'<p><b>{answer}</b></p>' * bool(answer)
          + dialogue(*chat.render_document(
            conversation, r['id'], train_user=user, rejected=answer == 'rejected'))
          for answer in answers)
      except (ValueError, TypeError, KeyError, AttributeError) as e:  # of others, or damaged
        body = f'(cannot be rendered: {excerpt(e, _CHARS)})'
      quotes.append(f'<blockquote dir="auto">{body}<cite>{text(mode)} · '
                    f'{excerpt(r.get("id", ""), 60)}</cite></blockquote>')
  return ('<p class="note">As the chat template renders them; marked is what the model learns to '
          f'write. Long parts are shortened.</p><div class="grid">{"".join(quotes)}</div>')


def dialogue(rendered: chat.Rendered, prompt: chat.Rendered | None) -> str:
  """A rendered conversation, the spans that are learned marked: of a pair's, behind the prompt."""
  known, at, parts = len(prompt.text) if prompt else 0, 0, []
  for start, end in [*rendered.spans, (len(rendered.text), len(rendered.text))]:
    start = min(max(start, known), end)
    for stop, form in ((start, '{}'), (end, '<mark>{}</mark>')):
      if words := rendered.text[at:stop]:
        short = words if len(words) <= _TURN else (
          f'{words[: _TURN // 2]} … {words[-_TURN // 2 :]}')
        parts.append(form.format(text(short)))
      at = stop
  return f'<div style="white-space:pre-wrap">{"".join(parts)}</div>'


def marked(record: dict, limit: int, locate: Locate | None) -> str:
  """The head of a document, or what surrounds the span of its reason, which is marked."""
  words = record.get('text', '')
  span = locate(str(record.get('reason', '')), words, metadata(record)) if locate else None
  if not span:
    return excerpt(words, limit)
  start, end = span
  left = max(0, min(start - limit // 4, len(words) - limit))
  stop = max(left + limit, min(end, start + limit))
  flat = lambda s: text(' '.join(s.split()))
  gap = lambda s: ' ' if s[:1].isspace() else ''
  back = lambda s: ' ' if s[-1:].isspace() else ''
  before, inside, after = words[left:start], words[start:min(end, stop)], words[end:stop]
  return (f'{"… " if left else ""}{flat(before)}{back(before)}<mark>{flat(inside)}'
          f'{" …" if end > stop else ""}</mark>{gap(after)}{flat(after)}'
          f'{" …" if end <= stop < len(words) else ""}')


def rejects(c: Corpus, locate: Locate | None) -> str:
  """A few documents for each reason, from the rejects corpus."""
  if not c.examples:
    return missing(f'rejected documents of {text(c.name)}', 'no readable rejects corpus beside it')
  groups = collections.defaultdict(list)
  for r in c.examples:
    groups[r.get('stage', ''), r.get('reason', '')].append(r)
  counts = {(s.get('stage'), k): n for s in c.stages for k, n in (s.get('dropped') or {}).items()}
  ranked = sorted(groups, key=lambda k: (-counts.get(k, len(groups[k])), k))
  out, shown = [], False  # the first group with something marked is open
  for key in ranked:
    chosen = groups[key][:REJECTS]
    head = next((r for r in chosen if r.get('text')), chosen[0])
    quotes = ''.join(quote(r, _CHARS, locate) for r in chosen)
    show, shown = not shown and '<mark>' in quotes, shown or '<mark>' in quotes
    out.append(f'<details class="reject"{" open" if show else ""}><summary>'
               f'<b>{in_words(key[1], key[0]) or "no reason"}</b>'
               f'<small>{stage_in_words(key[0])} · '
               f'{count(counts.get(key, len(groups[key])))}</small>'
               f'<span dir="auto">{excerpt(head.get("text", ""), 160)}</span></summary>'
               f'<p class="note">In files and commands: <code>{text(key[1])}</code>.</p>'
               f'<div class="grid">{quotes}</div></details>')
  return f'<h4>{text(c.name)}</h4>{"".join(out)}'


def contamination(c: Corpus, csv: Csv) -> str:
  """What was removed because it quotes evaluation sets, and which of their items; '' if nothing."""
  dropped = {k: n for s in c.stages if s.get('stage') == 'decontaminate'
             for k, n in (s.get('dropped') or {}).items()}
  if not dropped:
    return ''
  seen = {r.get('id'): r for r in [*c.examples, *c.rejects] if r.get('stage') == 'decontaminate'}
  quotes = [(q.get('set', ''), q.get('item', ''), q.get('words', ''), key, r.get('url', ''))
            for key, r in sorted(seen.items()) for q in metadata(r).get('contaminated') or []]
  link = csv(f'contamination_{c.name}', ('set', 'item', 'words', 'document', 'url'), quotes)
  rows = []
  for name, n in sorted(dropped.items(), key=lambda kv: (-kv[1], kv[0])):
    of_name = [q for q in quotes if q[0] == name]
    items = collections.Counter(q[1] for q in of_name).most_common(3)
    words = {q[1]: q[2] for q in reversed(of_name)}
    rows.append((text(name), count(n), count(len({q[1] for q in of_name})), '<br>'.join(
      f'item {text(item)}: “{excerpt(words[item], 120)}”' for item, _ in items)))
  some = f'items and words from {count(len(seen))} of {count(sum(dropped.values()))} documents'
  return figure(f'{text(c.name)}: documents that quote evaluation sets',
                table(('evaluation set', 'documents removed', 'items quoted', 'most quoted'), rows),
                link, some)


# --- Corpus: sizes, languages, lengths, domains, tokens, diversity --------------------------------


def corpus(run: Any, csv: Csv) -> str:
  """The section of sizes, lengths, domains and languages of all corpora."""
  rows, plots, domain_rows, language_rows, varied = [], [], [], [], []
  for i, c in enumerate(run.corpora):
    m = c.manifest
    languages = sorted((m.get('languages') or {}).items(), key=lambda kv: -kv[1])
    known = sum(n for _, n in languages) or 1
    language_rows += [(c.name, k or 'unknown', n, n / known, i) for k, n in languages[:12]]
    lengths = [len(r.get('text', '')) for r in c.kept]
    rows.append((text(c.name),
                 ', '.join(f'{text(k) or "unknown"} {percent(n / known)}'
                           for k, n in languages[:4]) or '–',
                 count(m.get('documents')), count(m.get('words')), compact(m.get('characters')),
                 compact(round(statistics.median(lengths))) if lengths else '–'))
    bins = charts.log_histogram(lengths)
    if bins:
      of = sampled(c) or 'all documents'
      plots.append(figure(f'Length of documents, {text(c.name)}',
                          charts.histogram(bins, label=f'Length of documents, {c.name}',
                                           x_label='characters', color=i),
                          csv(f'lengths_{c.name}', ('from', 'to', 'documents'), bins), of))
    domains = collections.Counter(h for r in c.kept if (h := diversity.host(r.get('url', ''))))
    domain_rows += [(c.name, h, n, n / len(c.kept), i) for h, n in domains.most_common(DOMAINS)]
    varied.append(variety(c, i, csv))
  parts = [table(('corpus', 'languages', 'documents', 'words', 'characters', 'median length'),
                 rows, words=2)] if rows else [
      missing('statistics', 'no curated corpus was found')]
  parts.append(token_table(run.tokenised))
  parts.append(f'<div class="grid">{"".join(plots)}</div>')
  if len(language_rows) > len(run.corpora):  # one language each is said in the table
    parts.append(figure('Languages', shares(('language', 'corpus'), language_rows),
                        csv('languages', ('corpus', 'language', 'documents', 'share'),
                            [r[:4] for r in language_rows]),
                        'share of the kept documents of the same corpus'))
  if domain_rows:
    some = [sampled(c) for c in run.corpora if sampled(c)]
    parts.append(figure('Most frequent domains', shares(('domain', 'corpus'), domain_rows),
                        csv('domains', ('corpus', 'domain', 'documents', 'share'),
                            [r[:4] for r in domain_rows]),
                        'share of the documents of the same corpus'
                        + (f', from {some[0]}' if some else '')))
  return section('corpus', 'Corpus', *parts, *varied)


def shares(head: Sequence[str], rows: Sequence[tuple]) -> str:
  """(corpus, name, n, share, colour) as bars."""
  most = max(share for *_, share, _ in rows)
  return table((*head, '', 'share'),
               [(text(k), text(name), charts.bar(share / most, color=i), percent(share))
                for name, k, _, share, i in rows], words=2, kind='bars')


def token_table(tokenised: Sequence[dict]) -> str:
  """Tokens and bytes per token of every split of the tokenised corpora."""
  rows = [(text(m.get('name')), text(split), count(s.get('documents')),
           compact(s.get('tokens')), compact(s.get('bytes')),
           fixed(s['bytes'] / s['tokens']) if s.get('bytes') and s.get('tokens') else '–')
          for m in tokenised for split, s in (m.get('splits') or {}).items()]
  if not rows:
    return missing('bytes per token', 'no manifest.json of kind “tokenised” in the run')
  vocab = count(tokenised[0].get('vocab_size'))
  return f'<h3>Tokens</h3><p class="note">A vocabulary of {vocab}.</p>' + table(
      ('corpus', 'split', 'documents', 'tokens', 'bytes', 'bytes per token'), rows, words=2)


def variety(c: Corpus, color: int, csv: Csv) -> str:
  """Diversity before and after each stage, topics, and the sizes of clusters."""
  names, places = filters_of(c)
  documents = [(r, len(names)) for r in c.kept] + [
      (r, places[key]) for r in c.rejects
      if (key := (r.get('stage'), metadata(r).get('rule'))) in places
      or (key := (r.get('stage'), None)) in places]
  if not c.kept or not names:
    return ''
  points, topics = diversity.measure(
      [r for r, _ in documents], [fate for _, fate in documents], names)
  of = f'From a sample of {sampled(c)}, and so with fewer repeats than there are. ' if sampled(
      c) else ''
  fields = ('documents', 'domains', 'topics', 'novelty', 'duplicated')
  parts = [f'<h3>Diversity, {text(c.name)}</h3>', figure(
      'Before and after each filter', table(
          ('after', 'documents', 'domains', 'topics', 'new 5-grams', 'near duplicates'),
          [(stage_in_words(p.stage) if p.stage else 'what came in', count(p.documents),
            fixed(p.domains, 1), fixed(p.topics, 1), percent(p.novelty),
            percent(p.duplicated)) for p in points]),
      csv(f'diversity_{c.name}', ('after', *fields),
          [(p.stage, *(getattr(p, f) for f in fields)) for p in points]),
      of + 'Domains and topics as effective numbers, exp of the entropy over documents; new '
      '5-grams are the distinct ones of all; near duplicates the documents that resemble another '
      'one still there. Dropped documents count with the text they had.')]
  if topics:
    most = max(max(t.before, t.after) for t in topics) or 1
    parts.append(figure(
        'Topics', table(('telling words', '', 'kept', 'before'),
                        [(text(', '.join(t.words)),
                          charts.bar(t.after / most, color=color, mark=t.before / most),
                          percent(t.after), percent(t.before)) for t in topics], kind='bars'),
        csv(f'topics_{c.name}', ('words', 'before', 'after'),
            [(' '.join(t.words), t.before, t.after) for t in topics]),
        'Clusters of documents by their words. The bar is the share of the kept documents, the '
        'line that of all that came in.'))
  return ''.join(parts) + clusters(c, color, csv)


def filters_of(c: Corpus) -> tuple[list[str], dict[tuple[str, str | None], int]]:
  """The stages' names, the rules one by one, and the place of each (stage, rule) among them."""
  config = c.manifest.get('config')
  rules = config.get('filters') if isinstance(config, dict) else None
  rules = rules if isinstance(rules, list) else []
  names, places = [], {}
  for s in c.stages:
    stage = str(s.get('stage'))
    for rule in rules if stage == 'filter' else ():
      places[stage, rule] = len(names)
      names.append(f'{stage}: {rule}')
    if stage != 'filter' or not rules:
      names.append(stage)
    places[stage, None] = len(names) - 1
  return names, places


def clusters(c: Corpus, color: int, csv: Csv) -> str:
  """How many of the documents that reached deduplication stood in clusters of which size."""
  sizes = collections.Counter()
  for r in c.kept:
    size = metadata(r).get('cluster_size', 1)
    sizes[max(0, (size - 1).bit_length()) if isinstance(size, int) else 0] += max(
        1, size if isinstance(size, int) else 1)
  total = sum(sizes.values())
  if len(sizes) < 2:
    return ''
  rows = [(f'{2 ** (k - 1) + 1}–{2**k}' if k > 1 else str(k + 1), n, n / total)
          for k, n in sorted(sizes.items())]
  most = max(share for *_, share in rows)
  return figure(
      'Clusters of duplicates, exact and near', table(
          ('size', '', 'share'), [(size, charts.bar(share / most, color=color), percent(share))
                                  for size, _, share in rows], kind='bars'),
      csv(f'clusters_{c.name}', ('size', 'documents', 'share'), rows),
      'Of the documents that reached deduplication, the share in clusters of each size; one '
      'document of each cluster was kept.')
