"""Builds one HTML site: README, these pages, the log, every command's help, and the docstrings.

  make docs        # → build/docs/index.html

Sphinx reads Markdown by MyST and docstrings by autodoc. What is generated lies beside the site, in
build/docs-source.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ('smoljax', 'data_beam', 'configs', 'experiments')
CONF = '''
import re, sys
sys.path.insert(0, {root!r})
project, author, html_theme = 'smoljax', 'The smoljax authors', 'furo'
extensions = ['myst_parser', 'sphinx.ext.autodoc']
html_static_path, html_css_files = ['_static'], ['site.css']
autodoc_default_options = {{'members': True, 'undoc-members': False}}
autodoc_mock_imports = ['lm_eval', 'torch', 'transformers', 'wandb', 'llama_cpp']
suppress_warnings = ['ref.python', 'myst.xref_missing']
autodoc_member_order, autodoc_typehints, myst_heading_anchors = 'bysource', 'signature', 3
# Docstrings are plain text with Markdown's backquotes, not reStructuredText.
def line_of(text):
  parts = re.split(r'`([^`\\s](?:[^`]*[^`\\s])?)`', text)
  return ''.join('\\\\ ``' + x + '``\\\\ ' if i % 2 else re.sub(r'([*_|`\\\\])', r'\\\\\\1', x)
                 for i, x in enumerate(parts))
def joined(lines):  # what was broken only where the line was full is one line again
  out, before = [], ''
  for line in lines:
    word = line.split(maxsplit=1)[:1]
    if word and before.strip() and len(before) + 1 + len(word[0]) > 94:  # 100, indented
      out[-1] += ' ' + line.strip()
    else:
      out.append(line)
    before = line
  return out
def plain(app, what, name, obj, options, lines):
  lines[:] = ['| ' + line_of(line) if line.strip() else '' for line in joined(lines)]
def setup(app):
  app.connect('autodoc-process-docstring', plain)
'''


def modules() -> dict[str, list[str]]:
  """Package → dotted names of its modules, but for commands: those have their help."""
  found = {}
  for package in PACKAGES:
    files = [p for p in sorted((ROOT / package).rglob('*.py'))
             if 'benchmarks' not in p.parts and "__name__ == '__main__'" not in p.read_text()]
    names = [p.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.') for p in files]
    found[package] = [n.removesuffix('.__init__') for n in names]
  return found


def commands() -> list[str]:
  """Names of what answers `python -m`, as docs/commands.md lists them."""
  text = (ROOT / 'docs' / 'commands.md').read_text()
  return list(dict.fromkeys(re.findall(r'^python -m (\S+)', text, re.M)))


def place(file: pathlib.Path) -> str:
  """Where a file of the repository stands in the site."""
  path = file.relative_to(ROOT).as_posix()
  return {'README.md': 'index.md'}.get(path) or re.sub('^(docs|experiments(?=/log/))/', '', path)


def linked(page: pathlib.Path, source: pathlib.Path) -> str:
  """A page's text, its links leading to the site's pages; other files that it links are copied, to
  be downloaded, and folders are named only."""
  def link(match: re.Match) -> str:
    label, path, anchor = match.groups('')
    file = (page.parent / path).resolve()
    if '://' in path or not file.exists():
      return match[0]
    if file.is_dir():
      return label[1:-1]
    if file.suffix != '.md':
      (source / place(file)).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(file, source / place(file))
    folder = (source / place(page)).parent
    return f'{label}({os.path.relpath(source / place(file), folder)}{anchor})'

  return re.sub(r'(\[[^\]]*\])\(([^)#\s]+)(#[^)]*)?\)', link, page.read_text())


def write_sources(source: pathlib.Path) -> None:
  """Everything that Sphinx reads, in one folder; links between the pages are kept."""
  shutil.rmtree(source, ignore_errors=True)
  for folder in ('help', 'reference', 'log', '_static'):
    (source / folder).mkdir(parents=True)
  (source / 'conf.py').write_text(CONF.format(root=str(ROOT)))
  # As in a terminal, but for what stands in columns.
  (source / '_static' / 'site.css').write_text(
    'pre { white-space: pre-wrap; } .highlight-text pre { white-space: pre; }')
  pages = [ROOT / 'AGENTS.md', *sorted((ROOT / 'docs').glob('*.md'))]
  logs = sorted((ROOT / 'experiments' / 'log').glob('*.md'))
  for page in (*pages, *logs):
    (source / place(page)).write_text(linked(page, source))
  tree = '\n\n```{{toctree}}\n:hidden:\n:caption: {}\n\n{}\n```\n'.format
  (source / 'index.md').write_text(linked(ROOT / 'README.md', source) + tree('Pages', '\n'.join(
    p.stem for p in pages)) + tree('Reference', 'help/index\nreference/index') + tree(
      'Log', '\n'.join(f'log/{p.stem}' for p in logs)))
  for name in commands():
    done = subprocess.run(
      [sys.executable, '-m', name, '--help'], cwd=ROOT, capture_output=True, text=True)
    text = (done.stdout or done.stderr).replace(str(ROOT), '.')
    (source / 'help' / f'{name}.md').write_text(f'# {name}\n\n````text\n{text}\n````\n')
  (source / 'help' / 'index.md').write_text('# Help of every command\n\n```{toctree}\n' + '\n'.join(
    commands()) + '\n```\n')
  for package, names in modules().items():
    body = '\n\n'.join(f'## {n}\n\n```{{eval-rst}}\n.. automodule:: {n}\n```' for n in names)
    (source / 'reference' / f'{package}.md').write_text(f'# {package}\n\n{body}\n')
  (source / 'reference' / 'index.md').write_text(
    '# Modules\n\n```{toctree}\n' + '\n'.join(PACKAGES) + '\n```\n')


def main() -> int:
  """Writes build/docs; returns Sphinx's status."""
  build = ROOT / 'build'
  write_sources(build / 'docs-source')
  done = subprocess.run(
    [sys.executable, '-m', 'sphinx', '-q', '-b', 'html', build / 'docs-source', build / 'docs'])
  if not done.returncode:
    print(f'the site is at {build / "docs" / "index.html"}')
  return done.returncode


if __name__ == '__main__':
  sys.exit(main())
