"""PDFs of plain prose."""

import io
import random

from reportlab.pdfgen import canvas

NOUNS = """river valley harbour garden library painter engineer teacher winter machine letter
bridge island market village student captain doctor forest kitchen railway museum mountain farmer
window story journey answer question morning"""
VERBS = """describes follows remembers crosses repairs studies admires avoids builds paints leaves
visits watches explains measures forgets"""
ADJECTIVES = """old quiet northern narrow famous broken early distant careful green heavy modern
silent wooden curious familiar"""

def story(seed: int, sentences: int = 40) -> list[str]:
  rng = random.Random(seed)

  def noun():
    return rng.choice(NOUNS.split())

  def adjective():
    return rng.choice(ADJECTIVES.split())

  def verb():
    return rng.choice(VERBS.split())

  return [f'The {adjective()} {noun()} {verb()} the {noun()} that a {adjective()} {noun()} '
          f'{verb()} before {noun()} and {noun()} meet.' for _ in range(sentences)]


def make(lines, per_page: int = 25, **options) -> bytes:
  out = io.BytesIO()
  page = canvas.Canvas(out, invariant=1, **options)
  for start in range(0, len(lines), per_page):
    page.setFont('Times-Roman', 10)
    for i, line in enumerate(lines[start:start + per_page]):
      page.drawString(60, 760 - 14 * i, line)
    page.showPage()
  page.save()
  return out.getvalue()
