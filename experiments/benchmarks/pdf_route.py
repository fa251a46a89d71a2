"""Which PDFs need OCR: the rules, and a classifier that has not seen them, on labelled files.

  python -m experiments.benchmarks.pdf_route --data=DIR

`--data` holds `pdf/` with manifest.json, whose categories are the labels: scans, and fonts without
a map to Unicode, need OCR. Two files filed as digital do too, as their fonts' maps are wrong. What
is encrypted, damaged or blank does not come to a decision and is left out. One JSON line each, with
the misses and false alarms, and milliseconds for each document. Where an engine for OCR is
installed, the third line is what extraction does in the end, when it has looked at pictures.
"""
import json
import pathlib
import sys
import time

from absl import app, flags

from data_beam.pdf import ocr as pdf_ocr
from data_beam.pdf import pages as pdf_pages
from data_beam.pdf import router, train_router
from data_beam.pdf import text as pdf_text
from data_beam.pdf.errors import PdfError

_DATA = flags.DEFINE_string('data', None, 'Folder with pdf/.', required=True)
WRONG_FONTS = ('digital/olmocr__dolma-page-1.pdf', 'digital/pdfjs__ThuluthFeatures.pdf')
UNDECIDED = ('encrypted', 'corrupt', 'adversarial', 'blank')


def labelled(folder: pathlib.Path) -> tuple[list[dict], list[float]]:
  """Rows of pages, and the seconds that reading them took for each document."""
  files = {entry['file']: entry['category'] for entry in json.loads(
    (folder / 'manifest.json').read_text())}
  files |= {f'multilingual/{path.name}': 'digital' for path in folder.glob('multilingual/*.pdf')}
  rows, seconds = [], []
  for file, category in sorted(files.items()):
    if category.startswith(UNDECIDED):
      continue
    body, start = (folder / file).read_bytes(), time.process_time()
    document, _ = pdf_pages.open_document(body)
    with document:
      step = max(1, len(document) // train_router.PAGES)
      pages = range(0, len(document), step)
      for page, text in zip(pages, pdf_pages.read_pages(document, pages), strict=True):
        rows.append({'file': file, 'page': page,
                     'ocr': category.startswith(('scan', 'garbled')) or file in WRONG_FONTS,
                     'features': text.features})
    seconds.append(time.process_time() - start)
  return rows, seconds


def looked(folder: pathlib.Path, rows: list[dict]) -> list[bool]:
  """Whether each page's text layer is not used, after looks at pictures."""
  features: dict[str, list[dict] | None] = {}
  for file in {row['file'] for row in rows}:
    try:
      features[file] = pdf_text.parse((folder / file).read_bytes()).features
    except PdfError:                    # no page has a text layer, or one by OCR
      features[file] = None
  found = [(features[row['file']], row['page']) for row in rows]
  return [pages is None or bool(pages[page]['ocr_wanted']) for pages, page in found]


def main(_: list[str]) -> None:
  """Prints how often rules, the classifier and looks send a document the right way."""
  folder = pathlib.Path(_DATA.value) / 'pdf'
  rows, seconds = labelled(folder)
  ms = round(1000 * sum(seconds) / len(seconds), 1)
  for by, decisions in (
      ('rules', [bool(router.needs_ocr(row['features'])) for row in rows]),
      ('classifier, cross-validated', train_router.cross_validated(rows))):
    print(json.dumps({'by': by, **train_router.judge(rows, decisions), 'ms_a_document': ms}))
  if pdf_ocr.engine():
    verdict = train_router.judge(rows, looked(folder, rows))
    print(json.dumps({'by': 'rules and looks', **verdict}))


if __name__ == '__main__':
  sys.exit(app.run(main))
