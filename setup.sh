#!/usr/bin/env bash
# Make .venv with everything that the project, its demo, its tests and its benchmarks need, at pinned versions.
# Uses uv when it is there, pip otherwise. A second run finds its stamp and returns at once.
#   ./setup.sh abx                            makes .venv-abx instead, where recipes.abx runs fastabx, which needs another torch
#   ./setup.sh checkers                       makes .venv-checkers, on top of .venv, with the checkers of HEAR, X-ARES and s3prl
#   PYTHON=/path/to/python3.12 ./setup.sh     chooses the interpreter by hand
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
purpose=${1:-main}
case $purpose in
main) venv=.venv oldest=11 size="several GB on the first run: PyTorch brings its CUDA libraries" ;;
abx) venv=.venv-abx oldest=12 size="1.3 GB to download beside .venv" ;;
checkers) venv=.venv-checkers oldest=11 size="0.4 GB to download" ;;
*) echo "setup: \`$purpose\` is no environment; say ./setup.sh, ./setup.sh abx or ./setup.sh checkers" >&2 && exit 2 ;;
esac
python=$venv/bin/python

usable() { "$1" -c "import sys; raise SystemExit(not (3, $oldest) <= sys.version_info[:2] <= (3, 12))" 2>/dev/null; }

find_python() {
  local pyenv=${PYENV_ROOT:-$HOME/.pyenv}/versions candidate
  for candidate in ${PYTHON:-} "$(shared_interpreter)" python3.12 "$pyenv"/3.12*/bin/python python3.11 "$pyenv"/3.11*/bin/python python3; do
    if usable "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
}

# Run a command as root if that needs no password.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

apt_install() { command -v apt-get >/dev/null && as_root apt-get update -qq && as_root apt-get install -y -qq "$@" >/dev/null; }

make_venv() {
  local base=$1
  rm -rf "$venv"
  if command -v uv >/dev/null; then
    uv venv -q --seed --python "${base:-3.12}" "$venv"
  elif [ -z "$base" ]; then
    echo "setup: no Python 3.12$([ $oldest = 12 ] || echo ' or 3.11') found; install one (apt-get install python3 python3-pip python3-venv) or name it: PYTHON=... make setup" >&2
    exit 1
  elif ! "$base" -m venv "$venv" 2>/dev/null; then
    # Debian splits ensurepip off; the interpreter's own pip can fill an environment without it.
    rm -rf "$venv"
    "$base" -m venv --without-pip "$venv"
    "$base" -m pip -q --python "$python" install pip
  fi
}

install() {
  if command -v uv >/dev/null; then uv pip install -q --python "$python" "$@"; else "$python" -m pip install -q "$@"; fi
}

# fairseq2's native library needs libsndfile.so.1; it also looks below the environment's own lib folder.
provide_libsndfile() {
  rm -f "$venv/lib/libsndfile.so.1"
  if ! "$python" -c 'import ctypes; ctypes.CDLL("libsndfile.so.1")' 2>/dev/null && ! apt_install libsndfile1 2>/dev/null; then
    echo "setup: no libsndfile on this system and no right to install it: using the one inside the soundfile package"
    ln -s "$("$python" -c 'import pathlib, _soundfile_data as d; print(next(pathlib.Path(d.__path__[0]).glob("libsndfile*.so")))')" "$venv/lib/libsndfile.so.1"
  fi
}

# .venv-abx shares what it can with .venv, NVIDIA's libraries above all: several GB.
shared_interpreter() { [ $purpose = main ] || .venv/bin/python -c 'import sys; print(sys._base_executable)' 2>/dev/null || true; }
site_packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

install_main() {
  install -c constraints.txt -e '.[demo,export,test,bench]'
  install --no-deps -r packages-without-dependencies.txt
  provide_libsndfile
  "$python" -c 'import fairseq2, spear_plugin' # fails here rather than in the middle of a job
}

install_abx() {
  if usable .venv/bin/python; then
    install --no-deps -r constraints-abx.txt
    site_packages .venv/bin/python >"$(site_packages "$python")/shared.pth" # behind its own packages
  else
    local others=$venv/others.txt
    grep -vE "^($(grep -v '^#' constraints-abx.txt | cut -d= -f1 | paste -sd'|'))==" constraints.txt >$others
    install -c constraints-abx.txt -c $others fastabx
  fi
  "$python" -c 'import fastabx'
}

# .venv-checkers has all of .venv behind its own packages, with its libraries, editable packages and entry points.
install_checkers() {
  # hearvalidator says that it is for Python before 3.9, and uv has no way to ignore that.
  "$python" -m pip install -q --no-deps --no-compile --ignore-requires-python -r constraints-checkers.txt
  echo "import site; site.addsitedir('$(site_packages .venv/bin/python)')" >"$(site_packages "$python")/shared.pth"
  ln -sf "$PWD"/.venv/lib/*.so* "$venv/lib/" # fairseq2 looks for oneTBB in the environment's own lib folder
  "$python" -c 'import hearvalidator.validate, s3prl.problem, xares.run, spear_plugin.interfaces.hear' 2>$venv/imports.log ||
    { tail -n 1 $venv/imports.log >&2 && exit 1; }
}

fingerprint() { cat setup.sh pyproject.toml constraints*.txt packages-without-dependencies.txt | sha256sum | cut -d' ' -f1; }

if [ "$(cat $venv/.setup-complete 2>/dev/null)" = "$(fingerprint) $PWD" ] && "$python" -c '' 2>/dev/null; then
  exit 0
fi
if [ $purpose = checkers ]; then
  usable .venv/bin/python || { echo "setup: .venv-checkers stands on .venv, which is missing; make it with make setup" >&2 && exit 1; }
  PYTHON=$(shared_interpreter)
fi
base=$(find_python)
echo "setup: making $venv with ${base:-a Python 3.12 fetched by uv} ($size)"
if [ $purpose = checkers ] || ! usable "$python"; then make_venv "$base"; fi
install_$purpose
echo "$(fingerprint) $PWD" >$venv/.setup-complete
if [ $purpose = main ]; then echo "setup: done; next: make demo, make test, or $python -m recipes.spear.pretrain --help"; fi
