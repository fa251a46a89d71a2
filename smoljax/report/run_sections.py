"""The sections of a run's page."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from data_beam.redact import public
from smoljax.report import charts, workdir
from smoljax.report.charts import (
  Series,
  compact,
  count,
  duration,
  excerpt,
  figure,
  fixed,
  join,
  missing,
  number,
  percent,
  section,
  table,
  text,
)
from smoljax.report.corpus_page import Csv
from smoljax.report.workdir import Run

EXAMPLES = 3  # questions shown of each task


def tasks(run: Run) -> dict[str, dict]:
  """Results by task, from the last evaluation."""
  return {k: v for k, v in (workdir.get(run.evals, 'tasks') or {}).items() if isinstance(v, dict)}


def bits(run: Run) -> dict[str, float]:
  """Bits per byte by corpus, from the last evaluation or else from the summary."""
  held_out = workdir.get(run.evals, 'bits_per_byte')
  return ({k: workdir.get(v, 'bpb') for k, v in held_out.items()} if isinstance(held_out, dict)
          else dict(workdir.get(run.summary, 'bits_per_byte') or {}))


def losses(run: Run) -> tuple[float | None, str, float | None]:
  """(loss, its name, unigram loss) to compare: validation where measured, else training."""
  loss, unigram = workdir.get(run.summary, 'loss'), workdir.get(run.summary, 'loss', 'unigram')
  if number(workdir.get(loss, 'validation')):
    return loss['validation'], 'validation loss', unigram
  train = run.points('train/loss')
  return workdir.get(loss, 'final') or (train[-1][1] if train else None), 'training loss', unigram


def totals(run: Run) -> dict[str, Any]:
  """Documents in and kept, tokens in the corpora and trained on."""
  documents = workdir.get(run.summary, 'documents') or {
      c.name: {'in': workdir.get((c.manifest.get('funnel') or [{}])[0], 'documents_in'),
               'kept': c.manifest.get('documents')} for c in run.corpora}
  add = lambda xs: sum(xs) if (xs := [x for x in xs if number(x)]) else None
  tokens = dict(workdir.get(run.summary, 'tokens') or {})
  trained = tokens.pop('trained', run.metrics[-1].get('tokens') if run.metrics else None)
  return {'in': add(workdir.get(d, 'in') for d in documents.values()),
          'kept': add(workdir.get(d, 'kept') for d in documents.values()),
          'tokens': add(tokens.values()), 'trained': trained}


def training(run: Run, csv: Csv) -> str:
  """Loss, learning rate, loss by corpus, throughput."""
  loss, lr = run.points('train/loss'), run.points('optim/lr')
  unigram, stages = losses(run)[2], run.stages()
  steps = (run.metrics[0]['step'], run.metrics[-1]['step'])
  common = {'bands': stages, 'x_range': steps}
  parts = []
  if loss:
    smooth = charts.smooth(loss)
    curve = ([Series('each row', loss, 0, 'faint'), Series('smoothed', smooth, 0)]
             if len(loss) > 50 else [Series('loss', loss, 0)])
    body = charts.lines(curve + guard_marks(run, loss),
                        label='Training loss by step', y_label='nats per token', height=320,
                        x_label='' if lr else 'step',
                        rule=(f'unigram {unigram:.2f}', unigram) if number(unigram) else None,
                        **common)
    if lr:
      body += charts.lines([Series('', lr, 1, 'area')], label='Learning rate by step', height=90,
                           y_label='learning rate', from_zero=True, x_range=steps,
                           bands=[('', a, b) for _, a, b in stages])
    rows = [(r['step'], r.get('tokens'), r.get('stage'), r.get('train/loss'), r.get('optim/lr'))
            for r in run.metrics if 'train/loss' in r]
    note = f'From {fixed(loss[0][1])} to {fixed(smooth[-1][1]) if smooth else "–"} (smoothed)'
    note += f', through {join([text(s[0]) for s in stages])}.' if stages else '.'
    parts.append(figure('Loss and learning rate', body,
                        csv('loss', ('step', 'tokens', 'stage', 'loss', 'lr'), rows), note))
  else:
    parts.append(missing('loss curve', 'metrics.jsonl has no train/loss'))

  known = run.names()
  series = [s for i, name in enumerate(known) for s in (
      Series(f'{name}, training', charts.smooth(run.points(f'train/loss/{name}')), i),
      Series(f'{name}, held out', run.points(f'val/{name}/loss'), i, 'dots')) if s.points]
  grid = []
  if series:
    rows = [(r['step'], name, r.get(f'train/loss/{name}'), r.get(f'val/{name}/loss'),
             r.get(f'val/{name}/bpb')) for r in run.metrics for name in known
            if {f'train/loss/{name}', f'val/{name}/loss', f'val/{name}/bpb'} & r.keys()]
    by_corpus = csv('loss_by_corpus', ('step', 'corpus', 'train_loss', 'val_loss', 'val_bpb'), rows)
    grid.append(figure('Loss by corpus', charts.lines(
        series, label='Loss by corpus', y_label='nats per token', **common), by_corpus))
    bpb = [Series(name, run.points(f'val/{name}/bpb'), i, 'dots')
           for i, name in enumerate(known) if run.points(f'val/{name}/bpb')]
    if bpb:
      grid.append(figure('Held-out bits per byte', charts.lines(
          bpb, label='Held-out bits per byte', y_label='bits per byte', **common), by_corpus))
    parts += by_stage(run, known, csv)
  else:
    parts.append(missing('loss by corpus', 'metrics.jsonl has no train/loss/NAME or val/NAME/loss'))

  grid += other_losses(run, csv, common)
  speed, wait = run.points('perf/tokens_per_sec'), run.points('data/wait')
  rows = [(r['step'], r.get('perf/tokens_per_sec'), r.get('perf/step_time'), r.get('perf/mfu'),
           r.get('data/wait')) for r in run.metrics
          if {'perf/tokens_per_sec', 'data/wait'} & r.keys()]
  link = csv('throughput', ('step', 'tokens_per_sec', 'step_time', 'mfu', 'data_wait'),
             rows) if rows else ''
  if speed:
    middle = statistics.median(y for _, y in speed)
    mfu = [y for _, y in run.points('perf/mfu')]
    note = f'median {compact(middle)} tokens per second'
    note += f', model FLOPs utilisation {percent(statistics.median(mfu))}' if mfu else ''
    grid.append(figure('Throughput', charts.lines(
        [Series('', speed, 2)], label='Tokens per second', y_label='tokens per second',
        height=200, from_zero=True, **common), link, note))
  else:
    parts.append(missing('throughput', 'metrics.jsonl has no perf/tokens_per_sec'))
  if wait:
    grid.append(figure('Waiting for data', charts.lines(
        [Series('', wait, 3)], label='Share of time spent waiting for data', height=200,
        y_label='share of step time', from_zero=True, percent=True, **common), link,
        f'mean {percent(statistics.fmean(y for _, y in wait))} of the time'))
  return section('training', 'Training', *parts, f'<div class="grid">{"".join(grid)}</div>')


def by_stage(run: Run, names: list[str], csv: Csv) -> list[str]:
  """What each stage did to every corpus, where there were several or training went on from weights.

  A stage's mixture says what it was to raise.
  """
  train, stages = run.config.get('train', {}), run.stages()
  if len(stages) < 2 and not train.get('init_from'):
    return []
  mixtures = {s['name']: s['mixture'] for s in train.get('stages', ())}
  bits = {name: dict(run.points(f'val/{name}/bpb')) for name in names}
  rows = []
  for stage, first, last in stages:
    mixture = mixtures.get(stage, {})
    for name in names:
      if first in bits[name] and last in bits[name]:
        share = mixture.get(name, 0) / (sum(mixture.values()) or 1)
        rows.append((stage, last, name, share, bits[name][first], bits[name][last]))
  if not rows:
    return []
  link = csv('stages', ('stage', 'last_step', 'corpus', 'share', 'bpb_before', 'bpb_after'), rows)
  shown = [(text(stage), text(name), count(last), percent(share, 0), fixed(old, 3), fixed(new, 3),
            f'{new / old - 1:+.1%}' if old else '–')
           for stage, last, name, share, old, new in rows]
  head = ('stage', 'corpus', 'until step', 'of its tokens', 'before', 'after', 'change')
  return [figure('Held-out bits per byte, stage by stage', table(head, shown, words=2), link)]


def other_losses(run: Run, csv: Csv, common: dict) -> list[str]:
  """Figures of what is learned beside the next token, or that say more of it: copying, tokens
  further ahead, a teacher; conversations."""
  depths = max((len(r['mtp/loss_M']) for r in run.metrics if isinstance(r.get('mtp/loss_M'), list)),
               default=0)
  ahead = [(f'{m + 2} ahead', [(r['step'], r['mtp/loss_M'][m]) for r in run.metrics
                               if len(r.get('mtp/loss_M') or ()) > m]) for m in range(depths)]
  terms = sorted({k for r in run.metrics for k in r if k.startswith('teacher/')})
  figures = (
    ('Copying of shuffled text', 'copy', 'share of tokens guessed first', True,
     [(where, run.points(f'copy/{far}/accuracy'))
      for far, where in (('near', 'right after'), ('far', 'a window later'))]),
    ('Loss of tokens further ahead', 'ahead', 'nats per token', False,
     [('next token', run.points('train/loss')), *ahead] if ahead else []),
    ('Distance to the teacher', 'teacher', 'mean per token, before its weight', False,
     [(k.removeprefix('teacher/'), run.points(k)) for k in terms]),
    ('Loss of conversations by mode', 'modes', 'nats per learned token', False,
     [(mode, run.points(f'chat/loss/{mode}')) for mode in ('think', 'no_think')]),
    ('First guesses that are right', 'guesses', 'share of learned tokens', True,
     [(what, run.points(f'chat/{name}'))
      for name, what in (('accuracy', 'all'), ('end_accuracy', 'ends of turns'))]),
  )
  out = []
  for title, name, unit, share, of in figures:
    series = [Series(label, points if share else charts.smooth(points), i,
                     'dots' if share else 'line') for i, (label, points) in enumerate(of) if points]
    if series:
      link = csv(name, ('step', 'of', 'value'), [(x, label, y) for label, xy in of for x, y in xy])
      out.append(figure(title, charts.lines(series, label=title, y_label=unit, height=200,
                                            from_zero=share, percent=share, **common), link))
  return out


def guard_decisions(run: Run) -> list[dict]:
  """The guard's decisions, each once: a run that was killed may have taken them again."""
  unique = {}
  for e in run.events:
    if e.get('event') == 'guard' and number(e.get('step')):
      untimed = {k: v for k, v in e.items() if k != 'time'}
      unique.setdefault(json.dumps(untimed, sort_keys=True), e)
  return list(unique.values())


