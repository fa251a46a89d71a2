"""What a wheel holds: every module, every data file, the licence; and that it works from there."""

import subprocess
import sys
import zipfile

import pytest
import yaml
from conftest import REPOSITORY

import data_beam
import smoljax

PACKAGES = ('smoljax', 'data_beam', 'experiments', 'configs')
# Folders that only a checkout has a use for: documents, and scripts that send this very commit.
LEFT_OUT = ('experiments/log/', 'experiments/cloud/')

BUILD = 'import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])'


def tracked(*folders) -> list[str]:
  """Files of the repository as they are now: git's list, without those that are gone."""
  listed = subprocess.run(
    ['git', 'ls-files', '--cached', '--others', '--exclude-standard', *folders],
    cwd=REPOSITORY, capture_output=True, text=True, check=True,
  )  # fmt: skip
  return [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> zipfile.ZipFile:
  """Built offline from a copy, so that no older build's files are in it and none stay here."""
  source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
  for name in tracked():
    if name.startswith(PACKAGES) or '/' not in name:
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      (source / name).write_bytes((REPOSITORY / name).read_bytes())
  subprocess.run(
    [sys.executable, '-c', BUILD, out], cwd=source, check=True, capture_output=True, text=True
  )
  [path] = out.glob('*.whl')
  return zipfile.ZipFile(path)


def test_every_module_and_data_file_is_in_the_wheel(wheel):
  there = {n for n in wheel.namelist() if '.dist-info/' not in n}
  wanted = {n for n in tracked(*PACKAGES) if not n.startswith(LEFT_OUT)}
  assert there == wanted
  assert {'configs/smollm3_mixtures.json', 'smoljax/py.typed', 'data_beam/py.typed'} <= there


def test_the_wheel_has_the_licence_and_what_it_requires(wheel):
  [info] = {n.split('/')[0] for n in wheel.namelist() if '.dist-info/' in n}
  assert info == f'smoljax-{smoljax.__version__}.dist-info'
  assert wheel.read(f'{info}/licenses/LICENSE') == (REPOSITORY / 'LICENSE').read_bytes()
  metadata = wheel.read(f'{info}/METADATA').decode()
  assert 'License-Expression: Apache-2.0' in metadata and 'Requires-Dist: jax' in metadata


def test_a_config_with_a_data_file_builds_from_the_wheel(wheel, tmp_path):
  wheel.extractall(tmp_path / 'site')
  code = "from configs import smollm3 as s; s.get_config('mixture=published'); print(s.__file__)"
  result = subprocess.run(
    [sys.executable, '-P', '-c', code],
    cwd=tmp_path, env={'PYTHONPATH': str(tmp_path / 'site')}, capture_output=True, text=True,
  )  # fmt: skip
  assert result.stdout.startswith(str(tmp_path / 'site')), result.stderr


def test_versions_agree():
  citation = yaml.safe_load((REPOSITORY / 'CITATION.cff').read_text())
  assert citation['version'] == smoljax.__version__ == data_beam.__version__
  assert citation['cff-version'] == '1.2.0' and citation['license'] == 'Apache-2.0'
  assert {'title', 'message', 'authors'} <= set(citation)
