# lib.sh: what the tests of the command line share. Each test is a bash script that CTest runs with the program's path; it sources this, which sets
#   heddle  the program        root  the source tree        work  an empty folder, current, removed at the end
# and counts in `failed` what did not hold. The last line of a test is `finish`.
set -u
heddle=$(realpath "$1")
[ -x "$heddle" ] || { echo "there is no program $1"; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
export XDG_CACHE_HOME=$work/cache HEDDLE_CLUSTER=none # whatever this machine's calibration is: no test depends on it, and none calibrates
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2
failed=0
models=$root/tests/data/models

fail() {
    failed=$((failed + 1))
    echo "FAIL: $*"
}

# ok COMMAND...: succeeds; its output is in the files `out` and `err`.
ok() {
    "$@" > out 2> err && return 0
    fail "status $? of: $*"
    sed 's/^/    /' err
    return 1
}

# refuses PATTERN COMMAND...: fails by itself (no signal), with exactly one line on standard error, which begins with "heddle" and matches the
# extended regular expression.
refuses() {
    local pattern=$1 status=0
    shift
    "$@" > out 2> err || status=$?
    if [ $status = 0 ] || [ $status -ge 126 ]; then fail "status $status of: $*"; fi
    if [ "$(wc -l < err)" != 1 ] || ! grep -qE "^heddle.*$pattern" err; then
        fail "not one line with \"$pattern\" from: $*"
        head -n 20 err | sed 's/^/    /'
    fi
}

# has PATTERN [FILE]: the file (out) has a line that matches.
has() {
    grep -qE -- "$1" "${2:-out}" && return 0
    fail "no \"$1\" in ${2:-out}:"
    head -n 20 "${2:-out}" | sed 's/^/    /'
}

# same WHAT A B: two words are equal.
same() {
    [ "$2" = "$3" ] || fail "$1: \"$2\" and \"$3\""
}

# One sum over the names and contents of all files of folders.
sum_of() { find "$@" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16; }

# text.jsonl: sixty documents of made-up words; tokenizer.json of 300 tokens from them; shards corpus.bin, corpus.idx.
make_corpus() {
    awk 'BEGIN{srand(1); for (d = 0; d < 60; d++) {line = ""; for (i = 0; i < 40; i++) {word = ""; k = 2 + int(rand() * 6);
        while (k--) word = word substr("etaoinshrdlu", 1 + int(12 * rand() * rand()), 1); line = line (i ? " " : "") word}
        printf "{\"text\": \"%s\"}\n", line}}' > text.jsonl
    ok "$heddle" data --train-tokenizer tokenizer.json --vocab-size 300 --out corpus --quiet text.jsonl
}

# model.json: a Llama of one layer. llama NAME=VALUE...: with these members instead.
llama() {
    local text='{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": true}'
    for member in "$@"; do text=$(sed -E "s/(\"${member%%=*}\": )[^,}]*/\1${member#*=}/" <<< "$text"); done
    printf '%s\n' "$text"
}

# train FLAGS...: `heddle train` of model.json on the corpus, small and silent.
train() {
    "$heddle" train --model model.json --data corpus --tokenizer tokenizer.json --batch 2 --sequence 16 --validation 0 --threads 1 --quiet "$@"
}

finish() {
    [ "$failed" = 0 ] || echo "$failed failures"
    exit $((failed > 0))
}
