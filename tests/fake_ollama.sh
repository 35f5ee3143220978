#!/usr/bin/env bash
# A fake Ollama for tests/test_export_ollama.py: there is no Ollama server where the tests run. Made from what the servers
# 0.24.0 and 0.32.15 answered to the same commands and from their source (server/images.go, cmd/cmd.go): which template they
# take, what `show` and `--version` print, and the escape codes that `create` and `run` write to stderr.
# It keeps what it is given under $FAKE_OLLAMA, is the server $FAKE_VERSION, and resolves FROM as the real one does: against
# the Modelfile's own folder.
set -euo pipefail
store=$FAKE_OLLAMA
version=${FAKE_VERSION-0.32.15}
printf '%s\n' "$*" >>"$store/calls"

# progress MESSAGE...: one line after the other, and at each step all of them are drawn again, the last with its spinner
progress() {
    local all="" up="" message spinner
    for message in "$@"; do
        for spinner in ⠋ ⠙ ''; do
            printf '\033[?2026h\033[?25l%s\033[1G%s%s %s \033[K\033[?25h\033[?2026l' "$up" "$all" "$message" "$spinner" >&2
        done
        all+="$message "$'\033[K\n' up+=$'\033[A'
    done
    printf '\n' >&2
}

# template PART: `stored` (as `show --modelfile` has it) or `used` (as `show --template` does, since 0.30)
template() {
    python3 - "$1" "$store" "$version" <<'PYTHON'
import re, struct, sys
from pathlib import Path

part, store, version = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
modelfile = (store / "Modelfile").read_bytes().decode()
found = re.search(r'^TEMPLATE (?:"""(.*?)"""|"(.*?)"|(.*?))\r?$', modelfile, re.S | re.M)
own = found and next(text for text in found.groups() if text is not None)
if own is None and (store / "stock").is_file():  # create found a stock one near to the GGUF's (template/template.go, Named)
    own = (store / "stock").read_bytes().decode()


def chat_template(path):
    data = path.read_bytes()
    at, count = 24, struct.unpack_from("<Q", data, 16)[0]
    for _ in range(count):  # strings only: that is what the tests write
        length = struct.unpack_from("<Q", data, at)[0]
        key = data[at + 8 : at + 8 + length].decode()
        at += 12 + length
        length = struct.unpack_from("<Q", data, at)[0]
        value = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        if key == "tokenizer.chat_template":
            return value
    return ""


def knows(jinja):  # chatTemplateHasToolSupport, chatTemplateHasThinkingSupport
    tools = "tools" in jinja or "tool_call" in jinja
    splits = "content.split('</think>')" in jinja or 'content.split("</think>")' in jinja
    strips = splits and "reasoning_content" not in jinja and "<SPECIAL_12>" not in jinja
    return tools + ("<think>" in jinja and "</think>" in jinja or strips)


gguf = store / "gguf"
jinja = chat_template(gguf) if gguf.is_file() and gguf.stat().st_size > 24 else ""
numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
chooses = numbers in ([], [0, 0]) or numbers >= [0, 30]
if (store / "old").is_file():  # built from source before 0.30
    chooses = False
# Our TEMPLATEs know neither tools nor thoughts, so that the GGUF's wins where it knows any (shouldPreferChatTemplate).
if part == "used" and chooses and jinja and (own is None or knows(jinja)):
    sys.stdout.write(jinja)
else:
    sys.stdout.write(own if own is not None else "{{ .Prompt }}")
PYTHON
}

case $1 in
--version)
    [ -z "$version" ] || echo "ollama version is $version"
    [ ! -f "$store/client" ] || echo "Warning: client version is $(cat "$store/client")"
    ;;
list) [ ! -f "$store/down" ] || { echo "Error: could not connect to ollama server" >&2; exit 1; } ;;
cp) # $store/models has the names, $store/content what one that was copied stands for
    grep -qxF -e "$2" "$store/models" || { echo "Error: model \"$2\" not found" >&2; exit 1; }
    [ "$3" != "$(cat "$store/full" 2>/dev/null)" ] || { echo "Error: no space left on device" >&2; exit 1; }
    content=$(awk -v name="$2" '$1 == name { found = $2 } END { print found }' "$store/content" 2>/dev/null) || true
    printf '%s %s\n' "$3" "${content:-$2}" >>"$store/content"
    grep -qxF -e "$3" "$store/models" || printf '%s\n' "$3" >>"$store/models"
    echo "copied '$2' to '$3'"
    ;;
rm)
    grep -qxF -e "$2" "$store/models" || { echo "Error: model '$2' not found" >&2; exit 1; }
    awk -v name="$2" '$0 != name' "$store/models" >"$store/models.less"
    mv "$store/models.less" "$store/models"
    progress ""
    echo "deleted '$2'"
    ;;
create)
    [ "$3" = -f ]
    from=$(sed -n 's/^FROM //p' "$4" | tr -d '\r')
    file=$(dirname "$4")/$from
    if ! grep -qxF -e "$from" "$store/models" 2>/dev/null; then
        [ -f "$file" ] || { echo "Error: no such file: $from" >&2; exit 1; }
        cp "$file" "$store/gguf"
    fi
    adapter=$(sed -n 's/^ADAPTER //p' "$4")
    [ -z "$adapter" ] || [ -f "$(dirname "$4")/$adapter" ] || { echo "Error: no such file: $adapter" >&2; exit 1; }
    cp "$4" "$store/Modelfile"
    echo "$2" >"$store/name"
    progress "gathering model components" "copying file sha256:0a1b 9%" "copying file sha256:0a1b 100%" "parsing GGUF" "writing manifest" success
    ;;
show)
    [ ! -f "$store/silent" ] || { echo "Error: unknown flag: $2" >&2; exit 1; }
    case $2 in
    --template)
        if grep -qxF -e "$3" "$store/models" 2>/dev/null; then exec cat "$store/base"; fi
        [ "$3" = "$(cat "$store/name")" ]
        if [ -f "$store/template" ]; then cat "$store/template"; else template used; fi
        ;;
    --modelfile)
        [ "$3" = "$(cat "$store/name")" ]
        printf '# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n# FROM %s\n\n' "$3"
        printf 'FROM %s\nTEMPLATE """%s"""\n' "$store/gguf" "$(template stored)"
        [ ! -f "$store/renderer" ] || printf 'RENDERER %s\nPARSER %s\n' "$(cat "$store/renderer")" "$(cat "$store/renderer")"
        ;;
    *)
        [ ! -f "$store/down" ] || { echo "Error: could not connect to ollama server" >&2; exit 1; }
        exec grep -qxF -e "$2" "$store/models"
        ;;
    esac
    ;;
run)
    wrap=true
    if [ "$2" = --nowordwrap ]; then wrap=false; shift; fi
    [ "$2" = "$(cat "$store/name")" ]
    progress ""
    [ ! -f "$store/mute" ] || exit 0
    [ ! -f "$store/slow" ] || exec sleep 60
    if [ -f "$store/endless" ]; then while :; do printf 'and so on %.0s' {1..20}; sleep 0.05; done; fi
    [ ! -f "$store/broken" ] || { echo "Error: llama runner process has terminated" >&2; exit 1; }
    if [ "$wrap" = true ] && [ -f "$store/answer" ]; then printf 'a wo\033[2D\033[K\nword, wrapped: that is done to a file, too\n'; fi
    cat "$store/answer" 2>/dev/null || printf 'I am a fine-tuned assistant.\n\n'
    ;;
*) exit 64 ;;
esac
