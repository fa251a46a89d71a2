"""A run's files → one HTML page a person enjoys reading, with a CSV beside every plot.

Reads files only: config.json, summary.json, metrics.jsonl, events.jsonl, evals/, samples.json,
checkpoints/, export/ and the corpora with their manifests. What is missing is named on the page;
only a directory with neither metrics nor a corpus has no page. The page loads nothing: no script,
no font, no image. Everything that comes from data is escaped, and control and bidirectional
characters are removed first, so that no document can speak in the page's own voice.
"""

import pathlib
import re

from smoljax.report import charts, corpus_page, generation_section, headline, run_sections
from smoljax.report import workdir as workdir_lib

SECTIONS = (
  headline.headline,
  headline.flow,
  corpus_page.curation,
  corpus_page.corpus,
  run_sections.training,
  run_sections.stability,
  run_sections.evaluation,
  generation_section.generation,
  run_sections.sample,
  headline.next_steps,
  run_sections.artefacts,
  run_sections.record,
)
# Of a directory that holds corpora and no run.
CORPORA = (
  headline.corpora_headline,
  corpus_page.curation,
  corpus_page.corpus,
  run_sections.unreadable,
)


def write(
  workdir: str, output: str | None = None, locate: corpus_page.Locate | None = None,
  picture: corpus_page.Picture | None = None,
) -> str:
  """Writes the report of the run in `workdir`, or of the corpora there.

  Args:
    workdir: what experiments.run wrote, or a directory of corpora.
    output: directory for index.html and the CSV files; workdir/report if None.
    locate: (reason, text, metadata) → (start, end) of what to mark in a dropped document, or None.
    picture: (metadata, inputs of the manifest) → PNG of a document's first page, or None.

  Returns:
    The path of index.html.

  Raises:
    FileNotFoundError: there is no such workdir.
    ValueError: it holds neither metrics nor a curated corpus.
  """
  run, site = workdir_lib.load(workdir), charts.Site()
  run.locate, run.picture = locate, picture
  body = [part(run, site.csv) for part in (SECTIONS if run.metrics else CORPORA)]
  name = workdir_lib.get(run.config, 'name') or run.workdir.resolve().name
  top = 2 if run.metrics else 1  # what stands above the navigation
  nav = ''.join(f'<a href="#{a}">{a.capitalize()}</a>'
                for a in re.findall('<section id="([a-z]+)">', ''.join(body)))
  return site.write(pathlib.Path(output) if output else run.workdir / 'report', f'smoljax: {name}',
                    f'{"".join(body[:top])}<nav>{nav}</nav>{"".join(body[top:])}')
