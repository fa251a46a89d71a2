"""A corpus written anew by a model: each document as the prompt asks, with lineage to its source.

  python -m data_beam.rephrase --input=corpora/web/1.0.0 --output=corpora --name=web_faq \\
    --server=http://localhost:8000 --model=NAME --prompt=faq

The model stands behind a server that speaks OpenAI's chat completions: experiments.serve with one
of ours, vLLM or llama.cpp with any. `--prompt` is one of PROMPTS, kinds of text that FinePhrase and
Nemotron-CC (arXiv:2412.02595) found worth the tokens, in our words, or a file with your own;
`{text}` in it is the document, or with --parts each part of it (with a model that was taught no
questions `{text}` alone, after which it writes on: --keep_cut). Each result is a document of its
own whose metadata say of which document, by which prompt and model it was made; url, language and
date are the source's. What is no use is a reject with its reason: no answer, one cut at its limit,
one that runs in circles, one that is too short; then duplicates, also of the corpora in --against
(give the source, so that copies go), and quotes of evaluation sets. What tokenize_corpus would hold
out of the source is left out (--holdout).
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam

from data_beam import curation, model_server, records, tokenize_corpus
from data_beam.curation import Each
from data_beam.dedup.clusters import deduplication
from data_beam.dedup.decontaminate import Decontaminate
from data_beam.options import RephraseOptions
from data_beam.records import Document, Reject
from data_beam.sources.files import expand

PROMPTS = {
  'faq': 'Turn the text below into questions that a reader may ask and their full answers. Use '
         'nothing that the text does not say. Give the questions and answers alone.\n\n{text}',
  'tutorial': 'Rewrite the text below as a tutorial, step by step, for someone who is new to it. '
              'Keep every fact and add none. Give the tutorial alone.\n\n{text}',
  'encyclopedia': 'Rewrite the text below in the clear, neutral style of an encyclopedia. Keep '
                  'every fact and add none. Give the rewritten text alone.\n\n{text}',
  'distill': 'Write the text below again, shorter: every fact, name and number, no filler. Give '
             'the text alone.\n\n{text}',
}


@dataclasses.dataclass(frozen=True)
class Writer:
  """How documents are written anew; `prompt` is the template, `name` what it is called."""

  name: str
  prompt: str
  options: RephraseOptions

  def __call__(self, document: Document) -> Document | Reject:
    """The document that the model makes of this one, or why there is none."""
    o = self.options
    asked = self.prompt.replace('{text}', document.text[:o.most])
    lineage = {'rephrased': {'id': document.id, 'prompt': self.name, 'model': o.model,
                             'prompt_sha256': hashlib.sha256(self.prompt.encode()).hexdigest()}}
    made = dataclasses.replace(
      document, id=hashlib.sha256(f'{document.id}\0{o.model}\0{asked}'.encode()).hexdigest(),
      metadata=document.metadata | lineage, signature=b'')
    try:
      answer = model_server.ask(o.server, o.model, asked, o.max_tokens,
                                temperature=o.temperature, seed=int(made.id[:8], 16))
    except model_server.ServerError as error:
      made.metadata['server'] = str(error)
      return Reject(made, 'rephrase', 'no_answer')
    made = dataclasses.replace(made, text=answer.text.strip())
    if answer.ended == 'length' and not o.keep_cut:
      return Reject(made, 'rephrase', 'cut')
    if model_server.repeats(made.text):
      return Reject(made, 'rephrase', 'circles')
    if len(made.text.split()) < o.least:
      return Reject(made, 'rephrase', 'short')
    return made


class Rephrase(beam.PTransform):
  """PCollection[Document] → (kept, rejects): as many at a time as a worker has questions open."""

  def __init__(self, writer: Writer):
    super().__init__()
    self.writer = writer

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    size = self.writer.options.parallel
    return documents | beam.BatchElements(size, size) | Each(_write, self.writer)


def _write(documents: Sequence[Document], writer: Writer) -> Iterator[Document | Reject]:
  with concurrent.futures.ThreadPoolExecutor(len(documents)) as pool:
    yield from pool.map(writer, documents)


def _read(files: Sequence[tuple[str, int]], options: RephraseOptions) -> Iterator[Document]:
  rows = itertools.chain.from_iterable(
    records.read_shard(file, count, 'curated') for file, count in files)
  for row in itertools.islice(rows, options.limit):
    if tokenize_corpus.is_validation(row['id'], options.holdout):
      continue
    document = Document(**row)
    for n, text in enumerate(parts(document.text, options.most) if options.parts else ()):
      yield dataclasses.replace(
        document, text=text, metadata=document.metadata | {'part': n}, signature=b'')
    if not options.parts:
      yield document


def parts(text: str, most: int) -> Iterator[str]:
  """The text in parts of `most` characters at most, cut where a line, a sentence or a word ends in
  their second half, if one does."""
  while len(text) > most:
    ends = (text.rfind(end, most // 2, most) + len(end) for end in ('\n', '. ', ' '))
    at = next((end for end in ends if end > most // 2), most)
    if part := text[:at].strip():
      yield part
    text = text[at:]
  if text.strip():
    yield text.strip()


def template(prompt: str) -> tuple[str, str]:
  """(name, text) of one of PROMPTS, or of a file.

  Raises ValueError where it is neither, or has no {text}.
  """
  if prompt in PROMPTS:
    return prompt, PROMPTS[prompt]
  if not records.is_file(prompt):
    raise ValueError(f'prompt {prompt!r} is no file, and none of {", ".join(PROMPTS)}')
  text = records.read_bytes(prompt).decode()
  if '{text}' not in text:
    raise ValueError(f'{prompt}: say with {{text}} where the document goes')
  return os.path.basename(prompt), text


def run(
  input: Sequence[str] | str, output: str, name: str = 'rephrased',
  options: RephraseOptions | None = None, *, beam_args: Sequence[str] = (),
) -> str:
  """Writes curated corpora anew into the corpus `output/name/1.0.0`: returns that.

  Args:
    input: the directory of a curated corpus, or several.
    output: parent directory of the corpus and of `name_rejects`.
    name: of the corpus.
    options: what each means is said in options.py.
    beam_args: flags of Beam.

  Raises:
    ValueError: no server or model, a prompt that is none, an input that is no finished corpus of
      documents; or no document was kept, saying where they went.
  """
  options = options or RephraseOptions()
  if not (re.match('https?://', options.server) and options.model):
    raise ValueError('give --server=http://…, which speaks OpenAI\'s protocol, and --model=NAME')
  writer = Writer(*template(options.prompt), options)
  if options.decontaminate:
    options = dataclasses.replace(
      options, decontaminate=[f['path'] for f in expand(options.decontaminate)])
  manifests = [records.read_manifest(path, 'curated')
               for path in ([input] if isinstance(input, str) else input)]
  files = [file for m in manifests for file in records.list_shards(m, 'train')]
  inputs = [{k: m[k] for k in ('path', 'name', 'documents')} for m in manifests]
  steps: list[tuple[str, beam.PTransform]] = [
    ('read', Each(_read, options)), ('rephrase', Rephrase(writer)), *deduplication(options)]
  if options.decontaminate:
    steps.append(('decontaminate', Decontaminate(options.decontaminate)))
  return curation.curate(
    curation.batches(files, options.limit), steps, output=output, name=name, inputs=inputs,
    options=options, found={'prompt_text': writer.prompt}, beam_args=beam_args)


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  return curation.command(
    argv, run, RephraseOptions, prog='data_beam.rephrase', name='rephrased',
    input='directory of a curated corpus, DIR/NAME/1.0.0',
    description='Has a model write each document of a corpus anew, as a prompt asks, and keeps '
    'what is of use, with the source of each.')


if __name__ == '__main__':
  sys.exit(main())
