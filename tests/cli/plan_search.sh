# plan_search.sh: heddle plan and heddle train where plans are searched for, or replayed: bad input.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=$(dirname "$1") "$root/checks/planner-bad-input" --short
