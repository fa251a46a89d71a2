"""The options of every pipeline of documents, each said once.

A field is a flag of the command, a key of the config's section (configs/base.py), an entry of the
manifest and an attribute of what `run` takes. A new option is one field here, and its use.

Nothing but the standard library is imported. What an option may be is written where it is done,
here only the place, 'module:NAME', which is looked at when a value or a flag needs it.
"""

import argparse
import dataclasses
import functools
import importlib
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Self


def option(default: Any, help: str, **more: Any) -> Any:
  """A field of Options.

  Args:
    default: its value where none is given.
    help: for the flag; '{module:NAME}' in it becomes the names that are there.
    **more: `metavar` of the flag; `choices`, 'module:NAME' of the names to choose from; `check`,
      'module:FUNCTION' that raises ValueError for a wrong value; `least`, the smallest number,
      and `most`;
      `empty`, the flag's word for no entry in a list; `many`, of a list whose entries stand apart,
      after blanks, rather than with commas between; `files`, '{}' or a pattern with it, where the
      value names files from which the result follows.
  """
  return dataclasses.field(default=default, metadata={'help': help, **more})


@dataclasses.dataclass(frozen=True)
class Options:
  """What all kinds have in common: their values are checked, and tuples where they are lists."""

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, more = getattr(self, field.name), field.metadata
      if kind(field) is tuple:
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, tuple | list) or not all(isinstance(v, str) for v in value):
          raise ValueError(f'{field.name}={value!r}: give words, with commas between')
        value = tuple(value)
        if not more.get('many'):
          value = tuple(part for entry in value for part in entry.split(','))
        object.__setattr__(self, field.name, value)
      if 'choices' in more:
        choices = tuple(_at(more['choices']))
        for entry in value if kind(field) is tuple else (value,):
          if entry not in choices:
            raise ValueError(
              f'unknown {field.name} {entry!r}: choose one of {", ".join(choices)}')
      if 'check' in more:
        _at(more['check'])(value)
      if isinstance(value, float) and math.isnan(value):
        raise ValueError(f'{field.name} is {value}: give a number')
      if value is not None and value < more.get('least', value):
        raise ValueError(f'{field.name} is {value}: give at least {more["least"]}')
      if value is not None and value > more.get('most', value):
        raise ValueError(f'{field.name} is {value}: give at most {more["most"]}')

  @classmethod
  def of(cls, section: Mapping[str, Any]) -> Self:
    """From a section of a config, which may have other keys too.

    NaN is None: a flag such as --config.web.min_language_score has no other word for it.
    """
    values = {field.name: section[field.name] for field in dataclasses.fields(cls)}
    return cls(**{name: None if isinstance(value, float) and math.isnan(value) else value
                  for name, value in values.items()})

  def files(self) -> list[str]:
    """Patterns of the files that options name, and from whose content the result follows."""
    found = []
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if pattern := field.metadata.get('files'):
        found += [pattern.format(path.partition('#')[0])   # a classifier's label may follow
                  for path in (value if kind(field) is tuple else (value,)) if path]
    return found


def kind(field: dataclasses.Field) -> type:
  """str, int, float, bool or tuple: the type of an option's value where it is not None."""
  if isinstance(field.type, types.UnionType):
    return next(t for t in typing.get_args(field.type) if t is not types.NoneType)
  return typing.get_origin(field.type) or field.type


def add_flags(parser: argparse.ArgumentParser, options: type[Options]) -> None:
  """Gives a parser one flag for each option. What is not given is not in the result either."""
  for field in dataclasses.fields(options):
    more = dict(field.metadata)
    text = re.sub(r'\{([\w.]+:\w+)\}', lambda match: _names(match[1]), more['help'])
    flag: dict[str, Any] = {'dest': field.name, 'default': argparse.SUPPRESS}
    if kind(field) is bool:
      flag['action'] = argparse.BooleanOptionalAction if field.default else 'store_true'
    else:
      shown = field.default
      if kind(field) is tuple:
        shown = ','.join(shown) or more.get('empty', '')
      if shown not in (None, ''):
        text += f' (default: {shown})'
      flag['metavar'] = more.get('metavar')
      if more.get('many'):
        flag |= {'nargs': '+', 'action': 'extend'}
      else:
        flag['type'] = functools.partial(_parse, kind(field), more.get('empty'))
        flag['type'].__name__ = _KINDS[kind(field)]  # argparse says: invalid whole number value
      if 'choices' in more and kind(field) is str:
        flag['choices'] = tuple(_at(more['choices']))
    parser.add_argument(f'--{field.name}', help=text.replace('%', '%%'), **flag)


