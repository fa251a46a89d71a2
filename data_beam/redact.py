"""What may be shown to anybody: settings, paths and messages without what gives access to anything.

Everything that a run writes about its inputs (manifests, dataset cards, config.json, checkpoints'
settings, reports, error lines) passes through `public`. It is a net, not a proof: secrets belong
into the environment or a provider's own files, which nothing here writes down.

Nothing but the standard library is imported: both wings of the house use it.
"""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = '***'

# Names whose values are secrets, as words of a name: hf_token, --api-key, AWS_SECRET_ACCESS_KEY.
_ALWAYS = {
  'password', 'passwd', 'passphrase', 'pwd', 'secret', 'secrets', 'credential', 'credentials',
  'authorization', 'cookie', 'apikey', 'signature', 'token', 'sas', 'bearer', 'jwt'}
_LAST = {'key'}  # as the last word: private_key, --key, but not key_value_heads
_NOT = {'bos', 'eos', 'pad', 'unk', 'sep', 'cls', 'mask', 'per'}  # bos_token is a word of text

# https://user:password@host/path?query: what begins a URL, and ends it in a sentence.
_URL = re.compile(r'''\b\w[\w+.-]*://[^\s'"<>]+''')
# user:password@host without a scheme, as rsync and git have it; a number alone is no host.
_ACCOUNT = re.compile(
  r'''(?<![\w/@.-])(?!mailto:)[\w.+%-]+:[^\s/:@'"]+@(?=\w)(?!\d+\b(?!\.?[\w-]))''')
# NAME=value, --name=value, "name": "value"; values may be quoted.
_VALUE = r'''(?:"[^"]*"|'[^']*'|[^\s"',;&)\]}]+)'''
_ASSIGNED = re.compile(rf'''([\w.-]*\w)(\s?=\s?|["']\s*:\s*){_VALUE}''')
_HEADER = re.compile(r'\b((?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]*(?:key|token))\s*:\s*.*',
                     re.I)
# Secrets that tell themselves: bearer tokens, keys of well-known services, PEM blocks.
_TELLTALE = re.compile(
  r'\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abpr]-|ya29\.|AIza|AKIA|ASIA)[\w.-]{12,}'
  r'|\bbearer\s+[\w.~+/=-]{8,}'
  r'|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)', re.I | re.S)
_FLAG = re.compile(r'--?([\w.-]+)')
_NAME = re.compile(r'[\w .-]{1,80}')


def without_query(path: str) -> str:
  """A URL without its query and account, which may give access to it; any other path as it is."""
  scheme, found, rest = path.partition('://')
  if not found:
    return path
  host, slash, rest = re.split('[?#]', rest, maxsplit=1)[0].partition('/')
  return f'{scheme}://{host.rpartition("@")[2]}{slash}{rest}'


def is_secret(name: str) -> bool:
  """Whether the value of a key, flag or variable of this name is one that nobody should see."""
  if not _NAME.fullmatch(name):  # a sentence, an address
    return False
  words = re.findall(r'[a-z]+', re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower())
  return bool(words) and not _NOT & set(words) and (bool(_ALWAYS & set(words))
                                                   or words[-1] in _LAST)


def public(value: Any) -> Any:
  """A JSON-able value as anybody may see it; numbers, booleans and None stay as they are.

  URLs lose their query and account; values of keys, flags and variables that name secrets become
  HIDDEN, in text too, and so do tokens of well-known kinds.
  """
  if isinstance(value, Mapping):
    return {public(key): _under(key, entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    before = ['', *value[:-1]]  # --password hunter2, as two arguments
    return [HIDDEN if _is_value(flag, entry) else public(entry)
            for flag, entry in zip(before, value, strict=True)] if value else []
  return _text(value) if isinstance(value, str) else value


def _under(key: Any, value: Any) -> Any:
  """What stands under a key."""
  if not isinstance(key, str) or not is_secret(key) or isinstance(value, bool | int | float):
    return public(value)
  return HIDDEN if value else value


def _is_value(flag: Any, entry: Any) -> bool:
  found = _FLAG.fullmatch(flag) if isinstance(flag, str) and isinstance(entry, str) else None
  return bool(found and is_secret(found[1]) and not entry.startswith('-'))


def _text(text: str) -> str:
  if '://' in text:
    text = _URL.sub(lambda url: without_query(url[0]), text)
  if '@' in text:
    text = _ACCOUNT.sub(f'{HIDDEN}@', text)
  if '=' in text or ':' in text:
    text = _HEADER.sub(lambda m: f'{m[1]}: {HIDDEN}', text)
    text = _ASSIGNED.sub(
      lambda m: f'{m[1]}{m[2]}{HIDDEN}' if is_secret(m[1].rpartition('.')[2]) else m[0], text)
  return _TELLTALE.sub(HIDDEN, text)
