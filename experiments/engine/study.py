"""A search that many processes work on: Optuna's samplers, pruners and storage, and what they lack.

The study is FOLDER/search.db. A running trial is leased by its process: when that dies, at whatever
moment, the trial goes back to those that wait, under its own number. Each trial has a seed of its
own, of the study's seed and its number, and no point is proposed twice. A trial without a finite
result is told as worse than the worst, for samplers learn nothing from failures. Trials are
compared where they have seen as many tokens, however often they were evaluated. One that halving
has stopped thaws when it is among the best third after all: because more were tried, or because
those that went on turned out worse. It goes on from where it was, as another entry of the study.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import pathlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.engine import processes, trial_log

# Some samplers are called that for years.
warnings.filterwarnings('ignore', category=optuna.exceptions.ExperimentalWarning)

# Field → list of choices, or (kind, low, high) with kind float | log | int, or (kind, low, high,
# least, most): the range may be widened to these.
Space = Mapping[str, Any]
Report = Callable[[float, float], None]  # (tokens seen, value there); raises optuna.TrialPruned

KINDS = ('float', 'log', 'int')
EDGE = 0.05  # share of a range (in logs if it is 'log') that is its edge
TRIES = 20  # proposals of a sampler before a point is taken that is still free
WORST = 1e3  # told of what has failed while nothing else has a value yet

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
  'tpe': lambda seed: optuna.samplers.TPESampler(seed=seed),
  'random': lambda seed: optuna.samplers.RandomSampler(seed=seed),
  'quasi': lambda seed: optuna.samplers.QMCSampler(
    seed=seed, scramble=True, warn_asynchronous_seeding=False, warn_independent_sampling=False),
  'cmaes': lambda seed: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
  'gp': lambda seed: optuna.samplers.GPSampler(seed=seed),  # needs torch
  'nsga': lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
}
# Resources count the study's units of tokens.
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
  'none': optuna.pruners.NopPruner,
  'halving': lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
  'hyperband': lambda: optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=3),
  'median': lambda: optuna.pruners.MedianPruner(n_startup_trials=4),
}
# Between what values a field makes sense, by its name or its last part, where its sign does not say
# so: no range is widened to them or beyond.
LIMITS = {
  'b1': (0, 1), 'b2': (0, 1), 'beta': (0, 1), 'beta_start': (0, 1), 'normuon': (0, 1),
  'floor': (0, 1), 'fraction': (0, 1), 'warmup_fraction': (0, 1), 'decay_fraction': (0, 1),
  'switch': (0, 1), 'backoff': (0, 1), 'holdout': (0, 1), 'distill.weight': (0, 1),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Study:
  """A study on disk that several processes may work on at once.

  Attributes:
    folder: has `search.db`, `search.jsonl`, `search.lock` and `leases/`; local, or a network file
      system with flock.
    trials: how many there are to be.
    sampler: one of SAMPLERS, or 'grid': then choices and int ranges are gone through, floats at
      five points.
    objectives: how many values a trial has; all are made small.
    max_flops: of all trials together; 0 = no limit. Trials say theirs as the user attribute flops.
    max_hours: since this object was made, after which no further trial is begun; 0 = no limit.
    unit: tokens from one point of comparison to the next; 0 = trials report at the same points.
    name: of the study in `search.db`.
    points: what is tried instead of proposals.
    identity: what else must be the same for trials to belong together, name → JSON-able value.
  """

  folder: pathlib.Path
  space: Space
  trials: int
  sampler: str = 'tpe'
  pruner: str = 'none'
  objectives: int = 1
  seed: int = 0
  max_flops: float = 0.0
  max_hours: float = 0.0
  unit: float = 0.0
  name: str = 'search'
  points: Sequence[Mapping[str, Any]] = ()
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  began: float = dataclasses.field(default_factory=time.monotonic)

  def check(self) -> None:
    """Raises ValueError for what is unknown or impossible."""
    for name, valid in (('sampler', ('grid', *SAMPLERS)), ('pruner', PRUNERS)):
      if getattr(self, name) not in valid:
        raise ValueError(f'unknown {name} {getattr(self, name)!r}: one of {", ".join(valid)}')
    if self.objectives > 1 and self.pruner != 'none':
      raise ValueError('with several objectives no trial can be pruned: give --pruner=none')
    if self.objectives > 1 and self.sampler == 'cmaes':
      raise ValueError('sampler cmaes has one objective only: give --sampler=nsga')
    check_space(self.space)
    if self.sampler in SAMPLERS:
      try:
        SAMPLERS[self.sampler](self.seed)
      except ImportError as e:
        raise ValueError(f'sampler {self.sampler!r} needs a package: {e}') from None

  def open(self, log_line: Callable[[str], None] = print) -> optuna.Study:
    """The study; made where there is none, made again where its database is damaged.

    Raises ValueError as `check` does, or where the folder has another search.
    """
    self.check()
    with self._locked():
      return self._open(log_line)

  def _open(self, log_line: Callable[[str], None]) -> optuna.Study:
    trial_log.check(self.folder, log_line)
    study = optuna.create_study(
      storage=trial_log.storage(self.folder), study_name=self.name,
      pruner=PRUNERS[self.pruner](), directions=['minimize'] * self.objectives,
      load_if_exists=True)
    trial_log.restore(self.folder, study, log_line)
    self._claim(study)
    points: Iterable[Mapping] = self.points
    if self.sampler == 'grid' and not points:
      points = itertools.islice(every_point(self.space), self.trials)
    for point in points:
      study.enqueue_trial(dict(point), skip_if_exists=True)
    return study

  def run(self, objective: Callable[[optuna.Trial, Report], Sequence[float]],
          log_line: Callable[[str], None] = print) -> optuna.Study:
    """Works on the study until it is complete; what other processes do counts.

    `objective` gives a trial's values. What it raises, but for optuna.TrialPruned, ends the run;
    the trial waits for the next.
    """
    study = self.open(log_line)
    while True:
      with self._locked():
        self._reclaim(study)
        state = self.missing(study)
        if state == 'done':
          return study
        begun = self._begin(study) if state == 'begin' else None
      if begun:
        trial, held = begun
        with held:
          self._run(study, trial, objective, log_line)
      else:  # the rest is in other processes' hands; should one die, it comes back
        time.sleep(1)

  def missing(self, study: optuna.Study) -> str:
    """'begin' another trial, 'wait' for those of others, or all are 'done'."""
    trials = study.get_trials(deepcopy=False)
    over = self._is_over(trials)
    if not over and (any(t.state == TrialState.WAITING for t in trials) or self._frozen(trials)):
      return 'begin'
    wanted = min(self.trials + study.user_attrs.get('more', 0), size(self.current_space(study)))
    # The points of a grid, or those that were given, have all been begun.
    begun = len({run_of(t) for t in trials})
    if not over and begun < wanted and self.sampler in SAMPLERS and not self.points:
      return 'begin'
    return 'wait' if any(t.state == TrialState.RUNNING for t in trials) else 'done'

  def current_space(self, study: optuna.Study) -> Space:
    """The space as it was widened, if it was."""
    ranges = study.user_attrs.get('ranges', {})
    return {k: tuple(ranges[k]) if k in ranges else v for k, v in self.space.items()}

  def widen(
    self, study: optuna.Study, times: int, more: int, log_line: Callable[[str], None]
  ) -> bool:
    """Where the best trial lies at an edge, widens the range and asks for `more` trials.

    At most `times` in the study's life. Whether there is more to do, by this process's doing or
    another's.
    """
    with self._locked():
      space, widened = self.current_space(study), study.user_attrs.get('widened', [])
      if self.missing(study) != 'done':  # another process was here before
        return True
      best = best_trial(study)
      if len(widened) >= times or not best or self.sampler not in SAMPLERS or self._is_over(
          study.get_trials(deepcopy=False)):
        return False
      changes, ranges = [], {}
      for name, side in edges(study, space).items():
        (_, low, high, *_), ranges[name] = space[name], wider(name, space[name], side)
        changes.append(
          f'the best {name}, {best.params[name]:.4g}, is at the edge of {low:.4g} to {high:.4g}; '
          f'the range becomes {ranges[name][1]:.4g} to {ranges[name][2]:.4g}')
      if not changes:
        return False
      self._set_attrs(study, {
        'ranges': study.user_attrs.get('ranges', {}) | ranges,
        'widened': [*widened, '; '.join(changes)],
        'more': study.user_attrs.get('more', 0) + more})
    log_line('\n'.join(changes))
    return True

  def _begin(self, study: optuna.Study) -> tuple[optuna.Trial, IO]:
    """The next trial, one that waits, that thaws or a proposal, and its lease."""
    space, trials = self.current_space(study), study.get_trials(deepcopy=False)
    if not any(t.state == TrialState.WAITING for t in trials) and (t := self._frozen(trials)):
      study.add_trial(optuna.trial.create_trial(
        state=TrialState.WAITING, params=t.params, distributions=t.distributions,
        intermediate_values=t.intermediate_values, system_attrs=t.system_attrs,
        user_attrs=t.user_attrs | {'thaws': t.number, 'run': run_of(t)}))
    if self.sampler in SAMPLERS:
      taken = [t.params for t in study.get_trials(deepcopy=False)]
      study.sampler = Distinct(self.sampler, self.seed, space, taken)
    trial = study.ask(distributions(space))
    held = self._lease(trial.number)
    assert held, 'a trial that nobody ran is leased'
    self._log(study, trial)
    return trial, held

  def _frozen(self, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    return thawing(trials) if self.pruner == 'halving' else None

  def _run(self, study, trial, objective, log_line) -> None:
    try:
      values = list(objective(trial, _Curve(trial, self.unit)))
    except optuna.TrialPruned:
      with self._locked():
        study.tell(trial, state=TrialState.PRUNED)
        self._log(study, trial)
      log_line(f'trial {trial.number}: stopped early')
    except BaseException:
      _give_back(study, trial._trial_id)
      raise
    else:
      with self._locked():
        tell(study, trial, values)
        self._log(study, trial)
      log_line(f'trial {trial.number}: {", ".join(f"{v:.4g}" for v in values)} with '
               f'{trial.params} {trial.user_attrs.get("failed", "")}'.rstrip())

  def _log(self, study: optuna.Study, trial: optuna.Trial) -> None:
    trial_log.append(
      self.folder, self.name, study.get_trials(deepcopy=False)[trial.number])

  def _set_attrs(self, study: optuna.Study, attrs: Mapping[str, Any]) -> None:
    trial_log.append_attrs(self.folder, self.name, attrs)
    for key, value in attrs.items():
      study.set_user_attr(key, value)

  def _claim(self, study: optuna.Study) -> None:
    """Raises ValueError if the study's trials answer another question than these would."""
    if self.points:  # which say themselves what they are
      return
    mine = {f'space() of {k}': v for k, v in self.space.items()} | dict(self.identity)
    mine |= {'number of objectives': self.objectives}
    mine = json.loads(json.dumps(mine, default=str))
    theirs = study.user_attrs.get('of')
    if theirs is None and not study.get_trials(deepcopy=False):
      self._set_attrs(study, {'of': mine})
    elif theirs != mine:
      theirs = theirs or {}
      said = lambda of, key: repr(of[key]) if key in of else 'none'
      other = [f'{key} was {said(theirs, key)}, is {said(mine, key)}'
               for key in sorted({*theirs, *mine}) if theirs.get(key) != mine.get(key)]
      more = f' and {len(other) - 3} more' if len(other) > 3 else ''
      raise ValueError(
        f'{self.folder} holds another search ({"; ".join(other[:3])}{more}): take that back to go '
        'on with it, or give another --workdir')

  def _is_over(self, trials: Sequence[FrozenTrial]) -> bool:
    """Whether the budget is used up."""
    spent = sum(t.user_attrs.get('flops', 0.0) for t in latest(trials))
    hours = (time.monotonic() - self.began) / 3600
    return bool(self.max_hours and hours > self.max_hours) or bool(
      self.max_flops and spent >= self.max_flops)

  def _reclaim(self, study: optuna.Study) -> None:
    """Gives back the trials of processes that have died."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
      if held := self._lease(trial.number):
        # It may have ended since it was listed.
        with held, contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
          _give_back(study, trial._trial_id)

  def _lease(self, number: int) -> IO | None:
    return processes.lease(self.folder / 'leases' / f'{self.name}-{number:04d}')

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    self.folder.mkdir(parents=True, exist_ok=True)
    with open(self.folder / 'search.lock', 'w') as f:
      fcntl.flock(f, fcntl.LOCK_EX)
      yield


def _give_back(study: optuna.Study, trial_id: int) -> None:
  """Lets a running trial wait again, with its number, its point and what it has reported."""
  study._storage.set_trial_state_values(trial_id, state=TrialState.WAITING)


class Distinct(optuna.samplers.BaseSampler):
  """One of SAMPLERS, seeded anew for each trial, that proposes no point twice.

  The seed is of the study's seed and the trial's number, so that it matters neither which process
  asks, nor after how many restarts. A proposal that was made before is made again with another
  seed, and after TRIES of them a point is drawn from those that are left, if the space is finite.

  Args:
    space: the point has all its fields, and ranges are these, whatever past trials had.
    taken: points that are not to be proposed.
  """

  def __init__(self, name: str, seed: int, space: Space, taken: Iterable[Mapping] = ()):
    self._name, self._seed, self._space = name, seed, space
    self._taken = {_key(point) for point in taken}

  def infer_relative_search_space(
    self, study: optuna.Study, trial: FrozenTrial
  ) -> dict[str, optuna.distributions.BaseDistribution]:
    """All fields: the point is proposed as a whole."""
    return distributions(self._space)

  def sample_relative(
    self, study: optuna.Study, trial: FrozenTrial,
    search_space: dict[str, optuna.distributions.BaseDistribution],
  ) -> dict[str, Any]:
    """The trial's point."""
    point = {}
    for attempt in range(TRIES):
      point = self._propose(study, trial, search_space, attempt)
      if _key(point) not in self._taken:
        return point
    if size(self._space) < math.inf:
      free = [p for p in every_point(self._space) if _key(p) not in self._taken]
      if free:
        return free[self._seed_of(trial.number, TRIES) % len(free)]
    return point

  def sample_independent(
    self, study: optuna.Study, trial: FrozenTrial, param_name: str,
    param_distribution: optuna.distributions.BaseDistribution,
  ) -> Any:
    """A field that the space does not have."""
    return self._inner(trial.number, 0).sample_independent(
      study, trial, param_name, param_distribution)

  def _propose(self, study, trial, search_space, attempt) -> dict[str, Any]:
    inner = self._inner(trial.number, attempt)
    numbers = isinstance(inner, optuna.samplers.CmaEsSampler)  # it knows no choices
    choice = optuna.distributions.CategoricalDistribution
    point = {k: d.choices[0] for k, d in search_space.items()
             if isinstance(d, choice) and d.single()}
    together = {k: d for k, d in search_space.items()
                if k not in point and not (numbers and isinstance(d, choice))}
    point |= inner.sample_relative(study, trial, together)
    return {k: point[k] if k in point else inner.sample_independent(study, trial, k, d)
            for k, d in search_space.items()}

  def _inner(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
    # A quasi-random sequence is one for the study, which the storage counts through.
    seed = self._seed if self._name == 'quasi' else self._seed_of(number, attempt)
    return SAMPLERS[self._name](seed)

  def _seed_of(self, number: int, attempt: int) -> int:
    return int(np.random.SeedSequence([self._seed, number, attempt]).generate_state(1)[0])


class _Curve:
  """A trial's report: values at any tokens become values at whole units, which are compared."""

  def __init__(self, trial: optuna.Trial, unit: float):
    self._trial, self._unit = trial, unit
    self._last: tuple[float, float] | None = None  # tokens, value
    # One that goes on says again what it has said.
    said = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    self._done = max(said, default=0)

  def __call__(self, tokens: float, value: float) -> None:
    if not math.isfinite(value) or (self._last and tokens <= self._last[0]):
      return
    for i, there in self._units(tokens, value):
      if i > self._done:
        self._trial.report(there, i)
        self._done = i
        if self._trial.should_prune():
          raise optuna.TrialPruned
    self._last = tokens, value

  def _units(self, tokens: float, value: float) -> Iterator[tuple[int, float]]:
    """What lies between the last report and this one: whole units, and values there."""
    if not self._unit:
      yield round(tokens), value
      return
    at, before = self._last or (tokens, value)
    # A loss falls about evenly with the logarithm of the tokens.
    ends = [math.log1p(t / self._unit) for t in (at, tokens)]
    for i in range(max(1, math.ceil(at / self._unit - 1e-9)), int(tokens / self._unit + 1e-9) + 1):
      yield i, float(np.interp(math.log1p(i), ends, (before, value)))


def tell(study: optuna.Study, trial: optuna.Trial, values: Sequence[float]) -> None:
  """Tells a finished trial's values; if one is not finite, values worse than the worst so far.

  Such a trial has the user attribute `failed`, which says why.
  """
  failed = not all(map(math.isfinite, values))
  if failed != bool(trial.user_attrs.get('failed')):
    trial.set_user_attr('failed', f'not finite: {", ".join(map(str, values))}' * failed)
  if failed:
    so_far = list(zip(*(t.values for t in good(study)), strict=True))
    values = [max(of) + ((max(of) - min(of)) or 1.0) for of in so_far] or [WORST] * len(values)
  study.tell(trial, list(values))


def good(study: optuna.Study) -> list[FrozenTrial]:
  """The complete trials that have not failed, by their first value: the best first."""
  trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
  return sorted((t for t in trials if not t.user_attrs.get('failed')), key=lambda t: t.values or [])


def best_trial(study: optuna.Study) -> FrozenTrial | None:
  """That with the least first value, if there is one."""
  return next(iter(good(study)), None)


def run_of(trial: FrozenTrial | optuna.Trial) -> int:
  """The number of the trial's first entry; entries that thaw it have others."""
  return trial.user_attrs.get('run', trial.number)


def latest(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
  """The last entry of each trial, in the order of their first."""
  found = {run_of(t): t for t in trials}  # by number, so that the last one stays
  return [found[run] for run in sorted(found)]


def thawing(trials: Sequence[FrozenTrial], factor: int = 3) -> FrozenTrial | None:
  """The stopped trial that is to go on: the longest, of those the best; None if none is.

  It is one of the best `factor`-th of all that came as far (asynchronous halving, arXiv
  1810.05934). Of those that went on the worst value since counts, so that one which diverged, or
  got worse, takes nobody's place.
  """
  trials, found = latest(trials), []
  for trial in trials:
    if trial.state != TrialState.PRUNED or not trial.intermediate_values:
      continue
    length = max(trial.intermediate_values)
    values = sorted(_worst_since(t, length) for t in trials if length in t.intermediate_values)
    value = trial.intermediate_values[length]
    if value <= values[max(1, len(values) // factor) - 1]:
      found.append((-length, value, trial.number, trial))
  return min(found)[-1] if found else None


def _worst_since(trial: FrozenTrial, length: int) -> float:
  if trial.user_attrs.get('failed'):
    return math.inf
  return max(*(v for k, v in trial.intermediate_values.items() if k >= length),
             *(trial.values or ()), -math.inf)


def check_space(space: Space) -> None:
  """Raises ValueError for a range that is none."""
  if not space:
    raise ValueError('space() is empty: field → list of choices, or (kind, low, high)')
  for name, values in space.items():
    if isinstance(values, list) and values:
      if wrong := [v for v in values if not isinstance(v, str | int | float | None)]:
        raise ValueError(f'space(): {name}: a choice is a number, text, True, False or None, not '
                         f'{wrong[0]!r}')
      if len(set(map(repr, values))) < len(values):
        raise ValueError(f'space(): {name}: {values!r} has a choice twice')
      continue
    kind = values[0] if isinstance(values, tuple) and len(values) in (3, 5) else ''
    numbers = kind in KINDS and all(
      isinstance(v, int if kind == 'int' else int | float) and math.isfinite(v)
      for v in values[1:3])
    if not numbers or not values[1] < values[2] or (kind == 'log' and values[1] <= 0):
      raise ValueError(
        f"space(): {name}: {values!r} is neither a list of choices nor ('float' | 'log' | 'int', "
        'low, high) with low < high, above 0 for log')
    if len(values) == 5 and not values[3] <= values[1] < values[2] <= values[4]:
      raise ValueError(f'space(): {name}: {values!r} goes beyond its own limits')


def distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
  """A space in Optuna's words."""
  found: dict[str, optuna.distributions.BaseDistribution] = {}
  for name, values in space.items():
    if isinstance(values, list):
      found[name] = optuna.distributions.CategoricalDistribution(values)
    else:
      kind, low, high, *_ = values
      found[name] = (
        optuna.distributions.IntDistribution(low, high) if kind == 'int' else
        optuna.distributions.FloatDistribution(low, high, log=kind == 'log'))
  return found


def grid(values: Any) -> list:
  """The points of a field: all, or five of a range without steps."""
  if isinstance(values, list):
    return values
  kind, low, high, *_ = values
  if kind == 'int':
    return list(range(low, high + 1))
  ratios = [i / 4 for i in range(5)]
  return [low * (high / low) ** r if kind == 'log' else low + (high - low) * r for r in ratios]


def every_point(space: Space) -> Iterator[dict[str, Any]]:
  """The points of a grid over a space."""
  for values in itertools.product(*map(grid, space.values())):
    yield dict(zip(space, values, strict=True))


def size(space: Space) -> float:
  """How many points a space has."""
  return math.prod(
    len(v) if isinstance(v, list) else v[2] - v[1] + 1 if v[0] == 'int' else math.inf
    for v in space.values())


def edges(study: optuna.Study, space: Space) -> dict[str, str]:
  """Of the best trial: the fields at an edge of a range that can be widened, 'low' or 'high'."""
  found, best = {}, best_trial(study)
  for name, value in (best.params if best else {}).items():
    values = space.get(name)
    if not isinstance(values, tuple):
      continue
    kind, low, high, *_ = values
    scale = math.log if kind == 'log' else float
    at = (scale(value) - scale(low)) / (scale(high) - scale(low))
    side = 'low' if at <= EDGE else 'high' if at >= 1 - EDGE else ''
    if side and wider(name, values, side) != values:
      found[name] = side
  return found


def wider(name: str, values: tuple, side: str) -> tuple:
  """A range that has grown by half its width, in logs if it is 'log', at its 'low' or 'high' side.

  It keeps its sign and stays within its own limits or those of LIMITS: where it would pass one that
  the range does not touch, it goes half of the way there (an 'int' all of it).
  """
  kind, low, high, *own = values
  least, most = own or next(
    (v for k, v in LIMITS.items() if f'.{name}'.endswith(f'.{k}')), (-math.inf, math.inf))
  if low >= 0:
    least = max(least, 1 if kind == 'int' and low > 0 else 0)
  if kind == 'log':
    factor = (high / low) ** 0.5
    down, up = low / factor, high * factor
  else:
    step = (high - low) / 2
    down, up = low - step, high + step
  if kind == 'int':
    down, up = max(least, round(down)), min(most, math.ceil(up))
  else:
    down = down if down > least else (low + least) / 2
    up = up if up < most else (high + most) / 2
  return (kind, *((down, high) if side == 'low' else (low, up)), *own)


def _key(point: Mapping[str, Any]) -> tuple:
  """Of a point, to compare it with others; 1 is not True."""
  return tuple(sorted((k, repr(v)) for k, v in point.items()))