def guard_marks(run: Run, curve: Sequence[tuple[float, float]]) -> list[Series]:
  """The guard's decisions as dots on a curve: skips, and what is above them on the ladder."""
  def at(step: float) -> tuple[float, float]:
    return step, min(curve, key=lambda point: abs(point[0] - step))[1]

  kinds = {'skipped': lambda a: a == 'skip', 'rolled back or stopped': lambda a: a != 'skip'}
  events = guard_decisions(run)
  series = [Series(name, [at(e['step']) for e in events if is_kind(e.get('action'))], 4 + i, 'dots')
            for i, (name, is_kind) in enumerate(kinds.items())]
  return [s for s in series if s.points]


def stability(run: Run, csv: Csv) -> str:
  """What the guard did, how large gradients and updates are, and what the last probe saw."""
  norm, events = run.points('grad/norm'), guard_decisions(run)
  parts = []
  if events:
    def broken(e: dict) -> str:
      rules = e['broken'] if isinstance(e.get('broken'), list) else [e]
      return '; '.join(f'{text(r.get("rule"))} {text(r.get("statistic"))} against '
                       f'{text(r.get("threshold"))}' for r in rules if isinstance(r, dict))

    def then(e: dict) -> str:
      named = e.get('documents') if isinstance(e.get('documents'), dict) else {}
      documents = sum(len(ids) for ids in named.values() if isinstance(ids, list))
      return (f'to step {count(e["to"])}, {count(e.get("batches_left_out"))} batches left out, '
              f'learning rate × {text(e.get("lr_scale"))}' if 'to' in e else
              f'{count(documents)} documents, named in events.jsonl' if documents else '')

    skips = sum(e.get('action') == 'skip' for e in events)
    parts.append(f'<h3>The guard</h3><p class="note">Steps not taken: {count(skips)}. '
                 f'Rollbacks and stops: {count(len(events) - skips)}.</p>' + table(
                   ('decision', 'because of', 'then', 'step'),
                   [(text(e.get('action')), broken(e), then(e), count(e['step']))
                    for e in events[:100]], words=3))
  if norm:
    link = csv('gradients', ('step', 'grad_norm'), norm)
    grid = [figure('Gradient norm', charts.lines(
      [Series('norm', norm, 1), *guard_marks(run, norm)], label='Gradient norm by step', height=200,
      y_label='global norm', from_zero=True), link)]
    names = sorted({k.removeprefix('update_ratio/') for r in run.metrics for k in r
                    if k.startswith('update_ratio/')})
    if names:
      rows = [(r['step'], n, *(r.get(f'{k}/{n}') for k in LEAF_METRICS)) for r in run.metrics
              for n in names if f'update_ratio/{n}' in r]
      matrices = [n for n in names if n.startswith('blocks/') and 'norm' not in n][:6]
      grid.append(figure('Update over parameter', charts.lines(
        [Series(leaf_name(n), run.points(f'update_ratio/{n}'), i)
         for i, n in enumerate(matrices or names[:6])],
        label='RMS of the update over that of the parameter', height=200, y_label='ratio of RMS',
        from_zero=True), csv('leaves', ('step', 'leaf', *LEAF_METRICS), rows)))
    if noise := noise_scale(run):
      grid.append(figure('Gradient noise scale', charts.lines(
        [Series('', noise, 3)], label='Gradient noise scale by step', height=200,
        y_label='tokens', from_zero=True), csv('noise', ('step', 'noise_scale'), noise),
        'a batch far below it is mostly noise'))
    spectra = [Series(tree, points, i) for i, tree in enumerate(('weights', 'updates'))
               if (points := spectral_entropy(run, tree))]
    if spectra:
      grid.append(figure('Entropy of singular values', charts.lines(
        spectra, label='Entropy of the matrices’ squared singular values', height=200,
        y_label='share of the largest possible', from_zero=True),
        csv('spectra', ('step', 'of', 'entropy'),
            [(step, s.label, y) for s in spectra for step, y in s.points])))
    parts.append(f'<div class="grid">{"".join(grid)}</div>')
  probes = [r for r in run.metrics if isinstance(r.get('eff_rank_L'), list)]
  parts += feature_health(probes, csv)
  if probes:
    probe = probes[-1]
    columns = [(words, probe[k]) for k, words in PROBE_BY_LAYER.items()
               if isinstance(probe.get(k), list)]
    layers = list(zip(*(values for _, values in columns), strict=False))
    one = ', '.join(
      f'{words} {fixed(probe[k], 3)}' for k, words in PROBE_OF_ALL.items() if k in probe)
    parts.append(figure(f'Layers at step {count(probe["step"])}', table(
      ('layer', *(words for words, _ in columns)),
      [(count(i), *(fixed(x) for x in row)) for i, row in enumerate(layers)]),
      csv('layers', ('layer', *(words for words, _ in columns)),
          [(i, *row) for i, row in enumerate(layers)]), f'Of all layers: {one}.' if one else ''))
  return section('stability', 'Stability', *parts) if parts else ''


