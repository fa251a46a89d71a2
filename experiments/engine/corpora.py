"""What a config brings from elsewhere: corpora, a tokenizer; whether they fit, before any step."""

import glob
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from smoljax import files


def globs(patterns: str) -> list[str]:
  """The parts of a field with commas."""
  return [p.strip() for p in patterns.split(',') if p.strip()]


def foreign_corpora(c: Any) -> dict[str, dict]:
  """Name → manifest, with its `path`, of each corpus that `c.corpora` brings from elsewhere.

  Raises ValueError for an entry that is no NAME=DIR, a name that a step makes, and a corpus that is
  not finished, or is of tokens but not by the tokenizer of this config.
  """
  found: dict[str, dict] = {}
  for entry in globs(c.corpora):
    name, _, path = entry.partition('=')
    if not path or not re.fullmatch(r'\w[\w.-]*', name) or name in (
      *found, 'web', 'pdf', 'conversations'):
      raise ValueError(
        f'--config.corpora: {entry!r} is not NAME=DIR with a word as a name of its own, other than '
        'web, pdf and conversations, and the directory of a corpus, such as '
        'wiki=corpora/wiki/1.0.0'
      )
    manifest = _read_manifest(path)
    if manifest['kind'] == 'tokenised':
      if not c.tokenizer.path:
        raise ValueError(
          f'{path} is tokenised: give its tokenizer, {manifest.get("tokenizer", "a file")}, with '
          '--config.tokenizer.path'
        )
      if _sha256(c.tokenizer.path) != manifest.get('tokenizer_sha256'):
        raise ValueError(f'{path} was tokenised by another file than {c.tokenizer.path}')
    elif manifest['kind'] != 'curated':
      raise ValueError(f'{path} holds {manifest["kind"]}, neither documents nor tokens')
    found[name] = manifest
  return found


def choose_corpora(c: Any) -> list[str]:
  """Leaves out the crawl of this machine's documentation where the config brings data of its own.

  Where web.input or pdf.input is given, or corpora, the section that has no input is switched off
  and its name taken out of the stages' mixtures. Corpora that no stage names and that come alone
  become the mixture, by size; so do conversations alone. Other `train.stages` undo it.

  Returns:
    A line about each change.

  Raises ValueError where it cannot be told what is meant, saying what to give.
  """
  _check_stages(c.train.stages)
  sections = ('web', 'pdf')
  inputs = [name for name in sections if c[name].enabled and c[name].input]
  brought = [entry.partition('=')[0] for entry in globs(c.corpora)]
  named = {*c.eval.corpora, *(name for stage in c.train.stages for name in stage['mixture'])}
  if c.conversations.input and not inputs and not brought and named <= {*sections}:  # fine-tuning
    c.web.enabled = c.pdf.enabled = False
    c.conversations.enabled = True
    c.train.stages = tuple(
      {**stage, 'mixture': {'conversations': 1.0}} for stage in c.train.stages)
    return ['mixture: conversations alone (--config.train.stages says otherwise)']
  notes, off = [], [name for name in sections if not c[name].enabled and name in named]
  for name in sections:
    if c[name].enabled and not c[name].input and (inputs or (brought and name not in named)):
      c[name].enabled = False
      off.append(name)
      notes.append(f'{name}: switched off, since it has no --config.{name}.input')
  inputs += ['conversations'] * bool(c.conversations.enabled and c.conversations.input)
  sections = (*sections, 'conversations')
  if brought and named <= {*sections}:
    if inputs:
      raise ValueError(
        f'no stage names {", ".join(brought)}: say how much of each with --config.train.stages='
        f'"({_stage([*inputs, *brought])},)"')
    sizes = {name: _size(m) for name, m in foreign_corpora(c).items()}
    for name in {*sections} & named:
      c[name].enabled = False
    c.train.stages = tuple({**stage, 'mixture': sizes} for stage in c.train.stages)
    return [f'mixture: {", ".join(brought)}, by size (--config.train.stages says otherwise)']
  stages = tuple({**stage, 'mixture': {k: w for k, w in stage['mixture'].items() if k not in off}}
                 for stage in c.train.stages)
  if all(stage['mixture'] for stage in stages) and any(
    name in off for stage in c.train.stages for name in stage['mixture']):
    c.train.stages = stages
    notes.append(f'mixture: without {", ".join(off)}')
  return notes


def _check_stages(stages: Any) -> None:
  """Raises ValueError for stages that are not made as configs/base.py has them."""
  form = f'give a tuple of stages, such as ({_stage(["web", "pdf"])},); on a command line in quotes'
  if not isinstance(stages, tuple | list) or not stages:
    raise ValueError(f'--config.train.stages={stages!r}: {form}')
  for stage in stages:
    mapping = isinstance(stage, Mapping | ConfigDict)
    if not mapping or {*stage} - {'shares'} != {'name', 'fraction', 'mixture'} or not isinstance(
      stage['mixture'], Mapping | ConfigDict) or not all(
      isinstance(x, int | float) and math.isfinite(x)
      for x in (stage['fraction'], *stage['mixture'].values())):
      shown = dict(stage) if mapping else stage
      raise ValueError(f'--config.train.stages: {shown!r} is no stage: {form}')
    if stage['fraction'] <= 0:
      raise ValueError(f'--config.train.stages: the fraction of {stage["name"]!r} must be above 0')


