# The project's Python, for the commands of dvc.yaml: the nearest .venv upwards, so it is found without activating anything and also in
# the copies of the project that `dvc exp run --temp` makes below .dvc/tmp; elsewhere the python3 on PATH.
directory=$PWD
while [ -n "$directory" ]; do
    if [ -x "$directory/.venv/bin/python" ]; then
        exec "$directory/.venv/bin/python" "$@"
    fi
    directory=${directory%/*}
done
exec python3 "$@"
