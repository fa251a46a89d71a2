"""SmolLM3's whole recipe at 50M parameters, on text that any Debian machine can gather: a series.

  python -m experiments.run --config=configs/smollm3_small.py:data=small --workdir=runs/small
  python -m experiments.run --config=configs/smollm3_small.py:data=small,budget=minutes …
  python -m experiments.run --config=configs/smollm3_small.py:data=small,teacher=larger/pretrain \
    --workdir=runs/small_distilled

Stages in WORKDIR/NAME, each from the one before (config.series): pretraining in three mixtures of
rising code and mathematics, 4k tokens a row; the 32k extension, with a larger rotary base;
mid-training on thoughts; fine-tuning in both modes; APO-zero; and the soup of 9 parts of the last
with 1 of the mid-trained model, with a GGUF file and a model card. One command goes on where it was
stopped, so calls of ten minutes will do; budget=minutes is two of them on one H200,
budget=hour pretrains on a billion tokens. With a teacher, pretraining learns from what it says.

DATA is a folder that is made beforehand, by our own pipelines, of packages of Debian:

  experiments/cloud/debian_texts.sh DATA [EVAL]

It has corpora/{manuals,papers,code,mathematics}; corpora/{needles,needles_far}, questions in the
manner of RULER with their answers, to 4k and from 8k tokens, from which a model so small knows what
is wanted (none of them is asked); thoughts/*.jsonl, chats/*.jsonl and pairs/*.jsonl, in any layout
that data_beam.conversations reads; and eval/*.jsonl, evaluation sets, quotes of which are left out
of conversations. Others of the same names will do.

Beam is needed only until the steps of a stage's data are done: WORKDIR/steps with those alone, and
DATA, may be taken to a machine with a GPU and without Beam.

Warm-ups and schedules are those of configs/smollm3.py, rates fit the size and Muon; tokens of each
stage are in proportion to SmolLM3's where a model so small can use them.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import base

CORPORA = ('manuals', 'papers', 'code', 'mathematics')
# Of the corpora above, in pretraining's three stages; SmolLM3's code and mathematics rise alike.
MIXTURES = ((0.70, 0.15, 0.12, 0.03), (0.62, 0.15, 0.14, 0.09), (0.48, 0.16, 0.23, 0.13))
NEEDLES = (0.0, 0.1, 0.2)  # share of these beside them; in the 32k extension half are far ones
FRACTIONS = (0.731, 0.158, 0.111)
ASKED = ('sums', 'rewriting', 'dialogues', 'modes', 'instructions')  # of the tuned models
LEARNED = ('ruler:niah_single_1', 'ruler:niah_single_2', 'ruler:niah_multikey_1', 'ruler:vt')


class Budget(NamedTuple):
  """How much of everything a run has; tokens of each stage."""

  pretrain: int
  long: int
  mid: int
  sft: int
  apo: int
  batch: int  # tokens a step, of the first two
  asked: tuple[str, ...]
  examples: int  # of each task
  ruler: tuple[str, ...]  # tasks of long texts
  long_examples: int  # of these
  lengths: tuple[int, ...]  # of these
  documents: int  # held out of each corpus


BUDGETS = {
  'hour': Budget(1_000_000_000, 50_000_000, 60_000_000, 30_000_000, 6_000_000, 262_144, ASKED, 200,
                 ('ruler',), 50, (4096, 16_384, 32_768), 400),
  'minutes': Budget(80_000_000, 6_000_000, 10_000_000, 5_000_000, 1_000_000, 65_536, ASKED[:4], 64,
                    LEARNED, 16, (4096, 16_384), 100),
}


def get_config(arg: str = '') -> ConfigDict:
  """The series; `data` is the folder described above, `teacher` a run or Hugging Face folder."""
  args = base.parse_arg(arg, data=(), teacher=(), budget=BUDGETS)
  c = base.get_config()
  c.name = 'smollm3_small' + '_distilled' * bool(args.teacher)
  c.web.enabled = c.pdf.enabled = False
  c.model.shape = 'smollm3-50m'
  c.model.remat = 'qkv+ctx+mid'
  c.tokenizer.vocab_size = 32_768
  c.tokenizer.chat = True
  c.tokenizer.train_bytes = 200_000_000
  c.tokenize.bos = False
  c.conversations.minhash = 'none'  # of sums by rule all look alike
  c.optimizer.name = 'muon'
  c.optimizer.no_decay = ('embedding',)
  c.eval.batch_size = 32
  c.sample.prompts = ()
  c.train.eval_every, c.train.checkpoint_every = 500, 250
  budget = BUDGETS[args.budget]
  c.eval.documents = budget.documents
  c.series = stages(args.data or 'small', budget, args.teacher)
  return c


def mixture(i: int, *needles: str) -> dict[str, float]:
  """Of pretraining's i-th stage, with these corpora of needles in equal parts."""
  text = {name: (1 - NEEDLES[i]) * share for name, share in zip(CORPORA, MIXTURES[i], strict=True)}
  return text | {name: NEEDLES[i] / len(needles) for name in needles if NEEDLES[i]}


