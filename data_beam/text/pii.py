"""Personal data, replaced.

All takes time linear in the length of the text, whatever the text: web pages are hostile input."""

import ipaddress
import re
import string

import xxhash

# --- personal data ---------------------------------------------------------------------------

# FineWeb's replacements (datatrove, formatters/pii.py).
_EMAILS = ('email@example.com', 'firstname.lastname@example.org')
_IPS = ('22.214.171.124', '126.96.36.199', '188.8.131.52', '184.108.40.206', '220.127.116.11',
        '18.104.22.168')
_LOCAL = frozenset(string.ascii_letters + string.digits + ".!#$%&'*+/=?^_`{|}~-")
_LOCAL_START = re.compile(r'\b[^.]')
_HOST = re.compile(r'[A-Za-z0-9.-]{1,255}')
_IP = re.compile(r'(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)')


# International numbers (+49 30 1234567), and national ones that are marked by brackets or a word.
_PHONE_DIGITS = r'\d(?:[ \u00a0./()-]{0,2}\d){6,13}'
_PHONE = re.compile(
  rf'(?<![\w+])(?:\+|00(?=[1-9])){_PHONE_DIGITS}(?![\w])'
  r'|(?<![\w(])\(\d{2,5}\)[ \u00a0-]?\d{2,4}(?:[ \u00a0./-]?\d{2,4}){1,3}(?!\w)'
  rf'|(?<=\b(?i:tel)[:.] ){_PHONE_DIGITS}(?!\w)|(?<=\b(?i:phone): ){_PHONE_DIGITS}(?!\w)')
# Numbers set aside for fiction (NANPA 555-01xx, Ofcom).
_PHONES = ('+1 202 555 0123', '+1 212 555 0147', '+1 312 555 0186', '+44 20 7946 0018')


def replace_pii(text: str, phones: bool = False) -> str:
  """`text` with e-mail addresses and public IPv4 addresses replaced by FineWeb's placeholders, and
  with `phones` telephone numbers by fictitious ones.

  FineWeb's rules, with three faults mended: the time is linear (its e-mail pattern is quadratic;
  here each @ is looked at from both sides, a host name as far as it may go, 255 characters), an
  IP address ends at a word boundary ('build 1.2.3.400' is none), and a replacement depends on
  what it replaces, not on how many came before.
  """
  if '@' in text:
    text = _replace_emails(text)
  text = _IP.sub(_replace_ip, text)
  if phones:
    text = _PHONE.sub(lambda match: _pick(match.group(), _PHONES), text)
  return text


def _replace_emails(text: str) -> str:
  parts, done = [], 0
  at = text.find('@')
  while at >= 0:
    start = _local_start(text, done, at)
    host = _HOST.match(text, at + 1) if start is not None else None
    length = _host_length(host.group()) if host else 0
    if length:
      end = at + 1 + length
      parts += [text[done:start], _pick(text[start:end], _EMAILS)]
      done = end
    at = text.find('@', max(at + 1, done))
  return ''.join((*parts, text[done:]))


def _local_start(text: str, low: int, at: int) -> int | None:
  """Where the local part that ends at `at` begins: at a word boundary, after any empty atom."""
  start = at
  while start > low and text[start - 1] in _LOCAL:  # stops at the @ before: linear over all of them
    start -= 1
  empty = text.rfind('..', start, at)
  start = start if empty < 0 else empty + 2
  found = _LOCAL_START.search(text, start, at)
  return found.start() if found and text[at - 1] != '.' else None


def _host_length(run: str) -> int:
  """How much of `run` (letters, digits, dots and hyphens) is a host name of two labels or more."""
  labels = []
  for label in run.split('.'):
    stripped = label.rstrip('-')
    if not stripped or label[0] == '-':
      break
    labels.append(stripped)
    if stripped != label:
      break
  return len('.'.join(labels)) if len(labels) > 1 else 0


def _replace_ip(match: re.Match) -> str:
  try:
    public = ipaddress.IPv4Address(match.group()).is_global
  except ValueError:  # an octet above 255 or with a leading zero
    return match.group()
  return _pick(match.group(), _IPS) if public else match.group()


def _pick(found: str, choices: tuple[str, ...]) -> str:
  if found in choices:  # so that a second pass changes nothing
    return found
  return choices[xxhash.xxh64_intdigest(found.encode()) % len(choices)]
