"""PDF text: how true it is to known text, in which order, and pages per CPU-second, beside others.

  python -m experiments.benchmarks.pdf_extract --data=DIR [--others=ENV/bin/python]

`--data` holds `pdf/` and `html_multilingual/` (Debian's manuals as PDF and as HTML, packed). One
JSON line each:
- twins: each manual against its HTML: recall and precision of the bag of words, F1 of 4-grams, in
  order. The tables of contents that the HTML has at the head of every chapter are left out: the PDF
  has them once, at its front. `with_chapter_contents` counts them as missing.
- order: longest common subsequence of words over the longer of the two, on first pages of papers in
  two and three columns, against references read by eye (tests/goldens/pdf_order.json: hashes).
- ocr: character error rate (Levenshtein distance over the text's length, spaces alike) and CPU
  seconds of a clean scan with known text, by each engine that is installed.
- cut: the larger files cut in half: how many give pages to pdfium, after qpdf's repair, and to us,
  and how many of ours have text.
- speed: pages per CPU-second, the child process with its start included, the least CPU time of
  `--repeats` runs, the tools in turn.
The alternatives are pdfium's own text, and, with the Python that `--others` names, pdfplumber and
docling-parse: on the papers, and one manual, as they take a quarter of a second a page.
"""
import collections
import importlib.util
import itertools
import json
import math
import os
import pathlib
import re
import resource
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pypdfium2
from absl import app, flags
from lxml import html

from data_beam import sandbox
from data_beam.pdf import ocr as pdf_ocr
from data_beam.pdf import pages as pdf_pages
from data_beam.pdf import repair as pdf_repair
from data_beam.pdf import text as pdf_text
from data_beam.pdf.errors import PdfError

_DATA = flags.DEFINE_string('data', None, 'Folder with pdf/ and html_multilingual/.', required=True)
_OTHERS = flags.DEFINE_string('others', None, 'Python with pdfplumber and docling-parse.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Runs, of which the fastest counts.')
_PARTS = flags.DEFINE_list('parts', ['twins', 'order', 'ocr', 'cut', 'speed'], 'What to measure.')
SLOW = ('pdfplumber', 'docling-parse')
LANGUAGES = ('en', 'fr', 'de', 'es', 'it', 'pt')
ORDER = pathlib.Path(__file__).parents[2] / 'tests' / 'goldens' / 'pdf_order.json'

_OTHER = '''
import json, sys
tool, paths = sys.argv[1], sys.argv[2:]
for path in paths:
  pages = []
  try:
    if tool == "pdfplumber":
      import pdfplumber
      with pdfplumber.open(path) as pdf:
        pages = [page.extract_text() or "" for page in pdf.pages]
    else:
      from docling_parse.pdf_parser import DoclingPdfParser
      pdf = DoclingPdfParser(loglevel="fatal").load(path)
      for _, page in pdf.iterate_pages():
        pages.append("\\n".join(cell.text for cell in page.textline_cells))
  except Exception as error:
    print(f"{path}: {error}", file=sys.stderr)
  print(json.dumps(pages), flush=True)
'''


def ours(paths: Sequence[pathlib.Path]) -> Iterator[list[str]]:
  """Each file's pages by our extraction, without OCR."""
  with pdf_text.Extractor() as extractor:
    for path in paths:
      try:
        yield extractor.extract(path.read_bytes(), ocr='never').pages
      except PdfError:
        yield []


def pdfium(paths: Sequence[pathlib.Path]) -> Iterator[list[str]]:
  """Each file's pages by PDFium alone."""
  for path in paths:
    document = pypdfium2.PdfDocument(path)
    yield [page.get_textpage().get_text_range() for page in document]


