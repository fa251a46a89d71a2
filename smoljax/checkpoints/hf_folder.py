"""Hugging Face folders as files: those of strangers, opened with checks, and those that we write.

Of a stranger's folder nothing is believed. Nothing outside of it is read, whatever an index or a
link in it names, and headers are held against each other before any weight is read: what is wrong
is one line, in well under a second. In a folder that is written, what others have there stays.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import safetensors

from smoljax import files

TOKENIZER_FILES = (
  'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
  'chat_template.jinja', 'tokenizer.model', 'vocab.json', 'merges.txt',
)
CONFIG, GENERATION = 'config.json', 'generation_config.json'
SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
MARK = 'smoljax_export.json'  # what an export wrote: name → [bytes, time of change in ns]

# Stored type: the bits of its exponent, which are all ones in what is not finite.
EXPONENTS = {'BF16': 0x7F80, 'F16': 0x7C00, 'F32': 0x7F800000}
_MAX_JSON = 64 << 20  # bytes; an index of 100,000 tensors has 10 MB


def is_hf(path: str) -> bool:
  """Whether this is meant to be a Hugging Face folder. FileNotFoundError if it is no folder."""
  if not os.path.isdir(path):
    raise FileNotFoundError(f'no model at {path}: give a run, its checkpoints or a HF folder')
  names = os.listdir(path)
  if any(name.endswith('.safetensors') for name in names):
    return True
  return CONFIG in names and not {'model_type', 'architectures'}.isdisjoint(
    read_json(path, CONFIG) or {})


def find(path: str, name: str) -> str | None:
  """Where the folder's file of this name is, links followed; None if there is none.

  Raises ValueError for what leads out of the folder, and for what is no plain file. The cache of
  huggingface_hub is such a folder too: its files are links to `blobs` beside `snapshots`.
  """
  root = os.path.realpath(path)
  file = os.path.join(root, name)
  if not os.path.lexists(file):
    return None
  real, snapshots = os.path.realpath(file), os.path.dirname(root)
  roots = [root]
  if os.path.basename(snapshots) == 'snapshots':
    roots.append(os.path.join(os.path.dirname(snapshots), 'blobs'))
  if not any(real.startswith(r + os.sep) for r in roots):
    raise ValueError(f'{path}: {name} leads out of the folder, to {real}: only what lies in it is '
                     'read')
  if not os.path.exists(real):
    raise FileNotFoundError(f'{path}: {name} is a link to nothing: download it again')
  if not stat.S_ISREG(os.stat(real).st_mode):
    raise ValueError(f'{path}: {name} is no plain file')
  return real


def check_links(path: str) -> None:
  """Raises as `find` if any file by which a model or tokenizer is read leads out of the folder."""
  for name in (*TOKENIZER_FILES, CONFIG, GENERATION, INDEX, SINGLE):
    find(path, name)


def read_json(path: str, name: str) -> dict[str, Any] | None:
  """The object in a JSON file of the folder; None if there is no such file.

  Raises ValueError for anything else in it, and as `find`.
  """
  file = find(path, name)
  if file is None:
    return None
  size = os.path.getsize(file)
  if size > _MAX_JSON:
    raise ValueError(f'{path}: {name} has {size:,} bytes: no such file of a model has')
  try:
    with open(file, encoding='utf-8') as f:
      value = json.load(f)
  except (ValueError, RecursionError) as e:  # not UTF-8, not JSON, nested without end
    raise ValueError(f'{path}: {name} is no JSON: {_brief(e)}') from None
  if not isinstance(value, dict):
    raise ValueError(f'{path}: {name} is {type(value).__name__}, not a JSON object')
  return value


class Weights:
  """The tensors of a folder by name: what their headers say, and each one on request.

  Attributes:
    files: tensor name → name of its file, of model.safetensors or what the index lists.
  Raises:
    FileNotFoundError: there are none, or a file is missing.
    ValueError: index or file is not what it should be, or leads out of the folder.
  """

  def __init__(self, path: str):
    self.path = path
    self.files = _weight_files(path)
    self._opened = {name: _open(path, name) for name in sorted(set(self.files.values()))}
    stored = {name: set(f.keys()) for name, f in self._opened.items()}
    for name, file in sorted(self.files.items()):
      if name not in stored[file]:
        raise ValueError(f'{path}: {file} lacks {name}, which the index says it holds')

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a tensor."""
    return tuple(self._slice(name).get_shape())

  def dtype(self, name: str) -> str:
    """The type that a tensor is stored in, in safetensors' words: BF16, F16, F32 or another."""
    return self._slice(name).get_dtype()

  def read(self, name: str) -> np.ndarray:
    """The tensor itself. Raises ValueError unless all of it is finite."""
    with _open(self.path, self.files[name]) as f:  # anew: pages of an open file count as memory
      x = f.get_tensor(name)
    bits = EXPONENTS[self.dtype(name)]
    unsigned = x.view(f'u{x.dtype.itemsize}')
    if x.size and np.max(unsigned & unsigned.dtype.type(bits)) == bits:
      raise ValueError(f'{self.path}: {name} holds values that are not finite: the file is damaged '
                       'or its training diverged')
    return x

  def _slice(self, name):
    return self._opened[self.files[name]].get_slice(name)


