import subprocess
import sys


def test_the_celery_process_never_imports_mlx() -> None:
    code = (
        "import pkgutil, importlib, sys, worker\n"
        "for m in pkgutil.iter_modules(worker.__path__, 'worker.'):\n"
        "    if m.name not in ('worker.engine', 'worker.__main__'):\n"
        "        importlib.import_module(m.name)\n"
        "import worker.__main__, celery.concurrency.thread\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'transformers')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
