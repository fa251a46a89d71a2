"""Reading the code of this repository."""

import ast


def imports(path):
  """Dotted names of all that a file imports, `from a import b` as `a.b` and `a`."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {f'{node.module}.{a.name}' for a in node.names} | {node.module}
  return names
