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
from typing import TYPE_CHECKING, Any

from data_beam import sandbox
from data_beam.pdf import headings as pdf_headings
from data_beam.pdf import layout as pdf_layout
from data_beam.pdf import ocr as pdf_ocr
from data_beam.pdf import running as pdf_running
from data_beam.pdf.errors import PdfError
from data_beam.pdf.layout import BREAK
from data_beam.pdf.look import Reader
from data_beam.pdf.router import decider
from data_beam.sandbox import Limits, Lost

if TYPE_CHECKING:
  from data_beam.pdf.pages import Frame

OCR_MODES = ('auto', 'never', 'always')
FIGURES = ('list', 'mark', 'read')
MAX_PAGES = 2000
MAX_OCR_PAGES = 100          # later ones keep their text layer, if they have one; of figures too
MAX_CHARACTERS = 20_000_000
# Of one document; pages that are read by OCR are the parts that add to the time.
LIMITS = Limits(memory=1_400_000_000, cpu_seconds=60, wall_seconds=240, part_seconds=90)


@dataclasses.dataclass
class PdfText:
  """Text of a PDF: one string per page, in reading order."""
  pages: list[str]
  page_methods: list[str]              # 'text', 'ocr', 'blank', 'noise', 'skipped' or 'failed'
  ocr_confidence: list[float | None]   # 0–1 by page, None where OCR did not run
  features: list[dict[str, Any]]       # by page, see `pages._features` and look
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
            router: str = '', figures: str = 'list', markdown: bool = False,
            unseen: bool = False) -> PdfText:
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
    unseen: keep what no reader sees: layers that are switched off, white on white, tiny letters.

  Raises:
    PdfError: with a reason out of `REASONS`.
    ValueError: unknown `ocr` mode.
  """
  return _shared().extract(body, ocr=ocr, languages=languages, max_pages=max_pages, server=server,
                           router=router, figures=figures, markdown=markdown,
                           unseen=unseen)


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
              router: str = '', figures: str = 'list', markdown: bool = False,
            unseen: bool = False) -> PdfText:
    """See the function `extract`."""
    if ocr not in OCR_MODES:
      raise ValueError(f'ocr={ocr!r} is unknown: give one of {", ".join(OCR_MODES)}')
    return PdfText(**self._call(
      body, ocr=ocr, languages=list(languages), max_pages=max_pages, server=server, router=router,
      figures=figures, markdown=markdown, unseen=unseen))

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
          figures: str = 'list', markdown: bool = False, unseen: bool = False) -> PdfText:
  """`extract` without the child: only for trusted files, and for the child itself."""
  # Not above: who only asks for text, or shows a report, needs no pdfium.
  from data_beam.pdf import pages as pdf_pages

  kept, methods, confidences, features = [], [], [], []
  found_figures, markers = [], []
  characters = read = 0
  document, repaired = pdf_pages.open_document(body, unseen)
  with document:
    if len(document) > max_pages:
      raise PdfError('too_long', f'{len(document)} pages, {max_pages} allowed')
    reader = Reader(document, languages, server, decider(router), ocr)
    texts = pdf_pages.read_pages(document, range(len(document)), unseen)
    for index, (frames, boxes, height, feature) in enumerate(texts):
      method, confidence = 'text' if frames else 'blank', None
      layer = [line for frame in frames if not frame.turn for line in frame.lines]
      wants = feature['ocr_wanted'] = reader.wants(index, layer, feature)
      if ocr == 'always' or (ocr == 'auto' and wants):
        if sum(map(methods.count, ('ocr', 'noise', 'failed'))) >= MAX_OCR_PAGES:
          method = method if frames else 'skipped'
        elif server or pdf_ocr.engine() is not None:
          seen, became, confidence = reader.read(index, layer, feature)
          if seen:
            frames, boxes, method = [pdf_pages.Frame(0, seen, [], height)], [], 'ocr'
          elif not frames:
            method = became
      found = [line for frame in frames for line in frame.lines]
      characters += 0 if method == 'noise' else sum([len(line.text) for line in found])
      if characters > MAX_CHARACTERS:
        raise PdfError('too_long', f'more than {MAX_CHARACTERS} characters')
      markers.append([])
      for number, box in enumerate(boxes, 1):
        figure = {'page': index, 'box': box, 'caption': pdf_layout.caption(box, found)}
        if figures == 'mark':
          name = f'![{figure["caption"]}](figure {index + 1}.{number})'
          markers[-1].append((box, name))
        elif figures == 'read' and read < MAX_OCR_PAGES and (server or pdf_ocr.engine()):
          sandbox.tick()
          read += 1
          try:
            inside, _ = pdf_ocr.read_page(document, index, languages, server, box)
            figure['text'] = pdf_layout.clean(pdf_layout.page_text(inside)).replace(BREAK, '')
          except PdfError as error:
            figure['failed'] = error.detail or error.reason
        found_figures.append(figure)
      for values, value in ((kept, frames), (methods, method), (confidences, confidence),
                            (features, feature)):
        values.append(value)
  stripped = _stripped(kept)
  headings = pdf_headings.sizes([
    found.lines for frames in stripped for _, found in frames]) if markdown else None
  pages = []
  for frames, marked in zip(stripped, markers, strict=True):
    parts = []
    first = frames[:1]                      # among its text the markers stand
    for frame, (found, head, foot) in sorted(frames, key=lambda item: not item[0].before):
      boxes = marked if frame is first[0][0] else ()
      parts += [head, pdf_layout.page_text(found, frame.grids, boxes, headings), foot]
    pages.append(pdf_layout.clean('\n\n'.join(filter(None, parts))))
  pages = [page.strip() for page in pdf_layout.join_hyphens(pages)]
  if not any(pages):
    if repaired:
      raise PdfError(repaired)
    if failed := next((f['ocr_failed'] for f in features if 'ocr_failed' in f), ''):
      raise PdfError('ocr_failed', failed)
    if 'noise' in methods:
      raise PdfError('ocr_noise')
    if 'skipped' in methods:
      raise PdfError('too_long', f'more than {MAX_OCR_PAGES} pages for OCR')
    if any(f['ocr_wanted'] for f in features) and (
        ocr == 'never' or not (server or pdf_ocr.engine())):
      raise PdfError('needs_ocr')
    raise PdfError('blank')
  return PdfText(pages, methods, confidences, features, found_figures, repaired)


def _stripped(pages: Sequence[Sequence['Frame']]) -> list[list[tuple['Frame', pdf_running.Page]]]:
  """Each page's frames, and their lines without running ones. These are looked for among the text
  that stands the same way: a page of a turned table has them beside it, others above."""
  found: list[dict[int, pdf_running.Page]] = [{} for _ in pages]
  for turn in {frame.turn for frames in pages for frame in frames}:
    same = [next((frame for frame in frames if frame.turn == turn), None) for frames in pages]
    stripped = pdf_running.strip([frame.lines if frame else [] for frame in same],
                                 [frame.height if frame else 1.0 for frame in same])
    for of_page, page in zip(found, stripped, strict=True):
      of_page[turn] = page
  return [[(frame, of_page[frame.turn]) for frame in frames]
          for frames, of_page in zip(pages, found, strict=True)]
