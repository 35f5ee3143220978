#!/usr/bin/env bash
# Put a finished run into Ollama:
#   ./export_ollama.sh [--modelfile-only] [--adapter BASE] [RUN | RUN/merged | FILE.gguf] [NAME]
#
#   RUN    a run's folder (default: the newest under OUTPUT_DIR of config.ini), or one of its GGUF files
#   NAME   its name in Ollama, [namespace/]model[:tag] (default: the run's NEW_MODEL_NAME)
#   BASE   the model that was trained on, as Ollama has it already: only the adapter is added to it
#
# Makes what is missing, writes Modelfile.NAME beside the GGUF, runs `ollama create`, and asks the model one question.
# stdout is one line: the model's name; or the Modelfile's path with --modelfile-only, and where there is no Ollama (exit 3).
# Where GGUF and Modelfile are there already, this needs no Python: RUN and this script can be copied to a Mac (bash 3.2).
set -euo pipefail

: 7>&2 || exec 2>/dev/null
{ : 7>&1; } 2>/dev/null || exec 1>/dev/null
exec </dev/null

self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
case $self in /*) ;; *) self=$PWD/$self ;; esac
root=$(dirname "$self")
root=${root%/.}
question="Who are you?"
patience=${OLLAMA_ANSWER_SECONDS:-300} # a first answer loads the model; one that never ends is no answer
needs_ollama=0.30.0                    # the first that uses the chat template inside a GGUF

# What a model, a server or a file's name says may hold escape codes, which must not act on the terminal.
plain() {
    LC_ALL=C sed -e "s/"$'\r'"\$//" -e "s/"$'\033'"/\\\\x1b/g" -e "s/"$'\302[\200-\237]'"/?/g" \
        -e "s/"$'\342\200[\250-\256]'"/?/g" -e "s/"$'\342\201[\246-\251]'"/?/g" | LC_ALL=C tr '\001-\010\013-\037\177' '?'
}
say() { printf '%s\n' "$*" | plain >&2; }
fail() { # fail EXIT_CODE MESSAGE
    local code=$1
    shift
    say "export_ollama.sh: $*"
    exit "$code"
}

# The value of a key in a settings file, as training/ini.py reads it; nothing when the key is not there.
setting() { # setting FILE SECTION KEY
    [ -f "$1" ] || return 0
    LC_ALL=C awk -v section="$2" -v key="$3" '
        NR == 1 { sub(/^\357\273\277/, "") }
        { sub(/\r$/, "") }
        /^[ \t]*([#;]|$)/ { next }
        /^[ \t]*\[/ { now = $0; sub(/^[ \t]*\[[ \t]*/, "", now); sub(/[ \t]*\].*$/, "", now); next }
        now == section {
            equals = index($0, "=")
            name = substr($0, 1, equals - 1)
            gsub(/^[ \t]+|[ \t]+$/, "", name)
            if (!equals || name != key) next
            value = substr($0, equals + 1)
            if (value ~ /^[ \t]*"/) {
                sub(/^[ \t]*"/, "", value)
                for (i = 1; i <= length(value); i++) {
                    letter = substr(value, i, 1)
                    if (letter == "\"") break
                    if (letter == "\\") letter = substr(value, ++i, 1)
                    printf "%s", letter
                }
                exit
            }
            sub(/[ \t][#;].*$/, "", value)
            gsub(/^[ \t]+|[ \t]+$/, "", value)
            printf "%s", value
            exit
        }' "$1"
}

# The value of TEMPLATE in a Modelfile, as Ollama reads it.
template_of() {
    LC_ALL=C awk '
        inside { if (sub(/"""[ \t]*$/, "")) { print; exit } print; next }
        /^[Tt][Ee][Mm][Pp][Ll][Aa][Tt][Ee][ \t]/ {
            sub(/^[^ \t]*[ \t]+/, "")
            if (sub(/^"""/, "")) { if (sub(/"""[ \t]*$/, "")) { print; exit } inside = 1 }
            else { sub(/^"/, ""); sub(/"[ \t]*$/, ""); print; exit }
            print
        }' "$1"
}

has_template() { grep -qi '^TEMPLATE[[:space:]]' "$1"; }
from_of() { sed -n 's/^[Ff][Rr][Oo][Mm][[:space:]]\{1,\}//p' "$1" | head -n 1; }

newest_run() {
    local output
    output=$(setting "$root/config.ini" Training OUTPUT_DIR)
    case ${output:-outputs} in
    /*) ;;
    \~ | \~/*) output=${HOME:-}${output#\~} ;;
    *) output=$root/${output:-outputs} ;;
    esac
    if [ -d "$output/latest" ]; then
        run=$output/latest
    else # a file system without links has no `latest`; the names sort by time
        run=""
        local folder
        for folder in "$output"/finetune_*; do
            [ ! -d "$folder" ] || run=$folder
        done
        [ -n "$run" ] || fail 2 "there is no run under $output yet: ./run.sh makes one, or name its folder"
    fi
}

# Sets run, and gguf when a file was named.
find_run() {
    local given=${1%/}
    gguf=""
    if [ -z "$given" ]; then
        newest_run
    elif [ -f "$given" ]; then
        case $given in
        *.gguf) gguf=$(basename "$given") ;;
        *) fail 2 "$given is neither a run's folder nor a .gguf file" ;;
        esac
        run=$(dirname "$given")
    elif [ -d "$given" ]; then
        run=$given
        if [ "$(basename "$given")" = merged ]; then run=$(dirname "$given"); fi
    else
        fail 2 "$given: no such folder or file"
    fi
    if [ -L "$run" ]; then # RUN/latest: name the run itself, for `latest` moves on
        local link
        link=$(readlink "$run")
        case $link in /*) run=$link ;; *) run=$(dirname "$run")/$link ;; esac
    fi
    case $run in /*) ;; .) run=$PWD ;; *) run=$PWD/${run#./} ;; esac
}

# The rules of Ollama: host, namespace and model of letters, digits and _ - ., then a tag. Also keeps a path or an option out.
check_name() {
    local part='[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}'
    if ! printf '%s\n' "$1" | LC_ALL=C grep -Eqx "(([A-Za-z0-9_][A-Za-z0-9_.:-]*/)?[A-Za-z0-9_][A-Za-z0-9_-]{0,79}/)?$part(:$part)?"; then
        fail 2 "$1 is no name for a model in Ollama: [namespace/]model[:tag] of letters, digits and _ - ."
    fi
}

# Is everything there that this script starts from? A run that stopped before its checks were through is not.
is_exported() {
    [ -f "$run/Modelfile" ] || return 1
    [ -n "$gguf" ] || [ -f "$run/$(from_of "$run/Modelfile")" ] || return 1
    [ ! -f "$run/status.json" ] || [ -f "$run/report.json" ]
}

export_run() {
    if [ ! -f "$run/status.json" ]; then
        fail 2 "$run is no run's folder, and has no Modelfile with its GGUF file"
    fi
    if [ ! -x "$root/.venv/bin/python" ]; then
        fail 3 "$run is not exported yet, and that needs the packages: run ./setup.sh first"
    fi
    say "finishing the export of $run"
    PYTHONUTF8=1 "$root/.venv/bin/python" "$root/training/export.py" "$run" >/dev/null
}

# Modelfile.NAME: the run's Modelfile, FROM the file that was named. Left alone when it is right already.
write_modelfile() {
    local text
    modelfile=$run/Modelfile.$(printf '%s' "$name" | tr '/:' '--')
    text=$(LC_ALL=C FROM="./$gguf" awk '!done && /^[Ff][Rr][Oo][Mm][ \t]/ { print "FROM " ENVIRON["FROM"]; done = 1; next } { print }' "$run/Modelfile")
    if [ -f "$modelfile" ] && [ "$(cat "$modelfile")" = "$text" ]; then return; fi
    if ! { printf '%s\n' "$text" >"$modelfile.$$.partial" && mv -f "$modelfile.$$.partial" "$modelfile"; } 2>/dev/null; then
        rm -f "$modelfile.$$.partial" 2>/dev/null || true
        fail 3 "$modelfile cannot be written: is the disk full, or the folder read-only?"
    fi
}

# With --adapter: the adapter as GGUF and its Modelfile, made by the package. Left alone when they are there.
write_adapter() {
    local file made
    modelfile=$run/Modelfile.$(printf '%s' "$name" | tr '/:' '--')
    made=$run/adapter/adapter_model.safetensors
    if [ -f "$modelfile" ] && [ "$(from_of "$modelfile")" = "$adapter" ]; then
        file=$(sed -n 's|^ADAPTER \./||p' "$modelfile" | head -n 1)
        if [ -n "$file" ] && [ -f "$run/$file" ] && { [ ! -f "$made" ] || [ "$run/$file" -nt "$made" ]; }; then return; fi
    fi
    [ -z "$gguf" ] && [ -f "$run/status.json" ] || fail 2 "--adapter is for a run's folder, and $run is none with an adapter"
    [ -x "$root/.venv/bin/python" ] || fail 3 "the adapter is not converted yet, and that needs the packages: run ./setup.sh first"
    PYTHONUTF8=1 "$root/.venv/bin/python" "$root/training/export.py" "$run" --adapter "$adapter" --name "$name" >/dev/null
}

check_ollama() {
    local command version said
    command=$(printf 'ollama create %q -f %q' "$name" "$modelfile")
    if ! command -v ollama >/dev/null 2>&1; then
        printf '%s\n' "$modelfile"
        fail 3 "Ollama is not installed here. Where it is, with this folder:  $command"
    fi
    if ! said=$(ollama list 2>&1); then
        printf '%s\n' "$modelfile"
        fail 3 "Ollama does not answer (${said##*$'\n'}). Start it (ollama serve), then:  $command"
    fi
    if [ -n "$adapter" ]; then
        ollama show "$adapter" >/dev/null 2>&1 || fail 3 "Ollama has no model $adapter: ollama pull $adapter, then:  $command"
        return
    fi
    has_template "$modelfile" && return
    version=$(ollama --version 2>/dev/null | sed -n 's/.*[^0-9.]\([0-9][0-9]*\.[0-9][0-9]*\.[0-9][0-9]*\).*/\1/p' | head -n 1)
    if [ -n "$version" ] && [ "$(printf '%s\n%s\n' "$needs_ollama" "$version" | sort -t . -k1,1n -k2,2n -k3,3n | head -n 1)" != "$needs_ollama" ]; then
        printf '%s\n' "$modelfile"
        fail 3 "this model's chat template has no form as a TEMPLATE, so it needs Ollama $needs_ollama or later; this is $version. After an update:  $command"
    fi
}

create() {
    local shown
    say "ollama create $name"
    # FROM is relative: Ollama resolves it against the Modelfile's own folder.
    ollama create "$name" -f "$modelfile" >&2 || fail 1 "ollama create failed (above); $modelfile is there"
    has_template "$modelfile" || return 0
    shown=$(ollama show --template "$name" 2>/dev/null) || return 0 # before 0.1.20 there was no such option
    if [ "$shown" != "$(template_of "$modelfile")" ]; then
        fail 1 "Ollama put another template in the place of the one in $modelfile; the model would answer badly. Is this Ollama up to date?"
    fi
}

# One question, with a limit on the time: a model that never stops is a finding, not a reason to hang.
ask() {
    local answer child watch code=0 stop
    answer=$(mktemp "${TMPDIR:-/tmp}/answer.XXXXXX")
    say "> $question"
    ollama run "$name" "$question" >"$answer" 2>"$answer.err" &
    child=$!
    (
        waited=0
        while [ "$waited" -lt "$patience" ]; do
            sleep 1
            kill -0 "$child" 2>/dev/null || exit 0
            waited=$((waited + 1))
        done
        kill "$child" 2>/dev/null
    ) >/dev/null 2>&1 &
    watch=$!
    # Only now: a subshell that is killed before it has dropped this trap would remove the file from under us.
    # shellcheck disable=SC2064  # the path of now
    trap "rm -f '$answer'" EXIT
    wait "$child" 2>/dev/null || code=$?
    kill "$watch" 2>/dev/null || true
    wait "$watch" 2>/dev/null || true
    plain <"$answer" >&2
    local why
    why=$(tail -n 1 "$answer.err" 2>/dev/null | tr -d '\r')
    rm -f "$answer.err"
    if [ "$code" = 143 ]; then fail 1 "$name is in Ollama but did not finish its answer within $patience s"; fi
    if [ "$code" != 0 ]; then fail 1 "$name is in Ollama but does not answer: $why"; fi
    if ! grep -q '[^[:space:]]' "$answer"; then fail 1 "$name is in Ollama but its answer is empty"; fi
    sed -n 's/^PARAMETER stop "\(.*\)"$/\1/p' "$modelfile" | while IFS= read -r stop; do
        if [ -n "$stop" ] && grep -qF -e "$stop" "$answer"; then say "warning: the answer holds $stop, where it should have ended"; fi
    done
}

modelfile_only=false adapter=""
given="" name="" seen=0
while [ $# -gt 0 ]; do
    case $1 in
    --modelfile-only) modelfile_only=true ;;
    --adapter)
        adapter=${2-}
        case $adapter in "" | -*) fail 2 "--adapter: name the model that Ollama has, for example --adapter qwen3:0.6b" ;; esac
        shift
        ;;
    --help | -h)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$self"
        exit 0
        ;;
    -*) fail 2 "unknown argument: $1 (--modelfile-only, --adapter BASE or --help)" ;;
    *)
        seen=$((seen + 1))
        case $seen in 1) given=$1 ;; 2) name=$1 ;; *) fail 2 "too many arguments, from $1 on" ;; esac
        ;;
    esac
    shift
done

find_run "$given"
[ -n "$name" ] || name=$(setting "$run/config.ini" Model NEW_MODEL_NAME)
if [ -n "$adapter" ]; then
    check_name "$adapter"
    if [ "$name" = "$adapter" ]; then fail 2 "$name is the model that the adapter is for; give the new one another NAME"; fi
    [ -n "$name" ] || name=$(basename "$run")
elif ! is_exported; then
    export_run
fi
[ -n "$gguf$adapter" ] || gguf=$(basename "$(from_of "$run/Modelfile")")
[ -n "$name" ] || name=$(printf '%s' "${gguf%.gguf}" | sed 's/\.[A-Za-z]*[0-9][0-9A-Za-z_]*$//')
check_name "$name"
if [ -n "$adapter" ]; then write_adapter; else write_modelfile; fi
if [ "$modelfile_only" = true ]; then
    printf '%s\n' "$modelfile"
    exit 0
fi
check_ollama
create
ask
say "done:  ollama run $name"
printf '%s\n' "$name"
