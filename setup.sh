#!/bin/sh
# Makes .venv and installs everything that `make demo` and `make test` need; at once when that is done already.
# What was broken off is taken up again. See `make help` for PYTHON and TORCH_INDEX.
set -eu
cd "$(dirname "$0")"

bin=.venv/bin
stamp=.venv/.installed  # written last: where these sources are, whose installation is complete
torch=$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

fail() { echo "$1" >&2; exit 1; }

# The version of an interpreter, as 3.11; nothing and status 1 where it is missing or too old.
version() { "$1" -c 'import sys; sys.version_info >= (3, 11) or sys.exit(1); print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_USER=0 $bin/python -m pip "$@"; }

case "$(uname -s)" in
    Linux | Darwin) ;;
    *) fail "Peerless runs on Linux and macOS; on Windows use WSL2." ;;
esac

has=$(version $bin/python) && $bin/python -c 'import pip' 2>/dev/null || has=
if [ -n "${PYTHON:-}" ]; then
    wants=$(version "$PYTHON") || fail "PYTHON=$PYTHON is no Python 3.11 or newer."
    python=$PYTHON
elif [ -n "$has" ]; then
    wants=$has
else
    for python in python3 python3.12 python3.11 python3.13 python3.14 none; do
        wants=$(version $python) && break
    done
    [ $python != none ] || fail "Peerless needs Python 3.11 or newer on the PATH, or named: make PYTHON=/path/to/python3"
fi

if [ "$has" != "$wants" ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; install it (Debian, Ubuntu: apt-get install python$wants-venv)."
    echo "making .venv with Python $wants …"
    "$python" -m venv --clear .venv
fi

if [ "$(cat $stamp 2>/dev/null)" = "$(pwd)" ] &&
    [ -z "$(find pyproject.toml vendor/qsgd_compress/pyproject.toml -newer $stamp)" ]; then
    exit 0
fi
rm -f $stamp
# Apart from the rest, because it is the large one: pip shows how far it is. From an index of its own without dependencies.
if [ "torch==$($bin/python -c 'from importlib.metadata import version as v; print(v("torch").split("+")[0])' 2>/dev/null)" != "$torch" ]; then
    echo "installing $torch …"
    pip install ${TORCH_INDEX:+--no-deps --index-url "$TORCH_INDEX"} "$torch"
fi
echo "installing the other packages …"
pip install --quiet -e 'vendor/qsgd_compress[test]' -e '.[local,test]'
pwd >$stamp
