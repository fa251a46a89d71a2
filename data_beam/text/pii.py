"""Personal data, replaced.

All takes time linear in the length of the text, whatever the text: web pages are hostile input."""

import ipaddress
import re
import string

import regex
import xxhash

from data_beam.text.words import UNSPACED

# --- personal data ---------------------------------------------------------------------------

# FineWeb's replacements (datatrove, formatters/pii.py).
_EMAILS = ('email@example.com', 'firstname.lastname@example.org')
_IPS = ('22.214.171.124', '126.96.36.199', '188.8.131.52', '184.108.40.206', '220.127.116.11',
        '18.104.22.168')
_LOCAL = frozenset(string.ascii_letters + string.digits + ".!#$%&'*+/=?^_`{|}~-")
_LOCAL_START, _NO_DOT = re.compile(r'\b[^.]'), re.compile('[^.]')
# Letters, digits and their marks in any script: hosts may be müller.de, 例子.中国.
_HOST = regex.compile(r'[\p{L}\p{N}\p{M}.-]{1,255}')
_LETTER = regex.compile(r'[\p{L}\p{N}\p{M}]')
_TOP = regex.compile(r'[\p{L}\p{M}]{2,}|xn--[a-z0-9-]+', regex.I)
# Names of files that look like hosts: icon@2x.png. None of them is a top-level domain.
_FILE_NAMES = ('avif bmp css csv eot gif htm html ico jpeg jpg js json jsx less pdf php png scss '
               'svg tif tiff ts tsx ttf txt vue wav webm webp woff xml yaml yml')
_FILES = frozenset(_FILE_NAMES.split())
_IP = re.compile(r'(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w+]|\.\w|[-~][a-z])')
# Global unicast addresses begin with 2 or 3; candidates, which ipaddress decides about.
_IP6 = re.compile(r'(?<![\w:.])[23][0-9A-Fa-f]{3}:(?=[0-9A-Fa-f:]*:)[0-9A-Fa-f:]{1,36}(?![\w:])')
_IPS6 = ('2001:db8::1', '2001:db8::8a2e:370:7334', '2001:db8:85a3::42')   # RFC 3849

# What numbers in four parts are that are no addresses: versions and sections, by the words before
# them, in six languages ("versions 1.2.3.4 and 1.2.3.5", "Section 3.2.1.4", "requests==2.0.1.4",
# "Chrome/99.0.1.2").
_COUNTED = (r'v|vers?|versi[oó]n(?:es|en|s|i|e)?|vers(?:ão|ões)|fassung|releases?|rel|builds?|'
            r'firmware|drivers?|updates?|patch|rev|revisions?|kernel|oid|sections?|sect?|'
            r'secci(?:ón|ones)|sezion[ei]|seç(?:ão|ões)|abschnitte?|abs|kapitel|ziffer|punkt|'
            r'chap(?:ters?|itres?)?|cap(?:[ií]tul?o(?:s|lo)?)?|clauses?|articles?|art|art[ií]culos?|'
            r'articol[oi]|artigos?|paragraph(?:en|e|s)?|para|fig(?:ures?|uras?)?|abbildung|tab(?:les?|'
            r'elle)?|appendix|annex(?:es)?|anhang|steps?|items?|rules?|requirements?|req|parts?|'
            r'theorem|lemma|definition|equation|eq|ch|schedule|regulations?|'
            # What mostly has a version behind its name.
            r'windows|chrome|firefox|safari|edge|opera|explorer|ie|office|word|excel|outlook|java|'
            r'jdk|jre|python|php|perl|ruby|node|oracle|database|mysql|mariadb|postgres(?:ql)?|apache|'
            r'tomcat|nginx|openssl|linux|ubuntu|debian|android|ios|macos|directx|acrobat|reader|'
            r'player|itunes|quicktime|wordpress|drupal|joomla|framework|bios|unity|vlc|sdk|api')
