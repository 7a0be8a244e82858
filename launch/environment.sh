# Sourced with the names of extras: makes an environment in the checkout with the newest supported
# Python found, installs the package there with these extras, and activates it. A stamp of
# pyproject.toml and the extras lets later calls return at once. PYTHON=/path/to/python chooses
# another Python, VENV=FOLDER another folder than .venv.

# shellcheck disable=SC1091
source launch/pythons.sh

venv="${VENV:-.venv}"
extras="${1:-}"
stamp="$venv/installed-$(cat pyproject.toml - <<<"$extras" | cksum | tr ' ' -)"
if [[ ! -e "$stamp" ]]; then
  if [[ ! -x "$venv/bin/python" ]]; then
    python="$(newest_python)"
    echo "Making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
  fi
  echo "Installing metamf_jax[$extras] into $venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
  touch "$stamp"
fi
# shellcheck disable=SC1091
source "$venv/bin/activate"