class Export:
  """A folder that is written, file by file; MARK in it lists what exports wrote.

  Args:
    path: the folder, which need not be there.
    own: names of the files that will be written.
  Raises:
    FileExistsError: one of them, or other weights, lie there and are not as an export left them.
  """

  def __init__(self, path: str, own: Collection[str]):
    self._path, self._own = path, frozenset(own)
    there = set(os.listdir(path)) if os.path.isdir(path) else set()
    marked = (read_json(path, MARK) or {}).get('files') if MARK in there else None
    self._files: dict[str, Any] = {
      k: v for k, v in (marked if isinstance(marked, dict) else {}).items()
      if os.path.basename(k) == k}
    for name in sorted(there):
      weights = name.startswith('model') and '.safetensors' in name
      if (name in own or weights) and self._files.get(name) != self._state(name):
        raise FileExistsError(
          f'{path} holds {name}, which no export wrote (or which was changed since): give another '
          'folder, or move it away')

  def write(self, name: str, write: Callable[[str], Any]) -> None:
    """Has a file written beside, then renames: no half-written file under its own name."""
    file, mark = os.path.join(self._path, name), os.path.join(self._path, MARK)
    if not os.path.exists(mark):
      self._note()
    write(f'{file}.tmp')
    shutil.copymode(mark, f'{file}.tmp')  # safetensors lets nobody but the owner read
    files.replace(f'{file}.tmp', file)
    self._files[name] = self._state(name)
    self._note()

  def remove(self, name: str) -> None:
    """Removes a file that an export wrote; nothing if there is none."""
    if self._files.pop(name, None):
      os.remove(os.path.join(self._path, name))
      self._note()

  def others(self) -> list[str]:
    """What earlier exports wrote and this one does not."""
    there = [name for name in self._files if self._files[name] == self._state(name)]
    return sorted({*there} - self._own)

  def _state(self, name):
    file = os.path.join(self._path, name)
    if os.path.islink(file) or not os.path.isfile(file):
      return None
    s = os.stat(file)
    return [s.st_size, s.st_mtime_ns]

  def _note(self):
    file = os.path.join(self._path, MARK)
    files.write_json(file, {'written_by': 'smoljax', 'files': self._files}, indent=2)


def fingerprint(path: str) -> list[tuple[str, str]]:
  """(name, sha256) of what decides the weights: config.json, the index and the weights' files.

  A file is read once in a process, unless it changes.
  """
  names = sorted({*_weight_files(path).values()})
  single = find(path, SINGLE)
  found = [(name, find(path, name)) for name in (CONFIG, *(() if single else (INDEX,)), *names)]
  return [(name, files.sha256(file, again=False)) for name, file in found if file]


def _weight_files(path: str) -> Mapping[str, str]:
  """Tensor name → file name, from the single file or the index."""
  if find(path, SINGLE):
    return dict.fromkeys(_open(path, SINGLE).keys(), SINGLE)
  index = read_json(path, INDEX)
  if index is None:
    raise FileNotFoundError(f'{path} has neither {SINGLE} nor {INDEX}: only safetensors are read')
  named = index.get('weight_map')
  if not isinstance(named, dict) or not all(isinstance(f, str) for f in named.values()):
    raise ValueError(f'{path}: {INDEX} has no weight_map from tensors to files')
  absent = []
  for name in sorted(set(named.values())):
    if os.path.basename(name) != name or not name.endswith('.safetensors'):
      raise ValueError(f'{path}: {INDEX} names {name!r}, which is no safetensors file of this '
                       'folder')
    if find(path, name) is None:
      absent.append(name)
  if absent:
    raise FileNotFoundError(f'{path}: the index names {absent[0]}, which is not there '
                            f'({len(absent)} file(s) missing): download them again')
  return named


def _open(path, name):
  try:
    return safetensors.safe_open(find(path, name), 'np')
  except (safetensors.SafetensorError, OSError) as e:
    raise ValueError(f'{path}: {name} is not a whole safetensors file ({_brief(e)}): download it '
                     'again') from e


def _brief(error):
  text = ' '.join(str(error).split())
  return text if len(text) < 120 else f'{text[:110]}…'
