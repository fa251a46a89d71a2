"""What lies in a run's workdir, read for its pages."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from smoljax import metrics
from smoljax.report import corpus_page
from smoljax.report.charts import number


def size(path: pathlib.Path) -> str:
  """Bytes of a file or of everything under a directory, in words."""
  files = [path] if path.is_file() else [f for f in path.rglob('*') if f.is_file()]
  amount = sum(f.stat().st_size for f in files)
  unit, scale = next((u, s) for u, s in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3), ('bytes', 1))
                     if amount >= s or s == 1)
  return f'{amount / scale:.3g} {unit}'


def get(tree: object, *keys: str) -> Any:
  """tree[k0][k1]…, or None where a level is missing."""
  for key in keys:
    tree = tree.get(key) if isinstance(tree, dict) else None
  return tree


@dataclasses.dataclass
class Run:
  """Everything a workdir says; absent files leave their empty value."""

  workdir: pathlib.Path
  config: dict
  summary: dict
  metrics: list[dict]  # one row a step, training and validation merged
  events: list[dict]
  evals: dict
  samples: list[dict]
  corpora: list[corpus_page.Corpus]
  tokenised: list[dict]  # manifests
  notes: list[str]  # what could not be read
  locate: corpus_page.Locate | None = None  # where in a dropped document its reason shows
  picture: corpus_page.Picture | None = None  # of a kept document's first page

  def points(self, key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows of metrics that have a number under `key`."""
    return [(r['step'], r[key]) for r in self.metrics if isinstance(r.get(key), int | float)]

  def names(self) -> list[str]:
    """Every corpus; its place in the list is its colour in all charts."""
    match = re.compile('train/loss/(.+)|val/(.+)/(?:loss|bpb)').fullmatch
    found = [m[1] or m[2] for row in self.metrics for k in row if (m := match(k))]
    return list(dict.fromkeys([c.name for c in self.corpora] + found))

  def stages(self) -> list[tuple[str, float, float]]:
    """(name, first step, last step) of each stretch of one stage."""
    out: list[tuple[str, float, float]] = []
    for row in self.metrics:
      if stage := row.get('stage'):
        if out and out[-1][0] == stage:
          out[-1] = (stage, out[-1][1], row['step'])
        else:
          out.append((stage, out[-1][2] if out else self.metrics[0]['step'], row['step']))
    return out


def find_corpora(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """The folders under `root` with a manifest.json, finished or not, four levels down at most.

  Each once, however many links lead there; what steps, checkpoints and exports hold is left out.
  """
  apart, seen = ('checkpoints', 'steps', 'evals', 'export', 'report'), set()
  for depth in range(5):
    for path in sorted(root.glob('*/' * depth + 'manifest.json')):
      if path.relative_to(root).parts[0] not in apart and path.resolve() not in seen:
        seen.add(path.resolve())
        yield path.parent


def load(workdir: str) -> Run:
  """Reads a workdir. Raises FileNotFoundError or ValueError if there is no run in it to report."""
  root, notes = pathlib.Path(workdir), []
  if not root.is_dir():
    raise FileNotFoundError(f'no run at {workdir}: no such directory; check --workdir')

  def read(path: pathlib.Path, empty: Any) -> Any:
    try:
      value = json.loads(path.read_text('utf-8', 'replace'))
      if isinstance(value, type(empty)):
        return value
      notes.append(f'{path.relative_to(root)} does not hold a JSON {type(empty).__name__}')
    except FileNotFoundError:
      pass
    except (OSError, ValueError) as e:
      notes.append(f'{path.relative_to(root)} could not be read: {e}')
    return empty

  by_step: dict[float, dict] = {}
  # A step done again after a resume overwrites the first try.
  for row in metrics.read_rows(root / 'metrics.jsonl', notes.append):
    if number(row.get('step')):
      by_step.setdefault(row['step'], {}).update(row)
  corpora, tokenised = [], []
  for home in find_corpora(root):
    manifest = read(home / 'manifest.json', {})
    name = str(manifest.get('name', home.parent.name))
    if name.endswith('_rejects'):
      continue
    if not (home / '_SUCCESS').exists():
      notes.append(f'corpus {name} in {home.relative_to(root)} is not complete: no _SUCCESS')
    if manifest.get('kind') == 'tokenised':
      tokenised.append(manifest)
    elif manifest.get('kind') == 'curated':
      folders = (p.parent.parent / f'{name}_rejects' / home.name for p in (home, home.resolve()))
      rejects = next((p for p in folders if p.is_dir()), None)
      corpora.append(corpus_page.load(home, manifest, rejects, notes.append))

  if not by_step and not corpora:
    state = 'is empty' if (root / 'metrics.jsonl').exists() else 'does not exist'
    raise ValueError(f'nothing to report in {workdir}: no curated corpus, and metrics.jsonl '
                     f'{state}; train first: python -m experiments.run '
                     f'--config=configs/quickstart.py --workdir={workdir}')

  evals = sorted((root / 'evals').glob('*.json'), key=lambda p: (len(p.stem), p.stem))
  return Run(root, read(root / 'config.json', {}), read(root / 'summary.json', {}),
             [by_step[s] for s in sorted(by_step)],
             metrics.read_rows(root / 'events.jsonl', notes.append),
             read(evals[-1], {}) if evals else {}, read(root / 'samples.json', []),
             sorted(corpora, key=lambda c: -(c.manifest.get('documents') or 0)),
             sorted(tokenised, key=lambda m: -(get(m, 'splits', 'train', 'tokens') or 0)), notes)
