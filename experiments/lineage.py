"""Where documents come from, why they were kept or dropped, and what a training step saw.

  python -m experiments.lineage --workdir=runs/quickstart --document='<urn:uuid:…>'
  python -m experiments.lineage --workdir=runs/quickstart --step=120
  python -m experiments.lineage --corpus=corpora/web/1.0.0 --reason=top_2_gram [--limit=N]

A document is found by its id in a few reads: shards are hashes of ids, and sorted. A step's batch
is worked out again from the nearest checkpoint before it, by packing stored lengths; only the texts
that are printed are read. Up to ten documents of each reason are listed in the manifest of the
rejects; more of them, and the members of a cluster, need a scan of the rejects, which is said.
"""

import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags, logging
from rich.console import Console
from rich.markup import escape

from data_beam import records
from data_beam.filters import spans
from data_beam.finder import Finder
from experiments.engine import cli
from smoljax import metrics
from smoljax.data.batches import Batches, make_stages
from smoljax.data.corpus import Piece, open_corpus
from smoljax.report.workdir import find_corpora

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of a run (experiments.run --workdir), or one that holds corpora.')
_DOCUMENT = flags.DEFINE_string('document', None, 'Id of a document: tells its story.')
_STEP = flags.DEFINE_integer(
  'step', None, 'Step of the run, as metrics.jsonl counts (from 1): lists what it trained on.',
  lower_bound=1, upper_bound=2**31 - 1)
_CORPUS = flags.DEFINE_string(
  'corpus', None, 'Directory of a curated corpus, for --document or --reason.')
_REASON = flags.DEFINE_string('reason', None, 'Shows documents that were dropped for this reason.')
_LIMIT = flags.DEFINE_integer(
  'limit', 10, 'How many documents to show for a reason or a cluster.',
  lower_bound=1, upper_bound=2**31 - 1)
_CHARS = flags.DEFINE_integer(
  'chars', 300, 'How much text of each document to show.',
  lower_bound=0, upper_bound=2**31 - 1)

# Members of a cluster are looked for without being asked in rejects of up to so many records.
_SCAN = 200_000
_OUTCOMES = {'curated': 'kept', 'rejects': 'dropped', 'tokenised': 'tokenised'}

console = Console(highlight=False, soft_wrap=True)


# --- where things are ----------------------------------------------------------------------------


def finished_corpora(workdir: str) -> list[dict[str, Any]]:
  """The manifests of all finished corpora in a workdir, each once, with their 'path'."""
  return [records.read_manifest(str(path)) for path in find_corpora(pathlib.Path(workdir))
          if (path / '_SUCCESS').exists()]


def rejects_of(manifest: dict[str, Any]) -> str | None:
  """The corpus of what was dropped on the way to this one, or None."""
  path = pathlib.Path(manifest['path'])
  for folder in (path, path.resolve()):
    rejects = folder.parent.parent / f'{manifest["name"]}_rejects' / folder.name
    if (rejects / '_SUCCESS').exists():
      return str(rejects)
  return None


# --- a document ----------------------------------------------------------------------------------


def occurrences(corpora: Sequence[dict[str, Any]], document: str) -> Iterator[dict[str, Any]]:
  """What is known of a document in each corpus that has it.

  Yields dicts: manifest, split, number (of the record), file, place (in the file), record; for
  curated corpora and their rejects also stages [(stage, verdict)].
  """
  bare = document.strip('<>').removeprefix('urn:uuid:')
  ids = dict.fromkeys((document, f'<urn:uuid:{bare}>'))
  by_name = {m['name']: m for m in corpora if m['kind'] == 'curated'}
  for manifest in corpora:
    for split in manifest.get('splits', ['train']):
      with Finder(manifest['path'], split) as finder:
        for number, record in itertools.chain.from_iterable(map(finder.find, ids)):
          file, place = finder.place(number)
          occurrence = {'manifest': manifest, 'split': split, 'number': number, 'file': file,
                   'place': place, 'record': record}
          if manifest['kind'] != 'tokenised':
            parent = by_name.get(manifest['name'].removesuffix('_rejects'), manifest)
            occurrence['stages'] = verdicts(parent.get('funnel', []), record)
          yield occurrence


