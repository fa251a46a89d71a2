"""What an experiment is made of: corpora from elsewhere, common held-out sets, budgets, sweeps."""

import dataclasses
import importlib
import pathlib
import re
import shutil
from types import SimpleNamespace

import jax
import pytest
from conftest import REPOSITORY
from helpers.configs import config
from helpers.stores import store  # noqa: F401
from helpers.tokenised import corpus, folder, model, texts, tokenised  # noqa: F401 (fixtures)

from configs import quickstart
from experiments import run, sweep
from experiments.engine import config as config_lib
from experiments.engine import corpora, steps
from experiments.engine.build import build_steps
from experiments.engine.graph import Graph
from smoljax import model as model_lib
from smoljax.checkpoints import export_formats, load
from smoljax.data import tokenizer
from smoljax.data.corpus import open_corpus, special_tokens


def test_a_corpus_of_documents_from_elsewhere(tmp_path, corpus):
  c = config(corpora=f'mine={corpus},other={corpus}', tokenize__holdout=0.2)
  graph = Graph(build_steps(c, str(tmp_path)), str(tmp_path), lambda line: None)
  assert [s.name for s in graph.steps] == [
    'mine', 'other', 'tokenizer', 'tokenize_mine', 'train', 'evaluate', 'export', 'report']
  # What both have is not held out, whether the other is trained on or not.
  assert [s.name for s in graph.steps[3].needs] == ['mine', 'other', 'tokenizer']
  graph.steps = graph.steps[:4]
  graph.run()
  assert (tmp_path / 'corpora/mine/1.0.0/manifest.json').exists()
  tokens = open_corpus(str(tmp_path / 'tokens/mine/1.0.0'))
  assert len(tokens.lengths) + len(
    open_corpus(str(tmp_path / 'tokens/mine/1.0.0'), 'validation').lengths) == 120


def test_a_corpus_of_tokens_from_elsewhere(tmp_path, tokenised, model):
  c = config(corpora=f'mine={tokenised}', tokenizer__path=model)
  graph = Graph(build_steps(c, str(tmp_path)), str(tmp_path), lambda line: None)
  assert [s.name for s in graph.steps] == ['tokenize_mine', 'train', 'evaluate', 'export', 'report']
  graph.steps = graph.steps[:1]
  graph.run()
  assert graph.result(graph.steps[0])['documents'] == 120
  assert len(open_corpus(str(tmp_path / 'tokens/mine/1.0.0')).tokens(0)) > 2


@pytest.mark.parametrize('step, module', [
  ('web', 'data_beam.web.pipeline'), ('pdf', 'data_beam.pdf.pipeline'),
  ('conversations', 'data_beam.conversations')])
def test_a_full_disk_under_beam_is_an_error_of_the_disk(tmp_path, monkeypatch, step, module):
  def full(*_, **__):
    raise RuntimeError("OSError: [Errno 28] No space left on device [while running 'write']")

  monkeypatch.setattr(importlib.import_module(module), 'run', full)
  c = config()
  c[step].input = 'x'
  with pytest.raises(OSError, match='No space left on device'):
    getattr(steps, f'run_{step}')(str(tmp_path), {}, c=c)


def test_held_out_documents_of_a_corpus_that_is_not_trained_on(tmp_path, corpus):
  """It is tokenised and evaluated on, and the tokenizer does not see it."""
  c = config(corpora=f'mine={corpus},target={corpus}', eval__corpora=('target',))
  steps = {s.name: s for s in build_steps(c, str(tmp_path))}
  needs = lambda name: [s.name for s in steps[name].needs]
  assert needs('tokenizer') == ['mine']
  assert needs('train') == ['tokenize_mine', 'tokenize_target', 'tokenizer']
  assert needs('evaluate') == ['train', 'tokenize_target', 'tokenizer']


def chosen(**changes):
  """The quickstart's stages, as mixtures, and the notes, where these fields are given."""
  c = quickstart.get_config()
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  notes = corpora.choose_corpora(c)
  assert not corpora.choose_corpora(c)  # said once
  return [dict(stage['mixture']) for stage in c.train.stages], notes, c


