"""The training loop: it learns, resumes bit for bit, agrees across meshes, and refuses nonsense."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, on_devices, write_tokenised
from helpers.training import fit, leaves, tiny

from experiments.engine import config as config_lib
from smoljax import metrics, optim, sharding
from smoljax.checkpoints import store
from smoljax.checkpoints.store import Checkpoints
from smoljax.data.batches import make_stages, prefetch
from smoljax.train import loop, start, telemetry
from smoljax.train.step import make_plan
from smoljax.train.telemetry import Diverged
from smoljax.train.watchdog import Watchdog


@pytest.fixture(scope='module')
def undisturbed(markov_corpora, tmp_path_factory):
  directory = tmp_path_factory.mktemp('undisturbed')
  return fit(tiny(), markov_corpora, directory), directory


def test_it_learns_and_logs(undisturbed):
  result, directory = undisturbed
  assert result['loss']['final'] < result['loss']['first'] - 0.3
  rows = metrics.read_rows(directory / 'metrics.jsonl')
  assert [r['step'] for r in rows if 'train/loss' in r] == [2, 4, 6, 8, 10, 12]
  assert {r['stage'] for r in rows if 'stage' in r} == {'stable', 'decay'}
  assert [r['step'] for r in rows if {'val/web/bpb', 'val/pdf/bpb'} <= r.keys()] == [0, 6, 12]
  events = [r['event'] for r in metrics.read_rows(directory / 'events.jsonl')]
  assert events == [
    'start', 'stage', 'checkpoint', 'stage', 'checkpoint', 'checkpoint', 'stop',
  ]  # fmt: skip


def test_stages_are_evaluated_before_and_after(markov_corpora, tmp_path):
  changes = {'train.eval_every': 100, 'train.tokens': 6 * 8 * 64}
  fit(tiny(**changes), markov_corpora, tmp_path)
  rows = metrics.read_rows(tmp_path / 'metrics.jsonl')
  assert [r['step'] for r in rows if 'val/pdf/bpb' in r] == [0, 3, 6]
  told = [(r['step'], r['stage']) for r in rows if 'train/loss' in r]  # no row of two stages
  assert told == [(2, 'stable'), (3, 'stable'), (4, 'decay'), (6, 'decay')]


def test_runs_of_all_lengths_have_one_program():
  """So that what one compiled, the next reads from the cache (WORKDIR/xla)."""
  programs = []
  for tokens in (12 * 512, 700 * 512):
    c = tiny(**{'train.tokens': tokens})
    config, mesh = config_lib.model_config(c, 64), sharding.make_mesh(devices=jax.devices()[:1])
    plan = make_plan(c, config, mesh)
    ids = jax.ShapeDtypeStruct((8, 64), jnp.int32)
    batch = dict.fromkeys(('inputs', 'targets', 'segment_ids', 'positions'), ids)
    batch['source'] = jax.ShapeDtypeStruct((8,), jnp.int32)
    with jax.set_mesh(mesh):
      state = {'params': plan.params, 'opt_state': plan.opt_state}
      programs.append(plan.step(2).lower(state, batch, None, plan.info.horizon).as_text())
  assert programs[0] == programs[1]


def test_a_step_compiled_ahead_is_not_compiled_again(markov_corpora, tmp_path):
  c = tiny()
  run = start.prepare(c, config_lib.model_config(c, 64), markov_corpora, str(tmp_path))
  train_step, compiled = run.plan.step(len(run.batches.sources)), []
  count = lambda event, *_, **__: compiled.append(event) if 'backend_compile' in event else None
  jax.monitoring.register_event_duration_secs_listener(count)
  with jax.set_mesh(run.mesh), start.open_checkpoints(run, print) as checkpoints:
    ahead = threading.Thread(target=loop.compile_step, args=(run, train_step))
    ahead.start()
    ahead.join()
    assert compiled
    state, position = start.newest(run, checkpoints)[1:3]
    batch = sharding.shard_batch(next(prefetch(run.batches, position)), run.mesh)
    compiled.clear()
    train_step(state, batch, run.teacher_params, run.plan.info.horizon)
  assert not compiled


@pytest.mark.parametrize('error', [None, SystemExit])
def test_what_is_done_beside_the_steps_ends_with_them(monkeypatch, error):
  done, go_on = [], threading.Event()

  def work(run):
    done.append(run)
    yield
    telemetry._note_compiling('/jax/core/compile/backend_compile_duration', 9)
    go_on.wait()
    yield
    done.append('more')
    yield
    raise ValueError('told elsewhere')

  telemetry._compiled()
  told = SimpleNamespace(phase=lambda name: contextlib.nullcontext())
  monkeypatch.setattr(loop, '_has_time_for_more', lambda run: False)
  with loop.Beside('cpu', work, told) as background:
    background.begin()  # a processor has no time for it
  assert not done
  monkeypatch.setattr(loop, '_has_time_for_more', lambda run: True)
  with loop.Beside('run', work, told) as background:
    background.begin()
    background.begin()
    threading.Timer(.1, go_on.set).start()
    background.__exit__(error)
  assert done == ['run'] + ['more'] * (not error) and not telemetry._compiled()


@pytest.mark.parametrize('stop', [False, True])
def test_what_outlasts_the_steps_is_waited_for(monkeypatch, markov_corpora, tmp_path, stop):
  ended, done = [], []
  monkeypatch.setattr(Watchdog, '_end', lambda self, reason, *_, **__: (
    ended.append(reason), self._closed.set()))
  monkeypatch.setattr(loop, '_has_time_for_more', lambda run: True)
  monkeypatch.setattr(loop, '_has_room', lambda: True)
  over = threading.Event()  # no step is taken any more

  def work(run):
    if stop:
      os.kill(os.getpid(), signal.SIGTERM)
    over.wait(60)
    time.sleep(3)
    done.append(run)
    yield

  close, end = Checkpoints.close, loop._stop
  monkeypatch.setattr(Checkpoints, 'close', lambda self: (close(self), over.set()))
  monkeypatch.setattr(loop, '_stop', lambda *args: (over.set(), end(*args)))
  with contextlib.suppress(SystemExit):
    fit(tiny(**{'train.watchdog': .2}), markov_corpora, tmp_path, devices=1, beside=work)
  assert len(done) == 1 and not ended


def test_a_save_has_its_memory_ready_once_for_each_part():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  arrays = sharding.abstract(
    {'up_DF': np.zeros((64, 32), np.float32), 'scale_D': np.zeros(64, np.float32)}, mesh)
  assert store._reserve(list(arrays.values())) == 4 * (64 * 32 + 64)


def test_a_checkpoint_that_does_not_fit_is_said_and_the_one_before_stays(tmp_path):
  arrays, small = {'w': jax.random.normal(jax.random.key(0), (500_000,))}, {'s': np.ones(3)}
  with Checkpoints(str(tmp_path)) as saved:
    saved.save(1, arrays, small, {}, {})
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with pytest.raises(OSError, match='Make room'), Checkpoints(str(tmp_path)) as saved:
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
      saved.save(2, arrays, small, {}, {})
      saved.close()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  with Checkpoints(str(tmp_path)) as saved:
    assert saved.latest() == 1


def test_too_small_a_disk_is_known_before_the_first_step(monkeypatch, markov_corpora, tmp_path):
  free = 300_000
  monkeypatch.setattr(store.shutil, 'disk_usage', lambda _: SimpleNamespace(free=free))
  arrays = {'w': np.zeros(25_000, np.float32)}
  with Checkpoints(str(tmp_path / 'none'), keep=3) as saved:
    lacks = lambda saves: saved.lacks(arrays, range(1, saves + 1))
    assert [lacks(saves) for saves in (0, 3, 4, 5, 9)] == [0, 0, 1e5, 2e5, 2e5]
  free, said = 1000, []
  c = tiny(**{'train.tokens': 8 * 64})
  with on_devices(2):
    loop.train(
      c, config_lib.model_config(c, 64), markov_corpora, str(tmp_path), log_line=said.append)
  assert 'too few for the checkpoints' in said[0]


def test_profile_and_goodput(markov_corpora, tmp_path):
  result = fit(tiny(**{'xprof': '2:4'}), markov_corpora, tmp_path)
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  assert 0 < result['goodput'] <= 1
  with pytest.raises(ValueError, match='FIRST:END'):
    fit(tiny(**{'xprof': '2'}), markov_corpora, tmp_path / 'other')
  assert result['time']['compile'] > 0 and sum(result['time'].values()) == pytest.approx(1, 1e-3)


@pytest.mark.slow
def test_what_a_run_starts_from_is_read_without_asking_for_devices(undisturbed):
  """On CPUs a run says how many it wants when it has read that."""
  script = ('import sys; from jax._src import xla_bridge; from smoljax.checkpoints import store; '
            'store.load_meta(sys.argv[1]); assert not xla_bridge._backends')
  subprocess.run([sys.executable, '-c', script, str(undisturbed[1])], cwd=REPOSITORY, check=True)


def test_running_again_changes_nothing(undisturbed, markov_corpora):
  result, directory = undisturbed
  before = (directory / 'metrics.jsonl').read_text()
  assert fit(tiny(), markov_corpora, directory)['loss'] == result['loss']
  assert (directory / 'metrics.jsonl').read_text() == before


@pytest.mark.parametrize('damage', [
  'none', 'bit flip', pytest.param('unsealed', marks=pytest.mark.slow)])
def test_resume_is_bitwise(undisturbed, markov_corpora, tmp_path, damage):
  """Stop after 8 of 12 steps, hurt the newest checkpoint or not, continue: the same bits."""
  c = tiny()
  c.train.steps = 8  # the stages still follow 12 steps
  c_full = tiny()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(start, 'make_stages', lambda s, *_: make_stages(s, 12))
    make_optimizer = optim.make_optimizer
    patch.setattr(optim, 'make_optimizer', lambda o, p, _, m: make_optimizer(o, p, 12, m))
    fit(c, markov_corpora, tmp_path)
  newest = tmp_path / 'checkpoints' / '8'
  if damage == 'bit flip':
    victim = max((f for f in (newest / 'params').rglob('*') if f.is_file()), key=os.path.getsize)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
  elif damage == 'unsealed':
    (tmp_path / 'checkpoints' / '_integrity' / '8.json').unlink()
  fit(c_full, markov_corpora, tmp_path)
  events = metrics.read_rows(tmp_path / 'events.jsonl')
  resume = next(e for e in events if e['event'] == 'resume')
  assert resume['step'] == (8 if damage == 'none' else 4)
  for a, b in zip(leaves(undisturbed[1]), leaves(tmp_path), strict=True):
    np.testing.assert_array_equal(a, b)
  losses = [
    {r['step']: r['train/loss'] for r in metrics.read_rows(d / 'metrics.jsonl') if 'stage' in r}
    for d in (undisturbed[1], tmp_path)
  ]
  assert losses[0] == losses[1]


def test_continued_training_starts_from_the_given_weights(undisturbed, markov_corpora, tmp_path):
  """Rows twice as long and another rotary base, from the weights of a run: as SmolLM3's stages."""
  longer = {
    'data.seq_len': 128, 'train.init_from': str(undisturbed[1]), 'train.tokens': 2 * 8 * 128,
    'tokenizer.path': 'none: these corpora are of numbers',
    'train.batch_tokens': 8 * 128,
    'model.rope_theta': 5e5, 'optimizer.learning_rate': 1e-9, 'optimizer.weight_decay': 0.0,
  }  # fmt: skip
  result = fit(tiny(**longer), markov_corpora, tmp_path / 'longer')
  assert abs(result['loss']['first'] - undisturbed[0]['loss']['final']) < 0.2
  for a, b in zip(leaves(undisturbed[1]), leaves(tmp_path / 'longer'), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  start = metrics.read_rows(tmp_path / 'longer' / 'events.jsonl')[0]
  assert start['init_from'] == str(undisturbed[1])
  with pytest.raises(ValueError, match=r'down_FD.* shape \(4, 64, 32\), but .*\(4, 96, 32\)'):
    fit(tiny(**longer, **{'model.mlp_dim': 96}), markov_corpora, tmp_path / 'other')


def test_shorter_rows_keep_the_context(undisturbed, markov_corpora, tmp_path):
  """What is fine-tuned in short rows reads as far as before, where positions rotate as before."""
  shorter = {
    'data.seq_len': 32, 'train.init_from': str(undisturbed[1]), 'train.tokens': 2 * 8 * 32,
    'tokenizer.path': 'none: these corpora are of numbers', 'train.batch_tokens': 8 * 32}
  for name, more, context in (('same', {}, 64), ('other', {'model.rope_theta': 5e5}, 32)):
    fit(tiny(**shorter, **more), markov_corpora, tmp_path / name)
    assert store.load_params(str(tmp_path / name))[0].max_seq_len == context


def test_a_cooldown_branches_from_a_run(markov_corpora, tmp_path):
  """From a constant phase to the bits of a run that was meant to end there from the start."""
  one = dict(name='all', fraction=1.0, mixture=dict(web=0.75, pdf=0.25))
  short = {
    'train.stages': (one,), 'optimizer.warmup_steps': 2, 'optimizer.decay_steps': 4,
    'train.tokens': 8 * 8 * 64,
  }  # fmt: skip
  fit(tiny(**short), markov_corpora, tmp_path / 'short')
  fit(tiny(**short | {'train.tokens': 16 * 8 * 64}), markov_corpora, tmp_path / 'long')
  base = str(tmp_path / 'long' / 'checkpoints' / '4')
  branch = short | {'train.branch_from': base}
  fit(tiny(**branch), markov_corpora, tmp_path / 'branch')
  for a, b in zip(leaves(tmp_path / 'short'), leaves(tmp_path / 'branch'), strict=True):
    np.testing.assert_array_equal(a, b)
  first = metrics.read_rows(tmp_path / 'branch' / 'events.jsonl')[0]
  assert (first['event'], first['step'], first['branch_from']) == ('branch', 4, base)


@pytest.mark.slow
def test_a_branch_may_have_another_mixture(markov_corpora, tmp_path):
  """With a corpus that was not there before; but no other batches up to where it leaves."""
  one = dict(name='all', fraction=1.0, mixture=dict(web=0.75, pdf=0.25))
  short = {'optimizer.warmup_steps': 2, 'optimizer.decay_steps': 4, 'train.tokens': 8 * 8 * 64}
  stages = tuple(dict(name=n, fraction=0.5, mixture=m) for n, m in (
    ('all', dict(web=1.0)), ('decay', dict(web=0.5, pdf=0.5))))  # fmt: skip
  alone = (dict(name='all', fraction=1.0, mixture=dict(web=1.0)),)
  fit(tiny(**short | {'train.stages': alone}), markov_corpora, tmp_path / 'web')
  base = str(tmp_path / 'web' / 'checkpoints' / '4')
  branch = short | {'train.stages': stages, 'train.branch_from': base}
  result = fit(tiny(**branch), markov_corpora, tmp_path / 'mixed')
  assert result['steps'] == 8
  with pytest.raises(ValueError, match=r'before its step 4 other batches .*than this config'):
    fit(tiny(**branch | {'train.stages': (one,)}), markov_corpora, tmp_path / 'other')
  with pytest.raises(ValueError, match=r'is at step 4, but train.tokens=2048 end with step 4'):
    few = {'train.tokens': 4 * 8 * 64, 'train.stages': alone, 'optimizer.decay_steps': 2}
    fit(tiny(**branch | few), markov_corpora, tmp_path / 'over')


@pytest.mark.parametrize('mesh', [
  dict(data=2, fsdp=4), dict(fsdp=2, context=2),
  *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in (dict(data=8), dict()))])
