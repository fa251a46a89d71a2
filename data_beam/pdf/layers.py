"""What pdfium does not look at: layers that are switched off, and the files of a portfolio.

A file that has such is written anew: without what its layers hide (ISO 32000-1, 8.11), and with the
pages of the PDFs within it after its own. For a child process (see text).
"""

import io
from collections.abc import Iterator
from typing import Any

import pikepdf

MAX_BYTES = 4 << 20          # of one content stream, as it is parsed by Python
MAX_FILES = 100              # of a portfolio
MAX_DEPTH = 8                # of forms within forms, and of expressions

_FILLS = frozenset({'S', 's', 'f', 'F', 'f*', 'B', 'B*', 'b', 'b*'})
_SHOWS = frozenset({'Tj', 'TJ', 'Do', 'sh', 'INLINE IMAGE'})


def as_seen(body: bytes, unseen: bool = False) -> bytes | None:
  """The file written anew, or None where it is to be read as it is.

  Args:
    body: the whole file.
    unseen: keep what layers hide.
  """
  try:
    with pikepdf.open(io.BytesIO(body)) as pdf:
      changed = False if unseen else _take_hidden(pdf)
      changed |= _add_files(pdf)
      if not changed:
        return None
      out = io.BytesIO()
      pdf.save(out)
      return out.getvalue()
  except (pikepdf.PdfError, pikepdf.PasswordError, ValueError, TypeError, KeyError, AttributeError,
          RuntimeError):
    return None


# Layers: optional content, in the words of PDF.

class _Layers:
  """Which are hidden when a document is opened."""

  def __init__(self, properties: Any):
    config = properties.get('/D', {})
    groups = {_id(group) for group in properties.get('/OCGs', [])}
    self.off = set(groups) if str(config.get('/BaseState', '')) == '/OFF' else set()
    self.off |= {_id(group) for group in config.get('/OFF', [])}
    if str(config.get('/BaseState', '')) == '/OFF':
      self.off -= {_id(group) for group in config.get('/ON', [])}
    for rule in config.get('/AS', []):      # what a viewer does by itself
      if str(rule.get('/Event', '')) == '/View' and '/View' in map(str, rule.get('/Category', [])):
        for group in rule.get('/OCGs', []):
          state = str(group.get('/Usage', {}).get('/View', {}).get('/ViewState', ''))
          if state == '/OFF':
            self.off.add(_id(group))
          elif state == '/ON':
            self.off.discard(_id(group))

  def hides(self, content: Any, depth: int = 0) -> bool:
    """Whether content that belongs to a group, or to a set of groups with a policy, is hidden."""
    if content is None or depth > MAX_DEPTH:
      return False
    if str(content.get('/Type', '')) != '/OCMD':
      return _id(content) in self.off
    if '/VE' in content:
      return not self._true(content['/VE'], depth + 1)
    members = content.get('/OCGs')
    members = list(members) if isinstance(members, pikepdf.Array) else [members]
    off = [self.hides(member, depth + 1) for member in members if member is not None]
    policy = str(content.get('/P', '/AnyOn'))
    seen = {'/AllOn': not any(off), '/AnyOff': any(off), '/AllOff': all(off)}.get(
      policy, not all(off))
    return bool(off) and not seen

  def _true(self, expression: Any, depth: int) -> bool:
    if depth > MAX_DEPTH or not isinstance(expression, pikepdf.Array):
      return not self.hides(expression, depth)
    operator, *operands = expression
    values = [self._true(operand, depth + 1) for operand in operands]
    if str(operator) == '/Not':
      return not any(values)
    return all(values) if str(operator) == '/And' else any(values)


def _id(group: Any) -> Any:
  """What tells a group from others: its number, or where it has none its name."""
  return group.objgen if group.objgen[0] else str(group.get('/Name', ''))


def _take_hidden(pdf: Any) -> bool:
  """Takes out of the pages what layers hide; whether there was any."""
  layers = _Layers(pdf.Root.get('/OCProperties', {}))
  if not layers.off:
    return False
  done: dict[Any, bool] = {}
  changed = False
  for page in pdf.pages:
    annotations = page.obj.get('/Annots', [])
    kept = [note for note in annotations if not layers.hides(note.get('/OC'))]
    if len(kept) < len(annotations):
      page.obj['/Annots'] = kept
      changed = True
    data = _shown(page.obj, page.obj.get('/Resources', page.resources), layers, done, 0)
    if data is not None:
      page.obj['/Contents'] = pdf.make_stream(data)
      changed = True
    changed |= any(done.values())
  return changed


def _shown(holder: Any, resources: Any, layers: _Layers, done: dict[Any, bool],
           depth: int) -> bytes | None:
  """A page's or a form's content without what is hidden; None where there is none of that. The
  forms that it draws are changed, once each."""
  named = {name: content for name, content in resources.get('/Properties', {}).items()
           if layers.hides(content)}
  hidden, drawn = set(), resources.get('/XObject', {})
  for name, item in drawn.items():
    if layers.hides(item.get('/OC')):
      hidden.add(name)
    elif str(item.get('/Subtype', '')) == '/Form' and depth < MAX_DEPTH and (
        item.objgen not in done):
      done[item.objgen] = False
      data = _shown(item, item.get('/Resources', resources), layers, done, depth + 1)
      if data is not None:
        item.write(data)
        done[item.objgen] = True
  if not named and not hidden:
    return None
  try:
    instructions = pikepdf.parse_content_stream(holder)
  except pikepdf.PdfError:
    return None
  return pikepdf.unparse_content_stream(list(_painted(instructions, named, hidden)))


def _painted(instructions: Any, named: dict[str, Any], hidden: set[str]) -> Iterator[Any]:
  """Instructions, those that paint something hidden left out or replaced by what they do beside."""
  nested: list[bool] = []                   # marked contents, and whether each is hidden
  for instruction in instructions:
    operands, operator = instruction.operands, str(instruction.operator)
    if operator in ('BMC', 'BDC'):
      nested.append(operator == 'BDC' and str(operands[0]) == '/OC' and str(operands[1]) in named)
    elif operator == 'EMC' and nested:
      nested.pop()
    elif operator == 'Do' and str(operands[0]) in hidden:
      continue
    elif any(nested):
      if operator in _SHOWS:
        continue
      if operator in ("'", '"'):            # these begin a line, too
        instruction = pikepdf.ContentStreamInstruction([], pikepdf.Operator('T*'))
      elif operator in _FILLS:
        instruction = pikepdf.ContentStreamInstruction([], pikepdf.Operator('n'))
    yield instruction


# Portfolios.

def _add_files(pdf: Any) -> bool:
  """Adds the pages of the PDFs in a portfolio to its own; whether there were any."""
  if '/Collection' not in pdf.Root:
    return False
  added = False
  for name in sorted(pdf.attachments)[:MAX_FILES]:
    data = pdf.attachments[name].get_file().read_bytes()
    if b'%PDF-' not in data[:1024]:
      continue
    try:
      with pikepdf.open(io.BytesIO(data)) as inner:
        pdf.pages.extend(inner.pages)
        added = True
    except (pikepdf.PdfError, pikepdf.PasswordError):
      continue                              # damaged, or locked by itself: the others are good
  return added
