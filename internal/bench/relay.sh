#!/bin/bash
# relay.sh: run examples/relay (the binary in $RELAY) as the benchmark harness
# wants it: see peers.sh there. FLAGS has further flags.
set -eu
flags=()
case $MODE in
accept) flags+=(-hold) ;;
relay) flags+=(-relay "$SINK") ;;
relay200)
  for n in {1..200}; do echo "d$n.sink.example 127.0.1.$n:${SINK##*:}"; done >"$SPOOL.routes"
  flags+=(-routes "$SPOOL.routes" -relay "$SINK")
  ;;
*) echo "relay.sh: MODE=$MODE?" >&2; exit 2 ;;
esac
# shellcheck disable=SC2086
exec "$RELAY" -listen "$LISTEN" -spool "$SPOOL" "${flags[@]}" ${FLAGS:-}
