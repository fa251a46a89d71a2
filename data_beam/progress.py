"""The funnel while a pipeline runs: what each stage has passed on and dropped so far, and why.

On this machine every process of the pipeline writes its counts into a scratch folder once a second
and at the end of each bundle, and a thread of the main process adds them up: as a table on a
terminal, as a log line every ten seconds elsewhere. The same numbers are Beam counters in the
namespace `funnel` (`STAGE: kept`, `STAGE: REASON`), which Dataflow, Flink and Spark show live.
What a runner repeats is counted again here; the manifest's funnel is the exact one.
"""

import collections
import glob
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from rich.console import Console
from rich.live import Live
from rich.table import Table

from data_beam import file_runner
from data_beam.records import Reject

KEPT = 'kept'
_REASONS = 3  # shown for each stage
_LINE_SECONDS = 10

log = logging.getLogger('data_beam')


class Funnel:
  """Chains the stages of a pipeline and shows what comes out of each while the pipeline runs.

  Use it around the pipeline, which runs when its own `with` block ends:

    with Funnel(steps, options) as funnel, beam.Pipeline(options=options) as pipeline:
      kept, rejects = funnel.apply(pipeline | beam.Create(files))
  """

  def __init__(self, steps: Sequence[tuple[str, beam.PTransform]], options: PipelineOptions):
    """Sets up what `apply` chains.

    Args:
      steps: (stage, transform to (kept, rejects)), in order.
      options: of the pipeline: a runner elsewhere has pages of its own to look at.
    """
    self.steps = list(steps)
    self._local = options.view_as(StandardOptions).runner in (
      None, 'FnApiRunner', file_runner.NAME)
    self._folder = None

  def apply(self, elements: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
    """(what passed every stage, the Rejects of all stages)."""
    folder = self._folder.name if self._folder else None
    rejects = []
    for stage, transform in self.steps:
      elements, dropped = elements | stage >> transform
      elements |= f'{stage} kept' >> beam.ParDo(_Count(stage, folder))
      rejects.append(dropped | f'{stage} dropped' >> beam.ParDo(_Count(stage, folder)))
    return elements, tuple(rejects) | 'rejects' >> beam.Flatten()

  def __enter__(self) -> 'Funnel':
    if self._local:
      self._folder = tempfile.TemporaryDirectory(prefix='funnel-')
      self._done = threading.Event()
      self._start = time.monotonic()
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    if self._local:
      self._done.set()
      self._thread.join()
      self._folder.cleanup()

  def _watch(self) -> None:
    console = Console(file=sys.stderr)
    if not console.is_terminal:
      while not self._done.wait(_LINE_SECONDS):
        if line := self.line(read_counts(self._folder.name), time.monotonic() - self._start):
          log.info('%s', line)
      return
    with Live(console=console, auto_refresh=False, transient=True) as live:
      while not self._done.wait(0.5):
        counts = read_counts(self._folder.name)
        live.update(self.table(counts, time.monotonic() - self._start), refresh=True)

  def line(self, counts: Mapping[str, Mapping[str, int]], seconds: float) -> str:
    """`12 s: read 340 (28/s) → extract 322 → …; dropped: no_text 18, …`, '' before the first."""
    stages = [(stage, counts[stage].get(KEPT, 0)) for stage, _ in self.steps if stage in counts]
    if not stages:
      return ''
    rate = sum(counts[stages[0][0]].values()) / max(seconds, 1e-9)
    parts = [f'{stage} {kept:,}' for stage, kept in stages]
    parts[0] += f' ({rate:,.0f}/s)'
    dropped = collections.Counter()
    for stage, _ in stages:
      dropped.update({k: n for k, n in counts[stage].items() if k != KEPT})
    reasons = ', '.join(f'{reason} {n:,}' for reason, n in dropped.most_common(2 * _REASONS))
    return f'{seconds:.0f} s: {" → ".join(parts)}' + (f'; dropped: {reasons}' if reasons else '')

  def table(self, counts: Mapping[str, Mapping[str, int]], seconds: float) -> Table:
    """The funnel as a table for a terminal."""
    table = Table(box=None, title=f'{seconds:.0f} s', title_justify='left', title_style='dim')
    table.add_column('stage', no_wrap=True, min_width=max(len(stage) for stage, _ in self.steps))
    for name in ('in', 'kept', 'dropped', 'in/s'):
      table.add_column(name, justify='right')
    table.add_column('because', style='dim', overflow='ellipsis', no_wrap=True)
    for stage, _ in self.steps:
      seen = counts.get(stage, {})
      total, kept = sum(seen.values()), seen.get(KEPT, 0)
      reasons = collections.Counter({k: n for k, n in seen.items() if k != KEPT})
      table.add_row(stage, f'{total:,}', f'{kept:,}', f'{total - kept:,}',
                    f'{total / max(seconds, 1e-9):,.0f}',
                    ', '.join(f'{k} {n:,}' for k, n in reasons.most_common(_REASONS)))
    return table


# --- counting, in whatever process a stage runs ---------------------------------------------------

# What this process has counted, by folder: one run of a pipeline.
_counts: dict[str, collections.Counter] = {}
_written: dict[str, float] = {}
_lock = threading.Lock()


class _Count(beam.DoFn):
  """Counts what passes, by the reason where it is a Reject."""

  def __init__(self, stage: str, folder: str | None):
    self.stage, self.folder = stage, folder
    self.counters: dict[str, Any] = {}

  def process(self, element):
    reason = element.reason if isinstance(element, Reject) else KEPT
    counter = self.counters.get(reason)
    if counter is None:
      counter = self.counters[reason] = Metrics.counter('funnel', f'{self.stage}: {reason}')
    counter.inc()
    if self.folder:
      with _lock:
        _counts.setdefault(self.folder, collections.Counter())[self.stage, reason] += 1
      if time.monotonic() - _written.get(self.folder, 0) > 1:
        self._write()
    yield element

  def finish_bundle(self):
    if self.folder:
      self._write()

  def _write(self):
    with _lock:
      _written[self.folder] = time.monotonic()
      rows = [[*key, n] for key, n in _counts.get(self.folder, {}).items()]
      path = os.path.join(self.folder, f'{os.getpid()}.json')
      try:
        with open(f'{path}.tmp', 'w') as f:
          json.dump(rows, f)
        os.replace(f'{path}.tmp', path)
      except OSError:  # the pipeline is over, or runs where the folder is not
        pass


def read_counts(folder: str) -> dict[str, dict[str, int]]:
  """{stage: {KEPT or reason: documents}}, the sum over all processes that wrote into `folder`."""
  total: dict[str, dict[str, int]] = {}
  for path in glob.glob(os.path.join(glob.escape(folder), '*.json')):
    with open(path) as f:
      for stage, reason, n in json.load(f):
        reasons = total.setdefault(stage, {})
        reasons[reason] = reasons.get(reason, 0) + n
  return total
