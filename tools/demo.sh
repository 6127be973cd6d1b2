#!/bin/sh
# From nothing to a guest: what the README promises, step by step.
set -eu
wirt=$1
step() { printf '\n$ wirt %s\n' "$*"; "$wirt" "$@"; }

name=demo-$$
trap '"$wirt" rm --force "$name" >/dev/null 2>&1 || true' EXIT INT TERM
step doctor || true
step build debian:12
step run debian:12 --name "$name"
step exec "$name" -- uname -a
step ls
step stop "$name"
step rm "$name"
trap - EXIT
printf '\nThat was a real Debian guest. Yours: wirt run debian:12 --name mine\n'
