# The table of `run`: reads shapes.txt, then the programs' lines with the program's name in front.

function bytes_of(type) { return type == "float" ? 4 : 2 }
# What masks and shapes leave of the work: 1e9 bytes of K and V, or 1e9 operations.
function work_of(type, batch, q_heads, kv_heads, queries, keys, depth, mask,    scores, q) {
  if (queries == 1) return 2e-9 * batch * kv_heads * keys * depth * bytes_of(type)
  scores = queries * keys
  if (mask == "causal") for (scores = q = 0; q < queries; ++q) scores += q + 1 + keys - queries
  return 4e-9 * batch * q_heads * depth * scores
}
# mawk finds NaN equal to everything, so what is not written as a number is told by its letters.
function agree(a, b, tolerance) {
  if (a !~ /^[0-9]/ || b !~ /^[0-9]/) return 0
  return (a > b ? a - b : b - a) <= tolerance * b
}

FNR == 1 { ++file }
file == 1 {
  if ($0 == "" || $1 ~ /^#/) next
  cases[++case_count] = $1
  type[$1] = $2
  unit[$1] = $6 == 1 ? "GB/s" : "GFLOP/s"
  work[$1] = work_of($2, $3, $4, $5, $6, $7, $8, $9)
  next
}
$2 != "#" {
  if (!(($1, $2) in best) || $3 < best[$1, $2]) {
    best[$1, $2] = $3
    if (($1, $2) in way) note[$1, $2] = way[$1, $2]
  }
  next
}
$3 == "library" {
  sub(/^[^#]*# library /, "")
  if (!($0 in listed)) libraries = libraries (libraries == "" ? "" : ", ") $0
  listed[$0]
  next
}
$3 == "flags" { sub(/^[^#]*# flags /, ""); flags = $0; next }
$3 == "ceiling" { if ($5 > ceiling[$4]) ceiling[$4] = $5; next }
$3 == "check" { checksum[$1, $4] = $5; next }
$3 == "note" { who = $1; name = $4; sub(/^[^#]*# note [^ ]+ /, ""); way[who, name] = $0; next }
$3 == "missing" { who = $1; sub(/^[^#]*# missing [^ ]+ /, ""); ++missing[who ": " $0]; next }

END {
  count = split(peer_list, peers, " ")
  print "compiled by " flags
  print "libraries: " libraries "\n"

  printf "%-28s %-8s %8s", "shape", "unit", "ours"
  for (p = 2; p <= count; ++p) printf " %9s", peers[p]
  for (p = 2; p <= count; ++p) printf " %10s", "/" peers[p]
  print "  of ceiling"
  for (c = 1; c <= case_count; ++c) {
    name = cases[c]
    if (!(("heed", name) in best)) { printf "%-28s not computed\n", name; continue }
    ours = work[name] / best["heed", name]
    printf "%-28s %-8s %8.1f", name, unit[name], ours
    ratios = ""
    for (p = 2; p <= count; ++p) {
      if (!((peers[p], name) in best)) {
        printf " %9s", "-"
        ratios = ratios sprintf(" %10s", "-")
        continue
      }
      rate = work[name] / best[peers[p], name]
      right = agree(checksum[peers[p], name], checksum["heed", name], \
                    type[name] == "float" ? 1e-4 : 5e-3)
      if (right) ++agreed[peers[p]]
      else wrong = wrong sprintf("%s computes %s otherwise: %s, ours is %s\n", peers[p], name, \
                                 checksum[peers[p], name], checksum["heed", name])
      printf " %9.1f", rate
      ratios = ratios (right ? sprintf(" %10.2f", ours / rate) : sprintf(" %10s", "wrong"))
    }
    share = ceiling[name] > 0 ? sprintf("%8.0f %%", 100 * ours / ceiling[name]) : "       -"
    print ratios "  " share
  }

  print "\nGFLOP/s: useful ones, causal counts half. GB/s: K and V, once per KV head, from the caches as"
  print "they are after the call before. /PEER: our rate over its rate. The ceiling is float multiply-add"
  print "from registers, products of bf16 tiles, or reading from the level that holds K and V."
  line = "same results as ours, float within 1e-4, bf16 within 5e-3:"
  for (p = 2; p <= count; ++p) line = line sprintf(" %s %d cases;", peers[p], agreed[peers[p]])
  sub(/;$/, "", line)
  if (count > 1) print line
  printf "%s", wrong
  for (p = 2; p <= count; ++p) {
    line = ""
    for (c = 1; c <= case_count; ++c) {
      if ((peers[p], cases[c]) in note) {
        line = line sprintf("\n  %-28s %s", cases[c], note[peers[p], cases[c]])
      }
    }
    if (line != "") print "the fastest of several ways, " peers[p] ":" line
  }
  for (text in missing) print "missing: " text
  if (wrong != "") exit 1
}
