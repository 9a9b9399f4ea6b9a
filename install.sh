#!/usr/bin/env bash
# Installs kohya_ext into a Kohya_ss or sd-scripts checkout, or shows it on a toy model (--demo).
#
# This script only looks for a Python >= 3.10; all the rest (finding the checkout and the environment that runs it,
# backing up, patching) is done by `kohya_ext/__main__.py`, which has more commands: status, doctor, update, uninstall.
#
# Of the folder it is called from nothing is run, neither programs nor Python modules; as root, no Python of another user
# while there is one of root's.

# Started with `sh`, which need not be bash: once more, with bash. From a pipe there is nothing to start again.
if [ -z "${BASH_VERSION-}" ]; then
    case $0 in
        *.sh) for bash in /bin/bash /usr/bin/bash /usr/local/bin/bash; do
            if [ -f "$0" ] && [ -x "$bash" ]; then exec "$bash" "$0" "$@"; fi
        done ;;
    esac
    echo "install.sh: needs bash, and its clone next to it: bash /path/to/the/clone/install.sh (not from a pipe)" >&2
    exit 2
fi
set +o posix # as `sh` that is bash has it
if [[ ${BASH_SOURCE[0]-} != "$0" ]]; then
    echo "install.sh: needs its clone next to it: bash /path/to/the/clone/install.sh (not from a pipe, not sourced)" >&2
    # shellcheck disable=SC2317 # sourced, it must not end the shell
    return 2 2>/dev/null || exit 2
fi
set -euo pipefail
unset CDPATH # makes cd print