def verdicts(funnel: Sequence[dict[str, Any]], record: dict[str, Any]) -> list[tuple[str, str]]:
  """(stage, 'passed' or the reason) of every stage the document met."""
  met = []
  for row in funnel:
    if row['stage'] == record.get('stage'):
      return [*met, (row['stage'], record['reason'])]
    met.append((row['stage'], 'passed'))
  return met if 'stage' not in record else [*met, (record['stage'], record['reason'])]


def cluster(corpora: Sequence[dict[str, Any]], record: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """The dropped members of the record's cluster, by a scan of the rejects."""
  head = record['metadata'].get('duplicate_of', record['id'])
  for manifest in corpora:
    if manifest['kind'] == 'rejects' and manifest['documents']:
      for row in records.read_corpus(manifest['path']):
        if row['metadata'].get('duplicate_of') == head:
          yield row


def print_document(corpora: Sequence[dict[str, Any]], document: str) -> None:
  """Prints all there is to know of a document.

  Raises:
    ValueError: no corpus has it.
  """
  found = list(occurrences(corpora, document))
  if not found:
    names = ', '.join(m['name'] for m in corpora)
    raise ValueError(f'no document {document!r} in {names}: give an id as the corpora have it')
  for occurrence in found:
    manifest, record = occurrence['manifest'], occurrence['record']
    title = f'[bold]{_OUTCOMES[manifest["kind"]]}[/bold] in {escape(manifest["name"])}'
    console.print(f'{title}, record {occurrence["number"]:,} of {occurrence["split"]}: '
                  f'{escape(occurrence["file"])} at {occurrence["place"]:,}')
    if manifest['kind'] == 'tokenised':
      tokens = len(record['tokens']) // (2 if manifest['dtype'] == '<u2' else 4)
      _print_field(
        'tokens', f'{tokens:,} of {record["num_bytes"]:,} bytes, by {manifest["tokenizer"]}')
      continue
    print_record(record, manifest)
    _print_field('stages', ' → '.join(
      f'{stage} {"✓" if verdict == "passed" else f"✗ {verdict}"}'
      for stage, verdict in occurrence['stages']))
    print_cluster(corpora, record)
    console.print()


def print_record(record: dict[str, Any], manifest: dict[str, Any]) -> None:
  """Prints one curated or dropped document."""
  metadata = record['metadata']
  _print_field('id', record['id'])
  _print_field('url', record['url'])
  _print_field('date', record['date'])
  for file, offset in (('warc_file', 'warc_offset'), ('table', 'row'), ('file', None),
                       ('archive', 'path'), ('path', None)):
    if metadata.get(file) is not None:
      inputs = [f['path'] for f in manifest.get('inputs', [])
                if os.path.basename(f['path']) == os.path.basename(str(metadata[file]))]
      at = f' at {metadata[offset]}' if offset and metadata.get(offset) is not None else ''
      _print_field('from', f'{inputs[0] if len(inputs) == 1 else metadata[file]}{at}')
      break
  if record['language']:
    _print_field('language', f'{record["language"]} ({record["language_score"]:.2f})')
  if record['quality'] == record['quality']:
    _print_field('quality', f'{record["quality"]:.3f}')
  for quote in metadata.get('contaminated', ()):
    _print_field('quotes', f'item {quote["item"]} of {quote["set"]}: “{quote["words"]}”')
  rest = {k: v for k, v in metadata.items()
          if k not in ('warc_file', 'warc_offset', 'contaminated')}
  _print_field('metadata', json.dumps(rest, ensure_ascii=False) if rest else '')
  text = record['text']
  _print_field('text', f'{len(text):,} characters, {len(text.split()):,} words')
  console.print(f'            {excerpt(text, record, _CHARS.value)}')


def excerpt(text: str, record: dict[str, Any], chars: int) -> str:
  """The head of a text, or what surrounds the span its reason marks, in rich's markup."""
  span = spans.find(record.get('reason', ''), text, record['metadata'])
  start, end = span or (0, 0)
  left = max(0, min(start - chars // 4, len(text) - chars))
  stop = max(left + chars, min(end, start + chars))
  flat = lambda s: escape(re.sub(r'\s*\n\s*', ' ⏎ ', s))
  middle = min(end, stop)
  out = '… ' * (left > 0) + flat(text[left:start])
  out += f'[reverse]⟦{flat(text[start:middle])}⟧[/reverse]' if span else ''
  return out + flat(text[middle if span else left:stop]) + ' …' * (stop < len(text))


def print_cluster(corpora: Sequence[dict[str, Any]], record: dict[str, Any]) -> None:
  """Prints the duplicates of a document."""
  metadata = record['metadata']
  size = max(metadata.get('cluster_size', 1), metadata.get('copies', 1))
  if other := metadata.get('duplicate_of'):
    kept = any(s['manifest']['kind'] == 'curated' for s in occurrences(corpora, other))
    later = 'was kept' if kept else 'was dropped later on'
    _print_field('cluster', f'a duplicate of {other}, which {later}')
  elif size <= 1:
    return
  else:
    _print_field('cluster', f'stands for {size:,} documents')
  total = sum(m['documents'] for m in corpora if m['kind'] == 'rejects')
  if total > _SCAN:
    _print_field(
      '', f'(its members need a scan of {total:,} rejects, more than {_SCAN:,}: not listed)')
    return
  members = itertools.islice(cluster(corpora, record), _LIMIT.value + 1)
  for i, row in enumerate(members):
    _print_field('', 'and more, see --limit' if i == _LIMIT.value else
                 f'{row["reason"]}: {row["id"]} {row["url"]}')


def _print_field(label: str, value: str) -> None:
  if value:
    console.print(f'  [dim]{label:9}[/dim] {escape(value)}')


# --- a reason ------------------------------------------------------------------------------------


def print_reason(corpus: str, reason: str, limit: int) -> None:
  """Prints documents dropped for `reason` (REASON or STAGE/REASON) on the way to `corpus`.

  Raises:
    ValueError: nothing was dropped for it; the message lists the reasons there are.
  """
  manifest = records.read_manifest(corpus, 'curated')
  rejects = rejects_of(manifest)
  if rejects is None:
    raise ValueError(f'{corpus} has no {manifest["name"]}_rejects beside it')
  stage, _, name = reason.rpartition('/')
  counts = {(row['stage'], r): n for row in manifest['funnel'] for r, n in row['dropped'].items()}
  wanted = {key for key in counts if key[1] == name and stage in ('', key[0])}
  if not wanted:
    there = ', '.join(f'{s}/{r} ({n:,})' for (s, r), n in counts.items())
    raise ValueError(f'nothing was dropped for {reason!r}; there are: {there or "none"}')
  total = sum(counts[key] for key in wanted)
  with Finder(rejects) as finder:
    examples = finder.manifest.get('examples', {})
    numbers = sorted(n for s, r in wanted for n in examples.get(s, {}).get(r, []))
    if limit <= len(numbers) or total <= len(numbers):
      rows = map(finder.read, numbers[:limit])
    else:
      console.print(f'[dim]scanning {finder.manifest["documents"]:,} rejects[/dim]')
      rows = itertools.islice((r for r in records.read_corpus(rejects)
                               if (r['stage'], r['reason']) in wanted), limit)
    for shown, row in enumerate(rows, start=1):
      console.print(f'[bold]{shown} of {total:,}[/bold]: {row["stage"]} / {row["reason"]}')
      print_record(row, manifest)
      console.print()


# --- a step --------------------------------------------------------------------------------------


def load_batches(workdir: str) -> tuple[Batches, dict[str, Any]]:
  """The stream of batches of a run, and its resolved config.

  Raises:
    ValueError: the workdir holds no run whose tokens are still there.
  """
  root = pathlib.Path(workdir)
  if not (root / 'config.json').is_file():
    raise ValueError(f'{workdir} holds no run (no config.json): give the --workdir of a run')
  config = json.loads((root / 'config.json').read_text())
  stages = make_stages(config['train']['stages'], config['train']['steps'])
  names = sorted({name for stage in stages for name in stage.mixture})
  paths = {m['name']: m['path'] for m in finished_corpora(str(root / 'tokens'))}
  if gone := [name for name in names if name not in paths]:
    raise ValueError(f'{workdir}/tokens has no finished corpus {gone[0]!r}')
  corpora = {name: open_corpus(paths[name], 'train', name) for name in names}
  d = config['data']
  return Batches(
    corpora, stages, rows=config['train']['rows'], seq_len=d['seq_len'], window=d['window'],
    max_segments=d['max_segments'], seed=config['seed']), config


def plan_of(
  workdir: str, batches: Batches, step: int,
) -> tuple[list[tuple[str, list[Piece]]], int]:
  """([(corpus, pieces)] for each row of step `step`, the step that the search started from).

  Starts at the last checkpoint before the step that belongs to the same stream of batches, or where
  the guard's last rollback beyond the step began again.

  Raises:
    ValueError: the run has no such step.
  """
  last = batches.stages[-1].stop
  if not 1 <= step <= last:
    raise ValueError(f'no step {step}: the run has steps 1 to {last}')
  iterator, start = iter(batches), 0
  fingerprint = batches.fingerprint()
  for event in metrics.read_rows(os.path.join(workdir, 'events.jsonl')):
    if 'position' in event and event['to'] < step:  # later checkpoints from before it are gone
      iterator.set_state(event['position'])
      start = event['to']
  for folder in pathlib.Path(workdir, 'checkpoints').glob('[0-9]*'):
    try:
      state, meta = (json.loads((folder / item / 'metadata').read_text())
                     for item in ('data', 'meta'))
    except (OSError, ValueError):
      continue  # a checkpoint that is being written
    if meta.get('fingerprint') == fingerprint and start < state['step'] < step:
      iterator.set_state(state)
      start = state['step']
  for _ in range(step - 1 - start):
    iterator.next_plan()
  return iterator.next_plan(), start


def print_step(workdir: str, step: int) -> None:
  """Prints the documents of one step's global batch."""
  batches, _ = load_batches(workdir)
  plan, start = plan_of(workdir, batches, step)
  stage = next(s for s in batches.stages if s.start < step <= s.stop)
  pieces = sum(len(row) for _, row in plan)
  tokens = sum(p.length for _, row in plan for p in row)
  console.print(
    f'[bold]step {step}[/bold], stage {escape(stage.name)}: {len(plan)} rows of '
    f'{batches.seq_len} tokens, {pieces} pieces of documents, '
    f'{tokens / (len(plan) * batches.seq_len):.1%} filled '
    f'[dim](worked out from step {start})[/dim]')
  texts = {m['name']: Finder(m['path'])
           for m in finished_corpora(os.path.join(workdir, 'corpora')) if m['kind'] == 'curated'}
  for number, (name, row) in enumerate(plan):
    corpus = batches.corpora[name]
    console.print(f'row {number} [bold]{escape(name)}[/bold]')
    found = corpus.records.__getitems__([p.document for p in row])
    for piece, record in zip(row, found, strict=True):
      id_ = record['id'].decode() if isinstance(record['id'], bytes) else record['id']
      size = int(corpus.lengths[piece.document])
      part = '' if piece.length == size - 1 else f' {piece.start}–{piece.start + piece.length} of'
      source = texts[name].find(id_) if name in texts else []
      text = source[0][1] if source else {'url': '', 'text': ''}
      head = ' '.join(text['text'][:200].split())[:80]
      console.print(f'  {escape(id_)}[dim]{part} {size} tokens  {escape(text["url"])}[/dim]  '
                    f'{escape(head)}')


def main(argv: list[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  logging.set_verbosity(logging.WARNING)  # TFDS tells of every corpus it opens
  try:
    if _REASON.value is not None:
      if not _CORPUS.value:
        raise ValueError('--reason needs the --corpus that the documents were dropped from')
      print_reason(_CORPUS.value, _REASON.value, _LIMIT.value)
    elif _STEP.value is not None:
      if not _WORKDIR.value:
        raise ValueError('--step needs the --workdir of a run')
      print_step(_WORKDIR.value, _STEP.value)
    elif _DOCUMENT.value is not None:
      if _CORPUS.value:
        manifest = records.read_manifest(_CORPUS.value)
        rejects = rejects_of(manifest)
        corpora = [manifest] + ([records.read_manifest(rejects)] if rejects else [])
      elif _WORKDIR.value:
        corpora = finished_corpora(_WORKDIR.value)
      else:
        raise ValueError('--document needs a --workdir or a --corpus to look in')
      if not corpora:
        raise ValueError(f'no finished corpus in {_WORKDIR.value}')
      print_document(corpora, _DOCUMENT.value)
    else:
      raise ValueError('what about? Give --document=ID, --step=N, or --corpus=DIR --reason=R')
  except (OSError, ValueError) as e:
    sys.exit(cli.complain(e))


if __name__ == '__main__':
  cli.start(main)
