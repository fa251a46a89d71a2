"""The page of the logit lens."""

import base64
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from smoljax.report import charts


class Lens(NamedTuple):
  """Index 0 of R = L + 1 is the embedding, r is the stream after layer r - 1."""

  top_RT: np.ndarray  # likeliest next token after place t
  prob_RT: np.ndarray  # its probability
  entropy_RT: np.ndarray  # nats
  attention_LNTS: np.ndarray  # fp32, rows sum to 1


CSS = '''
main { max-width: 1400px; }
table.lens td, table.lens th { padding: .28rem .5rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-size: .84rem; }
table.lens td:not(:first-child) { min-width: 5.6rem;
  background: color-mix(in srgb, var(--accent-1) calc(var(--p) * 62%), transparent); }
table.lens td b { font-weight: 600; display: block; max-width: 9rem; overflow: hidden;
  text-overflow: ellipsis; }
table.lens td b.same { text-decoration: underline; text-underline-offset: 3px; }
table.lens td small { color: inherit; opacity: .75; }
table.lens td:first-child, table.lens th:first-child { position: sticky; left: 0;
  background: var(--paper); color: var(--muted); }
table.lens th { color: var(--ink); font-weight: 600; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .8rem; }
.maps figure { margin: 0; }
.maps img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; background: var(--wash);
  border: 1px solid var(--line); display: block; }
.maps figcaption { font-size: .78rem; color: var(--muted); }
'''


def page(
  config: Any, prompt: str, read: list[str], pieces: list[list[str]], lens: Lens
) -> str:
  """The HTML page; `read` spells the tokens of the prompt, `pieces[r][t]` `lens.top_RT[r, t]`."""
  R, T = lens.top_RT.shape
  names = ['embedding', *(f'layer {i}' for i in range(R - 1))]
  rows = []
  for r in reversed(range(R)):
    cells = [names[r]]
    for t in range(T):
      same = ' class="same"' if lens.top_RT[r, t] == lens.top_RT[-1, t] else ''
      p, entropy = float(lens.prob_RT[r, t]), float(lens.entropy_RT[r, t])
      cells.append((p, f'<b{same}>{charts.text(pieces[r][t])}</b>'
                       f'<small>{charts.percent(p)} · {entropy:.2f}</small>'))
    rows.append(f'<tr><td>{cells[0]}</td>' + ''.join(
      f'<td style="--p:{p:.3f}">{cell}</td>' for p, cell in cells[1:]) + '</tr>')
  head = ''.join(f'<th>{charts.text(token)}</th>' for token in ('after', *read))
  table = f'<div class="wide"><table class="lens"><tr>{head}</tr>{"".join(rows)}</table></div>'

  series = lambda label, values_R, color: charts.Series(
    label, [(r, float(v)) for r, v in enumerate(values_R)], color)
  agree_R = (lens.top_RT == lens.top_RT[-1]).mean(axis=1)
  curves = '<div class="grid">' + charts.figure(
    'Entropy, mean over the prompt',
    charts.lines([series('', lens.entropy_RT.mean(axis=1), 0)], label='entropy by layer',
                 y_label='nats', x_label='layers read', from_zero=True), '',
  ) + charts.figure(
    'Places where the likeliest token is already the last layer’s',
    charts.lines([series('', agree_R, 1)], label='agreement by layer', y_label='share of places',
                 x_label='layers read', from_zero=True, percent=True), '') + '</div>'

  maps = []
  for layer, weights_NTS in enumerate(lens.attention_LNTS):
    kind = 'rotary positions' if config.rope_flags[layer] else 'no positions (NoPE)'
    if config.windows[layer]:
      kind += f', window of {config.windows[layer]}'
    figures = []
    for n, weights_TS in enumerate(weights_NTS):
      first = float(weights_TS[:, 0].mean())
      figures.append(
        f'<figure><img alt="attention of head {n} in layer {layer}" src="{_png(weights_TS)}">'
        f'<figcaption>head {n} · {charts.percent(first, 0)} on the first token</figcaption>'
        '</figure>')
    maps.append(f'<h3>Layer {layer}: {kind}</h3><div class="maps">{"".join(figures)}</div>')

  body = (
    '<header><p class="kicker">smoljax · lens</p>'
    f'<h1>{charts.excerpt(prompt, 160)}</h1><p class="lede">{T} tokens through {R - 1} '
    f'layers of {config.num_heads} heads; {charts.compact(config.num_params())} parameters. The '
    f'last layer’s next token: <b>{charts.text(pieces[-1][-1])}</b>, '
    f'{charts.percent(float(lens.prob_RT[-1, -1]))}.</p></header>'
    + charts.section(
      'lens', 'Logit lens', '<p class="note">Each column is a place of the prompt, each row the '
      'residual stream after a layer, read as if the model ended there: likeliest next token, its '
      'probability, and the entropy in nats. Underlined: what the last layer says too.</p>',
      table, curves)
    + charts.section(
      'attention', 'Attention', '<p class="note">A row of a map is a place that reads, a column a '
      'place that is read; first token at the top left. The darker the more weight (its square '
      'root, so that faint ones show).</p>', *maps))
  return charts.page('smoljax lens', body).replace('</style>', CSS + '</style>', 1)


def _png(weights_TS: np.ndarray) -> str:
  """A data URI: one pixel a weight, of one ink whose opacity is the weight's square root."""
  T, S = weights_TS.shape
  pixels = np.empty((T, S, 4), np.uint8)
  pixels[..., :3] = (37, 99, 168)
  pixels[..., 3] = np.round(255 * np.sqrt(np.clip(weights_TS, 0, 1)))
  lines = np.concatenate([np.zeros((T, 1), np.uint8), pixels.reshape(T, -1)], axis=1)  # filter 0

  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  data = (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', S, T, 8, 6, 0, 0, 0))
          + chunk(b'IDAT', zlib.compress(lines.tobytes(), 9)) + chunk(b'IEND', b''))
  return 'data:image/png;base64,' + base64.b64encode(data).decode()
