"""Mistyped command lines: one line that names what is wrong, status 2, no traceback."""

import json
import os
import re

import jax
import pytest
from conftest import run_commands, write_tokenised
from helpers.warc import article, html, page, write_warc

from data_beam import tables
from data_beam.options import ImportOptions
from smoljax import model
from smoljax.checkpoints import huggingface
from smoljax.data import tokenizer
from smoljax.model import ModelConfig

# The flags of each command that suffice, and wrong values of them. {x} is a file of `here`.
RUN = ['--config=configs/quickstart.py', '--workdir={new}', '--dry_run']
NUMBERS = ('abc', '', '1e999', '99999999999999999999999')
FILES = ('/nowhere/x', '{binary}', '{empty}', '{folder}')
FIELDS: dict[str, tuple[str, ...]] = {
  'seed': ('-1', 'abc', '1e30', '1.5', '99999999999999999999'), 'name': (), 'xprof': ('a', '5:1'),
  'selfdocs.pages': ('0', '-3'), 'selfdocs.pdfs': ('-1',), 'beam.args': (
    '5', "('--nope',)", "('--runner=FlinkRuner',)"), 'model': ('tiny',),
  'web.input': FILES[:1], 'web.filters': ('nope',), 'web.tier': ('nope',),
  'web.minhash': ('nope', '0x3', '14x'), 'web.num_shards': ('0', '-1', 'abc'),
  'web.limit': ('0', 'x'), 'web.min_language_score': ('x', '5'), 'web.dedup_scope': ('nope',),
  'web.languages': ('5', 'english'), 'web.enabled': ('maybe',),
  'web.url_lists': FILES[:1], 'web.decontaminate': ("('/nowhere/x',)",),
  'pdf.ocr': ('nope',), 'pdf.figures': ('nope',), 'pdf.refetch': ("('nope',)",),
  'pdf.router': FILES[:1], 'pdf.ocr_server': ('http://x',), 'pdf.fetch_delay': ('x',),
  'corpora': ('a', 'a=/nowhere/x', 'a={folder}', '=', 'web=x', 'a/b={corpus}', 'a b={corpus}'),
  'tokenizer.path': FILES, 'tokenizer.vocab_size': ('0', '-1', 'x', '99999999'),
  'tokenizer.train_bytes': ('0',), 'tokenize.holdout': ('2', '-1', 'x'),
  'tokenize.share': ('0', '2'), 'tokenize.num_shards': ('0',),
  'model.shape': ('nope', '5'), 'model.num_layers': ('0', '-1', 'x', '100000000'),
  'model.window_layers': ("('a',)", '(1,)'), 'model.lora_rank': ('-1',),
  'model.embed_dim': ('0', '7'),
  'model.num_heads': ('0', '3'), 'model.num_kv_heads': ('3', '0'), 'model.head_dim': ('0', '3'),
  'model.mlp_dim': ('0',), 'model.activation': ('nope',), 'model.norm': ('nope',),
  'model.norm_position': ('nope',), 'model.norm_eps': ('-1', 'x'), 'model.dtype': ('nope',),
  'model.attention': ('nope',), 'model.remat': ('nope',), 'model.mtp': ('nope',),
  'model.rope_theta': ('-1', '0'), 'model.init': ('nope',), 'model.init_std': ('-1',),
  'model.rope_scaling': ("{'a':1}", '5'), 'model.sliding_window': ('-1',),
  'data.seq_len': ('0', '1', 'x'), 'data.window': ('0',), 'data.max_segments': ('-1',),
  'train.tokens': ('0', '-5', 'x', '1e99', '1e6', '2M'),
  'train.batch_tokens': ('0', '1000', '-2048'),
  'train.accumulate': ('0', '3'), 'train.flops': ('-1', 'nan'), 'train.log_every': ('0', '-1'),
  'train.stages': ('5', '()', '({},)', "(dict(name='a'),)", "('a',)",
                   "(dict(name='a',fraction=1.0,mixture={'web':-1}),)",
                   "(dict(name='a',fraction=1.0,mixture={'nope':1}),)",
                   "(dict(name='a',fraction=1.0,mixture={}),)",
                   "(dict(name='a',fraction='x',mixture={'web':1}),)",
                   "(dict(name='a',fraction=-1.0,mixture={'web':1}),)",
                   "({'name':'a','fraction':1.0,'mixture':{'web':1e999}},)",
                   "({'name':'a','fraction':1.0,'mixture':{'wbe':1}},)"),
  'train.init_from': FILES, 'train.branch_from': FILES, 'train.eval_every': ('0', '-1'),
  'train.checkpoint_every': ('0',), 'train.keep': ('0',),
  'train.keep_best': ('nope', 'val/wbe/bpb'), 'train.checkpoint_dir': ('gs//x', 'http://x/y'),
  'train.watchdog': ('-1', 'nan'), 'train.z_loss': ('-1', 'nan'), 'train.loss_chunk': ('0',),
  'mesh.data': ('0', '3', '99', '-2'), 'mesh.tensor': ('0', '3'), 'mesh.fsdp': ('x',),
  'optimizer.name': ('nope',), 'optimizer.learning_rate': ('-1', 'nan', 'x', 'inf', '1e40'),
  'optimizer.schedule': ('nope',), 'optimizer.weight_decay': ('-1', 'nan'),
  'optimizer.b1': ('2', '-1'), 'optimizer.clip': ('nope',), 'optimizer.clip_norm': ('-1',),
  'optimizer.warmup_fraction': ('2', '-1'), 'optimizer.decay_fraction': ('2', '-1'),
  'optimizer.decay_shape': ('nope',), 'optimizer.decay_timescale': ('-1', 'nan'),
  'optimizer.ramp': ('((.5, 1),)', '((0, 2), (.5, 1))', '5'), 'optimizer.cooldowns': ('(2,)',),
  'optimizer.tail_steps': ('-1', '.5'),
  'optimizer.muon.coefficients': ('nope',),
  'optimizer.muon.per_head': ('nope',), 'optimizer.muon.steps': ('0', '-1'),
  'optimizer.muon.scale_rule': ('nope',), 'optimizer.qk_clip.rule': ('nope',),
  'optimizer.momentum_dtype': ('nope',), 'parametrization.name': ('nope', 'mup'),
  'guard.inject': ('nope', 'nan@x', 'nan'), 'guard.sigma': ('-1',), 'guard.window': ('0',),
  'distill.teacher': FILES[:1], 'distill.cache': ('nope',), 'distill.distance': ('nope',),
  'eval.tasks': ("('nope',)", '5', 'hellaswag'),
  'eval.data': FILES[:1], 'chains.number': ('-1',), 'eval.corpora': ("('nope',)",),
  'eval.batch_size': ('0', '-1'),
  'eval.documents': ('-1',), 'sample.tokens': ('0',), 'sample.temperature': ('-1', 'nan'),
  'sample.prompts': ('5',), 'coordinate_check.widths': ("('x',)", '(0,)'),
}
# Commands with flags that suffice, and flags with wrong values.
COMMANDS: dict[str, tuple[list[str], dict[str, tuple[str, ...]]]] = {
  'experiments.run': (RUN, {
    'config': (*FILES, 'configs/nope.py', 'configs/smollm3.py:size=4b', 'configs/smollm3.py:x',
               'configs/quikstart.py', 'configs/quickstart.py:x', '{misspelt}', '{nothing}',
               '{dict}'),
    'coordinator': ('nope', 'localhost:99999'),
    'workdir': ('gs://b/x', '{empty}'), 'dry_run': ('maybe',), 'topology': ()}),
  'experiments.sweep': (['--config=configs/mtp.py', '--workdir={new}', '--dry_run'], {
    'config': (*FILES, 'configs/base.py'), 'parallel': ('0', *NUMBERS), 'retries': ('-1', 'x'),
    'backoff': ('0', '2', 'x'), 'stall': ('-1',), 'seeds': ('-1', 'x'),
    'grid': ('', 'a', 'nope.field=1', 'train.tokens=x,y')}),
  'experiments.search': (
    ['--config=configs/search.py', '--workdir={new}', '--trials=2', '--dry_run'], {
      'config': (*FILES, 'configs/base.py'), 'trials': ('0', '-1', *NUMBERS), 'sampler': ('nope',),
      'pruner': ('nope',), 'processes': ('0', 'x'), 'seed': ('-1',), 'objectives': ('nope',)}),
  'experiments.evaluate': (['--checkpoint={model}', '--output={new}.json', '--tasks=sums'], {
    'checkpoint': FILES, 'tasks': ('nope', 'pqia'), 'lengths': ('x', '99999999'),
    'output': ('{folder}',),
    'batch_size': ('0', '-1', *NUMBERS), 'limit': ('-1',),
    'seq_len': ('-1', 'x'), 'seed': ('-1', 'x'), 'corpus': FILES}),
  'experiments.generate': (['--checkpoint={model}', '--prompt=a'], {
    'checkpoint': FILES, 'prompt_file': FILES, 'max_new_tokens': ('0', '-1', 'x'),
    'temperature': ('-1', 'nan', 'x'), 'top_p': ('2', '-1'), 'top_k': ('-1',), 'seed': ('-1', 'x'),
    'samples': ('0', '-1'), 'stop_id': ('-4', '99999'), 'tools': FILES[:1],
    'min_new_tokens': ('999',), 'mode': ('nope',), 'weights': ('nope',), 'context': ('-1',)}),
  'experiments.serve': (['--checkpoint={model}', '--port=0'], {
    'checkpoint': FILES, 'port': ('-1', 'x', '70000'), 'batch_size': ('0',), 'weights': ('nope',),
    'host': ('nope.invalid',)}),
  'experiments.export': (['--checkpoint={model}', '--output={new}'], {
    'checkpoint': FILES, 'format': ('nope',), 'dtype': ('nope',), 'quantize': ('nope',)}),
  'experiments.report': (['--workdir={folder}'], {
    'workdir': FILES, 'port': ('-1', '99999', *NUMBERS), 'scaling': FILES, 'flops': ('x',)}),
  'experiments.lens': (['--checkpoint={model}', '--prompt=a', '--output={new}.html'], {
    'checkpoint': FILES, 'output': ('{folder}',)}),
  'experiments.merge': (['--models={model},{model}', '--weights=.5,.5', '--output={new}'], {
    'weights': ('.5', 'a,b', 'nan,1'), 'method': ('tie', 'ties')}),
  'experiments.chains': (['--output={new}.jsonl', '--number=3'], {
    'output': ('{folder}',), 'number': ('0', 'x'), 'families': ('smus',)}),
  'experiments.needles': (['--output={new}.jsonl', '--tokenizer={tokenizer}', '--number=3'], {
    'output': ('{folder}',), 'number': ('0', 'x'), 'tasks': ('vt,nope', ''), 'tokenizer': FILES,
    'lengths': ('x', '9', ''), 'language': ('xx',), 'documents': FILES}),
  'experiments.prepare': (['--config=configs/quickstart.py', '--workdir={new}'], {
    'config': (*FILES, 'configs/quikstart.py')}),
  'experiments.shapes': ([], {
    'shape': ('nope',), 'context': ('-1', *NUMBERS), 'mesh': ('data', 'data=0', 'nope=2', 'data=x'),
    'remat': ('nope',), 'hf': FILES, 'dtype': ('nope',), 'rows': ('-1',), 'chunk': ('0',),
    'tokens': ('nan', '-1')}),
  'experiments.architecture': (['--corpus={tokens}', '--output={new}'], {
    'corpus': FILES, 'size': ('nope',), 'tokens': ('-1', 'x'), 'seeds': ('0', 'x')}),
  'experiments.lineage': (['--workdir={folder}', '--step=1'], {
    'workdir': FILES, 'step': ('-1', 'x')}),
  'experiments.perplexity': (['--checkpoint={model}', '--corpus={corpus}', '--output={new}'], {
    'checkpoint': FILES, 'corpus': FILES, 'seq_len': ('-1', 'x')}),
  'experiments.teacher_cache': (
    ['--teacher={model}', '--corpus={tokens}', '--output={new}'], {
      'teacher': FILES, 'corpus': FILES, 'kind': ('nope',), 'draws': ('0', 'x')}),
  'data_beam.web': (['--input={crawl}', '--output={new}', '--limit=1'], {
    'input': FILES[:3], 'output': ('{empty}',), 'name': ('', 'a/b', '..'), 'filters': ('nope',),
    'num_shards': ('0', '-1', *NUMBERS), 'limit': ('0', 'x'), 'tier': ('nope',),
    'minhash': ('nope', '0x1'), 'min_language_score': ('x',), 'dedup_scope': ('nope',),
    'url_lists': FILES[:1], 'decontaminate': FILES[:1], 'direct_running_mode': ('nope',),
    'robots': FILES[:1], 'quality': FILES[:1], 'licences': ('nope',), 'near_verbatim': ('2', 'x'),
    'direct_num_workers': ('x', '-3'), 'languages': ('english',), 'language_model': ('{binary}',),
    'runner': ('nope', 'FlinkRunner', 'SparkRunner', 'DataflowRunner', 'DirectRuner')}),
  'data_beam.pdf': (['--input={binary}', '--output={new}'], {
    'input': FILES[:3], 'ocr': ('nope',), 'figures': ('nope',), 'num_shards': ('0', 'x'),
    'refetch': ('nope', 'truncated'), 'router': FILES[:1], 'ocr_server': ('http://x',),
    'fetch_delay': ('x', '-1')}),
  'data_beam.python_source': (['--input=/nowhere/x', '--output={new}'], {
    'input': FILES, 'licences': ('nope',), 'num_shards': ('0',)}),
  'data_beam.tables': (['import', '--input={rows}', '--output={new}', '--name=a'], {
    'input': ('/nowhere/x', '{empty}'), 'layout': ('nope',), 'columns': ('nope', 'text=nope'),
    'name': ('', 'a/b')}),
  'data_beam.tokenize_corpus': (
    ['--input={corpus}', '--tokenizer={tokenizer}', '--output={new}'], {
      'input': FILES, 'tokenizer': FILES, 'holdout': ('2', '-1', 'x'), 'num_shards': ('0', 'x')}),
  'data_beam.tables export': (['--input={corpus}', '--output={new}'], {
    'input': ('{tokens}', '{rows}')}),
  'data_beam.rephrase': (['--input={corpus}', '--output={new}', '--name=r', '--model=m'], {
    'server': ('localhost',), 'most': ('0',), 'temperature': ('-1', 'x')}),
  'data_beam.quality': (['train', '--model={new}', '--examples={rows}'], {
    'examples': FILES, 'bits': ('0', '-1', '99', 'x')}),
  'data_beam.refine': (['--input={corpus}', '--output={new}'], {
    'input': FILES, 'thresholds': ('nope', 'words=x'), 'dedup_parts': ('nope',)}),
  'data_beam.refetch': (['--input=/nowhere/x'], {'input': FILES, 'modes': ('nope',)}),
  'data_beam.pdf_route': (['train', '--labels=/nowhere/x', '--output={new}'], {
    'labels': FILES}),
}
PARTS = 6  # of the list, each within some minutes
# What is said besides: progress, and what each pipeline begins with.
SAID = re.compile('Beam runs on|curating |exporting |OCR: |Unable to create default GCS|'
                  'importing |tokenising |[0-9]+ s: read |I0000|E0000|W0000')


