"""A finished experiment's key figures."""

from typing import Any

from experiments.engine.cli import read_json
from experiments.engine.graph import Graph


def summarize(graph: Graph) -> dict:
  """The run's key figures, from what the finished steps left."""
  done = {s.name: graph.result(s) for s in graph.steps if graph.done(s)}
  summary: dict[str, Any] = {
    'documents': {
      n: {'in': done[n]['documents_in'], 'kept': done[n]['documents']}
      for n in ('web', 'pdf')
      if n in done
    },
    'tokens': {n[9:]: r['tokens'] for n, r in done.items() if n.startswith('tokenize_')},
  }
  if merged := done.get('merge'):
    summary |= {'parameters': merged['parameters'], 'loss': {}}
  if train := done.get('train'):
    summary['tokens']['trained'] = train['tokens']
    keys = ('parameters', 'non_embedding_parameters', 'flops', 'tokens_per_sec', 'goodput', 'time',
            'device')
    summary |= {k: train[k] for k in keys}
    summary['loss'] = dict(train['loss'])
  if evaluate := done.get('evaluate'):
    scores = read_json(str(graph.workdir / 'evals' / evaluate['file']))
    bits = scores['bits_per_byte']
    tokens = sum(b['tokens'] for b in bits.values())
    for key, field in (('validation', 'loss'), ('unigram', 'unigram_loss')):
      summary['loss'][key] = sum(b[field] * b['tokens'] for b in bits.values()) / tokens
    summary['bits_per_byte'] = {n: b['bpb'] for n, b in bits.items()}
    summary['tasks'] = {n: t[t['metric']] for n, t in scores['tasks'].items()}
    if written := scores.get('generation'):
      score = lambda row: row[row['metric']]
      summary['generation'] = {
        n: {mode: score(row) for mode, row in modes.items()} for n, modes in written.items()}
  summary['seconds'] = {n: r['seconds'] for n, r in done.items()}
  return summary
