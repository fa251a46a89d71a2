"""Published ladders, predicted beyond their sizes: losses, and tasks in two steps. One JSON line.

  git clone https://github.com/allenai/OLMo-ladder https://github.com/mlfoundations/scaling
  python -m experiments.benchmarks.public_laws --output=tables \
    --olmo=OLMo-ladder/src/scripts/paper/data/ladder-runs --gadre=scaling/exp_data

Writes OUTPUT/olmo.csv and OUTPUT/gadre.csv, which `experiments.report --scaling` reads too:

  python -m experiments.report --scaling=tables/olmo.csv --rows=to_760M=1 --output=page \
    --predict=1279395840:255895535616
  python -m experiments.report --scaling=tables/olmo.csv --rows=to_3B=1 --output=page \
    --predict=6887575552:3945065873408 --force
  python -m experiments.report --scaling=tables/olmo.csv --rows=paper=1 --output=page \
    --predict=6887575552:3945065873408 --force --task='piqa_val accuracy:piqa_val bits'

OLMo's ladder (arXiv:2412.04403, C4): of the runs to 760M the law predicts those of 1.3B; of all to
3.2B the annealed 7B-4T. Gadre et al. (arXiv:2403.08540, C4's validation): of the runs to 412M laws
with tied exponents, one a corpus, predict those of 1.4B and 6.9B.
"""

import argparse
import csv
import glob
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from smoljax.report import scaling_page
from smoljax.scaling import laws

# Parameters without embeddings, and the ladder that each run is the first of.
_OLMO = {'190M': 190354176, '370M': 371262464, '760M': 758220288, '1B': 1279395840,
         '3B': 3169537280}
_BIG = {'peteish7_eval_anneal': 6887575552, 'peteish13_eval_final': 13202396160}
_TASKS = ('hellaswag_val', 'arc_challenge_test', 'arc_easy_test', 'piqa_val', 'csqa_val',
          'socialiqa_val', 'openbookqa_test')
_C4 = 'eval/c4_en-validation/CrossEntropyLoss'


def olmo_rows(folder: pathlib.Path) -> Iterator[dict]:
  """A row for each checkpoint; `to_760M` and `to_3B` say of which sizes it is, `paper` what OLMo's
  paper fits tasks on."""
  files = [(f, _OLMO[f.name.split('-')[0]], f.name.split('-')[0]) for f in folder.glob('*xC.csv')]
  files += [(folder / f'{name}.csv', n, 'target') for name, n in _BIG.items()]
  for file, params, ladder in sorted(files):
    with open(file, newline='', encoding='utf-8') as f:
      kept = [r for r in csv.DictReader(f) if r.get(_C4)]
    for r in kept:
      tokens = float(r.get('throughput/total_tokens') or 0) or (
        float(r['_step']) * float(r['batch_size_in_tokens']))
      row = {'run': file.stem, 'params': params, 'tokens': tokens, 'loss': float(r[_C4]),
             'final': int(r is kept[-1]), 'ladder': ladder, 'to_760M': int(params < 1e9),
             'to_3B': int(ladder != 'target'),
             'paper': int(params < 2e9 and '0.5xC' not in file.stem)}
      for task in _TASKS:
        row[f'{task} accuracy'] = r.get(f'eval/downstream/{task}_rc_5shot_len_norm', '')
        row[f'{task} bits'] = r.get(f'eval/downstream_bpb/{task}_rc_5shot_bpb', '')
      yield row


def gadre_rows(folder: pathlib.Path) -> Iterator[dict]:
  """A row for each model: its loss on C4's validation set."""
  for file in sorted(glob.glob(f'{folder}/models/*.json')):
    model = json.loads(pathlib.Path(file).read_text())
    loss = [r['loss'] for r in model.get('results', []) if 'c4_val' in r['val_data'][0]]
    if loss:
      c = model['hyperparameters']
      yield {'experiment': model['dataset_name'], 'run': model['name'], 'params': c['params'],
             'tokens': c['tokens'], 'loss': loss[0]}


def predict(fitted: Sequence[dict], unseen: Sequence[dict], *, tied: bool = False) -> dict:
  """Errors of the law of `fitted` on `unseen`, in percent, and what its intervals hold."""
  column = lambda k: np.array([r[k] for r in fitted], float)
  fit = laws.fit_chinchilla(column('params'), column('tokens'), column('loss'), tied=tied,
                            bootstrap=200)
  told = [laws.predict(fit, r['params'], r['tokens'], force=True) for r in unseen]
  errors = [100 * (t.loss / r['loss'] - 1) for t, r in zip(told, unseen, strict=True)]
  return {'errors': {r['run']: round(e, 2) for r, e in zip(unseen, errors, strict=True)},
          'mean_error': round(float(np.mean(np.abs(errors))), 3),
          'within_90': sum(t.low <= r['loss'] <= t.high for t, r in zip(told, unseen, strict=True)),
          'half_width': None if np.isinf(told[0].high) else round(float(np.mean(
            [50 * (t.high - t.low) / t.loss for t in told])), 2)}


def _olmo(rows: list[dict], path: pathlib.Path) -> dict:
  final = [r for r in rows if r['final']]
  of = lambda *ladders: [r for r in final if r['ladder'] in ladders]
  found = {'1.3B': predict(of('190M', '370M', '760M'), of('1B')),
           '7B-4T': predict(of(*_OLMO), [r for r in of('target') if 'peteish7' in r['run']])}
  task_errors = {}
  for task in _TASKS:
    law = scaling_page.read_task(
      str(path), f'{task} accuracy', f'{task} bits', rows={'paper': '1'}, bootstrap=100)
    for r in of('target'):
      told = law.predict(r['params'], r['tokens'], force=True)
      actual = float(r[f'{task} accuracy'])
      task_errors[f'{task}, {r["run"].split("_")[0]}'] = (
        round(100 * (told.loss - actual), 1), bool(told.low <= actual <= told.high))
  points = [abs(e) for e, _ in task_errors.values()]
  return found | {'tasks': task_errors, 'tasks_mean_points': round(float(np.mean(points)), 2),
                  'tasks_within_90': sum(held for _, held in task_errors.values())}


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.public_laws', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--olmo', type=pathlib.Path, help='folder of the ladder’s CSV files')
  parser.add_argument('--gadre', type=pathlib.Path, help='folder with models/')
  parser.add_argument('--output', type=pathlib.Path, required=True, help='for the tables')
  args = parser.parse_args(argv)
  args.output.mkdir(parents=True, exist_ok=True)
  found: dict[str, dict] = {}
  for name, folder, rows_of in (('olmo', args.olmo, olmo_rows), ('gadre', args.gadre, gadre_rows)):
    if not folder:
      continue
    rows = list(rows_of(folder))
    if not rows:
      parser.error(f'--{name}={folder}: no runs there')
    path = args.output / f'{name}.csv'
    with open(path, 'w', newline='', encoding='utf-8') as f:
      out = csv.DictWriter(f, list(rows[0]))
      out.writeheader()
      out.writerows(rows)
    if name == 'olmo':
      found[name] = _olmo(rows, path)
    else:
      found[name] = {}
      for corpus in dict.fromkeys(r['experiment'] for r in rows):
        fitted, unseen = ([r for r in rows if r['experiment'] == corpus
                           and (r['params'] > 1e9) == large] for large in (False, True))
        found[name][corpus] = predict(fitted, unseen, tied=True)
  print(json.dumps({'benchmark': 'public_laws', **found}))


if __name__ == '__main__':
  main()
