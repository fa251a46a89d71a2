"""Checkpoints that can be trusted: written by Orbax, sealed and verified by us.

`checkpoints/{step}/` holds the items `params`, `opt_state`, `data` (position of the input, JSON)
and `meta` (model config, resolved run config, code version, JSON). Orbax writes in the background
and publishes a step by renaming, but it neither checks array bytes when reading nor falls back to
an older step. So every published step is *sealed*, in the background too: sizes and sha256 of its
files go to `checkpoints/_integrity/{step}.json`. Restoring takes the newest step whose files still
match its seal and moves any newer one, damaged or unsealed, to `checkpoints/_quarantine`.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from smoljax import distributed
from smoljax.model import ModelConfig

_SEALS = '_integrity'
_QUARANTINE = '_quarantine'


class Checkpoints:
  """The checkpoints of one run; use as a context manager, so that the last save is awaited."""

  def __init__(self, directory: str, *, keep: int = 3):
    self._root = pathlib.Path(directory).absolute()  # Orbax fails later on relative paths
    self._root.mkdir(parents=True, exist_ok=True)
    self.quarantined = self._quarantine_bad()
    distributed.wait('bad checkpoints are away')
    self._manager = ocp.CheckpointManager(
      self._root,
      options=ocp.CheckpointManagerOptions(
        # One more than asked for: the newest is not sealed until a while after it is there.
        preservation_policy=ocp.checkpoint_managers.LatestN(keep + 1),
        save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
        cleanup_tmp_directories=True,
      ),
      item_names=('params', 'opt_state', 'data', 'meta'),
    )
    self._keep = keep
    self._background = concurrent.futures.ThreadPoolExecutor(1, 'seal')
    self._pending: concurrent.futures.Future[Any] = self._background.submit(self._seal)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def save(self, step: int, params: Any, opt_state: Any, data: dict, meta: dict) -> None:
    """Starts writing `step`; returns once the arrays are copied off the device.

    Waits for the save before, if that is not sealed yet.

    Raises OSError, as `close` does, if the save before could not be written.
    """
    self._settle()
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        opt_state=ocp.args.StandardSave(opt_state),
        data=ocp.args.JsonSave(data),
        meta=ocp.args.JsonSave(meta),
      ),
    )
    self._pending = self._background.submit(self._seal)

  def reserve(self, arrays: Any) -> None:
    """Has the memory ready through which a first save of such arrays leaves a GPU.

    It is page-locked, which takes the driver a minute for 40 GB; here it does so in the background,
    while programs are compiled. Elsewhere nothing is needed.

    Args:
      arrays: tree of `jax.ShapeDtypeStruct` with shardings.
    """
    if jax.default_backend() == 'gpu':
      self._settle()
      self._pending = self._background.submit(_reserve, jax.tree.leaves(arrays))

  def lacks(self, arrays: Any, saves: int) -> int:
    """Bytes that the disk has too few for so many more saves of such arrays; 0 if there is room.

    Args:
      arrays: tree of what has a shape and a dtype.
    """
    each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
    more = min(saves, self._keep + 2 - len(_steps(self._root)))  # one is written, then one goes
    return max(0, more * each - shutil.disk_usage(self._root).free)

  def restore(self, params: Any, opt_state: Any) -> tuple[int, Any, Any, dict, dict] | None:
    """The newest verified step as `(step, params, opt_state, data, meta)`; None if there is none.

    Args:
      params, opt_state: trees of `jax.ShapeDtypeStruct` with shardings, on any mesh.
    Raises:
      ValueError: the stored trees have other names, shapes or dtypes.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    restored: Any = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(params),
        opt_state=ocp.args.StandardRestore(opt_state),
        data=ocp.args.JsonRestore(),
        meta=ocp.args.JsonRestore(),
      ),
    )
    return step, restored.params, restored.opt_state, restored.data, restored.meta

  def discard(self, first: int) -> None:
    """Moves step `first` and all later ones to the quarantine: the run takes them again."""
    self._settle()
    if distributed.is_lead():
      for step in _steps(self._root):
        if step >= first:
          self._quarantine(step)
    distributed.wait('discarded')
    self._manager.reload()

  def latest(self) -> int | None:
    """The newest step, once it is written."""
    self._manager.wait_until_finished()
    return self._manager.latest_step()

  def close(self) -> None:
    """Waits for the last save and its seal; raises OSError if it could not be written."""
    with self._background:
      self._settle()
      self._manager.close()

  def _settle(self) -> None:
    try:
      self._pending.result()
    except Exception as e:  # Orbax has ValueError for a full disk, and other errors for others
      raise OSError(
        f'{self._root}: writing a checkpoint failed. Make room, if the disk is full, '
        f'and run the same command again: it goes on from the newest whole one. ({e})') from e

  def _seal(self) -> None:
    self._manager.wait_until_finished()
    if not distributed.is_lead():
      return
    seals = self._root / _SEALS
    steps = {str(s) for s in self._manager.all_steps()}
    for step in steps:
      if not (seals / f'{step}.json').exists():
        _write_json(seals / f'{step}.json', _digests(self._root / step))
    for seal in seals.glob('*.json'):
      if seal.stem not in steps:
        seal.unlink()

  def _quarantine_bad(self) -> list[int]:
    """Moves steps newer than the newest intact one away; returns them."""
    bad = []
    for step in reversed(_steps(self._root)):
      if _intact(self._root, step):
        break
      bad.append(step)
    distributed.wait('all have looked at the checkpoints')
    if distributed.is_lead():
      for step in bad:
        self._quarantine(step)
    return bad

  def _quarantine(self, step: int) -> None:
    target = self._root / _QUARANTINE / str(step)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    (self._root / str(step)).rename(target)


