#!/bin/sh
# Runs LightTTS on a GPU host, one server or two on one GPU. Settings are in README.md, beside this file.
#
#   LIGHTTTS_MODEL_DIR=/models/CosyVoice2-0.5B lighttts.sh start [single|double]
#   lighttts.sh status
#   lighttts.sh stop
#
# `start` comes back once every server answers (0), or with none of them left running (1).
# `status`: 0 all ready, 1 one is not, 3 there is none.
set -eu

say() { printf '%s\n' "lighttts: $*"; }
warn() { say "$@" >&2; }
fail() {
    warn "$@"
    exit 1
}
usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
# `sleep` of POSIX knows whole seconds only; GNU's and busybox's know more.
pause() { sleep 0.2 2>/dev/null || sleep 1; }
now() { date +%s; }

# --- processes -----------------------------------------------------------------------------------

# Of a process that is there and not a zombie: $group, and $start (clock ticks since boot), which tells it from a later
# process with its number. Its name, in brackets before these fields, may hold blanks and brackets itself.
process() {
    read -r line 2>/dev/null <"/proc/$1/stat" || return 1
    # shellcheck disable=SC2086  # the fields are wanted one by one
    set -- ${line##*) }
    [ $# -ge 20 ] || return 1 # a name with a line end in it
    case $1 in Z | X) return 1 ;; esac
    group=$3
    shift 19
    start=$1
}
alive() { process "$1" && [ "$start" = "$2" ]; }

members() {
    for folder in /proc/[0-9]*; do
        if process "${folder#/proc/}" && [ "$group" = "$1" ]; then printf '%s\n' "${folder#/proc/}"; fi
    done
}

# One spelling, because servers carry the path of their pid file as a mark.
settle_run_dir() { [ ! -d "$run_dir" ] || run_dir=$(cd "$run_dir" && pwd); }
pid_file() { printf '%s\n' "$run_dir/lighttts-$1.pid"; }
log_file() { printf '%s\n' "$run_dir/lighttts-$1.log"; }

# What became of the server of a port, into $state, $pid and $started:
#   none      no pid file
#   running   as we started it
#   orphaned  it is gone, and workers of it are left, which still hold the GPU's memory
#   stale     nothing of it is left; the number may be another program's by now
look() {
    state=none pid='' started=''
    [ -f "$(pid_file "$1")" ] || return 0
    read -r pid started <"$(pid_file "$1")" || true
    state=stale
    case $pid in '' | 0 | 1 | *[!0-9]*) return 0 ;; esac
    if alive "$pid" "$started"; then
        state=running
    elif ! process "$pid"; then
        for worker in $(members "$pid"); do
            # The mark is in what the server left to its workers, so a group that only has the same number is not ours.
            if tr '\0' '\n' 2>/dev/null <"/proc/$worker/environ" | grep -qxF "LIGHTTTS_PID_FILE=$(pid_file "$1")"; then
                state=orphaned
            fi
        done
    fi
}

ports_with_pid_file() {
    for file in "$run_dir"/lighttts-*.pid; do
        [ -f "$file" ] || continue
        port=${file##*/lighttts-}
        printf '%s\n' "${port%.pid}"
    done
}

# Ends a server and everything in its process group, and removes its pid file.
stop_port() {
    look "$1"
    case $state in
        none) return 0 ;;
        stale)
            warn "port $1: process ${pid:-?} is gone or is not ours, and was not touched; its pid file is removed"
            ;;
        *)
            say "port $1: stopping process group $pid"
            kill -s TERM -- "-$pid" 2>/dev/null || true
            end=$(($(now) + stop_seconds))
            while alive "$pid" "$started" && [ "$(now)" -lt "$end" ]; do pause; done
            # Its workers ignore TERM and leave their end to the server (light_tts/utils/graceful_utils.py), so what
            # has outlived it will not end by itself.
            kill -s KILL -- "-$pid" 2>/dev/null || true
            for _ in 1 2 3 4 5 6 7 8 9 10; do
                [ -n "$(members "$pid")" ] || break
                pause
            done
            [ -z "$(members "$pid")" ] || fail "port $1: process group $pid does not end"
            ;;
    esac
    rm -f "$(pid_file "$1")"
}

# --- talking to a server -------------------------------------------------------------------------

