"""Words as spaCy's blank tokenizers have them (spaCy 3.8, MIT), by our own code, many times faster.

The rules of FineWeb and FineWeb-2 were tuned with these words: shares of words, n-grams and MinHash
shingles follow datatrove's only if the words do. Two facts make it fast. A word never spans white
space, so what a *piece* (a run without white space) consists of is worked out once and remembered;
and a text has few pieces that were not seen before. Everything that is asked about a text is then a
look-up per piece and arithmetic on arrays: one pass serves all filters.

Known differences: a piece is cut every 1,000 characters, so that time stays linear; letters and
symbols are those of Python's Unicode tables where spaCy has lists of its own; scripts without
spaces between words have no dictionary here (see Unspaced).
"""

import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import regex

# --- characters ------------------------------------------------------------------------------

# spaCy's letters: Latin, Cyrillic, Greek; scripts without case by whole blocks.
_CASED = ('A-Za-zＡ-Ｚａ-ｚÀ-ÖØ-öø-ƿǄ-ɏ\u0250-\u02afⱠ-ⱻⱾⱿꜢ-ꝯꝱ-ꞇꞋ-ꞎꞐ-ꞹꟺꬰ-ꭚꭠ-ꭤ'
          '\u1d00-\u1d25\u1d6b-\u1d77\u1d79-\u1d9aḀ-ỿа-яёА-ЯЁәөүҗңһӘӨҮҖҢҺіїєґІЇЄҐѓѕјљњќѐѝЃЅЈЉЊЌЀЍ'
          'α-ωάέίόώήύΑ-ΩΆΈΊΌΏΉΎ')
_UNCASED = ('\u1200-\u137f\u0980-\u09ff\u0591-\u05f4\ufb1d-\ufb4f\u0620-\u064a\u066e-\u06d5'
            '\u06e5-\u06ff\u0750-\u077f\u08a0-\u08bd\ufb50-\ufbb1\ufbd3-\ufd3d\ufd50-\ufdc7'
            '\ufdf0-\ufdfb\ufe70-\ufefc\u0d80-\u0dff\u0900-\u097f\u0b80-\u0bff\u0c00-\u0c7f'
            '\uac00-\ud7af\u1100-\u11ff\u3040-\u30ffー\u4e00-\u9fff\u3400-\u4dbf\u2e80-\u2fdf'
            '\u2ff0-\u303f\u31c0-\u31ef\u3200-\u33ff\uf900-\ufaff\ufe30-\ufe4f'
            '\U00020000-\U0002ebef\U0002f800-\U0002fa1f')


def _list(text: str) -> list[str]:
  return text.split()


def _chars(ranges: str) -> str:
  return ''.join(chr(c) for a, b in re.findall(r'(.)-(.)', ranges)
                 for c in range(ord(a), ord(b) + 1)) + re.sub('.-.', '', ranges)


def _class(chars: Iterable[str]) -> str:
  """The characters as ranges for a regular expression's brackets."""
  points, parts = sorted(set(map(ord, chars))), []
  for _, group in itertools.groupby(enumerate(points), lambda pair: pair[1] - pair[0]):
    run = [point for _, point in group]
    parts.append(f'\\U{run[0]:08x}-\\U{run[-1]:08x}')
  return ''.join(parts)


LOWER = _class(c for c in _chars(_CASED) if not c.isupper()) + _UNCASED
UPPER = _class(c for c in _chars(_CASED) if c.isupper()) + _UNCASED
ALPHA = _CASED + _UNCASED
ICON = '[' + _class(c for c in map(chr, range(0x20000))
                    if unicodedata.category(c) == 'So') + ']'
# Of scripts whose words have no spaces between them: Thai, Lao, Burmese, Khmer, kana, ideographs.
UNSPACED = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff'
                      '\U00020000-\U0003ffff]')
QUOTES = '\'"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧'
_PUNCT = '…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪'
_SIGN = '[' + re.escape(_PUNCT) + ']'
_QUOTE = f'[{re.escape(QUOTES)}]'
_CURRENCY = r'(?:\$|£|€|¥|฿|US\$|C\$|A\$|﷼|[₠-₿])'
_UNITS = ('km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb '
          'oz m/s km/h kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм '
          'дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ '
          'гб Тб ТБ тб كم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ غرام جرام جم كغ ملغ كوب اكواب')
