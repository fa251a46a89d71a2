"""OCR of a PDF's page: the tesseract program where it is installed, else the rapidocr package, or a
server with a vision model.

Neither of the first two downloads anything: rapidocr's wheel carries its models (PP-OCRv6, all
Latin scripts and Chinese). A dense page took tesseract 3.1 CPU seconds, rapidocr 14.

Pages that lie on their side, upside down or askew are turned first (`_straight`, `_best`).

The server (model_server.py) gets one request a page: a PNG of at most 1,280 pixels a side, and one
of `PROMPTS`. Confidence is the mean probability of its tokens, if it tells (`logprobs`). What a
model makes up is told as FinePDFs does: a page without ink is not asked about, an answer that was
cut off, that repeats itself or begins as its two known hallucinations is a failure, and where it
begins with "The", the model is asked whether there is any text at all.
"""

import base64
import functools
import importlib.util
import io
import itertools
import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_beam import model_server, sandbox
from data_beam.pdf.errors import PdfError
from data_beam.pdf.layout import BREAK
from data_beam.pdf.lines import Box, Line

SIDE = {'rapidocr': 1280, 'tesseract': 1500, 'server': 1280}    # longest side of a page, pixels
SURE = 0.75                 # below this mean confidence a page may stand on its head
MAX_SKEW = 7.0              # degrees
PROMPT = ('Return the plain text representation of this document as if you were reading it '
          'naturally.\n')      # RolmOCR's
PROMPTS = {'plain': PROMPT, 'tex': (
  'Return the text of this page in Markdown, as if you were reading it naturally. Write formulas '
  'as TeX, between \\( and \\) within a line and \\[ and \\] on lines of their own, and tables as '
  'Markdown tables.\n')}
ANY_TEXT = 'Is there text in this picture? Answer TEXT or NO_TEXT.\n'
INK = 5e-5                  # share of pixels, without which a page is blank
WIDE = 2.5                  # heights of a line, between runs of words that are read apart
_MADE_UP = re.compile(r'The \d+-\d+ season|'
                      'The following is a list of the most common types of data breaches')

_TESSERACT = {'en': 'eng', 'fr': 'fra', 'de': 'deu', 'es': 'spa', 'it': 'ita', 'pt': 'por',
              'nl': 'nld', 'pl': 'pol', 'sv': 'swe', 'da': 'dan', 'cs': 'ces', 'ro': 'ron'}


@functools.cache
def engine() -> str | None:
  """'tesseract' where that program is installed, else 'rapidocr', else None."""
  if shutil.which('tesseract'):
    return 'tesseract'
  return 'rapidocr' if importlib.util.find_spec('rapidocr') else None


def read_page(document: Any, index: int, languages: Sequence[str],
              server: Mapping[str, str] | None = None,
              box: Box | None = None) -> tuple[list[Line], float | None]:
  """Lines with boxes in points, and the mean confidence weighted by characters.

  Args:
    languages: ISO 639-1 codes expected, for tesseract.
    server: `url`, `model` and `prompt` (a key of `PROMPTS`, or its words) of a server to ask
      instead, see above.
    box: the part of the page to read; boxes of lines count from its corner.

  Raises:
    PdfError: the engine or the server failed; the detail says how.
  """
  name = 'server' if server else engine()
  picture, scale = _render(document, index, SIDE[name], gray=name != 'rapidocr')
  if box:
    x0, y0, x1, y1 = (max(0, round(v * scale)) for v in box)
    picture = np.ascontiguousarray(picture[y0:max(y1, y0 + 1), x0:max(x1, x0 + 1)])
  if is_blank(picture):
    return [], None
  if server:
    return _served(picture[..., 0] if picture.ndim == 3 else picture, server)
  read = _tesseract if name == 'tesseract' else _rapidocr
  found, confidence = _best(picture, lambda turned: list(read(turned, tuple(languages))))
  lines = []
  for x0, y0, x1, y1, text, _ in found:
    if re.search(r'[^\W\d_]{2}-$', text):
      text = text[:-1] + BREAK
    x0, y0, x1, y1 = (v / scale for v in (x0, y0, x1, y1))
    lines.append(Line(x0, y0, x1, y1, text, max(0.1, y1 - y0)))
  if not lines:
    return [], None
  usual = statistics.median(line.size for line in lines)
  for line in lines:                        # boxes jitter with ascenders; headings do differ
    if 0.6 < line.size / usual < 1.5:
      line.size = usual
  return lines, round(confidence, 4)


