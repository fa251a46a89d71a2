# How the scripts beside this one run commands: said first, and with DRY=1 only said.

is() {  # DRY=0, =no and =false are as if it were not set
  case "${1:-}" in '' | 0 | no | false) return 1 ;; esac
}

run() {  # what is printed has no passwords, signatures or tokens, as a log may be anybody's
  { printf '+ %q' "$1"; printf ' %q' "${@:2}"; echo; } | sed -E \
    -e 's#(://)[^/@ ]*@#\1***@#g' -e 's#(://[^? ]*)[?][^ ]*#\1#g' \
    -e 's/([[:alnum:]_.-]*(token|key|secret|password|passwd|credentials?|signature)\\*[= ])[^ ]+/\1***/Ig'
  is "${DRY:-}" || "$@"
}
