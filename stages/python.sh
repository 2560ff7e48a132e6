# Runs the project's Python for the commands of dvc.yaml: the nearest .venv above this directory, so that nothing needs activating and the
# copies that `dvc exp run --temp` makes in .dvc/tmp work too; otherwise python3 on PATH.
#
# Waiting threads should yield their core soon: beside another busy process, a training step of two threads took 12 s with GNU OpenMP's default,
# 2.5 s with this setting, and 0.5 s with either on an idle machine.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-5000}"
directory=$PWD
while [ -n "$directory" ]; do
    if [ -x "$directory/.venv/bin/python" ]; then
        exec "$directory/.venv/bin/python" "$@"
    fi
    directory=${directory%/*}
done
exec python3 "$@"
