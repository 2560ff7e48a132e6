"""Being written by the tracking helper; the interface in /tmp/plan/CONTRACT.md holds."""
from contextlib import contextmanager


class StageRun:
    def log_metrics_tree(self, metrics): pass
    def log_curve(self, values, step): pass
    def log_figure(self, figure, name): pass
    def log_file(self, path, folder=""): pass
    def log_dataset(self, **k): pass
    def log_model(self, **k): pass


@contextmanager
def stage_run(home, name, params):
    yield StageRun()
