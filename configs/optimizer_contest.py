"""The optimizer contest: what competes, on which model, for how long (experiments/benchmarks).

A contest is fair if everybody is tuned alike: rate, warm-up and decay together (on a hyperball,
where nothing decays, the radius), a factor of two apart, until the best cell lies inside, in
shorter runs and from there at full length; with a seed and on documents that the verdict does not
use. All have the same cooldown, whose branches off one stable phase (Hägele et al., arXiv
2405.18392) give the steps that a contestant needs for the reference's final loss.

AdamW's rows at 12M beside Muon's, which experiments/log/contest/adamw has, six minutes of an H200,
in calls that go on where the last one ended:

  python -m experiments.benchmarks.optimizer_contest tokens --output=runs/contest \\
    --text='SITE-PACKAGES/**/*.py' 'GUTENBERG/*.txt.gz'
  python -m experiments.benchmarks.optimizer_contest run --output=runs/contest --seconds=500 \\
    --verdict --names muon adamw
  python -m experiments.benchmarks.optimizer_contest run --output=runs/contest --seconds=500 \\
    --judge --reference=adamw --names muon --lengths .5 .65 .75 1
  python -m experiments.benchmarks.optimizer_contest report --output=runs/contest
  python -m experiments.benchmarks.optimizer_contest report --output=runs/contest --reference=adamw

The second `run` is for the other question, how many of AdamW's steps Muon needs; the last line's
leaderboard, contest_adamw.md, answers it.
"""

from ml_collections import ConfigDict

_BOTH = dict(vocab_size=8192, head_dim=64, max_seq_len=512, nope_interval=4, attention='xla',
             dtype='bfloat16')
MODELS = {
  '12m': dict(num_layers=6, embed_dim=384, num_heads=6, num_kv_heads=2, mlp_dim=1024,
              scan_layers=False),  # unrolled: a third less goes through memory
  '124m': dict(num_layers=12, embed_dim=896, num_heads=14, num_kv_heads=2, mlp_dim=2944),
}  # fmt: skip


def get_config(size: str = '12m') -> ConfigDict:
  """The contest's model, data and contestants (no config of experiments.run).

  With size '124m', which three seeds are for, one challenger goes on to the verdict, and tuning
  starts where that at 12M ended.
  """
  c = ConfigDict()
  c.seq_len = 512
  c.rows = 32  # 16,384 tokens a step
  c.steps = 640
  c.cooldown = 0.4  # share of a run's steps in which the learning rate falls to 0, linearly
  c.lengths = (0.65, 0.75, 0.825, 1.0)  # of the challengers' branches, in shares of `steps`
  c.tuning = 0.625  # length of the runs that tune
  c.copies = 8  # runs side by side: cells of a round of tuning, and seeds of the verdict
  c.first_seed = 1  # of the verdict's; 0 tunes
  c.screening = 1  # rounds of tuning after which only the reference and the finalists go on
  c.finalists = 2
  c.final = True  # tune on at full length before the verdict
  c.bar = 0.83  # the share of the reference's steps that the report gives a p of, besides 1
  c.tune_documents = 256  # the first seq_len + 1 tokens of each
  c.test_documents = 512  # a multiple of it
  c.reference = 'muon'
  c.model = ConfigDict(_BOTH | MODELS[size])
  if size == '124m':
    # Seeds 1 to 3 had a verdict before anybody was tuned at full length.
    c.update(dict(steps=448, copies=3, finalists=1, first_seed=4, lengths=(0.825, 1.0)))
  heads = dict(name='muon', tail_steps=24, muon=dict(per_head='qk', cautious_decay=True))
  even = dict(name='muon', tail_steps=24, muon=dict(
    per_head='qk', cautious_decay=True, normuon=0.95))
  # title; settings: changes to section optimizer of configs/base.py; start: the first cell, (rate,
  # steps of warm-up, weight decay or factor on the initialisation); model: changes to the model.
  ball = dict(init='hf')  # what could not grow must not begin small: o and down as the others
  adamw = (4e-3, 64, 0.2)
  muon = (16e-3, 16, 0.8)  # the best of a first round, as NorMuonH's below
  c.contestants = ConfigDict(dict(
    muon=dict(title='Muon', settings=dict(name='muon'), start=muon),
    muon_heads=dict(title='Muon by head, cautious decay, tail average', settings=heads, start=muon),
    normuon_heads=dict(title='NorMuon by head, cautious decay, tail average', settings=even,
                       start=muon),
    normuonh_heads=dict(
      title='NorMuonH by head, tail average', settings=even | dict(hyperball=True),
      start=(32e-3, 16, 2.0), model=ball),
    normuon_all=dict(
      title='NorMuon by head in q, k, v and o, cautious decay, tail average',
      settings=even | dict(muon=even['muon'] | dict(per_head='all')), start=muon),
    adamw=dict(title='AdamW', settings=dict(name='adamw'), start=adamw),
    adamh=dict(title='AdamH', settings=dict(name='adamw', hyperball=True), start=(8e-3, 64, 2.0),
               model=ball),
    muonh=dict(title='MuonH', settings=dict(name='muon', hyperball=True), start=(32e-3, 16, 2.0),
               model=ball),
    adamuon=dict(title='AdaMuon', settings=dict(name='muon', muon=dict(adamuon=0.999)), start=muon),
    muonclip=dict(title='MuonClip, τ = 20', settings=dict(name='muon'), start=muon,
                  qk_clip_tau=20.0),  # K2's 100 is for runs a thousand times as long
    soap=dict(title='SOAP', settings=dict(name='soap', b1=.95, b2=.95), start=adamw,
              one_by_one=True),
    soap_muon=dict(title='SOAP-Muon', settings=dict(name='muon', muon=dict(soap=True),
                                                    soap=dict(every=1)),
                   start=muon, one_by_one=True),
    dion=dict(title='Dion, rank 1/4', settings=dict(name='dion'), start=(16e-3, 16, 0.1),
              one_by_one=True),
    psgd=dict(title='PSGD-Kron on a hyperball', settings=dict(name='psgd', hyperball=True),
              start=(16e-3, 16, 2.0), model=ball),
    optax_muon=dict(title='optax Muon, as documented', optax='documented',
                    settings=dict(name='muon', no_decay=()), start=(1e-2, 1, 0.0)),
    optax_muon_labelled=dict(title='optax Muon, labelled right', optax='labelled',
                             settings=dict(name='muon', no_decay=()), start=muon),
  ))
  if size == '124m':
    c.contestants.muon.start = (4e-3, 8, 0.4)
    c.contestants.normuonh_heads.start = (16e-3, 2, 2.0)
  return c
