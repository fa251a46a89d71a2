"""A model that answers at once or thinks first, from raw bytes, on two cores: SmolLM3's second half
in small.

  python -m experiments.run --config=configs/dual_mode.py --workdir=runs/dual_mode
  python -m experiments.sweep --config=configs/dual_mode.py --workdir=runs/controls

Five stages, each an experiment in WORKDIR/NAME that starts from the one before (config.series):
the quickstart's model is pretrained; mid-trained on thoughts, whole conversations learned;
fine-tuned in both modes, answers alone learned, conversations of one to three turns; taught to
prefer right answers (APO-zero); and merged, 9 parts with 1 of the mid-trained one. Each stage reads
some of the pretraining text as well, so that it is not forgotten.

Problems are made by rule (smoljax/evals/serial.py): sums of several numbers, with carries as
thoughts, and lists rewritten step by step, in six languages' words. A tenth of all problems, by
what they ask, is for scoring alone: `sums`, `rewriting`, and `dialogues` of three turns in one mode
or changing. WORKDIR/summary.json has of each stage right answers by mode, modes followed by turn,
and bits per byte of held-out text, and how much of that was lost since pretraining. To talk to it:

  python -m experiments.generate --checkpoint=runs/dual_mode/soup/export --chat --system=Answer.

The points of the sweep are the recipe, and controls: answers and questions learned alike (no_mask),
without mid-training (no_mid), with thoughts of other problems (shuffled).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import quickstart

LANGUAGES = ('en', 'fr', 'es', 'de', 'it', 'pt')
FAMILIES = ('sums', 'rewriting')
TEXT = 0.15  # share of pretraining text in later stages


def get_config() -> ConfigDict:
  """The series; fields that a stage does not set are those of the quickstart."""
  c = quickstart.get_config()
  c.name = 'dual_mode'
  c.tokenizer.chat = True
  c.data.seq_len = 512  # three turns with their thoughts lie in one row, and both answers of a pair
  c.chains.families, c.chains.languages = FAMILIES, LANGUAGES
  c.conversations.minhash = 'none'  # all sums look alike
  c.tokenize.holdout_shared = 1.0  # likewise: each shares words with others
  c.eval.documents = 100
  c.eval.task_examples = 200
  c.eval.batch_size = 64
  c.series = stages()
  return c


def stages(*, mask: bool = True, mid: bool = True, shuffled: bool = False) -> tuple[dict, ...]:
  """The stages of the recipe, or of a control."""
  later = {
    'web.enabled': False, 'pdf.enabled': False, 'conversations.enabled': True,
    'corpora': 'text=@pretrain/tokens/web', 'eval.corpora': ('text', 'conversations'),
    'eval.tasks': (*FAMILIES, 'dialogues'), 'sample.prompts': (), 'diagnostics.every': 0,
    'chains.shuffled': shuffled, 'chains.turns': 3,
    'optimizer.schedule': 'cosine', 'train.checkpoint_every': 200,
    'train.eval_every': 400, 'optimizer.warmup_fraction': 0.05,
    # Where a rule is found gradients are many times as large for a few steps: no incident.
    'guard.enabled': False}
  mixture = lambda name: ({'name': name, 'fraction': 1.0, 'mixture': {
    'text': TEXT, 'conversations': 1 - TEXT}},)
  first = {'name': 'pretrain', 'eval.tasks': ('continuation', *FAMILIES)}
  thoughts = later | {
    'name': 'mid', 'train.init_from': '@pretrain', 'train.stages': mixture('mid'),
    'chains.number': 20_000, 'chains.mode': 'think', 'tokenize.train_user': True,
    'train.tokens': 4_000_000, 'optimizer.learning_rate': 4e-3}
  tuned = later | {
    'name': 'sft', 'train.init_from': '@mid' if mid else '@pretrain',
    'train.stages': mixture('sft'), 'chains.number': 10_000, 'chains.mode': 'both',
    'tokenize.train_user': not mask, 'train.tokens': 2_000_000,
    'optimizer.learning_rate': 2e-3}
  preferred = later | {
    'name': 'apo', 'train.init_from': '@sft', 'chains.number': 6000, 'chains.mode': 'both',
    'chains.pairs': True,
    'train.stages': ({
      'name': 'apo', 'fraction': 1.0, 'mixture': {'conversations': 1.0}},),
    'train.preference.loss': 'apo_zero', 'train.preference.beta': 0.1, 'train.tokens': 400_000,
    'optimizer.name': 'adamw', 'optimizer.learning_rate': 2e-5, 'optimizer.weight_decay': 0.0}
  soup = later | {
    'name': 'soup', 'merge.models': '@apo,@mid', 'merge.weights': (0.9, 0.1),
    'chains.number': 2000, 'chains.mode': 'both',
    'train.stages': mixture('soup'), 'export.chat': True}
  return (first, *[thoughts] * mid, tuned, preferred, *[soup] * mid)


def sweep() -> list[dict[str, Any]]:
  """The recipe and its controls."""
  return [
    {'name': 'dual_mode', 'series': stages()},
    {'name': 'no_mask', 'series': stages(mask=False)},
    {'name': 'no_mid', 'series': stages(mid=False)},
    {'name': 'shuffled', 'series': stages(shuffled=True)},
  ]
