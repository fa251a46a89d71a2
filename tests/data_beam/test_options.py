"""The options of pipelines: the command, the config and the call say the same."""

import dataclasses
import errno
import os

import pytest
from absl import flags
from ml_collections import config_flags

from configs import base, quickstart
from data_beam import conversations, options, python_source, refine, tables, tokenize_corpus
from data_beam.beam_options import explained, require_file_system
from data_beam.command_line import at_home
from data_beam.options import (
  ConversationOptions,
  ImportOptions,
  PdfOptions,
  PythonSourceOptions,
  RefineOptions,
  TokenizeOptions,
  WebOptions,
)
from data_beam.pdf import pipeline as pdf
from data_beam.web import pipeline as web

COMMANDS = {
  WebOptions: (web, 'run', []),
  PdfOptions: (pdf, 'run', []),
  PythonSourceOptions: (python_source, 'run', []),
  RefineOptions: (refine, 'run', []),
  ImportOptions: (tables, 'import_tables', ['import']),
  ConversationOptions: (conversations, 'run', []),
  TokenizeOptions: (tokenize_corpus, 'run', ['--tokenizer=t']),
}
SECTIONS = {'web': WebOptions, 'pdf': PdfOptions, 'conversations': ConversationOptions,
            'tokenize': TokenizeOptions}
# Another value than the default, of each option: (of the flag, of the config, of the call).
OTHER = {
  'languages': ('fr,de', "('fr','de')", ('fr', 'de')),
  'min_language_score': ('.5', '.5', .5),
  'filters': ('docs', 'docs', 'docs'),
  'minhash': ('9x4', '9x4', '9x4'),
  'minhash_hash': ('sha1', 'sha1', 'sha1'),
  'tier': ('fast', 'fast', 'fast'),
  'markdown': (None, 'true', True),
  'unseen': (None, 'true', True),
  'url_lists': ('lists', 'lists', 'lists'),
  'parity': (None, 'true', True),
  'dedup_scope': ('dump', 'dump', 'dump'),
  'dump': ('D', 'D', 'D'),
  'against': ('c/old', "('c/old',)", ('c/old',)),
  'signatures': (None, 'true', True),
  'exact_dedup': (None, None, True),
  'html_server': ('http://a', 'http://a', 'http://a'),
  'html_model': ('m', 'm', 'm'),
  'html_prompt': ('text', 'text', 'text'),
  'url_dedup': (None, 'true', True),
  'language_model': ('g.bin', 'g.bin', 'g.bin'),
  'signals': (None, 'true', True),
  'quality': ('a.npz', "('a.npz',)", ('a.npz',)),
  'quality_least': ('3', '3', 3.),
  'dedup_parts': ('lines,substrings', "('lines','substrings')", ('lines', 'substrings')),
  'substring_words': ('60', '60', 60),
  'rejects': (None, None, True),
  'thresholds': ('words=30', None, ('words=30',)),
  'near_verbatim': ('.9', '.9', .9),
  'decontaminate': ('a.jsonl', "('a.jsonl',)", ('a.jsonl',)),
  'phones': (None, 'true', True),
  'accounts': (None, 'true', True),
  'limit': ('7', '7', 7),
  'num_shards': ('3', '3', 3),
  'ocr': ('never', 'never', 'never'),
  'ocr_server': ('http://a', 'http://a', 'http://a'),
  'ocr_model': ('m', 'm', 'm'),
  'ocr_prompt': ('tex', 'tex', 'tex'),
  'router': ('r.txt', 'r.txt', 'r.txt'),
  'figures': ('mark', 'mark', 'mark'),
  'refetch': ('poor,all', 'poor,all', ('poor', 'all')),
  'agent': ('a@b', 'a@b', 'a@b'),
  'fetch_delay': ('2', '2', 2.),
  'stale_before': ('2024-01-31', '2024-01-31', '2024-01-31'),
  'licences': ('any', 'any', 'any'),
  'robots': ('r.jsonl', 'r.jsonl', 'r.jsonl'),
  'robots_agents': ('GPTBot,*', "('GPTBot','*')", ('GPTBot', '*')),
  'opt_out': (None, 'true', True),
  'layout': ('dclm', None, 'dclm'),
  'columns': ('text=content', None, ('text=content',)),
  'holdout': ('.1', '.1', .1),
  'holdout_shared': ('.4', '.4', .4),
  'share': ('.5', '.5', .5),
  'bos': (None, 'false', False),
  'train_user': (None, 'true', True),
  'mode': ('think', 'think', 'think'),
  'tokenizer': ('t.json', 't.json', 't.json'),
  'rehydrate': (None, 'true', True),
}


def by_command(kind, arguments, monkeypatch):
  """The options with which a command calls its pipeline."""
  module, run, first = COMMANDS[kind]
  calls = []
  monkeypatch.setattr(module, run, lambda *args, **_: calls.append(args[-1]) or 'path')
  monkeypatch.setattr(tokenize_corpus.records, 'read_manifest', lambda *_: {
    'documents': 1, 'tokens': 1, 'bytes': 1})
  module.main([*first, '--input=x', '--output=y', '--name=z', *arguments])
  return calls[0]


