"""A page laid out in Chromium: what is wider than it, and where lines go through words."""

import html
import json
import pathlib
import re
import shutil
import subprocess

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which(
  'google-chrome')

DARK = '@media screen and (prefers-color-scheme: dark)'
_SCRIPT = r"""
<script>
const width = document.documentElement.clientWidth, wide = [], crossed = [], cut = [], faint = [];
const name = e => e.tagName.toLowerCase() + '.' + (e.getAttribute('class') || '') + ' ' +
  (e.textContent || '').trim().slice(0, 40);
const scrolls = e => { for (; e; e = e.parentElement)
  if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX)) return true;
  return false; };
const main = document.querySelector('main') || document.body;
for (const e of main.querySelectorAll('*')) {
  const box = e.getBoundingClientRect();
  if (box.width && (box.right > width + 1 || box.left < -1) &&
      !scrolls(e.tagName === 'svg' ? e : e.parentElement))
    wide.push(name(e));
}
for (const e of main.querySelectorAll('.wide'))
  if (e.scrollWidth > e.clientWidth + 1) cut.push(name(e));
for (const svg of main.querySelectorAll('svg')) {
  const lines = [...svg.querySelectorAll('line.grid')];
  for (const t of svg.querySelectorAll('text')) {
    const box = t.getBoundingClientRect(), style = getComputedStyle(t);
    const grounded = style.paintOrder.startsWith('stroke');  // over lines drawn before
    for (const line of lines) {
      if (grounded && line.compareDocumentPosition(t) & Node.DOCUMENT_POSITION_FOLLOWING) continue;
      const l = line.getBoundingClientRect();
      if (l.left < box.right - 1 && l.right > box.left + 1 && l.top > box.top + 2 &&
          l.top < box.bottom - 2) crossed.push(name(t));
    }
  }
}
// WCAG's contrast of words with the ground that they stand on; words of a drawing stand on its own.
const light = c => c.match(/[\d.]+/g).slice(0, 3).map(x => x / 255).map(
  x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4).reduce(
  (sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
const clear = c => c === 'transparent' || /, 0\)$/.test(c);
const ground = e => { for (; e; e = e.parentElement) {
  const c = getComputedStyle(e).backgroundColor;
  if (!clear(c)) return c; }
  return 'rgb(255,255,255)'; };
for (const e of main.querySelectorAll('*')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
  const style = getComputedStyle(e), color = e.closest('svg') ? style.fill : style.color;
  if (!e.getClientRects().length || !/^rgb/.test(color) || style.visibility === 'hidden') continue;
  const [a, b] = [light(color), light(ground(e))].sort((a, b) => b - a);
  if ((a + .05) / (b + .05) < 3) faint.push(color + ' ' + name(e));
}
const page = document.documentElement.scrollWidth;
parent.postMessage({page, width, wide, crossed, cut, faint}, '*');
</script>
"""
# A frame, since a window of the browser has a least width.
_FRAME = """<!doctype html><body><pre id="found"></pre><script>
addEventListener('message', e => { const pre = document.getElementById('found');
  pre.textContent = JSON.stringify(e.data); });
</script><iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe></body>
"""


def layout(
  page: str | pathlib.Path, width: int, folder: pathlib.Path, dark: bool = False,
) -> dict:
  """{page: its width, width: the window's, wide: elements beyond it that nothing scrolls, crossed:
  words that a grid line goes through, cut: tables of which a part shows only by scrolling, faint:
  words that hardly differ from their ground}."""
  copy = folder / f'{width}.html'
  text = re.sub(r'<meta http-equiv="(?:Content-Security-Policy|refresh)"[^>]*>', '',
                pathlib.Path(page).read_text('utf-8'))
  if dark:
    assert DARK in text
    text = text.replace(DARK, '@media screen')
  framed = html.escape(text.replace('</body>', _SCRIPT + '</body>'))
  copy.write_text(_FRAME.replace('{width}', str(width)).replace('{page}', framed), 'utf-8')
  done = subprocess.run(
    [str(CHROMIUM), '--headless', '--no-sandbox', '--disable-gpu', '--window-size=1600,1200',
     '--virtual-time-budget=10000', f'--user-data-dir={folder}/profile', '--dump-dom',
     copy.as_uri()],
    capture_output=True, text=True, timeout=120)
  found = re.search(r'<pre id="found">({.*?)</pre>', done.stdout, re.S)
  assert found, done.stderr[-500:]
  return json.loads(html.unescape(found[1]))