def _stage(names: Sequence[str]) -> str:
  """A stage of equal shares, as a config has it."""
  shares = ','.join(f"'{name}':{1 / len(names):.2g}" for name in names)
  return f"{{'name':'all','fraction':1.0,'mixture':{{{shares}}}}}"


def _size(manifest: Mapping[str, Any]) -> float:
  """Of a corpus in millions of characters, about: four a token."""
  return (manifest.get('characters') or 4 * manifest.get('tokens', 0)) / 1e6


def _read_manifest(path: str) -> dict:
  from smoljax import object_store
  from smoljax.data import corpus

  if object_store.is_url(path):
    return corpus.read_manifest(path) | {'path': path}
  for folder in (path, os.path.join(path, '1.0.0')):
    if os.path.exists(os.path.join(folder, '_SUCCESS')):
      return corpus.read_manifest(folder) | {'path': folder}
  if os.path.exists(path):
    raise ValueError(f'the corpus at {path} is not finished (it has no _SUCCESS): run again what '
                     'writes it')
  raise ValueError(f'no corpus at {path}: give a directory such as DIR/NAME/1.0.0')


def tokenizer_facts(c: Any) -> dict:
  """What of the tokenizer that the config names decides its tokens: its bytes, its special ids."""
  from smoljax.data import tokenizer

  path = c.tokenizer.path
  return {'sha256': _sha256(path), **tokenizer.load(path).special._asdict()}


def _sha256(path: str) -> str:
  if not os.path.isfile(path):
    raise FileNotFoundError(f'--config.tokenizer.path: {path} is no file: give a SentencePiece '
                            '.model or a tokenizer.json')
  return files.sha256(path)


def check_tokenizer(c: Any) -> None:
  """Refuses what tokenising or evaluation would refuse of the tokenizer that the config names.

  Raises:
    ValueError: corpora that were tokenised differ in their special tokens, or from those that are
      to be; there is no EOS; or no BOS where documents are to begin with one, or none does so.
  """
  from data_beam.special_tokens import NAME_EOS
  from smoljax.data import corpus

  if not c.tokenizer.path:  # ours, which has them all
    return
  own, manifests = tokenizer_facts(c), foreign_corpora(c)
  tokenised = {m['path']: m for m in manifests.values() if m['kind'] == 'tokenised'}
  curates = c.web.enabled or c.pdf.enabled or c.conversations.enabled
  some_to_tokenise = curates or len(tokenised) < len(manifests)
  path = c.tokenizer.path
  recorded = corpus.special_tokens(tokenised | ({path: own} if some_to_tokenise else {}))
  special = own | recorded
  if special['eos_id'] is None:
    raise ValueError(f'--config.tokenizer.path: {path} has no end-of-text token: {NAME_EOS}')
  if c.tokenize.bos and special['bos_id'] is None:
    raise ValueError(
      f'--config.tokenizer.path: {path} has no begin-of-text token: say '
      '--config.tokenize.bos=False, or name its "bos_token" in a tokenizer_config.json beside it')
  begin = {m.get('bos', c.tokenize.bos) for m in tokenised.values() if not m.get('loss_mask')}
  if begin and not some_to_tokenise and c.tokenize.bos not in begin:
    how = 'no document begins' if c.tokenize.bos else 'every document begins'
    raise ValueError(f'in {", ".join(tokenised)} {how} with BOS: say --config.tokenize.bos='
                     f'{not c.tokenize.bos}')


def step_fault(output: str, every_byte: bool) -> str:
  """`corpus_fault` of the corpora that a step left below a folder."""
  folders = sorted(glob.glob(os.path.join(output, '*', '1.0.0')))
  return next(filter(None, (corpus_fault(folder, every_byte) for folder in folders)), '')


def corpus_fault(path: str, every_byte: bool) -> str:
  """What is wrong with the files of the corpus at DIR/NAME/VERSION, the first by its name, or ''.

  Args:
    every_byte: of records too, which have checksums that their reader looks at; else their size.
  """
  from smoljax.data import corpus

  try:
    manifest = corpus.read_manifest(path)
    shards = [s for part in manifest.get('splits', {'train': manifest}).values()
              for s in part.get('shards', ())]
    return next(filter(None, (_shard_fault(path, shard, every_byte) for shard in shards)), '')
  except (OSError, ValueError) as e:
    return str(e)


def _shard_fault(folder: str, shard: Mapping[str, Any], every_byte: bool) -> str:
  file = os.path.join(folder, shard['file'])
  digests = {os.path.join(folder, shard[key.removesuffix('_sha256')]): shard[key]
             for key in shard if key.endswith('_sha256')}
  if every_byte:
    digests[file] = shard['sha256']
  if os.path.getsize(file) != shard['bytes']:
    return f'{file} is damaged'
  return next((f'{path} is damaged' for path, sha256 in digests.items()
               if files.sha256(path) != sha256), '')