_DOTS = r'\.\.+|…'
_HYPHENS = '(?:-|–|—|--|---|——|~)'

# Unicode's Sentence_Terminal as it was when datatrove took it, and three Khmer signs: FineWeb's
# list, which knows neither closing quotes nor the ellipsis.
_LATER = '︒︕︖․⳹⳺⳻\u2e60\u2e61\u1b4e\u1b4f\u1b7f\U000113d4\U000113d5\U00016d6e\U00016d6f'
TERMINAL = frozenset(
  regex.findall(r'\p{Sentence_Terminal}', ''.join(map(chr, range(0x20000))))
) - frozenset(_LATER) | frozenset('៖៙៚')
# What datatrove takes for punctuation: common signs of several scripts, and control characters.
PUNCTUATION = (
  '!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„\';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_."}►»'
  + ''.join(map(chr, (*range(9), 11, 12, *range(13, 32), *range(127, 160)))))
SYMBOLS = TERMINAL | frozenset(PUNCTUATION)

# --- affixes ---------------------------------------------------------------------------------


def _units(*without: str) -> str:
  return '(?:' + '|'.join(map(re.escape, (u for u in _UNITS.split() if u not in without))) + ')'


def _full_stop(before: str) -> list[str]:
  """A full stop is a word of its own after these, or after two capitals."""
  return [rf'(?<=[{before}])\.', rf'(?<=[{UPPER}][{UPPER}])\.']


_TAIL = re.escape(QUOTES + _PUNCT) + '|(?:)'
_PREFIXES = ['§', '%', '=', '—', '–', r'\+(?![0-9])', _SIGN, _DOTS, _QUOTE, _CURRENCY, ICON]
_NUMBER_ENDS = [r'(?<=[0-9])\+', r'(?<=°[FfCcKk])\.', rf'(?<=[0-9]){_CURRENCY}']
_SUFFIXES = ['……', _SIGN, _DOTS, _QUOTE, ICON, "'s", "'S", '’s', '’S', '—', '–', *_NUMBER_ENDS,
             rf'(?<=[0-9]){_units()}', *_full_stop(rf'0-9{LOWER}%²\-\+{_TAIL}')]
_STOP_INSIDE = rf'(?<=[{LOWER}{re.escape(QUOTES)}])\.(?=[{UPPER}{re.escape(QUOTES)}])'
_SIGNS_INSIDE = [_DOTS, ICON, r'(?<=[0-9])[+\-\*^](?=[0-9-])', _STOP_INSIDE,
                 rf'(?<=[{ALPHA}]),(?=[{ALPHA}])']
_RELATION = rf'(?<=[{ALPHA}0-9])[:<>=/](?=[{ALPHA}])'
_BEHIND_APOSTROPHE = rf"(?<=[{ALPHA}]['’])"
_INFIXES = [*_SIGNS_INSIDE, rf'(?<=[{ALPHA}]){_HYPHENS}(?=[{ALPHA}])', _RELATION]
_GERMAN_QUOTES = re.escape(QUOTES.replace("'", ''))
_SPANISH_QUOTES = re.escape(QUOTES + '—–')