def _reserve(arrays: list[jax.ShapeDtypeStruct]) -> int:
  """Fills the pool of page-locked memory, which never shrinks, with what this process writes.

  Returns its bytes.
  """
  held = []
  for x in arrays:
    first: dict[str, jax.Device] = {}  # of the copies of a part, the first one is saved
    for device, index in x.sharding.devices_indices_map(x.shape).items():
      first.setdefault(str(index), device)
    for device in first.values():
      if device.process_index == jax.process_index():
        place = jax.sharding.SingleDeviceSharding(device, memory_kind='pinned_host')
        held.append(jax.device_put(np.zeros(x.sharding.shard_shape(x.shape), x.dtype), place))
  return sum(x.nbytes for x in jax.block_until_ready(held))


def restore_other(path: str, params: Any, opt_state: Any) -> tuple[int, Any, Any, dict, dict]:
  """`Checkpoints.restore` from another run, of which nothing is changed.

  Args:
    path: as for `load_params`.
    params, opt_state: trees of `jax.ShapeDtypeStruct` with shardings, on any mesh.
  Raises:
    FileNotFoundError: no intact checkpoint there.
    ValueError: the stored trees have other names, shapes or dtypes.
  """
  root, _ = find(path)
  with ocp.StandardCheckpointer() as reader:
    params = reader.restore(root / 'params', params)
    opt_state = reader.restore(root / 'opt_state', opt_state)
  return (int(root.name), params, opt_state, _read_json(root / 'data'), _read_json(root / 'meta'))


def load_params(path: str) -> tuple[ModelConfig, dict, dict]:
  """Reads a checkpoint's parameters for evaluation, export or distillation.

  Args:
    path: a run's `checkpoints` folder (its newest intact step is taken), one step's folder, or a
      workdir that holds `checkpoints`.
  Returns:
    `(model config, params as float32 arrays on the default device, meta)`.
  Raises:
    FileNotFoundError: no intact checkpoint there.
  """
  root, _ = find(path)
  meta = load_meta(path)
  with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      ),
      reader.metadata(root / 'params').item_metadata.tree,
    )
    params = reader.restore(root / 'params', abstract)
  params.pop('distill', None)  # what a student learned beside itself
  return ModelConfig(**meta['model']), params, meta


def load_meta(path: str) -> dict:
  """What a run says of itself in its checkpoint: config, tokenizer, model, fingerprint of its data.

  Raises FileNotFoundError where there is no intact checkpoint at `path` (as for `load_params`).
  """
  return _read_json(find(path)[0] / 'meta')


def _read_json(folder: pathlib.Path) -> dict:
  options = _alone()
  handler = ocp.JsonCheckpointHandler(multiprocessing_options=options)
  with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
    return reader.restore(folder)


def _alone() -> ocp.options.MultiprocessingOptions:
  """This process reads for itself: others of the run may not come along."""
  me = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'process{me}')


def find(path: str) -> tuple[pathlib.Path, dict[str, list]]:
  """The folder of the newest intact step at `path` (as for `load_params`), and its digests.

  Raises FileNotFoundError where there is none.
  """
  root = pathlib.Path(path).absolute()
  if (root / 'checkpoints').is_dir():
    root = root / 'checkpoints'
  if re.fullmatch(r'\d+', root.name) and (root / 'params').is_dir():
    root, steps = root.parent, [int(root.name)]
  else:
    steps = _steps(root)
  intact = next((s for s in reversed(steps) if _intact(root, s)), None)
  if intact is None:
    raise FileNotFoundError(
      f'{path}: no intact checkpoint; give a folder with checkpoints/STEP that a run has finished'
    )
  return root.resolve() / str(intact), _sealed(root, intact) or {}


def _steps(root: pathlib.Path) -> list[int]:
  if not root.is_dir():
    return []
  return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and p.is_dir())


def _intact(root: pathlib.Path, step: int) -> bool:
  seal = _sealed(root, step)
  return seal is not None and seal == _digests(root / str(step))


def _sealed(root: pathlib.Path, step: int) -> dict[str, list] | None:
  """The digests that a step was sealed with; None if it was not."""
  seal = root / _SEALS / f'{step}.json'
  return json.loads(seal.read_text()) if seal.exists() else None


def _digests(folder: pathlib.Path) -> dict[str, list]:
  digests = {}
  for path in sorted(p for p in folder.rglob('*') if p.is_file()):
    with open(path, 'rb') as f:
      digest = hashlib.file_digest(f, 'sha256').hexdigest()
    digests[path.relative_to(folder).as_posix()] = [path.stat().st_size, digest]
  return digests


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.parent.mkdir(exist_ok=True)
  temporary = path.with_suffix('.tmp')
  with open(temporary, 'w') as f:
    json.dump(value, f)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)
