"""Folders in object stores: what is waited out, what is one line, what is never taken for whole."""

import threading

import pytest
from helpers.stores import ill, store  # noqa: F401

from smoljax import files, object_store

URL = 'fake://bucket/a'


def test_a_store_that_fails_often_gives_what_it_was_given(store, tmp_path):
  (tmp_path / 'up/sub').mkdir(parents=True)
  sizes = {f'sub/{i}': 1000 * i for i in range(12)}
  for i, (name, size) in enumerate(sizes.items()):
    (tmp_path / 'up' / name).write_bytes(bytes([i]) * size)
  ill(store, 0.4)
  folder = object_store.Folder(URL)
  folder.send(tmp_path / 'up', sizes, 'x/')
  digests = {n: (s, files.sha256(tmp_path / 'up' / n)) for n, s in sizes.items()}
  while True:  # thrice damaged on the way is damaged; the rest has come
    try:
      folder.bring(digests, tmp_path / 'down', 'x/')
      break
    except ValueError:
      continue
  for name in sizes:
    assert (tmp_path / 'down' / name).read_bytes() == (tmp_path / 'up' / name).read_bytes()
  assert folder.names() == sorted('x/' + n for n in sizes)
  folder.remove(['x/' + n for n in sizes] + ['x/none'])
  assert folder.names() == []
  assert sum(n for kind, n in store.count.items() if ' ' in kind) > 10
  assert not list((tmp_path / 'down').rglob('*.part'))


def test_half_an_object_is_not_taken_for_whole(store, tmp_path):
  (tmp_path / 'f').write_bytes(b'a' * 100)
  folder = object_store.Folder(URL)
  folder.send(tmp_path, {'f': 100}, '')
  store.change('bucket/a/f', b'a' * 99 + b'b')
  with pytest.raises(ValueError, match=r'fake://bucket/a/f is damaged'):
    folder.bring({'f': (100, files.sha256(tmp_path / 'f'))}, tmp_path / 'down')
  assert store.count['GET'] == 3 and not list((tmp_path / 'down').iterdir())
  store.faults, store.random.choice = 1.0, lambda _: 'torn'
  with pytest.raises(OSError, match=r'stays away'):
    folder.write('g', b'12345678')


def test_what_stays_wrong_is_one_line_with_the_mend(store, tmp_path, monkeypatch):
  folder, asked = object_store.Folder(URL), lambda: store.count.copy()
  folder.require_writable()
  assert folder.names() == []
  before = asked()
  for status in (401, 403):
    store.deny = status
    with pytest.raises(PermissionError, match=f'{URL}: access denied: .*{status}.* give this'):
      folder.require_writable()
  store.deny = 503
  with pytest.raises(OSError, match=r'the store stays away: .*503'):
    folder.read('x')
  store.deny = 0
  assert asked() == before
  with pytest.raises(FileNotFoundError, match='no such bucket or folder'):
    object_store.Folder('fake://other/a').require_writable()
  with pytest.raises(FileNotFoundError):
    folder.read('x')
  assert store.count['GET'] == before.get('GET', 0) + 1  # not retried
  for url, words in {'nil://b/x': 'no object store is called nil://',
                     'adl://b/x': 'pip install adlfs'}.items():
    with pytest.raises(ValueError, match=words):
      object_store.Folder(url)

  class NoCredentialsError(Exception):
    """As botocore has it."""

  def unknown(*_):
    raise NoCredentialsError('Unable to locate credentials')

  monkeypatch.setattr(folder._fs, 'pipe_file', unknown)
  folder._scheme = 's3'
  with pytest.raises(PermissionError, match=r'credentials: log in \(aws configure'):
    folder.require_writable()


def test_a_request_that_is_never_answered_is_made_again(tmp_path, monkeypatch):
  monkeypatch.setattr(object_store, '_ANSWER', 0.1)
  monkeypatch.setattr(files, 'WAITS', (0.01,))
  folder, hangs = object_store.Folder(str(tmp_path)), [True]
  write = folder._fs.pipe_file

  def pipe_file(*args):
    if hangs and hangs.pop():
      threading.Event().wait()
    write(*args)

  monkeypatch.setattr(folder._fs, 'pipe_file', pipe_file)
  folder.write('a', b'x')
  assert folder.read('a') == b'x'
  hangs[:] = [True, True]
  with pytest.raises(OSError, match='the store stays away: no answer within 0 s'):
    folder.write('b', b'x')


def test_any_file_system_of_fsspec_will_do(tmp_path):
  (tmp_path / 'f').write_bytes(b'abc')
  for url in (str(tmp_path / 'there'), f'file://{tmp_path}/there2', 'memory://there'):
    folder = object_store.Folder(url)
    folder.require_writable()
    folder.send(tmp_path, {'f': 3}, 'x/y/')
    assert folder.names() == ['x/y/f'] and folder.read('x/y/f') == b'abc'
    folder.bring({'f': (3, '')}, tmp_path / url.replace('/', '_'), 'x/y/')
    folder.remove(['x/y/f'])
    assert folder.names() == []