def read_lines(document: Any, index: int, lines: Sequence[Line], languages: Sequence[str],
               ) -> tuple[str, float]:
  """What the engine here reads at the places of some lines, in one go, and how sure it is.

  Raises PdfError where it fails.
  """
  picture, scale = _render(document, index, SIDE['tesseract'], gray=True)
  picture = picture[..., 0] if picture.ndim == 3 else picture
  cuts = []
  for line in lines:
    pad = 0.25 * (line.y1 - line.y0)
    x0, y0, x1, y1 = (max(0, round(scale * v)) for v in (
      line.x0 - pad, line.y0 - pad, line.x1 + pad, line.y1 + pad))
    if (cut := picture[y0:y1, x0:x1]).size:
      cuts.append(cut)
  if not cuts:
    return '', 0.0
  width = max(cut.shape[1] for cut in cuts)
  sheet = np.concatenate([np.pad(cut, ((8, 8), (10, 10 + width - cut.shape[1])),
                                 constant_values=255) for cut in cuts])
  read = _tesseract if engine() == 'tesseract' else _rapidocr
  found = [(text, sure) for *_, text, sure in read(sheet, tuple(languages))]
  weight = sum(len(text) for text, _ in found)
  return ' '.join(text for text, _ in found), (
    sum(len(text) * sure for text, sure in found) / max(1, weight))


def _render(document: Any, index: int, side: int, gray: bool) -> tuple[np.ndarray, float]:
  """A page's picture with `side` pixels at its longest side, and its pixels a point."""
  page = document[index]
  scale = side / max(1, *page.get_size())
  picture = page.render(scale=scale, grayscale=gray).to_numpy()
  page.close()
  return picture, scale


def is_blank(picture: np.ndarray) -> bool:
  """Whether a picture shows nothing: hardly a pixel differs from the paper, whatever its colour."""
  gray = picture if picture.ndim == 2 else picture[..., :3].mean(-1)
  return float((np.abs(gray.astype(np.int16) - np.median(gray)) > 64).mean()) < INK


def _best(picture, read) -> tuple[list[tuple], float]:
  """What is read of a picture, straightened, in the way it stands best; and how sure that is."""
  straight, sideways = _straight(picture)
  best: tuple[list[tuple], float] = ([], 0.0)
  for quarters in ((1, 3) if sideways else (0, 2)):
    found = [(*box, text.strip(), sure) for *box, text, sure in read(
      np.ascontiguousarray(np.rot90(straight, quarters))) if text.strip()]
    weight = sum(len(text) for *_, text, _ in found)
    confidence = sum(len(text) * sure for *_, text, sure in found) / max(1, weight)
    if confidence > best[1]:
      best = found, confidence
    if not found or confidence >= SURE:
      break
  return best


def _straight(picture) -> tuple[np.ndarray, bool]:
  """The picture without its skew, and whether its lines run up and down.

  Lines of text are told by how the ink of rows varies, which is most where rows and lines agree: a
  projection profile (Postl 1986), on a small copy.
  """
  from PIL import Image  # few documents need it, and every child would wait

  gray = picture if picture.ndim == 2 else picture[..., :3].mean(-1)
  small = Image.fromarray(gray.astype(np.uint8).reshape(gray.shape[:2]))
  small.thumbnail((400, 400))
  ink = Image.fromarray(np.where(np.asarray(small) < 160, 255, 0).astype(np.uint8))

  def profile(angle: float, turn: bool) -> float:
    turned = np.asarray(ink.rotate(angle, Image.Resampling.BILINEAR), np.float64)
    return float(np.square(np.diff(turned.sum(0 if turn else 1))).sum())

  angles = np.arange(-MAX_SKEW, MAX_SKEW + 0.1, 0.5).tolist()
  scores = {(angle, turn): profile(angle, turn) for turn in (False, True) for angle in angles}
  angle, sideways = max(scores, key=lambda key: (scores[key], -abs(key[0])))
  # Columns of a table, and the page's frame, look a little like lines, and noise is as it is.
  upright = max(scores[a, False] for a in angles)
  if sideways and scores[angle, True] < 1.5 * upright:
    angle, sideways = max(angles, key=lambda a: (scores[a, False], -abs(a))), False
  if scores[angle, sideways] < 1.1 * scores[0.0, sideways]:
    return picture, sideways
  whole = Image.fromarray(picture.reshape(picture.shape[:2]) if picture.ndim == 2
                          or picture.shape[2] == 1 else picture[..., :3])
  fill = 255 if whole.mode == 'L' else (255, 255, 255)
  return np.asarray(whole.rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill)), sideways


