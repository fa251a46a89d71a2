"""A study's trials as lines with checksums, from which its database is made again.

SQLite knows no checksums: a flipped digit is a value, and a damaged page an error of every process.
So FOLDER/search.jsonl has each trial when it begins and when it has ended, and what the study knows
of itself. Who opens the study compares; where the two differ the database is put aside, and written
again from the lines.
"""

import json
import os
import pathlib
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from smoljax import files, metrics

DATABASE, LOG = 'search.db', 'search.jsonl'


def storage(folder: pathlib.Path) -> optuna.storages.RDBStorage:
  """The database, made where there is none. One process writes at a time, the others wait."""
  return optuna.storages.RDBStorage(
    f'sqlite:///{folder / DATABASE}',  # no connection outlives its use
    engine_kwargs={'connect_args': {'timeout': 120}, 'poolclass': sqlalchemy.NullPool})


def append(folder: pathlib.Path, study: str, trial: FrozenTrial) -> None:
  """Writes a line of a trial as it is."""
  _append(folder, {'study': study, **_row(trial)})


def append_attrs(folder: pathlib.Path, study: str, attrs: Mapping[str, Any]) -> None:
  """Writes a line of what a study knows of itself; before the database has it."""
  _append(folder, {'study': study, 'attrs': dict(attrs)})


def check(folder: pathlib.Path, note: Callable[[str], None]) -> None:
  """Puts the database aside where it is damaged, or is not as the lines say.

  To be called by one process at a time. `restore` must follow for each study that is opened.

  Args:
    note: gets a line that says what was wrong.
  """
  database = folder / DATABASE
  fault = _fault(folder) if database.exists() else ''
  if fault:
    note(f'warning: {database} is damaged ({fault}): it is made again of {LOG}, and kept as '
         f'{DATABASE}.damaged')
    os.replace(database, f'{database}.damaged')
    for rest in ('-journal', '-wal', '-shm'):
      pathlib.Path(f'{database}{rest}').unlink(missing_ok=True)


def restore(folder: pathlib.Path, study: optuna.Study, note: Callable[[str], None]) -> None:
  """Gives a study that has no trials those that the lines have, and writes lines that lack.

  A trial that was running still does, and is reclaimed as if its process had died.
  """
  attrs, rows = _read(folder, study.study_name, note)
  for key, value in attrs.items():
    if study.user_attrs.get(key) != value:
      study.set_user_attr(key, value)
  if rows and not study.get_trials(deepcopy=False):
    for number in range(max(rows) + 1):
      study.add_trial(_trial(rows.get(number)))
  for trial in study.get_trials(deepcopy=False):
    if trial.state != TrialState.WAITING and not _same(rows.get(trial.number), trial):
      append(folder, study.study_name, trial)


def _fault(folder: pathlib.Path) -> str:
  """What is wrong with the database; '' if it is whole and as the lines say."""
  path = folder / DATABASE
  try:
    connection = sqlite3.connect(f'file:{path}?mode=rw', uri=True, timeout=120)
    try:
      said = connection.execute('PRAGMA integrity_check').fetchone()[0]
    finally:
      connection.close()
    if said != 'ok':
      return said
    opened = storage(folder)
    studies = {s.study_name: opened.get_all_trials(s._study_id) for s in opened.get_all_studies()}
  except Exception as e:  # of SQLite, SQLAlchemy, Alembic, Optuna, JSON
    if 'locked' in str(e):  # by another process, for too long
      raise
    return ' '.join(str(e).split())[:200]
  for name in {row['study'] for row in metrics.read_rows(folder / LOG, lambda line: None)}:
    trials = {t.number: t for t in studies.get(name, ())}
    for number, row in _read(folder, name, lambda line: None)[1].items():
      if number not in trials:
        return f'it lacks trial {number}'
      if _differs(row, trials[number]):
        return f'trial {number} is another'
  return ''


def _read(
  folder: pathlib.Path, study: str, note: Callable[[str], None]
) -> tuple[dict[str, Any], dict[int, dict]]:
  """What the study knows of itself, and the last line of each trial."""
  attrs, rows = {}, {}
  for row in metrics.read_rows(folder / LOG, note):
    if row.pop('study') != study:
      continue
    if 'attrs' in row:
      attrs |= row['attrs']
    else:
      rows[row['number']] = row
  return attrs, rows


def _row(trial: FrozenTrial) -> dict[str, Any]:
  return json.loads(json.dumps({
    'number': trial.number, 'state': trial.state.name, 'values': trial.values,
    'params': trial.params,
    'distributions': {k: distribution_to_json(d) for k, d in trial.distributions.items()},
    'reported': {str(k): v for k, v in trial.intermediate_values.items()},
    'user_attrs': trial.user_attrs, 'system_attrs': trial.system_attrs}))


def _same(row: Mapping[str, Any] | None, trial: FrozenTrial) -> bool:
  return row == _row(trial)


def _differs(row: Mapping[str, Any], trial: FrozenTrial) -> bool:
  """Whether a trial is another than its last line says; one that runs has its point by then."""
  if TrialState[row['state']].is_finished():
    return not _same(row, trial)
  return row['params'] != _row(trial)['params']


def _trial(row: Mapping[str, Any] | None) -> FrozenTrial:
  """Of a line; without one a trial that waits, and is proposed anew by its number."""
  if row is None:
    return optuna.trial.create_trial(state=TrialState.WAITING)
  return optuna.trial.create_trial(
    state=TrialState[row['state']], values=row['values'], params=row['params'],
    distributions={k: json_to_distribution(d) for k, d in row['distributions'].items()},
    intermediate_values={int(k): v for k, v in row['reported'].items()},
    user_attrs=row['user_attrs'], system_attrs=row['system_attrs'])


def _append(folder: pathlib.Path, row: Mapping[str, Any]) -> None:
  files.append(folder / LOG, metrics.line(row))