# {language: (prefixes, suffixes, infixes)}
_AFFIXES = {
  'en': (_PREFIXES, _SUFFIXES,
         [*_SIGNS_INSIDE, rf'(?<=[{ALPHA}0-9]){_HYPHENS}(?=[{ALPHA}])', _RELATION]),
  'fr': ([*_PREFIXES, rf"[dlnDLN]['’](?=[{ALPHA}])"],
         ['……', _SIGN, _DOTS, _QUOTE, *_NUMBER_ENDS, '(?<=[0-9])%', rf'(?<=[0-9]){_units()}',
          *_full_stop(rf'0-9{LOWER}%²\-\+(?:){re.escape(QUOTES)}'),
          rf'(?<=[{ALPHA}])[-–—‐‑](?:'
          + '|'.join(f'{w}|{w.upper()}' for w in
                     _list('ce clés elle en il ils je là moi nous on t vous')) + ')'],
         [*_INFIXES, rf'{_BEHIND_APOSTROPHE}(?=[{ALPHA}])']),
  'de': (['``', *_PREFIXES],
         ["''", '/', '……', _SIGN, _DOTS, _QUOTE, ICON, *_NUMBER_ENDS, rf'(?<=[0-9]){_units()}',
          *_full_stop(rf'{LOWER}%²\-\+{_TAIL}')],
         [_DOTS, ICON, rf'(?<=[{LOWER}])\.(?=[{UPPER}])', rf'(?<=[{ALPHA}])[,!?:<>=](?=[{ALPHA}])',
          rf'(?<=[0-9{ALPHA}])/(?=[0-9{ALPHA}])',
          rf'(?<=[{ALPHA}])[{_GERMAN_QUOTES})\](\[](?=[{ALPHA}])',
          rf'(?<=[{ALPHA}])--(?=[{ALPHA}])', r'(?<=[0-9])-(?=[0-9])']),
  'es': (_PREFIXES,
         ['—', '–', '……', _SIGN, _DOTS, _QUOTE, ICON, *_NUMBER_ENDS, rf'(?<=[0-9]){_units("%")}',
          *_full_stop(rf'0-9{LOWER}%²\-\+{_TAIL}—–')],
         [_DOTS, ICON, r'(?<=[0-9])[+\*^](?=[0-9-])',
          rf'(?<=[{LOWER}{_SPANISH_QUOTES}])\.(?=[{UPPER}{_SPANISH_QUOTES}])',
          rf'(?<=[{ALPHA}]),(?=[{ALPHA}])', _RELATION]),
  'it': ([r"'[0-9][0-9]", '[0-9]+°', *_PREFIXES], _SUFFIXES,
         [*_SIGNS_INSIDE, rf'(?<=[{ALPHA}]){_HYPHENS}(?=[{LOWER}])', _RELATION,
          rf'{_BEHIND_APOSTROPHE}(?=[{ALPHA}0-9"])']),
  'pt': ([r'\w{1,3}\$', *_PREFIXES], _SUFFIXES, [r'\w+-\w+(?:-\w+)*', *_INFIXES]),
}

# --- exceptions ------------------------------------------------------------------------------

# Pieces that are words as they stand, or with a | where they are cut.
_SIGNS = (
  _list(r"""' \") '' <space> C++ \t \n :) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-:
  [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( :-(( :((( :-((( ): )-: =( >:( :')
  :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o :* :-*
  :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.>
  <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o
  @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻
  ><(((*> —""")
  + [f'{c}.' for c in 'abcdefghijklmnopqrstuvwxyzäöü'])