# Beyond which a probe says that features collapse.
COSINE, RANK_LEFT, DEAD = 0.9, 0.2, 0.5
COLLAPSES = {
  'Tokens point one way': f'two tokens’ hidden states have a mean cosine above {COSINE}: the '
    'residual stream carries one direction. Lower the learning rate of embedding and head, warm up '
    'longer, let no weight decay act on the norms, or give the mean cosine a weight in the loss '
    '(--config.train.cos_reg=1).',
  'Rank is lost': f'the effective rank is below {percent(RANK_LEFT, 0)} of what it had been: few '
    'directions are in use. Lower the learning rate, raise weight decay, or use Muon, whose '
    'updates are of full rank.',
  'Units are dead': f'more than {percent(DEAD, 0)} of the hidden units react to nothing: lower the '
    'learning rate, or choose --config.model.activation=swiglu.',
}


def collapses(probes: Sequence[dict]) -> dict[str, tuple[int, int | None]]:
  """Name of a collapse → the step it was first seen at and the layer (None: all)."""
  found: dict[str, tuple[int, int | None]] = {}
  most: list[float] = []
  for r in probes:
    rank_L = r['eff_rank_L']
    most = [max(a, b) for a, b in zip(most or rank_L, rank_L, strict=True)]
    lost = [i for i, (x, before) in enumerate(zip(rank_L, most, strict=True))
            if x < RANK_LEFT * before]
    dead = [i for i, x in enumerate(r.get('dead_frac_L') or ()) if x > DEAD]
    for name, layers in (('Tokens point one way', [None] if r.get('token_cos', 0) > COSINE else []),
                         ('Rank is lost', lost), ('Units are dead', dead)):
      if layers:
        found.setdefault(name, (r['step'], layers[0]))
  return found