def test_meshes_agree(undisturbed, markov_corpora, tmp_path, mesh):
  """The same losses on any mesh, to float32 rounding."""
  mesh = {'data': 1, 'fsdp': 1, 'tensor': 1, 'context': 1} | mesh
  c = tiny(**{f'mesh.{k}': v for k, v in mesh.items()}, **{'train.eval_every': 100})
  fit(c, markov_corpora, tmp_path, devices=int(np.prod(list(mesh.values()))))
  reference, got = (
    [r['train/loss'] for r in metrics.read_rows(d / 'metrics.jsonl') if 'train/loss' in r]
    for d in (undisturbed[1], tmp_path)
  )
  np.testing.assert_allclose(got, reference, rtol=2e-4)


@pytest.mark.slow
def test_each_process_can_read_what_is_told(markov_corpora, tmp_path, monkeypatch):
  """On a mesh whose axes reach over several processes, what is split no process holds whole."""
  read, get = [], jax.device_get
  monkeypatch.setattr(jax, 'device_get', lambda tree: (read.extend(
    x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)), get(tree))[1])
  fit(tiny(**{
    'mesh.fsdp': 2, 'mesh.tensor': 2, 'model.num_kv_heads': 2, 'optimizer.qk_clip.tau': 1.0,
    'diagnostics.every': 2, 'diagnostics.leaves': True, 'train.tokens': 2 * 8 * 64,
  }), markov_corpora, tmp_path, devices=4)
  assert len(read) > 50 and all(x.is_fully_replicated for x in read)