_DEGREES = [f'°|{c}|.' for c in 'cfkCFK']
_HOURS = [f'{h}|{p}' for h in range(1, 13) for p in ('a.m.', 'am', 'p.m.', 'pm')]
_CUT = {
  'fr': _list("""J.|-C. est|-ce Est|-ce qu'|est|-ce Qu'|est|-ce n'|est|-ce N'|est|-ce est|-il
  EST|-IL s'|est|-il S'|EST|-IL""") + [
    f'{v}|-t|-{p}' for verb in ['a', 'est', 'semble', 'indique', 'moque', 'passe']
    for v in (verb, verb.title()) for p in ('elle', 'il', 'on')],
  'de': _list("""auf|'m du|'s er|'s hinter|'m ich|'s ihr|'s sie|'s unter|'m vor|'m wir|'s
  über|'m"""),
  'es': ['pa|l', '12|m.', *_HOURS],
  'it': _list("""all'|art. dall'|art. dell'|art. L'|art. l'|art. nell'|art. sett.|."""),
  'pt': [],
}
_WHOLE = {
  'en': """em 'em ll 'll nuff 'nuff 'S 's ‘S ‘s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz
  'Coz 'cuz 'Cuz 'bout ma'am Ma'am o'clock O'clock lovin' Lovin' lovin Lovin havin' Havin'
  havin Havin doin doin' Doin Doin' goin goin' Goin Goin' nothin nothin' Nothin Nothin' nuthin
  nuthin' Nuthin Nuthin' ol ol' Ol Ol' somethin somethin' Somethin Somethin' Mt. Ak. Ala. Apr.
  Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun.
  Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr.
  Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. 'd a.m. Adm. Bros. co.
  Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo.
  Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s.""",
  'fr': """av. janv. févr. avr. juill. sept. oct. nov. déc. apr. Dr. M. Mr. Mme. Mlle. n° d°
  St. Ste. après-midi au-delà au-dessus celle-ci celles-ci celui-ci cf. ci-dessous elle-même
  en-dessous etc. jusque-là lui-même MM. No. peut-être pp. quelques-uns rendez-vous Vol.
  aujourd'hui Aujourd'hui""",
  'de': """'S 's S' s' 'n 'ne 'nen 'nem Abb. Abk. Abt. Apr. Aug. Bd. Betr. Bf. Bhf. Bsp. Dez.
  Di. Do. Fa. Fam. Feb. Fr. Frl. Hbf. Hr. Hrn. Jan. Jh. Jhd. Jul. Jun. Mi. Mio. Mo. Mrd. Mrz.
  MwSt. Mär. Nov. Nr. Okt. Orig. Pkt. Prof. Red. Sa. Sep. Sept. So. Std. Str. Tel. Tsd. Univ.
  abzgl. allg. bspw. bzgl. bzw. d.h. dgl. ebd. eigtl. engl. evtl. frz. gegr. ggf. ggfs. ggü.
  i.O. i.d.R. incl. inkl. insb. kath. lt. max. min. mind. mtl. n.Chr. orig. röm. s.o. sog.
  stellv. tägl. u.U. u.s.w. u.v.m. usf. usw. uvm. v.Chr. v.a. v.l.n.r. vgl. vllt. vlt. z.B.
  z.Bsp. z.T. z.Z. z.Zt. z.b. zzgl. österr. `` A.C. a.D. A.D. A.G. a.M. a.Z. Abs. adv. al.
  B.A. B.Sc. betr. biol. Biol. ca. CDU/CSU Chr. Cie. c/o co. Co. d' D.C. Dipl.-Ing. Dipl. Dr.
  e.g. e.V. ehem. entspr. erm. etc. ev. G.m.b.H. geb. Gebr. gem. h.c. Hg. hrsg. Hrsg. i.A.
  i.e. i.G. i.Tr. i.V. I. II. III. IV. Inc. Ing. jr. Jr. jun. jur. K.O. L' L.A. lat. M.A. m.E.
  m.M. M.Sc. Mr. N.Y. N.Y.C. nat. o.a. o.ä. o.g. o.k. O.K. p.a. p.s. P.S. pers. phil. q.e.d.
  R.I.P. rer. sen. St. std. u.a. U.S. U.S.A. U.S.S. Vol. vs. wiss.""",
  'es': """n° °C aprox. dna. dpto. ej. esq. pág. p.ej. Ud. Vd. Uds. Vds. vol. a.C. a.J.C. d.C.
  d.J.C. apdo. Av. Avda. Cía. Dr. Dra. EE.UU. Ee.Uu. etc. fig. Gob. Gral. Ing. J.C. km/h Lic.
  m.n. núm. P.D. Prof. Profa. q.e.p.d. Q.E.P.D. S.A. S.L. S.R.L. s.s.s. Sr. Sra. Srta.""",
  'it': """po' .. .... a.C. al. all-path art. Art. artt. att. avv. Avv. by-pass c.d. c/c C.so
  centro-sinistra check-up Civ. cm. Cod. col. Cost. d.C. de" distr. E' ecc. e-mail e/o etc.
  Jr. n° nord-est pag. Proc. prof. sett. s.p.a. s.n.c s.r.l ss. St. tel. week-end""",
  'pt': """Adm. Art. art. Av. av. Cia. dom. Dr. dr. e.g. E.g. E.G. e/ou ed. eng. etc. Fund.
  Gen. Gov. i.e. I.e. I.E. Inc. Jr. km/h Ltd. Mr. p.m. Ph.D. Rep. Rev. S/A Sen. Sr. sr. Sra.
  sra. vs. tel. pág. pag.""",
}


def _contractions() -> Iterator[str]:
  """English: i|'m, they|'d|'ve, does|n't, and all of them without the apostrophe."""
  asking, pointing = 'who what when where why how there', 'that this'
  every = 'could might must should would'
  for words, endings in [
    ('i', "'m 'm|a"), ('i you he she it we they', "'ll 'll|'ve 'd 'd|'ve"),
    ('i you we they', "'ve"), ('you we they', "'re"), ('he she it', "'s"),
    (f'{asking} {pointing}', "'s"), (f'{asking} {pointing} these those', "'ll 'll|'ve 'd 'd|'ve"),
    (f'{asking} these those', "'re 've"),
    (f'ca do does did had may need ought sha wo {every}', "n't n't|'ve"), (every, "'ve"),
    ('ai are is was were have has dare', "n't"),
  ]:
    for word, ending in itertools.product(words.split(), endings.split()):
      for first in (word, word.title()):
        yield f'{first}|{ending}'
        yield f'{first}|{ending}'.replace("'", '')
  yield from _list("""y'|all y|all how|'d|'y How|'d|'y not|'ve not|ve Not|'ve Not|ve can|not
  Can|not gon|na Gon|na got|ta Got|ta let|'s Let|'s c'm|on C'm|on""")
  yield from _HOURS


