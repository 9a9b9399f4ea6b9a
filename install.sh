#!/usr/bin/env bash
# Installs kohya_ext into a Kohya_ss or sd-scripts checkout, or shows it on a toy model (--demo).
#
# This script only looks for a Python >= 3.10; all the rest (finding the checkout and the environment that runs it,
# backing up, patching) is done by `python -m kohya_ext`, which has more commands: status, doctor, update, uninstall.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./install.sh [CHECKOUT] [--demo] [--yes] [--dry-run] [--uninstall] [--presets-only] [--python PATH]

  CHECKOUT         kohya_ss or sd-scripts folder; when omitted: the current folder's, that of a running GUI,
                   then the places that the templates of vast.ai, RunPod and Docker use. Where the current
                   folder and a running GUI differ you are asked; without a terminal both are named (exit 2)
  --demo           train a toy diffusion model with everything switched on, on this machine, in a minute
  --yes            do not ask (without a terminal nothing is asked anyway)
  --dry-run        show what would change, write nothing
  --uninstall      take everything out again, byte for byte
  --presets-only   only put the presets in
  --python PATH    the Python that runs Kohya; when left out it is found
TEXT
}

fail() { # CODE MESSAGE...
    local code=$1
    shift
    printf 'install.sh: %s\n' "$@" >&2
    exit "$code"
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
verb=install checkout='' python='' demo='' options=()

while (($#)); do
    case $1 in
        --demo) demo=yes ;;
        --yes | --dry-run | --presets-only) options+=("$1") ;;
        --uninstall) verb=uninstall ;;
        --python)
            (($# > 1)) || fail 2 "--python needs a path"
            python=$2
            shift
            ;;
        --python=*) python=${1#*=} ;;
        -h | --help) usage && exit 0 ;;
        --)
            shift
            (($# <= 1)) && [[ -z $checkout || $# == 0 ]] || fail 2 "one CHECKOUT at most"
            checkout=${1-$checkout}
            break
            ;;
        -*) usage >&2 && fail 2 "unknown option $1" ;;
        *)
            [[ -z $checkout ]] || fail 2 "one CHECKOUT at most: $checkout and $1 were given"
            checkout=$1
            ;;
    esac
    shift
done

candidates() {
    [[ -z $python ]] || printf '%s\n' "$python" "$python/bin/python"
    local folder kohya=$checkout machine=${KOHYA_EXT_MACHINE-}
    [[ -n $kohya || ! -f kohya_gui.py ]] || kohya=$PWD
    for folder in ${kohya:+"$kohya/venv" "$kohya/.venv"} ${VIRTUAL_ENV:+"$VIRTUAL_ENV"} \
        ${CONDA_PREFIX:+"$CONDA_PREFIX"} "$machine"/venv/main "${WORKSPACE:-$machine/workspace}/environments/python/kohya" \
        "$machine"/opt/environments/python/kohya "$machine"/venvs/kohya_ss "$machine"/venv; do
        printf '%s\n' "$folder/bin/python"
    done
    printf '%s\n' python3.13 python3.12 python3.11 python3.10 python3 python
}

first_python() { # CODE: prints the first candidate that exits with 0 when it runs CODE
    local candidate
    while IFS= read -r candidate; do
        if command -v -- "$candidate" >/dev/null 2>&1 && "$candidate" -c "$1" >/dev/null 2>&1 </dev/null; then
            command -v -- "$candidate"
            return
        fi
    done < <(candidates)
    return 1
}

RECENT='import sys; sys.exit(sys.version_info < (3, 10))'
# Python 3.10 reads no TOML by itself; where there are several, one that can is better.
READS_TOML='import importlib, sys
for name in ("tomllib", "tomli", "toml", "pip._vendor.tomli"):
    try:
        importlib.import_module(name)
        sys.exit(sys.version_info < (3, 10))
    except ImportError:
        pass
sys.exit(1)'
DEMO_READY='import sys; from importlib.util import find_spec
needed = ("torch", "accelerate", "diffusers", "safetensors", "toml", "PIL", "tqdm")
sys.exit(sys.version_info < (3, 10) or not all(map(find_spec, needed)))'
CPU_INDEX=https://download.pytorch.org/whl/cpu
REACHABLE='import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=3)'

demo_python() { # prints a Python that can run the demo, and makes one when there is none
    local base=$1 folder=$here/.venv log
    first_python "$DEMO_READY" && return
    [[ -w $here ]] || folder=${XDG_CACHE_HOME:-$HOME/.cache}/kohya_ext/venv
    local own=$folder/bin/python
    if ! { [[ -x $own ]] && "$own" -c "$DEMO_READY"; } >/dev/null 2>&1; then
        echo "Making a Python environment for the demo in $folder (once; it downloads torch)" >&2
        log=$("$base" -m venv "$folder" 2>&1) || fail 1 "$base -m venv $folder failed (Debian: apt-get install python3-venv)" "$log"
        local torch index=()
        torch=$(grep '^torch==' "$here/requirements-demo.txt")
        if [[ $(uname -s) == Linux ]] && "$own" -c "$REACHABLE" "$CPU_INDEX" >/dev/null 2>&1; then
            index=(--index-url "$CPU_INDEX")
        fi
        local pip=("$own" -m pip install --quiet --disable-pip-version-check)
        echo "Installing $torch (200 MB and more, some minutes on a slow line)" >&2
        { ((${#index[@]})) && "${pip[@]}" "${index[@]}" "$torch" >&2; } || "${pip[@]}" "$torch" >&2 ||
            fail 1 "pip could not install $torch; with a Python that has torch: ./install.sh --demo --python PATH"
        echo "Installing the rest" >&2
        "${pip[@]}" --requirement "$here/requirements-demo.txt" >&2 || fail 1 "pip could not install requirements-demo.txt"
    fi
    printf '%s\n' "$own"
}

runner=$(first_python "$READS_TOML") || runner=$(first_python "$RECENT") || fail 2 "no Python 3.10 or newer found: install one, or name it with --python PATH"
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}

# `install` says itself what is wrong with it; the demo and `uninstall` only run on it
if [[ -n $python && (-n $demo || $verb == uninstall) ]] &&
    ! { "$python" -c "$RECENT" || "$python/bin/python" -c "$RECENT"; } >/dev/null 2>&1 </dev/null; then
    fail 2 "--python $python is no Python 3.10 or newer"
fi

if [[ -n $demo ]]; then
    [[ $verb == install && -z $checkout && ${options[*]-} =~ ^(--yes)?$ ]] || fail 2 "--demo goes with no option but --python and --yes"
    runner=$(demo_python "$runner")
    exec "$runner" -m kohya_ext demo
fi

[[ -z $python || $verb == uninstall ]] || options+=(--python "$python")
exec "$runner" -m kohya_ext "$verb" ${options[@]+"${options[@]}"} ${checkout:+-- "$checkout"}
