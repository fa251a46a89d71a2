"""Every default of smoljax, once, with its unit. A recipe starts here and changes what it must.

`get_config()` returns a ConfigDict whose sections are, by and large, the steps of an experiment: a
changed field redoes the steps that read it and those that depend on them, nothing else.
"""

import dataclasses
from collections.abc import Iterable
from types import SimpleNamespace

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from data_beam.options import (
  ConversationOptions,
  Options,
  PdfOptions,
  TokenizeOptions,
  WebOptions,
  kind,
)


def parse_arg(arg: str, **choices: Iterable[str]) -> SimpleNamespace:
  """What follows the colon of `--config=FILE.py:size=1b`; the first choice is the default.

  Without choices anything may be given, and the default is ''.

  Raises ValueError for a name or value that is not among the choices.
  """
  chosen = {name: next(iter(values), '') for name, values in choices.items()}
  for part in filter(None, arg.split(',')):
    name, _, value = part.partition('=')
    if name not in choices or (choices[name] and value not in choices[name]):
      known = '; '.join(f'{n}={" | ".join(values) or "…"}' for n, values in choices.items())
      raise ValueError(f'config argument {part!r}: give {known}')
    chosen[name] = value
  return SimpleNamespace(**chosen)


def _options(pipeline: type[Options]) -> ConfigDict:
  """A section with the options of a pipeline."""
  c = ConfigDict()
  for field in dataclasses.fields(pipeline):
    c[field.name] = placeholder(kind(field)) if field.default is None else field.default
  return c


