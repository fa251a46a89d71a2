"""Tokenised corpora of conversations and of preference pairs, without curation."""

import math
import os

import numpy as np

from data_beam import records


def write(folder, name, splits, vocab_size, *, modes=('think',), turn_id=1, end_id=2):
  """`{split: [(prompt, answer[, rejected answer]) …]}` of token ids; returns the corpus's path."""
  path = records.corpus_path(str(folder), name)
  os.makedirs(path)
  shards, info = [], {}
  for split, documents in splits.items():
    rows, tokens = [], 0
    for i, (prompt, *answers) in enumerate(documents):
      ids = [np.asarray([*prompt, *answer], '<u2').tobytes() for answer in answers]
      masks = [bytes([0] * len(prompt) + [1] * len(answer)) for answer in answers]
      n, *rejected = (len(prompt) + len(answer) for answer in answers)
      tokens += n
      values = {
        'id': f'{name}-{split}-{i:05d}', 'tokens': ids[0], 'loss_mask': masks[0],
        'rejected_tokens': b''.join(ids[1:]), 'rejected_loss_mask': b''.join(masks[1:]),
        'num_bytes': n, 'source': name, 'language': 'en', 'weight': 1.0, 'quality': math.nan,
        'cluster_size': 1, 'dump': '', 'mode': modes[i % len(modes)]}
      data = records.encode('conversations', values)
      rows.append(records.Record(
        split, values['id'], data, (('documents', 1),), (n, sum(rejected))))
    shards.append(records.write_shard(
      ((split, 0), rows), path=path, name=name, shards={split: 1},
      sidecars=('lengths', 'rejected_lengths'), ready=None))
    info[split] = {'documents': len(documents), 'tokens': tokens, 'bytes': tokens,
                   'shards': records.shard_entries(shards, split)}
  manifest = {'name': name, 'kind': 'tokenised', 'dtype': '<u2', 'vocab_size': vocab_size,
              'bos': False, 'loss_mask': True, 'turn_id': turn_id, 'end_id': end_id,
              'splits': info}
  return records.publish(path, 'conversations', shards, manifest)
