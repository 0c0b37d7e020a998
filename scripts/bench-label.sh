#!/usr/bin/env bash
# Posts per second of `label`, and the share of time of each stage, on the first 4,096 posts of a CSV with a
# text column (repeated where it has fewer). The repeat cache is off in the first figure, so that every post is
# inferred; the second has it on. Rounds alternate; medians are quoted.
#   scripts/bench-label.sh posts.csv [rounds]
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: scripts/bench-label.sh posts.csv [rounds]}
rounds=${2:-5}
bin=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sentistream/target}/release/sentistream
[ -x "$bin" ] || { echo "$bin is missing: make release" >&2; exit 1; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 - "$data" "$tmp/posts.ndjson" <<'PY'
import csv, itertools, json, sys
with open(sys.argv[1], newline="", encoding="utf-8") as f:
    texts = [row["text"] for row in csv.DictReader(f)][:4096]
with open(sys.argv[2], "w", encoding="utf-8") as out:
    for i, text in enumerate(itertools.islice(itertools.cycle(texts), 4096)):
        out.write(json.dumps({"id": str(i), "text": text, "created_at": "2026-01-01T00:00:00Z"}) + "\n")
PY
run() { SENTISTREAM__CLASSIFY__CACHE_ENTRIES=$1 "$bin" label "$tmp/posts.ndjson" --out "$tmp/out.ndjson" 2>"$tmp/log"; tail -n 12 "$tmp/log" >"$tmp/last-$1"; grep -oE '[0-9.,]+ posts/s' "$tmp/log" | tail -n 1 | tr -d ', posts/' >>"$tmp/rates-$1"; }
for _ in $(seq "$rounds"); do run 0; run 100000; done
median() { sort -g "$1" | awk '{v[NR]=$1} END {print v[int((NR + 1) / 2)]}'; }
echo "label, int8, $(nproc) cores, 4,096 posts, median of $rounds rounds"
echo "  cache off: $(median "$tmp/rates-0") posts/s"
echo "  cache on:  $(median "$tmp/rates-100000") posts/s (every post beyond the file's $(python3 -c "import csv,sys; print(len({r['text'] for r in csv.DictReader(open('$data', encoding='utf-8'))}))") distinct texts is a repeat)"
echo "last run, cache off:"
sed 's/^/  /' "$tmp/last-0"
