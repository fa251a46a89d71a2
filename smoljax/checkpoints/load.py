"""Models by where they lie: a run, a checkpoint or a Hugging Face folder, with their tokenizer."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smoljax import model
from smoljax.checkpoints import hf_folder, huggingface, store
from smoljax.data import chat, chat_template
from smoljax.data import tokenizer as tokenizer_lib
from smoljax.data.chat_template import ChatTemplate
from smoljax.data.tokenizer import Tokenizer
from smoljax.inference import cache
from smoljax.model import lora


class Model(NamedTuple):
  """A trained model and what is needed to use it on text."""

  config: model.ModelConfig
  params: dict
  tokenizer: Tokenizer
  bos: bool  # documents began with BOS in training
  generation: Mapping[str, Any] = {}  # what its generation_config.json says; {} for a run
  folder: str = ''  # the Hugging Face folder that it was read from; '' for a run

  @property
  def eos_ids(self) -> tuple[int, ...]:
    """The ids that end a text, of which a chat model may have several."""
    return huggingface.eos_ids(self.generation, self.tokenizer)


def load_model(path: str, tokenizer_path: str = '') -> Model:
  """Reads a Hugging Face folder, or a run's workdir, `checkpoints` folder or one step of it.

  The tokenizer is the one in the folder, or the one the run was trained with, unless given. Which
  of its ids begin and end a document, a run has from its corpora.

  Raises:
    FileNotFoundError: no model or no tokenizer there; the message says what to give.
    ValueError: the tokenizer has ids that the model does not know.
  """
  return _model(path, tokenizer_path, *load_weights(path))


def load_for_generation(path: str, tokenizer_path: str = '', weights: str = '') -> Model:
  """`load_model` with parameters as of `inference.cache.prepare`, for generation alone.

  Read in the compute dtype; a Hugging Face folder layer by layer: memory holds the model so and
  one layer more. Of a run, it holds the model twice while layers are taken apart.

  Args:
    weights: '', or 'int8' or 'int4' for matrices in so many bits.
  """
  config, params, meta = _read_hf(path) if hf_folder.is_hf(path) else _read_run(path, computed=True)
  return _model(path, tokenizer_path, config, cache.prepare(config, params, weights), meta)


def _read_hf(path):
  return *huggingface.read_hf(path), {}


def _model(path, tokenizer_path, config, params, meta):
  text = tokenizer_lib.load(
    tokenizer_path or find_tokenizer(path), meta.get('special_tokens'),
    '' if tokenizer_path else meta.get('tokenizer_sha256', ''))
  require_vocabulary(config, text)
  found = of_run(config, params, text, meta)
  if not hf_folder.is_hf(path):
    return found
  return found._replace(generation=huggingface.generation(path), folder=path)


def of_run(
  config: model.ModelConfig, params: dict, text: Tokenizer, meta: Mapping[str, Any]
) -> Model:
  """The model of a run that says `meta` of itself in its checkpoints (store.load_meta)."""
  bos = meta.get('config', {}).get('tokenize', {}).get('bos', text.adds_bos)
  return Model(config, params, text, bos is not False and text.bos_id is not None)


def chat_template_of(loaded: Model) -> ChatTemplate:
  """The chat template beside the model's tokenizer; of a run without one, that of `data.chat`.

  Raises:
    ValueError: the model has none, so it is no chat model.
  """
  if found := chat_template.find(loaded.tokenizer):
    return found
  if loaded.folder:
    raise ValueError(f'{loaded.folder} has no chat template, neither chat_template.jinja nor in '
                     'tokenizer_config.json: it is no chat model; leave --mode out')
  chat.control_ids(loaded.tokenizer)
  return chat_template.ours()


def find_tokenizer(path: str) -> str:
  """The tokenizer file of the model at `path`, which `load_model` reads.

  It is in a Hugging Face folder itself; of a run it is where the run had it, or in the workdir,
  which may have been moved since. Raises FileNotFoundError if there is none, or no model.
  """
  names = ('tokenizer.json', 'tokenizer.model')
  here = pathlib.Path(os.path.abspath(path))
  if hf_folder.is_hf(path):
    hf_folder.check_links(path)
    found = next((str(here / n) for n in names if os.path.isfile(here / n)), '')
    if not found:
      raise FileNotFoundError(f'no {" or ".join(names)} in {path}: give one with --tokenizer')
    return found
  meta = store.load_meta(path)
  around = [d / n for d in (here, *here.parents[:2]) for n in names]
  places = [meta.get('tokenizer', ''), *around]
  found = next((str(p) for p in places if os.path.isfile(p)), '')
  if not found:
    raise FileNotFoundError(f'no tokenizer.model in {path} or above: give one with --tokenizer')
  return found


def load_weights(path: str) -> tuple[model.ModelConfig, dict, Mapping[str, Any]]:
  """`(config, params, meta)` of a Hugging Face folder (no meta), a run or one of its checkpoints.

  Raises FileNotFoundError where there is no model, and ValueError for one that is damaged.
  """
  if hf_folder.is_hf(path):
    return *huggingface.load_hf(path), {}
  return _read_run(path)


def load_config(path: str) -> model.ModelConfig:
  """The config that `load_weights` gives, without reading any weight. Raises as it."""
  if hf_folder.is_hf(path):
    return huggingface.load_config(path)
  return model.ModelConfig(**store.load_meta(path)['model'])


def _read_run(path, **how):
  config, params, meta = store.load_params(path, **how)
  with cache.no_mesh():  # they are on one device yet, whatever mesh a run has set
    finite = jax.device_get(_finite(params))
  for name, good in jax.tree_util.tree_leaves_with_path(finite):
    if not good:
      raise ValueError(f'{path}: {jax.tree_util.keystr(name)} holds values that are not finite: '
                       'its training diverged; take an earlier checkpoint')
  if config.lora_rank:  # of the model that its adapters were trained for
    where = meta['config']['train']['init_from']
    if json.loads(json.dumps(weights_fingerprint(where))) != meta['lora_base']:
      raise ValueError(f'{path}: its adapters are for other weights than {where} has now')
    base = load_weights(where)[1]
    with cache.no_mesh():
      params = lora.merged(config, jax.tree.map(cache.on_one_device, base), params)
    config = dataclasses.replace(config, lora_rank=0)
  return config, params, meta


@jax.jit
def _finite(params):
  """Of each leaf whether its values are finite: as one program, not two of each shape."""
  return jax.tree.map(lambda x: jnp.isfinite(x).all(), params)


def load_adapters(path: str) -> tuple[model.ModelConfig, dict, str]:
  """`(config, adapters, the model that they are for)` of a run that trained adapters.

  Raises FileNotFoundError where there is no run, ValueError for one of all parameters.
  """
  if hf_folder.is_hf(path):
    raise ValueError(f'{path} is a whole model: adapters are those of a run (model.lora_rank)')
  config, params, meta = store.load_params(path)
  if not config.lora_rank:
    raise ValueError(f'{path} has trained all parameters, no adapters (model.lora_rank)')
  return config, params, meta['config']['train']['init_from']


def weights_fingerprint(path: str) -> Any:
  """What tells the weights that `load_weights` would read from others, by their bytes."""
  return hf_folder.fingerprint(path) if hf_folder.is_hf(path) else store.find(path)[1]


def require_vocabulary(config: model.ModelConfig, text: Tokenizer) -> None:
  """Raises ValueError for a tokenizer with more ids than the model has rows of embedding."""
  if text.vocab_size > config.vocab_size:
    raise ValueError(
      f'{text.path} has {text.vocab_size} ids, the model knows {config.vocab_size}: '
      'give the tokenizer it was trained with'
    )
