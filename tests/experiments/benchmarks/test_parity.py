"""What of the benchmarks runs in a Python without our packages."""

import os
import subprocess
import sys

from experiments.benchmarks import parity


def test_what_runs_in_datatroves_environment_needs_none_of_ours():
  folder = os.path.dirname(parity.__file__)
  with open(f'{folder}/web_pipeline.py') as file:      # to import it would define its flags
    (line,) = [line for line in file if 'import datatrove_chains' in line]
  told = f'import sys\nsys.path.append({folder!r})\n{line}'
  assert subprocess.run([sys.executable, '-I', '-S', '-c', told], cwd='/').returncode == 0