def take(options: type[Options], arguments: dict[str, Any]) -> Options:
  """The options out of what a parser found, whose other arguments stay."""
  names = [field.name for field in dataclasses.fields(options)]
  return options(**{name: arguments.pop(name) for name in names if name in arguments})


def _parse(kind: type, empty: str | None, text: str) -> Any:
  if kind is tuple:
    return () if text in ('', empty) else tuple(text.split(','))
  return None if kind is not str and text.lower() == 'none' else kind(text)


_KINDS = {int: 'whole number', float: 'number', str: 'text', tuple: 'list'}


def _at(reference: str) -> Any:
  module, _, name = reference.partition(':')
  return getattr(importlib.import_module(module), name)


def _names(reference: str) -> str:
  found = _at(reference)
  if isinstance(found, Mapping) and all(isinstance(what, str) for what in found.values()):
    return '; '.join(f'{name}: {what}' for name, what in found.items())
  return ', '.join(found)


def require_codes(languages: tuple[str, ...]) -> None:
  """Raises ValueError for what is no code of a language, such as its name."""
  for code in filter(None, languages):      # '' is one that nobody has told
    if not re.fullmatch(r'[a-z]{2,3}([_-]\w+)?', code):
      raise ValueError(f'languages={code!r} is no code of a language: give such as en,fr,de')


# --- what several pipelines have -----------------------------------------------------------------

_languages = functools.partial(
  option, help='languages to keep, such as en,fr,de; any for all of them', metavar='CODES',
  empty='any', check='data_beam.options:require_codes')
_FILTERS = ('quality rules: a profile ({data_beam.filters.rules:PROFILES}), or names of rules with '
            'commas between ({data_beam.filters.rules:RULES})')
_MINHASH = 'near duplicates share a band of so many hashes; none to keep them'
_filters = functools.partial(
  option, help=_FILTERS, metavar='NAME', check='data_beam.filters.rules:profile')
_minhash = functools.partial(
  option, help=_MINHASH, metavar='BANDSxROWS', check='data_beam.dedup.minhash:shape')
_limit = functools.partial(
  option, None, 'read only the first N, in one worker: for trial runs', metavar='N', least=1)
_minhash_hash = functools.partial(
  option, 'fast', "how words are hashed: fast, or datatrove's signatures with xxh64 or sha1",
  choices='data_beam.dedup.minhash:HASHES')
_scope = functools.partial(
  option, 'global', 'look for duplicates among all documents, or within a crawl dump or a language '
  'only', choices='data_beam.dedup.exact:SCOPES')
_against = functools.partial(
  option, (), 'drop documents that are in these finished corpora (DIR/NAME/1.0.0) or resemble one '
  'of theirs, by the signatures kept there if minhash was the same, else by their texts',
  metavar='CORPUS', many=True, files='{}/manifest.json')
_signatures = functools.partial(
  option, False, 'keep the signature of each document beside the corpus, for --against of others')
_decontaminate = functools.partial(
  option, (), 'drop documents that quote these evaluation sets (JSONL)', metavar='GLOB', many=True,
  files='{}')
_near_verbatim = functools.partial(
  option, .8, 'with decontaminate, also drop documents that have such a share of the words of an '
  'item in one place, in runs of five; 0 for quotes of 13 words alone', metavar='SHARE', least=0,
  most=1)
_quality = functools.partial(
  option, (), 'score documents by these models, the first of which is their quality: .npz of '
  'data_beam.quality train, .bin or .ftz of fastText (FILE#LABEL for the probability of a label), '
  '.safetensors of a linear head on metadata.embedding', metavar='FILE', many=True, files='{}')
_quality_least = functools.partial(
  option, None, 'drop documents whose quality is lower', metavar='SCORE')
_signals = functools.partial(
  option, False, 'keep what the rules of FineWeb measure as metadata.signals, for data_beam.refine')
_dedup_parts = functools.partial(
  option, (), 'cut what stands elsewhere too: {data_beam.dedup.parts:PARTS}', metavar='KINDS',
  choices='data_beam.dedup.parts:PARTS')
