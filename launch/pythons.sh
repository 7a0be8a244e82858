# Sourced: finds the supported Pythons of this machine.

# Prints a line "VERSION PATH" for each minor version from 3.11 on that was found and runs, newest
# first. Looked through are the names on PATH, all of each name, since a shim of pyenv may stand
# before the Python that works, and the versions that pyenv has. PYTHON alone where it is set.
supported_pythons() {
  local candidate root
  {
    if [[ -n "${PYTHON:-}" ]]; then
      echo "$PYTHON"
    else
      for candidate in python3.{14,13,12,11} python3 python; do
        type -aP "$candidate" || true
      done
      root="${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo ~/.pyenv)}"
      for candidate in "$root"/versions/*/bin/python3; do
        [[ ! -x "$candidate" ]] || echo "$candidate"
      done
    fi
  } | while read -r candidate; do
    "$candidate" -c '
import sys, venv, ensurepip
if sys.version_info >= (3, 11) and sys.version_info.releaselevel == "final":
    print("%d.%d" % sys.version_info[:2], sys.executable)
' 2>/dev/null </dev/null || true
  done | sort -s -r -V -k1,1 | awk '!seen[$1]++'
}

# Prints the path of the first of them.
newest_python() {
  local found
  found="$(supported_pythons)"
  if [[ -z "$found" ]]; then
    echo "No Python 3.11 or newer with the venv module was found (tried ${PYTHON:-python3.14 .. python3.11, python3, python, pyenv})." >&2
    echo "Install one, or name it: PYTHON=/path/to/python bash $0" >&2
    return 1
  fi
  head -n 1 <<<"$found" | cut -d ' ' -f 2-
}
