"""PDF bytes → text by page: the text layer, or OCR where a page needs it, in a child process.

`extract` never lets a document hurt its caller: pdfium and OCR run in a child with limits on
memory, CPU and wall time, and a crash, a hang or a bomb loses that one document (`PdfError`).
The child is a plain Python process at the end of two pipes, speaking length-prefixed JSON: no
fork under a runner's threads, nothing pickled, nothing re-imported from the caller's `__main__`.
It serves many documents, so models load once.

Which pages are read by OCR is decided by cheap features, see pdf_route; they are kept beside the
text so that the decision can be looked at, and fitted again.
"""
import atexit
import base64
import contextlib
import dataclasses
import functools
import gc
import io
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_beam import pdf_layout, pdf_ocr, pdf_pages, pdf_route
from data_beam.pdf_layout import BREAK
from data_beam.pdf_pages import PdfError

OCR_MODES = ('auto', 'never', 'always')
FIGURES = ('list', 'mark', 'read')
MAX_PAGES = 2000
MAX_OCR_PAGES = 100          # later ones keep their text layer, if they have one; of figures too
MAX_CHARACTERS = 20_000_000
MIN_CONFIDENCE = 0.6         # mean OCR confidence under which a page is noise
# Of a child's environment: children are the unit of parallelism, tesseract's threads mostly wait
# for each other, and stacks and malloc's arenas would eat the address space.
ONE_THREAD = {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'OMP_THREAD_LIMIT': '1',
              'MALLOC_ARENA_MAX': '2'}


