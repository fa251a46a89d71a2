"""Why a PDF gives no text."""

from data_beam.sandbox import Lost

REASONS = {
  'not_pdf': 'the bytes are no PDF',
  'encrypted': 'a password is needed',
  'truncated': 'the file ends too early to be read',
  'damaged': 'the file cannot be parsed',
  'blank': 'no page holds text or a picture of text',
  'needs_ocr': 'only pictures of text, and OCR is off or not installed',
  'ocr_noise': 'OCR found nothing it was sure of',
  'ocr_failed': 'no page could be read: the engine or the server of the vision model failed',
  'too_long': 'more pages or characters than allowed',
  'timeout': 'the time limit passed',
  'memory': 'the memory limit was reached',
  'crash': 'the parser died',
}


class PdfError(Lost):
  """A document that gave no text; `reason` is a key of `REASONS`."""

  def __str__(self):
    return f'{self.reason}: {self.detail or REASONS[self.reason]}'
