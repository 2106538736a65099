#!/bin/bash
# distance.sh: Postfix and examples/relay send messages over one connection to a
# server that is far away: 50 ms there and back. Called by run.sh distance.
#
# The line is internal/bench/delay, the server internal/bench/discard (go-smtp),
# which offers PIPELINING and CHUNKING to both. The systems take turns in each
# round. The rate is that between the first message and the last at the server;
# round trips are turns of the client on the line, those for EHLO and QUIT
# included. Postfix may deliver one message at a time and keeps its connection
# (smtp_connection_cache_destinations); the relay has -sessions 1.
#
# SYSTEMS, ROUNDS, MSGS, SIZE, ONE_WAY, LIMIT and FLAGS (of the relay) can be set.
# Needs root and the Debian package postfix, as ../shared/bench/peers.sh does.
# Binds and connects on 127.0.0.1 only; stops only what it started.
set -u
BENCH=${BENCH:-../shared/bench}
DIR=${DIR:-/tmp/benchrun}
SYSTEMS=${SYSTEMS:-"postfix ours"}
ROUNDS=${ROUNDS:-3}
MSGS=${MSGS:-400}
SIZE=${SIZE:-10240}
ONE_WAY=${ONE_WAY:-25ms}
PORT_BASE=${PORT_BASE:-2750}
LIMIT=${LIMIT:-240} # seconds one run may take
FLAGS=${FLAGS:-}
run=$DIR/distance
out=$DIR/distance.$(date +%Y%m%d-%H%M%S).tsv
mkdir -p "$DIR/bin" "$run" || exit 1
bench=$(cd "$BENCH" && pwd) || exit 1
(cd "$bench" && CGO_ENABLED=0 go build -o "$DIR/bin/" ./cmd/smtpload) || exit 1
[[ -x /usr/sbin/postfix ]] || { echo "distance.sh: postfix is not installed" >&2; exit 1; }

wait_port() { # port, seconds
  local i
  for ((i = 0; i < $2 * 10; i++)); do
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0
    sleep 0.1
  done
  return 1
}
stop_pid() {
  local i
  kill "$1" 2>/dev/null || return 0
  for ((i = 0; i < 300; i++)); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
  kill -9 "$1" 2>/dev/null
}
field() { sed -n "s/.*\"$2\":\([-0-9.e+]*\).*/\1/p" "$1"; }

start_postfix() { # listen port, port to relay to
  local d=$run/postfix
  rm -rf "$d"
  mkdir -p "$d/etc" "$d/spool" "$d/data" && chown postfix "$d/data" && chmod 755 "$DIR" "$run" "$d" "$d/etc" "$d/spool"
  cat >"$d/etc/main.cf" <<CF
compatibility_level = 3.6
config_directory = $d/etc
queue_directory = $d/spool
data_directory = $d/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.bench.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
smtpd_peername_lookup = no
alias_maps =
alias_database =
local_recipient_maps =
smtp_host_lookup = native
disable_dns_lookups = yes
smtpd_tls_security_level = none
smtp_tls_security_level = none
in_flow_delay = 0
relayhost = [127.0.0.1]:$2
initial_destination_concurrency = 1
default_destination_concurrency_limit = 1
smtp_connection_cache_destinations = 127.0.0.1
CF
  cat >"$d/etc/master.cf" <<CF
127.0.0.1:$1 inet n - n - 250 smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
CF
  postfix -c "$d/etc" start >"$d/start.log" 2>&1 || { cat "$d/start.log" >&2; return 1; }
}
stop_postfix() { timeout 60 postfix -c "$run/postfix/etc" stop >/dev/null 2>&1; rm -rf "$run/postfix"; }

start_ours() {
  rm -rf "$run/ours"; mkdir -p "$run/ours"
  # shellcheck disable=SC2086
  "$DIR/bin/relay" -listen "127.0.0.1:$1" -spool "$run/ours/spool" -relay "127.0.0.1:$2" -sessions 1 $FLAGS >"$run/ours.log" 2>&1 &
  pid=$!
}
stop_ours() { stop_pid "$pid"; wait "$pid" 2>/dev/null; rm -rf "$run/ours"; }