_AND = r'(?:[,;/&–-]|and|or|to|through|und|oder|bis|et|ou|à|y|o|e)'
_COUNTS = re.compile(rf'(?:sub-?)?(?:{_COUNTED})|§+|№', re.I)
_OTHERS = re.compile(rf'(?:v?\d+(?:\.\d+)+\s?{_AND}\s(?:{_AND}\s)?)+v?$', re.I)   # 1.2.3.4 and …
_BEFORE = re.compile(r'([^\W\d_]+(?:-[^\W\d_]+)?|[§№]+)[\s.:=#(\[]*'
                     r'(?:(?:is|number|no\.|nr\.)\s)?v?$', re.I)
_JOINED = re.compile(r'\w[=~!<>]=$|(?<![\w./:-])[A-Za-z][\w+]*/$|[A-Za-z]-$')
_HEADING = re.compile(r'[.)]?[ \t]+([^\W\d_])')

# International numbers (+49 30 1234567), and national ones that are marked by brackets or a word.
_PHONE_DIGITS = r'\d(?:[ \u00a0./()-]{0,2}\d){6,13}'
_PHONE = re.compile(
  rf'(?<![\w+])(?:\+|00(?=[1-9])){_PHONE_DIGITS}(?![\w])'
  r'|(?<![\w(])\(\d{2,5}\)[ \u00a0-]?\d{2,4}(?:[ \u00a0./-]?\d{2,4}){1,3}(?!\w)'
  rf'|(?<=\b(?i:tel)[:.] ){_PHONE_DIGITS}(?!\w)|(?<=\b(?i:phone): ){_PHONE_DIGITS}(?!\w)')
# Numbers set aside for fiction (NANPA 555-01xx, Ofcom).
_PHONES = ('+1 202 555 0123', '+1 212 555 0147', '+1 312 555 0186', '+44 20 7946 0018')

_IBAN = re.compile(
  r'(?<!\w)[A-Z]{2}\d\d(?:[ \u00a0-]?[A-Z0-9]{4}){2,7}(?:[ \u00a0-]?[A-Z0-9]{1,3})?(?!\w)',
  re.I | re.A)
_COUNTRIES = (
  'AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 '
  'EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 '
  'KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 '
  'PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 '
  'VG24 XK20')
_IBAN_LENGTHS = {k[:2]: int(k[2:]) for k in _COUNTRIES.split()}
_CARD = re.compile(r'(?<![\w.,-])(?<!\w\d )'
                   r'(?:\d{4}([ \u00a0-]?)\d{4}\1\d{4}\1\d{4}|3\d{3}([ \u00a0-]?)\d{6}\2\d{4,5})'
                   r'(?![\w-]|[., ]\d)')
# First digits of Visa, Mastercard, Amex, Diners, Discover, JCB, UnionPay.
_ISSUER = re.compile(r'4|5[1-5]|2(?:2[2-9]|[3-6]|7[01]|720)|3[47]|3[068]|6011|6[45]|35|62')
# Of the registry of IBANs and of payment services' own tests.
_IBANS = ('DE89370400440532013000', 'GB29NWBK60161331926819', 'FR1420041010050500013M02606')
_CARDS = ('4111111111111111', '5555555555554444', '378282246310005')


def replace_pii(text: str, phones: bool = False, accounts: bool = False) -> str:
  """`text` with e-mail and public IP addresses replaced by placeholders (FineWeb's; for IPv6 those
  of documentation), with `phones` telephone numbers by fictitious ones, and with `accounts` IBANs
  and card numbers, whose checksums are right, by well-known examples.

  FineWeb's rules, with faults mended: the time is linear (its e-mail pattern is quadratic;
  here each @ is looked at from both sides, a host name as far as it may go, 255 characters), an
  IP address ends at a word boundary ('build 1.2.3.400' is none), a replacement depends on what it
  replaces, not on how many came before; versions, numbers of sections, names of files and of
  packages ('icon@2x.png', 'react@18.2.0') stay, addresses in other scripts than Latin do not.
  """
  if '@' in text:
    text = _replace_emails(text)
  text = _IP.sub(_replace_ip, text)
  if ':' in text:
    text = _IP6.sub(_replace_ip6, text)
  if phones:
    text = _PHONE.sub(lambda match: _pick(match.group(), _PHONES), text)
  if accounts:
    text = _IBAN.sub(lambda m: _pick(m[0], _IBANS) if is_iban(m[0]) else m[0], text)
    text = _CARD.sub(lambda m: _pick(m[0], _CARDS) if is_card(m[0]) else m[0], text)
  return text