def get_config() -> ConfigDict:
  """All defaults; fields with a placeholder are derived when a run begins."""
  c = ConfigDict()
  c.name = 'base'
  c.xprof = ''  # steps FIRST:END of training whose profile goes to profile/, such as 10:15
  c.wandb = ''  # project of Weights & Biases that metrics go to as well (pip install wandb)
  c.seed = 0  # the run's key: initialisation, data order, tasks and sampling derive from it

  # --- Input -----------------------------------------------------------------------------------
  # The quickstart's own crawl, built from this machine's documentation; used by whichever of
  # web.input and pdf.input is empty.
  c.selfdocs = ConfigDict()
  c.selfdocs.pages = 3000  # web pages, junk and duplicates included
  c.selfdocs.pdfs = 60  # PDF files

  # --- Curation (Beam) -------------------------------------------------------------------------
  c.beam = ConfigDict()
  c.beam.args = ()  # passed to Beam as they are, for example ('--runner=DataflowRunner', …)

  # What each option means: data_beam/options.py, or `python -m data_beam.web --help`.
  c.web = _options(WebOptions)
  c.web.enabled = True
  c.web.input = ''  # comma-separated WARC globs, local or any Beam file system; '' = selfdocs

  c.pdf = _options(PdfOptions)
  c.pdf.enabled = True
  c.pdf.input = ''  # comma-separated PDF or WARC globs; '' = selfdocs

  c.conversations = _options(ConversationOptions)  # for fine-tuning: data_beam.conversations
  c.conversations.enabled = False
  c.conversations.input = ''  # comma-separated JSONL or Parquet globs; '' = chains

  c.chains = ConfigDict()  # conversations made by rule: experiments/chains.py
  c.chains.number = 0  # of them; 0 = none
  c.chains.families = ('chains',)  # of problems: chains, sums, rewriting
  c.chains.depths = (2, 3, 4)  # steps
  c.chains.languages = ('en',)  # of their words
  c.chains.mode = 'think'  # think | no_think | both
  c.chains.turns = 1  # 1 to so many a conversation
  c.chains.noise = 0.0  # share of states that are random, in thoughts and answers
  c.chains.shuffled = False  # thoughts of other problems: a control
  c.chains.pairs = False  # preference pairs
  c.chains.system = 'Answer.'  # the system text; /system_override: no header, so no mode either

  c.corpora = ''  # more of them, made elsewhere: NAME=DIR with commas, of documents or of tokens

  # --- Tokens ----------------------------------------------------------------------------------
  c.tokenizer = ConfigDict()
  # A SentencePiece .model or a Hugging Face tokenizer.json; '' = train one. Which of its tokens
  # begin and end a document: data_beam/special_tokens.py.
  c.tokenizer.path = ''
  c.tokenizer.vocab_size = 2048
  c.tokenizer.train_bytes = 20_000_000  # text shown to the trainer, UTF-8 bytes
  c.tokenizer.chat = False  # a trained one reserves <|im_start|> and <|im_end|> (smoljax.chat)

  c.tokenize = _options(TokenizeOptions)  # SmolLM3's released tokenizer has no BOS

  # --- Model (smoljax.model.ModelConfig; vocab_size comes from the tokenizer, max_seq_len is
  # data.seq_len). Fields left None are those of the shape. ------------------------------------
  c.model = ConfigDict()
  c.model.shape = 'tiny'  # a ready shape: `python -m experiments.shapes` lists them
  c.model.num_layers = placeholder(int)
  c.model.embed_dim = placeholder(int)
  c.model.num_heads = placeholder(int)
  c.model.num_kv_heads = placeholder(int)
  c.model.head_dim = placeholder(int)
  c.model.mlp_dim = placeholder(int)
  c.model.rope_theta = placeholder(float)
  c.model.rope_scaling = placeholder(dict)  # {} = none; rope_type and fields, as in smoljax.model
  c.model.nope_interval = placeholder(int)  # every n-th layer rotates nothing; 0 = all rotate
  c.model.rope_layers = placeholder(tuple)  # per layer, 1 = rotates; overrides nope_interval
  c.model.sliding_window = placeholder(int)  # tokens; 0 = none
  c.model.window_layers = placeholder(tuple)  # per layer, 1 = windowed
  c.model.activation = placeholder(str)  # swiglu | geglu | gelu | relu2
  c.model.norm = placeholder(str)  # rms | layer
  c.model.norm_position = placeholder(str)  # pre | post | sandwich
  c.model.norm_eps = placeholder(float)
  c.model.logit_softcap = placeholder(float)  # final logits stay within ± this; 0 = off
  c.model.tie_embeddings = placeholder(bool)
  c.model.attention_bias = placeholder(bool)
  c.model.qkv_bias = placeholder(bool)  # without the output's, as Qwen2 has
  c.model.mlp_bias = placeholder(bool)
  c.model.qk_norm = placeholder(bool)
  c.model.qk_norm_over = placeholder(str)  # head | width (OLMo 2)
  c.model.attention_softcap = placeholder(float)  # attention logits stay within ± this; 0 = off
  c.model.init = 'nanotron'  # nanotron (as SmolLM3 was trained) | hf
  c.model.init_std = placeholder(float)
  c.model.mtp = placeholder(str)  # modules that predict further ahead: none | parallel | sequential
  c.model.mtp_depth = placeholder(int)  # how many
  c.model.attention = 'auto'  # implementation: auto | xla | cudnn | splash
  c.model.dtype = 'bfloat16'  # compute dtype; master weights are float32
  c.model.fp8 = False  # the MLP's products in 8-bit floats: faster on NVIDIA GPUs since Hopper
  c.model.remat = placeholder(str)  # kept for the backward pass: none = all | full = nothing | …
  c.model.lora_rank = 0  # of adapters, trained in place of train.init_from's matrices; 0 = none
  c.model.lora_alpha = 32.0  # they add alpha / rank times their product
  c.model.scan_layers = placeholder(bool)  # or unrolled; None = what is faster in this run

  # --- Training --------------------------------------------------------------------------------
  c.data = ConfigDict()
  c.data.seq_len = 1024  # tokens a row
  c.data.window = 2048  # documents shuffled and packed together
  c.data.max_segments = 0  # documents a row may hold; 0 = what their lengths ask for
  c.data.across = False  # attention reads across the documents of a row: no mask between them

  c.train = ConfigDict()
  c.train.tokens = 2_000_000  # to train on; steps are derived from it
  c.train.flops = 0.0  # instead of tokens: as ModelConfig.flops_per_token counts; 0 = tokens say
  c.train.batch_tokens = 8192  # tokens a step, over all devices
  c.train.accumulate = 1  # micro-batches a step
  # Stages in order: share of the steps, and the mixture (weights by token, normalised;
  # with shares=True of each corpus, so that equal weights go through all of them equally often).
  c.train.stages = (
    dict(name='stable', fraction=1.0, mixture=dict(web=0.75, pdf=0.25)),
  )
  c.train.max_epochs = 0.0  # a run that would go through a corpus more often is refused; 0 = it may
  # A run, its checkpoint or a HF folder whose weights training starts from, with its tokenizer.
  c.train.init_from = ''
  c.train.branch_from = ''  # a run or its checkpoint that this one goes on from, with all its state
  # What a loss of preferences or reinforcement compares with, frozen: likewise; '' = init_from.
  c.train.reference = ''
  # Instead of cross entropy, which of two answers is better: smoljax/train/preferences.py. The
  # corpora are of preference pairs, and the reference is init_from unless named.
  c.train.preference = ConfigDict()
  c.train.preference.loss = ''  # dpo | robust | hinge | ipo | apo_zero | apo_down | … ; '' = none
  c.train.preference.beta = 0.0  # 0 = what is usual for the loss
  c.train.preference.label_smoothing = 0.0  # share of pairs that are the wrong way: dpo, robust
  c.train.preference.gamma = 1.375  # margin of simpo
  c.train.preference.average = True  # ipo: of means over tokens, not of sums
  c.train.preference.cached = False  # the reference reads all pairs once, ahead of training
  # The policy's own answers, with rewards by rule: smoljax/train/reinforce.py.
  c.train.reinforce = ConfigDict()
  c.train.reinforce.loss = ''  # grpo | dr_grpo | dapo; '' = none
  c.train.reinforce.samples = 8  # answers a question; train.batch_tokens has a row for each
  c.train.reinforce.max_new_tokens = 256  # of an answer
  c.train.reinforce.temperature = 1.0
  c.train.reinforce.top_k = 0  # 0 = all tokens
  c.train.reinforce.rewards = ConfigDict({'number': 1.0, 'text': 0.0, 'form': 0.0})  # rule → weight
  c.train.reinforce.clip_low = 0.2
  c.train.reinforce.clip_high = 0.0  # 0 = usual for the loss: .2, dapo .28
  c.train.reinforce.divide_by_std = placeholder(bool)  # advantages; None = usual: not of dr_grpo
  c.train.reinforce.kl = 'none'  # none | k2 | k3
  c.train.reinforce.kl_weight = 0.0
  c.train.reinforce.overlong = 0  # last tokens of an answer over which the reward falls by 1
  c.train.reinforce.learn_truncated = True  # from answers without an end too
  c.train.reinforce.updates = 1  # steps taken on the answers of one sampling
  c.train.loss_chunk = 512  # positions whose logits exist at once
  c.train.z_loss = 0.0  # weight of log(Z)²; SmolLM3: off
  c.train.cos_reg = 0.0  # weight against features that collapse to one direction: objectives.py
  c.train.log_every = 10  # steps
  c.train.eval_every = 100  # steps
  c.train.eval_documents = 64  # held-out documents per corpus at each evaluation while training
  c.train.checkpoint_every = 100  # steps
  c.train.checkpoint_dir = ''  # gs://… or s3://… that they go to as well: docs/object_stores.md
  c.train.keep = 3  # newest checkpoints kept
  c.train.keep_every = 0  # and the first one in so many steps, for ever; 0 = none
  c.train.keep_best = ''  # and the one that was lowest in this, such as 'val/web/bpb'; '' = none
  c.train.watchdog = 60.0  # seconds without a step, at least, that end a run (87); 0 = it waits
  c.train.tensorboard = True
  # On an accelerator what evaluation and sample text run is compiled beside the steps, if memory is
  # left: of a run of 121 s on a GPU 14 less.
  c.train.compile_beside = True

  c.mesh = ConfigDict()  # devices per axis; -1 = chosen to fit the model, the batch and the rest
  c.mesh.data = -1
  c.mesh.fsdp = -1
  c.mesh.tensor = -1
  c.mesh.context = -1  # splits each row; seq_len must be a multiple of twice this

  c.optimizer = ConfigDict()
  c.optimizer.name = 'adamw'  # adamw | muon | soap | dion | psgd (matrices; the rest by AdamW)
  c.optimizer.learning_rate = 2e-3  # peak
  c.optimizer.weight_decay = 0.1
  # Or, above 0, the share of the run over which weights average their updates: decay is then
  # 1 / (timescale · peak rate · steps), right at other lengths and batches too.
  c.optimizer.decay_timescale = 0.0
  c.optimizer.no_decay = ('embedding',)  # roles without weight decay; SmolLM3 decays norms
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.95
  c.optimizer.eps = 1e-8
  c.optimizer.clip = 'norm'  # of the gradients of AdamW's leaves: norm | zclip | adagc
  c.optimizer.clip_norm = 1.0  # their largest global norm; 0 = no clipping
  c.optimizer.momentum_dtype = 'float32'
  c.optimizer.schedule = 'wsd'  # wsd | wsd_s (several cooldowns) | power | cosine | constant
  c.optimizer.warmup_steps = 0  # 0 = warmup_fraction of all steps
  c.optimizer.warmup_fraction = 0.05
  c.optimizer.decay_steps = 0  # 0 = decay_fraction of all steps
  c.optimizer.decay_fraction = 0.2
  c.optimizer.decay_shape = 'linear'  # linear | 1-sqrt
  c.optimizer.floor = 0.0  # last learning rate as a share of the peak
  c.optimizer.cooldowns = (0.25, 0.5, 1.0)  # shares of the run at which wsd_s's end
  c.optimizer.power = 0.51  # of the power scheduler: the rate falls as the steps to its minus this
  c.optimizer.power_steps = 1000  # from this step on
  # Batch ramp: (share of the run, steps an update) pairs, such as ((0.0, 1), (0.2, 2), (0.5, 4)):
  # batches of train.batch_tokens at first, of four times as many in the end; () = none.
  c.optimizer.ramp = ()
  c.optimizer.hyperball = False  # matrices keep their norms and do not decay: MuonH, AdamH
  c.optimizer.tail_steps = 0  # horizon, in steps, of an average of the last weights; 0 = none
  c.optimizer.tail_weight = 0.6  # its share in the weights that the run ends on
  c.optimizer.muon = ConfigDict()
  c.optimizer.muon.beta = 0.95
  c.optimizer.muon.beta_start = 0.85  # from which beta rises over the first beta_warmup steps
  c.optimizer.muon.beta_warmup = 0  # 0 = beta from the start
  c.optimizer.muon.momentum = 'average'  # average | debiased (as optax has it)
  c.optimizer.muon.cautious_decay = False  # decay only where the step shrinks the parameter too
  c.optimizer.muon.nesterov = True
  c.optimizer.muon.coefficients = 'pe5'  # Newton–Schulz table: pe5 | gram5 (fewer operations) | …
  c.optimizer.muon.steps = 5
  c.optimizer.muon.scale_rule = 'moonlight'  # update RMS like AdamW's: its learning rate fits
  c.optimizer.muon.rms = 0.2
  c.optimizer.muon.lr_multiplier = 1.0  # Muon's learning rate over AdamW's, and its weight decay
  c.optimizer.muon.decay_multiplier = 1.0
  c.optimizer.muon.per_head = 'none'
  c.optimizer.muon.normuon = 0.0  # decay of NorMuon's second moment (0.95); 0 = plain Muon
  c.optimizer.muon.adamuon = 0.0  # decay of AdaMuon's (0.999); at most one of the two
  c.optimizer.muon.soap = False  # SOAP's preconditioner first (SOAP-Muon, wants soap.every=1)
  c.optimizer.muon.at_once = 0  # matrices a device iterates on at a time; 0 = all of one shape
  c.optimizer.muon.compute_dtype = 'bfloat16'

  c.optimizer.soap = ConfigDict()  # with b1=b2=0.95 as its authors have it
  c.optimizer.soap.every = 10  # steps between refreshments of the basis
  c.optimizer.soap.max_dim = 8192  # a longer side of a matrix is not rotated

  c.optimizer.dion = ConfigDict()
  c.optimizer.dion.mu = 0.95  # what stays of the momentum that a step has used
  c.optimizer.dion.rank = 0.25  # of an update, as a share of the matrix's short side

  c.optimizer.psgd = ConfigDict()  # with hyperball as its authors' entry in modded-nanogpt has it
  c.optimizer.psgd.beta = 0.95
  c.optimizer.psgd.rate = 1.0  # of the preconditioner's own descent

  c.optimizer.qk_clip = ConfigDict()  # QK-Clip; with name=muon this is MuonClip
  c.optimizer.qk_clip.tau = 0.0  # largest attention logit of a head; 0 = off, Kimi K2: 100
  c.optimizer.qk_clip.rule = 'weights'  # weights (K2) | rates: slows heads down, bounds nothing
  # bound (from the log-sum-exp, at no cost) | exact | limit (exact, and no logit of a step exceeds
  # tau: the next batch's largest is above the last one's, the more so the smaller batches are)
  c.optimizer.qk_clip.measure = 'bound'

  c.parametrization = ConfigDict()  # what changes with size: smoljax/optim/mup.py
  c.parametrization.name = 'standard'  # standard | mup | completep
  c.parametrization.base_width = 0  # embed_dim of the model whose learning rate this is
  c.parametrization.base_depth = 0  # its num_layers
  c.parametrization.base_kv_heads = 0  # its num_kv_heads; 0 = they grew as its width did

  c.mtp = ConfigDict()  # of a model with such modules; their loss is λ times the mean over them
  c.mtp.weight = 0.3  # λ (DeepSeek-V3)
  c.mtp.weight_last = 0.1  # λ at the end
  c.mtp.switch = 0.7  # share of the steps after which it is weight_last

  c.distill = ConfigDict()  # what is learned from another model: smoljax/train/distill.py
  c.distill.teacher = ''  # a run, its checkpoint or a HF folder, with the same tokenizer; '' = none
  c.distill.cache = 'none'  # none = it runs beside the student | sampled | topk | hidden: before
  c.distill.draws = 50  # stored of each place: draws of sampled, ids of topk
  c.distill.weight = 0.5  # share of the teacher in the loss; the rest is cross entropy
  c.distill.distance = 'forward_kl'  # forward_kl | reverse_kl | jsd
  c.distill.temperature = 1.0
  c.distill.beta = 0.5  # of jsd
  c.distill.features = 0.0  # weights of transfers; all need cache='none'
  c.distill.attention = 0.0
  c.distill.relations = 0.0
  c.distill.relation_heads = 0  # 0 = the student's kv heads

  c.guard = ConfigDict()  # steps that are not taken, and what follows: smoljax/train/guard.py
  c.guard.enabled = True
  c.guard.sigma = 6.0  # standard deviations from the mean beyond which a step is skipped
  c.guard.window = 128  # past steps that a step is compared with
  c.guard.min_steps = 32  # of them before it is; a step that is not finite is always skipped
  c.guard.patience = 3  # skips in a row before a rollback to the last good checkpoint
  c.guard.skip_batches = 100  # left out of the data after a rollback, from the incident on
  c.guard.horizon = 5000  # batches; a second rollback within them lowers the rate, a third stops
  c.guard.backoff = 0.5  # factor on the learning rate
  c.guard.recovery = 1.0002  # its growth a step, until it is 1 again: 2 % in 100 steps
  c.guard.inject = ''  # faults to inject: nan@40,spike@60,bitflip@80,lr8x@100:120,vanish@140

  c.diagnostics = ConfigDict()  # metrics beyond the loss: smoljax/train/diagnostics.py
  c.diagnostics.leaves = True  # norms and RMS of each leaf's gradient, update and parameter
  c.diagnostics.every = 0  # steps between looks at activations and the gradient's noise; 0 = never

  # --- Instead of a run -------------------------------------------------------------------------
  # Experiments in WORKDIR/NAME, one after another (experiments/series.py): dicts of a name and of
  # fields, in which '@NAME' is the workdir of one before.
  c.series = ()

  c.merge = ConfigDict()  # with models, they are merged, where a run trains: checkpoints/merge.py
  c.merge.models = ''  # runs, checkpoints or Hugging Face folders, with commas between
  c.merge.weights = ()  # one a model
  c.merge.method = 'linear'  # linear | slerp

  c.coordinate_check = ConfigDict()  # with widths, it runs instead of the usual steps
  c.coordinate_check.widths = ()  # embed_dim of the models; the least is the base
  c.coordinate_check.depths = (3, 6, 12)  # their num_layers
  c.coordinate_check.steps = 5
  c.coordinate_check.seeds = 2

  c.mix = ConfigDict()  # of experiments.mix, which weighs the corpora of `corpora`
  c.mix.proxies = 44  # runs that the laws are fitted to, of as many mixtures
  c.mix.unseen = 16  # and runs that only judge the laws
  c.mix.repeats = 4  # runs of the natural proportions, from as many seeds
  c.mix.together = 16  # runs trained side by side
  c.mix.phases = (1.0,)  # shares of a run, each with a mixture of its own
  c.mix.temper = 0.5  # proxies scatter around size to this power
  c.mix.strength = (5.0, 40.0)  # and the less, the greater this: Dirichlet's concentration, from to
  c.mix.max_epochs = 8.0  # how often the target run may go through a corpus
  c.mix.target_tokens = 0.0  # of the run that the mixture is for; 0 = train.tokens
  c.mix.floors = ()  # ((names of corpora, least share of tokens that they have together), …)
  c.mix.evaluate = ''  # more held-out text, of no mixture: NAME=DIR with commas, tokenised
  c.mix.blend = ()  # ((domain, weight), …) of what is made small; () = all domains alike
  c.mix.laws = ('linear', 'exponential', 'trees', 'saturating', 'kernel')  # fitted and compared
  c.mix.kl = 0.0  # bits per byte that a nat away from the natural proportions must gain
  c.mix.resamples = 100  # of the decision's interval
  c.mix.seeds = 4  # of each arm of the validation
  c.mix.larger = ()  # ((field of `model`, value), …) of the model that validates at more compute
  c.mix.larger_tokens = 2.0  # and how many times the tokens it has

  # --- Evaluation, export, report --------------------------------------------------------------
  c.eval = ConfigDict()
  c.eval.corpora = ()  # whose held-out documents are evaluated on; () = those trained on
  c.eval.documents = 0  # held-out documents per corpus; 0 = all
  c.eval.batch_size = 16
  c.eval.tasks = ('continuation',)
  c.eval.task_examples = 200
  c.eval.data = ''  # folder with the JSONL files of public tasks
  c.eval.generation = ConfigDict()  # of the tasks in which the model writes
  c.eval.generation.modes = ()  # think, no_think, chat, plain; () = those that it has
  c.eval.generation.max_new_tokens = 0  # 0 = as many as each task says
  c.eval.generation.samples = 1  # answers to each question
  c.eval.generation.temperature = 0.0
  c.eval.generation.pass_at = (1,)  # pass@k of these k, up to samples
  c.eval.generation.lengths = ()  # tokens, of the long texts of ruler; () = data.seq_len
  c.eval.generation.languages = ('en',)  # of the long texts
  c.eval.generation.long_examples = 0  # of each of them, length and language; 0 = task_examples
  c.eval.generation.long_modes = ()  # in which they are put; () = modes
  c.eval.generation.unsafe_programs = False  # run programs even where they cannot be confined

  c.export = ConfigDict()
  c.export.gguf = False  # model.gguf beside the Hugging Face folder
  c.export.chat = False  # with the chat template; answers then end at <|im_end|>

  c.sample = ConfigDict()
  c.sample.prompts = ('Returns the', 'This function')
  c.sample.tokens = 96
  c.sample.temperature = 0.7

  c.lock()  # a recipe that misspells a field is told so
  return c
