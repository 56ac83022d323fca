#!/bin/sh
# What a rented box runs at every start of its container, reboots too. `callsheet/onstart.py` puts its settings in front
# and takes these comments out: vast.ai takes 4,096 characters for both.
#
# In this order: the dead-man's switch, which gives the box back at its end or when nobody renewed its lease; the agent,
# which loads the models; the engines. Nothing stops at a fault, because nothing may keep the switch from its work.
#
# $CALLSHEET_HOME holds `ends` (the end, epoch seconds), `lease` (its time is that of the last renewal), `going` (the box
# is being given back, and nothing changes that any more), `state` (of the models), and a log and a lock of each process.
set +e
export CALLSHEET_HOME="${CALLSHEET_HOME:-/workspace/.callsheet}"
# shellcheck disable=SC2174  # the folders above it may be as they are
mkdir -p -m 700 "$CALLSHEET_HOME"

# run NAME CODE: a process of its own session, so that no end of this script's takes it along. One of each name: where
# there is no flock or no disk to lock, two are better than none.
session=$(command -v setsid)
# shellcheck disable=SC2016  # for the process to expand
one='cd "$CALLSHEET_HOME"
command exec 9>>"$0.lock" && { flock -n 9; [ $? -ne 1 ] || exit 0; }
command exec >>"$0.log" 2>&1
'
# shellcheck disable=SC2086  # nothing, where there is no setsid
run() { $session sh -c "$one$2" "$1" </dev/null & }

# The switch. The end is the smaller of what was told first and what is told now; where no lease can be written, it began
# with this process. Queues are asked before the lease is looked at. What runs in the loop does not hold the lock (9>&-):
# a switch that was killed is replaced at once. The key goes through a pipe, since everybody can read arguments.
# shellcheck disable=SC2016
run switch 'trap "" HUP INT TERM
set -f
first="" gone=""
began=$(date +%s)
end=${CALLSHEET_ENDS:-0}
read -r first <ends && [ "$first" -lt "$end" ] && end=$first
[ -e ends ] || touch lease
[ "$first" = "$end" ] || echo "$end" >ends
while :; do
    for url in $CALLSHEET_QUEUES; do
        curl -gs -m 10 "$url" | tr -d " \r\n" | grep -Eq "\"queue_(running|pending)\":\[[^]]" && touch lease
    done
    if now=$(date +%s); then
        lease=$(stat -c %Y lease) || lease=$began
        [ "$now" -lt "$end" ] && [ $((now - lease)) -lt "${CALLSHEET_LEASE_SECONDS:-1800}" ] || gone=1
        if [ "$gone" ] || [ -e going ]; then
            touch going
            echo "$now: end $end, lease $lease; asks to be destroyed"
            printf "header = \"Authorization: Bearer %s\"" "$CONTAINER_API_KEY" |
                curl -sS -m 20 -K - -X DELETE -H "Content-Type: application/json" -d "{}" \
                    "${VAST_URL:-https://console.vast.ai}/api/v0/instances/$CONTAINER_ID/" |
                grep -q "\"success\": *true" && echo "taken on"
        fi
    fi
    sleep "${CALLSHEET_TICK:-30}" || sleep 30
done 9>&-'

# An agent that is there with the right hash needs no fetching. Its own failures are in its state.
# shellcheck disable=SC2016
[ -z "$CALLSHEET_AGENT_URL" ] || run agent 'rm -f state
set -- ${CALLSHEET_BACKOFF:-0 1 2 4 8 16 32 60}
until [ "$(sha256sum <agent.py)" = "$CALLSHEET_AGENT_SHA256  -" ]; do
    [ $# -gt 0 ] || {
        echo "failed: the agent $why" >state
        exit
    }
    sleep "$1"
    shift
    why="could not be fetched"
    printf "url = \"%s\"" "$CALLSHEET_AGENT_URL" | curl -fsSgL -m 60 -K - -o agent.py && why="has another sha256"
done
python3 agent.py || echo "failed: the agent ended with $?" >state'

# The engines have no business with these.
unset CALLSHEET_TOKEN CALLSHEET_AGENT_URL CALLSHEET_MODELS_URL
[ -z "$CALLSHEET_START" ] || exec sh -c "$CALLSHEET_START"
