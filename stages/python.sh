# The project's Python, for the commands of dvc.yaml: the nearest .venv upwards, so it is found without activating anything and also in
# the copies of the project that `dvc exp run --temp` makes below .dvc/tmp; elsewhere the python3 on PATH.
#
# A thread that waits for another soon yields its core: where something else runs beside, a training step of two threads took 12 s with GNU OpenMP's
# own setting, 2.5 s with this one, and 0.5 s with either where nothing did.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-5000}"
# Arrow's own allocator keeps what it is given back, more of it with every table: quality's process held 255 MB of 50,000 clips, and 200 with this one, as of 5,000.
export ARROW_DEFAULT_MEMORY_POOL="${ARROW_DEFAULT_MEMORY_POOL:-system}"
# glibc gives freed memory back to the system at once, and gets it anew, page by page, for the next clip: with these, log-mels take three quarters of the time
# (bench.log_mel). Trainings are left alone: a few steps of one seemed a tenth slower with them.
case "$*" in
    *stages.train* | *stages.autoencoder* | *stages.vocoder* | *stages.tagger*) ;;
    *)
        export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-8388608}"
        export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-67108864}"
        ;;
esac
directory=$PWD
while [ -n "$directory" ]; do
    if [ -x "$directory/.venv/bin/python" ]; then
        exec "$directory/.venv/bin/python" "$@"
    fi
    directory=${directory%/*}
done
exec python3 "$@"
