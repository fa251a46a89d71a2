#!/usr/bin/env bash
# The texts of configs/smollm3_small.py, from packages of a Debian machine and by our own pipelines.
#
#   experiments/cloud/debian_texts.sh DATA [EVAL]
#
# 390 MB of packages are downloaded (apt-get update first) and unpacked in DATA/packages; none is
# installed. DATA/corpora has manuals, papers, mathematics and code, DATA/{thoughts,chats,pairs} the
# conversations, by rule and, with EVAL (a folder with gsm8k.train.jsonl), GSM8K's training half;
# EVAL's sets are what is kept out of conversations. What is there already is not made again.
set -euo pipefail
data=$(mkdir -p "$1" && cd "$1" && pwd) eval=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}

manuals="libreoffice-help-en-us libreoffice-help-fr libreoffice-help-de libreoffice-help-es
  libreoffice-help-it libreoffice-help-pt debian-reference-en debian-reference-fr
  debian-reference-de debian-reference-es debian-reference-it debian-reference-pt debian-handbook
  developers-reference developers-reference-fr developers-reference-de developers-reference-it
  postgresql-doc-15 cmake-doc git-doc nodejs-doc python3.11-doc r-doc-html"
papers="texlive-latex-base-doc texlive-latex-recommended-doc"
mathematics="texlive-science-doc gap-doc pari-doc r-doc-pdf octave-doc maxima-doc"
code="python3-networkx python3-sympy python3-nltk python3-rich python3-sklearn python3-django"

fetch() { # KIND PACKAGE…: unpacks what Debian has of them in packages/KIND
  local into=$data/packages/$1 package
  shift
  mkdir -p "$into"
  for package; do
    [ -e "$into/.$package" ] && continue
    if ! (cd "$into" && apt-get download -qq "$package"); then
      echo "$0: no package $package here; without it" >&2
      continue
    fi
    dpkg -x "$into/${package}_"*.deb "$into" && rm "$into/${package}_"*.deb
    touch "$into/.$package"
  done
}

corpus() { # NAME PIPELINE FLAGS…: a corpus, unless it is there
  local name=$1 pipeline=$2
  shift 2
  [ -e "$data/corpora/$name/1.0.0/dataset_info.json" ] ||
    "$python" -m "data_beam.$pipeline" "$@" --output="$data/corpora" --name="$name"
}

needles() { # NAME FLAGS…: a corpus of questions in the manner of RULER, hidden in the filler
  "$python" -m experiments.needles --output="$data/$1.jsonl" --documents="$data/filler.jsonl" "${@:2}"
  corpus "$1" tables import --input="$data/$1.jsonl"
  rm "$data/$1.jsonl"
}

chains() { # FILE FLAGS…: conversations by rule in six languages
  mkdir -p "$(dirname "$data/$1")"
  [ -e "$data/$1" ] || "$python" -m experiments.chains --output="$data/$1" \
    --families=sums,rewriting --languages=en,fr,de,es,it,pt "${@:2}"
}

fetch manuals $manuals
fetch papers $papers
fetch mathematics $mathematics
fetch code $code
languages=en,fr,de,es,it,pt
corpus manuals web --input="$data/packages/manuals/**/*.html" --languages=$languages --signals
corpus papers pdf --input="$data/packages/papers/**/*.pdf" --languages=$languages --ocr=never
corpus mathematics pdf --input "$data/packages/mathematics/**/*.pdf" \
  "$data/packages/mathematics/**/*.pdf.gz" --languages=$languages --ocr=never
quotes=()
mkdir -p "$data/eval" "$data/thoughts" "$data/chats"
if [ "$eval" ]; then
  cp -n "$eval"/*.jsonl "$data/eval/"
  rm -f "$data/eval/gsm8k.train.jsonl" # which is learned
  for set in humaneval mbpp_sanitized; do
    if [ -e "$data/eval/$set.jsonl" ]; then quotes+=("$data/eval/$set.jsonl"); fi
  done
  # Half of them without thoughts in fine-tuning, where modes are learned: conversations by rule
  # alone teach these in the words of the rule.
  "$python" - "$eval/gsm8k.train.jsonl" "$data/thoughts/gsm8k.jsonl" "$data/chats/gsm8k.jsonl" \
    << 'PYTHON'
import json, re, sys
with open(sys.argv[1]) as read, open(sys.argv[2], 'w') as all_think, open(sys.argv[3], 'w') as both:
  for i, line in enumerate(read):
    row = json.loads(line)
    steps, _, answer = row['answer'].rpartition('\n#### ')
    steps = re.sub(r'<<[^>]*>>', '', steps)
    rows = {mode: json.dumps({'mode': mode, 'messages': [
      {'role': 'user', 'content': row['question']}, {'role': 'assistant', **reply}]}) + '\n'
      for mode, reply in (('think', {'reasoning_content': steps, 'content': answer}),
                          ('no_think', {'content': f'{steps}\n{answer}'}))}
    all_think.write(rows['think'])
    both.write(rows['think' if i % 2 else 'no_think'])
PYTHON
fi
corpus code python_source --input="$data/packages/code/usr/lib" \
  ${quotes:+--decontaminate "${quotes[@]}"}
if [ ! -e "$data/corpora/needles_far/1.0.0/dataset_info.json" ]; then
  rm -rf "$data/filler"
  "$python" -m data_beam.tables export --input="$data/corpora/manuals/1.0.0" --format=jsonl \
    --output="$data/filler"
  zcat "$data/filler/data/"*.jsonl.gz > "$data/filler.jsonl"
  needles needles --lengths=512,1000,2000,4000 --number=3000
  needles needles_far --lengths=8000,16000,32000 --number=300 --seed=1
  rm -rf "$data/filler" "$data/filler.jsonl"
fi
chains thoughts/chains.jsonl --number=20000 --mode=think --turns=3
chains chats/chains.jsonl --number=18000 --mode=both --turns=3 --seed=1
chains pairs/chains.jsonl --number=6000 --mode=both --pairs --seed=2