def test_this_machines_documentation_is_not_mixed_into_data_of_ones_own(tmp_path, corpus):
  both, notes, _ = chosen()
  assert both[0] == dict(web=0.9, pdf=0.1) and not notes
  assert chosen(web__input='a', pdf__input='b')[:2] == (both, [])
  web, notes, c = chosen(web__input='a')
  assert [set(m) for m in web] == [{'web'}] * 3 and not c.pdf.enabled and 'pdf' in notes[0]
  assert [set(m) for m in chosen(pdf__input='a')[0]] == [{'pdf'}] * 3
  assert [set(m) for m in chosen(pdf__enabled=False)[0]] == [{'web'}] * 3
  talks, notes, c = chosen(conversations__input='a')
  assert talks == [{'conversations': 1.0}] * 3 and c.conversations.enabled and not c.web.enabled


def test_a_corpus_from_elsewhere_needs_no_stages(tmp_path, corpus):
  mixtures, notes, c = chosen(corpora=f'mine={corpus},also={corpus}')
  assert [set(m) for m in mixtures] == [{'mine', 'also'}] * 3 and 'by size' in notes[0]
  assert mixtures[0]['mine'] == mixtures[0]['also'] > 0
  assert not c.web.enabled and not c.pdf.enabled
  stages = (dict(name='all', fraction=1.0, mixture=dict(mine=1.0)),)
  mixtures, _, c = chosen(corpora=f'mine={corpus}', train__stages=stages)
  assert mixtures == [dict(mine=1.0)] and not c.web.enabled
  with pytest.raises(ValueError, match=r"--config.train.stages=.*'web':0.5,'mine':0.5"):
    chosen(corpora=f'mine={corpus}', web__input='a')


@pytest.mark.parametrize(('changes', 'message'), [
  ({'corpora': 'mine'}, 'is not NAME=DIR'),
  ({'corpora': 'web={corpus}'}, 'other than web, pdf and conversations'),
  ({'corpora': 'mine={corpus},mine={corpus}'}, 'a name of its own'),
  ({'corpora': 'mine=nowhere'}, 'no corpus at'),
  ({'corpora': 'mine={tokenised}'}, '--config.tokenizer.path'),
  ({'corpora': 'mine={tokenised}', 'tokenizer__path': '{other}'}, 'by another file'),
  ({'corpora': 'mine={corpus}', 'eval__corpora': ('gone',)}, 'eval.corpora names the corpus gone'),
  ({'corpora': 'other={corpus}'}, 'train.stages names the corpus mine'),
])  # fmt: skip
def test_corpora_that_do_not_fit_are_said(tmp_path, corpus, tokenised, model, changes, message):
  from smoljax.data import tokenizer

  other = tmp_path / 'other.model'
  tokenizer.train(['some words of text'] * 50, str(other), vocab_size=280, seed=0)
  paths = dict(corpus=corpus, tokenised=tokenised, other=other)
  changes = {k: v.format(**paths) if isinstance(v, str) else v for k, v in changes.items()}
  with pytest.raises(ValueError, match=message):
    build_steps(config(**changes), str(tmp_path))


@pytest.mark.parametrize(('changes', 'message'), [
  ({'optimizer__qk_clip__rule': 'heads'}, 'unknown optimizer.qk_clip.rule .heads.: one of weights'),
  ({'optimizer__qk_clip__measure': 'guess'}, 'one of bound, exact'),
  ({'optimizer__qk_clip__measure': 'limit', 'optimizer__qk_clip__rule': 'rates'}, 'wants rule='),
  ({'optimizer__qk_clip__measure': 'limit', 'model__attention_softcap': 9.0}, 'take measure=exact'),
  ({'optimizer__qk_clip__tau': -1.0}, 'tau=-1.0: give a logit above 0'),
  ({'optimizer__qk_clip__tau': 9.0, 'model__qk_norm': True}, 'qk_norm: turn one of them off'),
  ({'web__enabled': True, 'web__tier': 'best'}, '--config.web: unknown tier .best.: choose one of'),
  ({'eval__tasks': ('guess',)}, '--config.eval.tasks: unknown task'),
  ({'eval__generation__modes': ('loud',)}, "eval.generation: unknown mode 'loud'"),
  ({'eval__generation__long_modes': ('loud',)}, "eval.generation: unknown mode 'loud'"),
  ({'eval__generation__samples': 3}, 'eval.generation: several samples'),
  ({'eval__tasks': ('hellaswag',)}, 'hellaswag.validation.jsonl, and there is none.*config.eval.d'),
  ({'eval__data': '/nowhere'}, '--config.eval.data=/nowhere: there is no such folder'),
  ({'train__branch_from': '/nowhere'}, 'train.branch_from=/nowhere: /nowhere: no intact'),
  ({'train__keep_best': 'val/mien/bpb'}, "keep_best='val/mien/bpb': one of val/mine/loss"),
  ({'train__checkpoint_dir': 'gs//bucket/x'}, 'an address such as gs://BUCKET'),
  ({'beam__args': ('--runner=FlinkRuner',), 'web__enabled': True}, 'did you mean FlinkRunner'),
])  # fmt: skip
def test_what_the_steps_would_refuse_is_refused_before_the_first_one(changes, message):
  with pytest.raises(ValueError, match=message):
    config_lib.check(config(**changes))


