# Defines the system "discard" for the harness, see run.sh there.
start_discard() {
  addr=127.0.0.1:$((PORT_BASE + 6))
  in_cg_bg "$DIR/bin/discard" -listen "$addr" >/dev/null 2>&1 &
  pid=$!
}
stop_discard() { stop_pid "$pid"; wait "$pid" 2>/dev/null; }
