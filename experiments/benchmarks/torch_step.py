"""The train step in PyTorch, as its best users write it: what ours is measured against.

What torchtitan and nanotron do, for the shapes of smoljax: one fused product for q, k and v and one
for gate and up, blocks compiled one by one, attention masked by document (flex_attention on GPUs),
fp32 parameters with bf16 autocast, the fused AdamW, the loss over chunks of places with gradients
formed at once. `train_step --framework=torch` times it on the very batch that ours has;
tests/experiments/benchmarks/test_torch_step.py shows that loss and gradients are the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import (
  CheckpointPolicy,
  checkpoint,
  create_selective_checkpoint_contexts,
)

from smoljax.model.config import ModelConfig


class Block(nn.Module):
  """A pre-norm transformer block. x [B, T, D] → [B, T, D]."""

  def __init__(self, config: ModelConfig, rotates: bool):
    super().__init__()
    self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    self.head_dim, self.rotates = config.head_dim, rotates
    width, inner = config.embed_dim, config.num_heads * config.head_dim
    self.attention_norm = nn.RMSNorm(width, eps=config.norm_eps)
    self.qkv = nn.Linear(width, sum(self.heads) * config.head_dim, bias=False)
    self.out = nn.Linear(inner, width, bias=False)
    self.mlp_norm = nn.RMSNorm(width, eps=config.norm_eps)
    self.gate_up = nn.Linear(width, 2 * config.mlp_dim, bias=False)
    self.down = nn.Linear(config.mlp_dim, width, bias=False)
    for linear in (self.qkv, self.out, self.gate_up, self.down):
      nn.init.normal_(linear.weight, std=config.init_std)

  def forward(
    self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], mask: Any
  ) -> torch.Tensor:
    """The block on x [B, T, D]."""
    q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (-1, self.head_dim)).split(
      self.heads, 2)
    if self.rotates:
      q, k = _rotated(q, *rope), _rotated(k, *rope)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if isinstance(mask, torch.Tensor):
      attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    else:
      attended = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    x = x + self.out(attended.transpose(1, 2).flatten(2))
    gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
    return x + self.down(F.silu(gate) * up)


def _rotated(x, cos, sin):
  a, b = x.float().chunk(2, -1)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class Kept(nn.Module):
  """A block of which `all`, the `products` (and what attention gives) or the `inputs` wait for the
  backward pass; the rest is computed again."""

  def __init__(self, block: Block, keep: str):
    super().__init__()
    self.block, self.keep = block, keep

  def forward(
    self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], mask: Any
  ) -> torch.Tensor:
    """The block, keeping for the backward pass what `keep` says."""
    if self.keep == 'all':
      return self.block(x, rope, mask)
    context = {'context_fn': _products_saved} if self.keep == 'products' else {}
    return checkpoint(self.block, x, rope, mask, use_reentrant=False, preserve_rng_state=False,
                      **context)


def _products_saved():
  saved = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default,
           torch._higher_order_ops.flex_attention}
  return create_selective_checkpoint_contexts(
    lambda ctx, op, *args, **kwargs: CheckpointPolicy.MUST_SAVE if op in saved
    else CheckpointPolicy.PREFER_RECOMPUTE)


class Transformer(nn.Module):
  """A Llama-like model with tied embeddings: tokens [B, T] → hidden states [B · T, D].

  Raises ValueError where the config asks for what this model has not.
  """

  def __init__(self, config: ModelConfig, keep: str, compiled: bool):
    plain = dict(activation='swiglu', norm='rms', norm_position='pre', tie_embeddings=True,
                 attention_bias=False, qkv_bias=False, mlp_bias=False, qk_norm=False, mtp='none',
                 fp8=False, rope_scaling=None, sliding_window=0, logit_softcap=0.0,
                 attention_softcap=0.0)
    for name, value in plain.items():
      if getattr(config, name) != value:
        raise ValueError(f'the PyTorch step knows {name}={value!r} only')
    super().__init__()
    self.embed = nn.Embedding(config.vocab_size, config.embed_dim)
    nn.init.normal_(self.embed.weight, std=config.init_std)
    # A module for each block, so that the compiler shares one program between those that are alike.
    self.blocks = nn.ModuleList(
      Kept(Block(config, rotates), keep) for rotates in config.rope_flags)
    self.norm = nn.RMSNorm(config.embed_dim, eps=config.norm_eps)
    self.theta, self.head_dim = config.rope_theta, config.head_dim
    if compiled:
      torch._dynamo.config.recompile_limit = 32
      for block in self.blocks:
        block.compile(fullgraph=True)

  def forward(self, tokens: torch.Tensor, mask: Any) -> torch.Tensor:
    """Hidden states [B·T, D] after the final norm."""
    x = self.embed(tokens)
    if torch.is_autocast_enabled(x.device.type):
      x = x.to(torch.get_autocast_dtype(x.device.type))
    # Places in the row, not in the document: attention stays in one, and only differences count.
    frequencies = self.theta ** -(torch.arange(0, self.head_dim, 2, device=x.device)
                                  / self.head_dim)
    angles = torch.arange(x.shape[1], device=x.device)[:, None] * frequencies
    rope = angles.cos()[None, :, None], angles.sin()[None, :, None]
    for block in self.blocks:
      x = block(x, rope, mask)
    return self.norm(x).flatten(0, 1)


class ChunkedLoss(torch.autograd.Function):
  """Mean cross entropy of hidden states [N, D] with a tied head [V, D], `chunk` places at a time.

  Gradients are formed in the forward pass, so that logits exist once.
  """

  @staticmethod
  def forward(
    ctx: Any, hidden_ND: torch.Tensor, embed_VD: torch.Tensor, targets_N: torch.Tensor,
    weights_N: torch.Tensor, chunk: int, gradient: Callable,
  ) -> torch.Tensor:
    """The weighted mean loss, a chunk of places at a time, and its gradients with it."""
    head_VD, count = embed_VD.to(hidden_ND.dtype), weights_N.sum()
    d_hidden_ND, d_head_VD = torch.empty_like(hidden_ND), torch.zeros_like(embed_VD)
    total = torch.zeros((), device=hidden_ND.device)
    for part in torch.arange(len(hidden_ND)).split(chunk):
      part = slice(int(part[0]), int(part[-1]) + 1)
      h_CD = hidden_ND[part]
      loss, d_logits_CV = gradient(h_CD @ head_VD.T, targets_N[part], weights_N[part] / count)
      total += loss
      torch.mm(d_logits_CV, head_VD, out=d_hidden_ND[part])
      if h_CD.is_cuda and h_CD.dtype == torch.bfloat16:   # sums of products in fp32
        d_head_VD += torch.mm(d_logits_CV.T, h_CD, out_dtype=torch.float32)
      else:
        d_head_VD += d_logits_CV.T @ h_CD
    ctx.save_for_backward(d_hidden_ND, d_head_VD)
    return total

  @staticmethod
  def backward(ctx: Any, scale: torch.Tensor) -> tuple:
    """The gradients that the forward pass made, times the scale of the loss."""
    d_hidden_ND, d_head_VD = ctx.saved_tensors
    return d_hidden_ND * scale, d_head_VD * scale, None, None, None, None


def _loss_and_gradient(logits_CV, targets_C, weights_C):
  logits = logits_CV.float()
  log_z_C = torch.logsumexp(logits, -1)
  hit_CV = torch.arange(logits.shape[1], device=logits.device) == targets_C[:, None]
  loss = ((log_z_C - torch.where(hit_CV, logits, 0.0).sum(-1)) * weights_C).sum()
  gradient_CV = (torch.exp(logits - log_z_C[:, None]) - hit_CV.float()) * weights_C[:, None]
  return loss, gradient_CV.to(logits_CV.dtype)


def document_mask(segments_BT: torch.Tensor, block: bool) -> Any:
  """Causal attention within documents: flex_attention's block mask, or bool [B, 1, T, T]."""
  if not block:
    same = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device).tril()
  rows, length = segments_BT.shape

  def allowed(b, h, q, k):
    return (q >= k) & (segments_BT[b, q] == segments_BT[b, k])

  return create_block_mask(allowed, rows, None, length, length, device=segments_BT.device)