@pytest.mark.parametrize(('changes', 'message'), [
  ({'optimizer__ramp': (5,)}, 'optimizer.ramp=.*: give pairs of numbers'),
  ({'optimizer__cooldowns': (2,)}, 'give shares of the run'),
  ({'optimizer__learning_rate': float('inf')}, 'give a finite number'),
  ({'model__num_layers': 10**8}, 'give at most 10000'),
  ({'model__window_layers': ('a',)}, "model.window_layers: 'a' is no size"),
  ({'train__stages': (dict(name='a', fraction=1.0, mixture={'mine': float('inf')}),)}, 'no stage'),
])  # fmt: skip
def test_values_that_are_none_are_refused_at_once(changes, message):
  with pytest.raises(ValueError, match=message):
    config(**changes)


@pytest.mark.parametrize('field', ['train__init_from', 'distill__teacher'])
def test_weights_of_another_model_go_with_its_tokenizer(tmp_path, corpus, texts, field):
  """A new one, trained by the run, would put other tokens on the rows of its embedding."""
  from smoljax import model as model_lib
  from smoljax.checkpoints import export_formats, load
  from smoljax.data import tokenizer

  for seed in (0, 1):
    tokenizer.train(texts[seed::2], str(tmp_path / f'{seed}.model'), vocab_size=320, seed=seed)
  shape = config_lib.model_config(config(), 320)
  made = load.Model(shape, model_lib.init(shape, jax.random.key(0)),
                    tokenizer.load(str(tmp_path / '0.model')), True)
  export_formats.write_hf(made, str(tmp_path / 'hf'))
  given = {field: str(tmp_path / 'hf'), 'corpora': f'mine={corpus}'}
  c = config(**given)
  assert c.tokenizer.path == str(tmp_path / 'hf/tokenizer.json')
  config_lib.check(c)
  assert 'tokenizer' not in [s.name for s in build_steps(c, str(tmp_path / 'run'))]
  config_lib.check(config(**given, tokenizer__path=str(tmp_path / '0.model')))  # the same pieces
  with pytest.raises(ValueError, match=r'the tokenizer of .*hf/tokenizer\.json, is not .*1\.model'):
    config_lib.check(config(**given, tokenizer__path=str(tmp_path / '1.model')))
  (tmp_path / 'hf/tokenizer.json').unlink()
  with pytest.raises(FileNotFoundError, match=field.replace('__', '.')):
    config(**given)


@pytest.mark.parametrize(('changes', 'message'), [
  ({'train__keep': 0}, '--config.train.keep=0: give at least 1'),
  ({'train__log_every': -3}, 'train.log_every=-3'),
  ({'train__eval_every': 0}, 'train.eval_every=0'),
  ({'train__checkpoint_every': 0}, 'train.checkpoint_every=0'),
  ({'train__loss_chunk': -3}, 'train.loss_chunk=-3'),
  ({'train__accumulate': 0}, 'train.accumulate=0'),
  ({'train__batch_tokens': 0}, 'train.batch_tokens=0'),
  ({'train__z_loss': float('nan')}, 'train.z_loss=nan'),
  ({'data__seq_len': 0}, 'data.seq_len=0'),
  ({'seed': -1}, 'seed=-1'),
  ({'mesh__fsdp': 0}, 'mesh.fsdp=0'),
  ({'tokenize__holdout': 2.0}, '--config.tokenize: holdout must be'),
  ({'web__enabled': True, 'web__minhash': 'foo'}, "--config.web: minhash='foo': give bands x rows"),
  ({'pdf__enabled': True, 'pdf__filters': 'foo'}, '--config.pdf: unknown filter'),
  ({'optimizer__name': 'adamx'}, 'choose one of adamw'),
])  # fmt: skip
def test_values_that_make_no_sense_are_refused_before_the_first_step(changes, message):
  with pytest.raises(ValueError, match=message):
    config_lib.check(config(**changes))