def stages(data: str, budget: Budget, teacher: str = '') -> tuple[dict[str, Any], ...]:
  """The stages, in order."""
  single = lambda name, mixture: ({'name': name, 'fraction': 1.0, 'mixture': mixture},)
  tokens = ','.join(f'{name}=@pretrain/tokens/{name}' for name in (*CORPORA, 'needles'))
  # Of all stages alike, as text; those that know conversations are asked in one, too.
  ruler = {'eval.generation.lengths': budget.lengths,
           'eval.generation.long_examples': budget.long_examples,
           'eval.generation.long_modes': ('plain',), 'eval.task_examples': budget.examples}
  first = ruler | {
    'name': 'pretrain', 'eval.corpora': CORPORA,
    'corpora': ','.join(f'{n}={data}/corpora/{n}' for n in (*CORPORA, 'needles')),
    'data.seq_len': 4096, 'model.rope_theta': 5e4, 'train.batch_tokens': budget.batch,
    'train.tokens': budget.pretrain, 'optimizer.learning_rate': 4e-3,
    'optimizer.schedule': 'wsd', 'optimizer.decay_fraction': 0.111,
    'optimizer.warmup_fraction': 0.02, 'eval.tasks': ('continuation', 'cloze', *budget.ruler),
    'eval.generation.lengths': (4096,),
    'train.stages': tuple(
      {'name': f'stage-{i + 1}', 'fraction': FRACTIONS[i], 'mixture': mixture(i, 'needles')}
      for i in range(3))}
  if teacher:
    first |= {'distill.teacher': teacher, 'distill.cache': 'sampled', 'distill.weight': 0.9}
  later = {'optimizer.schedule': 'cosine', 'corpora': tokens}
  longer = later | ruler | {
    'name': 'long', 'train.init_from': '@pretrain', 'data.seq_len': 32_768,
    'corpora': f'{tokens},needles_far={data}/corpora/needles_far', 'eval.corpora': CORPORA,
    'model.rope_theta': 2e6, 'train.batch_tokens': budget.batch, 'train.tokens': budget.long,
    'optimizer.learning_rate': 4e-4, 'optimizer.warmup_fraction': 0.05,
    'train.stages': single('long', mixture(2, 'needles', 'needles_far')),
    'eval.tasks': budget.ruler}
  chats = later | ruler | {
    'conversations.enabled': True, 'conversations.decontaminate': (f'{data}/eval/*.jsonl',),
    'tokenize.holdout_shared': 1.0,  # each shares words with others, as for minhash
    'data.seq_len': 8192, 'model.rope_theta': 2e6,
    'train.batch_tokens': 65_536, 'optimizer.floor': 0.1, 'optimizer.clip_norm': 0.2,
    'optimizer.b2': 0.999, 'optimizer.weight_decay': 0.0, 'optimizer.warmup_fraction': 0.03,
    # Where a rule is found gradients are many times as large for a few steps: no incident.
    'guard.enabled': False, 'eval.corpora': ('conversations', *CORPORA),
    'eval.tasks': (*budget.asked, *budget.ruler),
    'eval.generation.long_modes': ('plain', 'no_think')}
  mid = chats | {
    'name': 'mid', 'train.init_from': '@long', 'conversations.input': f'{data}/thoughts/*.jsonl',
    'train.stages': single('mid', {'conversations': 0.8} | {
      name: 0.2 * share for name, share in mixture(2, 'needles').items()}),
    'tokenize.train_user': True, 'train.tokens': budget.mid, 'optimizer.learning_rate': 2e-3}
  tuned = chats | {
    'name': 'sft', 'train.init_from': '@mid', 'conversations.input': f'{data}/chats/*.jsonl',
    'train.stages': single('sft', {'conversations': 1.0}), 'train.tokens': budget.sft,
    'optimizer.learning_rate': 1e-3}
  preferred = chats | {
    'name': 'apo', 'train.init_from': '@sft', 'conversations.input': f'{data}/pairs/*.jsonl',
    'train.stages': single('apo', {'conversations': 1.0}), 'train.tokens': budget.apo,
    'train.preference.loss': 'apo_zero', 'train.preference.beta': 0.05,
    'optimizer.name': 'adamw', 'optimizer.learning_rate': 5e-6, 'optimizer.warmup_fraction': 0.1}
  soup = chats | {
    'name': 'soup', 'merge.models': '@apo,@mid', 'merge.weights': (0.9, 0.1),
    'conversations.input': f'{data}/chats/*.jsonl',
    'train.stages': single('soup', {'conversations': 1.0}),
    'export.gguf': True, 'export.chat': True}
  return first, longer, mid, tuned, preferred, soup