def test_accumulation_is_one_big_batch(undisturbed, markov_corpora, tmp_path):
  fit(tiny(**{'train.accumulate': 4}), markov_corpora, tmp_path)
  reference, got = (
    [r['train/loss'] for r in metrics.read_rows(d / 'metrics.jsonl') if 'train/loss' in r]
    for d in (undisturbed[1], tmp_path)
  )
  np.testing.assert_allclose(got, reference, rtol=2e-4)


@pytest.mark.parametrize('devices', [pytest.param(1, marks=pytest.mark.slow), 8])
def test_muon_by_a_flag(markov_corpora, tmp_path, devices):
  flags = {'normuon': .95, 'cautious_decay': True, 'beta_warmup': 4} if devices == 8 else {}
  flags = {f'optimizer.muon.{k}': v for k, v in flags.items()}
  result = fit(tiny(**flags | {'optimizer.name': 'muon'}), markov_corpora, tmp_path, devices)
  assert result['loss']['final'] < result['loss']['first'] - 0.3


@pytest.mark.parametrize(('name', 'measure'), [
  pytest.param('adamw', 'bound', marks=pytest.mark.slow),
  pytest.param('muon', 'exact', marks=pytest.mark.slow), ('muon', 'limit')])
def test_qk_clip_bounds_the_logits(markov_corpora, tmp_path, name, measure):
  """At this learning rate logits grow fast; clipped after each step, they cannot."""
  largest = {}
  for tau in (1e9, None):
    tau = tau or largest[1e9] / 3
    changes = {'optimizer.name': name, 'optimizer.learning_rate': .05, 'train.log_every': 1,
               'train.accumulate': 2, 'data.seq_len': 32,
               'optimizer.qk_clip.measure': measure, 'optimizer.qk_clip.tau': tau}
    fit(tiny(**changes), markov_corpora, tmp_path / str(tau))
    rows = [r for r in metrics.read_rows(tmp_path / str(tau) / 'metrics.jsonl')
            if 'attn/max_logit' in r]
    largest[tau] = max(r['attn/max_logit'] for r in rows)
    assert all((r['qkclip/min_gamma'] < 1) == (r['qkclip/heads'] > 0) for r in rows)
    assert any(r['qkclip/heads'] for r in rows) == (tau < 1e9)
  assert largest[tau] < .75 * largest[1e9]
  if measure == 'limit':
    assert largest[tau] == pytest.approx(tau)


