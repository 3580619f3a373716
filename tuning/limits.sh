#!/bin/sh
# Shows, and with `apply` raises, the limits of the user who runs ringraft.
#
#   tuning/limits.sh                 look only
#   sudo tuning/limits.sh apply USER write /etc/security/limits.d/60-ringraft.conf
#   sudo tuning/limits.sh undo       remove that file again
#
# Changes hold from the next login on. Under systemd set LimitMEMLOCK= and LimitNOFILE= in the unit
# instead: services do not read limits.d.
set -eu
file=/etc/security/limits.d/60-ringraft.conf

case "${1:-check}" in
check)
    echo "locked memory, KiB: $(ulimit -l)   (8192 is enough for the defaults; io_uring needs it)"
    echo "open files:         $(ulimit -n)   (connections + segments + 100; 65536 for thousands of clients)"
    ;;
apply)
    user=${2:?name the user that runs ringraft}
    printf '%s - memlock 65536\n%s - nofile 65536\n' "$user" "$user" >"$file"
    echo "wrote $file; undo with: $0 undo"
    ;;
undo)
    rm -f "$file"
    echo "removed $file"
    ;;
*)
    echo "usage: $0 [check | apply USER | undo]" >&2
    exit 2
    ;;
esac
