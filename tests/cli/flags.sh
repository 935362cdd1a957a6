#!/usr/bin/env bash
# Flags, help, the man page and the version.
. "$(dirname "$0")/lib.sh"

ok "$heddle" --help
ok "$heddle" --version
has '^heddle [0-9]+\.[0-9]+\.[0-9]+$'
has '^instruction set: '
has '^oneDNN.*: (built in|absent)$'

ok "$heddle" --man
cmp -s out "$root/docs/heddle.1" || fail "docs/heddle.1 is not what heddle --man prints: write it anew (heddle --man > docs/heddle.1)"

for command in train serve generate data convert bench 'bench serve' inspect calibrate; do
    "$heddle" --help | grep -q "^  $command " || fail "heddle --help does not name $command"
    ok "$heddle" $command --help
    has "^heddle $command: "
    has '^  --'
    refuses 'there is no flag --no-such-flag' "$heddle" $command --no-such-flag 1
    refuses 'settings.json' "$heddle" $command --config settings.json
done

refuses 'there is no command "fly"' "$heddle" fly
refuses 'no/such/place.json cannot be written' "$heddle" calibrate --out no/such/place.json
refuses '.seconds must be a number from 1 to' "$heddle" calibrate --seconds 0
refuses '.steps must be a whole number from 1 to' "$heddle" train --steps 0
refuses '.steps must be a whole number' "$heddle" train --steps 1.5
refuses '.steps must be a whole number' "$heddle" train --steps many
refuses '.steps needs a value' "$heddle" train --steps
refuses '.learning-rate must be a number from 0 to' "$heddle" train --learning-rate=nan
refuses '.learning-rate must be a number from 0 to' "$heddle" train --learning-rate 1e30
refuses '.precision must be f32\|bf16, not "f8"' "$heddle" train --precision f8
refuses '.dtype must be f32\|bf16\|f16' "$heddle" convert --dtype int3 a b
refuses 'one word too many' "$heddle" inspect a b c
refuses 'bad input: no.json|no.json' "$heddle" train --config no.json
refuses 'model' "$heddle" train
refuses 'no such file or directory' "$heddle" train --model nowhere
refuses 'warmup' "$heddle" train --model x --warmup 2000 --steps 10

echo '{"steps": 5, "no_such_key": 1}' > settings.json
refuses 'settings.json: there is no setting "no_such_key"' "$heddle" train --config settings.json
echo '{"steps": true}' > settings.json
refuses 'settings.json: --steps must be' "$heddle" train --config settings.json
echo '{"steps": 5' > settings.json
refuses 'settings.json: line 2' "$heddle" train --config settings.json

# A file's settings are taken, and flags win over them.
make_corpus
llama > model.json
echo '{"steps": 3, "save_every": "1:0"}' > settings.json
ok train --config settings.json --out run --steps 2
same "checkpoints" "$(cd run && echo step-*)" "step-1 step-2"
finish
