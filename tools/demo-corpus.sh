#!/bin/sh
# Writes the demo's corpus: one JSON object {"text": ...} a line, one document each.
#
#   tools/demo-corpus.sh OUT.jsonl
#
# The text is FOLDOC, the Free On-line Dictionary of Computing (Denis Howe, GFDL), from Debian's package dict-foldoc (main; 2.4 MB):
# some ten thousand articles of English prose. The package need not be installed (it would bring a dictionary server): it is downloaded
# with apt and unpacked beside OUT, which takes no rights. HEDDLE_FOLDOC names another foldoc.dict.dz.
set -eu

[ $# -eq 1 ] || { echo "usage: tools/demo-corpus.sh OUT.jsonl" >&2; exit 2; }
out=$1
mkdir -p "$(dirname "$out")"
work=$(cd "$(dirname "$out")" && pwd)/foldoc
dict=${HEDDLE_FOLDOC:-/usr/share/dictd/foldoc.dict.dz}
inside=usr/share/dictd/foldoc.dict.dz

download() { (cd "$work" && rm -f ./*.deb && apt-get -q $sandbox download dict-foldoc); }
# As root, apt would fetch as another user, who may not write here, and warn of it.
sandbox=
[ "$(id -u)" = 0 ] && sandbox="-o APT::Sandbox::User=root"

if [ ! -s "$dict" ]; then
    dict=$work/$inside
    if [ ! -s "$dict" ]; then
        mkdir -p "$work"
        download || { [ "$(id -u)" = 0 ] && apt-get -q update && download; } || {
            echo "demo-corpus: could not download the Debian package dict-foldoc; run apt-get update as root, or set HEDDLE_FOLDOC" >&2
            exit 1
        }
        dpkg-deb -x "$work"/dict-foldoc_*.deb "$work"
    fi
fi

# In the dictionary: headwords at the margin, the body indented by three spaces, "{...}" round references, "<...>" round the field,
# dates of revision and addresses in parentheses. Lines indented further are code or tables and stay lines; all others are joined.
gzip -dc "$dict" | LC_ALL=C awk '
function paragraph_end() {
    if (line != "") body = body (body == "" ? "" : "\n\n") line
    line = ""
}
function document_end(  text) {
    paragraph_end()
    gsub(/[{}]/, "", body)
    gsub(/ *\(?(http|https|ftp|news|gopher):[^ )\n]*\)?/, "", body)
    gsub(/ *\((19|20)[0-9][0-9]-[0-9][0-9](-[0-9][0-9])?\)/, "", body)
    sub(/^<[^>]*> */, "", body)
    gsub(/[ \t]+\n/, "\n", body)
    gsub(/\n\n\n+/, "\n\n", body)
    sub(/[ \n]+$/, "", body)
    if (length(body) >= 120 && head !~ /^00-?database/) {
        text = head "\n\n" body "\n"
        gsub(/[\001-\010\013-\037\177]/, "", text)
        gsub(/\n/, "\001", text)
        print text
    }
    head = ""
    body = ""
}
/^[^ \t]/ {
    if (in_body) document_end()
    in_body = 0
    head = head (head == "" ? "" : ", ") $0
    next
}
/^[ \t]*$/ { if (head != "") in_body = 1; paragraph_end(); next }
{
    in_body = 1
    sub(/^   /, "")
    if ($0 ~ /^[ \t]/) verbatim = 1
    line = line (line == "" ? "" : verbatim || was_verbatim ? "\n" : " ") $0
    was_verbatim = verbatim
    verbatim = 0
}
END { document_end() }
' | LC_ALL=C sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/\\t/g; s/\x01/\\n/g; s/^/{"text": "/; s/$/"}/' > "$out.tmp"
mv "$out.tmp" "$out"

bytes=$(wc -c < "$out")
if [ "$bytes" -lt 4000000 ]; then
    echo "demo-corpus: only $bytes bytes came out of $dict" >&2
    exit 1
fi
echo "demo-corpus: $(wc -l < "$out" | tr -d ' ') documents, $bytes bytes in $out"