def test_qk_clip_and_qk_norm_exclude_each_other(markov_corpora, tmp_path):
  c = tiny(**{'optimizer.qk_clip.tau': 10.0, 'model.qk_norm': True})
  with pytest.raises(ValueError, match='qk_norm'):
    fit(c, markov_corpora, tmp_path)


@pytest.mark.parametrize('guarded', [False, True])
def test_divergence_stops_with_advice(markov_corpora, tmp_path, guarded):
  rate = {'optimizer.learning_rate': 1e6, 'optimizer.clip_norm': 0.0}
  with pytest.raises(Diverged, match='learning_rate'):
    fit(tiny(**rate, **{'guard.enabled': guarded}), markov_corpora, tmp_path)
  last = metrics.read_rows(tmp_path / 'events.jsonl')[-1]
  assert last['event'] == ('guard' if guarded else 'diverged')
  assert last.get('action') == ('stop' if guarded else None)


def test_a_poisoned_step_is_never_saved(markov_corpora, tmp_path):
  """Loss and gradient of step 4 are finite, its update is not; without the guard it is taken."""
  c = tiny(**{'guard.enabled': False, 'guard.inject': f'lr{"9" * 39}x@4'})
  with pytest.raises(Diverged, match='not finite after step 4'):
    fit(c, markov_corpora, tmp_path)
  assert not [p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]
  assert metrics.read_rows(tmp_path / 'events.jsonl')[-1]['event'] == 'diverged'


