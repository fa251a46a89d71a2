"""The top of a run's page, for a reader who comes to it first: what was made, how good it is, and
what to do next."""

from smoljax.report import workdir
from smoljax.report.charts import (
  compact,
  count,
  duration,
  fixed,
  join,
  number,
  percent,
  section,
  table,
  text,
)
from smoljax.report.corpus_page import Csv
from smoljax.report.run_sections import baselines, bits, losses, metric, tasks, totals
from smoljax.report.workdir import Run

FEW = 20  # documents: fewer of them say little of a corpus


def headline(run: Run, _: Csv) -> str:
  """What was made, of what and in what time, and how good it is, beside what knows nothing."""
  total, (loss, which, unigram) = totals(run), losses(run)
  seconds = [s for s in (workdir.get(run.summary, 'seconds') or {}).values() if number(s)]
  size_of = compact(workdir.get(run.summary, 'parameters'))
  model = 'A language model' if size_of == '–' else f'A language model of {size_of} parameters'
  names = join(
    [text(c) for c in (workdir.get(run.summary, 'documents') or [c.name for c in run.corpora])]
  )
  made = f'{count(total["kept"])} {names or "text"} documents' if total['kept'] else names or 'text'
  title = f'{model}, trained on {made}' + (f' in {duration(sum(seconds))}' if seconds else '')
  device = str(workdir.get(run.summary, 'device') or '').replace(' x cpu', ' CPU devices')
  lede = f'It read {compact(total["trained"])} tokens{f" on {text(device)}" if device else ""}.'
  rows = [_surprise(text(name), row) for name, row in held_out(run)]
  if number(loss) and not rows:
    rows.append((f'{which}, in nats per token; less is better', fixed(loss),
                 f'{fixed(unigram)} by how often each token comes' if number(unigram) else ''))
  rows += [_answers(text(name), task) for name, task in tasks(run).items()]
  how_good = table(('how good it is', 'model', 'without what it learned'), [
    (what, f'<b>{value}</b>', rivals) for what, value, rivals in rows], kind='good')
  when = next((str(e['time'])[:10] for e in reversed(run.events) if e.get('time')), '')
  kicker = ' · '.join(text(x) for x in ('smoljax', workdir.get(run.config, 'name'), when) if x)
  return (f'<header><p class="kicker">{kicker}</p><h1>{title}</h1><p class="lede">{lede} '
          '<a href="#next">What to do next</a></p>' + how_good * bool(rows) + '</header>')


def held_out(run: Run) -> list[tuple[str, dict]]:
  """(corpus, its held-out figures) of the last evaluation, those of the most documents first."""
  found = [(name, row if isinstance(row, dict) else {'bpb': row}) for name, row in (
    workdir.get(run.evals, 'bits_per_byte') or bits(run)).items()]
  return sorted(((n, r) for n, r in found if number(r.get('bpb'))),
                key=lambda x: -(x[1].get('documents') or 0))


def _surprise(name: str, row: dict) -> tuple[str, str, str]:
  """Bits per byte of a corpus in words, and those of a unigram model of the same documents."""
  n = row.get('documents')
  of = f' ({count(n)} documents{": too few to say much" if n < FEW else ""})' if number(n) else ''
  said = '8 by knowing nothing'
  if number(row.get('unigram_loss')) and number(row.get('loss')) and row['loss'] > 0:
    said = (f'{fixed(row["bpb"] * row["unigram_loss"] / row["loss"])} by how often each token '
            f'comes, {said}')
  return (f'bits for each byte of {name} text that it never saw{of}; less is better',
          fixed(row['bpb']), said)


def _answers(name: str, task: dict) -> tuple[str, str, str]:
  """A task's score in words, and the best of those that know less."""
  rivals = baselines(task)
  said = ', '.join(f'{percent(rivals[who], 0)} {words}' for who, words in (
    ('the blind model', 'without the text before the answer'),
    ('chance', 'by guessing')) if who in rivals)
  of = ' (which text is the real continuation)' * (name == 'continuation')
  return (f'right answers of {count(task.get("n"))} questions in {name}{of}',
          percent(task.get(metric(task)), 0), said)


def corpora_headline(run: Run, _: Csv) -> str:
  """The title of a page about corpora without a model."""
  total = totals(run)
  names = join([text(c.name) for c in run.corpora])
  words = sum(c.manifest.get('words') or 0 for c in run.corpora)
  share = (f' of {count(total["in"])}, {percent(total["kept"] / total["in"], 0)}'
           if number(total['kept']) and total['in'] else '')
  return (f'<header><p class="kicker">smoljax · corpora</p><h1>{count(total["kept"])} documents '
          f'kept{share}</h1><p class="lede">{names}{f": {compact(words)} words" if words else ""}.'
          '</p></header>')


def flow(run: Run, _: Csv) -> str:
  """From documents in to the exported model: a number at each stage."""
  total = totals(run)
  share = (f'{percent(total["kept"] / total["in"], 0)} of them'
           if number(total['kept']) and total['in'] else '')
  first = next(iter(held_out(run)), None)
  per_second = workdir.get(run.summary, 'tokens_per_sec')
  export = run.workdir / 'export'
  boxes = [
      ('documents in', compact(total['in']), join([text(c.name) for c in run.corpora])),
      ('kept', compact(total['kept']), share),
      ('tokens', compact(total['tokens']), 'in the training corpora'),
      ('trained on', compact(total['trained']),
       f'tokens, {compact(run.metrics[-1]["step"])} steps' + (
           f', {compact(per_second)}/s' if number(per_second) else '')),
      ('evaluated', fixed(first[1]['bpb']) if first else '–',
       f'bits per byte, {text(first[0])}' + (
         f', {count(first[1]["documents"])} documents' if first[1].get('documents') else '')
       if first else 'not yet'),
      ('exported', workdir.size(export) if export.is_dir() else '–',
       'for transformers' if export.is_dir() else 'not yet')]
  items = ''.join(f'<li><span>{name}</span><b>{value}</b><small>{note}</small></li>'
                  for name, value, note in boxes)
  return f'<ol class="flow">{items}</ol>'


def next_steps(run: Run, _: Csv) -> str:
  """Commands that go on from here."""
  root, tokens = str(run.workdir), workdir.get(run.config, 'train', 'tokens')
  corpus = run.corpora[0].name if run.corpora else 'web'
  recipe = f'configs/{workdir.get(run.config, "name") or "quickstart"}.py'
  steps = (
    ('Let it write', f"python -m experiments.generate --checkpoint={root} --prompt='The'"),
    ('Train on your own documents',
     'python -m experiments.run --config=configs/quickstart.py --workdir=runs/mine '
     "--config.web.input='pages/*.html'"),
    ('Train longer, from these weights',
     f'python -m experiments.run --config={recipe} --workdir=runs/longer '
     f'--config.train.init_from={root}'
     + (f' --config.train.tokens={2 * tokens}' if number(tokens) else '')),
    ('Compare two learning rates over two seeds',
     f'python -m experiments.sweep --config={recipe} --workdir=runs/rates '
     '--grid optimizer.learning_rate=1e-3,4e-3 --seeds=2'),
    ('See why documents were dropped',
     f'python -m experiments.lineage --corpus={root}/corpora/{corpus} --reason=near_duplicate'),
    ('One file for llama.cpp',
     f'python -m experiments.export --checkpoint={root} --output=model.gguf --format=gguf'),
  )
  return section('next', 'Next steps', '<p class="note">In the folder of smoljax, after '
                 '<code>source .venv/bin/activate</code>:</p>', *(
                   f'<h4>{name}</h4><pre>{text(command)}</pre>' for name, command in steps))