def lines():
  """(command line, flag, value): the complaint must name one of the latter two."""
  for command, (base, flags) in COMMANDS.items():
    for flag, values in flags.items():
      rest = [b for b in base if not b.startswith(f'--{flag}=')]
      for value in values:
        yield [*command.split(), *rest, f'--{flag}={value}'], flag, value
      wrong = flag[:1] + flag[2:] + 'e'  # a letter missing, and one too many
      yield [*command.split(), *rest, f'--{wrong}={(values or ("x",))[0]}'], flag, flag
    yield [*command.split(), *base, 'stray'], 'stray', 'stray'
    yield command.split(), '', ''
  for field, values in FIELDS.items():
    section, _, name = field.rpartition('.')
    for value in values:
      yield ['experiments.run', *RUN, f'--config.{field}={value}'], name, value
    if len(name) > 4:
      wrong = f'{section}.{name[:2]}{name[3:]}'.lstrip('.')
      yield ['experiments.run', *RUN, f'--config.{wrong}=1'], name, name


@pytest.fixture(scope='module')
def here(tmp_path_factory):
  """Files that are not what is asked for, and a crawl of a page."""
  root = tmp_path_factory.mktemp('here')
  (root / 'binary').write_bytes(bytes(range(256)) * 40)
  (root / 'empty').touch()
  (root / 'folder').mkdir()
  for name, body in (('misspelt', 'c.optimizer.lerning_rate = 1'), ('nothing', 'return None'),
                     ('dict', 'return {}')):
    (root / f'{name}.py').write_text(
      f'from configs import base\n\ndef get_config():\n  c = base.get_config()\n  {body}\n')
  write_warc(root / 'crawl.warc.gz', [html('https://a.test/', page(article(1)))])
  rows = root / 'rows.jsonl'
  rows.write_text(''.join(json.dumps({'text': ' '.join(article(i)), 'score': i % 3}) + '\n'
                          for i in range(8)))
  curated = tables.import_tables([str(rows)], str(root), 'corpus', ImportOptions(num_shards=1))
  tokenizer.train([rows.read_text()], str(root / 'tokenizer.model'), vocab_size=320)
  config = ModelConfig(vocab_size=320, embed_dim=16, mlp_dim=32, num_layers=1, num_heads=1,
                       num_kv_heads=1, head_dim=16, max_seq_len=256,
                       dtype='float32')
  huggingface.save_hf(config, model.init(config, jax.random.key(0)), str(root / 'model'))
  tokenizer.to_hf(str(root / 'tokenizer.model'), str(root / 'model'), bos=True, max_length=256)
  return {p.name.partition('.')[0]: str(p) for p in root.iterdir()
          if p.suffix != '.sha256'} | {
    'new': str(root / 'new'), 'corpus': curated,
    'tokens': write_tokenised(
      root, 'tokens', {'train': [[2] * 40] * 8, 'validation': [[2] * 40] * 4}, 320)}


