"""Owns the options that several commands share, each spelled once: same name, same meaning everywhere."""

from pathlib import Path
from typing import Annotated

import typer

INPUT, OUTPUT, RUNTIME = "Input", "Output", "Runtime"

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration; ./calseg.yaml without it.", rich_help_panel=INPUT),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key, such as pretrain.lr=1e-4.", rich_help_panel=INPUT),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, nothing else there.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no hints; errors only.", rich_help_panel=RUNTIME)
]
NoColor = Annotated[bool, typer.Option("--no-color", help="Plain text.", rich_help_panel=RUNTIME)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=RUNTIME)]

Name = Annotated[str | None, typer.Option("--name", help="The run's name: results go to RUNS/NAME.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", rich_help_panel=RUNTIME)]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=RUNTIME)
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes that read images; 0 reads here.", rich_help_panel=RUNTIME)
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", "-f", help="Replace a result; the old one stays until the new is whole.", rich_help_panel=OUTPUT
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.", rich_help_panel=OUTPUT)]
Tensorboard = Annotated[
    bool,
    typer.Option("--tensorboard", help="Also log for TensorBoard, in the stage's folder.", rich_help_panel=RUNTIME),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", "-n", help="Check everything, say what would be written, write nothing.", rich_help_panel=OUTPUT
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Run the network through torch.compile.", rich_help_panel=RUNTIME),
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--no-deterministic",
        help="Ask for kernels that give the same result each time.",
        rich_help_panel=RUNTIME,
    ),
]
GradCheckpoint = Annotated[
    bool | None,
    typer.Option(
        "--grad-checkpoint/--no-grad-checkpoint",
        help="Compute blocks again going backward: less memory, the same numbers.",
        rich_help_panel="Training",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.", rich_help_panel=OUTPUT)]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="PATH|STAGE",
        help="A checkpoint, or a stage of the run such as pretrain or adapt-adabn; the newest without it.",
        rich_help_panel=INPUT,
    ),
]
Domain = Annotated[str | None, typer.Option("--domain", help="source or target.", rich_help_panel=INPUT)]
Split = Annotated[str | None, typer.Option("--split", help="train, val or test.", rich_help_panel=INPUT)]
MaxItems = Annotated[int | None, typer.Option("--max-items", help="Only the first N images.", rich_help_panel=INPUT)]
Prototypes = Annotated[
    Path | None,
    typer.Option(help="Label by the nearest of these prototypes (calibrate-prototypes).", rich_help_panel=INPUT),
]
Calibrator = Annotated[
    Path | None, typer.Option(help="Correct logits by this calibrator (calibrate).", rich_help_panel=INPUT)
]
