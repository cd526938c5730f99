#!/bin/sh
# Print the path of the Python for .venv: that of the argument; without one, that of .venv or else the newest supported
# one. A name on PATH is not enough: pyenv has names of inactive versions, which fail, and Debian's Python cannot create
# environments before python3-venv is installed.
check='
import sys
version = "%d.%d" % sys.version_info[:2]
if version not in ("3.11", "3.12", "3.13"):
    sys.exit("Python %s is not supported" % version)
try:
    import ensurepip, venv
except ImportError:
    sys.exit("cannot create environments; on Debian and Ubuntu: apt install python%s-venv" % version)
print(sys.executable)'

newline='
'
[ -n "$1" ] || set -- .venv/bin/python python3.13 python3.12 python3.11 python3
for name in "$@"; do
    if found=$("$name" -c "$check" 2>&1); then
        echo "$found"
        exit 0
    fi
    first_line=${found%%"$newline"*}
    tried="$tried$newline  $name: ${first_line##*"$name: "}"
done
echo "error: Python 3.11, 3.12 or 3.13 with the module venv is required. Tried:$tried
Install one of them, or select one: make PYTHON=/path/to/python3.13 ..." >&2
exit 1
