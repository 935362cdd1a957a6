# lib.sh: what the scripts of this folder share. Source it; it sets
#   root    the source tree
#   build   the build folder: $BUILD or $HEDDLE_BUILD, else build/release, else build
# and counts in `failed` what report says FAIL to.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${BUILD:-${HEDDLE_BUILD:-}}
if [ -z "$build" ]; then
    build=$root/build
    if [ -d "$root/build/release" ]; then build=$root/build/release; fi
fi
export HEDDLE_CLUSTER=none # nobody plans for a check but the check itself
failed=0
started=$(date +%s.%N)

# need FILE...: programs of the build folder; ends the check where one is missing.
need() {
    local file
    for file in "$@"; do
        [ -x "$build/$file" ] || { echo "$(basename "$0"): $build/$file is missing: build first (cmake --build), or set BUILD"; exit 1; }
    done
}

# report WHAT VALUE RELATION BOUND: one line, PASS or FAIL. A value that is no number fails.
report() {
    local verdict=FAIL
    if [[ ! ${2,,} =~ nan ]] && awk -v a="$2" -v b="$4" "BEGIN{exit !(a == a + 0 && a $3 b)}"; then verdict=PASS; else failed=1; fi
    printf '  %-64s %-11s %s %-9s %s\n' "$1" "$2" "$3" "$4" "$verdict"
}

# say WHAT pass|fail: the same for what has no figure.
say() {
    local verdict=PASS
    if [ "$2" != pass ]; then verdict=FAIL; failed=1; fi
    printf '  %-88s %s\n' "$1" "$verdict"
}

# finish: the last line, NAME: PASS or FAIL (seconds), and the exit status.
finish() {
    local verdict=PASS
    if [ "$failed" != 0 ]; then verdict=FAIL; fi
    echo "$(basename "$0"): $verdict ($(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }') s)"
    exit "$failed"
}

# ---- checks/models.tsv ----

# row NAME COLUMN; seed NAME; keys NAME: "layers=2 width=64 ..."; size NAME KEY: that key's value, else nothing.
row() { awk -F'\t' -v name="$1" -v column="$2" '$1 == name { print $column; found = 1 } END { exit !found }' "$root/checks/models.tsv"; }
seed() { row "$1" 2; }
keys() { row "$1" 3; }
size() { keys "$1" | tr ' ' '\n' | sed -n "s/^$2=//p"; }
# shape NAME: the keys that bench programs take, of a model alone.
shape() { keys "$1" | tr ' ' '\n' | grep -E '^(arch|layers|width|heads|kv_heads|mlp|vocab)=' | tr '\n' ' '; }

# config NAME: its config.json.
config() {
    local layers width heads vocab positions
    layers=$(size "$1" layers) width=$(size "$1" width) heads=$(size "$1" heads) vocab=$(size "$1" vocab) positions=$(size "$1" positions)
    case $(size "$1" arch) in
    gpt2)
        printf '{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": %d, "n_embd": %d, "n_head": %d, "vocab_size": %d, "n_positions": %d,
    "activation_function": "gelu_new", "resid_pdrop": %s, "embd_pdrop": %s, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}\n' \
            "$layers" "$width" "$heads" "$vocab" "$positions" "$(size "$1" dropout | grep . || echo 0.0)" "$(size "$1" dropout | grep . || echo 0.0)"
        ;;
    llama)
        printf '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": %d, "hidden_size": %d, "num_attention_heads": %d,
    "num_key_value_heads": %d, "intermediate_size": %d, "vocab_size": %d, "max_position_embeddings": %d, "hidden_act": "silu", "rope_theta": 10000.0,
    "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0}\n' \
            "$layers" "$width" "$heads" "$(size "$1" kv_heads)" "$(size "$1" mlp)" "$vocab" "$positions"
        ;;
    *) return 1 ;;
    esac
}
