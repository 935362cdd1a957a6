# plan.sh: heddle plan: bad input, and what it prints of a plan that is good.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=$(dirname "$1") "$root/checks/plan-bad-input" --short
