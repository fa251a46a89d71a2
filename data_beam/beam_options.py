"""Beam's options from command line flags, which runner they mean, and where it can write."""

import argparse
import contextlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import NoReturn

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options import pipeline_options as beam_options
from apache_beam.runners.portability.fn_api_runner import worker_handlers

from data_beam import file_runner
from data_beam.command_line import near

log = logging.getLogger('data_beam')
_EXTRAS = {'gs': 'gcp', 's3': 'aws', 'azfs': 'azure'}  # which part of Beam knows a scheme
# They tell of an error, with a traceback, that is raised as well; or of each file on its way.
_SAYS_TWICE = ('apache_beam.runners.common', 'apache_beam.runners.worker.sdk_worker')
_SAYS_EACH = 'apache_beam.utils.subprocess_server'
_LOCAL_RUNNERS = ('DirectRunner', 'SwitchingDirectRunner', 'FnApiRunner', 'files', 'FileRunner')


def pipeline_options(beam_args: Sequence[str] = ()) -> beam_options.PipelineOptions:
  """Beam's options from command line flags, and from nothing else (never from sys.argv).

  `--runner=DirectRunner`, or no runner, means Beam's in-process FnApiRunner: since Beam 2.68
  DirectRunner first tries to download and run a Go binary. One line says which runner it is.
  `--runner=files` is our own (file_runner.py).

  Args:
    beam_args: such as ['--runner=DataflowRunner', '--project=P', …].

  Raises:
    ValueError: a runner or a flag that Beam does not know. (With a remote runner a flag is passed
      on instead, as Beam does: job servers have flags of their own.)
  """
  options = beam_options.PipelineOptions(flags=list(beam_args))
  runner = options.view_as(beam_options.StandardOptions).runner
  if is_remote(runner):
    _require_runner(runner)
    logging.getLogger(_SAYS_EACH).setLevel(logging.ERROR)
    return options
  for name in _SAYS_TWICE:
    logging.getLogger(name).setLevel(logging.CRITICAL)
  refuse_unknown(beam_args)
  if runner in ('files', file_runner.NAME):
    options.view_as(beam_options.StandardOptions).runner = file_runner.NAME
    return options
  options.view_as(beam_options.StandardOptions).runner = 'FnApiRunner'
  # With multi_threading, Beam 2.77 sends what a thread has written once a second by a timer, in the
  # midst of an element too; the halves are then read as elements: large documents vanish or become
  # None. So the timer must not fire; what is written is sent by its size, between elements.
  worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 10**9
  direct = options.view_as(beam_options.DirectOptions)
  if direct.direct_num_workers < 0:
    raise ValueError(f'--direct_num_workers={direct.direct_num_workers}: give 1 or more, or 0 for '
                     'as many as there are cores')
  log.log(
    logging.WARNING if runner == 'DirectRunner' else logging.INFO,
    'Beam runs on this machine: FnApiRunner, %s%s', direct.direct_running_mode,
    ' (what DirectRunner means here)' if runner == 'DirectRunner' else '')
  return options


def _require_runner(name: str) -> None:
  known = [*beam_options.StandardOptions.KNOWN_RUNNER_NAMES, 'files']
  names = {n.lower() for n in known} | {n.lower().removesuffix('runner') for n in known}
  if '.' not in name and name.lower() not in names:
    raise ValueError(f'--runner={name}: unknown{near(name, known)}, there are {", ".join(known)}')


_OS_ERROR = re.compile(r'\w+Error: \[Errno (\d+)\] ([^\[]*)')  # as a RuntimeError of Beam has it


@contextlib.contextmanager
def explained(beam_args: Sequence[str]) -> Iterator[None]:
  """Turns what another runner than this machine's ends with into a ValueError that names it, and
  what Beam says of a folder that cannot be written here, or of a full disk, into the OSError that
  it was.

  What a runner lacks (a job server, Java, a bucket) is the user's to mend; of other errors in this
  process the traceback stays.
  """
  try:
    yield
  except Exception as e:
    runner = beam_options.PipelineOptions(flags=list(beam_args)).view_as(
      beam_options.StandardOptions).runner
    if not is_remote(runner) and (found := _OS_ERROR.match(str(e))):
      raise OSError(int(found[1]), found[2].strip()) from e
    if (isinstance(e, ValueError) and 'unknown' in str(e)) or not is_remote(runner):
      raise
    words = ' '.join(str(e).split())
    if 'job server jar' in words:
      own = runner.lower().removesuffix('runner')
      words = (f'its job server cannot be downloaded from here: give the jar with '
               f'--{own}_job_server_jar=FILE, or one that runs with --job_endpoint=HOST:PORT')
    raise ValueError(f'--runner={runner}: {type(e).__name__}: {words[:300]}') from e


def is_remote(runner: str | None) -> bool:
  """Whether Beam's runner of this name needs more than this process."""
  return bool(runner) and str(runner).rpartition('.')[2] not in _LOCAL_RUNNERS


def _parser() -> argparse.ArgumentParser:
  parser = beam_options._BeamArgumentParser(allow_abbrev=False)  # as PipelineOptions does
  for group in beam_options.PipelineOptions.__subclasses__():
    group._add_argparse_args(parser)
  return parser


def is_beams(flag: str) -> bool:
  """Whether Beam itself has a flag of this name, such as --runner."""
  return flag in _parser()._option_string_actions


def refuse_unknown(beam_args: Sequence[str]) -> None:
  """Beam only warns of a flag that it does not know, and a misspelt one would be lost.

  Raises ValueError for such a flag, for a value that its flag does not take, and for a word that
  belongs to none.
  """
  parser = _parser()
  parser.error = _refuse
  unknown = parser.parse_known_args(list(beam_args))[1]
  if unknown:
    name = unknown[0].partition('=')[0]
    raise ValueError(f'unknown flag {unknown[0]!r}{near(name, list(parser._option_string_actions))}'
                     '; --help lists the flags, and Beam\'s own are '
                     'at https://beam.apache.org/documentation/')


def _refuse(message: str) -> NoReturn:
  raise ValueError(f'{message}; Beam\'s own flags are at '
                   'https://beam.apache.org/documentation/')


def require_file_system(path: str) -> None:
  """Raises ValueError for a URL whose scheme Beam does not know here, or that it cannot reach;
  PermissionError for a folder where nothing can be written."""
  scheme, found, _ = path.partition('://')
  if not found:
    there = os.path.abspath(path)
    while not os.path.exists(there):
      there = os.path.dirname(there)
    if not os.access(there, os.W_OK):
      raise PermissionError(f'{path} cannot be written: {there} is read-only')
    return
  extra = _EXTRAS.get(scheme)
  try:
    FileSystems.get_filesystem(path)
    missing = scheme == 's3' and not importlib.util.find_spec('boto3')
  except ValueError:
    missing = True
  if missing and not extra:
    raise ValueError(f'{path}: Beam knows no file system {scheme}://; give a folder, or gs://, '
                     's3:// or azfs://')
  if missing:
    raise ValueError(f'{path}: {scheme}:// needs a part of Beam that is not installed: '
                     f'pip install "apache-beam[{extra}]=={beam.__version__}"')
  try:
    FileSystems.exists(FileSystems.join(path, '_SUCCESS'))
  except Exception as e:
    raise ValueError(f'{path}: its store lets nobody in (bucket, credentials, rights?): {e}'
                     ) from None
