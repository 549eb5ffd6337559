# SPDX-License-Identifier: Apache-2.0
"""Train a student supervised on the exact flow of simulated clips.

usage: python3 -m training.train --config config/train_lite_simulation.yaml --out runs/lite

Clips are simulated when first needed. Stop it at any moment and start it again: it goes on from the last checkpoint,
with the same samples that it would have seen. The result is OUT/last.pt; export it with
`python3 -m export.to_onnx OUT/last.pt --out model.onnx`.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from training.clip_store import ClipStore
from training.config import load_config
from training.samples import PairSamples
from training.schedule import TrainConfig
from zeroflow_ros.errors import ConfigError, ZeroFlowError


def train(config: TrainConfig, out: Path, clips_folder: Path, *, change_config: bool = False) -> Path:
    """Train to the end, from the last checkpoint in `out` if there is one; return the last checkpoint's path.

    change_config: go on with another configuration than that of the checkpoint, which is written down in it.

    Raises: ConfigError when that checkpoint has another configuration; ZeroFlowError when training diverges.
    """
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from training.checkpoint import load_checkpoint
    from training.losses import balanced_epe
    from training.students import build_student

    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    last = out / 'last.pt'
    as_json = json.loads(json.dumps(dataclasses.asdict(config)))
    student = build_student(config.student).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    start, history = 0, []
    if last.is_file():
        checkpoint = load_checkpoint(last)
        history = checkpoint.provenance.get('history', [])
        if checkpoint.provenance.get('config') != as_json:
            if not change_config:
                raise ConfigError(
                    f'{last} was trained with another configuration. Choose another --out, or give --change-config '
                    'to go on with this one.'
                )
            history = [
                *history,
                {'until_step': checkpoint.provenance['step'], 'config': checkpoint.provenance['config']},
            ]
        student.load_state_dict(checkpoint.state_dict)
        optimizer.load_state_dict(checkpoint.optimizer)
        start = checkpoint.provenance['step']
    (out / 'config.json').write_text(json.dumps(as_json, indent=1))
    full_grid = student.grid
    samples = PairSamples(config, ClipStore(clips_folder, config.num_sweeps), full_grid)
    loader = DataLoader(samples, batch_sampler=samples.batches(start), num_workers=config.num_workers, collate_fn=list,
                        prefetch_factor=4 if config.num_workers else None)  # fmt: skip
    began = time.monotonic()
    bar = tqdm(loader, initial=start, total=config.steps, unit='step', disable=not sys.stderr.isatty())
    with (out / 'log.jsonl').open('a') as log:
        for step, batch in enumerate(bar, start):
            for group in optimizer.param_groups:
                group['lr'] = config.learning_rate(step)
            student.grid = config.phase(step).grid(full_grid)
            clouds = [tuple(map(torch.from_numpy, sample.clouds)) for sample in batch]
            rows = [tuple(map(torch.from_numpy, sample.rows)) for sample in batch]
            predicted = student.forward_both(clouds, rows)  # both directions of time
            flow = torch.cat([flow for both in predicted for flow in both])
            target = torch.cat([torch.from_numpy(flow) for sample in batch for flow in sample.flows])
            dt = torch.cat([torch.full((len(flow),), sample.dt) for sample in batch for flow in sample.flows])
            speed = torch.linalg.vector_norm(target, dim=1) / dt
            loss = balanced_epe(flow, target, speed, still_weight=config.still_weight)
            if not torch.isfinite(loss):
                raise ZeroFlowError(
                    f'The loss of step {step} is {loss.item()}; start again with a lower lr than {config.lr}.'
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
            optimizer.step()
            line = {'step': step, 'loss': round(loss.item(), 5), **_mover_scores(flow.detach(), target)}
            log.write(json.dumps(line | {'seconds': round(time.monotonic() - began, 1)}) + '\n')
            log.flush()
            bar.set_postfix(loss=f'{loss.item():.3f}')
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                _save(student, optimizer, config, {'step': step + 1, 'config': as_json, 'history': history}, last)
    return last


def _mover_scores(flow, target) -> dict:
    """Return the summed error and the summed length of the true flow of moving points: their ratio is a running EPE."""
    import torch

    moves = torch.linalg.vector_norm(target, dim=1) > 0.05
    error, length = (
        torch.linalg.vector_norm((flow - target)[moves], dim=1),
        torch.linalg.vector_norm(target[moves], dim=1),
    )
    return {'mover_error': round(error.sum().item(), 3), 'mover_flow': round(length.sum().item(), 3)}


def _save(student, optimizer, config: TrainConfig, progress: dict, path: Path) -> None:
    from training.checkpoint import Checkpoint
    from training.provenance import provenance

    about = {
        'data': f'simulation, {config.num_clips} clips of {config.num_sweeps} sweeps, seeds from {config.first_seed}',
        'supervision': 'exact flow of the simulation',
        'direction': 'both',
        'ground': 'keep',
        'z_origin': 'ground',
        'licence': 'Apache-2.0',
        **progress,
    }
    Checkpoint(config.student, student.state_dict(), provenance() | about, optimizer.state_dict()).save(path)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        'training.train', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--config', type=Path, help='YAML with the fields of TrainConfig that differ from the defaults')
    parser.add_argument(
        '--out', type=Path, required=True, help='folder of the checkpoint, the log and the effective config'
    )
    parser.add_argument('--clips', type=Path, default=Path('out/clips'), help='folder of the simulated clips')
    parser.add_argument('--change-config', action='store_true', help='go on from a checkpoint of another configuration')
    options = parser.parse_args(arguments)
    try:
        config = load_config(TrainConfig, options.config)
        last = train(config, options.out, options.clips, change_config=options.change_config)
    except ZeroFlowError as error:
        print(f'training.train: {error}', file=sys.stderr)
        return 1
    print(f'Trained. Export it with: python3 -m export.to_onnx {last} --out model.onnx')
    return 0


if __name__ == '__main__':
    sys.exit(main())