# The host's Python rather than curl, which GPU images often lack. http.client asks no proxy.
# `ask free PORT` succeeds where nobody has the port; `ask GET PORT PATH SECONDS` where the answer is 200, and
# prints the models of /query_tts_model, of which there must be one.
ask() {
    "$python" -ISc '
import http.client, json, signal, socket, sys

signal.signal(signal.SIGINT, signal.SIG_DFL)
what, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if what == "free":
    with socket.socket() as listener:  # on all addresses, as LightTTS itself tries it (PortLocker)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            sys.exit(1)
    sys.exit()
path, seconds = sys.argv[4], float(sys.argv[5])
try:
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    models = json.loads(body).get("tts_models", []) if path == "/query_tts_model" else ["-"]
except (OSError, http.client.HTTPException, ValueError, AttributeError):
    sys.exit(1)
if answer.status != 200 or not models:
    sys.exit(1)
print(", ".join(models))
' "$1" "$probe_host" "$2" "${3:-}" "${4:-}"
}

died() {
    warn "port $1: the server ended while it was starting; the end of $(log_file "$1"):"
    tail -n 30 "$(log_file "$1")" >&2
    exit 1
}

# /query_tts_model costs nothing, and is answered only after LightTTS has loaded everything and spoken once.
wait_until_ready() {
    look "$1"
    end=$(($(now) + start_seconds))
    until models=$(ask GET "$1" /query_tts_model 5); do
        alive "$pid" "$started" || died "$1"
        if [ "$(now)" -ge "$end" ]; then
            tail -n 30 "$(log_file "$1")" >&2
            fail "port $1: not ready after $start_seconds s. The first start on a type of GPU builds a TensorRT plan," \
                "which takes minutes: raise LIGHTTTS_START_SECONDS"
        fi
        pause
    done
    # LightTTS serves even where its own first synthesis failed, so one real one is asked for. 60 s is what
    # api_http.py itself names as the time-out of this check.
    if [ "$healthz" = 1 ] && ! ask GET "$1" /healthz 60 >/dev/null; then
        tail -n 30 "$(log_file "$1")" >&2
        fail "port $1: lists $models, but cannot speak (/healthz)"
    fi
    say "port $1: ready, models: $models, process $pid"
}

# --- start ---------------------------------------------------------------------------------------

whole() { # NAME VALUE LEAST
    case $2 in
        '' | *[!0-9]* | 0?*) fail "$1 is \"$2\"; expected a whole number, at least $3" ;;
    esac
    [ "$2" -ge "$3" ] || fail "$1 is \"$2\"; expected a whole number, at least $3"
}

read_parameters() {
    # Proven on an A10 with 24 GB: one server takes 10 to 12 GB, two of the smaller kind 18 to 20 GB.
    case $1 in
        single) set -- 32768 16384 16384 100 ;;
        double) set -- 24576 12288 12288 80 ;;
    esac
    max_total_token_num=${LIGHTTTS_MAX_TOTAL_TOKEN_NUM:-$1}
    max_req_total_len=${LIGHTTTS_MAX_REQ_TOTAL_LEN:-$2}
    batch_max_tokens=${LIGHTTTS_BATCH_MAX_TOKENS:-$3}
    cache_capacity=${LIGHTTTS_CACHE_CAPACITY:-$4}
    encode_process_num=${LIGHTTTS_ENCODE_PROCESS_NUM:-1}
    decode_process_num=${LIGHTTTS_DECODE_PROCESS_NUM:-1}
    # LightTTS reads this with argparse's type=bool: "False" is true, and only an empty word is false.
    case ${LIGHTTTS_LOAD_TRT-True} in
        '' | 0 | [Ff]alse | FALSE | [Nn]o | [Oo]ff) load_trt='' ;;
        *) load_trt=True ;;
    esac
    whole LIGHTTTS_MAX_TOTAL_TOKEN_NUM "$max_total_token_num" 1
    whole LIGHTTTS_MAX_REQ_TOTAL_LEN "$max_req_total_len" 1
    whole LIGHTTTS_BATCH_MAX_TOKENS "$batch_max_tokens" 1
    whole LIGHTTTS_CACHE_CAPACITY "$cache_capacity" 1
    whole LIGHTTTS_ENCODE_PROCESS_NUM "$encode_process_num" 1
    whole LIGHTTTS_DECODE_PROCESS_NUM "$decode_process_num" 1
    [ "$batch_max_tokens" -ge "$max_req_total_len" ] ||
        fail "LIGHTTTS_BATCH_MAX_TOKENS is $batch_max_tokens and LIGHTTTS_MAX_REQ_TOTAL_LEN is $max_req_total_len;" \
            "a batch has to hold a whole request, so the first must not be less than the second"
    [ "$max_total_token_num" -ge "$batch_max_tokens" ] ||
        fail "LIGHTTTS_MAX_TOTAL_TOKEN_NUM is $max_total_token_num and LIGHTTTS_BATCH_MAX_TOKENS is $batch_max_tokens;" \
            "a batch has to fit into memory, so the first must not be less than the second"
}

