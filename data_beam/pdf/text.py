"""PDF bytes → text by page: the text layer, or OCR where a page needs it, in a child process.

`extract` never lets a document hurt its caller: pdfium and OCR run in a child with limits on
memory, CPU and wall time (see sandbox), and a crash, a hang or a bomb loses that one document
(`PdfError`).

Which pages are read by OCR is decided by cheap features, see router; they are kept beside the
text so that the decision can be looked at, and fitted again.
"""

import base64
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

from data_beam import sandbox
from data_beam.pdf import layout as pdf_layout
from data_beam.pdf import ocr as pdf_ocr
from data_beam.pdf import running as pdf_running
from data_beam.pdf.errors import PdfError
from data_beam.pdf.layout import BREAK
from data_beam.pdf.router import decider
from data_beam.sandbox import Limits, Lost

OCR_MODES = ('auto', 'never', 'always')
FIGURES = ('list', 'mark', 'read')
MAX_PAGES = 2000
MAX_OCR_PAGES = 100          # later ones keep their text layer, if they have one; of figures too
MAX_CHARACTERS = 20_000_000
MIN_CONFIDENCE = 0.6         # mean OCR confidence under which a page is noise
# Of one document; pages that are read by OCR are the parts that add to the time.
LIMITS = Limits(memory=1_400_000_000, cpu_seconds=60, wall_seconds=240, part_seconds=90)


@dataclasses.dataclass
class PdfText:
  """Text of a PDF: one string per page, in reading order."""
  pages: list[str]
  page_methods: list[str]              # 'text', 'ocr', 'blank', 'noise' or 'skipped'
  ocr_confidence: list[float | None]   # 0–1 by page, None where OCR did not run
  features: list[dict[str, Any]]       # by page, see `pages._features`
  # Of pictures in the text: page (from 0), box in points from the top left, caption, and by OCR
  # its text where that was asked for.
  figures: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  repaired: str = ''                   # 'damaged' or 'truncated' where the file had to be

  @property
  def method(self) -> str:
    """'text', 'ocr' or 'mixed'."""
    used = {m for m in self.page_methods if m in ('text', 'ocr')}
    return used.pop() if len(used) == 1 else 'mixed'

  @functools.cached_property
  def _joined(self) -> tuple[str, list[int]]:
    return pdf_layout.join_pages(self.pages)

  @property
  def text(self) -> str:
    """All pages as one text."""
    return self._joined[0]

  @property
  def page_offsets(self) -> list[int]:
    """Where each page begins in `text`."""
    return self._joined[1]


def extract(body: bytes, *, ocr: str = 'auto', languages: Sequence[str] = ('en',),
            max_pages: int = MAX_PAGES, server: Mapping[str, str] | None = None,
            router: str = '', figures: str = 'list', markdown: bool = False) -> PdfText:
  """Text of a PDF, parsed in this process's child; safe for hostile input and for threads.

  Args:
    body: the whole file.
    ocr: 'auto' reads by OCR the pages that need it, 'never' takes what text there is, 'always'
      prefers OCR to a text layer on every page.
    languages: ISO 639-1 codes expected, for tesseract.
    max_pages: longer documents are refused.
    server: `url` and `model` of a server that does the OCR, see ocr.
    router: file of a classifier that decides which pages need OCR, see router; '' for its rules.
    figures: what becomes of pictures in the text: 'list' names them in `PdfText.figures`, 'mark'
      also puts `![caption](figure PAGE.NUMBER)` where they stand, 'read' lists them with their text
      by OCR.
    markdown: mark headings, told by the size of their font. (Lists and tables always are.)

  Raises:
    PdfError: with a reason out of `REASONS`.
    ValueError: unknown `ocr` mode.
  """
  return _shared().extract(body, ocr=ocr, languages=languages, max_pages=max_pages, server=server,
                           router=router, figures=figures, markdown=markdown)


@functools.cache
def _shared() -> 'Extractor':
  return Extractor()


class Extractor:
  """A child process that turns PDFs to text, one at a time; started when first needed."""

  # What the child does; tests put faults before it.
  function = f'{__name__}:answer'

  def __init__(self, limits: Limits = LIMITS, recycle: int = 500):
    """Limits are those of one document; after `recycle` of them pdfium's caches and its
    fragmentation end with the child."""
    self.sandbox = sandbox.Sandbox(self.function, limits, children=1, calls=recycle)

  def __enter__(self) -> 'Extractor':
    return self

  def __exit__(self, *_):
    self.close()

  def extract(self, body: bytes, *, ocr: str = 'auto', languages: Sequence[str] = ('en',),
              max_pages: int = MAX_PAGES, server: Mapping[str, str] | None = None,
              router: str = '', figures: str = 'list', markdown: bool = False) -> PdfText:
    """See the function `extract`."""
    if ocr not in OCR_MODES:
      raise ValueError(f'ocr={ocr!r} is unknown: give one of {", ".join(OCR_MODES)}')
    return PdfText(**self._call(
      body, ocr=ocr, languages=list(languages), max_pages=max_pages, server=server, router=router,
      figures=figures, markdown=markdown))

  def picture(self, body: bytes, side: int = 320) -> bytes:
    """The first page as a PNG whose longest side has `side` pixels. Raises PdfError."""
    return base64.b64decode(self._call(body, picture=side)['png'])

  def _call(self, body: bytes, **options: Any) -> dict[str, Any]:
    try:
      return self.sandbox.call(body, **options)
    except Lost as lost:
      reason = 'timeout' if lost.reason in ('cpu_limit', 'hung') else lost.reason
      raise PdfError(reason, lost.detail) from lost

  def close(self) -> None:
    """Ends the child; a later `extract` starts another."""
    self.sandbox.close()


