"""A folder of PDFs that nobody has looked at: which are kept and why not, and which words are lost.

  python -m experiments.benchmarks.pdf_folder --input='DIR/*.pdf' [--sample=240] [--texts=DIR]

Each file goes through data_beam.pdf's extraction, its language and its filters, without comparing
documents. One JSON line a file: the verdict (`kept`, or stage and reason), pages, the share of
pdftotext's words that are in our text of the same page (`recall`; running heads and page numbers
go, so 1 is not the aim), that of our words which pdftotext has (`precision`), and the pages of 20
words and more of which fewer than `--low` are found. Pages that OCR has read are not compared;
`ocr_wanted` counts those that the rules would send there. The last line sums up. With `--texts`,
both texts of each file are written there, to be read.
"""
import collections
import glob
import json
import pathlib
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app, flags

from data_beam.filters.rules import profile
from data_beam.options import PdfOptions
from data_beam.pdf import pipeline
from data_beam.pdf import text as pdf_text
from data_beam.pdf.errors import PdfError
from data_beam.records import Document

_INPUT = flags.DEFINE_list('input', None, 'Patterns of PDF files.', required=True)
_SAMPLE = flags.DEFINE_integer('sample', 0, 'So many of them at random; 0 for all.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of that choice.')
_LANGUAGES = flags.DEFINE_list('languages', [], 'To keep; none for all that is sure.')
_OCR = flags.DEFINE_enum('ocr', 'auto', pdf_text.OCR_MODES, 'As of data_beam.pdf.')
_FILTERS = flags.DEFINE_string('filters', PdfOptions.filters, 'As of data_beam.pdf.')
_LOW = flags.DEFINE_float('low', 0.8, 'Pages with a smaller share of the words are named.')
_TEXTS = flags.DEFINE_string('texts', None, 'Folder for both texts of each file.')


def words(text: str) -> collections.Counter[str]:
  """Words in lower case, and how often each is there."""
  return collections.Counter(re.findall(r'\w+', text.lower()))


def pdftotext(path: pathlib.Path) -> list[str]:
  """The pages of a file by poppler's pdftotext; none where it fails."""
  done = subprocess.run(['pdftotext', str(path), '-'], capture_output=True)
  return done.stdout.decode('utf-8', 'replace').split('\f')[:-1]


def verdict(document: Document, languages: Sequence[str], filters: str) -> tuple[str, Document]:
  """What the language and the rules say of a document, and the document that they leave."""
  for stage in (lambda d: pipeline.identify(d, languages, PdfOptions.min_language_score),
                lambda d: pipeline.judge(d, profile(filters))):
    result = next(stage(document))
    if not isinstance(result, Document):
      return f'{result.stage}: {result.reason}', result.document
    document = result
  return 'kept', document


def compared(ours: Sequence[str], methods: Sequence[str], theirs: Sequence[str],
             low: float) -> dict[str, Any]:
  """Shares of words that are in both texts, over all pages that OCR has not read; and the numbers,
  from 1, of pages of which fewer than `low` of their words are in ours."""
  both = found = asked = 0
  lost: dict[int, float] = {}
  for number, (a, method, b) in enumerate(zip(ours, methods, theirs, strict=False), 1):
    if method == 'ocr':
      continue
    bags = words(a), words(b)
    common = (bags[0] & bags[1]).total()
    both, found, asked = both + common, found + bags[0].total(), asked + bags[1].total()
    if bags[1].total() >= 20 and common < low * bags[1].total():
      lost[number] = round(common / bags[1].total(), 3)
  return {'recall': round(both / max(1, asked), 4), 'precision': round(both / max(1, found), 4),
          'words': asked, 'low': lost}


def rows(paths: Sequence[pathlib.Path]) -> Iterator[dict[str, Any]]:
  """One a file."""
  with pdf_text.Extractor() as extractor:
    for path in paths:
      theirs = pdftotext(path)
      row: dict[str, Any] = {'file': path.name}
      try:
        found = extractor.extract(path.read_bytes(), ocr=_OCR.value)
      except PdfError as error:
        row |= {'verdict': f'extract: {error.reason}', 'words': words(' '.join(theirs)).total()}
        yield row
        continue
      reference = pipeline.Reference(path.name, path.name, '', '', str(path), -1, '')
      said, document = verdict(pipeline.to_document(reference, found), _LANGUAGES.value,
                               _FILTERS.value)
      row |= {'verdict': said, 'language': document.language, 'pages': len(found.pages),
              'ocr_pages': found.page_methods.count('ocr'), 'characters': len(document.text),
              'ocr_wanted': sum(bool(f['ocr_wanted']) for f in found.features),
              **compared(found.pages, found.page_methods, theirs, _LOW.value)}
      if _TEXTS.value:
        folder = pathlib.Path(_TEXTS.value)
        folder.mkdir(parents=True, exist_ok=True)
        for name, pages in (('ours', found.pages), ('pdftotext', theirs)):
          marked = [f'\n##### page {i}\n{page}' for i, page in enumerate(pages, 1)]
          (folder / f'{path.stem}.{name}.txt').write_text('\n'.join(marked))
      yield row


def main(_: list[str]) -> None:
  """Prints the rows, then how many files had each verdict."""
  paths = sorted({pathlib.Path(p) for pattern in _INPUT.value for p in glob.glob(pattern)})
  if _SAMPLE.value:
    paths = sorted(random.Random(_SEED.value).sample(paths, min(_SAMPLE.value, len(paths))))
  counts: collections.Counter[str] = collections.Counter()
  total: collections.Counter[str] = collections.Counter()
  for row in rows(paths):
    print(json.dumps(row), flush=True)
    counts[row['verdict']] += 1
    if 'recall' in row:
      total.update(pages=row['pages'], words=row['words'], low=len(row['low']),
                   wanted=row['ocr_wanted'],
                   both=round(row['recall'] * row['words']))
  print(json.dumps({'files': len(paths), 'verdicts': dict(counts.most_common()),
                    'pages': total['pages'], 'low_pages': total['low'],
                    'ocr_wanted': total['wanted'],
                    'recall': round(total['both'] / max(1, total['words']), 4)}), flush=True)


if __name__ == '__main__':
  sys.exit(app.run(main))
