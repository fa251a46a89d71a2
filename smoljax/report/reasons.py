"""Why documents were dropped, and by what, in words: the pages' names for those of data_beam.

What is unknown here keeps its own name, with blanks for its underscores.
"""

import re

STAGES = {
  'read': 'read', 'url': 'address', 'robots': 'site’s wishes', 'rights': 'rights',
  'same_bytes': 'same file', 'extract': 'text taken out', 'parse': 'parsed',
  'language': 'language', 'filter': 'quality rules', 'quality': 'quality score',
  'exact_dedup': 'exact duplicates', 'url_dedup': 'same address', 'minhash': 'near duplicates',
  'decontaminate': 'quotes of test sets', 'pii': 'personal data hidden', 'rephrase': 'rephrased',
}
RULES = {
  'gopher_repetition': 'repetition', 'gopher_quality': 'words and symbols',
  'c4': 'boilerplate', 'fineweb': 'lines', 'fineweb2': 'rules of the language',
  'garbage': 'broken text', 'length': 'length', 'legible': 'legible',
  'docs_repetition': 'repetition', 'docs_quality': 'words and symbols', 'docs_lines': 'lines',
}
REASONS = {
  # read, extract
  'http_status': 'error page of a server', 'empty': 'nothing in it',
  'too_large': 'too large', 'ratio': 'unpacks to far too much', 'bad_encoding': 'wrongly encoded',
  'bad_record': 'damaged record', 'damaged_record': 'damaged record',
  'clipped_file': 'the file ends within it', 'corrupt_file': 'damaged file',
  'corrupt_archive': 'damaged archive', 'bad_json': 'no valid JSON',
  'bad_value': 'a value of the wrong kind', 'no_text': 'no main text found',
  'not_pdf': 'no PDF', 'encrypted': 'needs a password', 'truncated': 'cut off',
  'damaged': 'damaged', 'blank': 'blank pages', 'needs_ocr': 'pictures of text, not read',
  'ocr_noise': 'pictures in which no text was sure', 'ocr_failed': 'its pictures could not be read',
  'too_long': 'too long', 'timeout': 'took too long', 'cpu_limit': 'took too long',
  'hung': 'took too long', 'memory': 'needed too much memory', 'crash': 'its parser crashed',
  'syntax_error': 'no valid program',
  # language, duplicates, quality
  'unsure': 'language unsure', 'unknown': 'language unknown',
  'duplicate': 'the same as another', 'near_duplicate': 'nearly the same as another',
  'known': 'in the other corpus already', 'little_left': 'little left without repeated parts',
  'no_score': 'no score', 'below_threshold': 'score too low', 'no_bucket': 'score in no range',
  # addresses
  'domain': 'site on a list', 'subdomain': 'part of a site on a list', 'url': 'address on a list',
  'hard_blacklisted': 'a banned word in its address',
  'soft_blacklisted': 'several doubtful words in its address',
  'blacklisted_subword': 'a banned part of a word in its address',
  'noai': 'not to be used for AI', 'tdm_reservation': 'reserved against mining',
  'content_usage': 'not to be used for AI',
  # quality rules
  'dup_para_frac': 'many repeated paragraphs', 'dup_para_char_frac': 'long repeated paragraphs',
  'dup_line_frac': 'many repeated lines', 'dup_line_char_frac': 'long repeated lines',
  'gopher_short_doc': 'too few words', 'gopher_long_doc': 'too many words',
  'gopher_below_avg_threshold': 'words too short', 'gopher_above_avg_threshold': 'words too long',
  'gopher_too_many_hashes': 'many # signs', 'gopher_too_many_ellipsis': 'many dots …',
  'gopher_too_many_bullets': 'nearly all lines bullets',
  'gopher_too_many_end_ellipsis': 'many lines ending in …',
  'gopher_below_alpha_threshold': 'many words without letters',
  'gopher_enough_stop_words': 'no ordinary sentences',
  'lorem_ipsum': 'placeholder text', 'curly_bracket': 'code in the page',
  'too_few_sentences': 'too few sentences', 'line_punct_ratio': 'few lines end a sentence',
  'short_line_ratio': 'mostly short lines', 'char_dup_ratio': 'long repeated lines',
  'list_ratio': 'mostly lists', 'no_filter_table': 'no rules for its language',
  'broken_characters': 'broken characters', 'few_letters': 'few letters',
  'word_length': 'words of odd length', 'short': 'too short', 'few_words': 'few different words',
  # programs
  'generated': 'written by a program', 'long_lines': 'very long lines', 'few_lines': 'few lines',
  'mostly_comments': 'mostly comments', 'mostly_data': 'mostly data',
  # conversations, rephrasing
  'bad_answer': 'an answer marked as bad', 'unknown_layout': 'unknown columns',
  'prompt_differs': 'a pair of two questions', 'unknown_role': 'unknown speaker',
  'bad_thought': 'a thought not closed', 'no_answer': 'no answer', 'role_order': 'speakers in an '
  'impossible order', 'bad_tool_call': 'damaged call of a tool', 'equal_pair': 'a pair of equals',
  'cut': 'the answer was cut off', 'circles': 'the answer went in circles',
}
LANGUAGES = {
  'ar': 'Arabic', 'cs': 'Czech', 'de': 'German', 'el': 'Greek', 'en': 'English', 'es': 'Spanish',
  'fr': 'French', 'hi': 'Hindi', 'it': 'Italian', 'ja': 'Japanese', 'ko': 'Korean', 'la': 'Latin',
  'nl': 'Dutch', 'pl': 'Polish', 'pt': 'Portuguese', 'ru': 'Russian', 'sv': 'Swedish',
  'th': 'Thai', 'tr': 'Turkish', 'uk': 'Ukrainian', 'vi': 'Vietnamese', 'zh': 'Chinese',
}
_PATTERNS = (
  (r'top_(\d)_gram', 'one {}-word phrase too often'),
  (r'duplicated_(\d+)_n_grams', 'repeated phrases of {} words'),
  (r'licence_(.+)', 'licence: {}'),
  (r'bucket_(.+)', 'scored as {}'),
)


def reason(name: str, stage: str = '') -> str:
  """A reason in words; of the stage `language` it is the code of one, unless it is known."""
  if name in REASONS:
    return REASONS[name]
  for pattern, words in _PATTERNS:
    if found := re.fullmatch(pattern, name):
      return words.format(found[1].replace('_', ' '))
  if stage == 'language' and re.fullmatch('[a-z]{2,3}', name):
    return f'in {LANGUAGES.get(name, f"another language ({name})")}'
  return f'quotes {name}' if stage == 'decontaminate' else name.replace('_', ' ')


def stage(name: str) -> str:
  """A stage in words, or `STAGE: RULE`."""
  first, colon, rule = name.partition(': ')
  words = STAGES.get(first, first.replace('_', ' '))
  return f'{words}: {RULES.get(rule, rule.replace("_", " "))}' if colon else words
