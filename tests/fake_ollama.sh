#!/usr/bin/env bash
# A fake Ollama for tests/test_export_ollama.py: there is no Ollama server where the tests run. It keeps what it is given
# under $FAKE_OLLAMA and resolves FROM as the real one does: against the Modelfile's own folder.
set -euo pipefail
echo "this is a fake ollama" >&2
store=$FAKE_OLLAMA
printf '%s\n' "$*" >>"$store/calls"
case $1 in
--version) echo "ollama version is ${FAKE_VERSION:-0.31.2}" ;;
list) [ ! -f "$store/down" ] || { echo "Error: could not connect to ollama server" >&2; exit 1; } ;;
create)
    [ "$3" = -f ]
    from=$(sed -n 's/^FROM //p' "$4")
    grep -qxF -e "$from" "$store/models" 2>/dev/null || [ -f "$(dirname "$4")/$from" ] || { echo "Error: no such file: $from" >&2; exit 1; }
    adapter=$(sed -n 's/^ADAPTER //p' "$4")
    [ -z "$adapter" ] || [ -f "$(dirname "$4")/$adapter" ] || { echo "Error: no such file: $adapter" >&2; exit 1; }
    cp "$4" "$store/Modelfile"
    echo "$2" >"$store/name"
    echo "success"
    ;;
show)
    if [ "$2" != --template ]; then exec grep -qxF -e "$2" "$store/models"; fi
    [ "$2" = --template ] && [ "$3" = "$(cat "$store/name")" ]
    if [ -f "$store/template" ]; then cat "$store/template"; else python3 -c '
import re, sys
print(re.search(r"^TEMPLATE (?:\"\"\"(.*?)\"\"\"|\"(.*?)\")$", open(sys.argv[1]).read(), re.S | re.M).expand(r"\1\2"))' "$store/Modelfile"; fi
    ;;
run)
    [ "$2" = "$(cat "$store/name")" ]
    [ ! -f "$store/mute" ] || exit 0
    [ ! -f "$store/endless" ] || exec sleep 60
    [ ! -f "$store/broken" ] || { echo "Error: llama runner process has terminated" >&2; exit 1; }
    cat "$store/answer" 2>/dev/null || echo "I am a fine-tuned assistant."
    ;;
*) exit 64 ;;
esac