@pytest.mark.parametrize(('flag', 'message'), [
  ('--config.optimizer.learning_rat=1', r'has no field .learning_rat. \(did you mean learn'),
  ('--config.optimizer.lr=1', 'config.optimizer has no field .lr., it has b1, b2, clip'),
  ('-config.optimiser.name=adamw', 'did you mean optimizer'),
  ('--config.train.keep.x=1', 'config.train.keep is a value'),
])  # fmt: skip
def test_an_unknown_field_is_said_with_its_neighbours(flag, message):
  assert re.search(message, config_lib.unknown_field(['run', '--config=x.py', flag]))
  assert not config_lib.unknown_field(['run', '--config=x.py', '--config.optimizer.muon.steps=5'])


@pytest.mark.parametrize('changes', [
  {'train__keep': 9}, {'train__log_every': 7}, {'train__checkpoint_every': 7},
  {'train__eval_every': 7}, {'train__eval_documents': 7}, {'train__tensorboard': False},
  {'train__compile_beside': False},
  {'train__loss_chunk': 64}, {'train__accumulate': 2}, {'mesh__fsdp': 1}, {'guard__sigma': 9.0},
  {'guard__window': 40}, {'train__checkpoint_dir': 'gs://b/x'},
  {'guard__enabled': False}, {'diagnostics__every': 5}, {'model__remat': 'full'},
  {'model__attention': 'xla'}, {'model__scan_layers': True}, {'eval__batch_size': 3},
  {'corpora': 'mine={corpus}/'}, {'corpora': 'mine={moved}'},
])  # fmt: skip
def test_what_decides_nothing_of_the_result_is_in_no_address(tmp_path, corpus, changes):
  moved = tmp_path / 'moved'
  moved.symlink_to(corpus)
  given = {'corpora': f'mine={corpus}'} | {
    k: v.format(corpus=corpus, moved=moved) if isinstance(v, str) else v
    for k, v in changes.items()}
  steps = lambda **c: [s.address for s in build_steps(config(**c), str(tmp_path))]
  assert steps(**given) == steps(corpora=f'mine={corpus}')


@pytest.mark.parametrize('changes', [
  {'train__tokens': 81920}, {'optimizer__learning_rate': 1e-4}, {'model__num_layers': 3},
  {'model__attention_bias': True}, {'guard__inject': 'nan@4'}, {'seed': 1},
])  # fmt: skip
def test_what_decides_the_result_is_in_the_address(tmp_path, corpus, changes):
  train = lambda **c: {s.name: s.address for s in build_steps(config(**c), str(tmp_path))}['train']
  given = f'mine={corpus}'
  assert train(corpora=given, **changes) != train(corpora=given)


def test_a_corpus_that_moved_is_found_where_it_is(tmp_path, corpus):
  there = tmp_path / 'there'
  shutil.copytree(corpus, there)
  def linked(path):
    graph = Graph(build_steps(config(corpora=f'mine={path}'), str(tmp_path)), str(tmp_path / 'run'),
                  lambda line: None)
    graph.steps = graph.steps[:1]
    graph.run()
    return (tmp_path / 'run/corpora/mine/1.0.0').resolve()

  assert linked(there) == there
  there.rename(tmp_path / 'moved')
  assert linked(tmp_path / 'moved') == tmp_path / 'moved'


@pytest.mark.parametrize('rule', ['weights', 'rates'])
def test_clipping_of_logits_on_a_mesh_is_let_through(rule):
  config_lib.check(
    config(optimizer__qk_clip__tau=9.0, optimizer__qk_clip__rule=rule, mesh__tensor=2)
  )


def test_a_budget_of_flops_gives_the_tokens():
  c = config(train__flops=1e13)
  per_token = config_lib.model_config(c, 320).flops_per_token(c.data.seq_len)
  assert c.train.tokens * per_token == pytest.approx(1e13, rel=0.02)
  assert c.train.tokens == c.train.steps * c.train.batch_tokens


@pytest.mark.parametrize('path', [
  'ladder.py', 'ladder.py:size=gpu', 'isoflop.py', 'pillars.py', 'data_ablation.py',
  'data_ablation.py:raw,good*.8+papers*.2',
  'data_ablation.py:panel,judge=news=corpora/news', 'mtp.py', 'optimizer_contest.py',
  'critical_batch.py'])
