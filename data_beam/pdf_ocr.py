"""OCR of a PDF's page: the tesseract program where it is installed, else the rapidocr package.

Neither downloads anything: rapidocr's wheel carries its models (PP-OCRv6, all Latin scripts and
Chinese). tesseract took 6.5 CPU seconds for a dense page, rapidocr 10.
"""
import functools
import importlib.util
import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Sequence

from data_beam.pdf_layout import BREAK, Line
from data_beam.pdf_pages import PdfError

SIDE = {'rapidocr': 1280, 'tesseract': 1800}      # longest side of a page's picture, pixels

_TESSERACT = {'en': 'eng', 'fr': 'fra', 'de': 'deu', 'es': 'spa', 'it': 'ita', 'pt': 'por',
              'nl': 'nld', 'pl': 'pol', 'sv': 'swe', 'da': 'dan', 'cs': 'ces', 'ro': 'ron'}


@functools.cache
def engine() -> str | None:
  """'tesseract' where that program is installed, else 'rapidocr', else None."""
  if shutil.which('tesseract'):
    return 'tesseract'
  return 'rapidocr' if importlib.util.find_spec('rapidocr') else None


def read_page(document, index: int,
              languages: Sequence[str]) -> tuple[list[Line], float | None]:
  """Lines with boxes in points, and the mean confidence weighted by characters."""
  page = document[index]
  scale = SIDE[engine()] / max(1, *page.get_size())
  picture = page.render(scale=scale, grayscale=engine() == 'tesseract').to_numpy()
  page.close()
  read = _tesseract if engine() == 'tesseract' else _rapidocr
  lines, weights, total = [], 0, 0.0
  for x0, y0, x1, y1, text, confidence in read(picture, tuple(languages)):
    text = text.strip()
    if not text:
      continue
    if re.search(r'[^\W\d_]{2}-$', text):
      text = text[:-1] + BREAK
    x0, y0, x1, y1 = (v / scale for v in (x0, y0, x1, y1))
    lines.append(Line(x0, y0, x1, y1, text, max(0.1, y1 - y0)))
    weights, total = weights + len(text), total + confidence * len(text)
  if not lines:
    return [], None
  usual = statistics.median(line.size for line in lines)
  for line in lines:                        # boxes jitter with ascenders; headings do differ
    if 0.6 < line.size / usual < 1.5:
      line.size = usual
  return lines, round(total / weights, 4)


@functools.cache
def _rapidocr_model():
  import rapidocr
  models = os.path.join(os.path.dirname(rapidocr.__file__), 'models')
  if not any(name.endswith('.onnx') for name in os.listdir(models)):
    raise PdfError('needs_ocr', 'rapidocr came without its models')      # never fetch any
  return rapidocr.RapidOCR(params={
    'Global.log_level': 'error', 'Global.use_cls': False,
    'EngineConfig.onnxruntime.intra_op_num_threads': 1,
    'EngineConfig.onnxruntime.inter_op_num_threads': 1})


def _rapidocr(picture, languages: tuple[str, ...]) -> Iterator[tuple]:
  del languages                             # one model reads all Latin scripts
  if picture.ndim == 3 and picture.shape[2] == 1:
    picture = picture[..., 0]
  result = _rapidocr_model()(picture, use_cls=False)
  if result is None or getattr(result, 'boxes', None) is None or result.txts is None:
    return
  for box, text, score in zip(result.boxes, result.txts, result.scores, strict=True):
    yield (float(box[:, 0].min()), float(box[:, 1].min()), float(box[:, 0].max()),
           float(box[:, 1].max()), text, float(score))


@functools.cache
def _tesseract_languages() -> frozenset[str]:
  done = subprocess.run(['tesseract', '--list-langs'], capture_output=True, text=True, timeout=30)
  return frozenset(done.stdout.split())


def _tesseract(picture, languages: tuple[str, ...]) -> Iterator[tuple]:
  """Lines of `tesseract … tsv`; the picture goes in as a PGM on its standard input."""
  height, width = picture.shape[:2]
  installed = _tesseract_languages()
  wanted = [_TESSERACT[c] for c in languages if _TESSERACT.get(c) in installed] or ['eng']
  pgm = f'P5 {width} {height} 255\n'.encode() + picture.tobytes()
  done = subprocess.run(['tesseract', 'stdin', 'stdout', '-l', '+'.join(wanted), 'tsv'],
                        input=pgm, capture_output=True)
  if done.returncode:
    raise PdfError('crash', f'tesseract: {done.stderr.decode(errors="replace").strip()[-200:]}')
  lines: dict[tuple, list[list[str]]] = {}
  for row in done.stdout.decode('utf-8', 'replace').split('\n')[1:]:
    cells = row.split('\t')
    if len(cells) == 12 and cells[0] == '5' and cells[11].strip():
      lines.setdefault(tuple(cells[1:5]), []).append(cells)
  for words in lines.values():
    boxes = [[int(c) for c in word[6:10]] for word in words]
    confidence = statistics.fmean(float(word[10]) for word in words) / 100
    yield (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[0] + b[2] for b in boxes),
           max(b[1] + b[3] for b in boxes), ' '.join(word[11] for word in words), confidence)