def test_skipped_steps_are_no_tokens_and_epochs_are_counted(markov_corpora, tmp_path, monkeypatch):
  monkeypatch.setattr(telemetry, 'MANY_EPOCHS', 0.5)
  said = []
  c = tiny(**{'guard.inject': 'nan@3', 'train.keep': 1, 'train.keep_best': 'val/pdf/loss',
              'train.stages': (dict(name='all', fraction=1.0, mixture=dict(pdf=1.0)),)})
  with on_devices(2):
    result = loop.train(
      c, config_lib.model_config(c, 64), {'pdf': markov_corpora['pdf']}, str(tmp_path),
      log_line=said.append)
  rows = metrics.read_rows(tmp_path / 'metrics.jsonl')
  tokens = [r['tokens'] // (8 * 64) for r in rows if 'stage' in r]
  assert tokens == [2, 3, 5, 7, 9, 11] and result['tokens'] == 11 * 8 * 64
  assert [r['tokens'] // (8 * 64) for r in rows if 'val/pdf/loss' in r] == [0, 5, 11]
  assert rows[2]['time/skipped'] > 0 and 0.6 < rows[-2]['data/epochs/pdf'] < 1.1
  assert 0 < rows[1]['data/unique'] < rows[-2]['data/unique']
  assert all(r['data/unique'] <= r['tokens'] * (1 - r.get('data/padding', 0)) + 1
             for r in rows if 'stage' in r)
  assert len([line for line in said if 'is gone through for the 1th' in line]) == 1
  with pytest.raises(ValueError, match=r'keep_best=.val/web/loss.: one of val/pdf/loss'):
    fit(tiny(**{'train.keep_best': 'val/web/loss', 'train.stages': c.train.stages}),
        {'pdf': markov_corpora['pdf']}, tmp_path / 'other')


def test_rows_that_are_far_from_full_are_told(tmp_path):
  """Two documents of one corpus do not fit into a row; those of the other are cut."""
  rng = np.random.default_rng(0)
  for name, length in (('short', 40), ('long', 400)):
    said = []
    documents = [rng.integers(3, 60, length).tolist() for _ in range(40)]
    corpus = {'web': write_tokenised(
      tmp_path, name, {'train': documents, 'validation': documents[:4]}, 64)}
    c = tiny(**{'train.tokens': 4 * 8 * 64,
                'train.stages': (dict(name='all', fraction=1.0, mixture=dict(web=1.0)),)})
    loop.train(c, config_lib.model_config(c, 64), corpus, str(tmp_path / name / 'run'),
               log_line=said.append)
    padding = [r['data/padding'] for r in metrics.read_rows(
      tmp_path / name / 'run/metrics.jsonl') if 'data/padding' in r]
    told = [line for line in said if 'of the places of a batch are empty' in line]
    assert len(told) == (name == 'short')
    assert padding and all(x == pytest.approx(1 - 39 / 64, abs=1e-3) if told else x < .1
                           for x in padding)


def test_another_stream_is_refused(undisturbed, markov_corpora):
  _, directory = undisturbed
  with pytest.raises(ValueError, match='another stream of batches'):
    fit(tiny(seed=1), markov_corpora, directory)


def test_what_was_changed_where_a_run_goes_on_is_an_event(markov_corpora, tmp_path):
  one = (dict(name='all', fraction=1.0, mixture=dict(web=0.75, pdf=0.25)),)
  begun = tiny(**{'train.stages': one, 'train.tokens': 4 * 8 * 64})
  longer = tiny(**{
    'train.stages': one, 'train.tokens': 6 * 8 * 64, 'optimizer.learning_rate': 1e-3,
    'train.checkpoint_every': 3, 'train.loss_chunk': 32, 'guard.window': 40})
  for c in (begun, longer):
    fit(c, markov_corpora, tmp_path, meta={'config': c.to_dict()})
  start, resume = (e for e in metrics.read_rows(tmp_path / 'events.jsonl')
                   if e['event'] in ('start', 'resume'))
  assert resume['step'] == 4 and 'changed' not in start
  assert resume['changed'] == {
    'optimizer.learning_rate': [1e-2, 1e-3], 'train.checkpoint_every': [4, 3],
    'train.loss_chunk': [512, 32], 'guard.window': [128, 40],
    'train.steps': [4, 6], 'train.tokens': [2048, 3072]}
  rows = metrics.read_rows(tmp_path / 'metrics.jsonl')
  assert [r['step'] for r in rows if 'train/loss' in r] == [2, 4, 6]


_SCRIPT = """
import json, sys
sys.path[:0] = {paths!r}
import conftest
from helpers import training
training.fit(training.tiny(), json.loads({corpora!r}), {directory!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize('kill', [signal.SIGTERM, signal.SIGKILL])
def test_killed_process_continues(undisturbed, markov_corpora, tmp_path, kill):
  """A real process, killed after its first checkpoint; the next one ends with the same bits."""
  script = _SCRIPT.format(
    paths=[str(REPOSITORY), str(REPOSITORY / 'tests')],
    corpora=json.dumps(markov_corpora),
    directory=str(tmp_path),
  )
  process = subprocess.Popen([sys.executable, '-c', script])
  while not metrics.read_rows(tmp_path / 'events.jsonl') or not any(
    e['event'] == 'checkpoint' for e in metrics.read_rows(tmp_path / 'events.jsonl')
  ):
    assert process.poll() is None, 'ended before its first checkpoint'
  process.send_signal(kill)
  process.wait(120)
  subprocess.run([sys.executable, '-c', script], check=True, timeout=300)
  for a, b in zip(leaves(undisturbed[1]), leaves(tmp_path), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_parametrisation_scales_what_training_starts_from(markov_corpora, tmp_path):
  """One step at rate 0 leaves the initial parameters, times their multipliers."""
  starts = {}
  for name in ('standard', 'completep'):
    c = tiny(**{'train.tokens': 8 * 64, 'optimizer.learning_rate': 0.0, 'optimizer.name': 'muon',
                'parametrization': {'name': name, 'base_width': 16, 'base_depth': 2,
                                    'base_kv_heads': 1}})
    fit(c, markov_corpora, tmp_path / name)
    starts[name] = store.load_params(str(tmp_path / name))[1]
  plain, scaled = starts['standard'], starts['completep']
  ratio = lambda *path: float(np.mean(_at(scaled, path) / _at(plain, path)))
  np.testing.assert_allclose(ratio('blocks', 'attn', 'q_DNH'), 2**-0.5, rtol=1e-6)
  np.testing.assert_allclose(ratio('blocks', 'mlp', 'down_FD'), 2**-0.5 * 2**-0.5, rtol=1e-6)
  np.testing.assert_allclose(ratio('final_norm', 'scale_D'), 0.5, rtol=1e-6)
  np.testing.assert_array_equal(scaled['embed_VD'], plain['embed_VD'])


def _at(tree, path):
  for key in path:
    tree = tree[key]
  return np.asarray(tree)
