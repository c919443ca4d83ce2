#!/bin/sh
# Installs Debian packages: the peers of the tests, the data of the demo. Root only; others are told and go on without.
set -eu

missing=""
for package in "$@"; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
  [ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "packages: not installed:$missing → tests that need them skip (as root: apt-get install$missing)"
  exit 0
fi

# A package must not start its service here (Orthanc's would take ports 4242 and 8042).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi

echo "packages: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of names
if ! apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1; then
  # one that cannot be had must not cost the others: the tests that need it skip, and say so
  for package in $missing; do
    apt-get install -y -qq --no-install-recommends "$package" >/dev/null || echo "packages: $package cannot be installed here"
  done
fi
echo "packages: done"
