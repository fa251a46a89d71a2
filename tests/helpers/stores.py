"""A fake object store in this process, at fake://bucket/; its server is there to be made ill."""

import threading

import pytest

from experiments.benchmarks import fake_store
from smoljax import files


@pytest.fixture
def store(monkeypatch, tmp_path):
  """One that is well, until a test says otherwise."""
  monkeypatch.setattr(files, 'WAITS', (0.001,) * 8)
  monkeypatch.setenv('SMOLJAX_CACHE', str(tmp_path / 'cache'))
  server = fake_store.Server()
  server.late = 0.01
  threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
  fake_store.know(server.port)
  yield server
  server.shutdown()
  server.server_close()


def ill(server, faults=0.3, seed=0):
  """Lets that share of the requests go wrong from now on."""
  server.faults, server.random = faults, fake_store.random.Random(seed)
