#!/usr/bin/env bash
# The fast tests, but for those of PyTorch, on every Python that is there: of the installed wheel, and not of this folder.
#   tests/pythons.sh [FOLDER]      environments are made there; by default .pythons
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$here/.pythons}
ran=()
for version in 3.11 3.12 3.13 3.14; do
  python=$(command -v "python$version" || true)
  if [ -z "$python" ] || ! "$python" -c "import sys; raise SystemExit(sys.version_info[:2] != tuple(map(int, '$version'.split('.'))))" 2>/dev/null; then
    echo "python$version: not there"
    continue
  fi
  venv=$folder/$version
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "${here}[test]"
  if "$venv/bin/python" -c "import torch" 2>/dev/null; then
    echo "$venv has PyTorch, which these tests leave out" >&2
    exit 1
  fi
  work=$(mktemp -d)
  cp -r "$here/tests" "$here/docs" "$here/deploy" "$here/benchmarks" "$here/notebooks" "$here/pyproject.toml" "$here/README.md" \
    "$here/CHANGELOG.md" "$here/CITATION.cff" "$here/Makefile" "$here/LICENSE" "$here/.dockerignore" "$work"
  (cd "$work" && "$venv/bin/python" -m pytest -n 2 --dist worksteal -q -m "not slow" tests)
  rm -rf "$work"
  ran+=("$version")
done
echo "passed on Python ${ran[*]}"
