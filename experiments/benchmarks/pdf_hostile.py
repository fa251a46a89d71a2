"""PDFs that mean harm, or are broken, between good ones: is any good one lost, is all else typed?

  python -m experiments.benchmarks.pdf_hostile --data=DIR [--mutated=2000]

`--data` holds `pdf/` with its folders corrupt, encrypted, adversarial, odd, blank and garbled. To
these come mutated files (bytes changed, removed, doubled, or the end gone, by seed), a bomb of
inflated operators, a page tree of 200,000 kids, one file at which the parser is made to crash and
one at which it hangs. After every few a good document is read, and must give the text that it gives
alone. Prints one JSON line: good ones lost, outcomes by kind, reasons that are no key of
errors.REASONS, the most memory that a parser held, and the longest document's seconds.
"""
import collections
import ctypes
import dataclasses
import hashlib
import io
import json
import pathlib
import random
import resource
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

from absl import app, flags
from reportlab.pdfgen import canvas

from data_beam.pdf import text as pdf_text
from data_beam.pdf.errors import REASONS, PdfError

_DATA = flags.DEFINE_string('data', None, 'Folder with pdf/.', required=True)
_MUTATED = flags.DEFINE_integer('mutated', 2000, 'Mutated files.')
EVERY = 10                  # a good document after so many others
CRASH, HANG = b'%PDF-1.4 crash here', b'%PDF-1.4 hang here'


class Extractor(pdf_text.Extractor):
  """One whose child crashes and hangs at the marks above, as a fault of a parser would."""

  function = 'experiments.benchmarks.pdf_hostile:faulty'


def faulty(body: bytes, **options: Any) -> dict:
  """What the child does."""
  if body == CRASH:
    ctypes.string_at(0)
  if body == HANG:
    time.sleep(3600)
  return pdf_text.answer(body, **options)


def written(pages: int = 3, seed: int = 0) -> bytes:
  """A PDF of plain words, the same for a seed."""
  rng, out = random.Random(seed), io.BytesIO()
  page = canvas.Canvas(out, invariant=1)
  for _ in range(pages):
    for i in range(40):
      page.drawString(72, 760 - 16 * i, ' '.join(
        rng.choice(('river', 'winter', 'letter', 'garden', 'market')) for _ in range(12)))
    page.showPage()
  page.save()
  return out.getvalue()


def with_objects(*objects: bytes) -> bytes:
  """A PDF of these objects, numbered from 1, without a table of them."""
  body = b'%PDF-1.5\n' + b''.join(b'%d 0 obj\n%s\nendobj\n' % item
                                  for item in enumerate(objects, 1))
  return body + b'trailer\n<</Root 1 0 R/Size %d>>\nstartxref\n0\n%%%%EOF\n' % (len(objects) + 1)


def bomb() -> bytes:
  """A page whose operators inflate from a megabyte to 480."""
  squeeze, stream = zlib.compressobj(9), b''
  for _ in range(480):
    stream += squeeze.compress(b'0 0 m 1 1 l S \n' * 69905)
  stream += squeeze.flush()
  return with_objects(
    b'<</Type/Catalog/Pages 2 0 R>>', b'<</Type/Pages/Count 1/Kids[3 0 R]>>',
    b'<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>',
    b'<</Length %d/Filter/FlateDecode>>\nstream\n%s\nendstream' % (len(stream), stream))


def many_pages(kids: int = 200_000) -> bytes:
  """A PDF whose tree names the same page very often."""
  return with_objects(
    b'<</Type/Catalog/Pages 2 0 R>>',
    b'<</Type/Pages/Count %d/Kids[%s]>>' % (kids, b'3 0 R ' * kids),
    b'<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>')


def mutated(bodies: list[bytes], count: int) -> Iterator[bytes]:
  """Copies with some bytes changed, cut out or doubled, the same each time."""
  for seed in range(count):
    rng = random.Random(seed)
    body = bytearray(rng.choice(bodies))
    for _ in range(rng.choice((1, 4, 16, 64))):
      at = rng.randrange(len(body))
      kind = rng.randrange(4)
      if kind == 0:
        body[at] = rng.randrange(256)
      elif kind == 1:
        del body[at:at + rng.randrange(1, 200)]
      elif kind == 2:
        body[at:at] = body[at:at + rng.randrange(1, 200)]
      elif len(body) > 2000:
        del body[max(1000, at):]
      if len(body) < 100:
        break
    yield bytes(body)


def hostile(data: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """(kind, bytes) of every file that means harm."""
  for kind in ('corrupt', 'encrypted', 'adversarial', 'odd', 'blank', 'garbled'):
    for path in sorted((data / 'pdf' / kind).glob('*.pdf')):
      yield kind, path.read_bytes()
  yield from (('bomb', bomb()), ('many_pages', many_pages()), ('crash', CRASH), ('hang', HANG))
  small = [p.read_bytes() for kind in ('digital', 'scan', 'form')
           for p in sorted((data / 'pdf' / kind).glob('*.pdf')) if p.stat().st_size < 200_000]
  for body in mutated([*small, written()], _MUTATED.value):
    yield 'mutated', body


def main(_: list[str]) -> None:
  """Prints what became of them, and of good documents in between, as one JSON line."""
  good = [written(3, seed) for seed in range(5)]
  outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  lost = good_documents = 0
  slowest, untyped = 0.0, set()
  with Extractor(dataclasses.replace(pdf_text.LIMITS, wall_seconds=20)) as extractor:
    digest = lambda body: hashlib.sha256(
      extractor.extract(body, ocr='never').text.encode()).digest()
    expected = [digest(body) for body in good]
    for i, (kind, body) in enumerate(hostile(pathlib.Path(_DATA.value))):
      start = time.monotonic()
      try:
        extractor.extract(body, ocr='never')
        outcome = 'text'
      except PdfError as error:
        outcome = error.reason
        if outcome not in REASONS:
          untyped.add(outcome)
      outcomes[kind][outcome] += 1
      slowest = max(slowest, time.monotonic() - start)
      if i % EVERY == 0 or kind != 'mutated':
        good_documents += 1
        try:
          lost += digest(good[i % len(good)]) != expected[i % len(good)]
        except PdfError:
          lost += 1
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
  print(json.dumps({
    'good_documents': good_documents, 'lost': lost, 'untyped': sorted(untyped),
    'outcomes': outcomes, 'peak_worker_gb': round(peak / 1e9, 3),
    'slowest_seconds': round(slowest, 1)}))


if __name__ == '__main__':
  sys.exit(app.run(main))