# The child.

def answer(body: bytes, **options: Any) -> dict[str, Any]:
  """What Extractor asks for, as JSON has it: the fields of a PdfText, or a `picture`."""
  if 'picture' in options:
    return {'png': base64.b64encode(_first_page(body, options['picture'])).decode()}
  return vars(parse(body, **options))


def _first_page(body: bytes, side: int) -> bytes:
  from data_beam.pdf import pages as pdf_pages

  document, _ = pdf_pages.open_document(body)
  with document:
    page, out = document[0], io.BytesIO()
    page.render(scale=side / max(1, *page.get_size())).to_pil().save(out, 'PNG', optimize=True)
    return out.getvalue()


def parse(body: bytes, *, ocr: str = 'auto', languages: Sequence[str] = ('en',),
          max_pages: int = MAX_PAGES, server: Mapping[str, str] | None = None, router: str = '',
          figures: str = 'list', markdown: bool = False) -> PdfText:
  """`extract` without the child: only for trusted files, and for the child itself."""
  # Not above: who only asks for text, or shows a report, needs no pdfium.
  from data_beam.pdf import pages as pdf_pages

  lines, grids, heights, methods, confidences, features = [], [], [], [], [], []
  found_figures, markers = [], []
  characters = read = 0
  wanted = decider(router)
  document, repaired = pdf_pages.open_document(body)
  with document:
    if len(document) > max_pages:
      raise PdfError('too_long', f'{len(document)} pages, {max_pages} allowed')
    texts = pdf_pages.read_pages(document, range(len(document)))
    for index, (found, page_grids, boxes, height, feature) in enumerate(texts):
      wants, method, confidence = wanted(feature), 'text' if found else 'blank', None
      if ocr == 'always' or (ocr == 'auto' and wants):
        if methods.count('ocr') + methods.count('noise') >= MAX_OCR_PAGES:
          method = method if found else 'skipped'
        elif server or pdf_ocr.engine() is not None:
          sandbox.tick()
          seen, confidence = pdf_ocr.read_page(document, index, languages, server)
          if seen and confidence >= MIN_CONFIDENCE:
            found, page_grids, boxes, method = seen, [], [], 'ocr'
          elif not found:
            method = 'noise' if seen else 'blank'
      characters += 0 if method == 'noise' else sum([len(line.text) for line in found])
      if characters > MAX_CHARACTERS:
        raise PdfError('too_long', f'more than {MAX_CHARACTERS} characters')
      feature['ocr_wanted'] = wants
      markers.append([])
      for number, box in enumerate(boxes, 1):
        figure = {'page': index, 'box': box, 'caption': pdf_layout.caption(box, found)}
        if figures == 'mark':
          name = f'![{figure["caption"]}](figure {index + 1}.{number})'
          markers[-1].append((box, name))
        elif figures == 'read' and read < MAX_OCR_PAGES and (server or pdf_ocr.engine()):
          sandbox.tick()
          read += 1
          inside, _ = pdf_ocr.read_page(document, index, languages, server, box)
          figure['text'] = pdf_layout.clean(pdf_layout.page_text(inside)).replace(BREAK, '')
        found_figures.append(figure)
      for values, value in ((lines, found), (grids, page_grids), (heights, height),
                            (methods, method), (confidences, confidence), (features, feature)):
        values.append(value)
  stripped = pdf_running.strip(lines, heights)
  headings = pdf_layout.heading_sizes([page.lines for page in stripped]) if markdown else ()
  pages = []
  for page, page_grids, page_markers in zip(stripped, grids, markers, strict=True):
    body = pdf_layout.page_text(page.lines, page_grids, page_markers, headings)
    parts = page.head, body, page.foot
    pages.append(pdf_layout.clean('\n\n'.join(filter(None, parts))))
  pages = [page.strip() for page in pdf_layout.join_hyphens(pages)]
  if not any(pages):
    if repaired:
      raise PdfError(repaired)
    if 'noise' in methods:
      raise PdfError('ocr_noise')
    if 'skipped' in methods:
      raise PdfError('too_long', f'more than {MAX_OCR_PAGES} pages for OCR')
    if any(f['ocr_wanted'] for f in features) and (
        ocr == 'never' or not (server or pdf_ocr.engine())):
      raise PdfError('needs_ocr')
    raise PdfError('blank')
  return PdfText(pages, methods, confidences, features, found_figures, repaired)