def by_config(kind, name, arguments):
  """The options of a config's section, changed on the command line of experiments.run."""
  values, argv = flags.FlagValues(), ['run', *(f'--config.{name}.{a}' for a in arguments)]
  flag = config_flags.DEFINE_config_dict(
    'config', base.get_config(), flag_values=values, sys_argv=argv)
  values(argv)
  return kind.of(flag.value[name])


@pytest.mark.parametrize('kind', COMMANDS)
def test_defaults_of_command_and_config_are_those_of_the_call(kind, monkeypatch):
  assert by_command(kind, [], monkeypatch) == kind()
  for name in (name for name, of in SECTIONS.items() if of is kind):
    section = base.get_config()[name]
    assert kind.of(section) == kind()
    # What else a section has is no pipeline's.
    assert set(section) - {f.name for f in dataclasses.fields(kind)} <= {'enabled', 'input'}


@pytest.mark.parametrize('kind', COMMANDS)
def test_every_option_is_a_flag_and_a_field_of_the_config(kind, monkeypatch):
  names = [field.name for field in dataclasses.fields(kind)]
  want = kind(**{name: OTHER[name][2] for name in names})
  assert not {f for f in names if getattr(want, f) == getattr(kind(), f)}
  given = [f'--{n}={OTHER[n][0]}' if OTHER[n][0] else '--no-bos' if n == 'bos' else f'--{n}'
           for n in names]
  assert by_command(kind, given, monkeypatch) == want
  for section in (name for name, of in SECTIONS.items() if of is kind):
    assert by_config(kind, section, [f'{name}={OTHER[name][1]}' for name in names]) == want


def test_none_can_be_said(monkeypatch):
  """Thresholds fitted to each language, where a default or a recipe has a number."""
  assert by_command(PdfOptions, ['--min_language_score=none'], monkeypatch).min_language_score is (
    None)
  assert by_config(PdfOptions, 'pdf', ['min_language_score=nan']).min_language_score is None
  c = quickstart.get_config()
  assert WebOptions.of(c.web).min_language_score == .5
  c.web.min_language_score = None
  assert WebOptions.of(c.web).min_language_score is None
  assert by_command(WebOptions, ['--languages=any'], monkeypatch).languages == ()


@pytest.mark.parametrize(('kind', 'values', 'message'), [
  (WebOptions, {'tier': 'best'}, "unknown tier 'best': choose one of default"),
  (WebOptions, {'dedup_scope': 'all'}, "unknown dedup_scope 'all'"),
  (WebOptions, {'limit': 0}, 'limit is 0: give at least 1'),
  (PdfOptions, {'refetch': ('poor', 'some')}, "unknown refetch 'some': choose one of truncated"),
  (PdfOptions, {'ocr_model': 'm'}, 'give both'),
  (ImportOptions, {'num_shards': 0}, 'num_shards is 0'),
  (TokenizeOptions, {'holdout': 1.}, 'holdout must be')])
def test_what_cannot_be_meant_is_refused(kind, values, message):
  with pytest.raises(ValueError, match=message):
    kind(**values)


@pytest.mark.parametrize(('output', 'words'), [
  ('gs://b/x', r'pip install "apache-beam\[gcp\]=='), ('s3://b/x', r'apache-beam\[aws\]'),
  ('nil://b/x', 'Beam knows no file system nil://'),
])  # fmt: skip
def test_where_nothing_can_be_written_is_said_at_once(output, words):
  with pytest.raises(ValueError, match=words):
    require_file_system(output)


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path, monkeypatch):
  require_file_system(str(tmp_path / 'any/where'))
  monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere
  with pytest.raises(PermissionError, match=r'cannot be written: .* is read-only'):
    require_file_system(str(tmp_path / 'any/where'))


def test_a_full_disk_is_an_error_of_the_disk():
  with pytest.raises(OSError, match='No space left') as error, explained([]):
    raise RuntimeError("OSError: [Errno 28] No space left on device: '/x' [while running 'write']")
  assert error.value.errno == errno.ENOSPC
  with pytest.raises(RuntimeError), explained([]):
    raise RuntimeError('of ours')


def test_files_that_decide_the_result():
  assert WebOptions().files() == PdfOptions().files() == []
  assert WebOptions(url_lists='lists', decontaminate=['a', 'b']).files() == ['lists/*', 'a', 'b']
  assert PdfOptions(router='r').files() == ['r']


def test_lists_by_commas_and_by_themselves():
  assert WebOptions(languages='en,fr') == WebOptions(languages=['en', 'fr'])
  assert options.TokenizeOptions() == TokenizeOptions(bos=True)


def test_home_is_found_behind_an_equals_sign(monkeypatch):
  """A shell expands `--input ~/a`, and leaves `--input=~/a` alone."""
  monkeypatch.setenv('HOME', '/home/me')
  assert at_home(['import', '--input=~/a b', '--input=~/a,~/b', "--x=('~/a', '~/b')", '--c=n=~/a',
                  '--prompt=see ~/a', '--y=a~/b', '~/a']) == [
    'import', '--input=~/a b', '--input=/home/me/a,/home/me/b', "--x=('/home/me/a', '/home/me/b')",
    '--c=n=/home/me/a', '--prompt=see ~/a', '--y=a~/b', '~/a']
