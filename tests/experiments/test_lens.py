"""The lens page: its numbers are the model's, its markup is ours alone."""

import base64
import dataclasses
import html.parser
import re
import zlib

import jax
import numpy as np
import pytest

from experiments import lens
from smoljax import model
from smoljax.checkpoints import load
from smoljax.data import tokenizer
from smoljax.report import lens_page

HOSTILE = 'the value <script>alert(1)</script> "of" the list'


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  config = model.ModelConfig(
    vocab_size=300, num_layers=4, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
    max_seq_len=256, init_std=0.3, logit_softcap=4.0, sliding_window=6,
  )  # fmt: skip
  path = str(tmp_path_factory.mktemp('lens') / 'tokenizer.model')
  texts = ['the value of the list is returned\n' * 5, 'def value(list):\n    return list\n' * 5]
  tokenizer.train(texts, path, vocab_size=300)
  return load.Model(config, model.init(config, jax.random.key(0)), tokenizer.load(path), True)


def test_the_last_row_is_what_the_model_predicts(loaded):
  config = dataclasses.replace(loaded.config, dtype='float32')
  tokens = [1, 5, 9, 5, 200, 7]
  seen = lens.logit_lens(config, loaded.params, tokens)
  logits_TV = model.apply(config, loaded.params, np.array([tokens])).logits[0]
  probs_TV = np.asarray(jax.nn.softmax(logits_TV))
  np.testing.assert_array_equal(seen.top_RT[-1], probs_TV.argmax(-1))
  np.testing.assert_allclose(seen.prob_RT[-1], probs_TV.max(-1), rtol=1e-4)
  np.testing.assert_allclose(
    seen.entropy_RT[-1], -(probs_TV * np.log(probs_TV)).sum(-1), rtol=1e-4)
  assert seen.top_RT.shape == (5, 6) and seen.attention_LNTS.shape == (4, 4, 6, 6)
  # Before any layer a tied head sees the token's own embedding, the nearest of all to itself.
  np.testing.assert_array_equal(seen.top_RT[0], tokens)


def test_the_page_stands_alone(loaded, tmp_path):
  output = tmp_path / 'new' / 'lens.html'
  lens.write(loaded, HOSTILE, str(output))
  text = output.read_text()
  tags = []
  parser = html.parser.HTMLParser()
  parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))
  parser.feed(text)
  assert not {'script', 'link', 'iframe'} & {tag for tag, _ in tags}
  assert all(a['src'].startswith('data:image/png') for tag, a in tags if tag == 'img')
  assert 'http' not in re.sub(r'http-equiv|data:[^"]*', '', text) and '&lt;script&gt;' in text
  assert sum(tag == 'img' for tag, _ in tags) == 16
  assert 'Layer 3: no positions (NoPE), window of 6' in text and 'Layer 0: rotary' in text


def test_a_map_is_the_weights():
  weights = np.array([[1.0, 0.0], [0.25, 0.75]], np.float32)
  data = base64.b64decode(lens_page._png(weights).partition(',')[2])
  start = data.index(b'IDAT') + 4
  rows = np.frombuffer(zlib.decompressobj().decompress(data[start:]), np.uint8).reshape(2, 9)
  np.testing.assert_allclose(rows[:, 4::4] / 255, np.sqrt(weights), atol=3e-3)


def test_prompts_that_cannot_be_shown(loaded, tmp_path):
  with pytest.raises(ValueError, match=r'the prompt has \d+ tokens: shorten it to 128'):
    lens.write(loaded, 'the value ' * 200, str(tmp_path / 'x.html'))
  with pytest.raises(ValueError, match='the prompt is empty'):
    lens.write(loaded._replace(bos=False), '', str(tmp_path / 'x.html'))
