"""Checkpoints that can be trusted: written by Orbax, sealed and verified by us.

`checkpoints/{step}/` holds the items `params`, `opt_state`, `data` (position of the input, JSON)
and `meta` (model config, resolved run config, code version, JSON). Orbax writes in the background
and publishes a step by renaming, but it neither checks array bytes when reading nor falls back to
an older step. So every published step is *sealed* (seals.py), in the background too. Restoring
takes the newest step whose files still match its seal, at a roll-back too, and puts any newer one,
damaged or unsealed, into quarantine.

With a mirror in an object store (mirror.py), sealed steps are sent there in the background, what is
to be kept is kept there, and here only the newest; a workdir that has lost its checkpoints, or a
new one, has them brought back.
"""

import concurrent.futures
import contextlib
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Collection, Container, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from smoljax import distributed, files, object_store
from smoljax.checkpoints import mirror, seals
from smoljax.model import ModelConfig

_BACK_OFF = 10.0  # times files.WAITS: seconds before what failed in the background is tried again


class Checkpoints:
  """The checkpoints of one run; use as a context manager, so that the last save is awaited.

  Args:
    keep: so many of the newest stay,
    keep_every: and the first one in so many steps, for ever; 0 = none;
    keep_best: and the one that was saved with the lowest score.
    elsewhere: URL of a folder in an object store that has them as well; '' = none.
    rows: files that go there with them.
    note: gets a line about what goes wrong, but not so wrong that the run ends.

  Attributes:
    quarantined: what was wrong with the steps that were put away.
  """

  def __init__(
    self, directory: str, *, keep: int = 3, keep_every: int = 0, keep_best: bool = False,
    elsewhere: str = '', rows: Sequence[pathlib.Path] = (), note: Callable[[str], None] = print,
  ):
    self._root = pathlib.Path(directory).absolute()  # Orbax fails later on relative paths
    self._root.mkdir(parents=True, exist_ok=True)
    self._note = note
    self.quarantined: list[str] = []
    self._mirror = (
      mirror.Mirror(elsewhere, rows, note) if elsewhere and distributed.is_lead() else None)
    self._sure = self._put_bad_away()
    if self._mirror and self._sure is None and (others := mirror.siblings(elsewhere)):
      note(f'warning: {elsewhere} has no checkpoints, but beside it other runs have: '
           f'{", ".join(others)}. Where one of them is meant, its config was another one')
    there = self._mirror.steps if self._mirror else None
    scores = {s: x.score for s, x in (there or {}).items() if x.score is not None}
    scores = scores | _scores(self._root) if keep_best else None
    self._policy = _Policy(keep, keep_every, scores, there)
    self._policy_there = _Policy(keep - 1, keep_every, scores)  # what is there is sealed
    self._unsent: Exception | None = None
    self._manager = self._open()
    self._background = concurrent.futures.ThreadPoolExecutor(1, 'seal')
    self._pending: concurrent.futures.Future[Any] = self._background.submit(self._begin)
    self._failures, self._not_before = 0, 0.0

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._root,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._policy,
        save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
        cleanup_tmp_directories=True,
      ),
      item_names=('params', 'opt_state', 'data', 'meta'),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def save(
    self, step: int, params: Any, opt_state: Any, data: dict, meta: dict, *,
    score: float | None = None, wait: bool = False,
  ) -> None:
    """Starts writing `step`; returns once the arrays are copied off the device.

    Waits for the save before, if that is not sealed and sent yet. A save that failed is said, and
    costs the steps in quarantine; `again` says when to save anew.

    Args:
      score: of this step, the lower the better, for keep_best.
      wait: until it is sealed; transient errors are waited out.
    Raises:
      OSError: as `close` does, if saving failed time and again, or in a run of several processes,
        which do not fail together.
    """
    self._settle()
    if self._policy.scores is not None and score is not None:
      self._policy.scores[step] = score
      meta = meta | {'score': score}
    arrays = ocp.args.Composite(
      params=ocp.args.StandardSave(params),
      opt_state=ocp.args.StandardSave(opt_state),
      data=ocp.args.JsonSave(data),
      meta=ocp.args.JsonSave(meta),
    )

    def start() -> None:
      try:
        self._manager.save(step, args=arrays)
        self._pending = self._background.submit(self._seal)
      except Exception as e:
        self._pending = concurrent.futures.Future()
        self._pending.set_exception(e)

    def finish() -> None:
      start()
      try:
        self._pending.result()
      except Exception:
        self._give_up()
        raise

    if not wait or jax.process_count() > 1:
      start()
      return
    try:
      files.retried(finish, self._note)
    except Exception as e:
      raise self._error(e) from e

  def again(self) -> bool:
    """Whether the last save failed, and it is time for another one."""
    return (jax.process_count() == 1 and self._pending.done()
            and self._pending.exception() is not None and time.monotonic() >= self._not_before)

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

  def lacks(self, arrays: Any, steps: Sequence[int]) -> int:
    """Bytes that the disk has too few for saves of such arrays at these steps; 0 if there is room.

    Args:
      arrays: tree of what has a shape and a dtype.
    """
    each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
    there = seals.steps(self._root)
    most = self._policy.most(sorted({*there, *steps}))
    more = max(0, min(len(steps), most - len(there)))
    free = shutil.disk_usage(self._root).free + seals.quarantined_bytes(self._root)  # goes first
    return max(0, more * each - free)

  def restore(
    self, params: Any, opt_state: Any, stored: Callable[[Any, Any], Any] = lambda here, _: here
  ) -> tuple[int, Any, Any, dict, dict] | None:
    """The newest verified step as `(step, params, opt_state, data, meta)`; None if there is none.

    Args:
      params, opt_state: trees of `jax.ShapeDtypeStruct` with shardings, on any mesh.
      stored: `(opt_state, what has the shapes of the stored one, as dicts and lists) -> opt_state`
        to restore in its place, where other shapes are understood.
    Raises:
      ValueError: the stored trees have other names, shapes or dtypes.
    """
    self._settle()
    step = self._manager.latest_step()
    if step is None or step != self._sure:  # the start has read its every byte
      self._sure = self._put_bad_away()
      self._manager.reload()
      step = self._manager.latest_step()
    self._sure = None  # a roll-back later looks anew
    if step is None:
      return None
    expected = stored(opt_state, _shapes(self._root / str(step) / 'opt_state'))
    restored: Any = files.retried(lambda: self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(params),
        opt_state=ocp.args.StandardRestore(expected),
        data=ocp.args.JsonRestore(),
        meta=ocp.args.JsonRestore(),
      ),
    ), self._note)
    return step, restored.params, restored.opt_state, restored.data, restored.meta

  def discard(self, first: int) -> None:
    """Moves step `first` and all later ones to the quarantine: the run takes them again.

    In the mirror they are deleted; raises OSError if it stays away, since they would come back.
    """
    self._settle()
    if self._mirror:
      self._mirror.keep([s for s in self._mirror.steps if s < first])
    self._quarantine([s for s in seals.steps(self._root) if s >= first])
    self._manager.reload()

  def latest(self) -> int | None:
    """The newest step, once it is written."""
    self._settle()
    return self._manager.latest_step()

  def close(self) -> None:
    """Waits for the last save and its seal; raises OSError if it could not be written or sent."""
    with self._background:
      try:
        self._pending.result()
      except Exception as e:
        raise self._error(e) from e
      self._manager.close()
    if self._mirror and self._unsent:
      raise OSError(
        f'{self._mirror.url} lacks the newest checkpoint, which is in {self._root}: run the same '
        f'command again to send it. ({self._unsent})') from self._unsent

  def _settle(self) -> None:
    try:
      self._pending.result()
      self._failures = 0
    except Exception as e:  # Orbax has ValueError for a full disk, and other errors for others
      if self._failures == len(files.WAITS) or jax.process_count() > 1:
        raise self._error(e) from e
      self._not_before = time.monotonic() + _BACK_OFF * files.WAITS[self._failures]
      self._failures += 1
      self._note(f'warning: {self._root}: a save failed, and will be tried again: {e}')
      self._give_up()
      self._pending = concurrent.futures.Future()
      self._pending.set_result(None)

  def _error(self, error: Exception) -> OSError:
    return OSError(
      f'{self._root}: writing a checkpoint failed. Make room, if the disk is full, '
      f'and run the same command again: it goes on from the newest whole one. ({error})')

  def _give_up(self) -> None:
    """Leaves nothing of a save that failed, and makes what room there can be made."""
    shutil.rmtree(self._root / seals.QUARANTINE, ignore_errors=True)
    with contextlib.suppress(Exception):  # what failed may be said again
      self._manager.close()
    self._manager = self._open()  # the old one takes the step for saved

  def _seal(self) -> None:
    self._manager.wait_until_finished()
    if distributed.is_lead():
      seals.seal(self._root, self._manager.all_steps())
    if self._mirror:
      self._send(self._mirror)

  def _begin(self) -> None:
    if self._mirror:
      with contextlib.suppress(OSError):  # another start may do it
        self._mirror.clean()
    self._seal()

  def _send(self, there: mirror.Mirror) -> None:
    """Sends what is missing, the newest first. A mirror that stays away stops no training."""
    try:
      for step in sorted({*seals.steps(self._root)} - there.steps.keys(), reverse=True):
        there.send(self._root, step, (self._policy.scores or {}).get(step))
      there.keep(self._policy_there.kept(sorted(there.steps)))
      self._unsent = None
    except Exception as e:
      self._unsent = e
      self._note(f'warning: a checkpoint could not be sent, and will be with the next one: {e}')

  def _put_bad_away(self) -> int | None:
    """The newest step that is as it was sealed, from the mirror if that is; newer ones go.

    One process of each host reads.
    """
    mine: dict[int, str] = {}
    if distributed.leads_host():
      for step in reversed(seals.steps(self._root)):
        if not (what := seals.fault(self._root, step)):
          break
        mine[step] = what
    found = distributed.gather('what is wrong with checkpoints', list(mine.items()))
    bad = {step: what for host in found for step, what in host}
    for what in bad.values():
      self._note(f'warning: {what}: the checkpoint goes to {self._root / seals.QUARANTINE}')
      self.quarantined.append(what)
    self._quarantine(sorted(bad))
    if self._mirror:
      self._mirror.bring(self._root, max(seals.steps(self._root), default=-1))
    distributed.wait('what there is elsewhere has come')
    return max(seals.steps(self._root), default=None)

  def _quarantine(self, steps: Sequence[int]) -> None:
    if distributed.is_lead():
      for step in steps:
        seals.quarantine(self._root, step)
    distributed.wait('they are put away')


