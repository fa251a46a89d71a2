"""Small PDFs of the kinds that text was lost from: the lines that must be there, and must not."""

import pathlib
import re

import pytest

from data_beam.pdf import text as pdf_text

CASES = sorted(pathlib.Path(__file__).parent.joinpath('cases').iterdir())
# Where white space tells, or the right answer is put in words: what must be there.
SPELLINGS = {
  '11-single-capitals': r'A B C D E F\b[\s\S]*vitamins A B C D E K',
  '20-superscripts': r'10\^23 atoms|10²³ atoms',
  '48-checkbox': r'(?i)(\[x\]|[☒☑✓✔]) *Married|Married:? *(\[x\]|[☒☑✓✔]|yes|on\b)',
}
NOT_YET = {
  '01-acroform-values': 'values of forms are not read',
  '02-freetext-annotation': 'annotations are not read',
  '03-layer-switched-off': 'layers that are switched off are read',
  '05-vertical-japanese-glyphs': 'upright lines of single letters are read across',
  '14-rotated-table-headers': 'turned text is dropped',
  '20-superscripts': 'are as if on the line',
  '22-white-text': 'is read',
  '26-portfolio': 'files inside are not read',
  '48-checkbox': 'the state is not read',
  '56-whole-page-upside-down': 'read with its words reversed',
  '70-letters-beyond-the-bmp': 'dropped as half a letter',
}


@pytest.fixture(scope='module')
def extractor():
  with pdf_text.Extractor() as e:
    yield e


def lines(path: pathlib.Path) -> list[str]:
  text = path.read_text() if path.exists() else ''
  return [squeeze(line) for line in text.splitlines() if line.strip()]


def squeeze(text: str) -> str:
  return re.sub(r'\s+', '', text)


@pytest.mark.parametrize('case', [pytest.param(case, id=case.name, marks=[
  pytest.mark.xfail(strict=True, reason=NOT_YET[case.name])] if case.name in NOT_YET else [])
  for case in CASES])
def test_all_lines_are_there_and_none_that_must_not_be(extractor, case):
  text = extractor.extract((case / 'in.pdf').read_bytes(), ocr='never').text
  expected, absent = lines(case / 'expected.txt'), lines(case / 'absent.txt')
  squeezed = squeeze(text)
  assert [line for line in absent if line in squeezed] == []
  if case.name in SPELLINGS:
    assert re.search(SPELLINGS[case.name], text)
  elif re.match('[A-Z]00[A-Z]01', expected[0]):      # the order in which lines begin
    assert expected[0] in ''.join(re.findall(r'\b(?:[A-Z]\d\d|Head0)\b', text))
  else:
    assert [line for line in expected if line not in squeezed] == []