_substring_words = functools.partial(
  option, 50, 'of dedup_parts=substrings', metavar='N', least=10)
_num_shards = functools.partial(
  option, 8, 'files of the corpus', metavar='N', least=1, most=100_000)


# --- the pipelines -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class WebOptions(Options):
  """Of data_beam.web."""

  languages: tuple[str, ...] = _languages(('en',))
  min_language_score: float | None = option(
    None, 'drop documents whose language is less certain than this (FineWeb: 0.65); none for a '
    'threshold fitted to each language', metavar='P', least=0, most=1)
  language_model: str = option(
    '', "a fastText model that tells languages in place of lid.176, such as GlotLID's; scores are "
    'its own', metavar='FILE', files='{}')
  filters: str = _filters('fineweb')
  signals: bool = _signals()
  quality: tuple[str, ...] = _quality()
  quality_least: float | None = _quality_least()
  minhash: str = _minhash('14x8')
  minhash_hash: str = _minhash_hash()
  tier: str = option(
    'default', 'how the main text is found: default for quality, fast for speed',
    choices='data_beam.web.extract:TIERS')
  markdown: bool = option(False, 'keep headings, lists, tables and code as Markdown')
  html_server: str = option(
    '', 'a server with a model takes the main text, by the protocol of OpenAI, as vLLM has it: '
    'http://localhost:8000', metavar='URL')
  html_model: str = option('', 'its model, such as jinaai/ReaderLM-v2', metavar='NAME')
  html_prompt: str = option('', 'what it is asked for, in place of ReaderLM-v2\'s words',
                            metavar='TEXT')
  url_lists: str = option(
    '', 'drop pages by your own lists: domains.txt, urls.txt, words.txt, subwords.txt, '
    'soft_words.txt in this folder', metavar='DIR', files='{}/*')
  robots: str = option(
    '', 'drop pages that their hosts refuse to crawlers of AI, by a file of JSON lines '
    '{"host": …, "robots": "User-agent: …"} (data_beam/web/rights.py)', metavar='FILE', files='{}')
  robots_agents: tuple[str, ...] = option(
    ('AI2Bot', 'anthropic-ai', 'Applebot-Extended', 'Bytespider', 'CCBot', 'ClaudeBot',
     'cohere-training-data-crawler', 'Diffbot', 'FacebookBot', 'Google-Extended', 'GPTBot',
     'Meta-ExternalAgent', 'PanguBot'), 'the crawlers that --robots looks for; with * among them, '
    'rules for all crawlers count too', metavar='NAMES')
  opt_out: bool = option(
    False, 'drop pages that reserve themselves from training: noai, tdm-reservation, content-usage')
  licences: str = option('ignore', 'licence links of pages: {data_beam.web.rights:LICENCES}',
                         choices='data_beam.web.rights:LICENCES')
  parity: bool = option(False, "keep datatrove's faults in comparing URLs with the lists")
  dump: str = option(
    '', "the crawl dump of files that do not lie in Common Crawl's crawl-data/NAME/",
    metavar='NAME')
  dedup_scope: str = _scope()
  against: tuple[str, ...] = _against()
  signatures: bool = _signatures()
  url_dedup: bool = option(False, 'keep one page of each URL')
  dedup_parts: tuple[str, ...] = _dedup_parts()
  substring_words: int = _substring_words()
  decontaminate: tuple[str, ...] = _decontaminate()
  near_verbatim: float = _near_verbatim()
  phones: bool = option(False, 'hide telephone numbers too')
  accounts: bool = option(False, 'hide IBANs and numbers of payment cards too, told by checksum')
  limit: int | None = _limit()
  num_shards: int = _num_shards()

  def __post_init__(self):
    super().__post_init__()
    if bool(self.html_server) != bool(self.html_model):
      raise ValueError('html_server and html_model go together: give both')