one() { # round, system
  local door=$((PORT_BASE + 1)) sink=$((PORT_BASE + 2)) line=$((PORT_BASE + 3)) sinkpid linepid
  "$DIR/bin/discard" -listen "127.0.0.1:$sink" -count "$MSGS" -limit "${LIMIT}s" >"$run/sink.json" 2>"$run/sink.err" &
  sinkpid=$!
  wait_port "$sink" 10 || { echo "distance.sh: the server does not listen" >&2; return 1; }
  "$DIR/bin/delay" -listen "127.0.0.1:$line" -to "127.0.0.1:$sink" -delay "$ONE_WAY" -limit "$((LIMIT + 60))s" >"$run/line.json" 2>"$run/line.err" &
  linepid=$!
  if ! "start_$2" "$door" "$line" || ! wait_port "$door" 20; then
    echo "distance.sh: $2 does not start" >&2
  else
    timeout "$LIMIT" "$DIR/bin/smtpload" -json -addr "127.0.0.1:$door" -sessions 4 -messages "$MSGS" -size "$SIZE" \
      -to rcpt@sink.example -limit "${LIMIT}s" >"$run/load.json"
    wait "$sinkpid"
  fi
  "stop_$2"
  stop_pid "$linepid"; wait "$linepid" 2>/dev/null
  stop_pid "$sinkpid"; wait "$sinkpid" 2>/dev/null
  awk -v OFS='\t' -v r="$1" -v s="$2" -v rate="$(field "$run/sink.json" msgs_per_s)" -v n="$(field "$run/sink.json" messages)" \
    -v d="$(field "$run/sink.json" distinct)" -v c="$(field "$run/line.json" connections)" -v t="$(field "$run/line.json" turns)" \
    -v up="$(field "$run/line.json" octets_to_server)" -v failed="$(field "$run/load.json" failed)" -v la="$(cut -d' ' -f1 /proc/loadavg)" \
    'BEGIN { print r, s, sprintf("%.2f", rate), (n > 0 ? sprintf("%.3f", t / n) : "-"), c, (n > 0 ? sprintf("%.0f", up / n) : "-"), n, d, failed, la }' | tee -a "$out"
}

echo -e "round\tsystem\tmsgs/s\tround_trips/msg\tconnections\toctets/msg\tdone\tdistinct\tfailed\tload1" | tee "$out"
for ((r = 1; r <= ROUNDS; r++)); do
  for s in $SYSTEMS; do one "$r" "$s"; done
done
echo
echo "Medians of $ROUNDS rounds: $MSGS messages of $SIZE octets, $ONE_WAY each way, one connection; $(nproc) cores, $(uname -r)"
awk -F'\t' '
  function med(list,   a, n, i, j, x) { n = split(list, a, " "); for (i = 2; i <= n; i++) { x = a[i] + 0; for (j = i - 1; j > 0 && a[j] + 0 > x; j--) a[j+1] = a[j]; a[j+1] = x } return n % 2 ? a[(n+1)/2] + 0 : (a[n/2] + a[n/2+1]) / 2 }
  NR > 1 { if (!($2 in v)) order[++m] = $2; v[$2] = v[$2] " " $3; t[$2] = t[$2] " " $4; rate[$1, $2] = $3; if ($1 > nr) nr = $1; if ($7 != $8) bad[$2]++ }
  END {
    printf "%-10s %9s %16s %14s\n", "system", "msgs/s", "round trips/msg", "ratio/postfix"
    for (i = 1; i <= m; i++) { s = order[i]; rl = ""
      for (r = 1; r <= nr; r++) if (rate[r, "postfix"] > 0) rl = rl " " rate[r, s] / rate[r, "postfix"]
      printf "%-10s %9.2f %16.3f %14s %s\n", s, med(v[s]), med(t[s]), rl != "" ? sprintf("%.2f", med(rl)) : "-", bad[s] ? bad[s] " runs with losses or duplicates" : "" }
  }' "$out"
echo "raw: $out"