def feature_health(probes: Sequence[dict], csv: Csv) -> list[str]:
  """Whether features are learned: effective rank by layer over training, cosine, dead units."""
  if len(probes) < 2:
    return []
  parts = [
    f'<p class="warning"><b>{name}</b> from step {count(step)}'
    f'{"" if layer is None else f" in layer {layer}"}: {COLLAPSES[name]}</p>'
    for name, (step, layer) in collapses(probes).items()]
  layers = range(len(probes[0]['eff_rank_L']))
  shown = sorted({round(i * (len(layers) - 1) / 3) for i in range(4)})
  rank = [Series(f'layer {i}', [(r['step'], r['eff_rank_L'][i]) for r in probes], j)
          for j, i in enumerate(shown)]
  cosine = [(r['step'], r['token_cos']) for r in probes if number(r.get('token_cos'))]
  dead = [(r['step'], max(r['dead_frac_L'])) for r in probes if r.get('dead_frac_L')]
  moved = [r for r in probes if r.get('move_L')]
  link = csv('features', ('step', *(f'eff_rank_{i}' for i in layers), 'token_cos',
                          *(f'move_{i}' for i in layers if moved)),
             [(r['step'], *r['eff_rank_L'], r.get('token_cos', ''), *r.get('move_L', ()))
              for r in probes])
  grid = [figure('Effective rank', charts.lines(
    rank, label='Effective rank of the residual stream by layer', y_label='dims in use', height=200,
    from_zero=True), link)]
  if moved:
    grid.append(figure('How far a step moves the residual stream', charts.lines(
      [Series(f'layer {i}', [(r['step'], r['move_L'][i]) for r in moved], j)
       for j, i in enumerate(shown)], label='Change of hidden states by a step, by layer',
      y_label='‖Δh‖/‖h‖ of fixed rows', height=200, from_zero=True), link))
  for title, points in (('Mean cosine of two tokens', cosine), ('Dead units, worst layer', dead)):
    if points:
      grid.append(figure(title, charts.lines(
        [Series('', points, 2)], label=title, y_label='', height=200, from_zero=True), link))
  return [*parts, f'<div class="grid">{"".join(grid)}</div>']