absolute_only() { # PATH: prints it without what is relative to the current folder
    local folder folders kept=''
    IFS=: read -ra folders <<<"$1"
    for folder in ${folders[@]+"${folders[@]}"}; do
        [[ $folder != /* ]] || kept+=${kept:+:}$folder
    done
    printf '%s\n' "$kept"
}

PATH=$(absolute_only "$PATH")

usage() {
    cat <<'TEXT'
usage: ./install.sh [CHECKOUT] [--demo] [--yes] [--dry-run] [--uninstall] [--presets-only] [--python PATH] [--verbose]

  CHECKOUT         kohya_ss or sd-scripts folder; when omitted: the current folder's, that of a running GUI,
                   then the places that the templates of vast.ai, RunPod and Docker use. Where the current
                   folder and a running GUI differ you are asked; without a terminal both are named (exit 2)
  --demo           train a toy diffusion model with everything switched on, on this machine, in about two minutes
  --yes            do not ask (without a terminal there are no questions anyway)
  --dry-run        show what would change, write nothing
  --verbose        with --dry-run: the preset files too, line by line
  --uninstall      remove kohya_ext; the checkout is byte-identical to before
  --presets-only   install the presets, patch nothing
  --python PATH    the Python that runs Kohya; when omitted it is found
TEXT
}

visible() { # TEXT: prints it on one line, with a question mark for all that would steer a terminal
    local LC_ALL=C text=${1//$'\n'/\\n}
    text=${text//[$'\x01'-$'\x1f\x7f']/?}
    text=${text//$'\xc2'[$'\x80'-$'\x9f']/?}         # C1 controls, in UTF-8
    text=${text//$'\xd8\x9c'/?}                      # marks, embeddings, overrides and isolates of direction
    text=${text//$'\xe2\x80'[$'\x8e\x8f\xa8'-$'\xae']/?}
    text=${text//$'\xe2\x81'[$'\xa6'-$'\xa9']/?}
    printf '%s\n' "$text"
}

fail() { # CODE MESSAGE
    printf 'install.sh: %s\n' "$(visible "$2")" >&2
    exit "$1"
}

clone_of() { # FILE: prints the folder of FILE, links to it followed
    local file=$1 target
    while [[ -L $file ]]; do
        target=$(readlink -- "$file")
        [[ $target == /* ]] || target=$(dirname -- "$file")/$target
        file=$target
    done
    cd -- "$(dirname -- "$file")" && pwd -P
}

here=$(clone_of "${BASH_SOURCE[0]}")
[[ -f $here/kohya_ext/__main__.py ]] ||
    fail 2 "$here does not contain kohya_ext/: install.sh needs its clone next to it: bash /path/to/the/clone/install.sh"
verb=install checkout='' python='' demo='' options=()

while (($#)); do
    case $1 in
        --demo) demo=yes ;;
        --yes | --dry-run | --verbose | --presets-only) options+=("$1") ;;
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

absolute() { # PATH: prints it, from the root
    case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$PWD/$1" ;; esac
}

own() { # PATH...: whether all of them belong to root or to us, as far as they exist
    local path
    for path; do
        [[ ! -e $path || -O $path || $(stat -Lc %u -- "$path" 2>/dev/null) == 0 ]] || return 1
    done
}

# What root or we have put there; of others' only what --python names or PATH leads to, and that last: whoever owns a
# Python decides what it does.
candidates() {
    local folder kohya=$checkout name found chosen=() foreign=()
    [[ -z $python ]] || chosen=("$(absolute "$python")" "$(absolute "$python")/bin/python")
    [[ -n $kohya || ! -f kohya_gui.py ]] || kohya=$PWD
    [[ -z $kohya ]] || kohya=$(absolute "$kohya")
    for folder in ${kohya:+"$kohya/venv" "$kohya/.venv"} ${VIRTUAL_ENV:+"$VIRTUAL_ENV"} \
        ${CONDA_PREFIX:+"$CONDA_PREFIX"} /venv/main "${WORKSPACE:-/workspace}/environments/python/kohya" \
        /opt/environments/python/kohya /venvs/kohya_ss /venv; do
        ! own "$folder" "$folder/bin" "$folder/bin/python" "$folder/pyvenv.cfg" "$folder/lib" ||
            chosen+=("$folder/bin/python")
    done
    for name in python3.13 python3.12 python3.11 python3.10 python3 python; do
        while IFS= read -r found; do
            chosen+=("$found")
        done < <(type -aP "$name")
    done
    for found in ${chosen[@]+"${chosen[@]}"}; do
        [[ $found == /* ]] || continue # in the current folder, by a PATH that holds it
        if own "$found" "$(dirname -- "$found")"; then printf '%s\n' "$found"; else foreign+=("$found"); fi
    done
    printf '%s\n' ${foreign[@]+"${foreign[@]}"}
}

first_python() { # CODE: prints the first candidate that exits with 0 when it runs CODE
    local candidate
    while IFS= read -r candidate; do
        if [[ -f $candidate && -x $candidate ]] && "$candidate" -c "$NOT_HERE$1" >/dev/null 2>&1 </dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done < <(candidates)
    return 1
}

# `python -c` looks for modules in the current folder first
NOT_HERE='import sys; sys.path[:] = [folder for folder in sys.path if folder]
'
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
    if ! { [[ -x $own ]] && "$own" -c "$NOT_HERE$DEMO_READY"; } >/dev/null 2>&1; then
        echo "Creating a Python environment for the demo in $(visible "$folder") (once; it downloads torch)" >&2
        if ! log=$(cd / && "$base" -m venv "$folder" 2>&1); then
            printf '%s\n' "$log" >&2
            fail 1 "$base -m venv $folder failed (Debian: apt-get install python3-venv)"
        fi
        local torch index=()
        torch=$(grep '^torch==' "$here/requirements-demo.txt")
        if [[ $(uname -s) == Linux ]] && "$own" -c "$NOT_HERE$REACHABLE" "$CPU_INDEX" >/dev/null 2>&1; then
            index=(--index-url "$CPU_INDEX")
        fi
        cd / # of our own only: this runs in a subshell
        local pip=("$own" -m pip install --quiet --disable-pip-version-check)
        echo "Installing $torch (200 MB and more, some minutes on a slow line)" >&2
        { ((${#index[@]})) && "${pip[@]}" "${index[@]}" "$torch" >&2; } || "${pip[@]}" "$torch" >&2 ||
            fail 1 "pip could not install $torch; with a Python that has torch: ./install.sh --demo --python PATH"
        echo "Installing the rest" >&2
        "${pip[@]}" --requirement "$here/requirements-demo.txt" >&2 || fail 1 "pip could not install requirements-demo.txt"
    fi
    printf '%s\n' "$own"
}

module_path() { # prints PYTHONPATH for all that follows: our clone, then the caller's, but not the current folder
    local folder folders printed=$here
    IFS=: read -ra folders <<<"$(absolute_only "${PYTHONPATH-}")"
    for folder in ${folders[@]+"${folders[@]}"}; do
        [[ $folder -ef . ]] || ! own "$folder" || printed+=:$folder
    done
    printf '%s\n' "$printed"
}

PYTHONPATH=$(module_path)
export PYTHONPATH
unset PYTHONSTARTUP PYTHONINSPECT

runner=$(first_python "$READS_TOML") || runner=$(first_python "$RECENT") || fail 2 "no Python 3.10 or newer found: install one, or name it with --python PATH"
if ! own "$runner"; then
    echo "install.sh: note: $(visible "$runner") belongs to another user, and no Python of root's reads TOML: it is used anyway" >&2
fi

# `install` says itself what is wrong with it; the demo and `uninstall` only run on it
if [[ -n $python && (-n $demo || $verb == uninstall) ]] &&
    ! { "$python" -c "$NOT_HERE$RECENT" || "$python/bin/python" -c "$NOT_HERE$RECENT"; } >/dev/null 2>&1 </dev/null; then
    fail 2 "--python $python is not a Python 3.10 or newer"
fi

if [[ -n $demo ]]; then
    [[ $verb == install && -z $checkout && ${options[*]-} =~ ^(--yes)?$ ]] || fail 2 "--demo can be combined with --python and --yes only"
    runner=$(demo_python "$runner")
    exec "$runner" "$here/kohya_ext/__main__.py" demo
fi

[[ -z $python || $verb == uninstall ]] || options+=(--python "$python")
exec "$runner" "$here/kohya_ext/__main__.py" "$verb" ${options[@]+"${options[@]}"} ${checkout:+-- "$checkout"}