def other(tool: str) -> Callable:
  """Reads files with another library, in the Python that has it."""
  def read(paths):
    done = subprocess.run([str(_OTHERS.value), '-c', _OTHER, tool, *map(str, paths)], check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    yield from map(json.loads, done.stdout.splitlines())
  return read


def words(text: str) -> list[str]:
  """Words in lower case."""
  return re.findall(r'\w+', text.lower())


def scores(gold: list[str], found: list[str]) -> dict[str, float]:
  """Recall and precision of words, F1 of runs of four."""
  bags = collections.Counter(gold), collections.Counter(found)
  grams = [collections.Counter(zip(*(w[i:] for i in range(4)), strict=False))
           for w in (gold, found)]
  common, both = (bags[0] & bags[1]).total(), (grams[0] & grams[1]).total()
  return {'recall': round(common / bags[0].total(), 4),
          'precision': round(common / max(1, bags[1].total()), 4),
          'f1_4grams': round(2 * both / (grams[0].total() + grams[1].total()), 4)}


def manual(archive: tarfile.TarFile, language: str, chapter_contents: bool) -> str:
  """Text of debian-reference's HTML, chapters in order, without the links around each."""
  pages = {pathlib.Path(m.name).name: m for m in archive
           if '/debian-reference/' in m.name and m.name.endswith(f'.{language}.html')}
  names = ['index', 'pr01', *(f'ch{i:02}' for i in range(1, 13)), 'apa']
  out = []
  for name in names:
    file = archive.extractfile(pages[f'{name}.{language}.html'])
    tree = html.fromstring(file.read() if file else b'')
    gone = ['head', 'script', 'style', 'div[@class="navheader"]', 'div[@class="navfooter"]']
    if name != 'index' and not chapter_contents:
      gone.append('div[@class="toc"]')
    for node in itertools.chain.from_iterable(tree.xpath(f'//{path}') for path in gone):
      node.drop_tree()
    for node in tree.iter('p', 'div', 'td', 'th', 'li', 'dt', 'dd', 'pre', 'h1', 'h2', 'h3', 'h4',
                          'tr', 'a', 'br'):
      node.tail = ' ' + (node.tail or '')
    out.append(tree.text_content())
  return '\n'.join(out)


def twins(data: pathlib.Path, tools: dict[str, Callable]) -> None:
  """Manuals that exist as HTML and as PDF: how much of the text each tool finds."""
  for language in LANGUAGES:
    with tarfile.open(data / f'html_multilingual/debian-docs-{language}.tar.xz') as archive:
      gold, with_contents = (words(manual(archive, language, c)) for c in (False, True))
    for name, read in tools.items():
      if name in SLOW and language != 'en':
        continue
      (pages,) = read([data / f'pdf/multilingual/debian-reference.{language}.pdf'])
      found = words('\n\n'.join(pages))
      print_row(part='twins', language=language, tool=name, pages=len(pages), **scores(gold, found),
          with_chapter_contents=scores(with_contents, found))


def hashes(text: str) -> list[int]:
  """16 bits of each word."""
  return [zlib.crc32(word.encode()) & 0xffff for word in words(text)]


def common_subsequence(a: Sequence, b: Sequence) -> int:
  """Length of the longest; Hunt and Szymanski would be faster, pages are short."""
  row = [0] * (len(b) + 1)
  for x in a:
    before = 0
    for j, y in enumerate(b):
      before, row[j + 1] = row[j + 1], before + 1 if x == y else max(row[j + 1], row[j])
  return row[-1]


def order(data: pathlib.Path, tools: dict[str, Callable]) -> None:
  """Papers whose reading order is known: how much of it each tool keeps."""
  references = json.loads(ORDER.read_text())
  for name, read in tools.items():
    for file, pages in zip(references, read([data / 'pdf' / f for f in references]), strict=True):
      found, gold = hashes(pages[0]), references[file]
      ratio = common_subsequence(gold, found) / max(len(gold), len(found))
      print_row(part='order', file=file, tool=name, ratio=round(ratio, 4))


def ocr(data: pathlib.Path, tools: dict[str, Callable]) -> None:
  """A scan whose text is known, by each OCR engine that is here."""
  del tools
  os.environ.update(sandbox.ONE_THREAD)    # as in the child
  gold = ' '.join((data / 'pdf/gold/ocrmypdf__linn.txt').read_text().split())
  body = (data / 'pdf/scan/OCRmyPDF__linn.pdf').read_bytes()
  for name in ('tesseract', 'rapidocr'):
    if pdf_ocr.engine() != name and not importlib.util.find_spec(name):
      continue
    seconds, found = [], ''
    with mock.patch.object(pdf_ocr, 'engine', lambda name=name: name):
      for _ in range(_REPEATS.value):
        start = cpu_seconds()
        found = ' '.join(pdf_text.parse(body, ocr='always').text.split())
        seconds.append(cpu_seconds() - start)
    print_row(part='ocr', tool=name, characters=len(gold), cpu_seconds=round(min(seconds), 2),
        character_error_rate=round(distance(gold, found) / len(gold), 4))


def distance(a: str, b: str) -> int:
  """Levenshtein's."""
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    before, row[0] = row[0], i
    for j, y in enumerate(b, 1):
      before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
  return row[-1]


def cut(data: pathlib.Path, tools: dict[str, Callable]) -> None:
  """Files cut in half: how many PDFium opens, and how many repair brings back."""
  del tools
  counts = collections.Counter()
  for path in (p for kind in ('digital', 'multilingual')
               for p in sorted((data / 'pdf' / kind).glob('*.pdf'))):
    body = path.read_bytes()
    if len(body) < 100_000:
      continue
    half = body[:len(body) // 2]
    counts['files'] += 1
    plain = pdf_pages.opened(half) is not None
    counts['pdfium'] += plain
    counts['qpdf'] += plain or any(map(pdf_pages.opened, pdf_repair.by_qpdf(half)))
    try:
      document, _ = pdf_pages.open_document(half)
    except PdfError:
      continue
    counts['ours'] += 1
    counts['ours_with_text'] += any(page.get_textpage().count_chars() for page in document)
  print_row(part='cut', **counts)


def speed(data: pathlib.Path, tools: dict[str, Callable]) -> None:
  """CPU seconds of each tool on sets of files."""
  sets = {'all': sorted(p for kind in ('digital', 'multilingual', 'form', 'rotated')
                        for p in (data / 'pdf' / kind).glob('*.pdf'))}
  sets['manuals'] = sorted((data / 'pdf/multilingual').glob('*.pdf'))
  sets['papers'] = [data / 'pdf' / file for file in json.loads(ORDER.read_text())]
  for which, paths in sets.items():
    best = {name: (0, math.inf) for name in tools if name not in SLOW or which == 'papers'}
    for _ in range(_REPEATS.value):         # in turn: a machine's speed drifts
      for name in best:
        start = cpu_seconds()
        pages = sum(map(len, tools[name](paths)))
        best[name] = pages, min(best[name][1], cpu_seconds() - start)
    for name, (pages, seconds) in best.items():
      print_row(part='speed', set=which, tool=name, files=len(paths), pages=pages,
          pages_per_cpu_second=round(pages / seconds, 1))


def cpu_seconds() -> float:
  """Of this process and of its children that have ended."""
  return sum(usage.ru_utime + usage.ru_stime for usage in map(
    resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def print_row(**row: Any) -> None:
  """Prints one JSON line."""
  print(json.dumps(row), flush=True)


def main(_: list[str]) -> None:
  """Runs the parts that were asked for."""
  tools = {'ours': ours, 'pdfium': pdfium}
  if _OTHERS.value:
    tools |= {name: other(name) for name in SLOW}
  parts = {'twins': twins, 'order': order, 'ocr': ocr, 'cut': cut, 'speed': speed}
  for part in _PARTS.value:
    parts[part](pathlib.Path(_DATA.value), tools)


if __name__ == '__main__':
  sys.exit(app.run(main))