def test_every_point_of_every_sweep_builds(path, tmp_path):
  file, _, arg = path.partition(':')
  module = importlib.import_module(f'configs.{file.removesuffix(".py")}')
  if not hasattr(module, 'sweep'):
    pytest.skip('it has no sweep')
  points = sweep.plan(str(REPOSITORY / 'configs' / path), str(tmp_path))
  assert len(points) > 3
  for point in points:
    c = module.get_config(arg) if arg else module.get_config()
    for field, value in point.fields.items():
      *sections, name = field.split('.')
      section = c
      for s in sections:
        section = section[s]
      assert name in section, (point.name, field)
      if not isinstance(value, str) or '@' not in value:
        section[name] = value
    config_lib.resolve(c)


def test_pillars_have_all_cells():
  points = sweep.load_points(str(REPOSITORY / 'configs/pillars.py'))
  cells = {frozenset(p['factors']) for p in points if 'factors' in p}
  assert {len(c) for c in cells} == {0, 1, 4, 5} and len(cells) == 12
  assert all(sum(frozenset(p.get('factors', 'x')) == c for p in points) == 5 for c in cells)


def test_batches_part_at_steps_that_the_trunk_saves():
  from configs import critical_batch

  points = critical_batch.sweep()
  every = critical_batch.get_config().train.checkpoint_every
  steps = {int(p['train.branch_from'].rpartition('/')[2]) for p in points if 'group' in p}
  assert len(steps) == len(critical_batch.SHARES) and not any(step % every for step in steps)
  window = critical_batch.TOKENS * critical_batch.WINDOW / critical_batch.get_config(
    ).train.batch_tokens
  assert not any(window % times for times in critical_batch.TIMES)  # all train on all of it


def test_what_stands_for_untuned_hyperparameters_is_the_published_law():
  from configs import pillars
  from smoljax import model

  shape = model.SHAPES['tiny']
  kernels = [x for path, x in jax.tree.leaves_with_path(model.abstract_params(shape)['blocks'])
             if x.ndim > 2]
  assert sum(x.size for x in kernels) == pillars.MATRICES
  # By hand, for 1B parameters and 100B tokens.
  rate, batch = pillars.step_law(10**9, 10**11)
  assert rate == pytest.approx(1.64e-3, rel=.02) and batch == pytest.approx(1.1e6, rel=.05)
  point = next(p for p in sweep.load_points(str(REPOSITORY / 'configs/pillars.py'))
               if p['name'] == 'none-0')
  assert point['optimizer.learning_rate'] == .0047 and point['train.batch_tokens'] == 512


def test_variants_of_a_data_ablation_are_said_when_wrong():
  with pytest.raises(ValueError, match='give NAME\\*WEIGHT'):
    sweep.load_points(str(REPOSITORY / 'configs/data_ablation.py') + ':web*much')
  with pytest.raises(ValueError, match='judge=NAME=DIR'):
    sweep.load_points(str(REPOSITORY / 'configs/data_ablation.py') + ':clean,judge=news')


def test_a_data_ablation_is_judged_beyond_its_filters():
  points = sweep.load_points(
    str(REPOSITORY / 'configs/data_ablation.py') + ':panel,judge=news=corpora/news')
  groups = dict.fromkeys(p['group'] for p in points if 'group' in p)
  assert next(iter(groups)) == 'clean' and len(groups) == 6
  assert all(p['eval.corpora'] == ('good_web', 'good_pdf', 'all_web', 'news')
             and p['corpora'].endswith(',news=corpora/news') for p in points if 'group' in p)


def test_a_data_ablation_reads_tokens_made_ahead_from_any_folder():
  file = str(REPOSITORY / 'configs/data_ablation.py')
  judge = 'judge=news=runs/panel/news/1.0.0'  # a folder may be called as the panel is
  points = sweep.load_points(f'{file}:panel,pdf25,tokens=runs/panel,{judge}')
  assert all('group' in p and not any(k.startswith('web.') for k in p) for p in points)
  last = points[-1]
  assert last['name'] == 'pdf25-4'
  assert last['train.stages'][0]['mixture'] == {'pdf25_web': .75, 'pdf25_pdf': .25}
  assert last['corpora'].split(',')[1:3] == [
    'pdf25_pdf=runs/panel/points/pdf25-0/tokens/pdf/1.0.0',
    'good_web=runs/panel/points/pdf25-0/tokens/good_web/1.0.0']
  assert last['corpora'].endswith(',news=runs/panel/news/1.0.0')
  made = sweep.load_points(f'{file}:panel,pdf25,{judge}')
  assert last['eval.corpora'] == made[-1]['eval.corpora']


