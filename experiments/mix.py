"""In which proportions should corpora be mixed? Small proxy runs, laws fitted to them, a decision.

  python -m experiments.mix --config=configs/mix.py --workdir=runs/mix \
    --config.corpora=web=tokens/web/1.0.0,code=tokens/code/1.0.0,… \
    --config.tokenizer.path=tokenizer.model
  python -m experiments.mix … --steps=design,run --seconds=500     # and again, to go on

Give two or more tokenised corpora of one tokenizer: sources, their buckets of quality, languages.
Each held-out split is a domain that is scored, in bits per byte: every other document of it by the
proxies, the rest by the runs that validate. Settings are the config's section
`mix`. The steps, each of which needs those before it, and does what is left of it:

  design    proxy mixtures: Dirichlet around the prior, cut to the caps on repetition and the floors
  run       the proxies, side by side on one device; a line of runs.jsonl each
  fit       laws of each domain: linear, exponential (Olmix, Data Mixing Laws), boosted trees
            (RegMix), saturating, kernel (a Gaussian process beside a log-linear law); their errors
            on proxies that they have not seen, and on those within what was tried; the best mixture
            within the constraints by the law of the least error, and what it should gain
  validate  what was decided before: the proposed mixture, the natural proportions, UniMax and the
            best proxy, with new seeds, on held-out documents that no law was fitted to; and again
            with a larger model and more tokens
  report    WORKDIR/report/index.html: weights, predicted against actual, sensitivity, differences

A proxy of fewer tokens than mix.target_tokens reads only that share of each corpus, so that it
repeats them as often as the target run. The decision is in WORKDIR/decision.json; it does not
change once a run validates it.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from data_beam.command_line import Parser
from data_beam.redact import public
from experiments import sweep
from experiments.engine.build import deciding
from experiments.engine.cli import console, exit_status, read_json, write_json
from experiments.engine.config import keep_programs, model_config, resolve
from experiments.engine.corpora import foreign_corpora
from smoljax import metrics
from smoljax.data.corpus import EmptySplit, open_corpus
from smoljax.report import mix_page
from smoljax.scaling import mixtures
from smoljax.train import side_by_side

STEPS = ('design', 'run', 'fit', 'validate', 'report')
SHUFFLED = 99  # seed of the control's order


@dataclasses.dataclass(frozen=True)
class Run:
  """One copy to train: `key` names it in runs.jsonl."""

  key: str
  mixture: np.ndarray  # [phases, corpora]
  seed: int
  larger: bool = False


class Mix:
  """What the steps share: the config, the corpora packed, the runs that there are.

  Raises ValueError for corpora that cannot be mixed, or a workdir that has another design.
  """

  def __init__(self, config: str, flags: Sequence[str], workdir: pathlib.Path, seconds: float):
    self.workdir, self.ends = workdir, time.monotonic() + seconds
    self.config, self.flags = config, flags
    self.c = resolve(sweep.load_config(config, flags))
    m = self.c.mix
    found = foreign_corpora(self.c)
    if unknown := set(m.laws) - mixtures.FORMS.keys():
      raise ValueError(f'mix.laws: unknown {min(unknown)!r}: of {", ".join(mixtures.FORMS)}')
    if len(set(m.laws)) < 2:
      raise ValueError('mix.laws: give two laws or more: one decides, one checks')
    if len(found) < 2:
      raise ValueError('give two tokenised corpora or more: --config.corpora=NAME=DIR,NAME=DIR')
    if text := [n for n, manifest in found.items() if manifest['kind'] != 'tokenised']:
      raise ValueError(f'{", ".join(text)}: documents, not tokens: run data_beam.tokenize_corpus')
    self.names = list(found)
    self.vocab_size = max(manifest['vocab_size'] for manifest in found.values())
    self.paths = {name: manifest['path'] for name, manifest in found.items()}
    self.share = min(1.0, self.c.train.tokens / (m.target_tokens or self.c.train.tokens))
    packing = dict(seq_len=self.c.data.seq_len, window=self.c.data.window, seed=self.c.seed)
    self.whole = side_by_side.make_table(
      {n: open_corpus(p, name=n) for n, p in self.paths.items()}, **packing)
    self.table = self.whole.first(self.share)
    evaluated = {}
    extra = [e.partition('=')[::2] for e in m.evaluate.split(',') if e]
    for name, path in (*self.paths.items(), *extra):
      try:
        evaluated[name] = open_corpus(path, 'validation', name)
      except EmptySplit as e:
        console.print(f'not scored: {e}')
    split = {name: side_by_side.halves(corpus) for name, corpus in evaluated.items()}
    self.held_out, self.judged = (side_by_side.make_table(
      {name: of[i] for name, of in split.items()}, **packing) for i in range(2))
    self.domains = list(evaluated)
    self.space = mixtures.Space(
      self.names, self.table.sizes, float(self.c.train.tokens), np.array(m.phases, float),
      m.max_epochs, tuple((tuple(names), float(share)) for names, share in m.floors))
    self.blend = self._blend()
    self.trainers: dict[bool, side_by_side.Trainer] = {}

  def _blend(self) -> np.ndarray:
    given = dict(self.c.mix.blend) or dict.fromkeys(self.domains, 1.0)
    if unknown := given.keys() - set(self.domains):
      raise ValueError(f'mix.blend names {", ".join(sorted(unknown))}, which is not scored: of '
                       f'{", ".join(self.domains)}')
    weights = np.array([float(given.get(d, 0.0)) for d in self.domains])
    if weights.min() < 0 or weights.sum() <= 0:
      raise ValueError('mix.blend: weights must be 0 or more, one above 0')
    return weights / weights.sum()

  # --- Runs ---------------------------------------------------------------------------------------

  def rows(self) -> dict[str, dict]:
    """The runs that there are, by key."""
    return {r['key']: r for r in metrics.read_rows(self.workdir / 'runs.jsonl')}

  def scores(self, keys: Sequence[str]) -> np.ndarray:
    """Bits per byte of runs, [runs, domains]. Raises ValueError where one is missing."""
    rows = self.rows()
    if missing := [k for k in keys if k not in rows]:
      raise ValueError(f'{len(missing)} runs are missing, such as {missing[0]}: give the same '
                       'command again until none is left')
    return np.array([[rows[k]['bpb'][d] for d in self.domains] for k in keys])

  def train(self, runs: Sequence[Run]) -> bool:
    """Makes the runs that are missing, as many at once as mix.together; False if time was short."""
    done, longest = self.rows(), {False: 0.0, True: 0.0}
    for larger in (False, True):
      left = [r for r in runs if r.key not in done and r.larger == larger]
      while left:
        group, left = left[:self.c.mix.together], left[self.c.mix.together:]
        if time.monotonic() + 1.1 * longest[larger] > self.ends:
          console.print(f'{len(left) + len(group)} runs are left: give the same command again')
          return False
        began = time.monotonic()
        self._train_group(group, larger)
        longest[larger] = max(longest[larger], time.monotonic() - began)
    return True

  def _train_group(self, group: Sequence[Run], larger: bool) -> None:
    m, began = self.c.mix, time.monotonic()
    c = self.larger_config() if larger else self.c
    if larger not in self.trainers:
      self.trainers[larger] = side_by_side.Trainer(
        c, model_config(c, self.vocab_size), len(self.domains))
    table = self.whole.first(min(1.0, self.share * m.larger_tokens)) if larger else self.table
    # As many copies each time, so that nothing is compiled twice.
    padded = [*group, *[group[-1]] * (0 if larger else m.together - len(group))]
    ends = np.round(np.cumsum(m.phases) * c.train.steps).astype(int)
    chosen = side_by_side.choose_rows(
      table, np.array([r.mixture for r in padded]), np.diff([0, *ends]).tolist(), c.train.rows,
      [r.seed for r in padded])
    trainer = self.trainers[larger]
    on_device = {k: jnp.asarray(x) for k, x in table.rows.items()}
    params, losses = trainer.train(on_device, chosen, [r.seed for r in padded])
    judged = group[0].key.startswith('arm')
    scores = trainer.score(params, self.judged if judged else self.held_out)
    seconds = time.monotonic() - began
    with open(self.workdir / 'runs.jsonl', 'a', encoding='utf-8') as file:
      for run, loss, bpb in zip(group, losses, scores, strict=False):
        file.write(json.dumps({
          'key': run.key, 'seed': run.seed, 'mixture': run.mixture.tolist(),
          'bpb': dict(zip(self.domains, bpb.tolist(), strict=True)),
          'loss': float(loss[-20:].mean()), 'seconds': seconds / len(group),
        }) + '\n')
      file.flush()
      os.fsync(file.fileno())
    tokens = len(padded) * c.train.tokens
    console.print(f'{len(group)} runs, {group[0].key} to {group[-1].key}: {seconds:.0f} s, '
                  f'{tokens / seconds:,.0f} tokens/s, blend {np.min(scores @ self.blend):.4f} to '
                  f'{np.max(scores @ self.blend):.4f} bits per byte')

  def larger_config(self) -> Any:
    """The config of the validation at more compute."""
    fields = [*((f'model.{k}', v) for k, v in self.c.mix.larger),
              ('train.tokens', round(self.c.mix.larger_tokens * self.c.train.tokens))]
    return resolve(sweep.load_config(
      self.config, [*self.flags, *(f'--config.{k}={v}' for k, v in fields)]))

  # --- Steps --------------------------------------------------------------------------------------

  def design(self) -> bool:
    """Writes design.json, or checks that it is of this config."""
    m = self.c.mix
    made = mixtures.design(
      self.space, m.proxies + m.unseen, temper=m.temper, strength=tuple(m.strength),
      seed=self.c.seed)
    value = {
      'corpora': self.names, 'domains': self.domains, 'blend': self.blend.tolist(),
      'sizes': [float(x) for x in self.table.sizes], 'share': self.share,
      'tokens': self.c.train.tokens, 'steps': self.c.train.steps, 'phases': list(m.phases),
      'caps': self.space.caps.tolist(), 'natural': self.space.natural.tolist(),
      'proxies': m.proxies, 'mixtures': made.tolist(), 'judged': 'by other documents',
      'optimizer': [self.c.optimizer.name, self.c.optimizer.learning_rate],
      'parameters': model_config(self.c, self.vocab_size).num_params(),
      'config': {k: public(deciding(k, self.c[k]))
                 for k in ('model', 'optimizer', 'train', 'data')},
    }
    path, value = self.workdir / 'design.json', json.loads(json.dumps(value, default=str))
    if path.exists() and (other := metrics.changes(read_json(path), value)):
      raise ValueError(f'{path} is of other corpora or settings ({", ".join(sorted(other)[:4])}): '
                       'give another --workdir')
    write_json(path, value)
    return True

  def proxies(self) -> list[Run]:
    """All proxies: those to fit, those unseen, and repeats of the natural proportions."""
    made = read_json(self.workdir / 'design.json')
    seeds = 1000 * self.c.seed
    count = made['proxies']
    return [
      *(Run(f'{"proxy" if i < count else "unseen"}-{i}', np.array(x), seeds + i)
        for i, x in enumerate(made['mixtures'])),
      *(Run(f'natural-{i}', self.space.natural, seeds + 500 + i)
        for i in range(self.c.mix.repeats))]

  def run(self) -> bool:
    """Trains the proxies."""
    return self.train(self.proxies())

  def fit(self) -> bool:
    """Fits laws, judges them, decides: fit.json and decision.json."""
    runs = self.proxies()
    finite = np.isfinite(self.scores([r.key for r in runs])).all(axis=1)
    if lost := [r.key for r, well in zip(runs, finite, strict=True) if not well]:
      console.print(f'left out, since they diverged: {", ".join(lost)} (a lower '
                    'optimizer.learning_rate in another --workdir keeps them)')
      runs = [r for r, well in zip(runs, finite, strict=True) if well]
    fitted = [r for r in runs if not r.key.startswith('unseen')]
    unseen = [r for r in runs if r.key.startswith('unseen')]
    tried, scores = np.array([r.mixture for r in fitted]), self.scores([r.key for r in fitted])
    groups = ['natural' if r.key.startswith('natural') else r.key for r in fitted]
    actual, points = scores @ self.blend, lambda runs, p, a: [
      [r.key, float(x), float(y)] for r, x, y in zip(runs, p, a, strict=True)]
    natural = actual[[g == 'natural' for g in groups]]
    result: dict[str, Any] = {'forms': {}, 'noise': float(np.std(natural, ddof=1))}
    laws = {}
    for form in self.c.mix.laws:
      law = laws[form] = mixtures.fit(self.space, form, tried, scores, groups)
      expected = mixtures.out_of_fold(self.space, form, tried, scores, groups) @ self.blend
      found: dict[str, Any] = {
        'settings': list(law.settings), 'out_of_fold': mixtures.quality(expected, actual),
        'points_out_of_fold': points(fitted, expected, actual)}
      if (inside := mixtures.within_folds(tried, groups)).sum() > 2:
        found['out_of_fold_within'] = mixtures.quality(expected[inside], actual[inside])
      if unseen:
        others = np.array([r.mixture for r in unseen])
        predicted, y = law(others), self.scores([r.key for r in unseen])
        inside = mixtures.within(others, tried)
        if inside.sum() > 2:
          found['unseen_within'] = mixtures.quality(*(x[inside] @ self.blend
                                                      for x in (predicted, y)))
        found |= {
          'unseen': mixtures.quality(predicted @ self.blend, y @ self.blend),
          'unseen_domains': {d: mixtures.quality(predicted[:, i], y[:, i])
                             for i, d in enumerate(self.domains)},
          'points': points(unseen, predicted @ self.blend, y @ self.blend)}
      result['forms'][form] = found
      console.print(f'{form:12} ' + '; '.join(
        f'{where.replace("_", " ")} ρ {found[where]["spearman"]:.3f}, RMSE '
        f'{found[where]["rmse"]:.4f}' for where in mix_page.WHERE if where in found))
    ranked = sorted(laws, key=lambda f: result['forms'][f]['out_of_fold']['rmse'])
    decides = next(f for f in ranked if mixtures.FORMS[f].smooth)
    ranked = [decides, *(f for f in ranked if f != decides)]  # the second checks the first
    control = np.random.default_rng(SHUFFLED).permutation(len(scores))
    of_control = mixtures.out_of_fold(self.space, ranked[0], tried, scores[control],
                                      [groups[i] for i in control])
    result['control'] = mixtures.quality(of_control @ self.blend, actual[control])['spearman']
    write_json(self.workdir / 'fit.json', result)
    self._decide(ranked, laws, tried, scores, groups, result)
    return True

  def _decide(self, ranked, laws, tried, scores, groups, result) -> None:
    path = self.workdir / 'decision.json'
    if path.exists() and any(k.startswith('arm') for k in self.rows()):
      console.print('the decision stays as it is: runs validate it')
      return
    space, m, law = self.space, self.c.mix, laws[ranked[0]]
    actual = scores @ self.blend
    natural = float(actual[[g == 'natural' for g in groups]].mean())
    found = mixtures.decide(
      law, tried, scores, groups, self.blend, against=space.natural, kl=m.kl,
      error=result['forms'][ranked[0]]['out_of_fold']['rmse'], resamples=m.resamples,
      seed=self.c.seed)
    best = int(np.argmin(actual))
    even = mixtures.unimax(space.sizes, space.tokens, m.max_epochs)
    second = laws[ranked[1]]
    stages = [dict(name=f'phase-{i}', fraction=float(share), mixture={
      n: round(float(w), 4) for n, w in zip(self.names, row, strict=True) if w > 5e-5})
      for i, (share, row) in enumerate(zip(space.shares, found.mixture, strict=True))]
    value = {
      'law': ranked[0], 'arms': {
        'natural': space.natural.tolist(),
        'unimax': np.tile(even, (len(space.shares), 1)).tolist(),
        'best': tried[best].tolist(), 'proposed': found.mixture.tolist()},
      'best_proxy': groups[best], 'naive': found.naive, 'gain': found.gain, 'low': found.low,
      'high': found.high, 'optimism': found.optimism,
      'best_observed_gain': natural - float(actual[best]),
      'second_law': ranked[1],
      'gain_by_second_law': float((second(space.natural) - second(found.mixture)) @ self.blend),
      'epochs': space.epochs(found.mixture).tolist(),
      'sensitivity': mixtures.sensitivity(law, self.blend, found.mixture),
      'stages': stages,
    }
    value['plausible'] = value['gain'] <= 3 * max(value['best_observed_gain'], 0.0)
    write_json(path, value)
    console.print(f'proposed by {ranked[0]}: {found.gain:+.4f} ({found.low:+.4f} to '
                  f'{found.high:+.4f}) bits per byte less than the natural proportions')
    console.print(f'--config.train.stages="{tuple(stages)}"')

  def arms(self) -> Iterator[Run]:
    """The runs that validate."""
    decided = read_json(self.workdir / 'decision.json')
    for larger in (False, True)[:1 + bool(self.c.mix.larger)]:
      for name, mixture in decided['arms'].items():
        for i in range(self.c.mix.seeds):
          yield Run(f'arm{"_larger" * larger}-{name}-{i}', np.array(mixture),
                    1000 * self.c.seed + 900 + i, larger)

  def validate(self) -> bool:
    """Trains the arms."""
    return self.train(list(self.arms()))

  def report(self) -> bool:
    """Writes the page, and validation.json beside it."""
    scores: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    rows = self.rows()
    for run in self.arms():
      if run.key in rows:
        kind, name, _ = run.key.split('-')
        scores.setdefault(kind, {}).setdefault(name, {})[run.seed] = rows[run.key]['bpb']
    blend = dict(zip(self.domains, self.blend.tolist(), strict=True))
    value = mix_page.validation(scores, blend)
    write_json(self.workdir / 'validation.json', value)
    for line in mix_page.words(value):
      console.print(line)
    page = mix_page.write(
      read_json(self.workdir / 'design.json'), read_json(self.workdir / 'fit.json'),
      read_json(self.workdir / 'decision.json'), value, str(self.workdir / 'report'))
    console.print(f'report: {page}')
    return True


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = Parser(prog='python -m experiments.mix', description=__doc__, others=sweep.is_field,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', required=True, help='recipe, configs/X.py[:args]')
  parser.add_argument('--workdir', required=True, type=pathlib.Path, help='folder of the study')
  parser.add_argument('--steps', type=lambda s: s.split(','), default=list(STEPS),
                      help=f'with commas, of {", ".join(STEPS)} (default: all)')
  parser.add_argument('--seconds', type=float, default=math.inf,
                      help='begin no group of runs that would end later than this')
  args, args.flags = parser.parse_known_args(argv)
  if wrong := sweep.wrong_flags(args.flags):
    parser.error(wrong)
  if unknown := set(args.steps) - set(STEPS):
    parser.error(f'unknown step {min(unknown)!r}: of {", ".join(STEPS)}')
  if not args.seconds > 0:
    parser.error(f'--seconds={args.seconds}: give more than 0')
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; bad input is one line and exit code 2, 75 where runs are left."""
  args = _parse(argv)
  return exit_status(lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
  args.workdir.mkdir(parents=True, exist_ok=True)
  keep_programs(str(args.workdir))
  mix = Mix(args.config, args.flags, args.workdir, args.seconds)
  for step in STEPS:
    if step in args.steps and not getattr(mix, step)():
      return 75
  return 0


if __name__ == '__main__':
  sys.exit(main())
