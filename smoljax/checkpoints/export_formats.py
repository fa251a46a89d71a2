"""A loaded model out of here: to a Hugging Face folder, or to a GGUF file for llama.cpp."""

import os
import tempfile
from types import ModuleType

from smoljax.checkpoints import huggingface, load
from smoljax.data import chat, tokenizer
from smoljax.model import without_mtp


def write_hf(
  model: load.Model,
  output: str,
  *,
  dtype: str = '',
  quantize: str = '',
  with_chat: bool = False,
  keep_mtp: bool = False,
) -> tuple[str, dict[str, str]]:
  """Writes `model` with its tokenizer, and chat template if asked, for `transformers` to load.

  Of a model that was read from such a folder, its generation settings and chat template go along.

  Args:
    output: the folder.
    dtype: of the stored weights, '' for what the model computes in; nothing else can be asked for
      with `quantize`.
    keep_mtp: modules of multi-token prediction too, for speculative decoding.
  Returns:
    The folder, and an empty dict: all tensors are stored as asked.
  Raises:
    FileExistsError: the folder holds files that no export wrote.
    ValueError: the architecture cannot be represented there, or the tokenizer lacks the control
      tokens of the chat template.
  """
  if quantize:
    raise ValueError(f'--quantize={quantize} goes with --format=gguf')
  settings = _generation(model, with_chat)
  config, params = model.config, model.params
  if not keep_mtp:
    config, params = without_mtp(config, params)
  with tempfile.TemporaryDirectory() as folder:
    tokenizer.to_hf(
      model.tokenizer,
      folder,
      bos=model.bos,
      max_length=model.config.max_seq_len,
      chat_template=chat.template() if with_chat else '',
    )
    huggingface.save_hf(config, params, output, dtype=dtype or model.config.dtype,
                        tokenizer_dir=folder, generation=settings,
                        **model.tokenizer.special._asdict())
  return output, {}


def _generation(model, with_chat):
  """What generation_config.json says of the model; an answer of a chat model ends its turn."""
  settings = dict(model.generation)
  here = os.path.dirname(os.path.abspath(model.tokenizer.path))
  if not model.folder or here != os.path.abspath(model.folder):  # ids mean other tokens here
    settings = {k: v for k, v in settings.items() if not k.endswith('_token_id')}
  if with_chat:
    end = chat.control_ids(model.tokenizer)[chat.END]
    ends = [end, *huggingface.eos_ids(settings, model.tokenizer)]
    settings['eos_token_id'] = list(dict.fromkeys(ends))
  return settings


def write_gguf(
  model: load.Model,
  output: str,
  *,
  dtype: str = '',
  quantize: str = '',
  with_chat: bool = False,
  keep_mtp: bool = False,
) -> tuple[str, dict[str, str]]:
  """Writes `model` with its tokenizer, and chat template if asked, as a GGUF file.

  Args:
    output: the file, or a folder for `model-KIND.gguf`.
    dtype, quantize: one of gguf.KINDS; `quantize` counts where both are given, and where neither
      is, it is what the model computes in.
    keep_mtp: must be False, as the runtime knows no modules of multi-token prediction.
  Returns:
    The file, and which tensors are stored in another type (see `gguf.save_gguf`).
  Raises:
    ValueError: the runtime cannot represent the architecture or the tokenizer.
    ImportError: the package gguf is not installed, or the kind needs the runtime.
  """
  gguf = require_gguf()
  if keep_mtp:
    raise ValueError('--mtp goes with --format=hf')
  kind = quantize or dtype or model.config.dtype
  path = output if output.endswith('.gguf') else os.path.join(output, f'model-{kind}.gguf')
  as_it_is = model.tokenizer.adds_bos is model.bos  # of a .model it is None
  with tempfile.TemporaryDirectory() as folder:
    ends = huggingface.eos_ids(_generation(model, with_chat), model.tokenizer)
    if with_chat or not as_it_is:
      tokenizer.to_hf(
        model.tokenizer, folder, bos=model.bos, max_length=model.config.max_seq_len,
        chat_template=chat.template() if with_chat else '',
      )  # fmt: skip
    else:
      folder = os.path.dirname(model.tokenizer.path)  # with what stands beside it
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    config, params = without_mtp(model.config, model.params)
    other = gguf.save_gguf(config, params, path, kind=kind, tokenizer_dir=folder,
                           special=model.tokenizer.special._asdict(), ends=ends)
  return path, other


def require_gguf() -> ModuleType:
  """smoljax.checkpoints.gguf; ImportError, saying what to install, where it lacks its package."""
  try:
    from smoljax.checkpoints import gguf  # here: whoever writes other formats can do without
  except ModuleNotFoundError as e:
    raise ImportError(f'GGUF files need the package {e.name}: pip install {e.name}') from e
  return gguf


def write_peft(checkpoint: str, output: str) -> str:
  """Writes the adapters that a run trained, alone, for `peft` to load; returns the folder.

  Raises as `load.load_adapters` and `huggingface.save_peft` do.
  """
  config, adapters, base = load.load_adapters(checkpoint)
  huggingface.save_peft(config, adapters, output, base)
  return output


# Name of --format → what writes it: `(model, output, …) -> (path, tensors stored in another type)`.
FORMATS = {'hf': write_hf, 'gguf': write_gguf}
