"""Teach a small GPT to write like Python's own documentation, byte by byte. Under a minute on two cores.

    python examples/gpt.py                  # in this process
    python examples/gpt.py --max-steps 2000 # longer, and better
    orchestrator fit --model=ByteGPT --data=TextBytes --trainer.max_steps=300     # the same without a script

The text is the help of Python's language reference, which every Python has (about 700 kB).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import orchestrator as pl
from modules.models.gpt import ByteGPT
from modules.models.text import TextBytes
from orchestrator.loggers import CSVLogger


def main() -> None:
    """Train for some steps, say how many bits a byte costs, and write a little."""
    parser = argparse.ArgumentParser(description="A GPT over bytes.")
    parser.add_argument("--devices", type=int, default=1, help="workers; 1 trains in this process")
    parser.add_argument("--max-steps", type=int, default=300, help="optimizer steps")
    parser.add_argument("--width", type=int, default=128, help="numbers that stand for a byte inside")
    parser.add_argument("--root-dir", type=Path, default=Path("runs/gpt"), help="where all files go")
    args = parser.parse_args()
    pl.seed_everything(7)
    model = ByteGPT(context=64, layers=2, heads=4, width=args.width, lr=3e-3)
    trainer = pl.Trainer(
        max_steps=args.max_steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=args.devices,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        logger=CSVLogger(args.root_dir.resolve()),
    )
    data = TextBytes(context=64, batch_size=32)
    trainer.fit(model, datamodule=data)
    (found,) = trainer.validate(model, datamodule=data, verbose=False)
    print(f"{found['val_bpb']:.2f} bits a byte; a byte that is only guessed costs 8.")
    print(model.generate(b"The statement ", 200, temperature=0.7).decode(errors="replace"))


if __name__ == "__main__":
    main()