def complaint(result) -> str:
  return '\n'.join(line for line in result.stderr.strip().splitlines() if not SAID.search(line))


def faults(result, name: str, value: str) -> list[str]:
  said = complaint(result)
  return [fault for fault, there in (
    ('traceback', 'Traceback' in result.stdout + result.stderr),
    ('FATAL', 'FATAL' in said), ('quotes of quotes', '"\'' in said),
    (f'status {result.returncode}', result.returncode not in (0, 2)),
    ('no one line', result.returncode == 2 and len(said.splitlines()) != 1),
    (f'names neither {name} nor {value}', result.returncode == 2 and not any(
      w.lower() in said.lower()
      for w in (name, re.sub('\\W*$', '', value) or name, *re.findall(r'[\w/.-]{4,}', value)))),
  ) if there]


@pytest.mark.slow
@pytest.mark.skipif('README_CHECK' not in os.environ, reason='takes minutes: make readme-check')
@pytest.mark.parametrize('part', range(PARTS))
def test_mistyped_lines_are_answered_by_one_that_helps(here, part):
  def filled(part):
    return re.sub(r'\{(\w+)\}', lambda m: here.get(m[1], m[0]), part)

  tried = [([filled(part) for part in line], name, filled(value)) for line, name, value in lines()]
  assert len(tried) > 400
  tried = tried[part::PARTS]
  results = run_commands(
    *(line for line, *_ in tried), packages=('smoljax', 'data_beam', 'experiments.engine'))
  bad = [(' '.join(line), found, complaint(result)[-300:])
         for (line, *wrong), result in zip(tried, results, strict=True)
         if (found := faults(result, *wrong))]
  print(f'{len(tried)} lines, {len(bad)} answered badly')
  assert not bad, '\n\n'.join(map(str, bad))