@dataclasses.dataclass
class PdfText:
  """Text of a PDF: one string per page, in reading order."""
  pages: list[str]
  page_methods: list[str]              # 'text', 'ocr', 'blank', 'noise' or 'skipped'
  ocr_confidence: list[float | None]   # 0–1 by page, None where OCR did not run
  features: list[dict[str, Any]]       # by page, see `pdf_pages._features`
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
    return self._joined[0]

  @property
  def page_offsets(self) -> list[int]:
    """Where each page begins in `text`."""
    return self._joined[1]


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one document may use. OCR pages add to the time, each by `ocr_seconds`."""
  memory: int = 1_400_000_000          # bytes in memory
  cpu_seconds: int = 60
  wall_seconds: float = 240.0          # CPU may be shared; this catches what sleeps
  ocr_seconds: int = 90                # CPU; wall is in the same proportion


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
    server: `url` and `model` of a server that does the OCR, see pdf_ocr.
    router: file of a classifier that decides which pages need OCR, see pdf_route; '' for its rules.
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
  extractor = Extractor()
  atexit.register(extractor.close)
  return extractor


class Extractor:
  """A child process that turns PDFs to text, one at a time; started when first needed."""

  # Tests put faults before it.
  _code = ('import sys\nfrom data_beam import pdf_text\n'
           'pdf_text._serve(*map(int, sys.argv[1:]))')

  def __init__(self, limits: Limits = Limits(), recycle: int = 500):
    self.limits, self.recycle = limits, recycle
    self._lock = threading.Lock()
    self._process: subprocess.Popen | None = None
    self._served = 0

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
    return PdfText(**self._answer(dict(
      ocr=ocr, languages=list(languages), max_pages=max_pages, server=server, router=router,
      figures=figures, markdown=markdown), body))

  def picture(self, body: bytes, side: int = 320) -> bytes:
    """The first page as a PNG whose longest side has `side` pixels. Raises PdfError."""
    return base64.b64decode(self._answer({'picture': side}, body)['png'])

  def _answer(self, options: dict, body: bytes) -> dict:
    """What the child says to a request; PdfError if it cannot, or dies of it."""
    with self._lock:
      if self._served >= self.recycle:      # pdfium's caches and fragmentation end with the child
        self._stop()
      if self._process is None or self._process.poll() is not None:
        self._start()
      self._served += 1
      try:
        reply = self._ask(options, body)
      except TimeoutError as error:
        self._stop()
        raise PdfError('timeout', 'wall time') from error
      except (OSError, EOFError) as error:
        raise self._epitaph() from error
      except BaseException:                 # interrupted: what the child says next is stale
        self._stop()
        raise
    if reply.pop('retire'):
      self.close()
    if 'error' in reply:
      raise PdfError(reply['error'], reply['detail'])
    return reply

  def close(self) -> None:
    """Ends the child; a later `extract` starts another."""
    with self._lock:
      self._stop()

  def _start(self) -> None:
    self._stop()
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(
      p for p in (root, os.environ.get('PYTHONPATH')) if p), PYTHONDONTWRITEBYTECODE='1')
    environment |= ONE_THREAD
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    limits = self.limits
    self._process = subprocess.Popen(
      [sys.executable, '-P', '-c', self._code, str(theirs_in), str(theirs_out), str(limits.memory),
       str(limits.cpu_seconds), str(limits.ocr_seconds)],
      pass_fds=(theirs_in, theirs_out), env=environment, stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    os.close(theirs_in)
    os.close(theirs_out)
    self._reader, self._writer = ours_in, ours_out
    self._served = 0
    try:
      self._read(8, time.monotonic() + self.limits.wall_seconds)
    except (EOFError, TimeoutError) as error:
      self._stop()
      raise RuntimeError('the PDF parser does not start; what it says: '
                         'python -c "import data_beam.pdf_text"') from error

  def _stop(self) -> None:
    if self._process is None:
      return
    os.close(self._writer)
    os.close(self._reader)
    try:                                    # its group: tesseract may run below it
      os.killpg(self._process.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    self._process.wait()
    self._process = None

  def _ask(self, options: dict, body: bytes) -> dict:
    header = json.dumps(options).encode()
    for piece in (struct.pack('<QQ', len(header), len(body)) + header, body):
      view = memoryview(piece)
      while view:
        view = view[os.write(self._writer, view):]
    wall = self.limits.wall_seconds
    per_page = wall / self.limits.cpu_seconds * self.limits.ocr_seconds
    deadline = time.monotonic() + wall
    while True:
      size, = struct.unpack('<Q', self._read(8, deadline))
      if size:
        return json.loads(self._read(size, deadline))
      deadline = time.monotonic() + per_page       # an empty frame: an OCR page begins

  def _read(self, size: int, deadline: float) -> bytes:
    out = bytearray()
    while len(out) < size:
      wait = deadline - time.monotonic()
      if wait <= 0 or not select.select([self._reader], [], [], wait)[0]:
        raise TimeoutError
      piece = os.read(self._reader, min(size - len(out), 1 << 20))
      if not piece:
        raise EOFError
      out += piece
    return bytes(out)

  def _epitaph(self) -> PdfError:
    """Why the child died."""
    try:
      code = self._process.wait(5)
    except subprocess.TimeoutExpired:
      code = 0
    self._stop()
    if code == -signal.SIGXCPU:
      return PdfError('timeout', 'CPU time')
    name = signal.Signals(-code).name if code < 0 else f'exit code {code}'
    return PdfError('crash', f'the parser ended with {name}')


# The child.

def _serve(source: int, sink: int, memory: int, cpu_seconds: int, ocr_seconds: int) -> None:
  """Answers requests until the pipe closes; runs under the limits."""
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  reader, writer = os.fdopen(source, 'rb'), os.fdopen(sink, 'wb')

  def allow(seconds: int) -> None:          # from now on: RLIMIT_CPU counts the whole life
    # Of address space there may be as much more as memory may grow: OCR's libraries map a gigabyte
    # that they do not use.
    mapped, held = _memory()
    with contextlib.suppress(ValueError, OSError):     # macOS has no such limit
      resource.setrlimit(resource.RLIMIT_AS, (mapped + max(0, memory - held),
                                              resource.RLIM_INFINITY))
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))

  def tick() -> None:
    allow(ocr_seconds)
    writer.write(struct.pack('<Q', 0))
    writer.flush()

  # A page is thousands of small objects, in no cycles: looking for some takes a fifth of the time.
  gc.freeze()
  gc.disable()
  tick()                                    # ready
  while header := reader.read(16):
    lengths = struct.unpack('<QQ', header)
    options, body = json.loads(reader.read(lengths[0])), reader.read(lengths[1])
    allow(cpu_seconds)
    try:
      if 'picture' in options:
        reply = {'png': base64.b64encode(_first_page(body, options['picture'])).decode()}
      else:
        reply = vars(parse(body, tick=tick, **options))
    except PdfError as error:
      reply = {'error': error.reason, 'detail': error.detail}
    except MemoryError:
      reply = {'error': 'memory', 'detail': ''}
    except Exception as error:              # a bug of ours or of a library: one document's loss
      reply = {'error': 'crash', 'detail': f'{type(error).__name__}: {error}'[:200]}
    del body
    gc.collect()
    reply['retire'] = _memory()[1] > 0.6 * memory
    data = json.dumps(reply).encode()
    writer.write(struct.pack('<Q', len(data)) + data)
    writer.flush()


def _memory() -> tuple[int, int]:
  """Bytes of address space, and of them in memory; zeros where the system does not tell."""
  try:
    with open('/proc/self/statm') as f:
      mapped, held = (int(pages) * resource.getpagesize() for pages in f.read().split()[:2])
      return mapped, held
  except OSError:
    return 0, 0


def _first_page(body: bytes, side: int) -> bytes:
  document, _ = pdf_pages.open_document(body)
  with document:
    page, out = document[0], io.BytesIO()
    page.render(scale=side / max(1, *page.get_size())).to_pil().save(out, 'PNG', optimize=True)
    return out.getvalue()


def parse(body: bytes, *, ocr: str = 'auto', languages: Sequence[str] = ('en',),
          max_pages: int = MAX_PAGES, server: Mapping[str, str] | None = None, router: str = '',
          figures: str = 'list', markdown: bool = False,
          tick: Callable[[], None] = lambda: None) -> PdfText:
  """`extract` without the child: only for trusted files, and for the child itself.

  Args:
    tick: called before each page that is read by OCR.
  """
  lines, grids, heights, methods, confidences, features = [], [], [], [], [], []
  found_figures, markers = [], []
  characters = read = 0
  wanted = pdf_route.decider(router)
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
          tick()
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
          tick()
          read += 1
          inside, _ = pdf_ocr.read_page(document, index, languages, server, box)
          figure['text'] = pdf_layout.clean(pdf_layout.page_text(inside)).replace(BREAK, '')
        found_figures.append(figure)
      for values, value in ((lines, found), (grids, page_grids), (heights, height),
                            (methods, method), (confidences, confidence), (features, feature)):
        values.append(value)
  lines = pdf_layout.strip_running(lines, heights)
  headings = pdf_layout.heading_sizes(lines) if markdown else ()
  pages = [pdf_layout.clean(pdf_layout.page_text(*page, headings))
           for page in zip(lines, grids, markers, strict=True)]
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
