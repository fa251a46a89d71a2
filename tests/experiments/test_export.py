"""The command that exports."""

import pytest
from absl.testing import flagsaver

from experiments import export


@pytest.mark.parametrize('flag', [{'dtype': 'bfloat16'}, {'quantize': 'q8_0'}, {'chat': True},
                                  {'mtp': True}, {'tokenizer': 'a.model'}])
def test_what_adapters_alone_have_not_is_refused(flag, tmp_path, capsys):
  given = {'checkpoint': str(tmp_path), 'output': str(tmp_path / 'out'), 'format': 'peft'} | flag
  with flagsaver.flagsaver(**given), pytest.raises(SystemExit, match='2'):
    export.main([])
  assert f'--{next(iter(flag))} is of a whole model' in capsys.readouterr().err
