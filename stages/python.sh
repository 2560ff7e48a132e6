# The project's Python, for the commands of dvc.yaml: the nearest .venv upwards, so it is found without activating anything and also in
# the copies of the project that `dvc exp run --temp` makes below .dvc/tmp; elsewhere the python3 on PATH.
#
# A thread that waits for another soon yields its core: where something else runs beside, a training step of two threads took 12 s with GNU OpenMP's
# own setting, 2.5 s with this one, and 0.5 s with either where nothing did.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-5000}"
directory=$PWD
while [ -n "$directory" ]; do
    if [ -x "$directory/.venv/bin/python" ]; then
        exec "$directory/.venv/bin/python" "$@"
    fi
    directory=${directory%/*}
done
exec python3 "$@"
