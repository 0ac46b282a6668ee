#!/bin/sh
# Stands in for the supervisor in tests: holds its lock, writes down what it was told, and then
# behaves as its first argument says.
exec 9>"$POSTERN_LOCK_FILE"
flock -n 9 || { echo "the lock is held by another" >&2; exit 9; }
env | sort > "$POSTERN_SANDBOX_DIR/run/environment"
echo "started" >> "$POSTERN_SANDBOX_DIR/run/starts"
case "$1" in
crash) echo "no namespace: boom" >&2; exit 3 ;;
leak) echo "token is $(cat "$OPENSHELL_SANDBOX_TOKEN_FILE")" >&2; exit 3 ;;
done) echo 5 > "$POSTERN_SANDBOX_DIR/main-process-exited"; exit 5 ;;
well) exit 0 ;;
# A member of the session that outlives its leader and ignores what can be ignored.
brood)
    (trap '' TERM HUP INT; while :; do sleep 1; done) 9>&- &
    echo $! > "$POSTERN_SANDBOX_DIR/run/brood"
    exec sleep 100000 ;;
stubborn) trap '' TERM; while :; do sleep 1; done ;;
*) exec sleep 100000 ;;
esac
