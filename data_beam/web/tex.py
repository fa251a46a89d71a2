"""Formulas of a page as TeX between dollars, whatever they are written in."""

import html
import re
import urllib.parse
from typing import Any

# MathML's names of signs that TeX has a command for. Of the others the sign itself stands.
SIGNS = {
  'α': r'\alpha', 'β': r'\beta', 'γ': r'\gamma', 'δ': r'\delta', 'ε': r'\epsilon', 'ζ': r'\zeta',
  'η': r'\eta', 'θ': r'\theta', 'ι': r'\iota', 'κ': r'\kappa', 'λ': r'\lambda', 'μ': r'\mu',
  'ν': r'\nu', 'ξ': r'\xi', 'π': r'\pi', 'ρ': r'\rho', 'σ': r'\sigma', 'τ': r'\tau',
  'υ': r'\upsilon', 'φ': r'\phi', 'ϕ': r'\phi', 'χ': r'\chi', 'ψ': r'\psi', 'ω': r'\omega',
  'Γ': r'\Gamma', 'Δ': r'\Delta', 'Θ': r'\Theta', 'Λ': r'\Lambda', 'Ξ': r'\Xi', 'Π': r'\Pi',
  'Σ': r'\Sigma', 'Φ': r'\Phi', 'Ψ': r'\Psi', 'Ω': r'\Omega', '∑': r'\sum', '∏': r'\prod',
  '∫': r'\int', '∮': r'\oint', '∂': r'\partial', '∇': r'\nabla', '∞': r'\infty', '±': r'\pm',
  '∓': r'\mp', '×': r'\times', '÷': r'\div', '⋅': r'\cdot', '·': r'\cdot', '≤': r'\leq',
  '≥': r'\geq', '≠': r'\neq', '≈': r'\approx', '≡': r'\equiv', '∼': r'\sim', '∝': r'\propto',
  '∈': r'\in', '∉': r'\notin', '⊂': r'\subset', '⊆': r'\subseteq', '∪': r'\cup', '∩': r'\cap',
  '∅': r'\emptyset', '∀': r'\forall', '∃': r'\exists', '¬': r'\neg', '∧': r'\wedge', '∨': r'\vee',
  '→': r'\to', '←': r'\leftarrow', '⇒': r'\Rightarrow', '⇔': r'\Leftrightarrow', '↦': r'\mapsto',
  '…': r'\ldots', '⋯': r'\cdots', '⟨': r'\langle', '⟩': r'\rangle', '∥': r'\|', '−': '-',
  '{': r'\{', '}': r'\}', 'ℝ': r'\mathbb{R}', 'ℕ': r'\mathbb{N}', 'ℤ': r'\mathbb{Z}',
  'ℂ': r'\mathbb{C}', 'ℚ': r'\mathbb{Q}', 'ℓ': r'\ell', 'ℏ': r'\hbar', '′': "'",
  '%': r'\%', '&': r'\&', '#': r'\#', '$': r'\$', '_': r'\_',
  '\u2061': '', '\u2062': '', '\u2063': '', '\u2064': '', '\xa0': ' ',
}
_ACCENTS = {'^': 'hat', 'ˆ': 'hat', '~': 'tilde', '˜': 'tilde', '¯': 'bar', '‾': 'overline',
            '―': 'overline', '→': 'vec', '⃗': 'vec', '.': 'dot', '˙': 'dot', '¨': 'ddot'}
_FUNCTIONS = frozenset([
  'sin', 'cos', 'tan', 'cot', 'sec', 'csc', 'sinh', 'cosh', 'tanh', 'arcsin', 'arccos', 'arctan',
  'log', 'ln', 'exp', 'lim', 'max', 'min', 'sup', 'inf', 'det', 'dim', 'ker', 'gcd', 'deg', 'arg'])
_SCRIPTS = {'msub': '_', 'msup': '^', 'munder': '_', 'mover': '^', 'msubsup': '_^',
            'munderover': '_^'}
MAX_DEPTH = 60      # of MathML; what is deeper is taken as text
_PRIMES = {'′': "'", '″': "''", '‴': "'''", "'": "'"}
_CDATA = re.compile(r'%?\s*<!\[CDATA\[|%?\s*\]\]>')      # around TeX, by converters of Markdown
_LOOKS_LIKE_TEX = re.compile(r'[\\^_={}+]|^.{1,3}$')
# What a service that draws formulas is told of the drawing.
_DRAWING = re.compile(
  r'\\(?:inline|dpi\{\d+\}|bg_\w+|fn_\w+|(?:huge|LARGE|[Ll]arge|small|tiny)\b)\s*')
_WRAPPED = re.compile(r'^(?:\$.*\$|\\\(.*\\\)|\\\[.*\\\])$', re.S)


def dollars(tex: str, display: bool = False) -> str:
  """TeX between dollars, in one line; '' for none."""
  tex = ' '.join(tex.split())
  if not tex or _WRAPPED.match(tex):
    return tex
  if tex.startswith(r'{\displaystyle') and tex.endswith('}'):     # Wikipedia's
    tex = tex[len(r'{\displaystyle'):-1].strip()
  return f'$${tex}$$' if display else f'${tex}$'