# A file that is there, has something in it, and is not what `git clone` leaves without git-lfs.
whole_file() { [ -s "$1" ] && ! head -c 40 "$1" | grep -q '^version https://git-lfs'; }
# A plan for some GPU; "…mygpu.plan" and "…a10.plan" are CosyVoice's own and not read by LightTTS.
has_plan() {
    for plan in "$model_dir"/flow.decoder.estimator.*.sm*.plan; do
        [ ! -s "$plan" ] || return 0
    done
    return 1
}

check_model() {
    [ -n "$model_dir" ] || fail "LIGHTTTS_MODEL_DIR is not set; expected the folder of a CosyVoice 2 or 3 model"
    [ -d "$model_dir" ] || fail "LIGHTTTS_MODEL_DIR is $model_dir, which is no folder"
    # Which files: light_tts/utils/load_utils.py, tts_encode/manager.py, tts_decode/model_infer/model_rpc.py (ad1c76e).
    # Where both settings files are there, LightTTS takes the model for a CosyVoice 3.
    version=2
    [ ! -f "$model_dir/cosyvoice3.yaml" ] || version=3
    missing=''
    set -- "cosyvoice$version.yaml" llm.pt flow.pt hift.pt campplus.onnx "speech_tokenizer_v$version.onnx"
    for name in config.json model.safetensors tokenizer_config.json vocab.json merges.txt; do
        set -- "$@" "CosyVoice-BlankEN/$name"
    done
    if [ -n "$load_trt" ] && ! has_plan; then
        set -- "$@" flow.decoder.estimator.fp32.onnx # what the TensorRT plan is built from
    fi
    for name in "$@"; do
        whole_file "$model_dir/$name" || missing="$missing $name"
    done
    case $missing in *" cosyvoice2.yaml"*) missing="$missing (or cosyvoice3.yaml and its files)" ;; esac
    [ -z "$missing" ] || fail "the model in $model_dir lacks, or has empty or as git-lfs pointers:$missing"
}

check_gpu() {
    if ! command -v nvidia-smi >/dev/null; then
        warn "nvidia-smi is not there, so the GPU was not looked at"
    elif ! gpus=$(nvidia-smi --query-gpu=index,name,memory.used,memory.total --format=csv,noheader 2>&1); then
        fail "nvidia-smi fails: $gpus"
    else
        say "GPU: $gpus"
    fi
}

check_port() {
    look "$1"
    case $state in
        running) fail "port $1: already running (process $pid); stop it first" ;;
        orphaned) fail "port $1: the server has ended and left workers in process group $pid; stop them first" ;;
        stale)
            warn "port $1: stale pid file removed"
            rm -f "$(pid_file "$1")"
            ;;
    esac
    ask free "$1" || fail "port $1 is taken by another program"
}

launch() {
    log=$(log_file "$1")
    [ ! -f "$log" ] || mv -f "$log" "$log.1"
    # A session of its own, so that its workers end with the group. LightTTS starts `gunicorn` by name, so that of its
    # Python comes first in PATH. The lock is closed: it would last as long as the server.
    # No --health_monitor: it SIGKILLs every process after three /health checks of more than 60 s, and a
    # healthy server with a deep queue is that slow.
    (
        cd "$home"
        LIGHTTTS_PID_FILE=$(pid_file "$1") PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}
        PATH=$(dirname "$python"):$PATH
        export LIGHTTTS_PID_FILE PYTHONPATH PATH PYTHONUNBUFFERED=1
        exec setsid "$python" -m light_tts.server.api_server \
            --model_dir "$model_dir" --host "$bind" --port "$1" \
            --max_total_token_num "$max_total_token_num" --max_req_total_len "$max_req_total_len" \
            --batch_max_tokens "$batch_max_tokens" --cache_capacity "$cache_capacity" \
            --encode_process_num "$encode_process_num" --decode_process_num "$decode_process_num" \
            --load_trt "$load_trt"
    ) </dev/null >"$log" 2>&1 9>&- &
    process "$!" || start=0
    printf '%s %s\n' "$!" "$start" >"$(pid_file "$1")"
    say "port $1: started, process $!, log $log"
}

