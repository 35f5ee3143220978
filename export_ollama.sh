#!/usr/bin/env bash
# Put a finished run into Ollama:
#   ./export_ollama.sh [--modelfile-only] [--adapter BASE] [--switch] [RUN | RUN/merged | FILE.gguf] [NAME]
#   ./export_ollama.sh --rollback NAME
#
#   RUN    a run's folder (default: the newest under OUTPUT_DIR of config.ini), or one of its GGUF files
#   NAME   its name in Ollama, [namespace/]model[:tag] (default: the run's NEW_MODEL_NAME)
#   BASE   the model that was trained on, as Ollama has it already: only the adapter is added to it
#
# Makes what is missing, writes Modelfile.NAME beside the GGUF, and one with whole paths into the folder you are in, and
# puts the model into Ollama: through the API of the server at OLLAMA_HOST, where it is proved that what is served is what
# was trained before NAME stands for it; without the packages by `ollama create` and one question.
# --switch: only where the new model answers the held-out questions no worse than what NAME stands for; else exit 5, and
# NAME is left as it is. What it stood for stays as NAME-previous, and --rollback NAME goes back to that.
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
patience=${OLLAMA_ANSWER_SECONDS:-300} # a first answer loads the model
longest=${OLLAMA_ANSWER_TOKENS:-1000}  # of an answer to such a question; one that never ends is no answer
needs_ollama=0.30.0                    # the first that uses the chat template inside a GGUF

# stdin, with nothing in it that acts on a terminal: what a model, a server or a file's name says may hold escape codes.
# The bytes are those of UTF-8: of C1 controls, of line separators and text direction, of isolates.
without_controls() {
    local return=$'\r' escape=$'\033'
    local c1=$'\302[\200-\237]' direction=$'\342\200[\250-\256]' isolate=$'\342\201[\246-\251]'
    LC_ALL=C sed -e "s/$return\$//" -e "s/$escape/\\\\x1b/g" -e "s/$c1/?/g" -e "s/$direction/?/g" -e "s/$isolate/?/g" |
        LC_ALL=C tr '\001-\010\013-\037\177' '?'
}
say() { printf '%s\n' "$*" | without_controls >&2; }
fail() { # fail EXIT_CODE MESSAGE
    local code=$1
    shift
    say "export_ollama.sh: $*"
    exit "$code"
}

# A command of this project as it can be pasted where one stands.
command_of() { # command_of PROGRAM [WORD...]
    local program=$root/$1
    shift
    [ ! "$PWD" -ef "$root" ] || program=./${program##*/}
    case $program in
    *[!A-Za-z0-9_./+-]*) # %q would show what is not ASCII as numbers where the locale is C
        program="'$(printf '%s' "$program" | sed "s/'/'\\\\''/g")'"
        ;;
    esac
    printf '%s' "$program"
    [ $# = 0 ] || printf ' %q' "$@"
}
wrong_arguments() { # wrong_arguments MESSAGE
    say "wrong arguments"
    say "  $1"
    say "  $(command_of export_ollama.sh --help) lists all arguments"
    exit 2
}

# A name for a message, which has one line.
shown() { case $1 in *[[:cntrl:]]*) printf '%q' "$1" ;; *) printf '%s' "$1" ;; esac }

# The value of a key in a settings file, as training/settings/ini_file.py reads it; nothing when the key is not there.
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

