"""A pipeline on Dask: a scheduler and worker processes of this machine, one of which may be killed.

  python -m experiments.cloud.on_dask [--workers=3] [--kill_after=5] web --input='crawl/*.warc.gz' \
    --output=corpora --name=web

Needs `pip install dask distributed`. The flags behind the pipeline's name (web, pdf, tables,
python_source, tokenize_corpus) are its own. What this shows for one machine holds for many whose
workers see one folder: start `dask scheduler` and `dask worker` there, with this code, and give
`--runner=files --dask_scheduler=HOST:PORT --work_dir=FOLDER` to the pipeline.

Beam's own DaskRunner is not used: of 2.77 it drops the tags of outputs, what finish_bundle yields
and all sinks but the last, so that our pipelines fail or lose documents on it. Ours is
data_beam/file_runner.py, whose tasks leave files: a worker that dies costs its task.
"""

import argparse
import glob
import importlib
import os
import signal
import sys
import tempfile
import threading
import time
from typing import Any

from data_beam.command_line import Parser

PIPELINES = {
  'web': 'data_beam.web.pipeline', 'pdf': 'data_beam.pdf.pipeline', 'tables': 'data_beam.tables',
  'python_source': 'data_beam.python_source', 'tokenize_corpus': 'data_beam.tokenize_corpus'}


def main(argv: list[str]) -> int:
  """Runs a pipeline. Returns its exit code, or 2 after one line about what is missing."""
  parser = Parser(
    prog='python -m experiments.cloud.on_dask', others=lambda flag: True,
    description='Runs a pipeline of data_beam on Dask workers of this machine.')
  parser.add_argument('--workers', type=int, default=2, help='processes (default: %(default)s)')
  parser.add_argument('--kill_after', type=int, default=0, metavar='TASKS',
                      help='kill a worker when so many tasks are done; it is started anew')
  parser.add_argument('pipeline', choices=tuple(PIPELINES))
  parser.add_argument('arguments', nargs=argparse.REMAINDER, help="the pipeline's own flags")
  args = parser.parse_args(argv)
  try:
    from distributed import LocalCluster
  except ImportError:
    print('experiments.cloud.on_dask: Dask is missing: pip install dask distributed',
          file=sys.stderr)
    return 2
  with (tempfile.TemporaryDirectory(prefix='dask-') as folder,
        LocalCluster(n_workers=args.workers, threads_per_worker=1, processes=True,
                     dashboard_address=None, local_directory=folder) as cluster):
    if args.kill_after:
      threading.Thread(target=_kill, args=(cluster, folder, args.kill_after), daemon=True).start()
    return importlib.import_module(PIPELINES[args.pipeline]).main([
      *args.arguments, '--runner=files', f'--dask_scheduler={cluster.scheduler_address}',
      f'--work_dir={folder}'])


def _kill(cluster: Any, folder: str, tasks: int) -> None:
  while len(glob.glob(f'{folder}/*/[0-9]*/[0-9]*')) < tasks:
    time.sleep(.05)
  victim = next(iter(cluster.workers.values())).process.pid
  print(f'killing worker {victim}', file=sys.stderr)
  os.kill(victim, signal.SIGKILL)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