def _scores(root: pathlib.Path) -> dict[int, float]:
  """The scores that steps were saved with."""
  found = {}
  for step in seals.steps(root):
    try:
      meta = files.read_json(root / str(step) / 'meta' / 'metadata')
    except (OSError, ValueError):  # an old one that is damaged is not the best
      continue
    if 'score' in meta:
      found[step] = meta['score']
  return found


class _Policy(ocp.checkpoint_managers.PreservationPolicy):
  """Which checkpoints stay; see Checkpoints.

  Of those that are elsewhere only the newest two do.
  """

  def __init__(
    self, keep: int, every: int, scores: dict[int, float] | None,
    elsewhere: Container[int] | None = None,
  ):
    self._keep, self._every, self.scores = keep, every, scores
    self._elsewhere = elsewhere

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    del context
    kept = self.kept([c.step for c in checkpoints])
    return [c.step in kept for c in checkpoints]

  def kept(self, steps: Sequence[int]) -> set[int]:
    """Of these steps, in order."""
    kept = set(steps[-self._keep - 1:])  # the newest is not sealed until a while after it is there
    if self._every:
      firsts = {step // self._every: step for step in reversed(steps)}
      kept |= {step for number, step in firsts.items() if number}
    if scored := [(score, step) for step in steps
                  if (score := (self.scores or {}).get(step)) is not None]:
      kept.add(min(scored)[1])
    if self._elsewhere is not None:
      kept = {step for step in kept if step not in self._elsewhere} | set(steps[-2:])
    return kept

  def most(self, steps: Sequence[int]) -> int:
    """How many there are at once when these steps are saved: one is written, then one goes."""
    kept = 2 if self._elsewhere is not None else len(self.kept(steps))
    return kept + 1 + (self.scores is not None)


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


def restore_other(
  path: str, params: Any, opt_state: Any, stored: Callable[[Any, Any], Any]
) -> tuple[int, Any, Any, dict, dict]:
  """`Checkpoints.restore` from another run, of which nothing is changed.

  Args:
    path: as for `load_params`.
    params, opt_state, stored: as for `Checkpoints.restore`.
  Raises:
    FileNotFoundError: no intact checkpoint there.
    ValueError: the stored trees have other names, shapes or dtypes.
  """
  root, _ = find(path, None)
  with ocp.StandardCheckpointer() as reader:
    params = reader.restore(root / 'params', params)
    opt_state = reader.restore(
      root / 'opt_state', stored(opt_state, _shapes(root / 'opt_state')))
  return (int(root.name), params, opt_state, _read_json(root / 'data'), _read_json(root / 'meta'))


def _shapes(item: pathlib.Path) -> Any:
  """A stored tree, of what has a shape and a dtype."""
  with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
    return reader.metadata(item).item_metadata.tree


def load_params(path: str, *, computed: bool = False) -> tuple[ModelConfig, dict, dict]:
  """Reads a checkpoint's parameters for evaluation, export or distillation.

  Args:
    path: a run's `checkpoints` folder (its newest intact step is taken), one step's folder, or a
      workdir that holds `checkpoints`; or the URL of a run's mirror, or of one step there.
    computed: in the dtype that the model computes in, not the float32 of training.
  Returns:
    `(model config, params on the default device, meta)`.
  Raises:
    FileNotFoundError: no intact checkpoint there.
  """
  root, _ = find(path, ('params', 'meta'))
  meta = _read_json(root / 'meta')
  config = ModelConfig(**meta['model'])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, config.dtype if computed else x.dtype,
      sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
    ),
    _shapes(root / 'params'),
  )
  with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
    params = reader.restore(root / 'params', abstract)
  params.pop('distill', None)  # what a student learned beside itself
  return config, params, meta


