# Sourced with the names of extras: makes .venv in the checkout with the newest supported Python
# found, installs the package there with these extras, and activates it. A stamp of pyproject.toml
# and the extras lets later calls return at once. PYTHON=/path/to/python chooses another Python.

newest_python() {
  local candidate
  for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer with the venv module was found (tried ${PYTHON:-python3.14 .. python3.11, python3, python})." >&2
  echo "Install one, or name it: PYTHON=/path/to/python bash $0" >&2
  return 1
}

extras="${1:-}"
stamp=".venv/installed-$(cat pyproject.toml - <<<"$extras" | cksum | tr ' ' -)"
if [[ ! -e "$stamp" ]]; then
  if [[ ! -x .venv/bin/python ]]; then
    python="$(newest_python)"
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  echo "Installing metamf_jax[$extras] into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
  touch "$stamp"
fi
# shellcheck disable=SC1091
source .venv/bin/activate