def _served(picture, server: Mapping[str, str]) -> tuple[list[Line], float | None]:
  from PIL import Image

  out = io.BytesIO()
  Image.fromarray(picture).save(out, 'PNG')
  image = 'data:image/png;base64,' + base64.b64encode(out.getvalue()).decode()
  prompt = server.get('prompt') or 'plain'
  text, reason, sure = _ask(server, image, PROMPTS.get(prompt, prompt), 4096)
  text = text.strip()
  if reason == 'length':
    raise PdfError('ocr_failed', 'the answer was cut off at its longest')
  if _MADE_UP.match(text):
    raise PdfError('ocr_failed', f'made up: {text[:60]}')
  if text.startswith('The') and 'NO_TEXT' in _ask(server, image, ANY_TEXT, 8)[0]:
    return [], None
  if not text:
    return [], None
  # Far apart, so that the layout keeps the order and the paragraphs of the model.
  blocks = [block for block in re.split(r'\n\s*\n', text) if block.strip()]
  lines = [Line(0, 100 * i, 500, 100 * i + 10, block.strip(), 10)
           for i, block in enumerate(blocks)]
  return lines, 0.0 if model_server.repeats(text) else round(sure, 4)


def _ask(
  server: Mapping[str, str], image: str, prompt: str, tokens: int,
) -> model_server.Answer:
  """A model's answer about a picture. Raises PdfError."""
  content = [{'type': 'image_url', 'image_url': {'url': image}}, {'type': 'text', 'text': prompt}]
  try:
    return model_server.ask(server['url'], server['model'], content, tokens,
                            repetition_penalty=1.05, logprobs=True)
  except model_server.ServerError as error:
    raise PdfError('ocr_failed', str(error)) from error


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
  try:
    result = _rapidocr_model()(picture, use_cls=False)
  except Exception as error:                # of onnxruntime or OpenCV, at a picture they dislike
    raise PdfError('ocr_failed', f'rapidocr: {type(error).__name__}: {error}'[:200]) from error
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
  pgm = f'P5 {width} {height} 255\n'.encode() + picture.tobytes()
  try:
    installed = _tesseract_languages()
    wanted = [_TESSERACT[c] for c in languages if _TESSERACT.get(c) in installed] or ['eng']
    done = subprocess.run(
      ['tesseract', 'stdin', 'stdout', '-l', '+'.join(wanted), 'tsv'], input=pgm,
      capture_output=True, timeout=model_server.PATIENCE,
      preexec_fn=sandbox.die_with_parent)
  except (OSError, subprocess.SubprocessError) as error:
    raise PdfError('ocr_failed', f'tesseract: {error}'[:200]) from error
  if done.returncode:
    said = done.stderr.decode(errors='replace').strip()[-200:]
    raise PdfError('ocr_failed', f'tesseract ended with {done.returncode}: {said}')
  lines: dict[tuple, list[list[str]]] = {}
  for row in done.stdout.decode('utf-8', 'replace').split('\n')[1:]:
    cells = row.split('\t')
    if len(cells) == 12 and cells[0] == '5' and cells[11].strip():
      lines.setdefault(tuple(cells[1:5]), []).append(cells)
  for words in itertools.chain.from_iterable(map(_runs, lines.values())):
    boxes = [[int(c) for c in word[6:10]] for word in words]
    confidence = statistics.fmean(float(word[10]) for word in words) / 100
    yield (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[0] + b[2] for b in boxes),
           max(b[1] + b[3] for b in boxes), ' '.join(word[11] for word in words), confidence)


def _runs(words: list[list[str]]) -> Iterator[list[list[str]]]:
  """A line of tesseract's, cut where a gap is far wider than between words: cells of tables, parts
  of running heads."""
  high = statistics.median(int(word[9]) for word in words)
  start = 0
  for i, (a, b) in enumerate(itertools.pairwise(words), 1):
    if int(b[6]) - int(a[6]) - int(a[8]) > WIDE * high:
      yield words[start:i]
      start = i
  yield words[start:]
