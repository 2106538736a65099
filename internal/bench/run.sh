#!/bin/bash
# run.sh: measure examples/relay beside Postfix and beside a go-smtp server that
# discards everything, for docs/benchmarks.md.
#
#   internal/bench/run.sh accept     the targets of accepting: 1, 20, 100 sessions, and a connection for each message
#   internal/bench/run.sh relay      relaying to one destination and to 200
#   internal/bench/run.sh signed     the same with a DKIM signature on each message
#   internal/bench/run.sh sessions   the curve over the number of sessions, drawn to docs/bench/sessions.svg
#   internal/bench/run.sh length     the scale test, and the curve over the length of the queue, drawn to docs/bench/length.svg
#   internal/bench/run.sh distance   sending over one connection with 50 ms there and back, see distance.sh
#
# The harness is in $BENCH (../shared/bench), which needs root, Postfix and strace
# where STRACE is set. Its tables go to the standard output. ROUNDS (5) and DIR can be set.
set -eu
cd "$(dirname "$0")/../.."
BENCH=${BENCH:-../shared/bench}
export DIR=${DIR:-/tmp/benchrun} ROUNDS=${ROUNDS:-5} SYSTEMS=${SYSTEMS:-"postfix discard"}
mkdir -p "$DIR/bin" docs/bench
go build -o "$DIR/bin/" ./examples/relay ./internal/bench/discard ./internal/bench/delay
export RELAY=$DIR/bin/relay OURS_CMD=$PWD/internal/bench/relay.sh PEERS_EXTRA=$PWD/internal/bench/discard.sh
peers() { echo "## $*"; env "$@" "$BENCH/peers.sh"; }

case ${1:-} in
accept)
  for s in 1 20 100; do peers TESTS=accept SESSIONS=$s; done
  peers TESTS=accept PER_CONN=1
  ;;
relay) peers TESTS="relay1 relay200" SYSTEMS=postfix ;;
signed)
  openssl genrsa -out "$DIR/dkim.pem" 2048 2>/dev/null
  FLAGS="-dkim-key $DIR/dkim.pem -dkim-domain bench.example -dkim-selector s1" peers TESTS="accept relay1" SYSTEMS=postfix
  ;;
sessions)
  : >"$DIR/sessions.tsv"
  for s in 1 2 5 10 20 50 100 200; do
    peers TESTS=accept SESSIONS=$s | tee "$DIR/out"
    awk -F'\t' -v OFS='\t' -v s=$s '$2 == "accept" { print $3, s, $4 }' "$DIR/out" >>"$DIR/sessions.tsv"
  done
  sed -e 's/^ours/mailspine/' -e 's/^discard/go-smtp, discarding/' "$DIR/sessions.tsv" >docs/bench/sessions.tsv
  go run ./internal/bench/plot -title "Accepting 10 KB messages durably" -x "sessions" -y "messages/s" -logx \
    <docs/bench/sessions.tsv >docs/bench/sessions.svg
  ;;
length)
  MAILSPINE_SOAK=1 go test -v -count=1 -timeout 30m -run 'TestScale$' ./queue/filequeue | tee "$DIR/scale.tsv"
  awk -F'\t' -v OFS='\t' '$1 == "scale" && match($2, /^(Put|Lease|Settle, delivered), median at /) {
      n = substr($2, RLENGTH + 1) + 0; t[n] += $3
    } END { for (n in t) print "Put, Lease, Settle, one after the other", n, 1000 / t[n] }' "$DIR/scale.tsv" | sort -t"$(printf '\t')" -k2n >docs/bench/length.tsv
  go run ./internal/bench/plot -title "A message through filequeue, beside many that wait" -x "items in the queue" -y "messages/s" -logx \
    <docs/bench/length.tsv >docs/bench/length.svg
  ;;
distance) BENCH=$BENCH SYSTEMS="postfix ours" internal/bench/distance.sh ;;
*) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