# Parts of a leaf's path → what a reader calls them.
_PARTS = {
  'attn': 'attention', 'mlp': 'MLP', 'q': 'queries', 'k': 'keys', 'v': 'values', 'o': 'output',
  'gate': 'gate', 'up': 'up', 'down': 'down', 'embed': 'embedding', 'unembed': 'unembedding',
}


def leaf_name(path: str) -> str:
  """'blocks/attn/q_DNH' → 'attention queries'; what is no matrix of a block stays as it is."""
  parts = path.split('/')
  words = [_PARTS.get(part.split('_')[0]) for part in parts[1:]]
  return ' '.join(filter(None, words)) if parts[0] == 'blocks' and all(words) else path


def noise_scale(run: Run, decay: float = 0.9) -> list[tuple[float, float]]:
  """tr Σ / |G|² by step, both averaged over rows before the ratio; left out where |G|² ≤ 0."""
  trace = square = 0.0
  points = []
  for row in run.metrics:
    if number(row.get('noise_trace')) and number(row.get('grad_sq')):
      trace = decay * trace + (1 - decay) * row['noise_trace']
      square = decay * square + (1 - decay) * row['grad_sq']
      if square > 0:
        points.append((row['step'], trace / square))
  return points


def spectral_entropy(run: Run, tree: str) -> list[tuple[float, float]]:
  """Mean over all leaves of `svd_entropy/TREE/LEAF_METRICS` by step."""
  found = [(r['step'], [x for k, x in r.items() if k.startswith(f'svd_entropy/{tree}/')
                        and number(x)]) for r in run.metrics]
  return [(step, statistics.fmean(values)) for step, values in found if values]