def load_meta(path: str) -> dict:
  """What a run says of itself in its checkpoint: config, tokenizer, model, fingerprint of its data.

  Raises FileNotFoundError where there is no intact checkpoint at `path` (as for `load_params`).
  """
  return _read_json(find(path, ('meta',))[0] / 'meta')


def _read_json(folder: pathlib.Path) -> dict:
  # Orbax's reader asks for jax's devices, of which a run that starts from these weights is only to
  # say how many it wants (`use_all_cores`).
  return files.read_json(folder / 'metadata')


def _alone() -> ocp.options.MultiprocessingOptions:
  """This process reads for itself: others of the run may not come along."""
  me = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'process{me}')


def find(
  path: str, items: Collection[str] | None = ()
) -> tuple[pathlib.Path, dict[str, list]]:
  """The folder of the newest intact step at `path` (as for `load_params`), and its digests.

  Of one in an object store (mirror.fetch), it is a copy, which holds only these items; None = all.

  Raises FileNotFoundError where there is none.
  """
  if object_store.is_url(path):
    return mirror.fetch(path, items)
  root = pathlib.Path(path).absolute()
  if (root / 'checkpoints').is_dir():
    root = root / 'checkpoints'
  if re.fullmatch(r'\d+', root.name) and (root / 'params').is_dir():
    root, steps = root.parent, [int(root.name)]
  else:
    steps = seals.steps(root)
  intact = next((s for s in reversed(steps) if not seals.fault(root, s, again=False)), None)
  if intact is None:
    merged = pathlib.Path(path, 'export')  # of an experiment that trains nothing
    raise FileNotFoundError(f'{path}: no intact checkpoint; give ' + (
      str(merged) if merged.is_dir() else 'a folder with checkpoints/STEP that a run has finished'))
  return root.resolve() / str(intact), seals.sealed(root, intact) or {}