# English words that would be contractions without their apostrophe.
_NO_CONTRACTION = frozenset(
  _list("""Ill ill Its its Hell hell Shell shell Shed shed were Were Well well Whore whore"""))


def _exceptions(language: str) -> dict[str, tuple[str, ...]]:
  cut = _contractions() if language == 'en' else _CUT[language]
  found = {sign: (sign,) for sign in (*_SIGNS, *_WHOLE[language].split())}
  # No exception has a | of its own but the emoticons above.
  found |= {c.replace('|', ''): tuple(c.split('|')) for c in (*_DEGREES, *cut)}
  found = {key: value for key, value in found.items()
           if language != 'en' or key not in _NO_CONTRACTION}
  return found | {key.replace("'", '’'): tuple(part.replace("'", '’') for part in value)
                  for key, value in found.items()}


# Exceptions that hold a space, joined beforehand by a sign that is no white space.
_JOINED = {'es': {'EE. UU.': 'EE._UU.', 'Ee. Uu.': 'Ee._Uu.'}}

# French compounds that stay whole.
# Their letters are LOWER's in either case, with the signs that fold to some; that re shall ignore
# the case of a hundred thousand signs, in fifty places, takes it most of a second.
_LETTERS = ALPHA + 'µ\u0345ϐϑϕϖϰϱϴϵ\u1c80-\u1c86\u1fbe\u2126\u212a\u212b\ua7c4-\ua7c6'
_HYPHEN, _LETTER = '[-–—‐‑]', f'(?-i:[{_LETTERS}])'
_FRENCH = f"(?-i:[-–—‐‑{_LETTERS}'’])*"
_COMPOUNDS = '|'.join([
  *(f'{a}{_HYPHEN}{b}{_LETTER}{n}' for a, b, n in (word.split() for word in """a|sexualis|+
  arginine|méthyl|+ binge|watch|+ black|out|* bouche|por|+ burn|out|* by|pass|* chape|chut|+
  down|load|* [ée]tats|uni|* fac|simil|* fleur|bleuis|+ flic|flaqu|+ fox|trott|+ google|is|+
  hard|discount|* hip|hop|* jet|set|* knock|out|* lèche|bott|+ litho|typographi|+ lock|out|*
  lombri|compost|+ mac|adamis|+ marque|pag|+ mouton|noiris|+ new|york|* pair|programm|+ people|is|+
  plan|socialis|+ premier|ministr|* réarc|bout|+ refox|trott|+ remicro|ond|+ repique|niqu|+
  repetit|déjeun|+ rick|roll|* rond|ponn|+ shift|cliqu|+ soudo|bras|+ stabilo|boss|+ strip|teas|+
  terra|form|* teuf|teuf|* yo|yo|+ zig|zag|*""".replace('|', ' ').split('\n')
    for word in re.findall(r'\S+ \S+ [+*]', word))),
  rf"droits?{_HYPHEN}de{_HYPHEN}l'homm{_LETTER}+",
  *(f"{a}['’]{b}{_LETTER}+" for a, b in (('ch', 'tiis'), ('prud', 'hom'), ('z', 'yeut'))),
  '(?:' + '|'.join(_list("""a[ée]ro abat a[fg]ro after aigues? am[ée]ricano anglo anti
  apr[èe]s arabo arcs? archi arrières? audio avant avion auto banc bas(?:ses?)? bateaux? bec?
  belles? beau best bio? bien blanc bo[îi]te bonn?e?s? bois bou(?:c|rg) b[êe]ta cache
  cap(?:ello)? casse castel champ chapelle ch[âa]teau(?:neuf)? chasse cha(?:ud|t)e?s? chauffe
  chou chromo claire?s? co(?:de|ca)? compte contre cordon coupe? courte?s? couvre crash crise
  croche cross cyber côte demi di(?:sney)? dix d[ée]s? dys ex? émirato entre est ethno extra
  extrême [ée]co faux fil fort franco?s? gallo gardes? gastro grande? gratte gr[ée]co gros
  g[ée]o haute?s? homm?es? hors hyper indo infra inter intra islamo italo jean labio latino
  live lot louis m[ai]cro mal médio mesnil mi(?:ni)? mono mont?s? moyen multi m[ée]cano
  m[ée]dico m[ée]do m[ée]ta mots? neuro noix non nord notre n[ée]o ouest outre ouvre passe
  perce pharmaco ph[oy]to pieds? pique poissons? ponce pont po[rs]t pousse primo
  pro(?:cès|to)? pare petite?s? plessis porte pré prêchi protège pseudo pêle péri puy quasi
  quatre radio recourt rythmo (?:re)?doubles? r[ée] r[ée]tro requin sans? sa?inte?s? semi
  serre sino socio sociale?s? soixante sous su[bdrs] super taille tire thermo tiers tourne
  toute?s? tra[iî]ne? trans trente trois trousse tr(?:i|ou) t[ée]l[ée] utéro vaso vi[cd]e
  vid[ée]o vie(?:ux|i?lles?|i?l) vill(?:e|eneuve|ers|ette|iers|y) vingt voitures? wagons?
  ultra à [ée]lectro [ée]qui fontaine marie neuville pierre val vaux""")) +
  rf'){_HYPHEN}{_LETTER}{_FRENCH}',
  rf"(?:r?é?entr|grande?s?|r)['’]{_LETTER}{_FRENCH}",
  rf"{_LETTER}+{_HYPHEN}(?:l[èe]s?|la|en|des?|d[eu]|sur|sous|aux?|à|et|près|saint){_HYPHEN}"
  rf"(?:l['’])?{_LETTER}+",
])