LEAF_METRICS = ('grad_norm', 'update_rms', 'param_rms', 'update_ratio')
PROBE_BY_LAYER = {
  'resid_rms_L': 'residual RMS', 'act_kurtosis_L': 'kurtosis (3: Gaussian)',
  'eff_rank_L': 'effective rank', 'dead_frac_L': 'dead units, share',
  'gate_sat_L': 'saturated gates, share', 'attn/max_logit_L': 'largest logit',
  'attn/entropy_L': 'entropy of attention, nats',
}  # fmt: skip
PROBE_OF_ALL = {
  'token_cos': 'mean cosine of two tokens', 'grad_cos': 'cosine of micro-batches',
  'logit_max': 'largest final logit',
}  # fmt: skip


def evaluation(run: Run, csv: Csv) -> str:
  """Held-out text, calibration, tasks with their baselines, some questions."""
  if not run.evals:
    return section('evaluation', 'Evaluation', missing('evaluation', 'evals/ holds no STEP.json'))
  held_out = sorted(
    ((k, v) for k, v in (run.evals.get('bits_per_byte') or {}).items() if isinstance(v, dict)),
    key=lambda x: -(x[1].get('documents') or 0))  # what is measured best, first
  parts = [f'<p class="note">At step {count(run.evals.get("step"))}.</p>']
  if held_out:
    gap = lambda v: (v['unigram_loss'] - v['loss']
                     if number(v.get('unigram_loss')) and number(v.get('loss')) else None)
    parts.append('<h3>Held-out documents</h3>' + table(
        ('corpus', 'bits per byte', 'loss', 'unigram', 'below unigram', 'documents', 'tokens'),
        [(text(k), f'<b>{fixed(v.get("bpb"), 3)}</b>', fixed(v.get('loss')),
          fixed(v.get('unigram_loss')), fixed(gap(v)), count(v.get('documents')),
          count(v.get('tokens'))) for k, v in held_out]))
    by_language = [(k, language, x) for k, v in held_out
              for language, x in (workdir.get(v, 'languages') or {}).items()]
    if by_language:
      parts.append(figure('Bits per byte by language', table(
        ('corpus', 'language', 'bits per byte'),
        [(text(k), text(language or '?'), fixed(x, 3)) for k, language, x in by_language], words=2),
        csv('languages', ('corpus', 'language', 'bits_per_byte'), by_language)))
  parts += [student_and_teacher(run, csv),
            f'<div class="grid">{"".join(calibration(run, csv))}</div>']
  if copied := workdir.get(run.evals, 'copy'):
    parts.append('<p class="note">Of a shuffled passage it guesses ' + ' and '.join(
      f'{percent(workdir.get(v, "accuracy"))} of the tokens {words}' for far, words in
      (('near', 'when it is repeated at once'), ('far', 'at the other end of its window'))
      if (v := copied.get(far))) + '.</p>')
  for name, t in tasks(run).items():
    blind = t.get('blind') if isinstance(t.get('blind'), dict) else {}
    chance = t.get('chance') or None  # 0: there is nothing to choose from
    main = metric(t)
    scores = [(f'with context, {SCORES[main]}', t.get(main), t.get('stderr'), 0),
              *((f'with context, {SCORES[k]}', t.get(k), None, 0) for k in SCORES if k != main),
              *((f'blind, {SCORES[k]}', blind.get(k), None, 5) for k in SCORES),
              ('always the longest choice', t.get('longest') if chance else None, None, 5),
              ('chance', chance, None, 5)]
    scores = [s for s in scores if number(s[1])]
    parts.append(figure(
        f'{text(name)}, {count(t.get("n"))} questions', table(('', '', 'accuracy'), [
            (label, charts.bar(value, color=color, error=error or 0.0, mark=chance),
             f'<b>{percent(value)}</b>' if i == 0 else percent(value))
            for i, (label, value, error, color) in enumerate(scores)], kind='bars'),
        csv(f'task_{name}', ('score', 'accuracy', 'stderr'), [s[:3] for s in scores]),
        verdict(t) + ' The line marks chance.' * bool(chance)))
    shown = [e for e in t.get('examples') or [] if isinstance(e, dict)]
    right = [e for e in shown if e.get('predicted') == e.get('answer')]
    wrong = [e for e in shown if e.get('predicted') != e.get('answer')]
    parts += [question(e) for e in (right[:2] + wrong)[:EXAMPLES]]
  if not tasks(run):
    parts.append(missing('task', 'the evaluation file lists none'))
  return section('evaluation', 'Evaluation', *parts)


