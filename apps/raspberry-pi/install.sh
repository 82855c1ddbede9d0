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
[ -x "$here/env/bin/python" ] || "$python" -m venv "$here/env" || {
    echo "error: no virtual environment could be made; sudo apt install python3-venv" >&2
    exit 3
}
"$here/env/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$here/requirements.txt"
if [ "${1:-}" = --executorch ]; then
    "$here/env/bin/pip" install --quiet --disable-pip-version-check --require-hashes --no-deps \
        -r "$here/requirements-executorch.txt"
fi
"$here/classify" about >/dev/null
units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
mkdir -p "$units"
sed "s|@HERE@|$here|g" "$here/classifier.service" >"$units/classifier.service"
cat <<END
installed. Try:
  $here/classify photo.jpg
  $here/classify serve                         then open http://127.0.0.1:8000
  systemctl --user enable --now classifier     the page, from every start on (loginctl enable-linger: without a login)
END