# What each of them has: it is asked first.
_COMPOUND = rf"{_HYPHEN}|(?i:(?:ch|prud|z|entr|grande?s?|r)['’])"

# --- links -----------------------------------------------------------------------------------

_SCHEME = re.compile(r'[\w+\-.]{2,}://')
_IN_HOST = 'A-Za-z0-9\u00a1-\uffff'
_HOST = re.compile(
  rf'(?:(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.(?:1?\d{{1,2}}|2[0-4]\d|25[0-5])){{2}}'
  rf'\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4])'
  rf'|(?:(?:[{_IN_HOST}][{_IN_HOST}_-]{{0,62}})?[{_IN_HOST}]\.)+[{LOWER}]{{2,63}})'
  r'(?::\d{2,5})?(?:[/?#]\S*)?$')


def _is_link(piece: str) -> bool:
  """A host name or address, with or without scheme, user, port and path. Linear: a host holds no @,
  so the hosts tried after each @ do not overlap."""
  if '.' not in piece:
    return False
  scheme = _SCHEME.match(piece)
  starts = {0, scheme.end() if scheme else 0}
  starts.update(m.end() for m in re.finditer('@', piece) if m.start() > 0)
  return any(_HOST.match(piece, start) for start in starts)


# --- pieces into words -----------------------------------------------------------------------

_LONGEST = 1000
_LOOK = 12   # no suffix but dots is longer
# Signs that are a suffix by themselves, and no end of a longer one.
_ALONE = frozenset(_PUNCT + QUOTES) - frozenset("….'’‘`")