def student_and_teacher(run: Run, csv: Csv) -> str:
  """Student against teacher, where the evaluation has one: bits per byte, calibration, copying."""
  def figures(of: object) -> dict[str, float]:
    bits = workdir.get(of, 'bits_per_byte') or {}
    return {
      f'{name}, {words}': workdir.get(v, key)
      for name, v in bits.items()
      for key, words in (('bpb', 'bits per byte'), ('ece', 'calibration error'))
    } | {
      f'copying, {far}': workdir.get(v, 'accuracy')
      for far, v in (workdir.get(of, 'copy') or {}).items()
    }

  student, teacher = figures(run.evals), figures(run.evals.get('teacher'))
  rows = [(k, x, teacher[k]) for k, x in student.items() if number(x) and number(teacher.get(k))]
  if not rows:
    return ''
  body = [(text(k), f'<b>{fixed(x, 3)}</b>', fixed(y, 3), f'{x - y:+.3f}') for k, x, y in rows]
  return figure('Student against teacher', table(('', 'student', 'teacher', 'difference'), body),
                csv('student_teacher', ('of', 'student', 'teacher'), rows))


def calibration(run: Run, csv: Csv) -> list[str]:
  """How often the likeliest token came against the probability it was given, of each corpus."""
  out = []
  for name in workdir.get(run.evals, 'bits_per_byte') or {}:
    of = {'the model': run.evals, 'its teacher': run.evals.get('teacher')}
    bins = {
      who: workdir.get(e, 'bits_per_byte', name, 'calibration') or [] for who, e in of.items()
    }
    rows = [(who, *b) for who, all_ in bins.items() for b in all_ if b[0]]
    if not rows:
      continue
    series = [Series('perfect', [(0, 0), (1, 1)], 5)] + [
      Series(who, [(p, hit) for n, p, hit in all_ if n], i, 'dots')
      for i, (who, all_) in enumerate(bins.items()) if all_]
    error = workdir.get(run.evals, 'bits_per_byte', name, 'ece')
    out.append(figure(
      f'Calibration on {text(name)}', charts.lines(
        series, label=f'Calibration on {name}', y_label='share where it came', height=200,
        x_label='probability of the likeliest token', from_zero=True, percent=True),
      csv(f'calibration_{name}', ('model', 'places', 'probability', 'share'), rows),
      f'{percent(error)} apart in the mean' if number(error) else ''))
  return out


# How a choice is scored, in words.
SCORES = {
  'acc': 'by its probability',
  'acc_norm': 'per character',
  'acc_token': 'per token',
  'acc_pmi': 'by what the context adds',
}


def metric(t: dict) -> str:
  """The score that counts for a task."""
  return t['metric'] if t.get('metric') in SCORES else 'acc'


def baselines(t: dict) -> dict[str, float]:
  """Scores of a task without reading the question, by who has them; the blind model's best."""
  blind = t.get('blind') if isinstance(t.get('blind'), dict) else {}
  rivals = {'the blind model': max(filter(number, blind.values()), default=None),
            'the longest choice': t.get('longest'), 'chance': t.get('chance') or None}
  return {k: v for k, v in rivals.items() if number(v)}


def verdict(t: dict) -> str:
  """One sentence on whether the score means anything."""
  rivals, score = baselines(t), t.get(metric(t))
  if not rivals or not number(score):
    return ''
  best = max(rivals, key=lambda name: rivals[name])
  gap, error = 100 * (score - rivals[best]), 100 * (t.get('stderr') or 0)
  points = f'{abs(gap):.1f}{f" ± {error:.1f}" if error else ""} points'
  side = 'above' if gap > 0 else 'below'
  doubt = ': too little to tell them apart' if abs(gap) < 2 * error else ''
  return f'{points} {side} {best}, the best of the baselines{doubt}.'


def question(e: dict) -> str:
  """One question of a task, with the right choice and the one that the model took."""
  right, chosen = e.get('answer'), e.get('predicted')
  items = ''.join(
      f'<li class="{"right" if i == right else ""} {"chosen" if i == chosen else ""}" dir="auto">'
      f'{excerpt(c, 200)}{"<em>✓ real</em>" if i == right else ""}'
      f'{"<em>model’s choice</em>" if i == chosen else ""}</li>'
      for i, c in enumerate(e.get('choices') or []))
  mark = 'Answered right' if right == chosen else 'Answered wrong'
  context = excerpt(e.get('context', ''), 360, tail=True)
  return (f'<div class="question"><b>{mark}</b><p dir="auto">{context}</p>'
          f'<ol type="A">{items}</ol></div>')