@dataclasses.dataclass(frozen=True)
class PdfOptions(Options):
  """Of data_beam.pdf."""

  languages: tuple[str, ...] = _languages(('en',))
  min_language_score: float | None = option(
    .4, 'drop documents whose language is less certain than this (FinePDFs: 0.24 to 0.41 for most '
    'languages of Western Europe); none for a threshold fitted to each language', metavar='P',
    least=0, most=1)
  filters: str = _filters('pdf')
  minhash: str = _minhash('32x10')
  minhash_hash: str = _minhash_hash()
  ocr: str = option('auto', 'read pictures of text: auto for pages that need it',
                    choices='data_beam.pdf.text:OCR_MODES')
  ocr_server: str = option(
    '', 'a server with a vision model does the OCR, by the protocol of OpenAI, as vLLM has it: '
    'http://localhost:8000', metavar='URL')
  ocr_model: str = option('', 'its model, such as reducto/RolmOCR', metavar='NAME')
  ocr_prompt: str = option(
    'plain', 'what it is asked for: plain text, tex (formulas as TeX, tables as Markdown), or your '
    'own words', metavar='TEXT')
  router: str = option(
    '', 'a classifier of pages, made by data_beam.pdf_route, in place of the rules for OCR; for '
    'workers elsewhere a file that they can read, such as gs://…', metavar='FILE', files='{}')
  figures: str = option(
    'list', 'pictures in the text: list them in the metadata with their captions, also mark their '
    'places in the text, or list them with their text, read by OCR',
    choices='data_beam.pdf.text:FIGURES')
  markdown: bool = option(
    False, 'mark headings, told by the size of their font; lists and tables always are')
  unseen: bool = option(
    False, 'keep text that no reader sees: layers that are switched off, white on white, tiny or '
    'invisible letters')
  refetch: tuple[str, ...] = option(
    (), 'fetch documents again from their URLs: {data_beam.sources.refetch:MODES}', metavar='MODES',
    choices='data_beam.sources.refetch:MODES')
  agent: str = option('', 'User-Agent of --refetch, with an address that a site may write to',
                      metavar='TEXT')
  fetch_delay: float = option(
    1., 'between two requests to a host, unless its robots.txt asks for more', metavar='SECONDS',
    least=0)
  stale_before: str = option('', 'for --refetch=stale, as 2024-01-31', metavar='DATE')
  decontaminate: tuple[str, ...] = _decontaminate()
  near_verbatim: float = _near_verbatim()
  limit: int | None = _limit()
  num_shards: int = _num_shards()

  def __post_init__(self):
    super().__post_init__()
    if bool(self.ocr_server) != bool(self.ocr_model):
      raise ValueError('ocr_server and ocr_model go together: give both')


@dataclasses.dataclass(frozen=True)
class PythonSourceOptions(Options):
  """Of data_beam.python_source."""

  licences: str = option(
    'permissive', 'permissive drops files whose header names a copyleft or proprietary licence',
    choices='data_beam.python_source:LICENCES')
  decontaminate: tuple[str, ...] = _decontaminate()
  near_verbatim: float = _near_verbatim()
  limit: int | None = _limit()
  num_shards: int = _num_shards()


@dataclasses.dataclass(frozen=True)
class ConversationOptions(Options):
  """Of data_beam.conversations."""

  mode: str = option(
    'auto', 'of conversations that do not say it: auto for think where an answer has a thought, '
    'else no_think', choices='data_beam.chat:MODES_TOLD')
  languages: tuple[str, ...] = _languages(())
  minhash: str = _minhash('14x8')
  minhash_hash: str = _minhash_hash()
  against: tuple[str, ...] = _against()
  signatures: bool = _signatures()
  decontaminate: tuple[str, ...] = _decontaminate()
  near_verbatim: float = _near_verbatim()
  tokenizer: str = option(
    '', 'also write the tokens, as data_beam.tokenize_corpus does, to NAME_tokens', metavar='FILE',
    files='{}')
  limit: int | None = _limit()
  num_shards: int = _num_shards()


