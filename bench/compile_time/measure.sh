#!/bin/sh
# How long the compiler takes for one call, and for everything: median seconds of processor time.
#
#   bench/compile_time/measure.sh [--runs N] [--native] [COMPILER FLAG…]
#
#   --runs N    compile each file N times (5)
#   --native    for the instruction sets of this machine's CPU instead of the compiler's default
#
# The compiler is $CXX (g++). Processor time of the compiler alone is counted (user), so a busy
# machine does little harm.
set -eu
cd "$(dirname "$0")/../.."

runs=5
native=
while [ $# -gt 0 ]; do
  case $1 in
    --runs)
      runs=${2:-}
      shift
      ;;
    --native) native=1 ;;
    *) break ;;
  esac
  shift
done
case $runs in
  '' | *[!0-9]* | 0) echo "measure.sh: --runs needs a number above 0" >&2; exit 2 ;;
esac

compiler=${CXX:-g++}
eigen=$(pkg-config --cflags-only-I eigen3 2>/dev/null || echo -I/usr/include/eigen3)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

flags=
if [ "$native" ]; then
  "$compiler" -o "$scratch/probe" cmake/probe_cpu.cpp
  : >"$scratch/empty.cpp"
  # A compiler older than the CPU does not know all of its sets.
  for set in $("$scratch/probe"); do
    ! "$compiler" "-m$set" -fsyntax-only "$scratch/empty.cpp" 2>/dev/null || flags="$flags -m$set"
  done
fi

# Seconds of user time of one compilation, in a subshell, whose only child is the compiler. `times`
# prints those of the shell itself in the first line and those of its children in the second, as
# 0m1.230000s; in a pipeline it would speak of yet another subshell.
compile() (
  # shellcheck disable=SC2086 # several flags in one word
  "$compiler" -std=c++20 -O2 -Iinclude $eigen $flags "$@" -c -o "$scratch/object.o"
  times >"$scratch/times"
  awk 'NR == 2 { split($1, time, /[ms]/); print time[1] * 60 + time[2] }' "$scratch/times"
)

"$compiler" --version | head -n 1
echo "flags: -std=c++20 -O2$flags${*:+ $*}; median of $runs runs"
for name in one_call everything; do
  : >"$scratch/seconds"
  run=0
  while [ $run -lt "$runs" ]; do
    compile "$@" "bench/compile_time/$name.cpp" >>"$scratch/seconds"
    run=$((run + 1))
  done
  sort -n "$scratch/seconds" | awk -v name="$name" '
    { seconds[NR] = $1 }
    END { printf "%-10s  %.2f s\n", name, (seconds[int((NR + 1) / 2)] + seconds[int(NR / 2) + 1]) / 2 }'
done
