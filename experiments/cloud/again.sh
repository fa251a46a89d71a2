#!/usr/bin/env bash
# Runs a command, and again as long as another try may end better. Its last status is the command's.
#
#   experiments/cloud/again.sh python -m experiments.run --config=… --workdir=…
#   srun --nodes=4 … experiments/cloud/again.sh python -m experiments.run … --distributed
#
# Final are 0, bad input or divergence (2), and what was asked for: SIGHUP, SIGINT, SIGUSR1, SIGTERM
# (128 + the signal). All else is tried again: a run that stood still (87), a disk that was full or
# away, a peer that has gone (75, 134), a process that was killed (137). Between two tries pass 5
# seconds, then twice as many up to 10 minutes; TRIES (20) in a row that last less than 15 minutes
# are the last. A signal to this script goes to the command.
set -um  # with -m the command is in a group of its own, and SIGINT is not ignored
tries=0 pause=5 asked= child=
for signal in HUP INT USR1 TERM; do
  trap "asked=1; kill -$signal \"\$child\" 2> /dev/null" "$signal"
done
while :; do
  began=$SECONDS
  "$@" &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2> /dev/null; do  # a signal ended the wait, not the command
    wait "$child"
    status=$?
  done
  child=
  case $status in 0 | 2 | 129 | 130 | 138 | 143) exit "$status" ;; esac
  [ "$asked" ] && exit "$status"
  if [ $((SECONDS - began)) -ge 900 ]; then tries=0 pause=5; fi
  tries=$((tries + 1))
  if [ "$tries" -ge "${TRIES:-20}" ]; then exit "$status"; fi
  echo "$0: it ended with status $status; again in $pause s" >&2
  sleep "$pause" &
  wait $!
  [ "$asked" ] && exit "$status"
  pause=$((pause * 2 > 600 ? 600 : pause * 2))
done
