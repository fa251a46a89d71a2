"""Main text by a model behind a server: what it gets, and what of its answers is believed."""

import pytest
from helpers.model import model  # noqa: F401 (a fixture)
from helpers.warc import article, html, page, write_warc

from data_beam import model_server, records
from data_beam.options import WebOptions
from data_beam.sources.readers import Page
from data_beam.web import pipeline as web
from data_beam.web import served

BODY = (b'<html><head><style>p {}</style><script>var x = "<p>hidden</p>"</script></head><body>'
        b'<!-- a note --><p style="color: red" class="a">The heron waits in the shallow water.</p>'
        b'<img src="data:image/png;base64,AAAA"></body></html>')


def result(body, where, content_type='text/html'):
  [found] = web.ask_model(Page('id', 'https://a.test/', '', 'x', 0, content_type, body),
                          where['url'], where['model'])
  return found


def test_the_model_reads_markup_without_scripts_and_its_answer_is_the_text(model):
  model.text = '```markdown\n# The heron\n\nIt waits in the shallow water.\n```'
  document = result(BODY, model.where)
  assert document.text == '# The heron\n\nIt waits in the shallow water.'
  assert document.metadata['extractor'] == 'reader'
  [asked] = model.asked
  assert asked['messages'][0]['content'] == (
    f'{served.PROMPT}\n```html\n<html><head></head><body>'
    '<p class="a">The heron waits in the shallow water.</p></body></html>\n```')
  assert result(b'Plain words.', model.where, 'text/plain').text == 'Plain words.'
  assert len(model.asked) == 1


@pytest.mark.parametrize(('text', 'ended', 'status', 'reason'), [
  ('The heron waits', 'length', 200, 'model_cut'), ('', 'stop', 200, 'no_text'),
  ('The heron waits\n' * 4, 'stop', 200, 'model_repeats'), ('x', 'stop', 400, 'model_failed'),
  ('Sorry, this page is about something else altogether', 'stop', 200, 'made_up')])
def test_what_is_not_believed(text, ended, status, reason, model, monkeypatch):
  monkeypatch.setattr(model_server, '_failures', 0)
  model.text, model.ended, model.status = text, ended, status
  reject = result(BODY, model.where)
  assert reject[1:] == ('extract', reason) and not reject.document.text


def test_a_crawl_through_a_model(model, tmp_path):
  write_warc(tmp_path / 'x.warc.gz', [html('https://a.test/1', page(article(1)))])
  model.text = '\n\n'.join(article(1))
  path = web.run([str(tmp_path / 'x.warc.gz')], str(tmp_path), options=WebOptions(
    html_server=model.where['url'], html_model='reader'))
  [row] = records.read_corpus(path)
  assert row['text'].split() == model.text.split() and row['metadata']['extractor'] == 'reader'
  with pytest.raises(ValueError, match='give both'):
    WebOptions(html_server='http://localhost:1')
