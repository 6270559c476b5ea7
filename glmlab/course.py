"""Run the notebooks of a project headlessly, one after another, and print what came out."""

import sys
import time
from pathlib import Path

from glmlab import paths

#: Notebooks of a project in their order, each with the parameters of a workshop-sized run.
COURSES = {
    "intent": [
        ("01_data", {}),
        ("02_train", {"run": "intent-workshop"}),
        ("03_eval", {"run": "intent-workshop", "checkpoint": -1, "samples": 300}),
        ("04_compare", {"run": "intent-workshop", "beside": "intent-reference:-1", "samples": 300, "dev_samples": 60}),
    ],
    "triplets": [
        ("11_triplets_data", {}),
        ("12_triplets_train", {"run": "triplets-workshop"}),
        ("13_triplets_eval", {"run": "triplets-workshop", "samples": 60}),
        ("14_triplets_compare", {"run": "triplets-workshop", "beside": "triplets-reference:-1", "samples": 100, "dev_samples": 40}),
    ],
    "service": [
        ("21_service_data", {}),
        ("22_service_train", {"run": "service-workshop"}),
        ("23_service_eval", {"run": "service-workshop", "samples": 100}),
        ("24_service_compare", {"run": "service-workshop", "beside": "service-reference:-1", "samples": 60, "dev_samples": 30}),
    ],
    "medical": [
        ("31_medical_data", {}),
        ("32_medical_train", {"run": "medical-workshop"}),
        ("33_medical_eval", {"run": "medical-workshop", "checkpoint": -1, "samples": 40}),
        ("34_medical_compare", {"run": "medical-workshop", "beside": "medical-reference:390", "samples": 30}),
    ],
}


def run(project: str, out=sys.stdout) -> Path:
    """Execute the notebooks of a project with papermill into reports/<project>; returns that folder.

    What the cells print appears at once. Errors: RuntimeError that names notebook and cell of the failure and the report to open.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError
    folder = paths.reports(project)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    for name, parameters in COURSES[project]:
        report = folder / f"{name}.ipynb"
        shown = ", ".join(f"{key}={value}" for key, value in parameters.items())
        print(f"\n=== {name}{f' ({shown})' if shown else ''} -> {paths.shown(report)}", file=out, flush=True)
        started = time.time()
        try:
            papermill.execute_notebook(str(paths.notebooks(f"{name}.ipynb")), str(report), parameters, kernel_name="python3",
                                       progress_bar=False, stdout_file=out, stderr_file=out)
        except PapermillExecutionError as error:
            raise RuntimeError(f"{name} failed in cell {error.cell_index}: {error.ename}: {error.evalue}\n"
                               f"everything up to there is in {paths.shown(report)}") from error
        print(f"=== {name} finished in {time.time() - started:.0f} s", file=out, flush=True)
    print(f"\nall {len(COURSES[project])} notebooks finished in {(time.time() - began) / 60:.1f} minutes", file=out, flush=True)
    return folder


def summary(project: str, folder: Path) -> str:
    """The table base / checkpoints / baselines of the comparison, and the paths to open."""
    from glmlab import reports
    comparison = reports.read_comparison(folder / "compare")
    figures = sorted(folder.rglob("*.png"))
    opened = [*(folder / f"{name}.ipynb" for name, _ in COURSES[project]), *figures]
    return "\n".join([reports.text_table(comparison["systems"], comparison["scores"]), "", "open:", *(f"  {paths.shown(path)}" for path in opened)])