class Splitter:
  """Cuts one piece of a language's text into words."""

  def __init__(self, language: str):
    prefixes, suffixes, infixes = _AFFIXES[language]
    self.prefix = re.compile('|'.join(prefixes)).match
    self.suffix = re.compile('|'.join(f'(?:{suffix})$' for suffix in suffixes)).search
    # All infixes but these begin with a sign: that is asked first, once for all.
    first = [infix for infix in infixes if infix.startswith(r'\w')]
    last = [infix for infix in infixes if infix.startswith(_BEHIND_APOSTROPHE)]
    signs = [infix for infix in infixes if infix not in (*first, *last)]
    self.infixes = re.compile(
      '|'.join([*first, rf'(?=[\W_])(?:{"|".join(signs)})', *last])).finditer
    self.articles = language == 'fr'
    self.letters_end = re.compile(
      "[0-9]|['’][sS]$" + ('|[-–—‐‑]' if language == 'fr' else '')).search
    self.whole: Callable[[str], Any] = lambda piece: None
    if language == 'fr':
      hint, compound = re.compile(_COMPOUND).search, re.compile(f'(?i:{_COMPOUNDS})$').match
      self.whole = lambda piece: hint(piece) and compound(piece)
    self.exceptions = _exceptions(language)
    if language in _JOINED:
      self.exceptions |= {joined: (joined,) for joined in _JOINED[language].values()}
    # Exceptions that affixes would cut are found again among the words of a longer piece.
    self.sequences: dict[tuple[str, ...], list[tuple[tuple[str, ...], tuple[str, ...]]]] = {}
    for piece, parts in self.exceptions.items():
      if (self._prefix_length(piece) or self._suffix_length(piece)
          or next(self.infixes(piece), None)):
        words = tuple(self._cut(piece, {}))
        self.sequences.setdefault(words[:2], []).append((words, parts))
    self.beginnings = frozenset(words[0] for words in self.sequences)

  def __call__(self, piece: str) -> Sequence[str]:
    """The words of a piece; a very long one is cut first."""
    if piece in self.exceptions:
      return self.exceptions[piece]
    if len(piece) > _LONGEST:
      parts = (piece[i:i + _LONGEST] for i in range(0, len(piece), _LONGEST))
      return [word for part in parts for word in Splitter.__call__(self, part)]
    if piece.isalpha():
      return (piece,)
    # Most other pieces are a word and a sign after it.
    word, sign = piece[:-1], piece[-1]
    if word.isalpha() and (sign in ',;:!?)"' or (sign == '.' and word[-1].islower())) and (
        (word, sign) not in self.sequences):
      return (*self.exceptions.get(word, (word,)), sign)
    words = self._cut(piece, self.exceptions)
    return words if len(words) == 1 else self._merge(words)

  def _prefix_length(self, piece: str) -> int:
    # Before letters come only sums of money (US$), and in French articles; before digits degrees.
    if piece[:1].isalnum() and '$' not in piece and '°' not in piece and not (
        self.articles and piece[1:2] in ("'", '’')):
      return 0
    found = self.prefix(piece)
    return found.end() if found else 0

  def _suffix_length(self, piece: str) -> int:
    if piece[-1:] in _ALONE:
      return min(1, len(piece))
    # With a letter end only units, after digits, and what stands after a sign; with a digit none.
    if '0' <= piece[-1:] <= '9' or (piece[-1:].isalpha() and not self.letters_end(
        piece, max(0, len(piece) - _LOOK))):
      return 0
    if piece[-1:] == '.' and 'a' <= piece[-2:-1] <= 'z':
      return 1
    if piece.endswith('..'):
      return len(piece) - len(piece.rstrip('.'))
    found = self.suffix(piece, max(0, len(piece) - _LOOK))
    return len(piece) - found.start() if found else 0

  def _cut(self, piece: str, exceptions: dict[str, tuple[str, ...]]) -> list[str]:
    """Takes prefixes and suffixes off until nothing more comes off, then looks inside."""
    before, after = [], []
    while piece and piece not in exceptions and not self.whole(piece):
      head = self._prefix_length(piece)
      if head and piece[head:] in exceptions:
        before.append(piece[:head])
        piece = piece[head:]
        break
      tail = self._suffix_length(piece[head:])
      if tail and piece[:-tail] in exceptions:
        after.append(piece[-tail:])
        piece = piece[:-tail]
        break
      if not head and not tail:
        break
      if head:
        before.append(piece[:head])
      if tail:
        after.append(piece[len(piece) - tail:])
      piece = piece[head:len(piece) - tail]
    if piece in exceptions:
      before += exceptions[piece]
    elif piece:
      before += [piece] if piece.isalnum() or self.whole(piece) or _is_link(piece) else (
        self._inside(piece))
    return before + after[::-1]

  def _inside(self, piece: str) -> Iterator[str]:
    start = 0
    for found in self.infixes(piece):
      if found.start() == 0:
        continue
      if found.start() > start:
        yield piece[start:found.start()]
      if found.group():
        yield found.group()
      start = found.end()
    if start < len(piece):
      yield piece[start:]

  def _merge(self, words: list[str]) -> list[str]:
    """Exceptions among the words of a piece, such as an emoticon in brackets; longest first."""
    if self.beginnings.isdisjoint(words):
      return words
    found = []
    for i, word in enumerate(words):
      if word not in self.beginnings:
        continue
      for start in ((word,), tuple(words[i:i + 2])):
        for sequence, parts in self.sequences.get(start, ()):
          if tuple(words[i:i + len(sequence)]) == sequence:
            found.append((len(sequence), i, parts))
    if not found:
      return words
    taken: set[int] = set()
    edits = []
    for size, at, parts in sorted(found, key=lambda f: (-f[0], f[1])):
      if at not in taken and at + size - 1 not in taken:
        edits.append((at, size, parts))
      taken.update(range(at, at + size))
    for at, size, parts in sorted(edits, reverse=True):
      words[at:at + size] = parts
    return words


