"""A web job that is killed at random points and run again: how much is done twice, are bytes equal?

  python -m experiments.benchmarks.web_kills --input='crawl/*.warc.gz' --kills=20

Prints one JSON line: seconds of a run that nobody kills, `tasks` that were done and stayed,
`redone` the share of these that were done once more, `at_risk` what a kill costs at most: the tasks
that it meets, one a process, as a share of the stage that has most, and `same`, whether all files
of both corpora are equal byte for byte. A kill is SIGKILL of the job's processes, all at once, at a
moment between the start and the time that an undisturbed run takes; a run that ends before is begun
anew, and what that one does counts as new.
"""

import collections
import glob
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags

_INPUT = flags.DEFINE_multi_string('input', None, 'WARC files or patterns.', required=True)
_KILLS = flags.DEFINE_integer('kills', 20, 'How often.')
_PROCESSES = flags.DEFINE_integer('processes', 2, 'Of the job.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')


def bytes_of(folder: str) -> dict[str, bytes]:
  """The files of a folder by their path."""
  return {path.relative_to(folder).as_posix(): path.read_bytes()
          for path in pathlib.Path(folder).rglob('*') if path.is_file()}


def start(output: str) -> subprocess.Popen:
  """The job, in a group of processes of its own."""
  return subprocess.Popen(
    [sys.executable, '-m', 'data_beam.web', *(f'--input={i}' for i in _INPUT.value),
     f'--output={output}', '--runner=files', f'--work_processes={_PROCESSES.value}'],
    start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def tasks(output: str) -> dict[str, int]:
  """Files of tasks that are done, and when each was."""
  return {path: os.stat(path).st_mtime_ns
          for path in glob.glob(f'{output}/.web-work/*/*/[0-9]*')}


def main(argv: list[str]) -> None:
  """Prints the line."""
  del argv
  rng = random.Random(_SEED.value)
  with tempfile.TemporaryDirectory() as folder:
    whole, killed = f'{folder}/whole', f'{folder}/killed'
    begin = time.monotonic()
    if start(whole).wait():
      raise SystemExit('the job failed: run data_beam.web on the input to see why')
    seconds = time.monotonic() - begin
    done: dict[str, int] = {}
    stages: collections.Counter[str] = collections.Counter()   # most tasks that each has had
    total, again, ended, kills = 0, 0, 0, 0
    while kills < _KILLS.value:
      job = start(killed)
      try:
        job.wait(rng.uniform(0, seconds))
        done, ended = {}, ended + 1
        continue
      except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        kills += 1
      job.wait()
      now = tasks(killed)
      again += sum(path in done and now[path] != done[path] for path in now)
      total += len(now.keys() - done.keys())
      stages |= collections.Counter(map(os.path.dirname, now))
      done = now
    if start(killed).wait():
      raise SystemExit('the job failed after the kills')
    print(json.dumps({
      'kills': kills, 'ended': ended, 'seconds': round(seconds, 1), 'tasks': total,
      'redone': round(again / max(1, total), 4),
      'at_risk': round(_PROCESSES.value / max(stages.values(), default=1), 4),
      'same': bytes_of(whole) == bytes_of(killed)}))


if __name__ == '__main__':
  app.run(main)