start() {
    case $1 in single | double) ;; *) usage ;; esac
    read_parameters "$1"
    whole LIGHTTTS_PORT "$first" 1
    whole LIGHTTTS_SECOND_PORT "$second" 1
    whole LIGHTTTS_STAGGER_SECONDS "$stagger" 0
    whole LIGHTTTS_START_SECONDS "$start_seconds" 1
    for tool in setsid flock; do
        command -v "$tool" >/dev/null || fail "$tool is not there; it comes with util-linux"
    done
    python_found=$(command -v "$python") || fail "LIGHTTTS_PYTHON is $python, which is not there"
    case $python_found in /*) python=$python_found ;; *) python=$PWD/$python_found ;; esac
    [ -f "$home/light_tts/server/api_server.py" ] ||
        fail "LIGHTTTS_HOME is $home, which is no LightTTS: it has no light_tts/server/api_server.py"
    home=$(cd "$home" && pwd)
    check_model
    model_dir=$(cd "$model_dir" && pwd)
    check_gpu

    mkdir -p "$run_dir"
    settle_run_dir
    exec 9>"$run_dir/lock"
    flock -n 9 || fail "another start is at work in $run_dir"
    ports=$first
    [ "$1" = single ] || ports="$first $second"
    for port in $ports; do check_port "$port"; done

    # From here on, whatever ends this script but success takes what it started along.
    trap 'trap - EXIT INT TERM HUP; for port in $ports; do (stop_port "$port") || :; done; exit 1' EXIT INT TERM HUP
    launch "$first"
    if [ "$1" = double ]; then
        # Two that load at once need more memory than two that serve.
        look "$first"
        end=$(($(now) + stagger))
        until [ "$(now)" -ge "$end" ]; do
            alive "$pid" "$started" || died "$first"
            pause
        done
        alive "$pid" "$started" || died "$first"
        # Both would write the same TensorRT plan, and one could read half of it.
        if [ -n "$load_trt" ] && ! has_plan; then wait_until_ready "$first"; fi
        launch "$second"
    fi
    for port in $ports; do wait_until_ready "$port"; done
    trap - EXIT INT TERM HUP
}

# --- stop and status -----------------------------------------------------------------------------

stop() {
    ports=$(ports_with_pid_file)
    [ -n "$ports" ] || say "nothing is running"
    for port in $ports; do stop_port "$port"; done
}

status() {
    code=3
    for port in $(ports_with_pid_file); do
        look "$port"
        [ "$code" != 3 ] || code=0
        if [ "$state" != running ]; then
            say "port $port: not running ($state, process ${pid:-?}); the log is $(log_file "$port")"
            code=1
        elif models=$(ask GET "$port" /query_tts_model 5); then
            say "port $port: ready, models: $models, process $pid"
        else
            say "port $port: process $pid runs and does not answer; the log is $(log_file "$port")"
            code=1
        fi
    done
    [ "$code" != 3 ] || say "nothing is running"
    exit "$code"
}

home=${LIGHTTTS_HOME:-/opt/light-tts}
python=${LIGHTTTS_PYTHON:-python3}
model_dir=${LIGHTTTS_MODEL_DIR:-}
bind=${LIGHTTTS_BIND:-127.0.0.1}
probe_host=$bind
[ "$bind" != 0.0.0.0 ] || probe_host=127.0.0.1
first=${LIGHTTTS_PORT:-8080}
second=${LIGHTTTS_SECOND_PORT:-8081}
stagger=${LIGHTTTS_STAGGER_SECONDS:-60}
start_seconds=${LIGHTTTS_START_SECONDS:-300}
stop_seconds=${LIGHTTTS_STOP_SECONDS:-60}
healthz=${LIGHTTTS_HEALTHZ:-1}
run_dir=${LIGHTTTS_RUN_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/lighttts}
whole LIGHTTTS_STOP_SECONDS "$stop_seconds" 0
settle_run_dir

case ${1:-} in
    start) start "${2:-single}" ;;
    stop) stop ;;
    status) status ;;
    *) usage ;;
esac