def of_script(text: str, kind: str) -> str:
  """A formula that stands in a script of type `kind`, math/tex or math/mml; AsciiMath as it is."""
  if 'mml' in kind:
    from lxml import etree

    math = etree.fromstring(f'<div>{text}</div>', etree.HTMLParser()).find('.//math')
    return '' if math is None else of_math(math)
  text = html.unescape(_CDATA.sub('', text))
  return dollars(text, 'mode=display' in kind) if 'tex' in kind else ' '.join(text.split())


def of_image(image: Any) -> str:
  """The source of a formula that is a picture, in one of its attributes or in its address; '' if
  there is none."""
  get = image.get
  query = urllib.parse.urlsplit(get('src') or '').query
  named = urllib.parse.parse_qs(query)
  for tex in (get('data-equation-content'), get('data-latex'), get('alt'), get('title'),
              *named.get('latex', ()), *named.get('tex', ()), urllib.parse.unquote(query)):
    tex = (tex or '').removeprefix('LaTeX:').replace('&space;', ' ').strip()
    if _LOOKS_LIKE_TEX.search(tex):
      return dollars(_DRAWING.sub('', tex))
  return ''


def of_math(element: Any) -> str:
  """A MathML element as TeX between dollars: what it gives as its source, or converted."""
  display = element.get('display') == 'block' or element.get('mode') == 'display'
  tex = element.get('alttext') or next(
    (a.text for a in element.iter('{*}annotation', 'annotation', 'm:annotation', 'mml:annotation')
     if 'tex' in (a.get('encoding') or '').lower() and a.text), '')
  return dollars(tex or convert(element), display)


def convert(element: Any, depth: int = 0) -> str:
  """Presentation MathML as TeX."""
  tag = element.tag.rpartition(':')[2] if type(element.tag) is str else ''
  text = ' '.join((element.text or '').split())
  if depth > MAX_DEPTH:
    return ' '.join(''.join(element.itertext()).split())
  if tag in ('mi', 'mn', 'mo', 'ms'):
    if tag == 'mi' and len(text) > 1 and text.isascii():
      return f'\\{text} ' if text in _FUNCTIONS else rf'\mathrm{{{text}}}'
    return ' '.join(filter(None, (SIGNS.get(sign, sign) for sign in text))) if any(
      sign in SIGNS for sign in text) else text
  if tag == 'mtext':
    return rf'\text{{{text}}}' if text else ' '
  if tag in ('annotation', 'annotation-xml', 'mphantom', 'mspace'):
    return ' ' if tag == 'mspace' else ''
  parts = [convert(child, depth + 1) for child in element]
  if tag == 'mfrac' and len(parts) == 2:
    return rf'\frac{{{parts[0]}}}{{{parts[1]}}}'
  if tag == 'msqrt':
    return rf'\sqrt{{{_join(parts)}}}'
  if tag == 'mroot' and len(parts) == 2:
    return rf'\sqrt[{parts[1]}]{{{parts[0]}}}'
  if tag in _SCRIPTS and len(parts) == len(_SCRIPTS[tag]) + 1:
    sign = ''.join(element[-1].itertext()).strip()
    if tag == 'mover' and sign in _ACCENTS:
      return rf'\{_ACCENTS[sign]}{{{parts[0]}}}'
    if tag == 'msup' and sign in _PRIMES:
      return parts[0] + _PRIMES[sign]
    base = parts[0].strip()
    base = base if re.fullmatch(r'.?|\\[a-zA-Z]+', base) else f'{{{base}}}'
    return base + ''.join(f'{mark}{part}' if len(part) == 1 else f'{mark}{{{part}}}'
                          for mark, part in zip(_SCRIPTS[tag], parts[1:], strict=True))
  if tag == 'mmultiscripts' and parts:
    return _multiscripts(element, parts)
  if tag == 'mtable':
    return r'\begin{matrix}' + r' \\ '.join(parts) + r'\end{matrix}'
  if tag in ('mtr', 'mlabeledtr'):
    return ' & '.join(parts)
  if tag == 'mfenced':
    comma = (element.get('separators') or ',').strip()[:1]
    return f'{element.get("open", "(")}{comma.join(parts)}{element.get("close", ")")}'
  if tag == 'semantics':
    return parts[0] if parts else ''
  return _join(parts) if parts else text


def _multiscripts(element: Any, parts: list[str]) -> str:
  """Scripts in pairs behind a base, and behind <mprescripts/> those before it."""
  behind: list[str] = []
  before: list[str] = []
  now = behind
  for child, part in zip(element[1:], parts[1:], strict=True):
    if str(child.tag).endswith('mprescripts'):
      now = before
    else:
      now.append(part)
  scripts = [''.join(f'{"_^"[i % 2]}{{{part}}}' for i, part in enumerate(group) if part)
             for group in (before, behind)]
  return ('{}' + scripts[0] if scripts[0] else '') + parts[0] + scripts[1]


def _join(parts: list[str]) -> str:
  """Parts of a row: a blank where a command would run into a letter."""
  text = ''
  for part in parts:
    if re.search(r'\\[a-zA-Z]+$', text) and part[:1].isalpha():
      text += ' '
    text += part
  return text.strip()