# The value of a command in a Modelfile, as Ollama reads it: a line inside a quoted value is no command.
# Fails where the command is not there.
value_of() { # value_of COMMAND <MODELFILE
    LC_ALL=C tr -d '\r\000' | LC_ALL=C awk -v wanted="$1" '
        found || (mark == "" && /^[ \t]*(#|$)/) { next }
        {
            value = $0
            if (mark == "") {
                word = tolower($1)
                sub(/^[ \t]*[^ \t]+[ \t]+/, "", value)
                if (word == "parameter" || word == "message") sub(/^[^ \t]+[ \t]+/, "", value)
                if (match(value, /^("""|")/)) mark = substr(value, 1, RLENGTH)
                value = substr(value, length(mark) + 1)
            }
            bare = value
            sub(/[ \t]+$/, "", bare)
            marked = length(bare) - length(mark)
            ended = mark == "" || (marked >= 0 && substr(bare, marked + 1) == mark)
            if (word == wanted) print ended ? substr(bare, 1, marked) : value
            if (ended) { found = word == wanted; mark = "" }
        }
        END { exit !found }'
}

has_template() { value_of template <"$modelfile" >/dev/null; }

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
        [ -n "$run" ] || fail 2 "there is no run under $output yet: $(command_of run.sh) makes one, or name its folder"
    fi
}

# Sets run, and gguf when a file was named: from RUN, RUN/merged, FILE.gguf or nothing.
find_run() {
    local named=${1%/} to
    gguf=""
    if [ -L "$named" ] && [ -d "$named" ]; then # OUTPUT_DIR/merged_model stands for RUN/merged
        to=$(readlink "$named")
        case $to in /*) named=$to ;; *) named=$(dirname "$named")/$to ;; esac
        named=${named%/}
    fi
    if [ -z "$named" ]; then
        newest_run
    elif [ -f "$named" ]; then
        case ${named##*/} in
        *[[:cntrl:]]* | *[[:space:]])
            fail 2 "$(shown "$named"): a Modelfile cannot hold such a name; rename the file"
            ;;
        *.gguf) gguf=${named##*/} ;;
        *) fail 2 "$named is neither a run's folder nor a .gguf file" ;;
        esac
        run=$(dirname "$named")
    elif [ -d "$named" ]; then
        run=$named
        if [ "$(basename "$named")" = merged ]; then run=$(dirname "$named"); fi
    else
        fail 2 "$named: no such folder or file"
    fi
    if [ -L "$run" ]; then # RUN/latest: name the run itself, for `latest` moves on
        local link
        link=$(readlink "$run")
        case $link in /*) run=$link ;; *) run=$(dirname "$run")/$link ;; esac
    fi
    case $run in /*) ;; .) run=$PWD ;; *) run=$PWD/${run#./} ;; esac
}

# Ollama's rule for names: [[host/]namespace/]model[:tag], each of letters, digits and some signs; so a path or an
# option is none. It also stands in training/settings/names.py and training/ollama/modelfile_syntax.py; a test compares them.
check_name() {
    local host='[A-Za-z0-9_][A-Za-z0-9_.:-]*' namespace='[A-Za-z0-9_][A-Za-z0-9_-]{0,79}'
    local part='[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}' line=$1
    # grep looks at each line by itself
    case $1 in *[[:cntrl:]]*) line="" ;; esac
    if ! printf '%s\n' "$line" | LC_ALL=C grep -Eqx "(($host/)?$namespace/)?$part(:$part)?"; then
        fail 2 "$(shown "$1") is no name for a model in Ollama: [namespace/]model[:tag] of letters, digits and _ - ."
    fi
}

# What all spellings of a name have in common: Ollama takes them for one.
listed() {
    printf '%s' "$1" | LC_ALL=C tr '[:upper:]' '[:lower:]' |
        sed -e 's|^registry\.ollama\.ai/||' -e 's|^library/\([^/]*\)$|\1|' -e 's|:latest$||'
}

# Is everything there that this script starts from? A run that stopped before its checks were through is not.
is_exported() {
    [ -f "$run/Modelfile" ] || return 1
    [ -n "$gguf" ] || [ -f "$run/$(value_of from <"$run/Modelfile")" ] || return 1
    [ ! -f "$run/status.json" ] || [ -f "$run/report.json" ]
}

export_run() {
    if [ ! -f "$run/status.json" ]; then
        fail 2 "$run is no run's folder, and has no Modelfile with its GGUF file"
    fi
    if [ ! -x "$root/.venv/bin/python" ]; then
        fail 3 "$run is not exported yet, and that needs the packages: run $(command_of setup.sh) first"
    fi
    say "finishing the export of $run"
    PYTHONUTF8=1 "$root/.venv/bin/python" "$root/training/export.py" "$run" >/dev/null
}

# The run's first file, which its Modelfile names. Another place than beside it is not what this script copies FROM.
own_gguf() {
    gguf=$(value_of from <"$run/Modelfile")
    gguf=${gguf#./}
    case $gguf in
    */* | . | ..) fail 2 "$run/Modelfile: FROM $gguf is no file beside it; put it there, or name the one that is" ;;
    esac
}

# Modelfile.NAME: the run's Modelfile, FROM the file that was named. Left alone when it is right already.
write_modelfile() {
    local text partial
    modelfile=$run/Modelfile.$(printf '%s' "$name" | tr '/:' '--')
    text=$(LC_ALL=C FROM="./$gguf" awk '
        !done && /^[Ff][Rr][Oo][Mm][ \t]/ { print "FROM " ENVIRON["FROM"]; done = 1; next }
        { print }' "$run/Modelfile")
    if [ -f "$modelfile" ] && [ "$(cat "$modelfile")" = "$text" ]; then return; fi
    partial=$modelfile.$$.partial
    if ! { printf '%s\n' "$text" >"$partial" && mv -f "$partial" "$modelfile"; } 2>/dev/null; then
        rm -f "$partial" 2>/dev/null || true
        fail 3 "$modelfile cannot be written: is the disk full, or the folder read-only?"
    fi
}

# With --adapter: the adapter as GGUF and its Modelfile, made by the package. Left alone when they are there.
write_adapter() {
    local converted trained=$run/adapter/adapter_model.safetensors
    modelfile=$run/Modelfile.$(printf '%s' "$name" | tr '/:' '--')
    if [ -f "$modelfile" ] && [ "$(value_of from <"$modelfile")" = "$adapter" ]; then
        converted=$(sed -n 's|^ADAPTER \./||p' "$modelfile" | head -n 1)
        if [ -n "$converted" ] && [ -f "$run/$converted" ]; then
            if [ ! -f "$trained" ] || [ "$run/$converted" -nt "$trained" ]; then return; fi
        fi
    fi
    if [ -n "$gguf" ] || [ ! -f "$run/status.json" ]; then
        fail 2 "--adapter is for a run's folder, and $run is none with an adapter"
    fi
    if [ ! -x "$root/.venv/bin/python" ]; then
        fail 3 "the adapter is not converted yet, and that needs the packages: run $(command_of setup.sh) first"
    fi
    PYTHONUTF8=1 "$root/.venv/bin/python" "$root/training/export.py" "$run" \
        --adapter "$adapter" --name "$name" >/dev/null
}

# The same with whole paths in the folder that the caller stands in, where `ollama create NAME -f Modelfile.NAME` is typed
# next. A file of that name that is not of this script is left alone.
copy_modelfile_here() {
    local mark="# With whole paths, for the folder it lies in; written by export_ollama.sh from " first="" text
    local here=$PWD/${modelfile##*/}
    if [ "$PWD" -ef "$run" ] || [ "$PWD/.." -ef "$run" ] || [ ! -w "$PWD" ]; then return; fi
    case $run in *[[:cntrl:]]*) return ;; esac
    if [ -e "$here" ] || [ -L "$here" ]; then
        IFS= read -r first <"$here" 2>/dev/null || true
        case $first in
        "$mark"*) ;;
        *)
            say "$here is there already and was left alone; the one that was written is $modelfile"
            return
            ;;
        esac
    fi
    text=$(LC_ALL=C RUN="$run" awk -v adapter="$adapter" '
        !from && /^[Ff][Rr][Oo][Mm] \.\// { print "FROM " ENVIRON["RUN"] substr($0, 7); from = 1; next }
        adapter && !done && /^ADAPTER \.\// { print "ADAPTER " ENVIRON["RUN"] substr($0, 10); done = 1; next }
        { print }' "$modelfile")
    { printf '%s\n%s\n' "$mark$modelfile" "$text" >"$here"; } 2>/dev/null || true
}

# Is version $1 before version $2? Numbers only: 0.30.0-rc1 is 0.30.0.
older() {
    awk -v one="$1" -v two="$2" 'BEGIN {
        split(one, a, ".")
        split(two, b, ".")
        for (i = 1; i <= 3; i++) if (a[i] + 0 != b[i] + 0) exit a[i] + 0 > b[i] + 0
        exit 1
    }'
}

# Is the API to be used? It needs the packages and what training left in the run, and a server that answers.
has_api() {
    [ -x "$root/.venv/bin/python" ] && [ -f "$root/training/to_ollama.py" ] || return 1
    [ -d "$run/adapter" ] && [ -f "$run/checkpoints/export.json" ] || return 1
    PYTHONUTF8=1 "$root/.venv/bin/python" "$root/training/to_ollama.py" --ping
}

# The name of another model beside NAME, not longer than names may be: as training/ollama/server.py has it.
beside() { # beside NAME WHAT
    local last=${1##*/} tag="" model most=$((79 - ${#2}))
    model=${last%%:*}
    case $last in *:*) tag=:${last#*:} ;; esac
    printf '%s%s-%s%s' "${1%"$last"}" "${model:0:most}" "$2" "$tag"
}

copy_model() { # copy_model FROM TO [MESSAGE]
    ollama cp "$1" "$2" >&2 || fail 1 "ollama cp $1 $2 failed (above)${3:+; $3}"
}

roll_back() { # roll_back NAME
    local python=$root/.venv/bin/python before aside answer
    if [ -x "$python" ] && PYTHONUTF8=1 "$python" "$root/training/to_ollama.py" --ping; then
        PYTHONUTF8=1 exec "$python" "$root/training/to_ollama.py" --rollback "$1"
    fi
    before=$(beside "$1" previous)
    aside=$(beside "$1" next)
    command -v ollama >/dev/null 2>&1 || fail 3 "no Ollama answers, and there is no ollama command here"
    answer=$(ollama list 2>&1) || fail 3 "Ollama does not answer (${answer##*$'\n'}). Start it (ollama serve)"
    ollama show "$before" >/dev/null 2>&1 || fail 2 "Ollama has no $before: --switch keeps one"
    if ollama show "$aside" >/dev/null 2>&1; then
        fail 2 "Ollama has a model $aside, a name that is needed here for a while: it is somebody's own, or what $1 stood" \
            "for when a --rollback was killed (ollama cp $aside $before keeps it). Where it may go:  ollama rm $aside"
    fi
    if ollama show "$1" >/dev/null 2>&1; then
        copy_model "$1" "$aside"
        copy_model "$before" "$1" "$1 is as it was, and also called $aside"
        copy_model "$aside" "$before" "what $1 stood for is called $aside now"
        ollama rm "$aside" 2>&1 | progress_as_lines >&2 || say "warning: $aside could not be removed (above); $before is the same model"
    else
        copy_model "$before" "$1"
    fi
    say "$1 stands again for what it was before; the same command goes forward"
    printf '%s\n' "$1"
}

check_ollama() {
    local command version numbers answer
    command=$(printf 'ollama create %q -f %q' "$name" "$modelfile")
    if ! command -v ollama >/dev/null 2>&1; then
        printf '%s\n' "$modelfile"
        fail 3 "Ollama is not installed here. Where it is, with this folder:  $command"
    fi
    if ! answer=$(ollama list 2>&1); then
        printf '%s\n' "$modelfile"
        fail 3 "Ollama does not answer (${answer##*$'\n'}). Start it (ollama serve), then:  $command"
    fi
    if [ -n "$adapter" ]; then
        if ! ollama show "$adapter" >/dev/null 2>&1; then
            fail 3 "Ollama has no model $adapter: ollama pull $adapter, then:  $command"
        fi
        return
    fi
    has_template && return
    # The server's; the command's own follows as a warning where it is another.
    version=$(ollama --version 2>/dev/null | sed -n 's/^ollama version \(is \)\{0,1\}//p') || true
    numbers=$(printf '%s\n' "$version" | sed -n 's/^v\{0,1\}\([0-9]\{1,\}\.[0-9.]\{1,\}\).*/\1/p')
    case $numbers in
    # Built from source, or another program: not known is not old. check_template sees what it does.
    "" | 0.0 | 0.0.0)
        say "this model needs Ollama $needs_ollama or later;" \
            "this one says version \"$version\", which is taken for that"
        ;;
    *)
        if older "$numbers" "$needs_ollama"; then
            printf '%s\n' "$modelfile"
            fail 3 "this model's chat template has no form as a TEMPLATE, so it needs Ollama $needs_ollama or later;" \
                "this is $version. After an update:  $command"
        fi
        ;;
    esac
}

# Ollama draws its progress for a terminal. This makes lines of it: each once, without escape codes, spinners and what
# is not 100% yet.
progress_as_lines() {
    LC_ALL=C awk '{
        gsub(/\033\[[0-9;?]*[A-Za-z]|\r/, "\n")
        parts = split($0, lines, "\n")
        for (i = 1; i <= parts; i++) {
            line = lines[i]
            sub(/[ \t]*(\342\240[\200-\277][ \t]*)*$/, "", line)
            gsub(/[\001-\010\013-\037\177]/, "?", line)
            if (line == "" || seen[line]++ || (line !~ /^Error/ && line ~ /[^0-9][0-9]?[0-9]%/)) continue
            print line
            fflush()
        }
    }'
}

create() {
    local code=0
    say "ollama create $name"
    # FROM is relative: Ollama resolves it against the Modelfile's own folder.
    if [ -t 2 ]; then
        ollama create "$name" -f "$modelfile" >&2 || code=1
    else
        ollama create "$name" -f "$modelfile" 2>&1 | progress_as_lines >&2 || code=1
    fi
    [ "$code" = 0 ] || fail 1 "ollama create failed (above); $modelfile is there"
}

digest() { { sha256sum || shasum -a 256 || openssl dgst -sha256 -r; } 2>/dev/null | cut -c 1-64; }

# Which template does the server use? Since 0.30 the chat template in the GGUF where that knows more than TEMPLATE
# (tools, thoughts), else TEMPLATE. Where it is a third one, the model would answer badly. `ollama show --template`
# gives the one in use; the one in the GGUF is known by the SHA-256 that the Modelfile has in a comment.
#   used     the template in use; base_used: the one in use for --adapter's BASE
#   ours     the Modelfile's TEMPLATE
#   trained  the SHA-256 of the chat template trained with; used_sum: that of the one in use
check_template() {
    local used ours trained used_sum="" base_used="" renderer why
    # Ollama before 0.1.20 has no such option.
    if ! used=$(ollama show --template "$name" 2>/dev/null | LC_ALL=C tr -d '\r\000'); then
        say "warning: this Ollama does not tell which chat template it uses, so that was not checked"
        return
    fi
    ours=$(value_of template <"$modelfile") || true
    trained=$(LC_ALL=C sed -n 's/^# Chats by the chat template of SHA-256 \([0-9a-f]\{64\}\)\..*/\1/p' "$modelfile")
    [ -z "$trained" ] || used_sum=$(printf '%s' "$used" | digest) || true
    [ -z "$adapter" ] || base_used=$(ollama show --template "$adapter" 2>/dev/null | LC_ALL=C tr -d '\r\000') || true
    renderer=$(ollama show --modelfile "$name" 2>/dev/null | value_of renderer) || true
    if [ -n "$renderer" ]; then
        say "warning: this Ollama writes prompts with its own renderer $renderer, not by a template;" \
            "whether that is as trained was not checked"
    elif [ -n "$ours" ] && [ "$used" = "$ours" ]; then
        say "this Ollama uses the Modelfile's TEMPLATE"
    elif [ -n "$used_sum" ] && [ "$used_sum" = "$trained" ]; then
        say "this Ollama uses the chat template in the GGUF, the one trained with"
    elif is_jinja "$used" && LC_ALL=C grep -q '^# Takes plain text' "$modelfile"; then
        fail 1 "$name takes plain text, but this Ollama uses the chat template in the GGUF." \
            "OLLAMA_GO_TEMPLATE=true in its server's environment makes it use TEMPLATE"
    elif [ -n "$adapter" ] && [ "$used" = "$base_used" ] && { [ -z "$ours" ] || is_jinja "$used"; }; then
        say "warning: this Ollama uses $adapter's own chat template," \
            "which is not letter for letter the one trained with"
    elif [ -z "$used_sum" ] && is_jinja "$used"; then
        why="$modelfile does not say which that is"
        [ -z "$trained" ] || why="no sha256sum, shasum or openssl is here"
        say "warning: this Ollama uses the chat template in the GGUF." \
            "Whether it is the one trained with was not checked: $why"
    elif [ -z "$ours" ]; then
        fail 1 "Ollama put another template in the place of the one in the GGUF; the model would answer badly." \
            "From $needs_ollama on, OLLAMA_GO_TEMPLATE=false in its server's environment makes it use the GGUF's"
    else
        fail 1 "Ollama put another template in the place of the one in $modelfile; the model would answer badly." \
            "Is this Ollama up to date?"
    fi
}

# A chat template of a GGUF, and none of Ollama's: those are Go's.
is_jinja() { case $1 in *'{%'*) true ;; *) false ;; esac }

# The beginning of a long text in a file, up to the end of a letter.
beginning() {
    head -c 600 "$1" | LC_ALL=C awk '
        NR > 1 { print last }
        { last = $0 }
        END { sub(/[\300-\377][\200-\277]*$/, "", last); print last " ..." }'
}

bytes_of() { wc -c <"$1" | tr -d ' '; }

# Ask the model one question, with a limit on the answer's length and on the time: a model that never stops is a
# finding, not a reason to hang. A token has about four bytes, in English and in Chinese.
ask() {
    local answer why child watch code=0 stop tokens=$((10#$longest))
    local most=$((tokens * 4))
    answer=$(mktemp "${TMPDIR:-/tmp}/answer.XXXXXX")
    say "> $question"
    ollama run --nowordwrap "$name" "$question" >"$answer" 2>"$answer.err" &
    child=$!
    (
        waited=0
        while [ "$waited" -lt "$patience" ] && [ "$(bytes_of "$answer")" -le "$most" ]; do
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
    why=$(progress_as_lines <"$answer.err" | tail -n 1)
    rm -f "$answer.err"
    if [ "$code" = 143 ] && [ "$(bytes_of "$answer")" -gt "$most" ]; then
        beginning "$answer" | without_controls >&2
        say "It has not learned where an answer ends (does the report say that it stops? If not: more steps or rows)," \
            "or the end"
        say "has no PARAMETER stop in $modelfile, or its GGUF has add_eos_token." \
            "If answers are meant to be long: OLLAMA_ANSWER_TOKENS=$((tokens * 5))"
        fail 1 "$name is in Ollama but did not stop by itself within about $tokens tokens"
    fi
    without_controls <"$answer" >&2
    # An answer that was cut off has no end of its line.
    [ "$code" = 0 ] || say ""
    if [ "$code" = 143 ]; then fail 1 "$name is in Ollama but did not finish its answer within $patience s"; fi
    if [ "$code" != 0 ]; then fail 1 "$name is in Ollama but does not answer: $why"; fi
    if ! grep -q '[^[:space:]]' "$answer"; then fail 1 "$name is in Ollama but its answer is empty"; fi
    sed -n 's/^PARAMETER stop "\(.*\)"$/\1/p' "$modelfile" | while IFS= read -r stop; do
        if [ -n "$stop" ] && grep -qF -e "$stop" "$answer"; then
            say "warning: the answer holds $stop, where it should have ended"
        fi
    done
}

for limit in "$patience" "$longest"; do # also for training/to_ollama.py
    [[ $limit =~ ^0*[1-9][0-9]{0,5}$ ]] ||
        fail 2 "OLLAMA_ANSWER_SECONDS and OLLAMA_ANSWER_TOKENS are whole numbers from 1 to 999999"
done
modelfile_only=false adapter="" switch=""
named="" name="" seen=0
while [ $# -gt 0 ]; do
    case $1 in
    --modelfile-only) modelfile_only=true ;;
    --switch) switch=--switch ;;
    --rollback)
        case ${2-} in "" | -*) wrong_arguments "--rollback: name the model to go back with" ;; esac
        [ $# = 2 ] && [ "$seen$modelfile_only$adapter$switch" = 0false ] ||
            wrong_arguments "--rollback NAME stands alone"
        check_name "$2"
        roll_back "$2"
        exit 0
        ;;
    --adapter)
        adapter=${2-}
        case $adapter in
        "" | -*) wrong_arguments "--adapter: name the model that Ollama has, for example --adapter qwen3:0.6b" ;;
        esac
        shift
        ;;
    --help | -h)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$self"
        exit 0
        ;;
    -*) wrong_arguments "$1 is not a flag" ;;
    *)
        seen=$((seen + 1))
        case $seen in 1) named=$1 ;; 2) name=$1 ;; *) wrong_arguments "too many arguments, from $1 on" ;; esac
        ;;
    esac
    shift
done

if [ -n "$switch" ] && [ "$modelfile_only" = true ]; then
    wrong_arguments "--switch and --modelfile-only exclude each other"
fi
# `--switch NAME` is about the newest run.
if [ -n "$switch" ] && [ -n "$named" ] && [ -z "$name" ] && [ ! -e "$named" ]; then
    # A path that is mistyped may look like namespace/model.
    if case $named in *.gguf) true ;; */*) [ -d "${named%%/*}" ] ;; *) false ;; esac then
        fail 2 "$named: no such folder or file. A model of that name: $(command_of export_ollama.sh --switch RUN "$named")"
    fi
    name=$named named=""
fi
find_run "$named"
[ -n "$name" ] || name=$(setting "$run/config.ini" Model NEW_MODEL_NAME)
if [ -n "$adapter" ]; then
    check_name "$adapter"
    if [ "$(listed "$name")" = "$(listed "$adapter")" ]; then
        fail 2 "$name is the model that the adapter is for; give the new one another NAME"
    fi
    [ -n "$name" ] || name=$(basename "$run")
elif ! is_exported; then
    export_run
fi
[ -n "$gguf$adapter" ] || own_gguf
[ -n "$name" ] || name=$(printf '%s' "${gguf%.gguf}" | sed 's/\.[A-Za-z]*[0-9][0-9A-Za-z_]*$//')
check_name "$name"
if [ -n "$adapter" ]; then write_adapter; else write_modelfile; fi
copy_modelfile_here
if [ "$modelfile_only" = true ]; then
    printf '%s\n' "$modelfile"
    exit 0
fi
if has_api; then
    export PYTHONUTF8=1
    # shellcheck disable=SC2086  # nothing, or one word
    exec "$root/.venv/bin/python" "$root/training/to_ollama.py" "$run" \
        --modelfile "$modelfile" --name "$name" $switch
fi
[ -z "$switch" ] || fail 3 "--switch needs the packages ($(command_of setup.sh)), a run of this project and an Ollama that answers"
check_ollama
create
check_template
ask
say "done:  ollama run $name"
printf '%s\n' "$name"