def test_a_corpus_in_an_object_store_is_copied_into_the_workdir(store, tokenised, model, tmp_path):
  for path in tokenised.iterdir():
    store.change(f'bucket/web/1.0.0/{path.name}', path.read_bytes())
  addresses = []
  for where in (tokenised, 'fake://bucket/web/1.0.0'):
    c = config(corpora=f'mine={where}', tokenizer__path=model)
    workdir = tmp_path / str(len(addresses))
    graph = Graph(build_steps(c, str(workdir)), str(workdir), lambda line: None)
    addresses.append([s.address for s in graph.steps])
    graph.steps = graph.steps[:1]
    for _ in range(2):
      graph.run()
    home = workdir / 'tokens/mine/1.0.0'
    assert len(open_corpus(str(home)).tokens(0)) > 2 and graph.done(graph.steps[0])
  assert addresses[0] == addresses[1]
  assert workdir in pathlib.Path(home).resolve().parents
  assert {p.name for p in home.resolve().iterdir()} == {p.name for p in tokenised.iterdir()}


def test_a_store_that_cannot_be_used_is_said_before_the_first_step(store, tokenised, model):
  wrong = {'fake://other/runs': (FileNotFoundError, 'no such bucket'),
           'nil://x/runs': (ValueError, 'no object store is called nil'),
           'gs://x/runs': (ValueError, r'pip install gcsfs fsspec=='),
           's3://x/runs': (ValueError, r'pip install s3fs fsspec==')}
  for url, (error, words) in wrong.items():
    with pytest.raises(error, match=words):
      config_lib.check(config(corpora=f'mine={tokenised}', tokenizer__path=model,
                              train__checkpoint_dir=url))
    with pytest.raises(error if error is ValueError else FileNotFoundError):
      build_steps(config(corpora=f'mine={url}', tokenizer__path=model), 'nowhere')
  store.deny = 403
  with pytest.raises(PermissionError, match='access denied'):
    config_lib.check(config(corpora=f'mine={tokenised}', tokenizer__path=model,
                            train__checkpoint_dir='fake://bucket/runs'))
  with pytest.raises(ValueError, match=r'local folder.*--config\.train\.checkpoint_dir'):
    run.run(config(), 'gs://x/runs')


def test_what_follows_training_is_compiled_beside_it(tokenised, model, tmp_path, monkeypatch):
  c = config(
    corpora=f'mine={tokenised}', tokenizer__path=model, model__num_layers=1, model__embed_dim=16,
    model__num_heads=2, model__num_kv_heads=1, model__head_dim=8, model__mlp_dim=16,
    data__seq_len=128, eval__batch_size=4, eval__task_examples=8, sample__tokens=20)
  shape = dataclasses.replace(config_lib.model_config(c, 320), max_segments=5)
  meta = {'model': dataclasses.asdict(shape), 'tokenizer_sha256': '',
          'special_tokens': special_tokens({'mine': open_corpus(str(tokenised)).manifest})}
  inputs = {'tokenize_mine': str(tmp_path / 'in'), 'train': 'none'}
  (tmp_path / 'in' / 'mine').mkdir(parents=True)
  (tmp_path / 'in' / 'mine' / '1.0.0').symlink_to(tokenised)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, fun_name='', **__: compiled.append(fun_name)
    if event.endswith('backend_compile_duration') else None)
  how = dict(c=c, inputs=inputs, targets=['mine'])
  slow = lambda: [name for name in compiled if name in ('jit(_score)', 'jit(run)')]
  turns = [len(slow()) for _ in steps.rehearse(SimpleNamespace(meta=meta), **how)]
  assert {'jit(_score)', 'jit(run)'} == set(slow())
  # A run that is stopped waits for a turn: for one program.
  assert turns[-1] == len(slow())
  assert max(b - a for a, b in zip([0, *turns], turns, strict=False)) == 1
  compiled.clear()
  place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  params = jax.device_put(model_lib.init(shape, jax.random.key(0)), place)
  monkeypatch.setattr(load, 'load_weights', lambda path: (shape, params, meta))
  monkeypatch.setattr(export_formats, 'write_hf', lambda *_, **__: None)
  text = tokenizer.load(model, meta['special_tokens'])
  monkeypatch.setattr(load, 'load_model', lambda *_: load.of_run(shape, params, text, meta))
  for name, run_step, more in (
    ('scores', steps.run_evaluate, {'targets': ['mine']}), ('export', steps.run_export, {})):
    (tmp_path / name).mkdir()
    run_step(str(tmp_path / name), inputs, c=c, **more)
  assert not slow()
  assert compiled.count('jit(<lambda>)') == 1  # layers taken from their stack, no prompt is read