class Unspaced(Splitter):
  """Cuts text without spaces into parts about as long as words, by script alone: two ideographs,
  three hiragana, a run of katakana, four syllables of Thai, Lao, Burmese or Khmer. What repeats is
  cut alike, since parts are counted from the last sign; spaCy's words need a dictionary."""

  _PART = regex.compile(
    r'[\p{Han}々〇]{1,2}|\p{Hiragana}{1,3}|[\p{Katakana}ー]+'
    r'|(?:(?=[\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}])\X){1,4}'
    r'|[^\p{Han}々〇\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}]+')
  _SIGN = re.compile(_SIGN)

  def __init__(self):
    super().__init__('en')

  def __call__(self, piece: str) -> Sequence[str]:
    """The parts of a piece."""
    if not UNSPACED.search(piece):
      return super().__call__(piece)
    return [word for part in self.parts(piece) for word in (
      [part] if UNSPACED.match(part) and not self._SIGN.match(part) else self._signs(part))]

  def parts(self, piece: str) -> list[str]:
    """The parts, signs not yet cut."""
    return self._PART.findall(piece)

  def _signs(self, part: str) -> Iterator[str]:
    """Between ideographs signs stand for themselves: 。」 are two."""
    for run in re.split(f'({_SIGN}|{_QUOTE})', part):
      if run:
        yield from super().__call__(run)


LANGUAGES = tuple(_AFFIXES)
UNSPACED_LANGUAGES = ('zh', 'ja', 'th', 'lo', 'my', 'km')


def spelt(language: str) -> str:
  """Whose rules cut the words of a language."""
  return 'zh' if language in UNSPACED_LANGUAGES else language if language in _AFFIXES else 'en'


def splitter(language: str = 'en') -> Splitter:
  """The Splitter of a language; English for those without rules of their own."""
  return _splitter(spelt(language))


@functools.cache
def _splitter(language: str) -> Splitter:
  return Unspaced() if language == 'zh' else Splitter(language)


def segmented(simple: list[str]) -> list[str]:
  """Words between blanks, those of scripts without spaces cut as Unspaced does."""
  if not any(map(UNSPACED.search, simple)):
    return simple
  parts = splitter('zh').parts
  return [part for word in simple for part in (parts(word) if UNSPACED.search(word) else (word,))]


def joined(text: str, language: str) -> str:
  """A text whose words with blanks inside are kept together by underscores."""
  for spaced, whole in _JOINED.get(language, {}).items():
    text = text.replace(spaced, whole)
  return text


def words(text: str, language: str = 'en') -> list[str]:
  """Words, numbers and signs of a text, in order."""
  cut = splitter(language)
  return [word for piece in joined(text, language).split() for word in cut(piece)]


# --- sentences -------------------------------------------------------------------------------


def count_sentences(line: str, language: str = 'en', limit: float = math.inf) -> int:
  """Sentences by spaCy's rule, `limit` at most: one begins at the first word after a terminal sign
  that is neither terminal nor all punctuation (white space beyond one blank counts as a word). Thai
  and Lao have no such signs: there, what stands between blanks counts."""
  if language in ('th', 'lo'):
    return len(line.split())
  cut, count, ended = splitter(language), 1, False
  for match in re.finditer(r'\s+|\S+', line):
    piece = match.group()
    for word in ([piece.removeprefix(' ')] if piece.isspace() else cut(piece)):
      if not word:
        continue
      if word in TERMINAL:
        ended = True
      elif ended and not all(unicodedata.category(c)[0] == 'P' for c in word):
        count, ended = count + 1, False
        if count >= limit:
          return count
  return count
