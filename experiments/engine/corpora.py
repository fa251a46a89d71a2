"""What a config brings from elsewhere: corpora, a tokenizer; whether they fit, before any step."""

import glob
import os
from collections.abc import Mapping
from typing import Any

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
    if not path or name in (*found, 'web', 'pdf'):
      raise ValueError(
        f'--config.corpora: {entry!r} is not NAME=DIR with a name of its own, other than web and '
        'pdf, and the directory of a corpus, such as wiki=corpora/wiki/1.0.0'
      )
    manifest = _read_manifest(path)
    if manifest['kind'] == 'tokenised':
      if not c.tokenizer.path:
        raise ValueError(
          f'{path} is tokenised: give its tokenizer, {manifest["tokenizer"]}, with '
          '--config.tokenizer.path'
        )
      if _sha256(c.tokenizer.path) != manifest['tokenizer_sha256']:
        raise ValueError(f'{path} was tokenised by another file than {c.tokenizer.path}')
    elif manifest['kind'] != 'curated':
      raise ValueError(f'{path} holds {manifest["kind"]}, neither documents nor tokens')
    found[name] = manifest
  return found


def _read_manifest(path: str) -> dict:
  from smoljax.data import corpus

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
  some_to_tokenise = c.web.enabled or c.pdf.enabled or len(tokenised) < len(manifests)
  path = c.tokenizer.path
  recorded = corpus.special_tokens(tokenised | ({path: own} if some_to_tokenise else {}))
  special = own | recorded
  if special['eos_id'] is None:
    raise ValueError(f'--config.tokenizer.path: {path} has no end-of-text token: {NAME_EOS}')
  if c.tokenize.bos and special['bos_id'] is None:
    raise ValueError(
      f'--config.tokenizer.path: {path} has no begin-of-text token: say '
      '--config.tokenize.bos=False, or name its "bos_token" in a tokenizer_config.json beside it')
  begin = {m.get('bos', c.tokenize.bos) for m in tokenised.values()}
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