def make_loss(model: Transformer, batch: Mapping[str, np.ndarray], chunk: int, *, compiled: bool,
              dtype: torch.dtype) -> Callable[[], torch.Tensor]:
  """A function that runs the forward pass on a batch as `train_step.packed_batch` makes them."""
  device = model.embed.weight.device
  given = {name: torch.from_numpy(batch[name]).long().to(device)
           for name in ('inputs', 'targets', 'segment_ids')}
  mask = document_mask(given['segment_ids'], block=compiled)
  weights_N = (given['segment_ids'].flatten() > 0).float()
  gradient = torch.compile(_loss_and_gradient) if compiled else _loss_and_gradient

  def loss():
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
      hidden_ND = model(given['inputs'], mask)
    return ChunkedLoss.apply(hidden_ND, model.embed.weight, given['targets'].flatten(), weights_N,
                             chunk, gradient)

  return loss


def run(config: ModelConfig, batch: Mapping[str, np.ndarray], chunk: int, steps: int,
        learning_rate: float) -> tuple[float, list[float], int]:
  """Seconds of the first step and of each later one, and the most bytes of GPU memory held.

  On a GPU the step is timed once more as one CUDA graph, where memory allows it, and the faster of
  the two counts. Of `remat`, none and full mean what they do in ours; by any name the products are
  saved. Raises ValueError as `Transformer` does.
  """
  keep = {'none': 'all', 'full': 'inputs'}.get(config.remat, 'products')
  torch.manual_seed(0)
  torch.set_float32_matmul_precision('high')
  compiled = torch.cuda.is_available()
  device = torch.device('cuda' if compiled else 'cpu')
  with device:
    model = Transformer(config, keep, compiled)
  optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95),
                                weight_decay=0.1, fused=True, capturable=compiled)
  loss = make_loss(model, batch, chunk, compiled=compiled, dtype=getattr(torch, config.dtype))

  def step():
    optimizer.zero_grad(set_to_none=True)
    loss().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
    optimizer.step()

  def timed(step, number):
    seconds = []
    for _ in range(number):
      began = time.perf_counter()
      step()
      if compiled:
        torch.cuda.synchronize()
      seconds.append(time.perf_counter() - began)
    return seconds

  first, *seconds = timed(step, steps + 1)
  if compiled:
    try:
      seconds = min(seconds, timed(_captured(step), steps), key=np.median)
    except RuntimeError as error:  # what does not fit, or cannot be captured
      print(f'no CUDA graph: {str(error).splitlines()[0]}', file=sys.stderr)
  return first, seconds, torch.cuda.max_memory_allocated() if compiled else 0


def _captured(step):
  """The step as one CUDA graph: its kernels are launched at once."""
  torch.cuda.empty_cache()
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    step()
  return graph.replay
