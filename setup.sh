#!/bin/sh
# Makes .venv and installs everything that `make demo` and `make test` need; at once when that is done already.
# What was broken off is taken up again. See `make help` for PYTHON and TORCH_INDEX.
set -eu
cd "$(dirname "$0")"

bin=.venv/bin
codec=vendor/qsgd_compress
stamp=.venv/.installed  # written last: where these sources are, whose installation is complete, and the codec's C part
torch=$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

fail() { echo "$1" >&2; exit 1; }

# The version of an interpreter, as 3.11; nothing and status 1 where it is missing or too old.
version() { "$1" -c 'import sys; sys.version_info >= (3, 11) or sys.exit(1); print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# A value of the interpreter's configuration.
config() { $bin/python -c "import sysconfig; print(sysconfig.$1)"; }

# The C compiler: CC, the one that the interpreter was built with, or cc where that is not on this machine.
compiler() {
    [ -z "${CC:-}" ] || { echo "$CC"; return; }
    cc=$(config 'get_config_var("CC") or "cc"')
    if command -v "${cc%% *}" >/dev/null; then echo "$cc"; else echo cc; fi
}

# What building the codec's C part lacks: compiler, headers (Python's), both, or nothing.
lacks() {
    words=
    echo '#include <stdlib.h>' | $(compiler) -fsyntax-only -x c - 2>/dev/null || words=compiler
    [ -e "$(config 'get_path("include")')/Python.h" ] || words="${words:+$words }headers"
    echo "${words:-nothing}"
}

# Whether everything is installed from the sources as they are, with the codec's C part if that can be had.
is_complete() {
    [ "$(sed -n 1p $stamp 2>/dev/null)" = "$(pwd)" ] &&
        [ -z "$(find pyproject.toml $codec/pyproject.toml $codec/setup.py $codec/src/qsgd_compress/native -newer $stamp)" ] ||
        return 1
    part=$(sed -n 2p $stamp)
    if [ "$part" = built ]; then
        ls $codec/src/qsgd_compress/_native*.so >/dev/null 2>&1
    else
        [ "$part" = "$(lacks)" ] # as it was when that was told
    fi
}

pip() { CC="$(compiler)" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_USER=0 $bin/python -m pip "$@"; }

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
    [ "$python" != none ] || fail "Peerless needs Python 3.11 or newer on the PATH, or named: make PYTHON=/path/to/python3"
fi

if [ "$has" != "$wants" ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; install it (Debian, Ubuntu: apt-get install python$wants-venv)."
    echo "making .venv with Python $wants …"
    "$python" -m venv --clear .venv
fi

if is_complete; then exit 0; fi
rm -f $stamp
touch .venv/.started
# Apart from the rest, because it is the large one: pip shows how far it is. From an index of its own without dependencies.
if [ "torch==$($bin/python -c 'from importlib.metadata import version as v; print(v("torch").split("+")[0])' 2>/dev/null)" != "$torch" ]; then
    echo "installing $torch …"
    pip install ${TORCH_INDEX:+--no-deps --index-url "$TORCH_INDEX"} "$torch"
fi
echo "installing the other packages …"
# Without bytecode: it takes long for packages of which little is imported, and what is imported gets its own then.
pip install --quiet --no-compile -e "./${codec}[test]" -e '.[aws,local,test]'
$bin/python -m infra.toolkit || true # it has said why not, and deploying tries again
$bin/python -m infra.browser || true # it has said why not, and the tests that need it try again

part=built
QSGD_COMPRESS_BACKEND=native $bin/python -c 'import qsgd_compress' 2>/dev/null || part=$(lacks)
needs='' packages='' slower="The codec runs on NumPy, with the same bytes and ten to twenty times slower"
case $part in
    compiler) needs="a C compiler" packages="gcc libc6-dev" ;;
    headers) needs="Python's headers" packages="python$wants-dev" ;;
    "compiler headers") needs="a C compiler and Python's headers" packages="gcc libc6-dev python$wants-dev" ;;
    nothing) echo "$slower, because its C part did not build; $bin/python -m pip install -v --no-deps -e $codec shows why." ;;
esac
[ -z "$needs" ] ||
    echo "$slower, until make finds $needs for its C part (Debian, Ubuntu: apt-get install $packages; macOS: xcode-select --install)."
{ pwd; echo "$part"; } >$stamp
touch -r .venv/.started $stamp # what was changed meanwhile is newer
