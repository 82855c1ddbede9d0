#!/bin/sh
# Installs the classifier for this user: an environment beside this file with pinned wheels, and a systemd user unit.
# Nothing is installed as root. Run it again after an update.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed (Raspberry Pi OS bookworm or trixie)" >&2
    exit 3
}
[ "$(getconf LONG_BIT)" = 64 ] || {
    echo "error: this system is 32-bit, and the runtimes are not made for that; install the 64-bit Raspberry Pi OS" >&2
    exit 3
}
version='import sys; print("%d.%d" % sys.version_info[:2])'
found=$("$python" -c "$version")
env=$here/env/bin/python
# pip comes last into an environment, and an upgraded system has another Python than the one it was made for
"$env" -m pip --version >/dev/null 2>&1 && [ "$("$env" -c "$version")" = "$found" ] ||
    "$python" -m venv --clear "$here/env" || {
    echo "error: no virtual environment could be made; sudo apt install python3-venv" >&2
    exit 3
}
wheels() {
    "$env" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: "$@" || {
        echo "error: the packages could not be installed (see above). They are downloaded, and are made for Python 3.11" \
            "to 3.13; this is $found. PYTHON=python3.13 $0 takes another one" >&2
        exit 3
    }
}
wheels -r "$here/requirements.txt"
if [ "${1:-}" = --executorch ]; then
    wheels --no-deps -r "$here/requirements-executorch.txt"
    "$here/classify" about --runtime executorch >/dev/null
fi
"$here/classify" about >/dev/null
units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
mkdir -p "$units"
# what stands for itself in the unit (% is systemd's), and in sed
path=$(printf %s "$here" | sed 's/%/%%/g; s/[\\&|]/\\&/g')
sed "s|@HERE@|$path|g" "$here/classifier.service" >"$units/classifier.service"
cat <<END
installed. Try:
  $here/classify photo.jpg
  $here/classify serve                         then open http://127.0.0.1:8000
  systemctl --user enable --now classifier     the page, from every start on (loginctl enable-linger: without a login)
END
