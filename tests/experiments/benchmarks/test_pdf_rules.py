"""The rules of olmOCR-bench: our verdicts are those of its own code (olmocr f7cfe4c, tests.py)."""

import pytest

from experiments.benchmarks import pdf_rules

PAGE = '''Head of the page

The “quick” brown fox — it jumped over the **lazy** dog.

| Source | Bytes | Words |
| --- | --- | --- |
| Wiki | 12.2B | 3.71T |
| Books | 11.8B | 3.32T |

<table><thead><tr><th rowspan="2">Task</th><th colspan="2">ReACT</th></tr>
<tr><th>Procedure</th><th>Completion</th></tr></thead>
<tr><td>Easy</td><td>0.87</td><td>0.20</td></tr>
<tr><td>Normal</td><td>0.88</td><td>0.40</td></tr></table>

The footer of the page 12'''

RULES = [
  (True, dict(type='present', text='The "quick" brown fox - it jumped')),
  (False, dict(type='present', text='the QUICK', case_sensitive=False)),
  (True, dict(type='present', text='"QUICK"', case_sensitive=False)),
  (False, dict(type='present', text='quikc brown fxo jumped', max_diffs=3)),
  (True, dict(type='present', text='quick brown fix - it jumqed over', max_diffs=4)),
  (False, dict(type='present', text='quick brown fix - it jumqed over', max_diffs=1)),
  (False, dict(type='absent', text='footer of the page')),
  (False, dict(type='absent', text='12', last_n=10)),
  (True, dict(type='absent', text='12', first_n=10)),
  (True, dict(type='present', text='Head', first_n=10, last_n=4)),
  (True, dict(type='order', before='Head of the page', after='lazy dog')),
  (False, dict(type='order', before='lazy dog', after='Head of the page')),
  (True, dict(type='order', before='lazzy dog', after='footer of teh page', max_diffs=2)),
  (False, dict(type='order', before='lazzy cat', after='footer', max_diffs=1)),
  (True, dict(type='table', cell='11.8B', up='12.2B', right='3.32T')),
  (False, dict(type='table', cell='11.8B', down='12.2B')),
  (True, dict(type='table', cell='3.32T', top_heading='Words', left_heading='Books')),
  (False, dict(type='table', cell='3.32T', top_heading='Bytes')),
  (True, dict(type='table', cell='0.87', top_heading='ReACT')),
  (True, dict(type='table', cell='0.88', top_heading='Procedure')),
  (False, dict(type='table', cell='0.40', top_heading='Procedure')),
  (True, dict(type='table', cell='0.40', left='0.88', up='0.20', left_heading='Normal')),
  (True, dict(type='table', cell='ReACT', left='Task', down='Completion')),
  (True, dict(type='table', cell='Procedure', left='Task')),
  (True, dict(type='table', cell='Normol', max_diffs=1, right='0.88')),
  (True, dict(type='baseline')),
  (False, dict(type='baseline', max_length=10))]


@pytest.mark.parametrize(('verdict', 'rule'), RULES, ids=str)
def test_rules(verdict, rule):
  assert pdf_rules.holds(rule, PAGE) == verdict


@pytest.mark.parametrize(('verdict', 'page'), [
  (False, ''), (False, '漢字'), (False, 'aaab' * 60),
  (True, 'aaab' * 60 + '\n'), (False, 'x ' * 40)])
def test_baseline(verdict, page):
  assert pdf_rules.holds({'type': 'baseline'}, page) == verdict


def test_formulas():
  page = r'A \(x^{2}\) and $$\left( a + b \right)$$ end.'
  for formula, found in (('x^{2}', True), ('(a+b)', True), ('x^{3}', False)):
    assert pdf_rules.holds({'type': 'math', 'math': formula}, page) == found
  with pytest.raises(ValueError, match='unknown kind'):
    pdf_rules.holds({'type': 'colour'}, page)