def sample(run: Run, _: Csv) -> str:
  """What the model wrote after the prompts of the config."""
  gap = lambda s: ' ' if str(s.get('completion', ''))[:1].isspace() else ''
  texts = ''.join(
      f'<blockquote class="sample" dir="auto"><b>{text(s.get("prompt", ""))}</b>'
      f'{gap(s)}{excerpt(s.get("completion", ""), 1500, lines=True)}'
      f'<cite>temperature {fixed(s.get("temperature"), 1)}</cite></blockquote>'
      for s in run.samples if isinstance(s, dict))
  return section('sample', 'Sample text', '<p class="note">The prompt in bold, then the model.</p>'
                 f'<div class="grid">{texts}</div>' if texts else
                 missing('sample text', 'no samples.json in the run'))


def artefacts(run: Run, _: Csv) -> str:
  """Where checkpoint and export lie, their sizes, and how to load them."""
  root, rows = run.workdir, []
  steps = sorted((p for p in (root / 'checkpoints').glob('*') if p.name.isdigit()),
                 key=lambda p: int(p.name))
  if steps:
    rows.append(('checkpoint', f'<code>checkpoints/{steps[-1].name}</code>'
                 f'<small>last of {len(steps)}: params, optimizer state, data position</small>',
                 workdir.size(steps[-1])))
  if (root / 'export').is_dir():
    rows += [('' if i else 'exported model', f'<code>export/{text(f.name)}</code>', workdir.size(f))
             for i, f in enumerate(sorted((root / 'export').iterdir()))]
  code = ('from transformers import AutoModelForCausalLM, AutoTokenizer\n'
          "model = AutoModelForCausalLM.from_pretrained('export')\n"
          "tokenizer = AutoTokenizer.from_pretrained('export')")
  return section('files', 'Where things lie', *(
      [] if steps else [missing('checkpoint', 'checkpoints/ is empty')]), *(
      [table(('', 'path, relative to the run', 'size'), rows, words=2)] if rows else []), *(
      [f'<p class="note">In the run’s directory:</p><pre>{text(code)}</pre>']
      if (root / 'export').is_dir() else [missing('exported model', 'there is no export/')]))


def record(run: Run, csv: Csv) -> str:
  """Seconds by step of the experiment, events, the resolved config."""
  seconds = {k: v for k, v in (workdir.get(run.summary, 'seconds') or {}).items() if number(v)}
  parts = []
  if seconds:
    most, total = max(seconds.values()) or 1, sum(seconds.values())
    parts.append(figure(f'Where the time went: {duration(total)}', table(
        ('step', '', 'time', 'share'),
        [(text(k), charts.bar(v / most, color=2), duration(v), percent(v / (total or 1), 0))
         for k, v in seconds.items()], kind='bars'),
        csv('seconds', ('step', 'seconds'), seconds.items())))
  else:
    parts.append(missing('times', 'no summary.json, or no seconds in it'))
  saves = [e for e in run.events if e.get('event') == 'checkpoint']
  others = [e for e in run.events if e.get('event') not in ('checkpoint', 'guard')]
  if run.events:
    rows = [(text(str(e.get('time', ''))[:19].replace('T', ' ')), text(e.get('event', '')),
             ', '.join(f'{text(k)} {text(v)}' for k, v in e.items()
                       if k not in ('time', 'event', 'step')), count(e.get('step')))
            for e in others[:100]]
    more = f' {len(others) - 100} later events are in events.jsonl.' if len(others) > 100 else ''
    note = f'{len(saves)} checkpoints were saved.{more}'
    parts.append(f'<h3>Events</h3><p class="note">{note}</p>' + table(
        ('time', 'event', 'what', 'step'), rows, words=3, kind='events'))
  else:
    parts.append(missing('events', 'no events.jsonl in the run'))
  if run.config:
    parts.append(
      '<h3>Config</h3><details class="config"><summary>resolved, as the run saw it'
      f'</summary><pre>{text(json.dumps(public(run.config), indent=2))}</pre></details>'
    )
  else:
    parts.append(missing('config', 'no config.json in the run'))
  return section('record', 'Record', *parts, unreadable(run, csv))


def unreadable(run: Run, _: Csv) -> str:
  """What could not be read of the workdir."""
  notes = ''.join(f'<li>{text(n)}</li>' for n in run.notes)
  return f'<h3>Not readable</h3><ul>{notes}</ul>' if notes else ''