def is_iban(text: str) -> bool:
  """Whether a text is an IBAN: of its country's length, with the right check digits (ISO 13616)."""
  text = re.sub('[ \u00a0-]', '', text).upper()
  if len(text) != _IBAN_LENGTHS.get(text[:2]):
    return False
  return int(''.join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def is_card(text: str) -> bool:
  """Whether a text is the number of a payment card: an issuer's, with Luhn's check digit."""
  digits = [int(c) for c in text if c.isdigit()]
  if not _ISSUER.match(''.join(map(str, digits))) or not any(digits[6:]):
    return False
  doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
  return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


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
  """Where the local part that ends at `at` begins: at a word boundary, after any empty atom, and
  of a part in Latin letters after text whose words have no spaces between them."""
  start = at
  # Stops at the @ before: linear over all of them.
  while start > low and (text[start - 1] in _LOCAL or (
      text[start - 1] > '\x7f' and _LETTER.match(text[start - 1]))):
    start -= 1
  begins = _LOCAL_START
  if not text[start:at].isascii() and text[at - 1].isascii():
    for found in UNSPACED.finditer(text, start, at):
      start, begins = found.end(), _NO_DOT
  empty = text.rfind('..', start, at)
  start = start if empty < 0 else empty + 2
  found = begins.search(text, start, at)
  return found.start() if found and text[at - 1] != '.' else None


def _host_length(run: str) -> int:
  """How much of `run` (letters, digits, dots and hyphens) is a host name of two labels or more, the
  last of which may be a top-level domain."""
  labels = []
  for label in run.split('.'):
    stripped = label
    if label[:1].isascii() and (foreign := UNSPACED.search(label)):
      stripped = label[:foreign.start()]      # the sentence goes on without a space
    stripped = stripped.rstrip('-')
    if not stripped or label[0] == '-':
      break
    labels.append(stripped)
    if stripped != label:
      break
  while labels and labels[-1].isdigit():      # of a note, a version
    labels.pop()
  if len(labels) < 2 or not _TOP.fullmatch(labels[-1]) or labels[-1].lower() in _FILES:
    return 0
  return len('.'.join(labels))


def _replace_ip(match: re.Match) -> str:
  try:
    public = ipaddress.IPv4Address(match.group()).is_global
  except ValueError:  # an octet above 255 or with a leading zero
    return match.group()
  return _pick(match.group(), _IPS) if public and not _is_counted(match) else match.group()


def _is_counted(match: re.Match) -> bool:
  """Whether four numbers are those of a version or a section."""
  text, start = match.string, match.start()
  before = text[max(0, start - 60):start]
  others = _OTHERS.search(before)
  word = _BEFORE.search(before[:others.start()] if others else before)
  if (word and _COUNTS.fullmatch(word[1])) or _JOINED.search(before):
    return True
  before = before.rpartition('\n')[2]        # its line
  title = _HEADING.match(text, match.end())   # of a section: small numbers before it on its line
  return (not before.strip('# \t') and title is not None and title[1].isupper()
          and max(map(int, match.group().split('.'))) <= 20)


def _replace_ip6(match: re.Match) -> str:
  try:
    public = ipaddress.IPv6Address(match.group()).is_global
  except ValueError:
    return match.group()
  return _pick(match.group(), _IPS6) if public else match.group()


def _pick(found: str, choices: tuple[str, ...]) -> str:
  if found in choices:  # so that a second pass changes nothing
    return found
  return choices[xxhash.xxh64_intdigest(found.encode()) % len(choices)]