@dataclasses.dataclass(frozen=True)
class RephraseOptions(Options):
  """Of data_beam.rephrase."""

  server: str = option('', 'a server with a model, by the protocol of OpenAI: '
                       'http://localhost:8000', metavar='URL')
  model: str = option('', 'its model', metavar='NAME')
  prompt: str = option(
    'faq', 'what it is asked for: faq, tutorial, encyclopedia, distill, or a file of yours '
    'with {text} where the document goes', metavar='NAME|FILE')
  max_tokens: int = option(1024, 'of an answer; a longer one is dropped', metavar='N', least=1)
  keep_cut: bool = option(False, 'keep longer ones as far as they go: of a model that was taught '
                          'no questions and writes on')
  temperature: float = option(
    0.0, 'above 0 answers are drawn, by a seed of each document\'s own', metavar='T', least=0)
  most: int = option(6000, 'characters of a document that the model is shown', metavar='N', least=1)
  parts: bool = option(False, 'write the rest anew too, in parts of so many characters, each a '
                       'document of its own')
  least: int = option(20, 'words of an answer; a shorter one is dropped', metavar='N', least=1)
  holdout: float = option(
    .05, 'leave out the documents that tokenize_corpus with this --holdout, or less, holds out: '
    'what is made of them is no text to train on', metavar='SHARE', least=0)
  parallel: int = option(16, 'questions that a worker has open at a time', metavar='N', least=1)
  minhash: str = _minhash('14x8')
  minhash_hash: str = _minhash_hash()
  against: tuple[str, ...] = _against()
  signatures: bool = _signatures()
  decontaminate: tuple[str, ...] = _decontaminate()
  limit: int | None = _limit()
  num_shards: int = _num_shards()


@dataclasses.dataclass(frozen=True)
class ImportOptions(Options):
  """Of data_beam.tables import."""

  layout: str = option('plain', 'which columns mean what', choices='data_beam.tables:LAYOUTS')
  columns: tuple[str, ...] = option(
    (), 'on top of the layout, such as text=content metadata.licence=license; a.b is b in the '
    'struct a, and source==wiki sets a constant', metavar='FIELD=COLUMN', many=True)
  exact_dedup: bool = option(False, 'keep one document of each text')
  minhash: str = _minhash('none')
  minhash_hash: str = _minhash_hash()
  dedup_scope: str = _scope()
  against: tuple[str, ...] = _against()
  signatures: bool = _signatures()
  decontaminate: tuple[str, ...] = _decontaminate()
  near_verbatim: float = _near_verbatim()
  limit: int | None = _limit()
  num_shards: int = _num_shards()


@dataclasses.dataclass(frozen=True)
class RefineOptions(Options):
  """Of data_beam.refine."""

  rejects: bool = option(
    False, 'also take what the stage filter dropped: thresholds decide about it anew')
  thresholds: tuple[str, ...] = option(
    (), "bounds of signals, such as words=30 or top_2_gram=none; fineweb for all of FineWeb's, "
    'which those after it change. Names: {data_beam.filters.signals:BOUNDS}',
    metavar='NAME=NUMBER', many=True, check='data_beam.filters.signals:bounds')
  signals: bool = _signals()
  quality: tuple[str, ...] = _quality()
  quality_least: float | None = _quality_least()
  minhash: str = _minhash('none')
  minhash_hash: str = _minhash_hash()
  dedup_scope: str = _scope()
  against: tuple[str, ...] = _against()
  dedup_parts: tuple[str, ...] = _dedup_parts()
  substring_words: int = _substring_words()
  decontaminate: tuple[str, ...] = _decontaminate()
  near_verbatim: float = _near_verbatim()
  num_shards: int = _num_shards()


@dataclasses.dataclass(frozen=True)
class TokenizeOptions(Options):
  """Of data_beam.tokenize_corpus."""

  holdout: float = option(
    .02, 'share of documents held out for validation, by a hash of their id, in steps of 0.001; 0 '
    'holds none out', metavar='SHARE')
  holdout_shared: float = option(
    .5, 'a document of whose runs of eight words a larger share is in others too, of any corpus of '
    'the run, is trained on, not held out; 1 does not ask', metavar='SHARE')
  share: float = option(
    1., 'share of the other documents to take, likewise: to ask how many are needed, or to give '
    'two corpora equally many', metavar='SHARE')
  bos: bool = option(True, 'begin each document with the begin-of-text token')
  train_user: bool = option(
    False, "of conversations, learn the system, user and tool turns too, not the assistant's alone")
  rehydrate: bool = option(
    False, 'repeat documents in training by number of duplicates, as in FineWeb-2')
  num_shards: int = option(8, 'files to spread the training split over', metavar='N', least=1,
                           most=100_000)

  @property
  def asks(self) -> bool:
    """Whether a document must be unlike all others to be held out."""
    return self.holdout > 0 and self.holdout_shared < 1

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.holdout < 1 or not 0 < self.share <= 1 or not 0 <= self.holdout_shared <= 1:
      raise ValueError(
        'holdout must be at least 0 and below 1, holdout_shared at most 1, share above 0 and at '
        f'most 1, not {self.holdout}, {self.holdout_shared} and {self.share}')
