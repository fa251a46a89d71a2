"""Text layer or OCR: whose text layer is not to be used. By rules, or by a trained classifier.

The classifier is a gradient-boosted one (LightGBM), kept as text, which holds nothing to execute;
train_router makes it."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

THRESHOLD = 0.2             # of the classifier: FinePDFs' (a page lost is dearer than one OCR)
FEATURES = ('characters', 'hidden', 'garbled', 'picture', 'vowels')


def needs_ocr(feature: dict[str, Any]) -> str:
  """Why a page should be read by OCR, or '': the rules.

  The thresholds are those measured on 71 real files: few characters on a picture, mostly hidden
  text (somebody's OCR under a scan), a picture of the whole page with little text, fonts without a
  map to Unicode, or with one that makes no language.
  """
  f = feature
  if (f['characters'] < 200 and f['picture'] > 0.3) or (
      f['characters'] < 1500 and f['picture'] > 0.8):
    return 'picture'
  if f['hidden'] > 0.5:
    return 'hidden'
  if f['characters'] and f['garbled'] > 0.1:
    return 'garbled'
  if f['vowels'] is not None and not 0.2 <= f['vowels'] <= 0.65:
    return 'garbled'
  return ''


@functools.cache
def decider(router: str = '') -> Callable[[dict[str, Any]], str]:
  """`needs_ocr`, or a classifier of the same form, whose only reason is 'classifier'.

  Raises ValueError where the file is no classifier of ours.
  """
  if not router:
    return needs_ocr
  model = load(router)
  return lambda feature: 'classifier' if probability(model, [feature])[0] >= THRESHOLD else ''


def matrix(features: Iterable[dict[str, Any]]) -> np.ndarray:
  """float64 [N, len(FEATURES)]; what is not known is NaN, which the classifier can handle."""
  return np.array([[math.nan if f[name] is None else f[name] for name in FEATURES]
                   for f in features], np.float64).reshape(-1, len(FEATURES))


def load(path: str) -> Any:
  """A classifier that `train` has written."""
  import fsspec
  import lightgbm

  with fsspec.open(path, 'rt') as f:
    text = f.read()
  if f'feature_names={" ".join(FEATURES)}\n' not in text:
    raise ValueError(f'{path} is no classifier of pages: make one by data_beam.pdf_route train')
  return lightgbm.Booster(model_str=text)


def digest(path: str) -> str:
  """What tells one classifier from another: sha256 of its trees."""
  return hashlib.sha256(load(path).model_to_string().encode()).hexdigest()


def probability(model: Any, features: Sequence[dict[str, Any]]) -> np.ndarray:
  """That each page needs OCR: [N]."""
  return model.predict(matrix(features), num_threads=1)
